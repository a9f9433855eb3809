"""bf16 or fp32, by measurement.

Promise: `auto` is bf16 only where it was faster with this model on this device; all ranks compute
alike; a restart finds the answer in the journal.
Trap avoided: instruction flags do not say which is faster, and on a small model casting costs more
than it saves. Measuring must leave no trace: it uses a copy of the model and puts back the
generators.
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lmtraining_trainer import rng
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.device import device_name, is_out_of_memory, knows_bf16
from lmtraining_trainer.gang import Gang

Format = Literal["fp32", "bf16"]
FORMATS: tuple[Format, Format] = ("fp32", "bf16")

#: Timed passes per format, after one that is not timed.
MEASURED_PASSES = 3
#: No more passes of a format are begun after this; even a slow one is then known to be slow.
MEASURE_SECONDS_MAX = 5.0
#: bf16 must win by this much: it costs accuracy, and a measurement has noise.
BF16_GAIN_MIN = 1.05


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What `auto` became, and why."""

    precision: Format
    device: str
    fp32_seconds: float | None = None
    bf16_seconds: float | None = None
    """Seconds of a pass; None where it was not measured, or did not fit in memory."""


def autocast(device: torch.device, precision: Format) -> AbstractContextManager[None]:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def measure(
    model: nn.Module, micro_batch: MicroBatch, gang: Gang, alive: Callable[[], None]
) -> Resolved:
    """Time forward and backward of a copy of `model` in both formats; the ranks agree on the mean.

    All ranks measure at once, as they will train.
    """
    device = micro_batch.inputs.device
    able = gang.sum([0.0 if knows_bf16(device) else 1.0])[0] == 0.0
    if not able:
        return Resolved(precision="fp32", device=device_name(device))
    with rng.preserved():
        own = [_trial(model, micro_batch, each, alive) for each in FORMATS]
    fp32, bf16 = (total / gang.world_size for total in gang.sum(own))
    return Resolved(
        precision="bf16" if fp32 >= BF16_GAIN_MIN * bf16 else "fp32",
        device=device_name(device),
        fp32_seconds=fp32 if math.isfinite(fp32) else None,
        bf16_seconds=bf16 if math.isfinite(bf16) else None,
    )


def _trial(
    model: nn.Module, micro_batch: MicroBatch, precision: Format, alive: Callable[[], None]
) -> float:
    """The seconds of a pass of a copy of `model`; infinite where it does not fit in memory."""
    try:
        return _seconds(copy.deepcopy(model), micro_batch, precision, alive)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf


def _seconds(
    model: nn.Module, micro_batch: MicroBatch, precision: Format, alive: Callable[[], None]
) -> float:
    """The fastest of a few passes: what else the machine does only ever adds."""
    times = []
    begun = time.perf_counter()
    for _ in range(1 + MEASURED_PASSES):
        alive()
        started = time.perf_counter()
        with autocast(micro_batch.inputs.device, precision):
            loss = model(*micro_batch.tensors)
        loss.backward()
        loss.item()  # waits for the device
        model.zero_grad()
        times.append(time.perf_counter() - started)
        if time.perf_counter() - begun > MEASURE_SECONDS_MAX:
            break
    return min(times[1:] or times)
