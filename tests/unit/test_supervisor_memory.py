"""What the kernel counts is read where a container and where a machine has it."""

from pathlib import Path

import pytest

from lmtraining_trainer.supervisor.memory import MemoryWatch

pytestmark = pytest.mark.unit

V1 = "9:pids:/a\n4:memory:/kubepods/pod1/c1\n0::/\n"
V2 = "0::/kubepods/pod1/c1\n"
EVENTS = "low 0\nhigh 0\nmax 7\noom 1\noom_kill {kills}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"

V2_FILES = ("memory.events", EVENTS, "memory.max")
V1_FILES = ("memory.oom_control", CONTROL, "memory.limit_in_bytes")
PLACES = {
    "v2 on a machine": (V2, "kubepods/pod1/c1", V2_FILES),
    "v2 in a container": ("0::/\n", "", V2_FILES),
    "v1 on a machine": (V1, "memory/kubepods/pod1/c1", V1_FILES),
    "v1 in a container": (V1, "memory", V1_FILES),
}


@pytest.mark.parametrize(("own", "place", "files"), PLACES.values(), ids=PLACES)
def test_kills_since_the_start_and_the_limit(
    tmp_path: Path, own: str, place: str, files: tuple[str, str, str]
) -> None:
    name, text, limit = files
    (tmp_path / "own").write_text(own)
    cgroup = tmp_path / "mounts" / place
    cgroup.mkdir(parents=True)
    (cgroup / name).write_text(text.format(kills=2))
    (cgroup / limit).write_text("536870912\n")
    watch = MemoryWatch.begun(tmp_path / "mounts", tmp_path / "own")
    assert (watch.has_killed, watch.limit_bytes) == (False, 2**29)
    (cgroup / name).write_text(text.format(kills=3))
    assert watch.has_killed
    for unlimited in ("max\n", "9223372036854771712\n"):
        (cgroup / limit).write_text(unlimited)
        assert watch.limit_bytes is None


@pytest.mark.parametrize("own", ["", V1, V2])
def test_without_a_cgroup_nothing_is_claimed(tmp_path: Path, own: str) -> None:
    (tmp_path / "own").write_text(own)
    watch = MemoryWatch.begun(tmp_path / "mounts", tmp_path / "own")
    assert (watch.has_killed, watch.limit_bytes) == (False, None)
