"""When late ranks are looked at, and when one of them is blamed."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmtraining_trainer.phase import Phase, PhaseWriter
from lmtraining_trainer.supervisor import hang_watch
from lmtraining_trainer.supervisor.evidence import Evidence, phases_file
from lmtraining_trainer.supervisor.hang_watch import HangWatch, Look

pytestmark = pytest.mark.unit

FLOOR_SECONDS = 100
AT_WORK = 'Current thread 0x1 (most recent call first):\n  File "/x/batches.py", line 3 in read\n'
IN_BACKWARD = AT_WORK.replace("/x/batches.py", "/site/torch/autograd/graph.py")


class Pod:
    """Two ranks that are watched; their signs of life lie as far back as a test says."""

    def __init__(self, directory: Path, *, replicas: int = 1) -> None:
        spec = SimpleNamespace(
            stability=SimpleNamespace(silence_seconds=FLOOR_SECONDS),
            workers=SimpleNamespace(replicas=replicas),
        )
        job = SimpleNamespace(spec=spec, job_uid="uid", run_directory=str(directory / "run"))
        given = SimpleNamespace(job=job, identity=SimpleNamespace(attempt=1))
        self.directory = directory
        self.watch = HangWatch(given, directory)  # type: ignore[arg-type]
        self.watch.begin_round([0, 1])

    def signed(self, rank: int, phase: Phase, *, ago: float) -> None:
        """The rank steps, and gave its last sign of life then, in that phase."""
        at = time.monotonic() - ago
        times = iter((at - 0.2, at - 0.1, at))
        writer = PhaseWriter(phases_file(self.directory, rank), times.__next__)
        for each in (Phase.OTHER, Phase.FORWARD, phase):
            writer.enter(each)

    def look(self) -> Look | None:
        return self.watch.look({0: 1000, 1: 1001}, round_number=1)

    def blamed(self) -> int | None:
        look = self.look()
        assert look is not None
        end = self.watch.verdict(look, [0, 1])
        return None if end is None else end.rank


@pytest.fixture(autouse=True)
def stacks(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What the ranks answer."""
    found = {0: IN_BACKWARD, 1: AT_WORK}

    def evidence_of(_: Path, processes: Mapping[int, int]) -> Evidence:
        return Evidence(stacks=dict(found), files={})

    monkeypatch.setattr(hang_watch, "evidence_of", evidence_of)
    return found


def test_nothing_is_looked_at_before_a_limit(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.signed(0, Phase.FORWARD, ago=90.0)
    pod.signed(1, Phase.FORWARD, ago=0.0)
    assert pod.look() is None
    assert 9.0 < pod.watch.seconds_left() <= 10.0


def test_the_rank_that_does_not_wait_is_blamed(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.signed(0, Phase.FORWARD, ago=101.2)
    pod.signed(1, Phase.FORWARD, ago=101.1)
    assert pod.blamed() == 1


def test_ranks_that_fall_silent_together_are_looked_at_together(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.signed(0, Phase.FORWARD, ago=100.1)
    pod.signed(1, Phase.FORWARD, ago=99.8)
    assert pod.look() is None
    assert pod.watch.seconds_left() <= 0.2


def test_a_rank_that_waits_for_one_with_a_longer_limit_is_left_alone(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.signed(0, Phase.COLLECTIVE, ago=500.0)
    pod.signed(1, Phase.DATA, ago=50.0)
    assert pod.blamed() is None
    assert pod.look() is None, "nor looked at again at once"
    assert 9.0 < pod.watch.seconds_left() <= 10.0
    pod.signed(1, Phase.DATA, ago=101.0)
    assert pod.blamed() == 1


@pytest.mark.parametrize(("ago", "rank"), [(200.0, None), (231.0, 0)])
def test_what_may_be_the_fault_of_another_pod_is_left_to_it_for_a_while(
    tmp_path: Path, ago: float, rank: int | None
) -> None:
    pod = Pod(tmp_path, replicas=2)
    for each in (0, 1):
        pod.signed(each, Phase.COLLECTIVE, ago=ago - each)
    assert pod.blamed() == rank


def test_a_rank_that_lives_again_is_not_blamed(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.signed(1, Phase.DATA, ago=101.0)
    pod.signed(0, Phase.DATA, ago=0.0)
    look = pod.look()
    assert look is not None
    pod.signed(1, Phase.DATA, ago=0.0)
    assert pod.watch.verdict(look, [0, 1]) is None
