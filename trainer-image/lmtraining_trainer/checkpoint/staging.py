"""Where a snapshot waits to be written while the training goes on.

Promise: what `stage` returns does not change until it is called again; the buffers are used anew
for every save. From a CUDA device the copy runs beside the next forward and backward pass, and
`before_update` lets the device, not the host, wait for its end before a weight changes.
Trap avoided: memory that is new for every save is touched page by page for the first time, which
takes longer than the copy; memory that is not pinned cannot be copied to beside a computation.
"""

import torch

Tensors = dict[str, dict[str, torch.Tensor]]
"""Tensors by file and name."""


class Staging:
    """One buffer per tensor of a checkpoint, on the host."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None

    def stage(self, tensors: Tensors) -> Tensors:
        """A copy of `tensors`, whole once `await_copied` returns."""
        devices = {t.device for named in tensors.values() for t in named.values() if t.is_cuda}
        if not devices:
            return self._copies(tensors)
        (device,) = devices
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            staged = self._copies(tensors)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(self._stream)
        return staged

    def await_copied(self) -> None:
        """Until the device has copied everything; for the writer, which has time."""
        if self._copied is not None:
            self._copied.synchronize()

    def before_update(self) -> None:
        """Let no later work of the device overtake the copy; the host does not wait."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def _copies(self, tensors: Tensors) -> Tensors:
        return {
            file: {name: self._copy((file, name), tensor) for name, tensor in named.items()}
            for file, named in tensors.items()
        }

    def _copy(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)
