"""The models judge as the table says, and the table forgets no rule.

The same table goes through a real API server in tests/api/test_crd_rules.py.
"""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from lmtraining_api import (
    BEGUN,
    LMTrainingJob,
    LMTrainingJobSpec,
    Rule,
    SpecModel,
    explain_validation_error,
    problems_of,
)
from lmtraining_api.paths import aliases, objects_below
from tests.contract_bounds import just_out_of_bounds
from tests.contract_cases import (
    BATCH_ADVICE,
    CHANGES,
    MUTABLE,
    OUT_OF_BOUNDS,
    PAIRS,
    SIZE_MISTAKES,
    Document,
    Pair,
    changed,
    minimal,
    workers,
)

pytestmark = pytest.mark.unit


def spec_models() -> set[type[SpecModel]]:
    models = (model for _, model in objects_below(LMTrainingJob))
    return {model for model in models if issubclass(model, SpecModel)}


def refusal(document: Document) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        LMTrainingJob.from_document(document)
    return explain_validation_error(refused.value)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.sentence[:40])
def test_a_rule_accepts_one_and_refuses_the_other(pair: Pair) -> None:
    LMTrainingJob.from_document(pair.accept)
    assert refusal(pair.refuse) == [f"{pair.at}: {pair.sentence}"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.sentence[:40])
def test_no_rule_is_asked_of_a_job_that_has_begun(pair: Pair) -> None:
    """P10: the rule may be younger than the job."""
    LMTrainingJob.model_validate(pair.refuse, context=BEGUN)


def test_the_bounds_of_a_job_that_has_begun_hold() -> None:
    """But for those of quantities, which are rules."""
    of_quantities = ("cpu", "memory", "sharedMemory", "size")
    checked = [
        (path, document)
        for path, document in just_out_of_bounds()
        if not path.endswith(of_quantities)
    ]
    assert len(checked) > 100
    for path, document in checked:
        with pytest.raises(ValidationError) as refused:
            LMTrainingJob.model_validate(document, context=BEGUN)
        assert explain_validation_error(refused.value)[0].startswith(path)


@pytest.mark.parametrize(("document", "path"), OUT_OF_BOUNDS, ids=lambda case: str(case)[:60])
def test_a_field_out_of_bounds_is_refused_by_its_path(document: Document, path: str) -> None:
    (problem,) = refusal(document)
    assert problem.startswith(path)


def test_a_value_just_out_of_bounds_gives_one_sentence_about_its_field() -> None:
    given = [(path, problems_of(document)) for path, document in just_out_of_bounds()]
    assert len(given) > 100
    wrong = [(p, found) for p, found in given if len(found) != 1 or not found[0].startswith(p)]
    assert wrong == []


@pytest.mark.parametrize(("document", "advised"), BATCH_ADVICE)
def test_the_advised_batch_is_accepted(document: Document, advised: int) -> None:
    (problem,) = refusal(document)
    assert f"choose {advised} or another multiple" in problem
    LMTrainingJob.from_document(changed(document, training={"batchTokens": advised}))


@pytest.mark.parametrize("size", SIZE_MISTAKES)
def test_a_size_in_other_units_is_told_what_to_write(size: str) -> None:
    (problem,) = refusal(workers(resources={"memory": size}))
    assert problem.endswith(f"memory {size} is not a quantity from 16Mi to 64Ti: write 2G or 2Gi")


class TestEveryProblemIsToldAtOnce:
    def test_a_rule_is_asked_beside_a_field_that_is_refused(self) -> None:
        mistakes = minimal(
            model={"config": {"heads": 3, "layers": 0}},
            data={"train": [{"uri": "corpus", "format": "xml"}, {"uri": "corpus"}]},
            training={"batchTokens": 100, "seed": "x"},
            workers={"accelerator": {"resource": "tpu", "count": 2}, "ranksPerReplica": 3},
        )
        assert [problem.split(":")[0] for problem in sorted(problems_of(mistakes))] == [
            "spec.data.train",
            'spec.data.train[0].format is "xml"',
            "spec.data.train[0].uri",
            "spec.data.train[1].uri",
            "spec.model.config.heads",
            "spec.model.config.layers is 0",
            "spec.training.batchTokens",
            'spec.training.seed is "x"',
            'spec.workers.accelerator.resource is "tpu"',
            "spec.workers.ranksPerReplica",
        ]

    @pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.sentence[:40])
    def test_and_each_only_once(self, pair: Pair) -> None:
        beside = changed(pair.refuse, training={"seed": "x"})
        assert sorted(problems_of(beside)) == sorted(
            [
                f"{pair.at}: {pair.sentence}",
                'spec.training.seed is "x": write a whole number',
            ]
        )

    @pytest.mark.parametrize(
        "document",
        [None, [], {}, {"spec": []}, minimal(workers=[]), minimal(data={"train": [1, {}]})],
        ids=str,
    )
    def test_what_has_not_even_the_shape_of_a_job_is_explained(self, document: Any) -> None:
        assert problems_of(document) == refusal(document)

    def test_a_good_job_has_none(self) -> None:
        assert problems_of(minimal()) == []


def test_every_rule_has_a_pair() -> None:
    rules = [rule for model in spec_models() for rule in model.rules]
    unproven = [rule.message for rule in rules if not any(_speaks(rule, p) for p in PAIRS)]
    assert unproven == []


def _speaks(rule: Rule, pair: Pair) -> bool:
    pattern = ".+".join(re.escape(part) for part in rule.text_without_values().split("…"))
    return re.fullmatch(pattern, pair.sentence) is not None


def test_every_transition_rule_has_a_pair() -> None:
    with_transitions = {model for model in spec_models() if model.transition_rules}
    assert with_transitions == {LMTrainingJobSpec}
    assert [f"spec.{rule.at}" for rule in LMTrainingJobSpec.transition_rules] == [
        change.at for change in CHANGES
    ]
    assert [rule.message for rule in LMTrainingJobSpec.transition_rules] == [
        change.told for change in CHANGES
    ]


def test_every_block_of_the_spec_is_immutable_or_meant_to_change() -> None:
    immutable = {rule.at.partition(".")[0] for rule in LMTrainingJobSpec.transition_rules}
    assert set(aliases(LMTrainingJobSpec)) == immutable | set(MUTABLE)


def test_no_rule_repeats_a_uri_which_may_hold_a_secret() -> None:
    """P11."""
    for model in spec_models():
        for rule in model.rules:
            assert not any(name.split(".")[-1] == "uri" for name in rule.placeholders())
