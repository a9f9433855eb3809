"""How long a killed rank keeps training from its next step.

    python -m bench.recovery --kills 20

Promise: a real SIGKILL of a rank of `lmtraining run`; from the kill to the end of the first step of
the next round. The time to load the checkpoint is shown apart.
Trap avoided: figures of a start that was not warm; the libraries are imported before the first
kill.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from lmtraining_api import TrainerReport

STEPS_BETWEEN_KILLS = 20
WAIT_SECONDS_MAX = 120.0
POLL_SECONDS = 0.01
MODEL = {"layers": 4, "hiddenSize": 128, "heads": 4}


class Run:
    """`lmtraining run` with two ranks."""

    def __init__(self, directory: Path, kills: int) -> None:
        self.port = _free_port()
        text = directory / "text"
        text.mkdir()
        for number in range(40):
            lines = (f"line {line} of file {number}: {line * number % 97}" for line in range(400))
            (text / f"{number}.txt").write_text("\n".join(lines))
        job = {
            "apiVersion": "lmtraining.dev/v1alpha1",
            "kind": "LMTrainingJob",
            "metadata": {"name": "recovery"},
            "spec": {
                "model": {"config": MODEL},
                "data": {
                    "train": [{"uri": f"file://{text}/*.txt"}],
                    "tokenizer": {"vocabSize": 512},
                    "sequenceLength": 64,
                },
                "training": {"budget": {"steps": 10_000_000}, "batchTokens": 512},
                "precision": {"compute": "fp32"},
                "workers": {"ranksPerReplica": 2},
                "checkpoint": {"everySteps": 10},
                "stability": {"roundsMax": kills + 1},
            },
        }
        path = directory / "job.json"  # JSON is YAML
        path.write_text(json.dumps(job))
        command = ["run", str(path), "--runs", str(directory), "--report-port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmtraining_trainer", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_a_rank(self) -> tuple[float, float]:
        """Seconds to the end of the next step, and those of loading."""
        before = _until(lambda: self._after_steps(STEPS_BETWEEN_KILLS))
        _kill(_grandchildren(self.process.pid)[-1])
        killed = time.time()
        after = _until(lambda: self._in_round(before.round + 1))
        assert after.first_step_time is not None
        return after.first_step_time.timestamp() - killed, after.load_seconds or 0.0

    def _report(self) -> TrainerReport | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/report", timeout=5) as reply:
                return TrainerReport.model_validate_json(reply.read())
        except OSError:
            return None

    def _after_steps(self, steps: int) -> TrainerReport | None:
        report = self._report()
        if report is None or report.first_step_time is None:
            return None
        return report if report.step - (report.resumed_from_step or 0) >= steps else None

    def _in_round(self, number: int) -> TrainerReport | None:
        report = self._report()
        is_there = report is not None and report.round == number
        return report if is_there and report and report.first_step_time is not None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory), kills)
        try:
            found = [run.kill_a_rank() for _ in range(kills)]
        finally:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
    without_load = sorted(total - load for total, load in found)
    p95 = without_load[min(kills - 1, round(0.95 * kills))]
    load = statistics.median(load for _, load in found)
    print(  # noqa: T201
        f"kill to the end of the next step, {kills} times: median "
        f"{statistics.median(without_load):.2f} s, p95 {p95:.2f} s; to load, apart: {load:.2f} s"
    )


def _until(look: Any) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"not within {WAIT_SECONDS_MAX:.0f} s")


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _grandchildren(pid: int) -> list[int]:
    return [grandchild for child in _children(pid) for grandchild in _children(child)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
