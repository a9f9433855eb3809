"""The device of a rank: what the job asks for, or nothing."""

import os
import platform

import torch

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError


def device_of(local_rank: int, *, accelerated: bool) -> torch.device:
    """The rank's own GPU where the job asks for accelerators, else the CPU.

    Raises TrainerError(HARDWARE) where there are fewer than ranks.
    """
    if not accelerated:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise TrainerError(
            FailureClass.HARDWARE,
            "TooFewDevices",
            f"the rank with local number {local_rank} needs an accelerator of its own, but torch "
            f"sees {count} here: lower workers.accelerator.count, or leave out "
            "workers.accelerator to train on the CPU",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What a person calls it; two of one name are expected to be equally fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def knows_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bf16. Emulated, it is 12-20 times slower than fp32 (measured
    on AVX2), too slow even to be measured."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the machine's: torch has no class for the latter."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator: can't allocate memory" in str(error)
