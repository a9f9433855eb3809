"""Which conditions are true of a live attempt?

Promise (P4): Training is said only after a step of this attempt; a report that cannot be had makes
Progressing Unknown and says since when; a step that stands still makes it False.
Trap avoided: ages are taken between two times of the trainer's clock, or two of ours, never across.
"""

from datetime import datetime, timedelta

from lmtraining_api.names import POD_REPLACED
from lmtraining_api.records import CheckpointReport, TrainerReport
from lmtraining_api.status import (
    Checkpointed,
    ConditionType,
    DataReady,
    Healthy,
    Progressing,
    Succeeded,
)
from lmtraining_operator.plan.scheduling import scheduled
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Reason, Verdict

UNREACHABLE_SECONDS = 10.0
"""Reports may fail this long before Progressing is Unknown."""
FIRST_REPORT_SECONDS = 60.0
"""The same before the first report of an attempt: the trainer imports torch from a cold disk."""
STALLED_SECONDS_MIN = 60.0
STALLED_STEPS = 10.0
"""Stalled: no step for this many times the usual duration of one, and STALLED_SECONDS_MIN."""
STALLED_ASIDE_SECONDS = 1800.0
"""The same while the trainer does something else than step: evaluates, saves, exports."""
STALE_CHECKPOINT_INTERVALS = 2
SCORE_TOLD_MIN = 0.001
"""A rank a thousand times slower than the others is no better told by a larger number."""

_ASIDE = {
    "Evaluating": Progressing.EVALUATING,
    "Checkpointing": Progressing.CHECKPOINTING,
    "Exporting": Progressing.EXPORTING,
    "Finished": Progressing.EXPORTING,
}
_NOT_TRAINING: dict[Reason, Succeeded] = {
    Progressing.STALLED: Succeeded.STALLED,
    Progressing.UNREACHABLE: Succeeded.UNREACHABLE,
}
WHILE_TRAINING = frozenset({Succeeded.TRAINING, *_NOT_TRAINING.values()})
"""What is said of an attempt that has made a step."""
_DATA_IS_READY = frozenset({"Loading", "Training", "Finished", *_ASIDE})
"""Not Starting: ranks start before anybody looks at the data, and once more after it."""


def of_live_attempt(situation: Situation) -> list[Verdict]:
    """All verdicts that a running attempt changes."""
    verdicts = [
        succeeded(situation),
        data_ready(situation),
        scheduled(situation),
        progressing(situation),
        healthy(situation),
        checkpointed(situation),
    ]
    return [verdict for verdict in verdicts if verdict is not None]


def has_stepped(situation: Situation) -> bool:
    """True once the ranks of this attempt, in their present round, have made a step. Remembered in
    status, so that a new operator, which has no report yet, does not say that training starts
    again."""
    if situation.awaits_gang:
        return False
    if situation.report is not None:
        return situation.report.first_step_time is not None
    summary = situation.condition(ConditionType.SUCCEEDED)
    return summary is not None and summary.reason in WHILE_TRAINING


def was_productive(situation: Situation) -> bool:
    """True once this attempt has made a step, in whichever round."""
    report = situation.report
    fault = report.last_fault if report is not None else None
    return has_stepped(situation) or (fault is not None and fault.has_stepped)


def succeeded(situation: Situation) -> Verdict | None:
    """The summary of a live attempt; None leaves what was said."""
    doing = _doing(situation)
    if has_stepped(situation):
        return _training(situation, doing)
    report, recovers = situation.report, _recovers(situation)
    if recovers:
        return Verdict("Unknown", Succeeded.RECOVERING, f"{recovers}: {doing}")
    if report is not None and report.state == "Preparing":
        return Verdict("Unknown", Succeeded.PREPARING, doing)
    if situation.gang_runs:
        return Verdict("Unknown", Succeeded.STARTING, doing)
    return Verdict("Unknown", Succeeded.PENDING, doing)


def is_fault_of_ranks(report: TrainerReport | None) -> bool:
    """Whether the newest round is the answer to a fault that the supervisors mended alone."""
    fault = report.last_fault if report is not None else None
    return fault is not None and fault.reason != POD_REPLACED


def _recovers(situation: Situation) -> str:
    """By what, and from what; empty when there was nothing."""
    report, failure = situation.report, situation.status.last_failure
    fault = report.last_fault if report is not None and is_fault_of_ranks(report) else None
    if report is not None and fault is not None and not situation.awaits_gang:
        return f"round {report.round} of the ranks after {fault.failure_class}"
    if failure is None or not situation.follows_failure:
        return ""
    if situation.replaced is None:
        return f"attempt {situation.attempt} after {failure.failure_class}"
    what = f"pod {failure.replaced_by} takes the place of {failure.pod}"
    return f"{what} after {failure.failure_class}"


def _training(situation: Situation, doing: str) -> Verdict | None:
    """Training, unless Progressing says otherwise: one column shows no contradiction (P4)."""
    progress = progressing(situation)
    if progress is None:
        return None
    reason = _NOT_TRAINING.get(progress.reason)
    return Verdict("Unknown", reason or Succeeded.TRAINING, progress.message if reason else doing)


def _doing(situation: Situation) -> str:
    report = situation.report
    if not (situation.gang_was_complete or situation.gang_runs):
        return scheduled(situation).message
    if report is None:
        return "the pods run and have not reported yet"
    if report.message.lower().startswith(report.state.lower()):
        return report.message  # "Waiting: waiting for 1 of 2 pods" says a word twice
    return f"{report.state}: {report.message}" if report.message else str(report.state)


def data_ready(situation: Situation) -> Verdict | None:
    """Has anybody seen the data, and was it good? None leaves what was said: prepared data stays,
    whatever becomes of the ranks."""
    report = situation.report
    if report is None or situation.condition_is(ConditionType.DATA_READY, "True"):
        return None
    if report.state == "Preparing":
        return Verdict("False", DataReady.PREPARING, report.message)
    return Verdict("True", DataReady.READY) if report.state in _DATA_IS_READY else None


def progressing(situation: Situation) -> Verdict | None:
    """Does the step advance? None leaves what was said: a new operator has no report yet."""
    if not (situation.gang_was_complete or situation.gang_runs):
        return Verdict("False", Progressing.NOT_STARTED, "not all pods have started")
    silence = _silence(situation)
    if silence is not None:
        return silence
    report = situation.report
    if report is None:
        waiting = Verdict("False", Progressing.NOT_STARTED, "waiting for the first report")
        return None if has_stepped(situation) else waiting
    if report.first_step_time is None:
        return Verdict("False", Progressing.NOT_STARTED, _doing(situation))
    stalled = _stalled(situation, report)
    return stalled or Verdict("True", _ASIDE.get(report.state, Progressing.STEPPING))


def _silence(situation: Situation) -> Verdict | None:
    """Unreachable, when reports have failed for too long."""
    observed = situation.observed.report
    if not observed.error or observed.failing_since is None:
        return None
    limit = UNREACHABLE_SECONDS if has_stepped(situation) else FIRST_REPORT_SECONDS
    if situation.now - observed.failing_since <= timedelta(seconds=limit):
        return None
    lead = situation.lead
    who = f"pod {lead.name} at {lead.address}" if lead else "the lead pod"
    last = situation.status.progress.report_time
    age = f", its last report is of {_time(last)}" if last else ""
    return Verdict(
        "Unknown",
        Progressing.UNREACHABLE,
        f"{who} has not answered /report since {_time(observed.failing_since)}{age}: "
        f"{observed.error}",
    )


def _stalled(situation: Situation, report: TrainerReport) -> Verdict | None:
    if report.step_time is None:
        return None
    limit = stalled_seconds(situation, report)
    if (report.report_time - report.step_time).total_seconds() <= limit:
        return None
    return Verdict(
        "False",
        Progressing.STALLED,
        f"no step since {_time(report.step_time)} (step {report.step}, {report.state}); expected "
        f"within {limit:.0f} s",
    )


def stalled_seconds(situation: Situation, report: TrainerReport) -> float:
    """How long a step may take before it counts as stalled."""
    if report.state in _ASIDE:
        return STALLED_ASIDE_SECONDS
    if not report.tokens_per_second or report.tokens_per_second <= 0:
        return STALLED_SECONDS_MIN
    usual = situation.spec.training.batch_tokens / report.tokens_per_second
    return max(STALLED_SECONDS_MIN, STALLED_STEPS * usual)


def healthy(situation: Situation) -> Verdict | None:
    """Is there no open stability incident? None leaves what was said."""
    report = situation.report
    if not has_stepped(situation):
        return straggler_forgotten(situation)
    if report is None:
        return None
    if report.is_stable and report.loss_is_finite:
        return _straggling(situation, report) or Verdict("True", Healthy.STABLE)
    done = report.last_remedy or situation.status.stability.last_remedy
    limits = situation.spec.stability
    if done is None or done.remedy != "Rewind":
        found = f"{done.message}; " if done else ""
        return Verdict(
            "False",
            Healthy.SKIPPING,
            f"{found}bad batches are skipped: {report.skipped_steps} so far, at most "
            f"{limits.skipped_steps_max} (stability.skippedStepsMax)",
        )
    rewound = f"{done.message}: rewound from step {done.step} to step {done.to_step}"
    if done.fault == Healthy.REPLICA_DIVERGENCE:
        return Verdict("False", Healthy.REPLICA_DIVERGENCE, rewound)
    return Verdict(
        "False",
        Healthy.REWINDING,
        f"{rewound}; rewind {report.rewinds} of at most {limits.rewinds_max} "
        "(stability.rewindsMax)",
    )


def _straggling(situation: Situation, report: TrainerReport) -> Verdict | None:
    """That a rank is far slower than the others at what each does alone, so that all wait."""
    found = [rank for rank in report.slowest_ranks if rank.is_straggler]
    if not found:
        return None
    slowest = found[0]
    pod = situation.name_of(slowest.rank // situation.spec.workers.ranks_each)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    factor = 1.0 / max(slowest.score, SCORE_TOLD_MIN)
    return Verdict(
        "False",
        Healthy.STRAGGLER,
        f"rank {slowest.rank} in pod {pod}{others} takes {factor:.1f} times as long as the fastest "
        "for its own part of a step, and all wait for it: look at that pod's node for CPU "
        "throttling, other load or heat",
    )


def straggler_forgotten(situation: Situation) -> Verdict | None:
    """While no rank steps: what was said of a slow one is of a round, and maybe a pod, that is
    gone."""
    if not situation.reason_is(ConditionType.HEALTHY, Healthy.STRAGGLER):
        return None
    return Verdict(
        "Unknown",
        Healthy.UNKNOWN,
        "a rank was far slower than the others before the ranks stopped: it is measured again once "
        "they step",
    )


def checkpointed(situation: Situation) -> Verdict | None:
    """Is a checkpoint not older than promised intact?"""
    report = situation.report
    if report is None:
        return None
    if report.checkpoint_error:
        is_full = report.storage_is_full
        reason = Checkpointed.STORAGE_FULL if is_full else Checkpointed.FAILING
        return Verdict("False", reason, report.checkpoint_error)
    if report.checkpoint is None:
        # An attempt that has not loaded yet does not know of the checkpoints before it.
        known = situation.status.checkpoint is not None
        return None if known else Verdict("False", Checkpointed.NONE_YET)
    due = _checkpoint_overdue(situation, report, report.checkpoint)
    if due:
        newest = f"the newest checkpoint is of step {report.checkpoint.step}"
        return Verdict("False", Checkpointed.STALE, f"{newest}; one is due every {due}")
    return Verdict("True", Checkpointed.FRESH)


def _checkpoint_overdue(
    situation: Situation, report: TrainerReport, newest: CheckpointReport
) -> str:
    """How often one is due, where it has not come for longer; else empty."""
    every, chosen = situation.spec.checkpoint.every_steps, report.checkpoint_interval
    if every is not None:
        is_late = report.step - newest.step > STALE_CHECKPOINT_INTERVALS * every
        return f"{every} steps (checkpoint.everySteps)" if is_late else ""
    if chosen is None or report.step_time is None:
        return ""
    # A run that was suspended has an old checkpoint, and is not late.
    since = max(newest.time, report.first_step_time or newest.time)
    is_late = (report.step_time - since).total_seconds() > (
        STALE_CHECKPOINT_INTERVALS * chosen.seconds + STALLED_ASIDE_SECONDS
    )
    return f"{chosen.seconds:.0f} s (checkpoint.everySteps is left open)" if is_late else ""


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
