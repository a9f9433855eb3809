"""One job: observe, plan, apply.

Promise: what is kept here between passes may be lost at any moment without harm; the API server
holds the state. A status is applied on the very version of the job that was seen, so a view that
has grown old changes nothing. Trap avoided: acting on a remembered view: between two LISTs a new
report may only change figures, and whatever else comes of it is decided again on a fresh view.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from lmtraining_api import names as api
from lmtraining_api.conditions import Succeeded
from lmtraining_api.status import ConditionType, LMTrainingJobStatus
from lmtraining_operator.apply import Applier, leave_queue
from lmtraining_operator.gateway import CONFLICT, NOT_FOUND, ApiError, Gateway, Object
from lmtraining_operator.milestones import Milestones, milestones
from lmtraining_operator.observe import left_in_queues, observe
from lmtraining_operator.plan import (
    Observed,
    ObservedReport,
    Plan,
    PublishEvent,
    Refusal,
    Settings,
    plan,
)
from lmtraining_operator.plan.decide import RESYNC_SECONDS
from lmtraining_operator.plan.writes import Pace, write_time
from lmtraining_operator.reports import ReportError, Reports

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.05
"""Pause before a pass that follows at once from the one before."""

MISSING_SECONDS = 20.0
"""How long a job must not be found before it is taken for gone."""


_UNSTARTED = frozenset({Succeeded.PENDING, Succeeded.PREPARING, Succeeded.STARTING})


class JobKey(NamedTuple):
    """Which job; its UID may change under the name."""

    namespace: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pass leaves to do, in seconds from now."""

    look_seconds: float
    report_seconds: float | None = None
    """When the report is to be pulled; None where there is none to pull."""
    is_done: bool = False
    is_gone: bool = False
    """True when there is no such job any more."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """The job and the world as last seen."""

    job: Object
    status: LMTrainingJobStatus
    observed: Observed
    plan: Plan


class JobReconciler:
    """The passes over one job. Not to be used by two tasks at once."""

    def __init__(
        self,
        key: JobKey,
        *,
        gateway: Gateway,
        reports: Reports,
        settings: Settings,
        clock: Callable[[], datetime],
        pace: Callable[[], Pace] = Pace,
        on_written: Callable[[Milestones], None] = lambda _: None,
    ) -> None:
        self.key = key
        self._gateway = gateway
        self._reports = reports
        self._settings = settings
        self._clock = clock
        self._pace = pace
        self._on_written = on_written
        self._view: _View | None = None
        self._life = ("", 0)
        self._report = ObservedReport()
        self._last_pull: datetime | None = None
        self._refusals: dict[str, Refusal] = {}
        self._last_write: datetime | None = None
        self._missing_since: datetime | None = None
        self._seen_since: dict[str, float] = {}
        """When each pod was first seen, by the loop's clock."""
        self._deleting_since: dict[str, float] = {}
        """The same for each pod that is being deleted, and is seen so."""
        self.event_errors: list[ApiError] = []

    @property
    def state(self) -> str:
        """The reason of Succeeded, as last decided."""
        condition = self._view and self._view.plan.status.condition(ConditionType.SUCCEEDED)
        return condition.reason if condition else "Pending"

    @property
    def unstarted_seconds(self) -> float:
        """Time since acceptance while its pods have never all run; 0 otherwise."""
        if self._view is None or self.state not in _UNSTARTED:
            return 0.0
        status = self._view.plan.status
        if status.start_time is None or status.first_run_time is not None:
            return 0.0
        return max((self._clock() - status.start_time).total_seconds(), 0.0)

    @property
    def attempt(self) -> int:
        return self._view.plan.status.attempt if self._view else 0

    async def tell_trouble(self, sentence: str) -> None:
        """Say in an event that this job cannot be looked at: its status may be what cannot be
        written. Best effort, and once per attempt, as every event."""
        uid, attempt = self._life
        namespace, name = self.key
        job: Object = {"metadata": {"name": name, "namespace": namespace, "uid": uid}}
        applier = Applier(gateway=self._gateway, job=job, now=self._clock())
        event = PublishEvent(
            type="Warning", reason="ReconcileFailed", message=sentence, attempt=attempt
        )
        await applier.apply([event])
        self.event_errors = applier.event_errors

    async def look(self) -> Outcome:
        """A whole pass on a fresh view."""
        job = await self._gateway.get(api.KIND, *self.key)
        if job is None:
            await self._leave_queues()
            return self._missing(self._clock())
        self._missing_since = None
        job.setdefault("apiVersion", api.API_VERSION)
        now = self._clock()
        status = LMTrainingJobStatus.model_validate(job.get("status") or {})
        self._enter(job["metadata"]["uid"], status.attempt)
        observed = await observe(
            self._gateway,
            job,
            status,
            report=self._report,
            refusals=self._refusals,
            now=now,
            reads_nodes=self._settings.reads_nodes,
        )
        observed = self._with_times(observed)
        decided = plan(job, status, observed, now, self._settings)
        self._view = view = _View(job=job, status=status, observed=observed, plan=decided)
        has_news = not (decided.report_from and self._is_progress(view, decided, now))
        return await self._carry_out(now, has_news=has_news)

    def _with_times(self, observed: Observed) -> Observed:
        """Each pod with how long it, and its deletion, has been watched. An operator that has just
        begun watches anew: a pod is rather waited for than forgotten too early (P1)."""
        now = asyncio.get_running_loop().time()
        seen = [pod.uid for pod in observed.pods]
        deleting = [pod.uid for pod in observed.pods if pod.is_deleting]
        self._seen_since = {uid: self._seen_since.get(uid, now) for uid in seen}
        self._deleting_since = {uid: self._deleting_since.get(uid, now) for uid in deleting}
        pods = (
            replace(
                pod,
                watched_seconds=now - self._seen_since[pod.uid],
                deleting_seconds=now - self._deleting_since.get(pod.uid, now),
            )
            for pod in observed.pods
        )
        return replace(observed, pods=tuple(pods))

    async def _leave_queues(self) -> None:
        """Nobody else takes the groups of a job that is gone out of their queue."""
        for left in await left_in_queues(self._gateway, *self.key):
            await leave_queue(self._gateway, self.key.namespace, left.name, uid=left.uid)

    def _missing(self, now: datetime) -> Outcome:
        """There is no such job, says the API server. It is asked again for a while: one that lags
        behind may not know of the job yet, and nothing would wake us once it does."""
        self._view = None
        since = self._missing_since = min(self._missing_since or now, now)
        left = MISSING_SECONDS - (now - since).total_seconds()
        is_gone = left <= 0
        return Outcome(look_seconds=max(left, AGAIN_SECONDS), is_done=is_gone, is_gone=is_gone)

    async def pull_report(self) -> bool:
        """Ask the lead pod how it goes; False, with a reason and a time to tell, when it does not
        say."""
        view = self._view
        if view is None or not view.plan.report_from:
            return False
        try:
            report = await self._reports.pull(
                view.plan.report_from,
                job_uid=view.job["metadata"]["uid"],
                attempt=view.plan.status.attempt,
            )
        except ReportError as error:
            self._last_pull = self._clock()
            since = self._report.failing_since or self._last_pull
            self._report = replace(self._report, error=str(error), failing_since=since)
            return False
        self._last_pull = self._clock()
        self._report = ObservedReport(report=report, address=view.plan.report_from)
        return True

    def hear(self) -> Outcome | None:
        """What comes of the report that was pulled, where that is nothing: the API server is asked
        nothing then. None: it must be."""
        view = self._view
        if view is None:
            return None
        now = self._clock()
        heard = self._with_report(view, now)
        due = self._write_time(view.status, heard.plan.status, now)
        if heard.plan.actions or heard.plan.is_done or (due is not None and due <= now):
            return None
        self._view = heard
        return self._outcome(heard.plan, due, now)

    async def after_report(self) -> Outcome:
        """Say what the report says; whatever else comes of it is decided on a fresh view."""
        view = self._view
        if view is None:
            return await self.look()
        now = self._clock()
        heard = self._with_report(view, now)
        due = self._write_time(view.status, heard.plan.status, now)
        means_more = due is not None and due <= now
        means_more = means_more and not self._is_progress(view, heard.plan, now)
        if heard.plan.actions or heard.plan.is_done or means_more:
            return await self.look()
        self._view = heard
        return await self._carry_out(now, has_news=True)

    def _with_report(self, view: _View, now: datetime) -> _View:
        """The view with the report of now, and what would come of it."""
        observed = replace(view.observed, report=self._report)
        decided = plan(view.job, view.status, observed, now, self._settings)
        return replace(view, observed=observed, plan=decided)

    def _is_progress(self, view: _View, decided: Plan, now: datetime) -> bool:
        """Whether only figures have changed: such a change would wait after a write just now."""
        due = write_time(view.status, decided.status, last_write=now, now=now, pace=Pace())
        return due is not None and due > now

    async def _carry_out(self, now: datetime, *, has_news: bool) -> Outcome:
        """Status first, then the actions; a conflict, or no such job, means that the view was old:
        look again. Without news, the write waits for a fresh report."""
        try:
            return await self._write_and_apply(now, has_news=has_news)
        except ApiError as error:
            if error.code in (CONFLICT, NOT_FOUND):
                return Outcome(look_seconds=AGAIN_SECONDS)
            raise

    async def _write_and_apply(self, now: datetime, *, has_news: bool) -> Outcome:
        view = self._view
        assert view is not None
        due = self._write_time(view.status, view.plan.status, now)
        if has_news and due is not None and due <= now:
            await self._write(view, now)
            due = None
        self._log(view.plan)
        self._enter(view.job["metadata"]["uid"], view.plan.status.attempt)
        known = dict(self._refusals)
        applier = Applier(gateway=self._gateway, job=view.job, now=now, refusals=self._refusals)
        is_refused = await applier.apply(view.plan.actions)
        self.event_errors = applier.event_errors
        self._refusals = applier.refusals
        outcome = self._outcome(view.plan, due, now)
        if is_refused or self._refusals != known:  # what status says of them is no longer true
            return replace(outcome, look_seconds=AGAIN_SECONDS)
        return outcome

    def _outcome(self, decided: Plan, due: datetime | None, now: datetime) -> Outcome:
        """When to come back, where a write is due then."""
        return Outcome(
            look_seconds=self._look_seconds(decided, due, now),
            report_seconds=self._report_seconds(decided, due, now),
            is_done=decided.is_done,
        )

    def _look_seconds(self, decided: Plan, due: datetime | None, now: datetime) -> float:
        """A write that is due later is made then: no report will come and carry it."""
        look = decided.look_again_seconds
        if look == RESYNC_SECONDS:  # nothing is waited for
            look = self._pace().look_seconds
        if due is None or decided.report_from:
            return look
        return max(min((due - now).total_seconds(), look), AGAIN_SECONDS)

    def _report_seconds(self, decided: Plan, due: datetime | None, now: datetime) -> float | None:
        """A write that is due soon carries a fresh report, and a look puts off no pull."""
        if not decided.report_from:
            return None
        waits = [0.0]
        if self._last_pull is not None:
            between = self._pace().report_seconds
            left = between - (now - self._last_pull).total_seconds()
            waits = [min(left, between)]  # also after the clock was set back
        if due is not None:
            waits.append((due - now).total_seconds())
        return max(min(waits), AGAIN_SECONDS)

    def _write_time(
        self, old: LMTrainingJobStatus, new: LMTrainingJobStatus, now: datetime
    ) -> datetime | None:
        return write_time(old, new, last_write=self._last_write, now=now, pace=self._pace())

    async def _write(self, view: _View, now: datetime) -> None:
        metadata = view.job["metadata"]
        written = await self._gateway.apply_status(
            {
                "apiVersion": api.API_VERSION,
                "kind": api.KIND,
                "metadata": {
                    key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")
                },
                "status": view.plan.status.model_dump(
                    mode="json", by_alias=True, exclude_none=True
                ),
            }
        )
        self._last_write = now
        self._on_written(milestones(view.status, view.plan.status))
        self._view = replace(view, job=written, status=view.plan.status)

    def _log(self, decided: Plan) -> None:
        for action in decided.actions:
            if isinstance(action, PublishEvent):
                logger.info(
                    "%s",
                    action.message or action.reason,
                    extra={
                        "namespace": self.key.namespace,
                        "job": self.key.name,
                        "attempt": action.attempt,
                        "reason": action.reason,
                    },
                )

    def _enter(self, uid: str, attempt: int) -> None:
        """What was remembered of another UID or attempt says nothing about this one."""
        if (uid, attempt) == self._life:
            return
        if uid != self._life[0]:
            self._view, self._last_write = None, None
        self._life = (uid, attempt)
        self._report, self._last_pull = ObservedReport(), None
        self._refusals = {}
