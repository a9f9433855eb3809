"""Which of the job's own rules is about a failure?

Promise: the first that matches, and none where something that it gives is otherwise.
Trap avoided: a gang that found no place is of the class Disruption, and a rule for drained nodes
would have it avoid the node of a pod that did find one. Only a rule that names its reason is meant.
"""

from lmtraining_api.job import Recovery, RecoveryRule
from lmtraining_api.status import LastFailure
from lmtraining_operator.plan.model import GANG_INCOMPLETE

Found = tuple[int, RecoveryRule]
"""A rule, with its place in recovery.rules."""


def rule_for(failure: LastFailure, recovery: Recovery) -> Found | None:
    """The first of recovery.rules that is about this failure, with its place among them."""
    for index, rule in enumerate(recovery.failure_rules):
        if _matches(rule, failure):
            return index, rule
    return None


def _matches(rule: RecoveryRule, failure: LastFailure) -> bool:
    return (
        rule.failure_class is failure.failure_class
        and rule.reason in _reasons(failure)
        and rule.exit_code in (None, failure.exit_code)
        and (rule.message is None or rule.message in failure.message)
        and (rule.node_condition is None or rule.node_condition in failure.node_conditions)
    )


def _reasons(failure: LastFailure) -> tuple[str | None, ...]:
    """What a rule may give as the reason; None for one that gives none."""
    return (failure.reason,) if failure.reason == GANG_INCOMPLETE else (None, failure.reason)
