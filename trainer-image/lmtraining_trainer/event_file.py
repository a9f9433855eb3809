"""The event files that TensorBoard reads, in the run directory.

Promise: a file for each start of the supervisor, none of them ever rewritten; over all of them each
figure is told once, and only a kill between two writes repeats the last ones.
Format: records of TensorFlow's TFRecord (length, masked CRC-32C of it, data, masked CRC-32C of
that) which hold the protocol buffer `Event` of tensorflow/core/util/event.proto.
Traps avoided: torch's writer of this format would bring torch into PID 1 of the pod. TensorBoard's
own does not, but takes 47 MB of memory there and 2 s to import, and the image all of TensorBoard,
for a few numbers every ten seconds.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from lmtraining_api.history import RunHistory
from lmtraining_trainer.files import write_atomically
from lmtraining_trainer.unsent import Position, Reading, unsent

DIRECTORY = "tensorboard"
POSITION = "position.json"
FILE_VERSION = "brain.Event:2"

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_WORD = 0xFFFFFFFF
_SINGLE_MAX = (2 - 2**-23) * 2.0**127
_FIXED64, _VARINT, _BYTES, _FIXED32 = 1, 0, 2, 5


class EventFiles:
    """Those of one run, as this process writes them."""

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory / DIRECTORY
        self._position: Position | None = None
        self._file: Path | None = None

    def follow(self, history: RunHistory) -> None:
        """Write what is new. Raises OSError."""
        if self._position is None:
            self._position = self._read_position()
        readings, position = unsent(history, self._position)
        if not readings:
            return
        self._directory.mkdir(exist_ok=True)
        with self._opened(readings[0]).open("ab") as file:
            file.write(b"".join(map(_scalars, readings)))
        write_atomically(self._directory / POSITION, position.model_dump_json().encode())
        self._position = position

    def _opened(self, first: Reading) -> Path:
        """TensorBoard reads the files of a directory in the order of their names."""
        if self._file is None:
            seconds = int(first.time.timestamp())
            name = f"events.out.tfevents.{seconds:010d}.lmtraining"
            earlier = len(list(self._directory.glob(f"{name}.*")))
            self._file = self._directory / f"{name}.{earlier}"
            start = _double(1, first.time.timestamp()) + _text(3, FILE_VERSION)
            self._file.write_bytes(_record(start))
        return self._file

    def _read_position(self) -> Position:
        try:
            return Position.model_validate_json((self._directory / POSITION).read_bytes())
        except (OSError, ValueError):
            return Position()


def _scalars(reading: Reading) -> bytes:
    """The record of an Event with wall_time, step and a Summary of scalars."""
    values = [
        _block(1, _text(1, tag) + _key(2, _FIXED32) + struct.pack("<f", _single(value)))
        for tag, value in reading.values.items()
    ]
    event = _double(1, reading.time.timestamp()) + _key(2, _VARINT) + _varint(reading.step)
    return _record(event + _block(5, b"".join(values)))


def _single(value: float) -> float:
    """The value, or the largest that four bytes hold: a gradient may be larger, and finite."""
    return max(-_SINGLE_MAX, min(_SINGLE_MAX, value))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = _crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _WORD)


def _table() -> Sequence[int]:
    found = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return tuple(found)


_TABLE = _table()


def _crc32c(data: bytes) -> int:
    crc = _WORD
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _WORD


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _double(field: int, value: float) -> bytes:
    return _key(field, _FIXED64) + struct.pack("<d", value)


def _text(field: int, value: str) -> bytes:
    return _block(field, value.encode())


def _block(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
