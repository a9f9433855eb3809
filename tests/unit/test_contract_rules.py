"""The models judge as the table says, and the table forgets no rule.

The same table goes through a real API server in tests/api/test_crd_rules.py.
"""

import re

import pytest
from pydantic import ValidationError

from lmtraining_api import (
    LMTrainingJob,
    LMTrainingJobSpec,
    Rule,
    SpecModel,
    explain_validation_error,
)
from lmtraining_api.paths import aliases, objects_below
from tests.contract_cases import CHANGES, MUTABLE, OUT_OF_BOUNDS, PAIRS, Document, Pair, minimal

pytestmark = pytest.mark.unit


def spec_models() -> set[type[SpecModel]]:
    models = (model for _, model in objects_below(LMTrainingJob))
    return {model for model in models if issubclass(model, SpecModel)}


def problems_of(document: Document) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        LMTrainingJob.from_document(document)
    return explain_validation_error(refused.value)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.sentence[:40])
def test_a_rule_accepts_one_and_refuses_the_other(pair: Pair) -> None:
    LMTrainingJob.from_document(pair.accept)
    assert problems_of(pair.refuse) == [f"{pair.at}: {pair.sentence}"]


@pytest.mark.parametrize(("document", "path"), OUT_OF_BOUNDS, ids=lambda case: str(case)[:60])
def test_a_field_out_of_bounds_is_refused_by_its_path(document: Document, path: str) -> None:
    (problem,) = problems_of(document)
    assert problem.startswith(path)


def test_advice_keeps_within_the_bounds_of_its_field() -> None:
    big = minimal(training={"batchTokens": 999_999_999}, workers={"ranksPerReplica": 3})
    (problem,) = problems_of(big)
    assert "choose 999999984 or" in problem


def test_every_rule_has_a_pair() -> None:
    rules = [rule for model in spec_models() for rule in model.rules]
    assert len(rules) == len(PAIRS)
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


def test_every_block_of_the_spec_is_immutable_or_meant_to_change() -> None:
    immutable = {rule.at for rule in LMTrainingJobSpec.transition_rules}
    assert set(aliases(LMTrainingJobSpec)) == immutable | set(MUTABLE)


def test_no_rule_repeats_a_uri_which_may_hold_a_secret() -> None:
    """P11."""
    for model in spec_models():
        for rule in model.rules:
            assert not any(name.split(".")[-1] == "uri" for name in rule.placeholders())
