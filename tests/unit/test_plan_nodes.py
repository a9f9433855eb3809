"""Which nodes new pods keep away from, on whose evidence, and that it is told."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import CODE_OF_CLASS, FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import LastFailure, LMTrainingJobStatus
from lmtraining_operator.plan import Create
from lmtraining_operator.plan.model import GANG_INCOMPLETE
from lmtraining_operator.plan.nodes import (
    AVOIDED_NODES_MAX,
    FAULTY_NODES_MAX,
    still_avoided,
)
from lmtraining_operator.plan.recovery import answer, charged
from lmtraining_operator.plan.rules import rule_for
from tests.unit.operator_situations import (
    NOW,
    decide,
    ended,
    events,
    failure_status,
    job_object,
    message,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

C = FailureClass
ELSEWHERE = {"failureClass": "Crash", "action": "RetryElsewhere"}


def after(*failures: tuple[C, str], rules: Any = ()) -> LMTrainingJobStatus:
    status = LMTrainingJobStatus()
    recovery = Recovery.model_validate({"rules": list(rules)})
    for failure_class, node in failures:
        status = charged_with(failure_status(failure_class, node=node), status, recovery)
    return status


def charged_with(
    failure: LastFailure, status: LMTrainingJobStatus, recovery: Recovery
) -> LMTrainingJobStatus:
    found = answer(failure, status=status, recovery=recovery, productive=True, job_uid="u")
    return charged(status, failure, found)


HISTORIES: tuple[tuple[str, list[tuple[C, str]], Any, list[str]], ...] = (
    ("one hardware fault", [(C.HARDWARE, "a")], (), []),
    ("two on one node", [(C.HARDWARE, "a"), (C.CRASH, "b"), (C.HARDWARE, "a")], (), ["a"]),
    ("two on two nodes", [(C.HARDWARE, "a"), (C.HARDWARE, "b")], (), []),
    ("two of another class", [(C.CRASH, "a"), (C.CRASH, "a")], (), []),
    ("a node that is not known", [(C.HARDWARE, ""), (C.HARDWARE, "")], (), []),
    ("a rule", [(C.CRASH, "a"), (C.HANG, "b")], (ELSEWHERE,), ["a"]),
    ("named once", [(C.CRASH, "a"), (C.CRASH, "a")], (ELSEWHERE,), ["a"]),
)


@pytest.mark.parametrize("case", HISTORIES, ids=[case[0] for case in HISTORIES])
def test_what_makes_a_node_one_to_avoid(case: tuple[Any, ...]) -> None:
    _, failures, rules, avoided = case
    assert [one.name for one in after(*failures, rules=rules).avoided_nodes] == avoided


def test_the_lists_are_bounded_and_the_oldest_goes_first() -> None:
    nodes = [f"node-{number}" for number in range(FAULTY_NODES_MAX + 5)]
    status = after(*((C.HARDWARE, node) for node in nodes for _ in range(2)))
    assert list(status.hardware_faults) == nodes[-FAULTY_NODES_MAX:]
    assert [one.name for one in status.avoided_nodes] == nodes[-AVOIDED_NODES_MAX:]


def test_the_next_pods_keep_away_and_say_so_where_that_leaves_no_node() -> None:
    gang = running_gang(2)
    broken = ended(gang[0], CODE_OF_CLASS[C.HARDWARE], failure_class=C.HARDWARE, reason="Xid")
    status = status_of(hardware_faults={"node-1": 1})
    plan = decide(status, pods=(broken, gang[1]))
    assert [(one.name, one.reason) for one in plan.status.avoided_nodes] == [
        ("node-1", "2 hardware faults on it")
    ]
    assert "NodeAvoided" in events(plan)
    plan = decide(plan.status, pods=(broken,), now=NOW + timedelta(seconds=90))
    pods = [a.body for a in plan.actions if isinstance(a, Create) and a.kind == "Pod"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["spec"]["affinity"]["nodeAffinity"] == {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}
                        ]
                    }
                ]
            }
        }
    waiting = tuple(
        replace(pod, phase="Pending", unschedulable_message="0/1 nodes are available")
        for pod in running_gang(2, attempt=2)
    )
    plan = decide(plan.status, pods=waiting, now=NOW + timedelta(seconds=95))
    assert "it keeps away from node-1 (2 hardware faults on it)" in message(plan)


def test_a_job_without_faults_is_bound_to_no_node() -> None:
    pods = [a.body for a in decide().actions if isinstance(a, Create) and a.kind == "Pod"]
    assert all("affinity" not in pod["spec"] for pod in pods)
    assert decide(job=job_object()).status.avoided_nodes == []


def test_a_gang_that_found_no_place_blames_no_node() -> None:
    """A rule for drained nodes is not about it, unless it says so."""
    disrupted = {"failureClass": "Disruption", "action": "RetryElsewhere"}
    waited = failure_status(C.DISRUPTION, node="a", reason=GANG_INCOMPLETE)
    recovery = Recovery.model_validate({"rules": [disrupted]})
    assert rule_for(waited, recovery) is None
    assert not charged_with(waited, LMTrainingJobStatus(), recovery).avoided_nodes
    named = Recovery.model_validate({"rules": [{**disrupted, "reason": GANG_INCOMPLETE}]})
    assert rule_for(waited, named) is not None


def test_a_rule_that_is_taken_back_gives_its_nodes_back() -> None:
    """P12; what two hardware faults have shown stays."""
    faults = [(C.CRASH, "a"), (C.HARDWARE, "b"), (C.HARDWARE, "b")]
    status = after(*faults, rules=(ELSEWHERE,))
    assert [one.name for one in status.avoided_nodes] == ["a", "b"]
    kept = Recovery.model_validate({"rules": [ELSEWHERE]})
    assert still_avoided(status, kept, NOW) == status
    assert [one.name for one in still_avoided(status, Recovery(), NOW).avoided_nodes] == ["b"]
