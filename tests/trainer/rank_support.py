"""Gangs of real ranks for tests: small models, gloo on loopback, faults on demand.

Trap avoided: each rank is forked from a server that has torch imported, so a gang costs a fork and
not an import.
"""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partialmethod
from itertools import takewhile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import lmtraining_trainer.loop
import lmtraining_trainer.startup
from lmtraining_api import FailureClass, JobFile, State, TrainingSpec, Wishes
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.files import nothing
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank import run_rank
from lmtraining_trainer.rank_link import RankPlace, RankUpdate
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.step import Measured
from tests.trainer.injections import DATA_FAULTS, Injection, damaged, poisoned

GANG_SECONDS_MAX = 300.0
NO_SECRETS = Path("/nonexistent")

WORDS = ("the", "of", "by", "we", "they", "see", "hear", "find", "lose", "red", "blue", "cat")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and when. Ranks are keys, steps are values."""

    stop_at: Mapping[int, int] = field(default_factory=dict)
    """The rank is asked to stop once it has finished that step."""
    kill_at: Mapping[int, int] = field(default_factory=dict)
    """The rank is killed when it reports that step."""
    poison: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The rank's loss and gradients are NaN for the batches that begin at these positions."""
    inject: Mapping[int, tuple[Injection, ...]] = field(default_factory=dict)
    """Other faults of the rank."""
    slow: Mapping[int, float] = field(default_factory=dict)
    """Each forward pass of the rank takes so many seconds longer."""
    late: bool = False
    """No fault: every rank reads its verdicts late, as on a GPU."""
    world: Mapping[int, Callable[[], object]] = field(default_factory=dict)
    """What befalls the world when a rank reports that step: in its process, of which a test sees
    nothing where it is not this one."""
    wishes: Mapping[int, Wishes] = field(default_factory=dict)
    """No fault: what is wanted once the lead has finished that step, and is followed after the next
    one; in the order of the steps."""
    stop_when: Callable[[Mapping[str, Any]], bool] | None = None
    """The rank is asked to stop once its report is so."""
    saves_beside: bool = False
    """The training goes on while a checkpoint is written, as in earnest. Elsewhere it waits: steps
    are so short here that no test could know which checkpoints there are."""


@dataclass
class LocalLink:
    """A link that remembers what was said, and misbehaves as told."""

    rank: int = 0
    faults: Faults = field(default_factory=Faults)
    updates: list[RankUpdate] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    step: int = -1

    def say(self, state: State, **fields: object) -> None:
        self.updates.append(RankUpdate(rank=self.rank, state=state, fields=fields))
        step = fields.get("step")
        if isinstance(step, int) and state == "Training":
            self.step = step
            if self.faults.kill_at.get(self.rank) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            self.faults.world.get(step, nothing)()

    def enter(self, phase: Phase) -> None:
        self.phases.append(phase)

    def stop_requested(self) -> bool:
        if self.faults.stop_when is not None and self.faults.stop_when(self.report):
            return True
        return self.step >= self.faults.stop_at.get(self.rank, 1 << 60)

    def wishes(self) -> Wishes | None:
        said = [wish for step, wish in self.faults.wishes.items() if step <= max(self.step, 0)]
        return said[-1] if said else None

    @property
    def report(self) -> dict[str, Any]:
        """All fields said so far, the newest of each."""
        return {key: value for update in self.updates for key, value in update.fields.items()}

    def report_before(self, field: str, value: object) -> dict[str, Any]:
        """The same, as it was before `field` was said to be `value`."""
        before = takewhile(lambda update: update.fields.get(field) != value, self.updates)
        return {key: value for update in before for key, value in update.fields.items()}

    @property
    def states(self) -> list[str]:
        """The states in order, repetitions left out."""
        states = [update.state for update in self.updates]
        return [now for before, now in zip([None, *states], states, strict=False) if now != before]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one rank ended."""

    rank: int
    end: str
    """finished, preempted, error, or died."""
    reason: str = ""
    message: str = ""
    failure_class: FailureClass | None = None
    step: int | None = None
    link: LocalLink = field(default_factory=LocalLink)


def write_text(path: Path, documents: int = 60) -> str:
    """A jsonl file of made-up sentences; its URI."""
    generator = torch.Generator().manual_seed(7)
    lines = []
    for _ in range(documents):
        chosen = torch.randint(len(WORDS), (60,), generator=generator)
        lines.append(json.dumps({"text": " ".join(WORDS[int(index)] for index in chosen)}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path.as_uri()


def tiny_spec(uri: str, *, world_size: int = 1, **blocks: Mapping[str, Any]) -> TrainingSpec:
    """A job of a second or two. `blocks` are merged into the spec, camelCase."""
    spec: dict[str, Any] = {
        "model": {"config": {"layers": 2, "hiddenSize": 32, "heads": 2, "dropout": 0.1}},
        "data": {
            "train": [{"uri": uri, "format": "jsonl"}],
            "validationFraction": 0.1,
            "tokenizer": {"vocabSize": 270},
            "sequenceLength": 16,
        },
        "training": {
            "budget": {"steps": 12},
            "batchTokens": 128,
            "optimizer": {"learningRate": 3e-3},
            "evaluation": {"everySteps": 6, "sequences": 8},
        },
        "precision": {"compute": "fp32"},
        "workers": {"ranksPerReplica": world_size},
        "checkpoint": {"everySteps": 4},
    }
    for name, block in blocks.items():
        spec[name] = {**spec.get(name, {}), **block}
    return TrainingSpec.model_validate(spec)


def job_of(spec: TrainingSpec, directory: Path, *, uid: str = "uid-1") -> JobFile:
    """A job file whose run and cache lie in `directory`."""
    return JobFile(
        job_name="tiny",
        namespace="test",
        job_uid=uid,
        run_directory=str(directory / "run"),
        data_cache_directory=str(directory / "cache"),
        spec=spec,
    )


def place_of(
    rank: int = 0, world_size: int = 1, *, attempt: int = 1, round_: int = 1, port: int = 0
) -> RankPlace:
    """A place in a gang on this machine."""
    return RankPlace(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        replica=0,
        attempt=attempt,
        round=round_,
        lead_address="127.0.0.1",
        rendezvous_port=port,
    )


def run_alone(
    job: JobFile,
    *,
    faults: Faults | None = None,
    attempt: int = 1,
    round_: int = 1,
    credentials: Path = NO_SECRETS,
) -> Outcome:
    """One rank, in this process, so that a test may patch what it likes."""
    place = place_of(attempt=attempt, round_=round_)
    return _outcome_of(job, place, LocalLink(faults=faults or Faults()), credentials)


def run_gang(
    job: JobFile | Sequence[JobFile],
    world_size: int,
    *,
    faults: Faults | None = None,
    attempt: int = 1,
    round_: int = 1,
    credentials: Path = NO_SECRETS,
) -> list[Outcome]:
    """A gang of processes, to its end; outcomes in order of rank. Several job files: each rank has
    one of its own, with its own directories."""
    jobs = [job] * world_size if isinstance(job, JobFile) else job
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.rank_support"])
    port, ranks = free_port(), []
    for rank in range(world_size):
        place = place_of(rank, world_size, attempt=attempt, round_=round_, port=port)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_process,
            args=(jobs[rank], place, faults or Faults(), theirs, credentials),
            daemon=True,
        )
        process.start()
        theirs.close()
        ranks.append((process, ours))
    deadline = time.monotonic() + GANG_SECONDS_MAX
    try:
        return [_awaited(rank, pipe, deadline) for rank, (_, pipe) in enumerate(ranks)]
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exported(job: JobFile) -> dict[str, torch.Tensor]:
    """The weights of the exported model."""
    weights: dict[str, torch.Tensor] = load_file(
        Path(job.run_directory) / "export" / "model.safetensors"
    )
    return weights


def checkpoint_names(job: JobFile) -> list[str]:
    """What lies in the directory of checkpoints, hidden names too."""
    return sorted(path.name for path in (Path(job.run_directory) / "checkpoints").iterdir())


def assert_equal_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def _awaited(rank: int, pipe: Connection, deadline: float) -> Outcome:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        return Outcome(rank=rank, end="hung")
    try:
        outcome: Outcome = pipe.recv()
    except EOFError:
        return Outcome(rank=rank, end="died")
    return outcome


def _rank_process(
    job: JobFile, place: RankPlace, faults: Faults, pipe: Connection, credentials: Path
) -> None:
    pipe.send(_outcome_of(job, place, LocalLink(rank=place.rank, faults=faults), credentials))
    os._exit(0)  # as in earnest: a thread that still waits for a lost rank keeps no process


def _outcome_of(job: JobFile, place: RankPlace, link: LocalLink, credentials: Path) -> Outcome:
    faults = link.faults
    poison = (Injection(position=at, what="nan") for at in faults.poison.get(place.rank, ()))
    if place.rank in faults.slow:
        ModelLoss.forward = partialmethod(_slow_forward, faults.slow[place.rank])  # type: ignore[assignment]
    if faults.late:
        lmtraining_trainer.startup.reads_late = lambda *_: True
    _inject((*poison, *faults.inject.get(place.rank, ())))
    if not faults.saves_beside:
        Saver.save = _patient_save  # type: ignore[method-assign]
        Saver.poll = _patient_poll  # type: ignore[method-assign]
    try:
        # One thread: models this small gain nothing from a second, and on a busy machine the
        # barriers between two cost many times the work.
        torch.set_num_threads(1)
        run_rank(job, place, link, credentials_directory=credentials)
    except Preempted as error:
        return Outcome(rank=place.rank, end="preempted", step=error.step, link=link)
    except TrainerError as error:
        return Outcome(
            rank=place.rank,
            end="error",
            reason=error.reason,
            message=error.message,
            failure_class=error.failure_class,
            step=error.step,
            link=link,
        )
    finally:
        lmtraining_trainer.loop.forward_backward = _forward_backward
        lmtraining_trainer.loop.update = _update
        lmtraining_trainer.startup.reads_late = _reads_late
        BatchPlan.batch = _batch  # type: ignore[method-assign]
        ModelLoss.forward = _forward  # type: ignore[method-assign]
        Saver.save = _save  # type: ignore[method-assign]
        Saver.poll = _poll  # type: ignore[method-assign]
    return Outcome(rank=place.rank, end="finished", link=link)


def _patient_save(saver: Saver, trained: TrainState) -> None:
    _save(saver, trained)
    saver.settle_all()


def _patient_poll(saver: Saver, trained: TrainState) -> None:
    saver.settle()
    _poll(saver, trained)
    saver.settle()


def _slow_forward(model: ModelLoss, seconds: float, *tensors: torch.Tensor) -> torch.Tensor:
    time.sleep(seconds)
    return _forward(model, *tensors)


_forward = ModelLoss.forward
_save = Saver.save
_poll = Saver.poll
_forward_backward = lmtraining_trainer.loop.forward_backward
_update = lmtraining_trainer.loop.update
_reads_late = lmtraining_trainer.startup.reads_late
_batch = BatchPlan.batch


def _inject(injections: tuple[Injection, ...]) -> None:
    """Let the rank's batches go wrong as told."""
    if not injections:
        return
    position = -1
    computed: Counter[int] = Counter()
    optimizers: list[torch.optim.Optimizer] = []

    def batch(self: BatchPlan, at: int) -> Any:
        nonlocal position
        position = at
        read = _batch(self, at)
        for injection in injections:
            if injection.what in DATA_FAULTS and injection.position == at:
                read = poisoned(read, injection, int(self.data.train.max()) + 1)
        return read

    def forward_backward(model: Any, batch: Any, autocast: Any) -> Measured:
        measured = _forward_backward(model, batch, autocast)
        computed[position] += 1
        for injection in injections:
            if injection.position == position and computed[position] <= injection.times:
                optimizer = optimizers[0] if optimizers else None
                measured = damaged(model, optimizer, measured, injection)
        return measured

    def update(model: Any, optimizer: torch.optim.Optimizer, **how: Any) -> None:
        optimizers[:] = [optimizer]
        _update(model, optimizer, **how)

    BatchPlan.batch = batch  # type: ignore[method-assign]
    lmtraining_trainer.loop.forward_backward = forward_backward
    lmtraining_trainer.loop.update = update
