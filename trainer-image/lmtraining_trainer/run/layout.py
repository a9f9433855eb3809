"""What a checkpoint directory holds, and how it is named.

Promise: `step-00000200` with a manifest is one that was written completely; `intact.json` says that
its bytes were read back and agree, `healthy.json` that good steps followed it.
Trap avoided: retention or loading by name alone counts directories that hold nothing usable.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtraining_trainer.files import read_json, sha256_of, write_json
from lmtraining_trainer.run import mirror

SCHEMA_VERSION = 2
"""Of the manifest, and of what lies beside it: the newest that is read."""
WHOLE_SCHEMA_VERSION = 1
"""Of a checkpoint whose files are whole, which an older trainer reads too."""
MANIFEST = mirror.MANIFEST
INTACT = mirror.INTACT
HEALTHY = mirror.HEALTHY
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
COUNTERS = "counters.json"
REJECTED_PREFIX = mirror.REJECTED_PREFIX

WHOLE, SHARDED = "ddp", "fsdp"
"""What a manifest says of its files: each is whole, or the part of one rank."""

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint, as its manifest has it."""

    size: int
    sha256: str


def directory_name(step: int) -> str:
    return f"step-{step:08d}"


def rng_name(rank: int) -> str:
    """The random generators of one rank."""
    return f"rng-{rank:05d}.json"


def part_name(file: str, rank: int) -> str:
    """What one rank holds of MODEL or OPTIMIZER."""
    stem, _, suffix = file.partition(".")
    return f"{stem}-{rank:05d}.{suffix}"


def layout_in(manifest: dict[str, Any]) -> str:
    """WHOLE or SHARDED."""
    return str(manifest.get("layout", WHOLE))


def step_of(directory: Path) -> int | None:
    """The step of a checkpoint directory, or None for any other name."""
    match = _NAME.fullmatch(directory.name)
    return int(match[1]) if match else None


def newest_first(checkpoints: Path) -> list[Path]:
    """The directories with a checkpoint's name."""
    named = [(step, path) for path in checkpoints.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(named, reverse=True)]


def manifest_of(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is no readable one."""
    return read_json(directory / MANIFEST)


def manifest_sha256(directory: Path) -> str:
    """SHA-256 of the manifest, and so of all that it names. Raises OSError."""
    return sha256_of((directory / MANIFEST).read_bytes())


def is_marked(directory: Path) -> bool:
    """Whether the hashes of a manifest were once read back here."""
    return (directory / INTACT).exists()


def is_marked_intact(directory: Path) -> bool:
    """Whether the hashes of this very manifest were once read back. Raises OSError."""
    return _is_marked(directory, INTACT)


def is_marked_healthy(directory: Path) -> bool:
    """Whether good steps followed this very checkpoint. Raises OSError."""
    return _is_marked(directory, HEALTHY)


def mark_intact(directory: Path, manifest_sha256: str) -> None:
    """Say that the bytes on disk agree with the manifest. Raises OSError."""
    write_json(directory / INTACT, {"manifest_sha256": manifest_sha256})


def mark_healthy(directory: Path) -> None:
    """Say that training went on well from here. Raises OSError."""
    write_json(directory / HEALTHY, {"manifest_sha256": manifest_sha256(directory)})


def _is_marked(directory: Path, name: str) -> bool:
    mark = read_json(directory / name)
    try:
        return mark is not None and mark.get("manifest_sha256") == manifest_sha256(directory)
    except FileNotFoundError:
        return False
