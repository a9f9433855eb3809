"""Choosing and loading a checkpoint.

Promise: nothing is loaded but the very bytes whose hashes were verified, on every rank; a
broken checkpoint is passed over in favour of the one before it, moved aside, and the journal says
why (P8); so is one that a rewind has abandoned. Of a sharded checkpoint each rank verifies its own
part, and what one rank finds broken is broken for all; to go on with another number of ranks, or in
the other layout, each reads all parts, and so holds a whole copy while it loads. A checkpoint of
another model is an error with both shapes in it, not a fresh start; so is a run whose checkpoints
are all gone (P3).
Trap avoided: storage that does not answer proves nothing about a checkpoint; it is an error to try
again after, and nothing is moved. And a broken checkpoint that keeps its name counts as one that
was kept, and stands in the way of the good one that will be written at the same step.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lmtraining_api import FailureClass
from lmtraining_trainer import rng
from lmtraining_trainer.checkpoint import layout
from lmtraining_trainer.checkpoint.tensors import read_hashed, tensors_in
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import remove_directory
from lmtraining_trainer.run import Mirror, Run
from lmtraining_trainer.sharding import joined
from lmtraining_trainer.state import Counters, TrainState

Contents = dict[str, torch.Tensor]
"""The bytes of a checkpoint's files by name: what was verified is what is loaded."""

#: What a manifest must say beside what the files are.
MANIFEST_FIELDS = frozenset(
    {"job_uid", "step", "world_size", "time", "shape", "fingerprint", "tokenizer_sha256", "files"}
)
#: Broken checkpoints kept as evidence.
REJECTED_KEPT = 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The checkpoint to go on from."""

    step: int
    directory: str
    manifest_sha256: str
    world_size: int
    """Ranks of the gang that wrote it."""
    layout: str
    """How they shared the model."""
    time: str
    size_bytes: int

    @property
    def name(self) -> str:
        return Path(self.directory).name

    def json(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    run: Run,
    identity: dict[str, Any],
    alive: Callable[[], None],
    contents: Contents,
    *,
    of_parts: Callable[[dict[str, Any]], list[str]],
) -> Chosen | None:
    """The newest checkpoint that is intact as far as the lead can say, or None where none was ever
    saved; on the lead, which then has the bytes that it needs in `contents`: of a sharded one the
    files that `of_parts` names, of another one all.

    Raises TrainerError(CONFIGURATION) where it is of another job, model or tokenizer, or of a newer
    version, TrainerError(STORAGE) where some were saved and none is left, OSError where storage
    fails.
    """
    for directory in layout.newest_first(run.checkpoints):
        manifest = layout.manifest_of(directory) or {}
        _refuse_newer_version(directory, manifest)
        is_sharded = layout.layout_in(manifest) == layout.SHARDED
        why = (
            _manifest_fault(directory, manifest)
            or _abandoned(run, manifest)
            or (is_sharded and _size_fault(directory, manifest))
            or _fault_of_either(
                run.mirror,
                directory,
                manifest,
                alive,
                contents=contents,
                names=of_parts(manifest) if is_sharded else None,
            )
        )
        if why:
            reject(run, directory, why)
            continue
        _refuse_anothers(run, directory, manifest)
        _refuse_another_model(directory, manifest, identity)
        return Chosen(
            step=int(manifest["step"]),
            directory=str(directory),
            manifest_sha256=layout.manifest_sha256(directory),
            world_size=int(manifest["world_size"]),
            layout=layout.layout_in(manifest),
            time=str(manifest["time"]),
            size_bytes=sum(int(entry["size"]) for entry in manifest["files"].values()),
        )
    _refuse_to_begin_anew(run)
    return None


def accept(run: Run, chosen: Chosen) -> None:
    """Once all ranks have found `chosen` intact; on the lead. Raises OSError."""
    directory = Path(chosen.directory)
    _forget_rejected(run)
    if not layout.is_marked_intact(directory):
        layout.mark_intact(directory, chosen.manifest_sha256)
        run.keep(directory / layout.INTACT)


def needed_parts(
    manifest: dict[str, Any], *, rank: int, world_size: int, is_sharded: bool
) -> list[str]:
    """The files of a sharded checkpoint that a rank needs to go on from it: its own, or all where
    the state is not cut as those are."""
    if not is_sharded or manifest["world_size"] != world_size:
        return list(manifest["files"])
    own = [layout.part_name(file, rank) for file in (layout.MODEL, layout.OPTIMIZER)]
    return [*own, layout.rng_name(rank), layout.COUNTERS]


def part_fault(
    chosen: Chosen,
    alive: Callable[[], None],
    contents: Contents,
    *,
    of_parts: Callable[[dict[str, Any]], list[str]],
) -> str:
    """What is wrong with the files that this rank needs of a sharded checkpoint; or empty, and then
    their bytes are in `contents`. Raises TrainerError(STORAGE) where this rank sees other storage
    than the lead, OSError."""
    directory = Path(chosen.directory)
    manifest = _same_manifest(directory, chosen)
    return _fault_of(directory, manifest, alive, contents, of_parts(manifest)) or ""


def restore_state(
    state: TrainState,
    chosen: Chosen,
    *,
    rank: int,
    world_size: int,
    seed: int,
    alive: Callable[[], None],
    contents: Contents,
    mirror: Mirror | None = None,
) -> None:
    """Load `chosen` into `state` and the random generators of this rank.

    `contents` is empty on the ranks that did not verify it yet. Where the world size changed, the
    generators are seeded anew from (seed, rank, step). Raises TrainerError(STORAGE), OSError.
    """
    directory = mirror.checkpoint(chosen.name) if mirror else Path(chosen.directory)
    same_ranks = chosen.world_size == world_size
    needed = [layout.MODEL, layout.OPTIMIZER, layout.COUNTERS]
    needed += [layout.rng_name(rank)] if same_ranks else []
    if not contents:
        _verify(directory, chosen, needed, alive, mirror=mirror, contents=contents)
    manifest = _same_manifest(directory, chosen)
    state.load_tensors(
        *(_tensors(file, contents, manifest, state) for file in (layout.MODEL, layout.OPTIMIZER))
    )
    state.counters = Counters.of_json(json.loads(_bytes_of(contents[layout.COUNTERS])))
    if same_ranks:
        rng.restore(_bytes_of(contents[layout.rng_name(rank)]))
    else:
        rng.seed_all(seed=seed, rank=rank, step=chosen.step)


class _Recut(Mapping[str, torch.Tensor]):
    """What one rank holds of tensors that are whole or cut otherwise; made when asked for, so that
    only one is whole at a time."""

    def __init__(
        self, files: list[dict[str, torch.Tensor]], cuts: dict[str, Any], state: TrainState
    ) -> None:
        self._files = files
        self._cuts = cuts
        self._state = state

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = joined([file[name] for file in self._files], self._cuts.get(name))
        return self._state.own_part(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files[0])

    def __len__(self) -> int:
        return len(self._files[0])


def _tensors(
    file: str, contents: Contents, manifest: dict[str, Any], state: TrainState
) -> Mapping[str, torch.Tensor]:
    """This rank's tensors of MODEL or OPTIMIZER."""
    if layout.layout_in(manifest) == layout.WHOLE:
        return _Recut([tensors_in(contents[file])], {}, state)
    names = [layout.part_name(file, rank) for rank in range(manifest["world_size"])]
    there = [tensors_in(contents[name]) for name in names if name in contents]
    return there[0] if len(there) == 1 else _Recut(there, manifest["cuts"][file], state)


def _verify(
    directory: Path,
    chosen: Chosen,
    names: list[str],
    alive: Callable[[], None],
    *,
    mirror: Mirror | None,
    contents: Contents,
) -> None:
    if mirror is not None and not _is_here(directory, chosen):
        mirror.fetch_checkpoint(directory, names)
    manifest = _same_manifest(directory, chosen)
    why = _fault_of_either(mirror, directory, manifest, alive, contents=contents, names=names)
    if why is not None:
        raise _unlike_the_lead(directory, why)


def _same_manifest(directory: Path, chosen: Chosen) -> dict[str, Any]:
    """The manifest that the lead read. Raises TrainerError(STORAGE) where it is another here."""
    manifest = layout.manifest_of(directory)
    if manifest is None or layout.manifest_sha256(directory) != chosen.manifest_sha256:
        raise _unlike_the_lead(directory, "another manifest than rank 0 read")
    return manifest


def _unlike_the_lead(directory: Path, why: str) -> TrainerError:
    return TrainerError(
        FailureClass.STORAGE,
        "CheckpointUnreadable",
        f"{directory} is intact for rank 0 but not here ({why}): check that all pods see the "
        "same storage",
    )


def _is_here(directory: Path, chosen: Chosen) -> bool:
    try:
        return layout.manifest_sha256(directory) == chosen.manifest_sha256
    except FileNotFoundError:
        return False


def _bytes_of(content: torch.Tensor) -> bytes:
    return content.numpy().tobytes()


def _manifest_fault(directory: Path, manifest: dict[str, Any]) -> str | None:
    """What is wrong with the manifest itself, or None. Only the mark has a hash of it."""
    if not manifest:
        return "no manifest"
    is_sharded = layout.layout_in(manifest) == layout.SHARDED
    if missing := (MANIFEST_FIELDS | ({"cuts"} if is_sharded else set())) - manifest.keys():
        return f"its manifest has no {min(missing)}"
    if layout.is_marked(directory) and not layout.is_marked_intact(directory):
        return "its manifest is not the one that was marked intact"
    return None


def _abandoned(run: Run, manifest: dict[str, Any]) -> str | None:
    """Which rewind has gone back behind this checkpoint, or None."""
    rewinds = [entry for entry in run.journal.entries if entry.kind == "Rewound"]
    for rewind in rewinds[int(manifest.get("lineage", 0)) :]:
        to_step = int(rewind.detail["to_step"] or 0)
        if manifest["step"] > to_step:
            return f"abandoned by the rewind from step {rewind.step} to step {to_step}"
    return None


def _fault_of_either(
    mirror: Mirror | None,
    directory: Path,
    manifest: dict[str, Any],
    alive: Callable[[], None],
    *,
    contents: Contents,
    names: list[str] | None = None,
) -> str | None:
    """What is wrong with the files of a checkpoint here, after they were fetched where the run
    lives in an object store; or None."""
    why = _fault_of(directory, manifest, alive, contents, names)
    if why is None or mirror is None:
        return why
    mirror.fetch_checkpoint(directory, names)
    return _fault_of(directory, manifest, alive, contents, names)


def _fault_of(
    directory: Path,
    manifest: dict[str, Any],
    alive: Callable[[], None],
    contents: Contents,
    names: list[str] | None = None,
) -> str | None:
    """What is wrong with the files of a checkpoint, or None, and then their bytes are in
    `contents`; sizes first, they cost nothing.

    Raises OSError where they cannot be read, which proves nothing about them.
    """
    contents.clear()
    try:
        entries = {name: manifest["files"][name] for name in names or manifest["files"]}
        if why := _size_fault(directory, {"files": entries}):
            return why
        for name, entry in entries.items():
            contents[name], sha256 = read_hashed(directory / name, alive)
            if sha256 != entry["sha256"]:
                return f"{name} has another SHA-256 than its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (KeyError, TypeError):
        return "its manifest is incomplete"
    return None


def _size_fault(directory: Path, manifest: dict[str, Any]) -> str | None:
    """Which file is not there, or not as long as its manifest says; or None."""
    try:
        for name, entry in manifest["files"].items():
            size = (directory / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes, not {entry['size']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (KeyError, TypeError, AttributeError):
        return "its manifest is incomplete"
    return None


def reject(run: Run, directory: Path, why: str) -> None:
    """Journal why, then move it aside, so that its name is free and it is never counted."""
    run.journal.append("Rejected", layout.step_of(directory) or 0, path=directory.name, why=why)
    if run.mirror is not None:
        run.mirror.reject(directory)
    aside = run.checkpoints / f"{layout.REJECTED_PREFIX}{directory.name}"
    remove_directory(aside)
    directory.rename(aside)


def _forget_rejected(run: Run) -> None:
    """Keep the newest ones as evidence; only once another was found good."""
    rejected = sorted(
        run.checkpoints.glob(f"{layout.REJECTED_PREFIX}*"), key=lambda path: path.stat().st_mtime
    )
    for path in rejected[:-REJECTED_KEPT]:
        remove_directory(path)


def _refuse_to_begin_anew(run: Run) -> None:
    saved = [entry.step for entry in run.journal.entries if entry.kind == "Saved"]
    if saved:
        raise TrainerError(
            FailureClass.STORAGE,
            "CheckpointsLost",
            f"{run.checkpoints} holds no intact checkpoint though {len(saved)} were saved, the "
            f"newest at step {saved[-1]}: restore one there, or start a new run with another "
            "checkpoint.path",
            step=saved[-1],
        )


def _refuse_newer_version(directory: Path, manifest: dict[str, Any]) -> None:
    """To pass it over would throw away what it holds, and go back without a word (P3)."""
    version = manifest.get("schema_version", layout.SCHEMA_VERSION)
    if isinstance(version, int) and version > layout.SCHEMA_VERSION:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "NewerCheckpoint",
            f"{directory} is a checkpoint of schema version {version}, and this trainer reads "
            f"versions up to {layout.SCHEMA_VERSION}: use the trainer image that wrote it "
            "(workers.image) or a newer one, or choose another checkpoint.path",
        )


def _refuse_anothers(run: Run, directory: Path, manifest: dict[str, Any]) -> None:
    """A checkpoint that somebody put here, of a job that never had the run."""
    owners = {run.job_uid, *(one.get("job_uid") for one in run.journal.details("Started"))}
    if manifest["job_uid"] not in owners and not run.may_take_over:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "CheckpointOfAnotherJob",
            f"{directory} was written by job {manifest['job_uid']}, which never had this run: move "
            "it away, or set checkpoint.existingRun to Resume to go on from it",
        )


def _refuse_another_model(
    directory: Path, manifest: dict[str, Any], identity: dict[str, Any]
) -> None:
    if manifest["fingerprint"] != identity["fingerprint"]:
        theirs, ours = _differences(manifest["shape"], identity["shape"])
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "AnotherModel",
            f"{directory} is a checkpoint of a model with {theirs}, but the job asks for {ours}: "
            "ask for the same model, or choose another checkpoint.path",
        )
    if manifest["tokenizer_sha256"] != identity["tokenizer_sha256"]:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "AnotherTokenizer",
            f"{directory} was trained with another tokenizer than data.train gives now: use the "
            "same data, or choose another checkpoint.path",
        )


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str]:
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return (
        ", ".join(f"{key} {theirs.get(key)}" for key in keys),
        ", ".join(f"{key} {ours.get(key)}" for key in keys),
    )
