"""Rank functions that do one thing each, named by import path since they run in other processes.

What a test and its ranks have to tell each other, they leave as files in the run directory.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.rank_link import RankLink, RankPlace

POLL_SECONDS = 0.01
LIFE_SECONDS_MAX = 60.0
PEER_LOST = "peer-lost"
"""Once it is in the run directory, connections to a rank are as broken."""
SECRET = "once upon a time in the training data"


def finishes(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """A whole life in a few words."""
    total = job.spec.training.budget.steps
    link.say("Preparing", message="tokenised 1 of 1 MB")
    for step in range(1, total + 1):
        link.say("Training", step=step, total_steps=total, loss=5.0 / step, tokens=step * 8)
    link.say("Finished", export_path="export")


def counts_its_steps(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """A training as its history shows it: what a step costs, and every tenth one validated."""
    for step in range(1, (job.spec.training.budget.steps or 1) + 1):
        link.say("Training", step=step, step_time=datetime.now(UTC), loss=10.0 / step)
        if step % 10 == 0:
            link.say("Evaluating", validation_loss=5.0 / step, validation_step=step)
    link.say("Finished")


def trains_until_stopped(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Trains on, and saves when asked to stop."""
    _note(job, place)
    step = 0
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while time.monotonic() < deadline:
        step += 1
        link.say("Training", step=step, loss=2.0)
        if link.stop_requested():
            link.say("Checkpointing")
            raise Preempted(step)
        time.sleep(POLL_SECONDS)


def says_what_is_wanted(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Reports the budget that it was told of, as if it had followed."""
    _note(job, place)
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while not link.stop_requested() and time.monotonic() < deadline:
        wishes = link.wishes()
        told = {} if wishes is None else {"total_steps": wishes.budget_steps}
        link.say("Training", step=1, **told)
        time.sleep(POLL_SECONDS)
    raise Preempted(1)


def ignores_the_stop(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Never saves, but leaves a file once it was asked to."""
    _note(job, place)
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while time.monotonic() < deadline:
        link.say("Training", step=1)
        if link.stop_requested():
            (Path(job.run_directory) / "asked-to-stop").touch()
        time.sleep(POLL_SECONDS)


def says_nan(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Says what JSON cannot hold, and what no report knows."""
    link.say("Training", loss=float("nan"), gradient_norm=float("inf"), step=3, colour="blue")
    trains = link.stop_requested
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while not trains() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    raise Preempted(3)


def raises(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Rank 1 raises an error whose text quotes data; the others wait for it in vain."""
    _raise_on_rank_1(job, place, link, ValueError(SECRET))


def raises_alone(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """The only rank raises."""
    raise ValueError(SECRET)


def raises_out_of_memory(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Rank 1 runs out of memory."""
    _raise_on_rank_1(job, place, link, MemoryError(SECRET))


def eats(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Takes more memory than any test allows; rank 1 waits for it in vain."""
    _note(job, place)
    link.say("Training", step=1)
    eaten = []
    while place.rank == 0:
        eaten.append(b"x" * 2**20)
    ignores_the_stop(job, place, link)


def diverges(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Rank 1 knows what is wrong."""
    error = TrainerError(
        FailureClass.DIVERGED, "TooManySkippedSteps", "11 steps were skipped", step=17
    )
    _raise_on_rank_1(job, place, link, error)


def loses_its_peer(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Rank 0 hears first that rank 1 is gone, and says so before rank 1 does."""
    _note(job, place)
    told = Path(job.run_directory) / "rank-0-told"
    if place.rank == 0:
        told.touch()
        raise TrainerError(FailureClass.PEER_LOST, "PeerLost", "rank 0 lost a peer")
    while not (told.exists() and link.stop_requested()):
        time.sleep(POLL_SECONDS)
    raise ValueError(SECRET)


def hears_of_a_lost_peer(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Trains until a collective would break."""
    _note(job, place)
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while time.monotonic() < deadline:
        link.say("Training", step=1)
        if (Path(job.run_directory) / PEER_LOST).exists():
            raise TrainerError(FailureClass.PEER_LOST, "PeerLost", f"rank {place.rank} lost a peer")
        time.sleep(POLL_SECONDS)


def misses_its_lead(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """In round 1, rank 1 meets a lead that is about to end, and rank 0 waits for it in vain."""
    if place.round > 1:
        trains_until_stopped(job, place, link)
    if place.rank == 1:
        raise TrainerError(FailureClass.PEER_LOST, "PeerLost", "rank 1 lost a peer")
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while time.monotonic() < deadline:
        link.say("Starting")
        time.sleep(POLL_SECONDS)


def leaves_an_orphan(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """A grandchild outlives its parent, and ends when the run directory says so."""
    directory = Path(job.run_directory)
    directory.mkdir(parents=True, exist_ok=True)
    if os.fork() == 0:
        if os.fork() == 0:
            (directory / "orphan").write_text(str(os.getpid()))
        os._exit(0)
    os.wait()
    trains_until_stopped(job, place, link)


def leaves_without_a_word(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """Looks like success to anyone who believes exit codes."""
    os._exit(0)


def _raise_on_rank_1(job: JobFile, place: RankPlace, link: RankLink, error: Exception) -> None:
    _note(job, place)
    if place.rank == 1:
        raise error
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while time.monotonic() < deadline:  # as a collective would: deaf to SIGTERM
        link.say("Training", step=1)
        time.sleep(POLL_SECONDS)


def _note(job: JobFile, place: RankPlace) -> None:
    """Leave the process id where the test finds it."""
    directory = Path(job.run_directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".pid-{place.rank}"
    temporary.write_text(str(os.getpid()))
    temporary.rename(directory / f"pid-{place.rank}")
