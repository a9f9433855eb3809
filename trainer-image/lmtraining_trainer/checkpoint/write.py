"""Writing a checkpoint: under another name, synced, renamed, read back, marked.

Promise: `step-…` appears whole or not at all; the mark `intact` is set only after the bytes were
read back from disk and agree with the hashes taken from memory; a gang that was replaced publishes
nothing (P1). The snapshot is taken first and the writing needs nothing else, so it can be done
beside the training. Of a sharded one each rank writes its part, and reads it back; the lead does
the rest once it has heard of all parts, and one part that fails is the end of the save.
Trap avoided: a failed write must not cost what is there, so nothing is deleted before the new one
is intact.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lmtraining_api import CheckpointReport
from lmtraining_trainer.checkpoint import together
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.checkpoint.tensors import write_bytes, write_tensors
from lmtraining_trainer.checkpoint.together import Talk
from lmtraining_trainer.files import (
    json_bytes,
    nothing,
    publish_directory,
    remove_directory,
    sha256_of,
    sha256_of_file,
    temporary_beside,
)
from lmtraining_trainer.run import Run, layout


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint is made of. Where the tensors are the live ones, the next step has to wait
    until they are written."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    """Tensors by file and name."""
    documents: dict[str, bytes]
    """Other files by name."""
    identity: dict[str, Any]
    """What the manifest says about the model, the tokenizer and the gang; on the lead."""
    cuts: dict[str, dict[str, Any]] | None = None
    """How each tensor is cut, by file and name, where the files are the part of one rank."""
    await_copied: Callable[[], None] = nothing
    """Until the tensors are what they are to be."""


class NotIntact(OSError):  # noqa: N818 - an OSError: the storage did not keep what it was given
    """What was read back is not what was written."""


class Others:
    """The other ranks that write a part of the checkpoint; here: none."""

    def begun(self, temporary: Path) -> None:
        """Let them write, there."""

    def written(self) -> dict[str, layout.FileEntry]:
        """What they have written, once all have. Raises OSError where one failed."""
        return {}

    def published(self) -> None:
        """Let them read back what they have written."""

    def await_read(self) -> None:
        """Until all have. Raises OSError where it is not what was written."""

    def ended(self) -> None:
        """Let them go on: all is done."""


@dataclass(frozen=True, kw_only=True)
class OtherRanks(Others):
    """Those of a gang, asked through the rendezvous store."""

    talk: Talk

    def begun(self, temporary: Path) -> None:
        self.talk.tell(together.BEGUN, directory=temporary.name)

    def written(self) -> dict[str, layout.FileEntry]:
        return {
            name: layout.FileEntry(**entry)
            for words in self.talk.hear_all(together.WRITTEN)
            for name, entry in words["files"].items()
        }

    def published(self) -> None:
        self.talk.tell(together.PUBLISHED)

    def await_read(self) -> None:
        self.talk.hear_all(together.READ)

    def ended(self) -> None:
        self.talk.tell(together.ENDED)


NOBODY = Others()


def write_checkpoint(
    run: Run, snapshot: Snapshot, pace: Pace, others: Others = NOBODY
) -> CheckpointReport:
    """Publish `snapshot`, and what the `others` write; in any thread. Raises OSError where storage
    fails, TrainerError("Fenced")."""
    final = run.checkpoints / layout.directory_name(snapshot.step)
    temporary = temporary_beside(final)
    try:
        temporary.mkdir()
        others.begun(temporary)
        own = _write_files(temporary, snapshot, pace)
        entries = own | others.written()
        manifest = _manifest(run, snapshot, entries)
        write_bytes(temporary / layout.MANIFEST, manifest)
        publish_directory(temporary, final, lambda: _make_way(run, final), alive=pace.turn)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    others.published()
    try:
        _read_back(final, own, pace.turn)
    except NotIntact:
        remove_directory(final)
        raise
    others.await_read()  # what then has no mark is looked at before it is loaded
    _to_the_store(run, final, pace)
    layout.mark_intact(final, sha256_of(manifest))
    run.keep(final / layout.INTACT)
    report = CheckpointReport(
        step=snapshot.step,
        path=str(final.relative_to(run.directory)),
        time=datetime.now(UTC),
        size_bytes=sum(entry.size for entry in entries.values()),
        sha256=sha256_of(manifest),
    )
    run.journal.append("Saved", snapshot.step, path=report.path, sha256=report.sha256)
    others.ended()
    return report


def write_part(checkpoints: Path, snapshot: Snapshot, pace: Pace, talk: Talk) -> None:
    """Write what this rank holds of a checkpoint that the lead publishes; until that is done.
    Raises OSError where any rank fails."""
    temporary = checkpoints / talk.hear(together.BEGUN, together.LEAD)["directory"]
    entries = _write_files(temporary, snapshot, pace)
    talk.tell(together.WRITTEN, files={name: asdict(entry) for name, entry in entries.items()})
    talk.hear(together.PUBLISHED, together.LEAD)
    _read_back(checkpoints / layout.directory_name(snapshot.step), entries, pace.turn)
    talk.tell(together.READ)
    talk.hear(together.ENDED, together.LEAD)


def _make_way(run: Run, final: Path) -> None:
    """Free the name `final` of what never was marked. Raises TrainerError("Fenced")."""
    run.fence.check()
    if final.exists() and not layout.is_marked_intact(final):
        remove_directory(final)
        run.fence.check()


def _to_the_store(run: Run, final: Path, pace: Pace) -> None:
    """Where the run lives in an object store: what is not there does not exist here either."""
    if run.mirror is None:
        return
    try:
        run.mirror.publish_checkpoint(final, run.fence.check, pace.beat)
    except BaseException:
        remove_directory(final)
        raise


def _write_files(directory: Path, snapshot: Snapshot, pace: Pace) -> dict[str, layout.FileEntry]:
    entries = {
        name: write_tensors(directory / name, named, pace)
        for name, named in snapshot.tensors.items()
    }
    for name, content in snapshot.documents.items():
        entries[name] = write_bytes(directory / name, content)
        pace.turn()
    return entries


def _manifest(run: Run, snapshot: Snapshot, entries: dict[str, layout.FileEntry]) -> bytes:
    return json_bytes(
        {
            "schema_version": layout.WHOLE_SCHEMA_VERSION,
            "step": snapshot.step,
            "job_uid": run.job_uid,
            "attempt": run.fence.attempt,
            "round": run.fence.round,
            "lineage": len(run.journal.details("Rewound")),
            "time": datetime.now(UTC).isoformat(),
            **snapshot.identity,
            **_cut(snapshot),
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in entries.items()
            },
        }
    )


def _cut(snapshot: Snapshot) -> dict[str, Any]:
    """What the manifest of a sharded checkpoint says beside that of a whole one."""
    if snapshot.cuts is None:
        return {}
    return {
        "schema_version": layout.SCHEMA_VERSION,
        "layout": layout.SHARDED,
        "cuts": snapshot.cuts,
    }


def _read_back(
    directory: Path, entries: dict[str, layout.FileEntry], alive: Callable[[], None]
) -> None:
    for name, entry in entries.items():
        if sha256_of_file(directory / name, alive) != entry.sha256:
            raise NotIntact(0, f"{directory / name} reads back otherwise than it was written")
