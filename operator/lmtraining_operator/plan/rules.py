"""Which of the job's own rules is about a failure?

Promise: the first that matches, and none where something that it gives is otherwise.
"""

from lmtraining_api.job import Recovery, RecoveryRule
from lmtraining_api.status import LastFailure


def rule_for(failure: LastFailure, recovery: Recovery) -> tuple[int, RecoveryRule] | None:
    """The first of recovery.rules that is about this failure, with its place among them."""
    for index, rule in enumerate(recovery.failure_rules):
        if _matches(rule, failure):
            return index, rule
    return None


def _matches(rule: RecoveryRule, failure: LastFailure) -> bool:
    return (
        rule.failure_class is failure.failure_class
        and rule.reason in (None, failure.reason)
        and rule.exit_code in (None, failure.exit_code)
        and (rule.message is None or rule.message in failure.message)
    )
