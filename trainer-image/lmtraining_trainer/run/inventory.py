"""The checkpoints of a run, for a person.

Promise: says of each directory what its manifest and its mark say, and reads nothing else: that
every byte was read back when it was saved, and agreed. A run that goes on from one reads it anew.
"""

from pathlib import Path

from lmtraining_trainer.run import layout

MARK = "INTACT WHEN SAVED"
HEADER = f"{'STEP':>10}  {'SIZE':>9}  {MARK}  SHA-256 OF THE MANIFEST"


def rows(checkpoints: Path) -> list[str]:
    """A header and one line per checkpoint, newest first; empty where there are none."""
    if not checkpoints.is_dir():
        return []
    found = [_row(directory) for directory in layout.newest_first(checkpoints)]
    return [HEADER, *found] if found else []


def _row(directory: Path) -> str:
    manifest = layout.manifest_of(directory)
    if manifest is None:
        return f"{layout.step_of(directory):>10}  {'–':>9}  {'no':<{len(MARK)}}  (no manifest)"
    size_bytes = sum(int(file["size"]) for file in manifest.get("files", {}).values())
    intact = "yes" if layout.is_marked_intact(directory) else "no"
    sha256 = layout.manifest_sha256(directory)
    size = f"{size_bytes / 1e6:>6.1f} MB"
    return f"{layout.step_of(directory):>10}  {size}  {intact:<{len(MARK)}}  {sha256}"
