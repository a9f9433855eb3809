"""What holds up a gang that is in place."""

from lmtraining_api import ConditionType
from lmtraining_api.reasons import REASON_HELP
from lmtraining_api.status import Checkpointed, Healthy, Progressing, Succeeded
from lmtraining_cli.snapshot import Object, Snapshot
from lmtraining_cli.why.finding import Finding, lasting
from lmtraining_cli.wording import duration, seconds_of

WALL_SECONDS_MIN = 60.0
"""Of a shorter run the start is most, and says nothing."""
LOST_SHARE_MIN = 0.15
"""Of the wall time, to be worth a word."""
ONCE = frozenset({"startup", "compile"})
"""What a run pays at its beginning, and hardly again."""
ONCE_WALL_SECONDS_MIN = 1800.0
"""Of a shorter run that is a share which shrinks by itself, and nothing to mend."""
_LOSSES: dict[str, tuple[str, str]] = {
    "data_wait": (
        "waits for data",
        "give the pods more CPU (workers.resources.cpu), or move the text nearer to them",
    ),
    "checkpoint": (
        "is stopped by saving checkpoints",
        "save less often (checkpoint.everySteps, or leave it out), or use faster storage",
    ),
    "replayed_steps": (
        "does steps again that faults have lost",
        "look at status.lastFailure and mend its cause; save more often",
    ),
    "recovery": ("is recovering from faults", "look at status.lastFailure and mend its cause"),
    "evaluation": (
        "is validation",
        "validate less often (training.evaluation.everySteps) or on fewer sequences",
    ),
    "startup": ("is starting", "look at how often it started: status.restarts and status.round"),
    "compile": ("is warming up", "it matters less the longer the run is"),
    "stopped": ("was stopped (suspended or preempted)", "give the job a higher priority"),
}


def node_lost(snapshot: Snapshot) -> Finding | None:
    """A pod whose node does not answer."""
    broken = {
        str(node["metadata"]["name"]): found
        for node in snapshot.nodes or ()
        if (found := _ready(node)).get("status") not in (None, "True")
    }
    for pod in snapshot.pods:
        said = pod.condition("Ready").get("reason") == "NodeStatusUnknown"
        if pod.node and (pod.node in broken or said) and not pod.ended:
            words = str(broken.get(pod.node, {}).get("message", "its kubelet reports no more"))
            return Finding(
                cause="NodeNotReady",
                sentence=f"node {pod.node}, which runs pod {pod.name}, is not ready",
                evidence=[f"node {pod.node}: {words}"],
                fix=f"mend node {pod.node}; if it is down for good: kubectl delete node {pod.node}",
            )
    return None


def _ready(node: Object) -> Object:
    conditions: list[Object] = (node.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == "Ready"), {})


def backoff(snapshot: Snapshot) -> Finding | None:
    """The wait before the next attempt."""
    until, failure = snapshot.status.next_attempt_time, snapshot.status.last_failure
    if until is None or failure is None or until <= snapshot.now:
        return None
    left = duration((until - snapshot.now).total_seconds())
    restarts = snapshot.status.restarts
    return Finding(
        cause="Backoff",
        sentence=f"the next start waits another {left}, after {failure.failure_class} "
        f"(restart {restarts.total})",
        evidence=[failure.message],
        fix="mend the cause that is named; the wait doubles with each failure up to "
        "recovery.backoffSecondsMax",
    )


def unreachable(snapshot: Snapshot) -> Finding | None:
    """The lead does not answer the operator."""
    if snapshot.state != Succeeded.UNREACHABLE:
        return None
    lead = next(iter(snapshot.pods), None)
    answers = " though it answers through the API server" if snapshot.report else ""
    said = snapshot.status.progress.report_time
    age = f", last {duration((snapshot.now - said).total_seconds())} ago" if said else ""
    return Finding(
        cause="Unreachable",
        sentence=f"the operator cannot reach the lead pod{answers}{age}; training may go on",
        evidence=[snapshot.message(ConditionType.PROGRESSING)],
        fix="let the operator reach port 8080 of the job's pods (NetworkPolicy, mesh)"
        if answers
        else f"look at the pod: kubectl lmtrain logs {snapshot.name}"
        + (f"; its node: kubectl describe node {lead.node}" if lead and lead.node else ""),
    )


def stalled(snapshot: Snapshot) -> Finding | None:
    """The trainer answers and makes no step."""
    if snapshot.state != Succeeded.STALLED:
        return None
    silent = sorted(
        (rank for report in snapshot.reports for rank in report.ranks),
        key=lambda rank: -rank.heartbeat_age_seconds,
    )
    worst = [f"rank {r.rank}: {r.phase} {lasting(r.heartbeat_age_seconds)}" for r in silent[:3]]
    return Finding(
        cause="Stalled",
        sentence=f"the step does not advance: {snapshot.message(ConditionType.PROGRESSING)}",
        evidence=worst,
        fix="wait for the hang detection (stability.silenceSeconds), or look at storage and the "
        f"source of the text: kubectl lmtrain logs {snapshot.name}",
    )


def recovering(snapshot: Snapshot) -> Finding | None:
    """A failure is being mended."""
    failure = snapshot.status.last_failure
    if snapshot.state != Succeeded.RECOVERING or failure is None:
        return None
    return Finding(
        cause="Recovering",
        sentence=f"the job recovers from {failure.failure_class}: {failure.message}",
        evidence=[snapshot.message(ConditionType.SUCCEEDED)],
        fix="nothing, unless it comes again; then mend the cause that is named",
    )


def preparing(snapshot: Snapshot) -> Finding | None:
    """Everything before the first step."""
    early = (Succeeded.PENDING, Succeeded.PREPARING, Succeeded.STARTING, Succeeded.SUSPENDING)
    if snapshot.state not in early:
        return None
    known = REASON_HELP[ConditionType.SUCCEEDED].get(snapshot.state)
    said = snapshot.message(ConditionType.SUCCEEDED)
    means = known.means if known else "The job has not begun."
    return Finding(
        cause=snapshot.state,
        sentence=f"{said or means} ({snapshot.state}{_since(snapshot)})".strip(),
        evidence=[f"{len(snapshot.pods)} of {snapshot.replicas} pods exist"],
        fix="wait; if it lasts: kubectl lmtrain logs " + snapshot.name,
        is_trouble=False,
    )


def _since(snapshot: Snapshot) -> str:
    """How long that has lasted, as far as it can be known: a job may have waited, trained and been
    suspended before, and Succeeded is Unknown all the while."""
    now, placed = snapshot.now, snapshot.status.condition(ConditionType.SCHEDULED)
    made = [pod.created for pod in snapshot.pods if pod.created is not None]
    if placed is not None and placed.status == "True":
        return f", pods run {lasting((now - placed.last_transition_time).total_seconds())}"
    if made:
        return f", pods exist {lasting((now - min(made)).total_seconds())}"
    is_first = snapshot.status.first_run_time is None and not snapshot.status.restarts.total
    return f" {lasting(snapshot.age_seconds)}" if is_first else ""


def unstable(snapshot: Snapshot) -> Finding | None:
    """Bad steps, just now."""
    reason = snapshot.reason(ConditionType.HEALTHY)
    if reason not in (Healthy.SKIPPING, Healthy.REWINDING, Healthy.REPLICA_DIVERGENCE):
        return None
    done = snapshot.status.stability
    last = [f"last remedy: {done.last_remedy.message}"] if done.last_remedy else []
    return Finding(
        cause=reason,
        sentence=f"training is not stable: {snapshot.message(ConditionType.HEALTHY)}",
        evidence=[f"{done.skipped_steps} steps skipped, {done.rewinds} rewinds so far", *last],
        fix=REASON_HELP[ConditionType.HEALTHY][reason].do,
    )


def straggler(snapshot: Snapshot) -> Finding | None:
    """One rank that all others wait for."""
    if snapshot.reason(ConditionType.HEALTHY) != Healthy.STRAGGLER:
        return None
    return Finding(
        cause="Straggler",
        sentence=f"one rank holds up all others: {snapshot.message(ConditionType.HEALTHY)}",
        evidence=[
            f"rank {rank.rank}: {rank.score:.2f} of the fastest"
            for rank in (snapshot.report.slowest_ranks if snapshot.report else ())
        ],
        fix="look at the node of that pod (CPU throttling, other load, heat), or drain it",
    )


def storage_trouble(snapshot: Snapshot) -> Finding | None:
    """Checkpoints fail or are late; training goes on."""
    reason = snapshot.reason(ConditionType.CHECKPOINTED)
    if reason not in (Checkpointed.FAILING, Checkpointed.STORAGE_FULL, Checkpointed.STALE):
        return None
    saved = snapshot.status.checkpoint
    return Finding(
        cause={
            Checkpointed.STALE: "CheckpointStale",
            Checkpointed.FAILING: "CheckpointFailing",
        }.get(Checkpointed(reason), "StorageFull"),
        sentence=f"checkpoints are not saved: {snapshot.message(ConditionType.CHECKPOINTED)}",
        evidence=[f"newest intact: step {saved.last_step}" if saved else "none is intact"],
        fix=REASON_HELP[ConditionType.CHECKPOINTED][reason].do,
    )


def slow(snapshot: Snapshot) -> Finding | None:
    """Where the time went that was no training."""
    spent = snapshot.status.goodput
    wall = seconds_of(spent.wall_time)
    if wall < WALL_SECONDS_MIN:
        return None
    known = [name for name in _LOSSES if name not in ONCE or wall >= ONCE_WALL_SECONDS_MIN]
    lost = {name: seconds_of(getattr(spent, name)) / wall for name in known}
    worst = max(lost, key=lambda name: lost[name])
    if lost[worst] < LOST_SHARE_MIN:
        return None
    what, fix = _LOSSES[worst]
    others = sorted(lost.items(), key=lambda pair: -pair[1])[:3]
    return Finding(
        cause="Slow" + "".join(word.capitalize() for word in worst.split("_")),
        sentence=f"{lost[worst]:.0%} of the time {what}; {spent.share or '0%'} is training",
        evidence=[f"{name.replace('_', ' ')}: {share:.0%}" for name, share in others if share],
        fix=fix,
    )


def notice(snapshot: Snapshot) -> Finding | None:
    """What is odd and nothing is done about."""
    said = snapshot.status.stability.notice
    if not said:
        return None
    return Finding(
        cause="Notice",
        sentence=f"training goes on; what is odd: {said}",
        evidence=[f"loss {snapshot.status.metrics.loss}"],
        fix="look at optimizer.learningRate and the data (docs/stability.md)",
    )


def all_well(snapshot: Snapshot) -> Finding:
    """Nothing is wrong, as far as can be seen."""
    progress = snapshot.status.progress
    is_stepping = snapshot.reason(ConditionType.PROGRESSING) == Progressing.STEPPING
    return Finding(
        cause="Well",
        sentence=f"nothing is wrong: {snapshot.state}, step {progress.step} of "
        f"{progress.total_steps}"
        + ("" if is_stepping else f", {snapshot.reason(ConditionType.PROGRESSING)}"),
        fix="nothing",
        is_trouble=False,
    )
