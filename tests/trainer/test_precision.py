"""`auto` is measured, leaves no trace, and is measured once."""

from pathlib import Path

import pytest
import torch

from lmtraining_trainer import precision, startup
from lmtraining_trainer.precision import Resolved
from tests.trainer.rank_support import (
    Outcome,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    tiny_spec,
    write_text,
)
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer


def run(tmp_path: Path, name: str, compute: str, attempt: int = 1) -> Outcome:
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, precision={"compute": compute}, training={"budget": {"steps": 4}})
    return run_alone(job_of(spec, tmp_path / name), attempt=attempt)


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"), [(1.0, 0.5, "bf16"), (1.0, 0.99, "fp32"), (0.5, 1.0, "fp32")]
)
def test_the_faster_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float, chosen: str
) -> None:
    seconds = {"fp32": fp32, "bf16": bf16}
    monkeypatch.setattr(precision, "_seconds", lambda model, batch, each, alive: seconds[each])
    monkeypatch.setattr(precision, "knows_bf16", lambda device: True)
    outcome = run(tmp_path, "auto", "auto")
    assert outcome.link.report["precision"] == chosen
    (entry,) = [entry for entry in journal(tmp_path / "auto") if entry["kind"] == "Resolved"]
    assert entry["detail"]["precision"] == chosen
    assert entry["detail"]["bf16_seconds"] == bf16


def test_a_format_that_does_not_fit_in_memory_is_the_slower_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(model: object, batch: object, each: str, alive: object) -> float:
        if each == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    monkeypatch.setattr(precision, "knows_bf16", lambda device: True)
    assert run(tmp_path, "auto", "auto").link.report["precision"] == "bf16"
    assert run(tmp_path, "auto", "auto", attempt=2).end == "finished"


def test_a_cpu_without_bf16_is_not_even_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "knows_bf16", lambda device: False)
    monkeypatch.delattr(precision, "_seconds")
    assert run(tmp_path, "auto", "auto").link.report["precision"] == "fp32"


def test_measuring_leaves_no_trace_in_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: object) -> Resolved:
        """The real thing, with the answer that can be compared."""
        real = precision.measure(*arguments)  # type: ignore[arg-type]
        return Resolved(precision="fp32", device=real.device, fp32_seconds=real.fp32_seconds)

    monkeypatch.setattr(startup.precision, "knows_bf16", lambda device: True)
    monkeypatch.setattr(startup, "_measured", measured, raising=True)
    assert run(tmp_path, "auto", "auto").end == "finished"
    monkeypatch.undo()
    assert run(tmp_path, "fp32", "fp32").end == "finished"
    assert_equal_tensors(exported(job(tmp_path, "auto")), exported(job(tmp_path, "fp32")))


def test_a_restart_finds_the_answer_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, "auto", "auto").end == "finished"
    (tmp_path / "auto" / "run" / "finished.json").unlink()
    monkeypatch.setattr(startup, "_measured", None)
    assert run(tmp_path, "auto", "auto", attempt=2).end == "finished"


def test_generators_are_where_they_were() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with precision.rng.preserved():
        torch.rand(100)
    assert torch.equal(torch.rand(3), wanted)


def job(tmp_path: Path, name: str):  # type: ignore[no-untyped-def]
    return job_of(tiny_spec((tmp_path / "text.jsonl").as_uri()), tmp_path / name)
