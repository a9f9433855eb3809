"""The life of a supervisor: wait for the gang, start the ranks, watch them, say how it ended.

Promise: every way out kills the ranks, reaps them and yields a record; its code is 0 only when
every rank has said that it finished, so that no preemption looks like success. The first cause is
reported, not what followed from it.
Trap avoided: doing work in a signal handler. A signal wakes the one loop there is, which acts.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from lmtraining_api import (
    ExitRecord,
    FailureClass,
    FaultReport,
    State,
    TrainerReport,
)
from lmtraining_api.names import POD_REPLACED
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.history import History
from lmtraining_trainer.report import Snapshot, StateClock, heard
from lmtraining_trainer.supervisor.assignment import RANK_FUNCTION, Assignment
from lmtraining_trainer.supervisor.environment import cpu_limit, rank_environment, with_defaults
from lmtraining_trainer.supervisor.evidence import flight_recorder_environment
from lmtraining_trainer.supervisor.exit_record import last_exit, record_of, with_last_words
from lmtraining_trainer.supervisor.failure import (
    RANK_EXITED,
    RankEnd,
    decisive,
    end_of_fork_server,
    end_of_gang,
    end_of_peer,
    end_of_supervisor,
    killed_for_memory,
    out_of_grace,
    print_unless_known,
    stopped_before_start,
)
from lmtraining_trainer.supervisor.fork_server import LIBRARIES, ForkServer
from lmtraining_trainer.supervisor.hang_watch import HangWatch
from lmtraining_trainer.supervisor.intent import Gang
from lmtraining_trainer.supervisor.meeting import (
    ASK_AGAIN_SECONDS_MAX,
    INTENT_POLL_SECONDS,
    NEW_POD_SECONDS_MAX,
    Meeting,
)
from lmtraining_trainer.supervisor.memory import MemoryWatch
from lmtraining_trainer.supervisor.orphans import reap_orphans
from lmtraining_trainer.supervisor.ranks import FAILED_GANG_SECONDS_MAX, Ranks
from lmtraining_trainer.supervisor.rounds import (
    Fault,
    fault_report,
    may_start_again,
    replaced_fault,
    wait_seconds,
)
from lmtraining_trainer.supervisor.trackers import Trackers
from lmtraining_trainer.supervisor.wake import Wake
from lmtraining_trainer.supervisor.wish_post import WishPost

WATCH_SECONDS_MAX = 1.0
ENDING_SECONDS = 1.0
"""How long a rank that answers, and does not wait, may take to end."""
#: recovery.graceSeconds at its largest.
STOP_SECONDS_MAX = 86_400.0
#: Of the grace; in the rest the ranks are killed and the record is written.
SAVING_SHARE_OF_GRACE = 0.9
#: Before the pods have agreed on one.
NO_ROUND = 0
#: A gang that saves and evaluates several times a second must not fill the log.
LOG_LINE_SECONDS_MIN = 1.0

logger = logging.getLogger(__name__)


class Supervisor:
    """One life. `report` may be called from any thread, all else from the main one."""

    def __init__(
        self, assignment: Assignment, *, observe: Callable[[Snapshot], None] = lambda _: None
    ) -> None:
        self.snapshot = _first_snapshot(assignment, now=time.monotonic())
        self._assignment = assignment
        self._observe = observe
        self._ranks = Ranks()
        self._wake = Wake()
        self._meeting = Meeting(
            assignment=assignment,
            turn=self._unless_stopped,
            waits=self._show_waiting,
            goes_by=self._show_gang,
        )
        self._looked_at_intent = 0.0
        self._memory = MemoryWatch.begun()
        self._fork_server: ForkServer | None = None
        self._faults: list[Fault] = []
        self._step = 0
        """Steps done, as the ranks of this pod have said."""
        self._made_a_step = False
        """Whether this round has come to one."""
        self._ask_peers_at = 0.0
        self._scratch = TemporaryDirectory(prefix="lmtraining-", ignore_cleanup_errors=True)
        self._hang_watch = HangWatch(assignment, Path(self._scratch.name))
        self._wish_post = WishPost(assignment, Path(self._scratch.name))
        self._stops_passed_on = 0
        self._patience_ends = float("inf")
        self._logged = (self.snapshot.report.state, float("-inf"))
        job = assignment.job
        self._history = History(
            Path(job.run_directory) if assignment.leads else None,
            job_uid=job.job_uid,
            job_name=job.job_name,
        )
        self._trackers = Trackers(job)

    def report(self) -> TrainerReport:
        """The report as of now."""
        return self.snapshot.rendered(
            time.monotonic(), datetime.now(UTC), signs=self._hang_watch.signs()
        )

    def run(self) -> ExitRecord:
        """Live; the record says how it ended."""
        with self._wake, self._scratch:
            try:
                end = self._live()
            except Exception as error:  # whatever it is, the pod leaves a record
                print_unless_known(error)
                end = end_of_supervisor(error, now=time.monotonic())
            finally:
                self._ranks.close()
            self._history.close()
            self._show(*_last_state(end))
        record = record_of(
            end,
            identity=self._assignment.identity,
            job=self._assignment.job,
            round_number=self.snapshot.report.round,
            time=datetime.now(UTC),
        )
        self._trackers.close(record)
        return with_last_words(record, self.snapshot.report) if self.snapshot.leads else record

    def _live(self) -> RankEnd | None:
        """From waiting to the decisive end; None: finished."""
        fork_server = self._fork_server = self._start_fork_server()
        self._read_last_exit()
        gang = self._first_round()
        if gang is None or not self._await_fork_server(fork_server):
            return stopped_before_start(now=time.monotonic())
        while True:
            end = self._explained(self._round(fork_server, gang))
            if end is None or end.outcome not in ("Failed", "Preempted"):
                return end
            next_gang = self._next_round(gang, end)
            if next_gang is None:
                return end
            gang = next_gang

    def _round(self, fork_server: ForkServer, gang: Gang) -> RankEnd | None:
        """From the start of the ranks to the decisive end; None: finished."""
        code = fork_server.exit_code
        if code is None:
            code = self._start_ranks(fork_server, gang)
        if code is not None:
            return end_of_fork_server(code, now=time.monotonic())
        if not self._watch(gang):
            return end_of_gang(now=time.monotonic())
        end = decisive(self._ranks.ends)
        if end is not None and end.reason == RANK_EXITED:  # so it looks without the fork server
            code = fork_server.await_end()
            return end if code is None else end_of_fork_server(code, now=time.monotonic())
        return end

    def _start_ranks(self, fork_server: ForkServer, gang: Gang) -> int | None:
        """Fork them all. The exit code of the fork server where it has ended meanwhile."""
        ranks_each = self._assignment.job.spec.workers.ranks_each
        plural = "s" if ranks_each > 1 else ""
        self._show("Starting", f"{ranks_each} rank{plural}, round {self.snapshot.report.round}")
        number = self.snapshot.report.round
        scratch = Path(self._scratch.name)
        tasks = [
            self._assignment.task(local, gang, round_number=number, scratch=scratch)
            for local in range(ranks_each)
        ]
        self._wish_post.pass_on(time.monotonic())  # known before the first step
        self._hang_watch.begin_round(task.place.rank for task in tasks)
        try:
            self._ranks.start(tasks, fork_server)
        except (EOFError, OSError):
            code = fork_server.await_end()
            if code is None:
                raise
            return code
        return None

    def _first_round(self) -> Gang | None:
        """The gang, once all of it agrees on a round; None when told to stop first."""
        met = self._meeting.next(past=0)
        if met is None and not self._wake.stops:
            raise TrainerError(
                FailureClass.PEER_LOST,
                "PeerLost",
                f"not all pods of the peer table answered within {NEW_POD_SECONDS_MAX:.0f} s",
            )
        if met is not None:
            gang, number = met
            self.snapshot = self.snapshot.in_round(number, gang.digest, None)
        return met[0] if met else None

    def _next_round(self, gang: Gang, end: RankEnd) -> Gang | None:
        """The gang of another round of the ranks, for which everything is ready then; None where
        there is to be none."""
        report, limits = self.snapshot.report, self._assignment.job.spec.stability
        was_replaced = end.reason == POD_REPLACED
        if not was_replaced:
            self._faults.append(Fault(end=end, step=self._step, made_a_step=self._made_a_step))
        may = was_replaced or may_start_again(self._faults, rounds_max=limits.rounds_max)
        # The kernel may hold a rank, which may still write (P1).
        if self._wake.stops or not may or not self._ranks.all_gone:
            return None
        fault = self._fault_elsewhere(gang, end, seen=fault_report(report, end))
        if not was_replaced:
            self.snapshot = self.snapshot.in_round(report.round, report.gang, fault)
        self._show("Starting", f"another round: {end.message}")
        met = self._meeting.next(past=report.round) if self._rested() else None
        if met is None:
            return None
        found, number = met
        if found.digest != gang.digest:
            self._faults = [known for known in self._faults if not known.is_of_peers]
            fault = replaced_fault(self.snapshot.report, end)
        self._ranks, self._patience_ends, self._stops_passed_on = Ranks(), float("inf"), 0
        self._made_a_step = False
        self.snapshot = self.snapshot.in_round(number, found.digest, fault)
        return found

    def _fault_elsewhere(self, gang: Gang, end: RankEnd, seen: FaultReport) -> FaultReport:
        """On the lead, which saw only the consequence: the cause, where another pod knows it."""
        if not self._assignment.leads or end.failure_class is not FailureClass.PEER_LOST:
            return seen
        found = self._meeting.cause_elsewhere(gang, number=self.snapshot.report.round)
        if found is None:
            return seen
        return found.model_copy(update={"step": seen.step, "has_stepped": seen.has_stepped})

    def _rested(self) -> bool:
        """On the lead: once the wait before another round is over. False when told to stop."""
        until = time.monotonic() + (wait_seconds(self._faults) if self._assignment.leads else 0.0)
        while (left := until - time.monotonic()) > 0:
            if not self._unless_stopped(min(left, WATCH_SECONDS_MAX)):
                return False
        return True

    def _unless_stopped(self, seconds: float) -> bool:
        self._turn(seconds)
        return not self._wake.stops

    def _show_waiting(self, message: str) -> None:
        if message != self.snapshot.report.message:
            self._show("Waiting", message)

    def _show_gang(self, gang: Gang) -> None:
        """The lead's table is that of its round, which it tells with the round."""
        if not self._assignment.leads:
            self.snapshot = self.snapshot.going_by(gang.digest)

    def _explained(self, end: RankEnd | None) -> RankEnd | None:
        """`end`, with what the kernel and this supervisor know of it."""
        grace = self._assignment.identity.grace_seconds
        if end is not None and end.outcome == "Ended" and self._wake.stops and grace is not None:
            newest = self.snapshot.report.checkpoint
            return out_of_grace(end, grace_seconds=grace, step=newest.step if newest else None)
        if end is None or end.signal != signal.SIGKILL or not self._memory.has_killed:
            return end
        return killed_for_memory(end, limit_bytes=self._memory.limit_bytes)

    def _start_fork_server(self) -> ForkServer:
        ranks = self._assignment.job.spec.workers.ranks_each
        function = self._assignment.rank_function
        wanted = rank_environment(cpus=cpu_limit(), ranks=ranks)
        if self._assignment.job.spec.workers.accelerator is not None:
            wanted |= flight_recorder_environment(Path(self._scratch.name))
        server = ForkServer(
            libraries=LIBRARIES if function == RANK_FUNCTION else (),
            rank_module=function.partition(":")[0],
            environment=with_defaults(os.environ, wanted),
        )
        server.start(on_ready=self._wake.ring)
        return server

    def _read_last_exit(self) -> None:
        job, identity = self._assignment.job, self._assignment.identity
        if self.snapshot.leads:
            found = last_exit(
                Path(job.run_directory), job_uid=job.job_uid, attempt=identity.attempt
            )
            self.snapshot = replace(self.snapshot, last_exit=found)
            self._history.read()

    def _await_fork_server(self, server: ForkServer) -> bool:
        """True once ranks can be forked or it has ended, False when told to stop first."""
        if not server.ready:
            self._show("Starting", "importing torch")
        while not self._wake.stops:
            if server.ready or server.exit_code is not None:
                return True
            if server.error is not None:
                raise server.error
            self._turn(INTENT_POLL_SECONDS)
        return False

    def _watch(self, gang: Gang) -> bool:
        """Until every rank has ended, by itself or because patience did; False: because another
        pod is in the place of one of theirs."""
        while not self._ranks.all_gone:
            self._pass_on_stops()
            self._wish_post.pass_on(time.monotonic())
            self._end_a_silent_rank()
            self._end_a_round_that_another_pod_left(gang)
            self._end_a_broken_gang()
            if not self._wake.stops and self._is_replaced(gang):
                self._ranks.close()
                return False
            left = self._patience_ends - time.monotonic()
            if left <= 0:
                break
            self._turn(min(left, WATCH_SECONDS_MAX, self._hang_watch.seconds_left()))
        self._ranks.close()
        return True

    def _is_replaced(self, gang: Gang) -> bool:
        """Whether the operator names other pods by now; looked up once in a while."""
        now = time.monotonic()
        if now - self._looked_at_intent < WATCH_SECONDS_MAX:
            return False
        self._looked_at_intent = now
        found = self._meeting.gang()
        return isinstance(found, Gang) and found.digest != gang.digest

    def _pass_on_stops(self) -> None:
        wake = self._wake
        if wake.stops == self._stops_passed_on:
            return
        self._stops_passed_on = wake.stops
        may_hurry = self._assignment.second_interrupt_kills
        impatient = may_hurry and wake.interrupts > 1
        hint = "; Ctrl-C again stops without it" if may_hurry and wake.interrupts == 1 else ""
        self._show("Stopping", f"told to stop: saving a checkpoint{hint}")
        self._ranks.stop()
        grace = self._assignment.identity.grace_seconds
        patience = STOP_SECONDS_MAX if grace is None else SAVING_SHARE_OF_GRACE * grace
        gone_by = time.monotonic() - wake.stopped_at  # the stacks of a hang may have come first
        self._hurry(0.0 if impatient else patience - gone_by)

    def _end_a_broken_gang(self) -> None:
        """The others cannot go on without the rank that failed; their words may name the cause."""
        failed = any(end.outcome == "Failed" for end in self._ranks.ends)
        if failed and self._patience_ends > time.monotonic() + FAILED_GANG_SECONDS_MAX:
            self._ranks.stop()
            self._hurry(FAILED_GANG_SECONDS_MAX)

    def _end_a_round_that_another_pod_left(self, gang: Gang) -> None:
        """A rank that ends before the ranks are connected breaks no connection, and one that is
        late may meet the lead of a later round: so pods are asked until there is a step."""
        now = time.monotonic()
        if self._made_a_step or now < self._ask_peers_at:
            return
        self._ask_peers_at = now + ASK_AGAIN_SECONDS_MAX
        why = self._meeting.left_elsewhere(gang, number=self.snapshot.report.round)
        if why is not None:
            for rank in self._ranks.processes:
                self._ranks.fail(end_of_peer(why, rank=rank, now=time.monotonic()))

    def _end_a_silent_rank(self) -> None:
        """Kill the one that the others wait for, with the stacks of all as evidence."""
        if self._patience_ends < float("inf"):
            return
        asked = self._ranks.processes
        look = self._hang_watch.look(asked, round_number=self.snapshot.report.round)
        if look is None:
            return
        # One whose peer was just killed, by another pod that saw the same silence, is about to end.
        self._turn(ENDING_SECONDS if look.evidence.stacks.keys() == asked.keys() else 0.0)
        end = self._hang_watch.verdict(look, self._ranks.processes)
        if end is not None:
            self._ranks.fail(end)

    def _hurry(self, seconds: float) -> None:
        self._patience_ends = min(self._patience_ends, time.monotonic() + seconds)

    def _turn(self, seconds: float) -> None:
        """Wait for something to happen, and take note of it."""
        updates = self._ranks.poll(seconds, wake=[self._wake.fileno()])
        self._wake.drain()
        for update in updates:
            step = update.fields.get("step")
            if update.state == "Training" and isinstance(step, int):
                self._step, self._made_a_step = step, True
            self.snapshot = heard(
                self.snapshot, update, voice=self._ranks.numbers[0], now=time.monotonic()
            )
            if update.rank == 0:
                self._history.hear(self.snapshot.report)
                if self._made_a_step:
                    self._trackers.start()
        if os.getpid() == 1:
            reap_orphans(spared=self._fork_server.process_id if self._fork_server else None)
        self._log_change_of_state()
        self._observe(self.snapshot)

    def _show(self, state: State, message: str) -> None:
        self.snapshot = self.snapshot.turned(state, time.monotonic(), message)
        self._logged = (state, time.monotonic())
        logger.info("%s: %s", state, message)
        self._observe(self.snapshot)

    def _log_change_of_state(self) -> None:
        state, logged_at = self._logged
        report, now = self.snapshot.report, time.monotonic()
        if report.state != state and now - logged_at >= LOG_LINE_SECONDS_MIN:
            self._logged = (report.state, now)
            step = f", step {report.step}" if self.snapshot.leads else ""
            logger.info("%s%s", report.state, step)


def _first_snapshot(assignment: Assignment, *, now: float) -> Snapshot:
    report = TrainerReport(
        job_uid=assignment.job.job_uid,
        attempt=assignment.identity.attempt,
        round=NO_ROUND,
        state="Waiting",
        report_time=datetime.now(UTC),
        total_steps=assignment.job.spec.training.planned_steps or 0,
    )
    return Snapshot(
        report=report,
        clock=StateClock(state="Waiting", since=now),
        leads=assignment.leads,
    )


def _last_state(end: RankEnd | None) -> tuple[State, str]:
    if end is None:
        return "Finished", "every rank has finished"
    return ("Stopping" if end.outcome == "Preempted" else "Failed"), end.message
