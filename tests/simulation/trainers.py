"""Supervisors and ranks, as far as operator and storage can tell them from real ones.

Promise: they do what docs/recovery.md says: wait for a complete peer table, train, save, end their
round when a peer is lost and wait in place for another table, save and stop when told to, finish
with a record. Nothing here asks the API server anything: a node that is cut off trains on.
Trap avoided: a model that is kinder than the world. Two gangs that may write to one run at the same
time are noticed here, whatever the API server shows.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from lmtraining_api.exits import CODE_OF_CLASS, ExitCode, FailureClass
from lmtraining_api.records import gang_digest
from tests.simulation.clock import moment
from tests.simulation.runs import Container, Ended, Gang, Place, Run

STEP_SECONDS = (0.7, 1.4)
START_SECONDS = (0.3, 1.6)
SAVE_SECONDS = (0.3, 0.9)
NOTICE_SECONDS = (0.0, 1.0)
"""Until peers notice that one of them is gone."""
STOP_SECONDS = (0.1, 0.6)
LINGER_SECONDS = (0.1, 3.0)
"""The same for those that do not lead, once the run is finished."""
STEPS_BETWEEN_SAVES = 3
ALONE_SECONDS_MAX = 60.0
"""How long a supervisor waits for peers of whom nobody tells it anything."""
FENCE_SECONDS = 8.0
"""A supervisor that cannot reach the lead stops its ranks after so long."""
SIGNAL_KILL = 137


class Surroundings(Protocol):
    """What a trainer needs of the world."""

    def now(self) -> float: ...
    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None: ...
    def tell(self, text: str) -> None: ...
    def violated(self, text: str) -> None: ...
    def phase_may_have_changed(self) -> None: ...


class Trainers:
    """All containers and all runs."""

    def __init__(self, world: Surroundings, random: Random, *, waits_in_place: bool) -> None:
        self._world = world
        self._random = random
        self.waits_in_place = waits_in_place
        self.runs: dict[str, Run] = {}
        self.containers: dict[str, Container] = {}

    def begin(self, container: Container, job_file: str) -> None:
        """A supervisor starts, and waits for its peers."""
        steps = json.loads(job_file)["spec"]["training"]["budget"]["steps"]
        self.runs.setdefault(container.job_uid, Run(uid=container.job_uid, steps=steps))
        self.containers[container.uid] = container
        container.alone_since = self._world.now()

    def running(self, job_uid: str) -> list[Container]:
        return [c for c in self.containers.values() if c.job_uid == job_uid and c.is_running]

    # --- intent -----------------------------------------------------------------------------

    def read_intent(self, container: Container, text: str) -> None:
        """The intent file has changed."""
        intent = json.loads(text)
        if intent["jobUid"] != container.job_uid or intent["attempt"] != container.attempt:
            return
        table = frozenset(peer["podUid"] for peer in intent.get("peers", []))
        if table == container.table or not container.is_running:
            return
        container.table = table
        container.alone_since = self._world.now()
        if container.gang is not None and container.gang.digest != gang_digest(table):
            self._break(container.gang, "another peer table")
        self.meet(container)

    def meet(self, container: Container) -> None:
        """Begin a round if all pods of its table go by that table."""
        if not container.is_armed or container.gang or container.is_stopping:
            return
        members = [self.containers.get(uid) for uid in container.table]
        there = [one for one in members if one and self._may_meet(one, container)]
        if len(there) == len(container.table):
            self._start(sorted(there, key=lambda one: one.replica), fault=None)

    def _may_meet(self, one: Container, other: Container) -> bool:
        ready = one.is_running and not one.is_stopping and one.gang is None
        return ready and one.table == other.table and _connected(one, other)

    # --- a round ----------------------------------------------------------------------------

    def _start(self, members: list[Container], fault: dict[str, Any] | None) -> None:
        run = self.runs[members[0].job_uid]
        for other in self.running(run.uid):
            if other.is_writing and other not in members and not other.was_orphaned:
                self._world.violated(f"P1: {members[0].name} trains while {other.name} may write")
        same = run.attempt == members[0].attempt
        run.round = run.round + 1 if same else 1
        run.attempt = members[0].attempt
        digest = gang_digest(member.uid for member in members)
        gang = Gang(members, run.round, run.saved, digest, fault=fault)
        run.gang = gang
        run.step = run.saved
        gang.replayed = run.highest - run.saved
        for member in members:
            member.gang, member.digest, member.is_writing = gang, digest, True
        self._say(run, f"round {run.round} of attempt {run.attempt} starts at step {run.saved}")
        self._after(START_SECONDS, self._step, run, gang)

    def _step(self, run: Run, gang: Gang) -> None:
        if run.gang is not gang:
            return
        now = self._world.now()
        if run.finished or run.step >= run.steps:
            return self._export(run, gang)
        run.step += 1
        run.highest = max(run.highest, run.step)
        gang.state, gang.step_time = "Training", now
        if gang.first_step_time is None:
            gang.first_step_time = now
            run.stepped.add((run.attempt, gang.digest))
            self._say(run, f"step {run.step}")
        self._world.phase_may_have_changed()
        if any(member.is_stopping for member in gang.members):
            return self._save_and_stop(run, gang)
        if run.step == run.steps or run.step % STEPS_BETWEEN_SAVES == 0:
            gang.state = "Checkpointing"
            self._world.phase_may_have_changed()
            self._after(SAVE_SECONDS, self._saved, run, gang)
        else:
            self._after(STEP_SECONDS, self._step, run, gang)
        return None

    def _saved(self, run: Run, gang: Gang) -> None:
        if run.gang is gang:
            run.saved, run.saved_time = run.step, self._world.now()
            self._after(STEP_SECONDS, self._step, run, gang)

    def _export(self, run: Run, gang: Gang) -> None:
        gang.state = "Exporting"
        self._world.phase_may_have_changed()
        self._after(SAVE_SECONDS, self._finish, run, gang)

    def _finish(self, run: Run, gang: Gang) -> None:
        if run.gang is not gang:
            return
        run.finished = True
        self._say(run, "the run is finished")
        for member in gang.members:
            span = STOP_SECONDS if member.replica == 0 else LINGER_SECONDS
            self._after(span, self._exit, member, ExitCode.FINISHED, None)

    def _save_and_stop(self, run: Run, gang: Gang) -> None:
        gang.state = "Stopping"
        self._world.phase_may_have_changed()
        self._after(SAVE_SECONDS, self._stopped, run, gang)

    def _stopped(self, run: Run, gang: Gang) -> None:
        if run.gang is not gang:
            return
        run.saved, run.saved_time = run.step, self._world.now()
        self._say(run, f"saved step {run.step}, and stops")
        for member in gang.members:
            member.is_stopping = True
            self._after(STOP_SECONDS, self._exit, member, ExitCode.PREEMPTED, "Disruption")

    # --- ends -------------------------------------------------------------------------------

    def told_to_stop(self, container: Container) -> None:
        """SIGTERM: all ranks save at their next step and end."""
        if container.is_stopping or not container.is_running:
            return
        container.is_stopping = True
        if container.gang is None or len(container.gang.members) < container.replicas:
            self._after(STOP_SECONDS, self._exit, container, ExitCode.PREEMPTED, "Disruption")

    def rank_died(self, container: Container) -> None:
        """A rank dies: the supervisors begin another round, and nobody else is asked."""
        gang, run = container.gang, self.runs[container.job_uid]
        if gang is None or run.gang is not gang or run.finished:
            return
        members = gang.members
        fault = {
            "round": gang.round,
            "failureClass": "Crash",
            "reason": "RankKilled",
            "message": "rank 0 was killed",
            "step": run.step,
            "hasStepped": gang.first_step_time is not None,
            "time": moment(self._world.now()).isoformat(),
        }
        for member in members:
            member.gang = None
        run.gang = None
        self._start(members, fault)

    def fail(self, container: Container, failure: FailureClass) -> None:
        """Its supervisor gives up with a record."""
        self._exit(container, CODE_OF_CLASS[failure], failure.value)

    def kill(self, container: Container, *, reason: str = "Error") -> None:
        """SIGKILL, or no memory: no record."""
        self._end(container, SIGNAL_KILL, "", reason)

    def _exit(self, container: Container, code: int, failure: str | None) -> None:
        record = {
            "schemaVersion": 1,
            "jobUid": container.job_uid,
            "attempt": container.attempt,
            "round": self.runs[container.job_uid].round,
            "replica": container.replica,
            "podName": container.name,
            "exitCode": int(code),
            "failureClass": failure,
            "reason": failure or "Finished",
            "message": "" if failure is None else "told by the trainer",
            "time": moment(self._world.now()).isoformat(),
        }
        run = self.runs[container.job_uid]
        if failure is None:
            record |= {"step": run.steps, "exportPath": "export", "loss": 3.25}
        elif container.replica == 0 and run.saved:
            record["checkpoint"] = self._checkpoint(run)
        self._end(container, int(code), json.dumps(record), "Error" if code else "Completed")

    def _end(self, container: Container, code: int, message: str, reason: str) -> None:
        if container.ended is not None:
            return
        container.ended = Ended(code, message, reason, self._world.now())
        container.is_writing = False
        self._world.tell(f"  {container.name}: the container ends with {code} {reason}")
        if container.gang is not None:
            container.gang.members.remove(container)
            if code != ExitCode.FINISHED:
                self._break(container.gang, f"{container.name} is gone")
        container.on_end(container)
        self._world.phase_may_have_changed()

    # --- losing each other --------------------------------------------------------------------

    def cut(self, node: Place) -> None:
        """Nobody else reaches that node any more: gangs that need it break."""
        for run in self.runs.values():
            gang = run.gang
            if gang and {one.node is node for one in gang.members} == {True, False}:
                self._break(gang, f"node {node.name} cannot be reached", is_cut=True)

    def joined(self) -> None:
        """A node is back: whoever still waits may meet."""
        for container in list(self.containers.values()):
            if container.is_running:
                self.meet(container)

    def _break(self, gang: Gang, why: str, *, is_cut: bool = False) -> None:
        run = self.runs[gang.members[0].job_uid] if gang.members else None
        if run is None or run.gang is not gang or run.finished:
            return
        run.gang = None
        self._say(run, f"round {gang.round} breaks: {why}")
        for member in gang.members:
            member.gang = None
            member.alone_since = self._world.now()
            if is_cut:  # its ranks may be in the middle of a save
                self._world.later(FENCE_SECONDS, self._stop_writing, member, gang)
            else:
                self._after(NOTICE_SECONDS, self._stop_writing, member, gang)
            self._wait_alone(member)
        self._world.phase_may_have_changed()

    def _stop_writing(self, container: Container, gang: Gang) -> None:
        if container.gang is None or container.gang is gang:
            container.is_writing = False
        if container.is_stopping and container.is_running:
            self._exit(container, ExitCode.PREEMPTED, "Disruption")

    def _wait_alone(self, container: Container) -> None:
        patience = ALONE_SECONDS_MAX if self.waits_in_place else self._random.uniform(0.0, 2.0)
        since = container.alone_since
        self._world.later(patience, self._give_up, container, since)

    def _give_up(self, container: Container, since: float) -> None:
        """Nobody has told it anything since it lost its peers."""
        if container.is_running and container.gang is None and container.alone_since == since:
            self._exit(container, ExitCode.PEER_LOST, "PeerLost")

    # --- reports ----------------------------------------------------------------------------

    def report(self, container: Container) -> bytes:
        """What it answers to GET /report."""
        run, gang = self.runs[container.job_uid], container.gang
        said: dict[str, Any] = {
            "schemaVersion": 1,
            "jobUid": container.job_uid,
            "attempt": container.attempt,
            "round": run.round if container.digest else 0,
            "state": gang.state if gang else "Waiting",
            "reportTime": moment(self._world.now()).isoformat(),
            "step": run.step if gang else 0,
            "totalSteps": run.steps,
            "tokensPerSecond": 1000.0,
            "gang": container.digest if self.waits_in_place else "",
        }
        if gang is not None:
            said["resumedFromStep"] = gang.resumed_from or None
            said["lastFault"] = gang.fault
        if gang is not None and gang.first_step_time is not None and gang.step_time is not None:
            said["firstStepTime"] = moment(gang.first_step_time).isoformat()
            said["stepTime"] = moment(gang.step_time).isoformat()
            said["replayedSteps"] = gang.replayed
            said["loss"] = 3.5
        if gang is not None and run.saved:
            said["checkpoint"] = self._checkpoint(run)
        return json.dumps(said).encode()

    @staticmethod
    def _checkpoint(run: Run) -> dict[str, Any]:
        return {
            "step": run.saved,
            "path": f"checkpoints/{run.saved}",
            "time": moment(run.saved_time).isoformat(),
            "sizeBytes": 10,
            "sha256": "a" * 64,
        }

    # --- helpers ----------------------------------------------------------------------------

    def _after(self, seconds: tuple[float, float], what: Callable[..., Any], *args: Any) -> None:
        self._world.later(self._random.uniform(*seconds), what, *args)

    def _say(self, run: Run, text: str) -> None:
        self._world.tell(f"  run {run.uid}: {text}")
        self._world.phase_may_have_changed()


def _connected(one: Container, other: Container) -> bool:
    return one.node is other.node or not (one.node.is_cut_off or other.node.is_cut_off)
