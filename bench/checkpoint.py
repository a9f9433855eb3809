"""What a checkpoint costs the training, beside the disk it is written to and read from.

    python -m bench.checkpoint

Promise: everything is set against something of the same run: the pause of the loop against a step;
steps beside the writer against steps without it, taking turns; the writer against `dd` of the same
bytes into the same directory; a restore against `dd` of the same files. The kernel's copies of what
is read are dropped first.
Trap avoided: a step that only touches the beginning or the end of a save; those that count lay
within it.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from bench.train_speed import batch_of, spec_of
from lmtraining_api import JobFile, State, Wishes
from lmtraining_api.job import Checkpoint
from lmtraining_trainer.checkpoint import (
    Contents,
    Snapshot,
    Writer,
    choose,
    published_whole,
    restore_state,
    tidy,
    write_checkpoint,
)
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.files import forget_copy, json_bytes, nothing, sha256_of_file
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank_link import RankPlace
from lmtraining_trainer.run import Run, claim_run, layout
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.step import forward_backward, update
from lmtraining_trainer.voice import Voice

CPU = torch.device("cpu")
KEEP = Checkpoint(keep_last=1, keep_best=0)
IDENTITY = {
    "shape": {},
    "optimizer": "adamw",
    "lora": None,
    "fingerprint": "-",
    "tokenizer_sha256": "-",
    "world_size": 1,
}
PLACE = RankPlace(
    rank=0,
    world_size=1,
    local_rank=0,
    replica=0,
    attempt=1,
    round=1,
    lead_address="127.0.0.1",
    rendezvous_port=0,
)


class Silence:
    """A link that nobody listens to."""

    def say(self, state: State, **fields: object) -> None:
        if fields.get("checkpoint_error"):
            raise SystemExit(f"{state}: {fields['checkpoint_error']}")

    def enter(self, phase: Phase) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def wishes(self) -> Wishes | None:
        return None


class Training:
    """A model in training, with a run directory to save it to."""

    def __init__(self, arguments: argparse.Namespace, directory: Path, gang: Gang) -> None:
        spec = spec_of(arguments)
        job = JobFile(
            job_name="bench",
            namespace="bench",
            job_uid="bench",
            run_directory=str(directory / "run"),
            data_cache_directory=str(directory / "cache"),
            spec=spec,
        )
        self.run: Run = claim_run(job, PLACE)
        model = build_model(spec)
        self.state = TrainState(
            model=model, optimizer=build_optimizer(model, spec.training.optimizer)
        )
        self._with_loss, self._batch = ModelLoss(model), batch_of(arguments)
        self.saver = Saver(
            gang=gang,
            voice=Voice(Silence()),
            run=self.run,
            writer=None,
            identity=IDENTITY,
            keep=KEEP,
        )

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        measured = forward_backward(self._with_loss, [self._batch], nullcontext)
        update(
            self.state.model,
            self.state.optimizer,
            learning_rate=1e-4,
            clip_norm=1.0,
            gradient_norm=measured.gradient_norm,
        )
        self.state.counters = replace(self.state.counters, step=self.state.counters.step + 1)
        return time.perf_counter() - began

    def pause(self) -> float:
        """Seconds for which the loop waits for the beginning of a save."""
        began = time.perf_counter()
        self.saver.save(self.state)
        return time.perf_counter() - began

    def steps_beside(self) -> Iterator[float]:
        """Steps for as long as the writer works, but the one in which it ends."""
        writer = self.saver.writer
        while writer is not None and writer.save is not None:
            seconds = self.step()
            if writer.save.written.done():
                self.saver.poll(self.state)
            else:
                yield seconds

    def write_now(self) -> tuple[float, Path]:
        """Seconds of a whole save at full speed, and where it is."""
        self.step()
        snapshot = Snapshot(
            step=self.state.counters.step,
            tensors={
                layout.MODEL: self.state.model_tensors(),
                layout.OPTIMIZER: self.state.optimizer_tensors(),
            },
            documents={
                layout.COUNTERS: json_bytes(self.state.counters.json()),
                layout.rng_name(0): b"{}",
            },
            identity=IDENTITY,
        )
        began = time.perf_counter()
        report = write_checkpoint(self.run, snapshot, Pace(1.0))
        seconds = time.perf_counter() - began
        tidy(self.run, KEEP)
        return seconds, self.run.directory / report.path


def beside_the_training(training: Training, arguments: argparse.Namespace) -> None:
    """How long the loop waits, and how much slower steps are while the writer works."""
    training.step()
    rows = []
    for share in arguments.shares:
        training.saver.writer = Writer(published_whole(training.run, KEEP), share=share)
        alone: list[float] = []
        beside: list[float] = []
        pauses: list[float] = []
        saves: list[float] = []
        for _ in range(arguments.saves):
            alone += [training.step() for _ in range(arguments.steps)]
            pauses.append(training.pause())
            began = time.perf_counter()
            beside += training.steps_beside()
            saves.append(time.perf_counter() - began)
        step = statistics.median(alone)
        rows.append(
            f"{share:>5.2f}  {step:>7.2f} s  {statistics.median(pauses):>7.3f} s "
            f"({statistics.median(pauses) / step:>4.0%})  {statistics.median(saves):>6.1f} s  "
            f"{_slower(alone, beside):>8}  {len(beside):>5}"
        )
    _print("share   a step     the loop waits    a save  steps are  of so many")
    for row in rows:
        _print(row)


def beside_the_disk(training: Training, arguments: argparse.Namespace, directory: Path) -> None:
    """The writer with nothing else to do, and a restore, each beside `dd`."""
    written, read_back, restored, dd_written, dd_read = [], [], [], [], []
    for _ in range(arguments.rounds):
        seconds, checkpoint = training.write_now()
        files = sorted(path for path in checkpoint.iterdir() if path.suffix == ".safetensors")
        reading = _timed(lambda paths=files: [sha256_of_file(path) for path in paths])
        written.append(seconds - reading)
        read_back.append(reading)
        dd_written.append(_dd_write(files, directory / "dd"))
        dd_read.append(_dd_read(files))
        restored.append(_timed(lambda: _restore(training)))
    size = sum(path.stat().st_size for path in files)
    _print(f"\n{size / 1e6:.0f} MB; medians of {arguments.rounds}, each beside its `dd`")
    for name, ours, theirs in (
        ("write, without reading back", written, dd_written),
        ("read back, in addition", read_back, dd_read),
        ("restore: verify and load", restored, dd_read),
    ):
        ratios = sorted(dd / own for own, dd in zip(ours, theirs, strict=True))
        _print(
            f"{name:<28} {size / statistics.median(ours) / 1e6:>6.0f} MB/s, "
            f"{statistics.median(ratios):.0%} of dd ({ratios[0]:.0%} to {ratios[-1]:.0%})"
        )


def _restore(training: Training) -> None:
    contents: Contents = {}
    chosen = choose(training.run, IDENTITY, nothing, contents, of_parts=list)
    if chosen is None:
        raise SystemExit("no checkpoint was found intact")
    restore_state(
        training.state,
        replace(chosen, world_size=0),  # the generators are of no interest
        rank=0,
        world_size=1,
        seed=1,
        alive=nothing,
        contents=contents,
    )


def _dd_write(files: list[Path], target: Path) -> float:
    """Seconds in which dd copies the files, from the kernel's memory to disk."""
    for path in files:
        path.read_bytes()
    seconds = 0.0
    for path in files:
        seconds += _timed(lambda path=path: _dd(path, target, "conv=fsync"))
        target.unlink()
    return seconds


def _dd_read(files: list[Path]) -> float:
    for path in files:
        with path.open("rb") as file:
            forget_copy(file.fileno())
    return _timed(lambda: [_dd(path, Path(os.devnull)) for path in files])


def _dd(source: Path, target: Path, *options: str) -> None:
    subprocess.run(
        ["dd", f"if={source}", f"of={target}", "bs=8M", "status=none", *options], check=True
    )


def _timed(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def _slower(alone: list[float], beside: list[float]) -> str:
    if not beside:
        return "none"
    return f"{statistics.median(beside) / statistics.median(alone) - 1:+.0%}"


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - its output


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (
        ("layers", 12),
        ("hidden-size", 768),
        ("heads", 12),
        ("vocab-size", 50304),
        ("sequence-length", 256),
        ("sequences", 2),
        ("threads", os.cpu_count() or 1),
        ("steps", 4),
        ("saves", 2),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--directory", type=Path, help="where to write; else the one for /tmp")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory) as name,
        Gang.meet("bench", PLACE, Voice(Silence())) as gang,
    ):
        gang.start_collectives(CPU)
        training = Training(arguments, Path(name), gang)
        beside_the_training(training, arguments)
        beside_the_disk(training, arguments, Path(name))


if __name__ == "__main__":
    main()
