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
from lmtraining_trainer.report import Snapshot, StateClock, heard
from lmtraining_trainer.supervisor.assignment import RANK_FUNCTION, Assignment
from lmtraining_trainer.supervisor.environment import cpu_limit, rank_environment, with_defaults
from lmtraining_trainer.supervisor.exit_record import last_exit, record_of, with_last_words
from lmtraining_trainer.supervisor.failure import (
    RANK_EXITED,
    RankEnd,
    decisive,
    end_of_fork_server,
    end_of_peer,
    end_of_supervisor,
    killed_for_memory,
    print_unless_known,
    stopped_before_start,
)
from lmtraining_trainer.supervisor.fork_server import LIBRARIES, ForkServer
from lmtraining_trainer.supervisor.intent import Gang, gang_of
from lmtraining_trainer.supervisor.memory import MemoryWatch
from lmtraining_trainer.supervisor.orphans import reap_orphans
from lmtraining_trainer.supervisor.ranks import FAILED_GANG_SECONDS_MAX, Ranks
from lmtraining_trainer.supervisor.rounds import (
    ASK_AGAIN_SECONDS_MAX,
    ASK_PEERS_TIMES,
    FIRST_ROUND,
    Fault,
    await_newer_round,
    fault_of_peers,
    fault_report,
    may_start_again,
    round_of_lead,
    wait_seconds,
)
from lmtraining_trainer.supervisor.silence import (
    ENDING_SECONDS,
    WAITING_PATIENCE_SECONDS,
    Silence,
    culprit,
    end_of_silence,
    stacks,
    waits_for_others,
)
from lmtraining_trainer.supervisor.wake import Wake

INTENT_POLL_SECONDS = 0.1
WATCH_SECONDS_MAX = 1.0
#: recovery.graceSeconds at its largest; in a pod the kubelet ends the wait long before.
STOP_SECONDS_MAX = 86_400.0
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
        self._memory = MemoryWatch.begun()
        self._fork_server: ForkServer | None = None
        self._faults: list[Fault] = []
        self._step = 0
        """Steps done, as the ranks of this pod have said."""
        self._made_a_step = False
        """Whether this round has come to one."""
        self._silence = self._first_silence()
        self._ask_peers_at = 0.0
        self._scratch = TemporaryDirectory(prefix="lmtraining-", ignore_cleanup_errors=True)
        self._stacks = Path(self._scratch.name)
        self._stops_passed_on = 0
        self._patience_ends = float("inf")
        self._logged = (self.snapshot.report.state, float("-inf"))

    def report(self) -> TrainerReport:
        """The report as of now."""
        return self.snapshot.rendered(time.monotonic(), datetime.now(UTC))

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
            self._show(*_last_state(end))
        record = record_of(
            end,
            identity=self._assignment.identity,
            job=self._assignment.job,
            round_number=self.snapshot.report.round,
            time=datetime.now(UTC),
        )
        return with_last_words(record, self.snapshot.report) if self.snapshot.leads else record

    def _live(self) -> RankEnd | None:
        """From waiting to the decisive end; None: finished."""
        fork_server = self._fork_server = self._start_fork_server()
        self._read_last_exit()
        gang = self._await_gang()
        if gang is None or not self._await_fork_server(fork_server):
            return stopped_before_start(now=time.monotonic())
        while True:
            end = self._explained(self._round(fork_server, gang))
            if end is None or end.outcome != "Failed" or not self._next_round(gang, end):
                return end

    def _round(self, fork_server: ForkServer, gang: Gang) -> RankEnd | None:
        """From the start of the ranks to the decisive end; None: finished."""
        code = fork_server.exit_code
        if code is None:
            code = self._start_ranks(fork_server, gang)
        if code is not None:
            return end_of_fork_server(code, now=time.monotonic())
        self._watch(gang)
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
        tasks = [
            self._assignment.task(local, gang, round_number=number, stacks=self._stacks)
            for local in range(ranks_each)
        ]
        try:
            self._ranks.start(tasks, fork_server)
        except (EOFError, OSError):
            code = fork_server.await_end()
            if code is None:
                raise
            return code
        started = dict.fromkeys(self._ranks.numbers, time.monotonic())
        self.snapshot = replace(self.snapshot, heard=started)  # the age of a rank that never speaks
        return None

    def _next_round(self, gang: Gang, end: RankEnd) -> bool:
        """Whether the ranks are to be started once more; then everything is ready for it."""
        report, limits = self.snapshot.report, self._assignment.job.spec.stability
        self._faults.append(Fault(end=end, step=self._step, made_a_step=self._made_a_step))
        if self._wake.stops or not may_start_again(self._faults, rounds_max=limits.rounds_max):
            return False
        if not self._ranks.all_gone:  # the kernel holds one, which may still write (P1)
            return False
        fault = self._fault_elsewhere(gang, end, seen=fault_report(report, end))
        self.snapshot = self.snapshot.in_round(report.round, fault)
        self._show("Starting", f"another round: {end.message}")
        number = self._own_next_round() if self.snapshot.leads else self._leads_next_round(gang)
        if number is None:
            return False
        self._ranks, self._patience_ends, self._stops_passed_on = Ranks(), float("inf"), 0
        self._silence, self._made_a_step = self._first_silence(), False
        self.snapshot = self.snapshot.in_round(number, fault)
        return True

    def _fault_elsewhere(self, gang: Gang, end: RankEnd, seen: FaultReport) -> FaultReport:
        """On the lead, which saw only the consequence: the cause, where another pod knows it."""
        if not self.snapshot.leads or end.failure_class is not FailureClass.PEER_LOST:
            return seen
        found = self._fault_of_peers(gang, times=ASK_PEERS_TIMES)
        if found is None:
            return seen
        return found.model_copy(update={"step": seen.step, "has_stepped": seen.has_stepped})

    def _own_next_round(self) -> int | None:
        """On the lead: the next number, once the wait is over."""
        until = time.monotonic() + wait_seconds(self._faults)
        while (left := until - time.monotonic()) > 0:
            if self._wake.stops:
                return None
            self._turn(min(left, WATCH_SECONDS_MAX))
        return self.snapshot.report.round + 1

    def _leads_next_round(self, gang: Gang) -> int | None:
        job = self._assignment.job

        def turn(seconds: float) -> bool:
            self._turn(seconds)
            return not self._wake.stops

        return await_newer_round(
            lambda: round_of_lead(
                gang.lead_address,
                self._assignment.report_port,
                job_uid=job.job_uid,
                attempt=self._assignment.identity.attempt,
            ),
            than=self.snapshot.report.round,
            turn=turn,
        )

    def _explained(self, end: RankEnd | None) -> RankEnd | None:
        """`end`, with what the kernel knows of it."""
        if end is None or end.signal != signal.SIGKILL or not self._memory.has_killed:
            return end
        return killed_for_memory(end, limit_bytes=self._memory.limit_bytes)

    def _first_silence(self) -> Silence:
        limits = self._assignment.job.spec.stability
        return Silence(limit_min_seconds=limits.silence_seconds)

    def _start_fork_server(self) -> ForkServer:
        ranks = self._assignment.job.spec.workers.ranks_each
        function = self._assignment.rank_function
        wanted = rank_environment(cpus=cpu_limit(), ranks=ranks)
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

    def _await_gang(self) -> Gang | None:
        """The gang, or None when told to stop first; no limit here, since the operator has one."""
        while not self._wake.stops:
            verdict = gang_of(
                self._assignment.read_intent(),
                identity=self._assignment.identity,
                job=self._assignment.job,
            )
            if isinstance(verdict, Gang):
                return verdict
            if verdict.message != self.snapshot.report.message:
                self._show("Waiting", verdict.message)
            self._turn(INTENT_POLL_SECONDS)
        return None

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

    def _watch(self, gang: Gang) -> None:
        """Until every rank has ended, by itself or because patience did."""
        while not self._ranks.all_gone:
            self._pass_on_stops()
            self._end_a_silent_rank()
            self._end_a_round_that_another_pod_left(gang)
            self._end_a_broken_gang()
            left = self._patience_ends - time.monotonic()
            if left <= 0:
                break
            self._turn(min(left, WATCH_SECONDS_MAX))
        self._ranks.close()

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
        self._hurry(0.0 if impatient else STOP_SECONDS_MAX)

    def _end_a_broken_gang(self) -> None:
        """The others cannot go on without the rank that failed; their words may name the cause."""
        failed = any(end.outcome == "Failed" for end in self._ranks.ends)
        if failed and self._patience_ends > time.monotonic() + FAILED_GANG_SECONDS_MAX:
            self._ranks.stop()
            self._hurry(FAILED_GANG_SECONDS_MAX)

    def _end_a_round_that_another_pod_left(self, gang: Gang) -> None:
        """On the lead: a rank that ends before the ranks are connected breaks no connection here,
        so the other pods are asked until there is a step. One may have met the lead's rank of the
        round before, and lost it."""
        now = time.monotonic()
        if self._made_a_step or not self.snapshot.leads or now < self._ask_peers_at:
            return
        self._ask_peers_at = now + ASK_AGAIN_SECONDS_MAX
        fault = self._fault_of_peers(gang, times=1, consequences=True)
        if fault is not None:
            for rank in self._ranks.processes:
                self._ranks.fail(end_of_peer(fault.message, rank=rank, now=time.monotonic()))

    def _fault_of_peers(
        self, gang: Gang, *, times: int, consequences: bool = False
    ) -> FaultReport | None:
        return fault_of_peers(
            gang.other_addresses,
            self._assignment.report_port,
            job_uid=self._assignment.job.job_uid,
            attempt=self._assignment.identity.attempt,
            round_number=self.snapshot.report.round,
            times=times,
            consequences=consequences,
        )

    def _end_a_silent_rank(self) -> None:
        """Kill the one that the others wait for, with the stacks of all as evidence."""
        if self._patience_ends < float("inf"):
            return
        if not self._silent_ranks():
            return
        asked = self._ranks.processes
        found = stacks(self._stacks, asked)
        # One whose peer was just killed, by another pod that saw the same silence, is about to end.
        self._turn(ENDING_SECONDS if found.keys() == asked.keys() else 0.0)
        silent, now = self._silent_ranks(), time.monotonic()
        if not silent:
            return
        rank = culprit(silent, found)
        age, stack = now - self.snapshot.heard[rank], found.get(rank)
        has_other_pods = self._assignment.job.spec.workers.replicas > 1
        patience = 2 * self._silence.limit_seconds(rank) + WAITING_PATIENCE_SECONDS
        if has_other_pods and stack and waits_for_others(stack) and age < patience:
            return
        for number, text in sorted(found.items()):
            logger.error("stack of rank %d, newest call first:\n%s", number, text)
        self._ranks.fail(end_of_silence(rank, seconds=age, stack=stack, now=now))

    def _silent_ranks(self) -> list[int]:
        """The living ranks that have said nothing for too long, the longest first."""
        living = self._ranks.processes
        heard = {rank: at for rank, at in self.snapshot.heard.items() if rank in living}
        return self._silence.silent(heard, time.monotonic())

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
            self._silence = self._silence.after(update, self.snapshot.heard, time.monotonic())
            self.snapshot = heard(
                self.snapshot, update, voice=self._ranks.numbers[0], now=time.monotonic()
            )
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
        round=FIRST_ROUND,
        state="Waiting",
        report_time=datetime.now(UTC),
        total_steps=assignment.job.spec.training.budget.steps,
    )
    return Snapshot(
        report=report,
        clock=StateClock(state="Waiting", since=now),
        leads=assignment.identity.replica == 0,
    )


def _last_state(end: RankEnd | None) -> tuple[State, str]:
    if end is None:
        return "Finished", "every rank has finished"
    return ("Stopping" if end.outcome == "Preempted" else "Failed"), end.message
