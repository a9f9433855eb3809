"""What a supervisor is given to do.

Promise: whatever differs between a pod, a laptop and a test is in this one value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmtraining_api import JobFile, names
from lmtraining_trainer.rank_link import RankPlace
from lmtraining_trainer.supervisor.evidence import phases_file, stack_file
from lmtraining_trainer.supervisor.identity import Identity
from lmtraining_trainer.supervisor.intent import Gang
from lmtraining_trainer.supervisor.rank_process import RankTask

WISHES_FILE = "wishes.json"
"""Where the supervisor of rank 0 writes down what is wanted beyond training on."""
RANK_FUNCTION = "lmtraining_trainer.rank:run_rank"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a supervisor is to do, and with what."""

    identity: Identity
    job: JobFile
    read_intent: Callable[[], str]
    rank_function: str = RANK_FUNCTION
    """Another one is a test's, and brings its own libraries."""
    rendezvous_port: int = names.RENDEZVOUS_PORT
    report_port: int = names.REPORT_PORT
    """The same on every pod: the others read the round from the lead's report."""
    rank_log: Path | None = None
    """Where the ranks' output goes; None: where the supervisor's goes."""
    second_interrupt_kills: bool = False
    """For a terminal: Ctrl-C saves, another one does not wait for that."""

    @property
    def leads(self) -> bool:
        """True on the pod of rank 0."""
        return self.identity.replica == 0

    def task(self, local_rank: int, gang: Gang, *, round_number: int, scratch: Path) -> RankTask:
        """What the local rank is started with."""
        workers = self.job.spec.workers
        place = RankPlace(
            rank=self.identity.replica * workers.ranks_each + local_rank,
            world_size=workers.world_size,
            local_rank=local_rank,
            replica=self.identity.replica,
            attempt=self.identity.attempt,
            round=round_number,
            lead_address=gang.lead_address,
            rendezvous_port=self.rendezvous_port,
            pod_name=self.identity.pod_name,
            gang=gang.digest,
        )
        return RankTask(
            job=self.job,
            place=place,
            function=self.rank_function,
            log=self.rank_log,
            stack=stack_file(scratch, place.rank),
            phases=phases_file(scratch, place.rank),
            wishes=scratch / WISHES_FILE,
        )
