"""The operator against a hostile world, from one seed each: pods die, the operator dies between any
two writes, creations are refused, the API server fails, a person suspends and resumes.

Whatever happens, P1 (never two live gangs, nor two pods of one replica), the attempt is in status
before its pods, P2 (the end stays), P12 (it gets there), nothing is made twice, and the pod that
failed last is there with its log, unless somebody took it away. Lost pods are replaced alone while
one that has trained is left.
"""

import copy
import random
from collections import Counter
from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.exits import FailureClass
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.reconcile import AGAIN_SECONDS, JobReconciler
from tests.unit.operator_world import CrashError, World, job_body

pytestmark = pytest.mark.unit

SEEDS = 60
HOSTILE_TURNS = 60
CALM_TURNS_MAX = 400
PASSES_TO_REST_MAX = 6
RETRYABLE = [FailureClass.CRASH, FailureClass.HANG, FailureClass.OUT_OF_MEMORY]


class Simulation:
    """One life of a job, all of it from one seed."""

    def __init__(self, seed: int, *, stale_reads: bool) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.stale_reads = stale_reads
        replicas = self.random.choice([1, 2, 3])
        self.world.add(job_body(workers__replicas=replicas, training__batchTokens=64 * replicas))
        self.operator: JobReconciler = self.world.operator()
        self.vanished: Counter[str] = Counter()
        self.snapshots = [copy.deepcopy(self.world.objects)]
        self.suspensions = 0

    async def run(self) -> None:
        for _ in range(HOSTILE_TURNS):
            await self.turn(hostile=True)
        self.world.forbid.clear()
        if self.world.job["spec"].get("suspend"):
            self.world.edit(suspend=False)
        for _ in range(CALM_TURNS_MAX):
            await self.turn(hostile=False)
            if self.world.status.is_terminal and not self.world.live_pods:
                break
        self.check_end()

    async def turn(self, *, hostile: bool) -> None:
        self.world.pass_time(self.random.choice([0.1, 1.0, 2.0, 5.0]))
        if hostile:
            self.misfortune()
        self.kubelet()
        self.world.train(self.random.randint(0, 3))
        await self.operate(hostile=hostile)
        self.check()
        self.snapshots = [*self.snapshots[-5:], copy.deepcopy(self.world.objects)]

    async def operate(self, *, hostile: bool) -> None:
        """A pass of the operator, which may die on the way, or see what was."""
        world = self.world
        if hostile and self.random.random() < 0.4:
            world.crash_at_write = self.random.randint(1, 6)
            world.crash_after = self.random.random() < 0.5
        if hostile and self.stale_reads and self.random.random() < 0.3:
            world.stale = self.random.choice(self.snapshots)
        try:
            await self.operator.pull_report()
            await self.random.choice([self.operator.look, self.operator.after_report])()
        except CrashError:
            self.operator = world.operator()
        except ApiError as error:
            assert error.code in (0, 409, 500)
        finally:
            world.crash_at_write = world.stale = world.fail_next = None
            world.lose_next_answer = False
        if self.random.random() < 0.2:
            await self.settle()

    async def settle(self) -> None:
        """In a world that stands still the operator comes to rest."""
        for _ in range(PASSES_TO_REST_MAX):
            outcome = await self.operator.look()
            if outcome.is_done or outcome.look_seconds > AGAIN_SECONDS:
                return
        raise AssertionError(f"looks again every {outcome.look_seconds} s at nothing new")

    def kubelet(self) -> None:
        for pod in self.world.pods:
            deleting = "deletionTimestamp" in pod["metadata"]
            phase = pod["status"]["phase"]
            if deleting and self.random.random() < 0.5:
                self.world.remove(pod)
            elif not self.has_just_ended(pod) or self.random.random() < 0.5:
                self.world.settle_pod(pod)
            if phase == "Pending" and not deleting and self.random.random() < 0.6:
                self.world.start_pod(pod)

    def has_just_ended(self, pod: Any) -> bool:
        ended = self.world.exit_of(pod)
        return ended is not None and ended["finishedAt"] == self.world.now.isoformat()

    def misfortune(self) -> None:
        choices: list[Any] = [None, self.kill, self.vanish, self.drain, self.tidy, self.refuse]
        choices += [self.api_fails, self.lose_answer, self.toggle_suspend, None, None]
        chosen = self.random.choice(choices)
        if chosen is not None:
            chosen()

    def _any_running(self) -> Any:
        running = [
            pod
            for pod in self.world.live_pods
            if pod["status"]["phase"] == "Running" and self.world.exit_of(pod) is None
        ]
        return self.random.choice(running) if running else None

    def kill(self) -> None:
        """A pod fails; its peers notice, sooner or later."""
        pod = self._any_running()
        if pod is None:
            return
        attempt = pod["metadata"]["labels"][api.LABEL_ATTEMPT]
        at_once = self.random.random() < 0.5
        self.world.fail_pod(pod, self.random.choice(RETRYABLE), at_once=at_once)
        for peer in self.world.live_pods:
            same_gang = peer["metadata"]["labels"][api.LABEL_ATTEMPT] == attempt
            if same_gang and self.world.is_armed(peer) and self.random.random() < 0.5:
                self.world.fail_pod(peer, FailureClass.PEER_LOST)

    def vanish(self) -> None:
        """Somebody force-deletes a pod."""
        pod = self._any_running()
        if pod is not None:
            self.vanished[f"Pod/{pod['metadata']['name']}"] += 1
            self.world.remove(pod)

    def tidy(self) -> None:
        """Somebody deletes a pod that has ended."""
        ended = [pod for pod in self.world.pods if pod not in self.world.live_pods]
        if ended:
            pod = self.random.choice(ended)
            self.vanished[f"Pod/{pod['metadata']['name']}"] += 1
            self.world.remove(pod)

    def drain(self) -> None:
        """An eviction: the pod is told to stop, and is gone some time later."""
        pod = self._any_running()
        if pod is not None:
            self.vanished[f"Pod/{pod['metadata']['name']}"] += 1
            pod["status"]["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            ]
            pod["metadata"].setdefault("deletionTimestamp", self.world.now.isoformat())

    def refuse(self) -> None:
        if self.world.forbid:
            self.world.forbid.clear()
        else:
            kind = self.random.choice(["Pod", "ConfigMap", "Event", "PersistentVolumeClaim"])
            self.world.forbid[kind] = "exceeded quota: team"

    def api_fails(self) -> None:
        self.world.fail_next = ApiError(500, "InternalError", "etcd is away")

    def lose_answer(self) -> None:
        self.world.lose_next_answer = True

    def toggle_suspend(self) -> None:
        self.world.edit(suspend=not self.world.job["spec"].get("suspend", False))

    # --- what must hold ---------------------------------------------------------------------

    def check(self) -> None:
        world = self.world
        attempts = {self._attempt(pod) for pod in world.live_pods}
        armed = {self._attempt(pod) for pod in world.live_pods if world.is_armed(pod)}
        assert len(armed) <= 1, "P1: two gangs that can both write"
        if not self.stale_reads:
            replicas = Counter(self._replica(pod) for pod in world.live_pods)
            assert max(replicas.values(), default=0) <= 1, "P1: two pods of one replica"
            assert len(attempts) <= 1, "P1: pods of two attempts"
        assert all(attempt <= world.status.attempt for attempt in attempts), "attempt before pods"
        if not self.stale_reads:  # one who sees an old moment may take its pods for lingering
            self.check_logs()
        written = [status.attempt for status in world.status_writes]
        assert written == sorted(written), "the attempt never goes back"
        ended = [status for status in world.status_writes if status.is_terminal]
        assert len(ended) <= 1, "P2: the end is said once and stays"
        if not self.stale_reads:
            for name, count in Counter(world.creates).items():
                # A pod that somebody took before the gang was complete is made again.
                assert count <= 1 + self.vanished[name], f"{name} was made {count} times"

    def check_logs(self) -> None:
        """The pod that failed last is there, unless it was taken away; those before it are not."""
        status, failure = self.world.status, self.world.status.last_failure
        if failure is None:
            return
        if failure.exit_code is not None:
            is_there = ("Pod", failure.pod) in self.world.objects
            assert is_there or self.vanished[f"Pod/{failure.pod}"], f"the log of {failure.pod}"
        if status.attempt > failure.attempt:
            kept = {self._attempt(pod) for pod in self.world.pods}
            assert kept <= {failure.attempt, status.attempt}, "pods of older failures"

    def check_end(self) -> None:
        world = self.world
        assert world.reason() == "Completed", world.message()
        assert world.finished, "P4: Completed only when the run is finished"
        assert not world.live_pods
        assert world.status.artifacts.export.endswith("/export")
        status = world.status
        assert status.restarts.total <= status.attempt - 1 + len(self.replacements)
        assert sum(status.restarts.by_reason.values()) == status.restarts.total

    @property
    def replacements(self) -> set[str]:
        """The pods that were named in the place of a lost one."""
        failures = [status.last_failure for status in self.world.status_writes]
        return {failure.replaced_by for failure in failures if failure and failure.replaced_by}

    @property
    def made(self) -> set[str]:
        """The pods that were made."""
        return {name.removeprefix("Pod/") for name in self.world.creates}

    @staticmethod
    def _replica(pod: Any) -> int:
        return int(pod["metadata"]["labels"][api.LABEL_REPLICA])

    @staticmethod
    def _attempt(pod: Any) -> int:
        return int(pod["metadata"]["labels"][api.LABEL_ATTEMPT])


@pytest.mark.parametrize("stale_reads", [False, True], ids=["fresh", "stale"])
@pytest.mark.parametrize("block", range(4))
async def test_any_life_reaches_the_end(block: int, stale_reads: bool) -> None:
    """P1, P2, P4, P12, over many seeds; a failure names its own."""
    replaced = 0
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        simulation = Simulation(seed, stale_reads=stale_reads)
        try:
            await simulation.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        replaced += len(simulation.replacements & simulation.made)
    assert replaced > 0, "lives without a replaced pod prove nothing about them"
