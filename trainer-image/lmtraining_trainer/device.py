"""The device of a rank, chosen by what is there."""

import os
import platform

import torch


def device_of(local_rank: int) -> torch.device:
    """The rank's own GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
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
