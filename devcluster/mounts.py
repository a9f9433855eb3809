"""What is mounted below a directory.

Promise: deepest first, the order in which mounts can be taken away; nothing where /proc is not
Linux's. Trap avoided: a name with a blank is written with octal codes in the kernel's table.
"""

from pathlib import Path

TABLE = Path("/proc/self/mountinfo")
MOUNT_POINT_FIELD = 4
CODES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below a directory, deepest first."""
    return mounts_in(TABLE.read_text(), directory) if TABLE.exists() else []


def mounts_in(mountinfo: str, directory: Path) -> list[Path]:
    """The same, from the text of /proc/self/mountinfo."""
    fields = (line.split()[MOUNT_POINT_FIELD] for line in mountinfo.splitlines())
    ours = [point for point in map(_path, fields) if point.is_relative_to(directory)]
    return sorted(ours, key=lambda point: len(point.parts), reverse=True)


def _path(field: str) -> Path:
    for code, character in CODES:
        field = field.replace(code, character)
    return Path(field)
