"""A report of a job in a cluster.

Promise: made from the job's status, its events and what the logs of its lead pods still tell; for a
job whose pods are gone what is left is shown, and what is not is named with where it can be had.
"""

from collections.abc import Sequence

from lmtraining_api import TimeAccounts
from lmtraining_api.history import Happening, Point
from lmtraining_api.status import LastFailure, LastRecovery
from lmtraining_cli.report.content import Content, placed
from lmtraining_cli.snapshot import Event, Object, Snapshot
from lmtraining_cli.why import why
from lmtraining_cli.wording import seconds_of, size

FORMAT = "%Y-%m-%d %H:%M:%S"
_KINDS = {
    "Skip": "Skip", "Rewind": "Rewind", "Rerun": "Rerun", "RanksRestarted": "Round",
    "PodReplaced": "Round", "AttemptStarted": "Start", "AttemptFailed": "Round",
}  # fmt: skip


def content_of(
    snapshot: Snapshot, points: Sequence[Point], *, missing: Sequence[str] = ()
) -> Content:
    """What is known of it."""
    status = snapshot.status
    metrics, restarts, done = status.metrics, status.restarts, status.stability
    return Content(
        name=snapshot.name,
        state=snapshot.state,
        made=snapshot.now,
        summary=why(snapshot).sentence,
        figures={
            "steps": f"{status.progress.step} of {status.progress.total_steps}",
            "loss": metrics.loss,
            "validation loss": metrics.validation_loss,
            "unigram loss": metrics.unigram_loss,
            "tokens": f"{status.progress.tokens:,}" if status.progress.tokens else "",
            "tokens per second": metrics.tokens_per_second,
            "MFU": metrics.mfu,
            "goodput": status.goodput.share,
            "restarts": str(restarts.total),
        },
        points=points,
        happenings=placed([_happening(one) for one in _relevant(snapshot.events)], points),
        unigram_loss=float(metrics.unigram_loss) if metrics.unigram_loss else None,
        accounts=_accounts(snapshot),
        stability={
            "batches skipped": str(done.skipped_steps),
            "steps clipped": str(done.clipped_steps),
            "rewinds": str(done.rewinds),
            "learning rate scale": done.rate_scale,
            "last remedy": done.last_remedy.message if done.last_remedy else "",
            "notice": done.notice,
        },
        recoveries=_recoveries(status.last_failure, status.last_recovery),
        checkpoints=_checkpoints(snapshot),
        environment={
            "namespace": snapshot.namespace,
            "trainer image": status.trainer_image,
            "pods": ", ".join(pod.name for pod in snapshot.pods),
            "nodes": ", ".join(sorted({pod.node for pod in snapshot.pods if pod.node})),
            "precision": metrics.precision,
            "parameters": f"{metrics.parameters:,}" if metrics.parameters else "",
            "run directory": status.artifacts.run_directory,
            "claim": status.artifacts.claim,
            "store": status.artifacts.uri,
        },
        configuration=_without_secrets(snapshot.spec),
        missing=[*missing, *snapshot.unseen],
    )


def _relevant(events: Sequence[Event]) -> list[Event]:
    return [one for one in events if one.reason in _KINDS and one.time is not None]


def _happening(event: Event) -> Happening:
    assert event.time is not None, "asked for only where there is one"
    return Happening(step=0, time=event.time, kind=_KINDS[event.reason], message=event.message)


def _accounts(snapshot: Snapshot) -> dict[str, float]:
    spent = snapshot.status.goodput
    return {name: seconds_of(getattr(spent, name)) for name in TimeAccounts.model_fields}


def _recoveries(
    failure: LastFailure | None, mended: LastRecovery | None
) -> list[tuple[str, str, str]]:
    """The newest, which is all that status keeps."""
    if failure is None and mended is None:
        return []
    when = mended.fault_time if mended else failure.time if failure else None
    what = (mended.fault if mended else "") or (failure.message if failure else "")
    how = "not mended"
    if mended is not None:
        origin = mended.resumed_from_step
        how = f"a step after {mended.seconds} s, from "
        how += "the start" if origin is None else f"step {origin}"
        how += f", {mended.replayed_steps} steps done again"
    return [(when.strftime(FORMAT) if when else "", what, how)]


def _checkpoints(snapshot: Snapshot) -> list[tuple[str, str, str, str, str]]:
    saved = snapshot.status.checkpoint
    if saved is None:
        return []
    healthy = snapshot.status.stability.healthy_step == saved.last_step
    marks = "intact, healthy" if healthy else "intact"
    when = saved.last_time.strftime(FORMAT)
    return [(str(saved.last_step), when, size(saved.size_bytes), marks, saved.sha256)]


def _without_secrets(spec: Object) -> Object:
    """A uri may carry a signature in its query; what stands before that is kept."""
    return {key: _redacted(value, key) for key, value in spec.items()}


def _redacted(value: object, key: str) -> object:
    if isinstance(value, dict):
        return {name: _redacted(below, name) for name, below in value.items()}
    if isinstance(value, list):
        return [_redacted(one, key) for one in value]
    if key == "uri" and isinstance(value, str) and "?" in value:
        return value.partition("?")[0] + "?…"
    return value
