"""The container's CPU limit, as cgroups v1 and v2 state it."""

from pathlib import Path

import pytest

from lmtraining_trainer.threads import cgroup_quota

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("files", "proc", "cores"),
    [
        ({"cpu.max": "200000 100000"}, "0::/", 2.0),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"kubepods/pod1/cpu.max": "50000 100000"}, "0::/kubepods/pod1", 0.5),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", None),
        (
            {"cpu/pod/cpu.cfs_quota_us": "150000", "cpu/pod/cpu.cfs_period_us": "100000"},
            "3:cpu,cpuacct:/pod",
            1.5,
        ),
        ({}, "", None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], proc: str, cores: float | None) -> None:
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (tmp_path / "proc").write_text(proc + "\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "proc") == cores
