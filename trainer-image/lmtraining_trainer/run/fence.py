"""The fence: of two gangs that both believe the run is theirs, the newer one is right.

Promise: a gang that has been replaced publishes nothing more (P1). The newest (attempt, round) is
in a file of the run directory; it is compared before every checkpoint, journal entry and export.
Trap avoided: a pod on an unreachable node trains on for minutes after its successor started.
"""

from dataclasses import dataclass
from pathlib import Path

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import read_json, write_json

FENCE = "fence.json"


@dataclass(frozen=True, kw_only=True)
class Fence:
    """One gang's right to write in a run directory."""

    directory: Path
    job_uid: str
    attempt: int
    round: int

    def raise_it(self) -> None:
        """Make this gang the newest; the caller knows that the run is its job's.

        Raises TrainerError("Fenced") where a newer gang of the same job was first, and OSError
        where the directory cannot be written.
        """
        newest = self._newest()
        if newest is not None and newest.job_uid == self.job_uid:
            self._refuse_older(newest)
        write_json(
            self.directory / FENCE,
            {"job_uid": self.job_uid, "attempt": self.attempt, "round": self.round},
        )

    def check(self) -> None:
        """Raises TrainerError("Fenced") where this gang may not write any more."""
        newest = self._newest()
        if newest is None:
            return
        if newest.job_uid != self.job_uid:
            raise _fenced(f"the run directory {self.directory} was taken over by another job")
        self._refuse_older(newest)

    def _refuse_older(self, newest: "Fence") -> None:
        if (newest.attempt, newest.round) > (self.attempt, self.round):
            raise _fenced(
                f"attempt {self.attempt} round {self.round} was replaced by attempt "
                f"{newest.attempt} round {newest.round}"
            )

    def _newest(self) -> "Fence | None":
        record = read_json(self.directory / FENCE)
        if record is None:
            return None
        return Fence(
            directory=self.directory,
            job_uid=str(record["job_uid"]),
            attempt=int(record["attempt"]),
            round=int(record["round"]),
        )


def _fenced(what: str) -> TrainerError:
    """The class says that the cause is another gang: this record explains no failure of the job."""
    return TrainerError(
        FailureClass.PEER_LOST, "Fenced", f"{what}: nothing more is written by this one"
    )
