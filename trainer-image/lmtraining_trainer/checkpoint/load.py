"""Loading the chosen checkpoint.

Promise: nothing is loaded but the very bytes whose hashes were verified, on every rank. Of a
sharded checkpoint each rank verifies its own part, and what one rank finds broken is broken for
all; to go on with another number of ranks, or in the other layout, each reads all parts, and so
holds a whole copy while it loads.
Trap avoided: a rank that sees other storage than the lead must not break what is intact: the lead
has seen each file at its full size, so one that is missing here, or has another size, is an error
to try again after.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lmtraining_api import FailureClass
from lmtraining_trainer import rng
from lmtraining_trainer.checkpoint.choosing import Chosen
from lmtraining_trainer.checkpoint.faults import (
    INCOMPLETE,
    Contents,
    fault_of_either,
    hash_fault,
    size_fault,
)
from lmtraining_trainer.checkpoint.tensors import tensors_in
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.run import Mirror, layout
from lmtraining_trainer.sharding import joined
from lmtraining_trainer.state import Counters, TrainState


def needed_parts(
    manifest: dict[str, Any], *, rank: int, world_size: int, is_sharded: bool
) -> list[str]:
    """The files of a sharded checkpoint that a rank needs to go on from it: its own, or all where
    the state is not cut as those are."""
    if not _is_cut_alike(manifest, world_size=world_size, is_sharded=is_sharded):
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
    their bytes are in `contents`; once the lead has found every file there, at its full size.
    Raises TrainerError(STORAGE) where this rank sees other storage than the lead, OSError."""
    directory = Path(chosen.directory)
    manifest = _same_manifest(directory, chosen)
    names = of_parts(manifest)
    if not manifest["files"].keys() >= set(names):
        return INCOMPLETE
    if why := size_fault(directory, manifest, names):
        raise _unlike_the_lead(directory, why)
    return hash_fault(directory, manifest, alive, contents, names) or ""


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
    is_own = _is_cut_alike(manifest, world_size=world_size, is_sharded=state.is_sharded)
    model, optimizer = (
        _own_tensors(file, contents, rank) if is_own else _Recut(file, contents, manifest, state)
        for file in (layout.MODEL, layout.OPTIMIZER)
    )
    state.load_tensors(model, optimizer, with_moments=not chosen.other_optimizer)
    counters = Counters.of_json(json.loads(_bytes_of(contents[layout.COUNTERS])))
    state.counters = counters if state.holds_best(optimizer) else counters.without_best()
    if same_ranks:
        rng.restore(_bytes_of(contents[layout.rng_name(rank)]))
    else:
        rng.seed_all(seed=seed, rank=rank, step=chosen.step)


class _Recut(Mapping[str, torch.Tensor]):
    """What one rank holds of tensors that are whole or cut otherwise; made when asked for, so that
    only one is whole at a time."""

    def __init__(
        self, file: str, contents: Contents, manifest: dict[str, Any], state: TrainState
    ) -> None:
        """Of MODEL or OPTIMIZER."""
        is_whole = layout.layout_in(manifest) == layout.WHOLE
        ranks = range(manifest["world_size"])
        names = [file] if is_whole else [layout.part_name(file, rank) for rank in ranks]
        self._files = [tensors_in(contents[name]) for name in names]
        self._cuts: dict[str, Any] = {} if is_whole else manifest["cuts"][file]
        self._cut = state.cutter()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = joined([file[name] for file in self._files], self._cuts.get(name))
        return self._cut(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files[0])

    def __len__(self) -> int:
        return len(self._files[0])


def _own_tensors(file: str, contents: Contents, rank: int) -> dict[str, torch.Tensor]:
    """Of MODEL or OPTIMIZER, where this rank goes on with the part that it finds there."""
    return tensors_in(contents[layout.part_name(file, rank)])


def _is_cut_alike(manifest: dict[str, Any], *, world_size: int, is_sharded: bool) -> bool:
    """Whether the state is cut as the parts of a checkpoint are."""
    is_in_parts = layout.layout_in(manifest) == layout.SHARDED
    return is_in_parts and is_sharded and bool(manifest["world_size"] == world_size)


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
    why = fault_of_either(mirror, directory, manifest, alive, contents=contents, names=names)
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
