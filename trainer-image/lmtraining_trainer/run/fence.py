"""The fence: of two gangs that both believe the run is theirs, the newer one is right.

Promise: a gang that has been replaced publishes nothing more (P1). Each gang leaves a file in
`fence/` whose name says which it is; the newest name is looked up before every journal entry and
directly before the rename of every checkpoint and export.
Trap avoided: one file that all gangs write goes backwards, where an older gang reads it, is held up
and then writes; names are only added. And a pod on an unreachable node trains on for minutes after
its successor started.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import sync_directory

FENCE = "fence"


@dataclass(frozen=True, kw_only=True, order=True)
class Mark:
    """One gang's name in `fence/`; the newest is the greatest."""

    owner: int
    """How many jobs had the run before."""
    attempt: int
    round: int
    job_uid: str

    @property
    def name(self) -> str:
        return f"{self.owner}-{self.attempt}-{self.round}-{self.job_uid}"

    @classmethod
    def of(cls, name: str) -> Self:
        """The gang of that name. Raises ValueError."""
        owner, attempt, round_, uid = name.split("-", 3)
        return cls(owner=int(owner), attempt=int(attempt), round=int(round_), job_uid=uid)


class Names(Protocol):
    """Where the names are kept. All methods raise OSError."""

    def all(self) -> list[str]:
        """Every name that is there now."""

    def add(self, name: str) -> None:
        """Add a name; it is there, for everyone, when this returns."""

    def drop(self, name: str) -> None:
        """Remove a name, if it is there."""


@dataclass(frozen=True, kw_only=True)
class DirectoryNames:
    """The names as empty files below a run directory."""

    directory: Path

    def all(self) -> list[str]:
        try:
            return [path.name for path in (self.directory / FENCE).iterdir()]
        except FileNotFoundError:
            return []

    def add(self, name: str) -> None:
        marks = self.directory / FENCE
        marks.mkdir(exist_ok=True)
        sync_directory(self.directory)
        (marks / name).touch()
        sync_directory(marks)

    def drop(self, name: str) -> None:
        (self.directory / FENCE / name).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Fence:
    """One gang's right to write in a run directory."""

    directory: Path
    job_uid: str
    attempt: int
    round: int
    store: Names | None = None
    """Where the names are, if not below `directory`."""

    @property
    def names(self) -> Names:
        return self.store or DirectoryNames(directory=self.directory)

    def raise_it(self) -> Mark:
        """Make this gang the newest, by the mark returned; the caller knows that the run is its
        job's.

        Raises TrainerError("Fenced") where a newer gang of the same job was first, and OSError
        where the directory cannot be written.
        """
        names = self.names
        newest = newest_of(names)
        owner = 0 if newest is None else newest.owner + (newest.job_uid != self.job_uid)
        ours = Mark(owner=owner, attempt=self.attempt, round=self.round, job_uid=self.job_uid)
        if newest is not None and newest.job_uid == self.job_uid:
            self._refuse_older(newest)
        names.add(ours.name)
        self.check()
        for older in (mark for mark in _marks(names) if mark < ours):
            names.drop(older.name)
        return ours

    def check(self) -> None:
        """Raises TrainerError("Fenced") where this gang may not write any more, OSError."""
        newest = newest_of(self.names)
        if newest is None:
            return
        if newest.job_uid != self.job_uid:
            raise _fenced(f"the run directory {self.directory} was taken over by another job")
        self._refuse_older(newest)

    def _refuse_older(self, newest: Mark) -> None:
        if (newest.attempt, newest.round) > (self.attempt, self.round):
            raise _fenced(
                f"attempt {self.attempt} round {self.round} was replaced by attempt "
                f"{newest.attempt} round {newest.round}"
            )


def newest_mark(directory: Path) -> Mark | None:
    """The newest gang that wrote in a run directory. Raises OSError."""
    return newest_of(DirectoryNames(directory=directory))


def newest_of(names: Names) -> Mark | None:
    """The newest gang by the names that are kept somewhere. Raises OSError."""
    return max(_marks(names), default=None)


def _marks(names: Names) -> list[Mark]:
    return [Mark.of(name) for name in names.all()]


def _fenced(what: str) -> TrainerError:
    """The class says that the cause is another gang: this record explains no failure of the job."""
    return TrainerError(
        FailureClass.PEER_LOST, "Fenced", f"{what}: nothing more is written by this one"
    )
