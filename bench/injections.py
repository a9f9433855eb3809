"""What a fault in the training does to us, and to the Trainer of transformers.

    python -m bench.injections [--only nan]

Promise: the same model, weights, data, order, rate and fault in both, one after the other; the
settings of the Trainer are its defaults, except that it logs each step. The loss is that of the
same held-out text, beside that of the same trainer's run without a fault.
Trap avoided: a table of what should happen. Each line was run.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.injections_transformers import Told, train_with_transformers
from lmtraining_api import JobFile
from tests.trainer.injections import Injection
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    free_port,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

STEPS = 300
SEQUENCES = 8
RUN_SECONDS_MAX = 180.0
CLOSE = 0.02
"""The final loss may be so much worse than that of the run without a fault."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault, or a row of them."""

    name: str
    faults: tuple[Injection, ...] = ()
    ranks: int = 1
    rank: int = 0
    """The rank whose step goes wrong."""
    stop_at: int | None = None
    """Told to stop after that step, and started again."""
    kill_at: int | None = None
    """Killed at that step, and started again."""
    training: dict[str, Any] = field(default_factory=dict)
    must_stop: bool = False
    """The run cannot be saved, and is to say so."""
    is_mendable: bool = True
    """Whether another job is not the only help."""
    compared: bool = True
    """Whether the other trainer has what this is about."""


def at(step: int, what: Any, **how: Any) -> Injection:
    return Injection(position=step * SEQUENCES, what=what, **how)


def over(first: int, count: int, what: Any, *, every: int = 1) -> tuple[Injection, ...]:
    return tuple(at(step, what) for step in range(first, first + count * every, every))


CASES = (
    Case(name="no fault"),
    Case(name="no fault, two ranks", ranks=2),
    Case(name="one NaN batch", faults=(at(130, "nan"),)),
    Case(name="NaN in the first batch", faults=(at(0, "nan"),)),
    Case(name="NaN on one of two ranks", faults=(at(130, "nan"),), ranks=2, rank=1),
    Case(name="infinite gradient", faults=(at(130, "inf-gradient"),)),
    Case(name="loss of minus infinity", faults=(at(130, "minus-inf-loss"),)),
    Case(name="loss and gradients × 5", faults=(at(200, "spike", factor=5.0),)),
    Case(name="loss and gradients × 50", faults=(at(130, "spike", factor=50.0),)),
    Case(name="gradients × 10¹²", faults=(at(130, "huge-gradient"),)),
    Case(name="gradients of zero", faults=(at(130, "zero-gradient"),)),
    Case(name="a bit of a gradient flips, once", faults=(at(130, "gradient-bit", times=1),)),
    Case(name="NaN once, not when computed again", faults=(at(130, "nan", times=1),)),
    Case(
        name="the same at five batches",
        faults=tuple(at(step, "nan", times=1) for step in (100, 120, 140, 160, 180)),
        must_stop=True,
    ),
    Case(name="a bit of a weight flips on one of two ranks",
         faults=(at(134, "bit-flip", times=1),), ranks=2, rank=1),
    Case(name="NaN in a weight", faults=(at(134, "nan-weight", times=1),)),
    Case(name="NaN in a moment of Adam", faults=(at(134, "nan-moment", times=1),)),
    Case(name="moments of Adam × 10⁴", faults=(at(134, "huge-moment", factor=1e4, times=1),)),
    Case(name="ten NaN batches in a row", faults=over(133, 10, "nan")),
    Case(name="every other batch NaN, ten times", faults=over(130, 10, "nan", every=2)),
    Case(name="NaN without end", faults=over(133, 400, "nan"), must_stop=True),
    Case(name="labels at random, 12 batches", faults=over(200, 12, "random-labels")),
    Case(name="tokens at random, 12 batches", faults=over(200, 12, "random-tokens")),
    Case(name="one token again and again, 12 batches", faults=over(200, 12, "one-token")),
    Case(name="gradients turned round, 25 batches", faults=over(200, 25, "reversed-gradient")),
    Case(name="learning rate × 500",
         training={"optimizer": {"learningRate": 1.5}, "schedule": {"warmupFraction": 0.5}},
        is_mendable=False),
    Case(name="spike right after a resume", faults=(at(130, "spike", factor=50.0),), stop_at=130),
    Case(name="killed soon after a rewind", faults=over(133, 10, "nan"), kill_at=136,
         compared=False),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    end: str
    loss: float | None
    remedies: tuple[tuple[str, int, str], ...] = ()
    told: Told | None = None


def job_in(directory: Path, case: Case) -> JobFile:
    """A job whose run lies in `directory`; text and prepared data are those of all cases."""
    text = directory.parent / "text.jsonl"
    spec = tiny_spec(
        text.as_uri() if text.exists() else write_text(text, documents=400),
        world_size=case.ranks,
        model={"config": {"layers": 2, "hiddenSize": 32, "heads": 2, "dropout": 0.0}},
        training={
            "budget": {"steps": STEPS},
            "batchTokens": SEQUENCES * 16,
            "optimizer": {"learningRate": 3e-3},
            "evaluation": {"everySteps": 100, "sequences": 64},
            **case.training,
        },
        checkpoint={"everySteps": 20},
        stability={"healthySteps": 20},
    )
    shared = str(directory.parent / "cache")
    return job_of(spec, directory).model_copy(update={"data_cache_directory": shared})


def ours(case: Case, directory: Path) -> Result:
    """The case in our trainer, started again after a stop or a kill."""
    job = job_in(directory, case)
    stop = {0: case.stop_at} if case.stop_at is not None else {}
    kill = {0: case.kill_at} if case.kill_at is not None else {}
    inject = {case.rank: case.faults}
    outcome = _attempt(job, case, Faults(inject=inject, stop_at=stop, kill_at=kill), 1)
    if outcome.end in {"preempted", "died"}:
        outcome = _attempt(job, case, Faults(inject=inject), 2)
    lines = (directory / "run" / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return Result(
        end=outcome.end if outcome.end != "error" else f"{outcome.failure_class}",
        loss=outcome.link.report.get("validation_loss") if outcome.end == "finished" else None,
        remedies=tuple(
            (entry["kind"], entry["step"], entry["detail"]["fault"])
            for entry in entries
            if entry["kind"] in {"Skipped", "Rewound", "Rerun"}
        ),
    )


def _attempt(job: JobFile, case: Case, faults: Faults, attempt: int) -> Outcome:
    if case.ranks == 1 and not faults.kill_at:
        return run_alone(job, faults=faults, attempt=attempt)
    return run_gang(job, case.ranks, faults=faults, attempt=attempt)[0]


def theirs(case: Case, directory: Path) -> Result:
    """The case in the Trainer of transformers, in processes of its own."""
    job = job_in(directory, case)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.injections_transformers"])
    port, children = free_port(), []
    for rank in range(case.ranks):
        mine, other = context.Pipe(duplex=False)
        place = {"rank": rank, "port": port, "directory": directory, "pipe": other}
        child = context.Process(target=_child, args=(job, case), kwargs=place, daemon=True)
        child.start()
        other.close()
        children.append((child, mine))
    told: Told | None = None
    child, pipe = children[0]
    try:
        if pipe.poll(RUN_SECONDS_MAX):
            told = pipe.recv()
    except EOFError:
        pass
    for each, _ in children:
        each.join(RUN_SECONDS_MAX)
        each.kill()
    return Result(
        end=f"exit code {child.exitcode}", loss=told.validation_loss if told else None, told=told
    )


def _child(
    job: JobFile, case: Case, *, rank: int, port: int, directory: Path, pipe: Connection
) -> None:
    with (directory / f"log-{rank}").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    if case.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
    injections = case.faults if rank == case.rank else ()
    told = train_with_transformers(
        job, injections, ranks=case.ranks, directory=directory, stop_at=case.stop_at
    )
    pipe.send(told)


def row(case: Case, own: Result, other: Result | None, clean: float, clean_other: float) -> str:
    """One line of the table."""
    first = min((fault.position // SEQUENCES for fault in case.faults), default=0)
    found = str(own.remedies[0][1] - first) if own.remedies and case.faults else "–"
    counts: dict[str, int] = {}
    for kind, _, fault in own.remedies:
        counts[f"{kind} {fault}"] = counts.get(f"{kind} {fault}", 0) + 1
    done = ", ".join(f"{number} × {what}" for what, number in counts.items()) or "–"
    cells = [case.name, found, done, f"{own.end}, {_beside(own.loss, clean)}"]
    if other is None:
        return f"| {' | '.join([*cells, '–', '–'])} |"
    told = other.told
    wrong = f"{told.wrong_losses} of {told.losses}" if told and case.ranks == 1 else "–"
    cells += [f"{other.end}, {_beside(other.loss, clean_other)}", wrong]
    return f"| {' | '.join(cells)} |"


def _beside(loss: float | None, clean: float) -> str:
    if loss is None:
        return "no model"
    if not math.isfinite(loss):
        return "NaN"
    times = loss / clean
    if times > 10.0:
        return f"{times:,.0f} times"
    return f"{round(times - 1.0, 3) + 0.0:+.1%}"  # + 0.0: no minus before a zero


def is_kept(case: Case, own: Result, clean: float) -> bool:
    """Whether our run ended as it must."""
    if not case.is_mendable:
        return own.end not in {"died", "hung"}
    if case.must_stop:
        return own.end not in {"finished", "died", "hung"}
    return own.end == "finished" and own.loss is not None and own.loss <= clean * (1 + CLOSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the cases")
    only = parser.parse_args().only
    say = partial(print, flush=True)
    say("| Fault | Steps until found | Remedies | We end | Trainer ends | It told wrong losses |")
    say("|---|---|---|---|---|---|")
    broken, clean, clean_other = [], math.nan, math.nan
    with tempfile.TemporaryDirectory() as base:
        for number, case in enumerate(CASES):
            if (case.faults or case.training) and only not in case.name:
                continue
            directory = Path(base) / f"case-{number}"
            own = ours(case, directory)  # prepares the data for both
            other = theirs(case, directory) if case.compared else None
            if case is CASES[0] and own.loss and other and other.loss:
                clean, clean_other = own.loss, other.loss
            say(row(case, own, other, clean, clean_other))
            broken += [] if is_kept(case, own, clean) else [case.name]
    if broken:
        sys.exit(f"not within {CLOSE:.0%} of the run without a fault: {', '.join(broken)}")


if __name__ == "__main__":
    main()
