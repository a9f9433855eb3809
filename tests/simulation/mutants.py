"""Bugs that operators are known for, and those that were ours, planted one at a time.

Promise: each is a real way to write this operator wrongly, made by replacing a function of the real
code, and the simulator finds each. Trap avoided: oracles without teeth.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

from lmtraining_api.exits import ExitCode
from lmtraining_api.records import ExitRecord, TrainerReport
from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator import apply, observe, reconcile, reports
from lmtraining_operator.gateway import ApiError, Object
from lmtraining_operator.plan import (
    attempts,
    decide,
    ending,
    failures,
    gang,
    nodes,
    progress,
    recovery,
)
from lmtraining_operator.plan.model import ObservedPod, Plan
from lmtraining_operator.plan.situation import Situation
from tests.simulation import operator_process
from tests.simulation.network import SimulatedGateway
from tests.simulation.operator_process import WatchedReconciler


@dataclass(frozen=True)
class Mutant:
    """One planted bug: what to replace, and by what."""

    target: Any
    name: str
    value: Any


MUTANTS: dict[str, tuple[Mutant, ...]] = {}


def plant(bug: str, *mutants: Mutant) -> None:
    MUTANTS[bug] = mutants


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """The code with that bug in it."""
    patches = [patch.object(one.target, one.name, one.value) for one in MUTANTS[bug]]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


# --- order of writes --------------------------------------------------------------------------

_write_and_apply = WatchedReconciler._write_and_apply


async def _children_first(self: Any, now: datetime, *, has_news: bool) -> Any:
    view = self._view
    applier = apply.Applier(gateway=self._gateway, job=view.job, now=now, refusals=self._refusals)
    await applier.apply(view.plan.actions)
    return await _write_and_apply(self, now, has_news=has_news)


plant(
    "a pod on a node that is only cut off is forced at once",
    Mutant(observe, "is_out_of_service", lambda node: node is not None and bool(node.taints)),
)
plant("the node that status avoids is forgotten", Mutant(nodes, "names", lambda status: ()))

plant(
    "children are made before status says so",
    Mutant(WatchedReconciler, "_write_and_apply", _children_first),
)

_apply_status = SimulatedGateway.apply_status


async def _of_any_version(self: SimulatedGateway, body: Object) -> Object:
    metadata = {key: body["metadata"][key] for key in ("name", "namespace")}
    return await _apply_status(self, body | {"metadata": metadata})


plant(
    "status is written without resourceVersion",
    Mutant(SimulatedGateway, "apply_status", _of_any_version),
)

# --- identity ---------------------------------------------------------------------------------


def _anyone(found: Object | None, uid: str) -> bool:
    return found is not None


plant(
    "pods are known by name and label, not by UID",
    Mutant(observe, "owned_by", _anyone),
)


async def _take_anything(self: apply.Applier, action: Any, error: ApiError) -> None:
    self.refusals.pop(action.key, None)


plant(
    "what has the name is taken for ours",
    Mutant(apply.Applier, "_take_existing", _take_anything),
    Mutant(observe, "owned_by", _anyone),
)

_delete = SimulatedGateway.delete


async def _delete_by_name(
    self: SimulatedGateway, *where: str, uid: str, grace_seconds: Any
) -> None:
    await _delete(self, *where, uid="", grace_seconds=grace_seconds)


plant(
    "pods are deleted by name, whatever their UID",
    Mutant(SimulatedGateway, "delete", _delete_by_name),
)

# --- reports and records ----------------------------------------------------------------------


def _unquestioned(content: bytes, *, job_uid: str, attempt: int) -> TrainerReport:
    try:
        return TrainerReport.model_validate_json(content)
    except ValueError as error:
        raise reports.ReportError("cannot be read") from error


plant(
    "a report of another life is believed",
    Mutant(operator_process, "parse", _unquestioned),
    Mutant(Situation, "report", property(lambda self: self.observed.report.report)),
)


def _any_record(pod: ObservedPod, ended: Any, job_uid: str) -> ExitRecord | None:
    try:
        return ExitRecord.model_validate_json(ended.termination_message)
    except ValueError:
        return None


def _finished_by_anyone(situation: Situation) -> ExitRecord | None:
    for pod in situation.gang:
        record = _any_record(pod, pod.exit, "") if pod.exit else None
        if record is not None and record.exit_code in (ExitCode.FINISHED, ExitCode.PREEMPTED):
            return record
    return None


plant(
    "the end of one pod is taken for the end of the run",
    Mutant(ending, "finished", _finished_by_anyone),
)

# --- restarts ---------------------------------------------------------------------------------


NEWS_SECONDS = 2.0
_first_failure = failures.first_failure


def _while_it_is_news(situation: Situation) -> Any:
    found = _first_failure(situation)
    is_old = found is not None and (situation.now - found.time).total_seconds() > NEWS_SECONDS
    return None if is_old else found


plant("a failure is seen only as it happens", Mutant(decide, "first_failure", _while_it_is_news))

plant(
    "a disruption is charged",
    Mutant(recovery, "UNCOUNTED", frozenset()),
)


plant("the backoff is forgotten", Mutant(recovery, "_wait_seconds", lambda *_, **__: 0.0))


def _not_the_leaving(
    pods: tuple[ObservedPod, ...], status: LMTrainingJobStatus
) -> tuple[ObservedPod, ...]:
    return tuple(p for p in pods if not attempts.is_kept(p, status) and not p.is_deleting)


plant(
    "a new attempt does not wait for pods that are going",
    Mutant(attempts, "in_the_way", _not_the_leaving),
)

plant(
    "a pod is replaced before the old one is gone",
    Mutant(
        Situation,
        "strays",
        property(
            lambda self: tuple(
                p for p in self.in_the_way if p.name not in self.expected and not p.is_deleting
            )
        ),
    ),
)


# --- ends -------------------------------------------------------------------------------------

plant(
    "a finished job is decided again",
    Mutant(LMTrainingJobStatus, "is_terminal", property(lambda self: False)),
)


async def _gone_is_not_the_end(self: Any) -> Any:
    outcome = await reconcile.JobReconciler.look(self)
    self.count()
    return replace(outcome, is_done=False)


plant("the task of a finished job goes on", Mutant(WatchedReconciler, "look", _gone_is_not_the_end))

# --- writes and patience ------------------------------------------------------------------------


def _always(old: Any, new: Any, *, now: datetime, **_: Any) -> datetime:
    return now


plant(
    "status is written whether it says anything new or not",
    Mutant(reconcile, "write_time", _always),
)

_list_objects = SimulatedGateway.list_objects


async def _empty_on_error(self: SimulatedGateway, *where: str, **what: str) -> list[Object]:
    try:
        return await _list_objects(self, *where, **what)
    except ApiError:
        return []


plant(
    "a list that failed is taken for an empty one",
    Mutant(SimulatedGateway, "list_objects", _empty_on_error),
)

_plan = reconcile.plan


def _only_when_woken(*arguments: Any) -> Plan:
    return replace(_plan(*arguments), look_again_seconds=10_000.0)


plant("nothing is looked at unless an event comes", Mutant(reconcile, "plan", _only_when_woken))


def _from_the_start(situation: Situation) -> LMTrainingJobStatus:
    """Figures of a trainer that is still loading."""
    report, status = situation.report, situation.status
    if report is None:
        return status
    return status.model_copy(update={"progress": progress._progress(report)})


plant(
    "the step of a trainer that is loading is told", Mutant(decide, "with_report", _from_the_start)
)

plant(
    "a pod that cannot be reached is forgotten at once",
    Mutant(gang, "STUCK_SECONDS", 0.0),
)

# --- what the simulation has found once -----------------------------------------------------------

plant(
    "a server that does not know the job yet is believed at once",
    Mutant(reconcile, "MISSING_SECONDS", 0.0),
)
plant(
    "an attempt waits for the time of a clock that was set back",
    Mutant(recovery, "without_clock_jump", lambda when, **_: when),
)
