"""The random generators of a rank: seeded, captured, restored.

Promise: what was drawn after a capture is drawn again after its restore, by python, numpy, torch
and the rank's device.
Trap avoided: torch's own way to keep a state is pickle, which runs code when it is read.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Drawn = tuple[torch.Tensor, torch.Tensor | None]
"""The states of the CPU's and the device's generator."""


def seed_all(*, seed: int, rank: int, step: int) -> None:
    """Seed every generator from (seed, rank, step), so that ranks draw different dropout."""
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)


def capture() -> bytes:
    """The state of every generator of this process, as JSON."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _hexadecimal(torch.get_rng_state()),
        "cuda": _hexadecimal(torch.cuda.get_rng_state()) if _uses_cuda() else None,
    }
    return json.dumps(state).encode()


def restore(captured: bytes) -> None:
    """Put every generator back where `capture` found it. Raises ValueError or KeyError."""
    state: dict[str, Any] = json.loads(captured)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] is not None and _uses_cuda():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


def drawn_from() -> Drawn:
    """Where the generators stand that a forward pass draws from; cheap enough for every step."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if _uses_cuda() else None


def draw_again_from(before: Drawn) -> None:
    """Put those generators back."""
    cpu, cuda = before
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


def _uses_cuda() -> bool:
    """A rank that trains on the CPU must not wake a device that is there."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _hexadecimal(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(hexadecimal: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8)
