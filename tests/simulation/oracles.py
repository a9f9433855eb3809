"""What must hold at every write, and at the end (docs/design.md, promises).

Promise: an oracle looks at what the API server stores and at what the containers really do, never
at what the operator thinks. Where a fault takes away what an oracle rests on, it says so and is not
asked.
"""

from collections import Counter
from typing import Any

from lmtraining_api import names as api
from lmtraining_operator.gateway import Object
from lmtraining_operator.plan.failures import UNCOUNTED
from tests.simulation.clock import seconds
from tests.simulation.cluster import avoided_nodes
from tests.simulation.faults import KINDS
from tests.simulation.server import OPERATOR, TERMINAL, Change, attempt_of, owner_uid, replica_of
from tests.simulation.trainers import ALONE_SECONDS_MAX
from tests.simulation.world import World, condition, is_terminal, reason

MADE_LATE_SECONDS_MAX = 15.0
"""So long after the end of a job a request of before may still arrive."""
CONDITIONS = 7
BACKOFF_TOLERANCE_SECONDS = 0.5


class Oracles:
    """Listens to every write of one life."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fired: list[tuple[str, str]] = []
        """Kind and phase of every fault that has happened."""
        self.made: Counter[str] = Counter()
        """Creations by the operator, by UID of the job, kind and name."""
        self.deleted: Counter[str] = Counter()
        """Pods that the operator told to go."""
        self.taken: Counter[str] = Counter()
        """Pods that somebody else took away."""
        self.gone: dict[str, float] = {}
        """When each job was deleted, by UID."""
        self.writes = 0
        self._failed_at: dict[str, float] = {}
        world.server.listeners.append(self._changed)

    def charged(self) -> int:
        return sum(KINDS[kind].is_charged for kind, _ in self.fired)

    def sees_the_past(self) -> bool:
        return any(KINDS[kind].sees_the_past for kind, _ in self.fired)

    def forgets(self) -> bool:
        return any(KINDS[kind].forgets for kind, _ in self.fired)

    # --- at every write -----------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.kind == api.KIND and change.type == "DELETED":
            self.gone[change.object["metadata"]["uid"]] = self.world.now()
        if change.kind == "Pod":
            self._pod_changed(change)
        if change.actor != OPERATOR:
            return
        self.writes += 1
        if change.type == "ADDED" and change.kind != "Event":
            self._made(change)
        if change.kind == api.KIND and change.before is not None:
            self._said(change.before, change.object)

    def _pod_changed(self, change: Change) -> None:
        new = change.object["metadata"]
        old = (change.before or {"metadata": {}})["metadata"]
        is_told = "deletionTimestamp" in new and "deletionTimestamp" not in old
        is_removed = change.type == "DELETED"
        if not (is_told or is_removed):
            return
        key = f"{owner_uid(change.object)} Pod/{change.name}"
        if change.actor == OPERATOR:
            self.deleted[key] += is_told or "deletionTimestamp" not in old
            self._must_be_in_the_way(change)
            if is_removed:
                self._must_have_stopped(change, old.get("deletionTimestamp", ""))
        elif change.actor != "kubelet":
            self.taken[key] += 1

    def _must_have_stopped(self, change: Change, due: str) -> None:
        """P1: a pod that runs is forgotten only after its ranks, cut off, have stopped."""
        container = self.world.trainers.containers.get(change.object["metadata"]["uid"])
        if container is None or not container.is_running:
            return
        late = self.world.now() - seconds(due) if due else 0.0
        if late < ALONE_SECONDS_MAX:
            self.world.violated(f"P1: {change.name} is forgotten {late:.0f} s after its grace")

    def _must_be_in_the_way(self, change: Change) -> None:
        """P10: of a pod that the attempt still needs, no operator is rid."""
        pod, job = change.object, self.world.job
        if not pod["metadata"].get("ownerReferences"):
            self.world.violated(f"the foreign pod {change.name} is deleted")
        uid = owner_uid(pod)
        if job is None or uid != job["metadata"]["uid"]:
            late = self.world.now() - self.gone.get(uid, self.world.now())
            if late > MADE_LATE_SECONDS_MAX:
                self.world.violated(f"{change.name} of another life is deleted")
            return
        if self._is_needed(job, pod):
            self.world.violated(f"P10: {change.name} is deleted, which the attempt still needs")
        if self._has_the_log(job, pod):
            self.world.violated(f"the log of {change.name} is lost, which status names")

    def _is_needed(self, job: Object, pod: Object) -> bool:
        """Whether status says that the pod belongs to an attempt that goes on."""
        status = job["status"]
        if is_terminal(job) or condition(job, "Scheduled").get("reason") == "Suspended":
            return False
        if job["spec"].get("suspend") or attempt_of(pod) != status["attempt"]:
            return False
        failure = status.get("lastFailure") or {}
        if failure.get("attempt") == status["attempt"] and not failure.get("replacedBy"):
            return False
        return pod_number(pod) == status.get("replacedPods", {}).get(str(replica_of(pod)), 0)

    def _has_the_log(self, job: Object, pod: Object) -> bool:
        """Whether it is the pod that failed last, and has said why. A quota that counts ended pods
        comes first; and how long a log is waited for is taken across two clocks."""
        failure = job["status"].get("lastFailure") or {}
        is_last = failure.get("pod") == pod["metadata"]["name"] and "exitCode" in failure
        makes_room = any(kind == "quota refuses pods" or "clock" in kind for kind, _ in self.fired)
        has_ended = pod["status"]["phase"] in TERMINAL
        return is_last and has_ended and not (makes_room or self.sees_the_past())

    def _made(self, change: Change) -> None:
        uid = owner_uid(change.object)
        self.made[f"{uid} {change.kind}/{change.name}"] += 1
        if uid in self.gone and not self.sees_the_past():
            late = self.world.now() - self.gone[uid]
            if late > MADE_LATE_SECONDS_MAX:
                self.world.violated(f"P5: {change.name} is made {late:.1f} s after its job")
        job = self.world.job
        if change.kind == "Pod" and job is not None and job["metadata"]["uid"] == uid:
            self._pod_made(change.object, job)

    def _pod_made(self, pod: Object, job: Object) -> None:
        """Named in status before it exists, and beside nobody who could still write (P1)."""
        name, status = pod["metadata"]["name"], job.get("status", {})
        attempt, replica = attempt_of(pod), replica_of(pod)
        if attempt > status.get("attempt", 0):
            self.world.violated(f"{name} exists before its attempt is in status")
        known = status.get("replacedPods", {}).get(str(replica), 0)
        if attempt == status.get("attempt") and pod_number(pod) > known:
            self.world.violated(f"{name} exists before its replacement is in status")
        away = {node["name"] for node in status.get("avoidedNodes", [])}
        if attempt == status.get("attempt") and not away <= avoided_nodes(pod):
            self.world.violated(f"{name} may go to {sorted(away)}, which status says it avoids")
        if is_terminal(job) and not self._may_be_late():
            self.world.violated(f"P2: {name} is made after the end")
        if self.sees_the_past() or self._may_be_late():
            return
        for other in self.world.trainers.running(owner_uid(pod)):
            is_rival = other.attempt != attempt or other.replica == replica
            if is_rival and not other.was_orphaned:
                self.world.violated(f"P1: {name} is made while {other.name} runs")

    def _may_be_late(self) -> bool:
        return any(kind.endswith("comes late") for kind, _ in self.fired)

    # --- at every status ----------------------------------------------------------------------

    def _said(self, before: Object, after: Object) -> None:
        old, new = before.get("status", {}), after["status"]
        if new.get("attempt", 0) < old.get("attempt", 0):
            self.world.violated("the attempt goes back")
        if len(new.get("conditions", [])) != CONDITIONS:
            self.world.violated("P4: not all conditions are there")
        if is_terminal(before):
            self.world.violated("P2: something is said after the end")
        self._step_goes_on(old, new)
        self._is_true(after)
        self._budget_is_kept(new)
        self._backoff_is_kept(old, new)

    def _step_goes_on(self, old: Object, new: Object) -> None:
        """P3: back only to a checkpoint that status names."""
        step = new.get("progress", {}).get("step", 0)
        before = old.get("progress", {}).get("step", 0)
        recovery = new.get("lastRecovery") or {}
        is_named = recovery and (recovery.get("resumedFromStep") or 0) <= step
        if step < before and not is_named:
            self.world.violated(f"P3: the step goes from {before} back to {step}")

    def _is_true(self, job: Object) -> None:
        """P4: Training is said of an attempt that has made a step, Completed of a finished run."""
        run = self.world.trainers.runs.get(job["metadata"]["uid"])
        said, status = reason(job), job["status"]
        steps = {attempt for attempt, _ in run.stepped} if run else set()
        if said == "Training" and status["attempt"] not in steps:
            self.world.violated("P4: Training is said before a step of the attempt")
        if said == "Completed" and not (run and run.finished):
            self.world.violated("P4: Completed is said of a run that is not finished")
        claimed = status.get("progress", {}).get("step", 0)
        if run is not None and claimed > run.highest:
            self.world.violated(f"P4: step {claimed} is said, and {run.highest} are done")

    def _budget_is_kept(self, status: Object) -> None:
        counted = status.get("restarts", {}).get("counted", 0)
        if counted > self.charged() and not self.forgets():
            self.world.violated(f"{counted} restarts are charged for {self.charged()} faults")

    def _backoff_is_kept(self, old: Object, new: Object) -> None:
        """Between a failure that counts and the next attempt the wait that the spec asks for."""
        failure = new.get("lastFailure") or {}
        if failure and failure != old.get("lastFailure"):
            self._failed_at.setdefault(_key(failure), self.world.now())
        counted = new.get("restarts", {}).get("counted", 0)
        is_next = new.get("attempt", 0) > max(old.get("attempt", 0), 1)
        if not is_next or not failure or failure["failureClass"] in UNCOUNTED:
            return
        waited = self.world.now() - self._failed_at.get(_key(failure), 0.0)
        wanted = self.world.shape.backoff_seconds * 2 ** max(counted - 1, 0)
        is_short = waited < min(wanted, 60) - BACKOFF_TOLERANCE_SECONDS
        blurs = ("clock", "slow", "suspended")  # a person who resumes a job does not wait
        is_blurred = any(word in kind for kind, _ in self.fired for word in blurs)
        if is_short and not is_blurred:
            self.world.violated(f"attempt {new['attempt']} begins after {waited:.1f} s")

    # --- at the end ---------------------------------------------------------------------------

    def at_rest(self) -> None:
        """After the world has been calm for long enough."""
        world, job = self.world, self.world.job
        if job is None:
            self._nothing_is_left()
            return
        if not is_terminal(job):
            world.violated(f"P12: not at an end ({reason(job)}: {_message(job)})")
            return
        if reason(job) != "Completed":
            self._must_have_failed(job)
        if any(container.is_running for container in world.trainers.containers.values()):
            world.violated("containers run after the end")
        if world.operator.busy_jobs:
            world.violated("the task of a finished job does not end")
        self._counts_add_up(job)
        self._older_logs_are_gone(job)

    def _must_have_failed(self, job: Object) -> None:
        status = job["status"]
        failure = status.get("lastFailure") or {}
        is_final = failure.get("failureClass") == "Configuration"
        is_spent = status["restarts"]["counted"] >= job["spec"]["recovery"]["restartsMax"]
        if not (is_final or (is_spent and self.charged() > is_spent)):
            self.world.violated(f"P12: {reason(job)} without need: {_message(job)}")

    def _counts_add_up(self, job: Object) -> None:
        """Nothing is made twice, unless somebody took it."""
        restarts = job["status"]["restarts"]
        if sum(restarts.get("byReason", {}).values()) != restarts["total"]:
            self.world.violated("restarts by reason do not add up")
        if self.sees_the_past() or self._may_be_late() or self.forgets():
            return
        for key, count in self.made.items():
            if count > 1 + self.taken[key]:
                self.world.violated(f"{key} was made {count} times")
        for empty in self.world.server.empty_writes:
            self.world.violated(f"a write changes nothing: {empty}")

    def _older_logs_are_gone(self, job: Object) -> None:
        """Only the pods of the newest failed attempt stay beside those of the last one."""
        if self.forgets():
            return
        status = job["status"]
        failed = (status.get("lastFailure") or {}).get("attempt", 0)
        kept = {status["attempt"], failed} if failed < status["attempt"] else range(failed + 1)
        for pod in self.world.pods():
            if attempt_of(pod) not in kept:
                self.world.violated(f"{pod['metadata']['name']} of an older attempt is left")

    def _nothing_is_left(self) -> None:
        """P5: only the claim, and what others made."""
        for found in self.world.server.objects.values():
            kind, name = found["kind"], found["metadata"]["name"]
            if owner_uid(found):
                self.world.violated(f"P5: {kind} {name} is left of a job that is gone")
        if any(container.is_running for container in self.world.trainers.containers.values()):
            self.world.violated("P5: containers run on after their job")
        if self.world.operator.busy_jobs:
            self.world.violated("P5: the task of a deleted job does not end")

    def outcome(self) -> dict[str, Any]:
        """What a life without faults, or with harmless ones, must come to."""
        job = self.world.job
        status = job.get("status", {}) if job else {}
        return {
            "state": reason(job) if job else "",
            "attempt": status.get("attempt"),
            "restarts": status.get("restarts", {}).get("total"),
            "step": status.get("progress", {}).get("step"),
            "export": bool(status.get("artifacts", {}).get("export")),
            "avoided": [node["name"] for node in status.get("avoidedNodes", [])],
            "replaced": sum(status.get("replacedPods", {}).values()),
            "made": dict(self.made),
            "deleted": dict(self.deleted),
        }


def pod_number(pod: Object) -> int:
    """How often the pod of its replica was replaced before it."""
    return int(pod["metadata"]["name"].rpartition("-")[2])


def _key(failure: Object) -> str:
    return f"{failure['attempt']}/{failure.get('pod')}"


def _message(job: Object) -> str:
    return str(condition(job, "Succeeded").get("message", ""))[:160]
