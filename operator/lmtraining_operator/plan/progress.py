"""What a report says, as status.

Promise: the step in status never goes back, except to the checkpoint that lastRecovery or
lastRemedy names (P3):
until an attempt has made a step of its own, the figures of the one before stay, with their time.
Trap avoided: a trainer that is still loading reports step 0.
"""

from datetime import datetime

from lmtraining_api import names as api
from lmtraining_api.records import (
    CheckpointReport,
    ExitRecord,
    FaultReport,
    RemedyReport,
    RobustnessReport,
    TimeAccounts,
    TrainerReport,
)
from lmtraining_api.status import (
    AppliedStatus,
    CheckpointStatus,
    Goodput,
    LastFailure,
    LastRecovery,
    LastRemedy,
    LMTrainingJobStatus,
    Metrics,
    Progress,
    RobustnessStatus,
    StabilityStatus,
)
from lmtraining_api.wishes import Applied
from lmtraining_operator.plan import figures, names
from lmtraining_operator.plan.conditions import is_fault_of_ranks
from lmtraining_operator.plan.failures import lead_exit_record
from lmtraining_operator.plan.situation import Situation


def with_report(situation: Situation) -> LMTrainingJobStatus:
    """The status after the newest report of the attempt."""
    status, report = situation.status, situation.report
    if report is None:
        return status
    changes: dict[str, object] = {
        "round": max(figures.count(report.round), status.round),
        "waits_in_place": status.waits_in_place or bool(report.gang),
    }
    if report.last_fault is not None and report.first_step_time is None:
        status = without_speed(status)  # the ranks are being started again
    known = status.checkpoint
    if known is None or report.report_time >= known.last_time:
        changes["checkpoint"] = checkpoint_status(report.checkpoint) or known
    # While a pod is replaced, a report of the gang before may be of a lead that is gone (P3).
    if report.first_step_time is not None and not situation.awaits_gang:
        changes |= {
            "progress": status.progress
            if _stopped_further(situation, report)
            else _progress(report),
            "metrics": _metrics(report),
            "goodput": _goodput(report.accounts) or status.goodput,
            "labels": report.labels or status.labels,
            "robustness": _robustness(report.robustness) or status.robustness,
            "stability": _stability(status.stability, report),
            "last_recovery": _recovery(situation, report) or status.last_recovery,
        }
    if report.applied is not None:
        changes["applied"] = _applied(report.applied)
    if report.export_path:
        changes["artifacts"] = status.artifacts.model_copy(
            update={"export": _in_volume(situation, report.export_path)}
        )
    return status.model_copy(update=changes)


def _stopped_further(situation: Situation, report: TrainerReport) -> bool:
    """Whether the lead was gone after it had saved a later step than it last reported: its record,
    which told of that, went with it, while the report is still remembered (P3). A step that was
    made before a rewind is no such step."""
    known = situation.status.progress
    if situation.lead is not None or known.step <= figures.count(report.step):
        return False
    return report.step_time is None or known.step_time is None or known.step_time > report.step_time


def without_speed(status: LMTrainingJobStatus) -> LMTrainingJobStatus:
    """The status while no pod trains: what was reached stays, what says how fast does not (P4)."""
    return status.model_copy(
        update={
            "progress": status.progress.model_copy(update={"eta": ""}),
            "metrics": status.metrics.model_copy(update={"tokens_per_second": "", "mfu": ""}),
        }
    )


def with_last_checkpoint(situation: Situation) -> LMTrainingJobStatus:
    """The status with what the lead saved on its way out, after its last report was pulled: the
    checkpoint, and the step that it had come to; a gang that still recovered has told of neither.
    """
    status, record = situation.status, lead_exit_record(situation)
    saved = checkpoint_status(record.checkpoint) if record else None
    if saved is None:
        return status
    known, figures_time = status.checkpoint, status.progress.report_time
    changes: dict[str, object] = {}
    if known is None or saved.last_time > known.last_time:
        changes["checkpoint"] = saved
    # An older checkpoint may be of a step that was given up since.
    is_newer = figures_time is None or saved.last_time >= figures_time
    if is_newer and saved.last_step > status.progress.step:
        total = status.progress.total_steps or situation.spec.training.planned_steps or 0
        reached = {
            "step": saved.last_step,
            "total_steps": figures.count(total),
            "percent": figures.percent(saved.last_step, total),
            "step_time": saved.last_time,
        }
        changes["progress"] = status.progress.model_copy(update=reached)
    return status.model_copy(update=changes)


def with_exit_record(situation: Situation, record: ExitRecord) -> LMTrainingJobStatus:
    """The status of a finished run: its last report may have been pulled before its end."""
    status = situation.status
    planned, known = situation.spec.training.planned_steps, status.progress
    step = figures.count(record.step or planned or (known.total_steps if known else 0))
    total = step  # the budget of a finished run, however it was changed
    progress: dict[str, object] = {
        "step": step,
        "total_steps": total,
        "percent": figures.percent(step, total),
        "eta": "",
        "step_time": record.time,
        "report_time": record.time,
    }
    if record.tokens is not None:
        progress["tokens"] = figures.count(record.tokens)
    metrics = {
        name: figures.number(getattr(record, name))
        for name in ("loss", "validation_loss", "validation_accuracy", "validation_f1")
        if getattr(record, name) is not None
    }
    goodput = _goodput(record.accounts) or status.goodput
    export = _in_volume(situation, record.export_path or api.EXPORT_DIRECTORY)
    return status.model_copy(
        update={
            "progress": status.progress.model_copy(update=progress),
            "metrics": status.metrics.model_copy(update=metrics),
            "goodput": goodput,
            "robustness": _robustness(record.robustness) or status.robustness,
            "artifacts": status.artifacts.model_copy(update={"export": export}),
        }
    )


def checkpoint_status(report: CheckpointReport | None) -> CheckpointStatus | None:
    if report is None:
        return None
    return CheckpointStatus(
        last_step=figures.count(report.step),
        last_time=report.time,
        path=report.path,
        size_bytes=figures.count(report.size_bytes),
        sha256=report.sha256,
    )


def _applied(said: Applied) -> AppliedStatus:
    return AppliedStatus(
        generation=figures.count(said.generation),
        checkpoint=said.checkpoint,
        checkpoint_step=_maybe(said.checkpoint_step),
        rollback=said.rollback,
        rollback_step=_maybe(said.rollback_step),
        refusal=said.refusal,
    )


def _maybe(value: int | None) -> int | None:
    return None if value is None else figures.count(value)


def _in_volume(situation: Situation, path: str) -> str:
    return f"{names.run_directory_in_volume(situation.job)}/{path}"


def _progress(report: TrainerReport) -> Progress:
    return Progress(
        step=figures.count(report.step),
        total_steps=figures.count(report.total_steps),
        percent=figures.percent(report.step, report.total_steps),
        eta=figures.duration(report.eta_seconds),
        tokens=figures.count(report.tokens),
        step_time=report.step_time,
        report_time=report.report_time,
    )


def _metrics(report: TrainerReport) -> Metrics:
    interval = report.checkpoint_interval
    return Metrics(
        loss=figures.number(report.loss) if report.loss_is_finite else "not finite",
        validation_loss=figures.number(report.validation_loss),
        validation_accuracy=figures.number(report.validation_accuracy),
        validation_f1=figures.number(report.validation_f1),
        cut_examples=figures.count(report.cut_examples or 0),
        unigram_loss=figures.number(report.unigram_loss),
        gradient_norm=figures.number(report.gradient_norm),
        learning_rate=figures.number(report.learning_rate),
        tokens_per_second=figures.number(report.tokens_per_second, digits=0),
        mfu=figures.share(report.mfu, digits=1),
        checkpoint_interval=figures.duration(interval.seconds if interval else None),
        checkpoint_cost=figures.number(interval.cost_seconds if interval else None),
        time_between_faults=figures.duration(interval.fault_seconds if interval else None),
        precision=report.precision or "",
        parameters=figures.count(report.parameters or 0),
        update_ratio=figures.number(report.update_ratio),
        update_rms=figures.number(report.update_rms),
        swallowed=figures.share(report.swallowed_share),
        attention_logit_bound=figures.number(report.attention_logit_bound, digits=1),
        activation_max=figures.number(report.activation_max, digits=1),
        noise_scale_tokens=figures.number(report.noise_scale_tokens, digits=0),
    )


def _goodput(accounts: TimeAccounts | None) -> Goodput | None:
    if accounts is None or accounts.goodput is None:
        return None
    parts = {cause: figures.duration(seconds) for cause, seconds in accounts}
    return Goodput(
        share=f"{100 * accounts.goodput:.1f}%",
        wall_time=figures.duration(accounts.wall_seconds),
        **parts,
    )


def _robustness(tests: list[RobustnessReport]) -> list[RobustnessStatus]:
    return [
        RobustnessStatus(
            noise=one.noise,
            level=f"{100 * one.level:g}%",
            loss=figures.number(one.loss),
            deviation=figures.number(one.deviation),
            failed=f"{100 * one.failed:.0f}%",
        )
        for one in tests
    ]


def _stability(known: StabilityStatus, report: TrainerReport) -> StabilityStatus:
    """What the ranks of this round know; what those before them said stays until there is news."""
    done, healthy_step = report.last_remedy, report.healthy_step
    return StabilityStatus(
        skipped_steps=figures.count(report.skipped_steps),
        clipped_steps=figures.count(report.clipped_steps),
        rewinds=figures.count(report.rewinds),
        rate_scale="" if report.rate_scale == 1.0 else figures.number(report.rate_scale),
        healthy_step=known.healthy_step if healthy_step is None else figures.count(healthy_step),
        notice=report.notice,
        last_remedy=known.last_remedy if done is None else _last_remedy(done),
    )


def _last_remedy(done: RemedyReport) -> LastRemedy:
    return LastRemedy(
        remedy=done.remedy,
        fault=done.fault,
        step=figures.count(done.step),
        to_step=_maybe(done.to_step),
        message=done.message,
        time=done.time,
    )


def _recovery(situation: Situation, report: TrainerReport) -> LastRecovery | None:
    """How the failure before this attempt, or of one of its pods, was mended, or why its step is
    lower (P3), once it has made a step."""
    if situation.awaits_gang:
        return None
    fault = report.last_fault if is_fault_of_ranks(report) else None
    fault_time = _fault_time(situation, report) if fault is None else fault.time
    if fault_time is None or report.first_step_time is None:
        return None
    done = report.last_remedy
    if done is not None and done.to_step is not None and done.time > report.first_step_time:
        return None  # the figures of loading are a rewind's since, which lastRemedy tells
    took = (report.first_step_time - fault_time).total_seconds()
    return LastRecovery(
        fault_time=fault_time,
        first_step_time=report.first_step_time,
        seconds=figures.seconds(max(took, 0.0)),
        load_seconds=figures.seconds(report.load_seconds),
        resumed_from_step=None
        if report.resumed_from_step is None
        else figures.count(report.resumed_from_step),
        passed_over=report.passed_over,
        replayed_steps=figures.count(report.replayed_steps),
        fault=_fault(fault or situation.replaced),
    )


def _fault(fault: FaultReport | LastFailure | None) -> str:
    return figures.bounded(f"{fault.failure_class}: {fault.message}") if fault is not None else ""


def _fault_time(situation: Situation, report: TrainerReport) -> datetime | None:
    """When the attempt before this one, or a pod of it, failed; or made its last step, where that
    one is lost without a failure: a pod that is told to suspend may not come to save."""
    failure, progress = situation.status.last_failure, situation.status.progress
    if failure is not None and situation.follows_failure:
        return failure.time
    if progress.step_time is None or report.first_step_time is None:
        return None
    is_of_earlier_attempt = progress.step_time < report.first_step_time
    goes_back = (report.resumed_from_step or 0) < progress.step
    return progress.step_time if is_of_earlier_attempt and goes_back else None
