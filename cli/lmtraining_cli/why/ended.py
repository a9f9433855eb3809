"""Why did it end?"""

from lmtraining_api import ConditionType, FailureClass
from lmtraining_api.reasons import FAILURE_HELP
from lmtraining_api.status import LastFailure, Succeeded
from lmtraining_cli.snapshot import Snapshot
from lmtraining_cli.why.finding import EVIDENCE_MAX, Finding

FRAMES_SHOWN = 3


def ended(snapshot: Snapshot) -> Finding | None:
    """A job that has ended, well or not."""
    if not snapshot.status.is_terminal:
        return None
    summary = snapshot.status.condition(ConditionType.SUCCEEDED)
    reason = summary.reason if summary else ""
    if reason == Succeeded.COMPLETED:
        return _completed(snapshot)
    message = summary.message if summary else ""
    failure = snapshot.status.last_failure
    if reason == Succeeded.DIVERGED:
        return _diverged(snapshot, message)
    if reason != Succeeded.FAILED or failure is None:
        return Finding(
            cause=reason,
            sentence=f"the job has ended: {message}",
            fix="change what the sentence names in a new job",
        )
    return Finding(
        cause=failure.failure_class,
        sentence=f"the job has failed: {message or failure.message}",
        evidence=_evidence(snapshot, failure),
        fix=_fix(snapshot, failure),
    )


def _completed(snapshot: Snapshot) -> Finding:
    export = snapshot.status.artifacts.export
    return Finding(
        cause="Completed",
        sentence=f"the job is finished, after {snapshot.status.progress.step} steps",
        evidence=[f"the model is in {export}"] if export else [],
        fix="nothing",
        is_trouble=False,
    )


def _diverged(snapshot: Snapshot, message: str) -> Finding:
    done = snapshot.status.stability
    last = [f"last remedy: {done.last_remedy.message}"] if done.last_remedy else []
    return Finding(
        cause="Diverged",
        sentence=f"training diverged: {message}",
        evidence=[f"{done.skipped_steps} steps skipped, {done.rewinds} rewinds", *last],
        fix=FAILURE_HELP[FailureClass.DIVERGED].do,
    )


def _evidence(snapshot: Snapshot, failure: LastFailure) -> list[str]:
    """Pod, exit code, places in the code, budget."""
    said = [f"attempt {failure.attempt}, pod {failure.pod}" if failure.pod else ""]
    if failure.node:
        said.append(f"on node {failure.node}")
    if failure.exit_code is not None:
        said.append(f"exit code {failure.exit_code}, reason {failure.reason}")
    if failure.rank is not None:
        said.append(f"rank {failure.rank}" + (f" at step {failure.step}" if failure.step else ""))
    said += [f"at {frame}" for frame in failure.frames[-FRAMES_SHOWN:]]
    return [*filter(None, said), _budget(snapshot)][:EVIDENCE_MAX]


def _budget(snapshot: Snapshot) -> str:
    recovery = snapshot.value("recovery") or {}
    counted = snapshot.status.restarts.counted
    return f"{counted} of recovery.restartsMax {recovery.get('restartsMax', 3)} restarts are spent"


def _fix(snapshot: Snapshot, failure: LastFailure) -> str:
    advice = FAILURE_HELP[failure.failure_class].do
    if not failure.failure_class.may_retry:
        return f"{advice.rstrip('.')}; then make a new job"
    path = snapshot.value("checkpoint.path")
    run = path or snapshot.status.artifacts.run_directory.rpartition("/")[2]
    again = f"; a new job with checkpoint.path {run} and existingRun: Resume goes on from there"
    has_checkpoint = snapshot.status.checkpoint is not None and bool(run)
    return advice.rstrip(".") + (again if has_checkpoint else "; then make a new job")
