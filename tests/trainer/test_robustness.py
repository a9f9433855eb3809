"""What a trained model stands: noise on its inputs, at the end of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmtraining_api import JobFile, RobustnessReport, TrainerReport
from lmtraining_trainer import loop
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model
from lmtraining_trainer.robustness import (
    EMBEDDING_LEVELS,
    TOKEN_LEVELS,
    embedding_noise,
    summary,
    token_noise,
)
from tests.trainer.rank_support import (
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

DRAW = "1/tokens/0"


def _job(directory: Path, *, world_size: int = 1, evaluation: dict[str, Any]) -> JobFile:
    spec = tiny_spec(
        write_text(directory / "text.jsonl"),
        world_size=world_size,
        model={"config": {"layers": 1, "hiddenSize": 32, "heads": 2}},
        training={
            "budget": {"steps": 60},
            "optimizer": {"learningRate": 1e-2},
            "evaluation": {"everySteps": 60, "sequences": 32} | evaluation,
        },
        checkpoint={"everySteps": 60},
    )
    return job_of(spec, directory)


def _told(report: dict[str, Any]) -> dict[tuple[str, float], RobustnessReport]:
    tests = [RobustnessReport.model_validate(one) for one in report["robustness"]]
    return {(one.noise, one.level): one for one in tests}


def test_more_noise_costs_more_and_the_world_size_does_not_matter(tmp_path: Path) -> None:
    robust = {"robustness": {"seeds": 2}}
    alone = run_alone(_job(tmp_path / "1", evaluation=robust))
    assert alone.end == "finished", alone
    told, quiet = _told(alone.link.report), alone.link.report["validation_loss"]
    for kind, levels in (("tokens", TOKEN_LEVELS), ("embeddings", EMBEDDING_LEVELS)):
        losses = [told[kind, level].loss for level in levels]
        assert losses == sorted(losses), told  # type: ignore[type-var]
        assert quiet < losses[-1]  # type: ignore[operator]
        assert all(told[kind, level].deviation for level in levels)
        assert told[kind, levels[0]].failed == 0.0
    assert told["tokens", 0.01].loss == pytest.approx(quiet, rel=0.1)

    again = run_alone(_job(tmp_path / "again", evaluation=robust))
    assert _told(again.link.report) == told

    pair = run_gang(_job(tmp_path / "2", world_size=2, evaluation=robust), 2)
    for key, one in _told(pair[0].link.report).items():
        assert one.loss == pytest.approx(told[key].loss, rel=2e-3)
    assert TrainerReport.model_validate(
        {"job_uid": "u", "attempt": 1, "round": 1, "state": "Finished",
         "report_time": "2026-01-01T00:00:00Z", "robustness": pair[0].link.report["robustness"]}
    ).robustness  # fmt: skip


def test_without_the_wish_nothing_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = []

    def counted(*arguments: Any, **fields: Any) -> Any:
        validations.append(fields)
        return validate(*arguments, **fields)

    validate = loop.validate
    monkeypatch.setattr(loop, "validate", counted)
    outcome = run_alone(_job(tmp_path, evaluation={}))
    assert outcome.end == "finished", outcome
    assert len(validations) == 1
    assert outcome.link.report["robustness"] == []


def _model() -> ModelLoss:
    spec = tiny_spec("file:///x", model={"config": {"layers": 1, "hiddenSize": 16, "heads": 2}})
    torch.manual_seed(1)
    return ModelLoss(build_model(spec)).eval()


def _batch(sequences: int, length: int = 400) -> MicroBatch:
    tokens = torch.arange(sequences * length).reshape(sequences, length) % 200
    return MicroBatch(inputs=tokens, targets=tokens)


def test_tokens_are_replaced_at_the_named_rate_and_targets_stay() -> None:
    model, batch, starts = _model(), _batch(8), np.arange(8) * 400
    before: torch.Tensor | None = None
    for level in TOKEN_LEVELS:
        with token_noise(level, DRAW, model, batch, starts) as noisy:
            replaced = noisy.inputs != batch.inputs
        assert float(replaced.float().mean()) == pytest.approx(level, rel=0.4)
        assert torch.equal(noisy.targets, batch.targets)
        # What a weaker noise has replaced, a stronger one has too.
        assert before is None or bool((replaced | ~before).all())
        before = replaced


def test_a_sequence_meets_the_same_noise_in_any_company() -> None:
    """Micro-batches are cut otherwise on another number of ranks."""
    model, batch, starts = _model(), _batch(4), np.arange(4) * 400
    with token_noise(0.1, DRAW, model, batch, starts) as together:
        pass
    one = MicroBatch(inputs=batch.inputs[2:3], targets=batch.targets[2:3])
    with token_noise(0.1, DRAW, model, one, starts[2:3]) as alone:
        assert torch.equal(alone.inputs[0], together.inputs[2])
    with token_noise(0.1, "1/tokens/1", model, one, starts[2:3]) as other:
        assert not torch.equal(other.inputs, alone.inputs)


@torch.no_grad()
def test_embedding_noise_has_its_strength_and_leaves_no_trace() -> None:
    model, batch, starts = _model(), _batch(2, length=16), np.arange(2) * 16
    embeddings = model.model.get_input_embeddings()
    clean = embeddings(batch.inputs)  # type: ignore[operator]
    with embedding_noise(0.3, "1/embeddings/0", model, batch, starts) as same:
        noisy = embeddings(same.inputs)  # type: ignore[operator]
    rms = embeddings.weight.square().mean().sqrt()  # type: ignore[operator,union-attr]
    assert float((noisy - clean).std() / rms) == pytest.approx(0.3, rel=0.15)
    assert torch.equal(embeddings(batch.inputs), clean)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("losses", "unigram", "expected"),
    [
        ([2.0, 4.0], 5.0, (3.0, 1.414214, 0.0)),
        ([2.0, 6.0], 5.0, (4.0, 2.828427, 0.5)),
        ([2.0, None], 5.0, (2.0, None, 0.5)),
        ([None], None, (None, None, 1.0)),
        ([99.0], None, (99.0, None, 0.0)),
    ],
)
def test_draws_are_summed_up(
    losses: list[float | None],
    unigram: float | None,
    expected: tuple[float | None, float | None, float],
) -> None:
    told = summary("tokens", 0.1, losses, unigram)
    assert (told.loss, told.deviation, told.failed) == expected
