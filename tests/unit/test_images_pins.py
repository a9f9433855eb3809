"""Which versions an image gets is asked once, and again only while the answer is not known."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devcluster.errors import DevclusterError
from devcluster.images import pins
from devcluster.images.pins import PinMemory, Pins
from devcluster.packages import CPU, INDEX_DEFAULT

pytestmark = pytest.mark.unit

SLOW = subprocess.TimeoutExpired("uv", 20)
NO_SOLUTION = subprocess.CalledProcessError(1, "uv", stderr="No solution found")


@dataclass
class Index:
    """Package indexes by build of torch: pins, or the way in which they fail."""

    answers: dict[str, Exception | None]
    asked: list[str] = field(default_factory=list)

    def resolve(self, extra: str, *, backend: str, **_: object) -> Pins:
        self.asked.append(backend)
        if error := self.answers[backend]:
            raise error
        return Pins(f"key of {backend}", backend, (f"{extra}==1",))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index({CPU: None, INDEX_DEFAULT: None})
    monkeypatch.setattr(pins, "_resolve", made.resolve)
    monkeypatch.setattr(pins, "torch_backend", lambda: CPU)
    monkeypatch.delenv(pins.TORCH_BACKEND_VARIABLE, raising=False)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "constraints").mkdir()
    (tmp_path / "constraints/python.txt").write_text("torch==2\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = []\n[project.optional-dependencies]\ntoy = ["torch"]\n'
    )
    return tmp_path


def resolved(root: Path, memory: PinMemory | None = None) -> str:
    """The build of torch that a run gets, with a memory of its own unless it is given one."""
    asking = memory or PinMemory(root / "memory")
    return pins.resolved_pins("toy", root=root, memory=asking, tools=root).torch_backend


def test_what_was_resolved_once_is_never_asked_again(index: Index, root: Path) -> None:
    assert [resolved(root), resolved(root)] == [CPU, CPU]
    assert index.asked == [CPU]
    (root / "constraints/python.txt").write_text("torch==3\n")
    resolved(root)
    assert index.asked == [CPU, CPU]


@pytest.mark.parametrize("failure", [SLOW, NO_SOLUTION], ids=["slow", "no solution"])
def test_a_build_that_could_not_be_had_is_asked_for_in_the_next_run(
    index: Index, root: Path, failure: Exception
) -> None:
    index.answers[CPU] = failure
    assert resolved(root) == INDEX_DEFAULT
    index.answers[CPU] = None
    assert resolved(root) == CPU
    assert index.asked == [CPU, INDEX_DEFAULT, CPU]


def test_within_one_run_the_answer_stays_the_same(index: Index, root: Path) -> None:
    memory = PinMemory(root / "memory")
    index.answers[CPU] = SLOW
    first = resolved(root, memory)
    index.answers[CPU] = None
    assert resolved(root, memory) == first == INDEX_DEFAULT


def test_while_the_cpu_build_is_out_of_reach_the_other_one_is_remembered(
    index: Index, root: Path
) -> None:
    index.answers[CPU] = SLOW
    assert [resolved(root), resolved(root)] == [INDEX_DEFAULT, INDEX_DEFAULT]
    assert index.asked == [CPU, INDEX_DEFAULT, CPU]


def test_where_nothing_resolves_it_is_said_with_the_words_of_the_last_index(
    index: Index, root: Path
) -> None:
    index.answers = {CPU: SLOW, INDEX_DEFAULT: NO_SOLUTION}
    with pytest.raises(DevclusterError, match=r"'toy'.*does not resolve[\s\S]*No solution found"):
        resolved(root)
