"""What is wrong with a checkpoint.

Promise: what is found good here is the very bytes that the caller then holds; sizes are asked
first, since they cost nothing.
Trap avoided: storage that does not answer proves nothing about a checkpoint: that is an OSError,
and no fault of it. Nor is it one where a rank finds a file missing, or of another size, that the
lead has seen whole: it sees other storage.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lmtraining_trainer.checkpoint.reading import read_hashed
from lmtraining_trainer.run import Mirror, Run, layout

Contents = dict[str, torch.Tensor]
"""The bytes of a checkpoint's files by name: what was verified is what is loaded."""

#: What a manifest must say beside what the files are.
MANIFEST_FIELDS = frozenset(
    {"job_uid", "step", "world_size", "time", "shape", "fingerprint", "tokenizer_sha256", "files"}
)
INCOMPLETE = "its manifest is incomplete"
ABANDONED = "abandoned by the rewind"


def manifest_fault(directory: Path, manifest: dict[str, Any]) -> str | None:
    """What is wrong with the manifest itself, or None. Only the mark has a hash of it."""
    if not manifest:
        return "no manifest"
    is_sharded = layout.layout_in(manifest) == layout.SHARDED
    if missing := (MANIFEST_FIELDS | ({"cuts"} if is_sharded else set())) - manifest.keys():
        return f"its manifest has no {min(missing)}"
    if layout.is_marked(directory) and not layout.is_marked_intact(directory):
        return "its manifest is not the one that was marked intact"
    return None


def abandoned(run: Run, manifest: dict[str, Any]) -> str | None:
    """Which rewind has gone back behind this checkpoint, or None."""
    rewinds = [entry for entry in run.journal.entries if entry.kind == "Rewound"]
    for rewind in rewinds[int(manifest.get("lineage", 0)) :]:
        to_step = int(rewind.detail["to_step"] or 0)
        if manifest["step"] > to_step:
            return f"{ABANDONED} from step {rewind.step} to step {to_step}"
    return None


def fault_of_either(
    mirror: Mirror | None,
    directory: Path,
    manifest: dict[str, Any],
    alive: Callable[[], None],
    *,
    contents: Contents,
    names: Sequence[str] | None = None,
) -> str | None:
    """What is wrong with the files of a checkpoint here, after they were fetched where the run
    lives in an object store; or None."""
    why = fault_of(directory, manifest, alive, contents, names)
    if why is None or mirror is None:
        return why
    mirror.fetch_checkpoint(directory, names)
    return fault_of(directory, manifest, alive, contents, names)


def fault_of(
    directory: Path,
    manifest: dict[str, Any],
    alive: Callable[[], None],
    contents: Contents,
    names: Sequence[str] | None = None,
) -> str | None:
    """What is wrong with the files of a checkpoint, or None, and then their bytes are in
    `contents`.

    Raises OSError where they cannot be read, which proves nothing about them.
    """
    contents.clear()
    try:
        if why := size_fault(directory, manifest, names):
            return why
        return hash_fault(directory, manifest, alive, contents, names)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"


def hash_fault(
    directory: Path,
    manifest: dict[str, Any],
    alive: Callable[[], None],
    contents: Contents,
    names: Sequence[str] | None = None,
) -> str | None:
    """Which file has other bytes than its manifest says, or None, and then they are in `contents`.
    Raises OSError, also where a file is not there."""
    try:
        expected = {name: manifest["files"][name]["sha256"] for name in names or manifest["files"]}
        read = read_hashed([directory / name for name in expected], alive)
        for path, (content, sha256) in read.items():
            if sha256 != expected[path.name]:
                return f"{path.name} has another SHA-256 than its manifest says"
            contents[path.name] = content
    except (KeyError, TypeError):
        return INCOMPLETE
    return None


def size_fault(
    directory: Path, manifest: dict[str, Any], names: Sequence[str] | None = None
) -> str | None:
    """Which file is not there, or not as long as its manifest says; or None. Raises OSError."""
    try:
        for name in names or manifest["files"]:
            expected = manifest["files"][name]["size"]
            size = (directory / name).stat().st_size
            if size != expected:
                return f"{name} has {size} bytes, not {expected}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (KeyError, TypeError):
        return INCOMPLETE
    return None
