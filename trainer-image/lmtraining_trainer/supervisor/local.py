"""`lmtraining run`: the same supervisor and ranks on this machine, without a cluster.

Promise: all ranks of the job run here, in a run directory of their own; run again, they go on from
the newest checkpoint, as another attempt of the same job, and what has changed in the job is said
first. Two runs in one directory are refused (P1), and so is another job's run, before torch is
imported.
Trap avoided: a job identity that changes with the working directory or the clock. It is a name made
from the place where the run lives, an absolute directory or a URI, so the rules about existing runs
work as in a cluster.
"""

import errno
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from lmtraining_api import (
    ExitRecord,
    FailureClass,
    Intent,
    JobFile,
    LMTrainingJob,
    Peer,
    TrainingSpec,
    names,
)
from lmtraining_trainer.data import check_sources, open_prepared, prepare, reader_of
from lmtraining_trainer.data.form import form_of
from lmtraining_trainer.data.prepared import check_enough
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import read_json
from lmtraining_trainer.report import Snapshot
from lmtraining_trainer.run import Mirror, changes
from lmtraining_trainer.run.directory import RUN, check_claim, has_begun
from lmtraining_trainer.run.fence import Mark, newest_mark, newest_of
from lmtraining_trainer.run.remote import RemoteError
from lmtraining_trainer.supervisor.assignment import RANK_FUNCTION, Assignment
from lmtraining_trainer.supervisor.exit_record import write_to_run_directory
from lmtraining_trainer.supervisor.identity import Identity
from lmtraining_trainer.supervisor.life import Supervisor
from lmtraining_trainer.supervisor.serving import served

LOOPBACK = "127.0.0.1"
LOCAL_POD = "local"
LOCK_FILE = "local.json"
LOGS_DIRECTORY = "logs"
#: Text whose tokenizer is trained in a second or two.
EARLY_TEXT_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """A job and the directory it runs in."""

    job: LMTrainingJob
    runs_directory: Path

    @property
    def directory(self) -> Path:
        """The run directory, absolute."""
        return (self.runs_directory / self._path).absolute()

    @property
    def place(self) -> str:
        """Where the run lives: the run directory, or its URI in an object store."""
        return self._uri(f"{names.RUNS}/{self._path}") or str(self.directory)

    @property
    def in_store(self) -> bool:
        """Whether the run lives in an object store."""
        return self.place != str(self.directory)

    @property
    def _path(self) -> str:
        return self.job.spec.checkpoint.path or self.job.metadata.name

    def _uri(self, path: str) -> str:
        uri = (self.job.spec.checkpoint.storage.uri or "").rstrip("/")
        return f"{uri}/{path}" if uri else ""

    @property
    def job_file(self) -> JobFile:
        """What the ranks are given."""
        run_uri = self._uri(f"{names.RUNS}/{self._path}")
        return JobFile(
            job_name=self.job.metadata.name,
            namespace=self.job.metadata.namespace,
            job_uid=str(uuid.uuid5(uuid.NAMESPACE_URL, run_uri or self.directory.as_uri())),
            run_directory=str(self.directory),
            data_cache_directory=str(self.runs_directory.absolute() / names.DATA_CACHE),
            run_uri=run_uri,
            data_cache_uri=self._uri(names.DATA_CACHE),
            spec=on_one_machine(self.job.spec),
        )

    def log(self, attempt: int) -> Path:
        """Where the ranks' output goes."""
        return self.directory / LOGS_DIRECTORY / f"attempt-{attempt}.log"


def on_one_machine(spec: TrainingSpec) -> TrainingSpec:
    """The same training with all ranks in one replica."""
    workers = spec.workers
    ranks = workers.world_size
    if workers.accelerator is None:
        changed = workers.model_copy(update={"replicas": 1, "ranks_per_replica": ranks})
    else:
        devices = workers.accelerator.model_copy(update={"count": ranks})
        changed = workers.model_copy(
            update={"replicas": 1, "accelerator": devices, "ranks_per_replica": None}
        )
    fields = {name: getattr(spec, name) for name in TrainingSpec.model_fields}
    return TrainingSpec.model_construct(**{**fields, "workers": changed})


def run_locally(
    run: LocalRun,
    *,
    observe: Callable[[Snapshot], None],
    say: Callable[[str], None] = lambda _: None,
    report_port: int | None = None,
    rank_function: str = RANK_FUNCTION,
) -> ExitRecord:
    """Run to the end; the record says which, and `say` hears of each changed field first. Raises
    TrainerError where it cannot begin."""
    job = run.job_file
    credentials = Path(names.CREDENTIALS_DIRECTORY)
    with _next_attempt(run.directory, Mirror.of(job, credentials)) as attempt:
        record = _recorded(run.directory)
        for line in changes(record or {}, job.spec):
            say(line)
        check_claim(job, record)
        if rank_function == RANK_FUNCTION and not has_begun(run.directory):  # a run keeps its data
            _check_data(job, credentials)
        supervisor = Supervisor(
            Assignment(
                identity=Identity(
                    pod_uid=LOCAL_POD, pod_name=LOCAL_POD, attempt=attempt, replica=0
                ),
                job=job,
                read_intent=lambda: _intent(job, attempt),
                rank_function=rank_function,
                rendezvous_port=_free_port(),
                rank_log=run.log(attempt),
                second_interrupt_kills=True,
            ),
            observe=observe,
        )
        port = report_port
        with nullcontext() if port is None else served(supervisor, job, host=LOOPBACK, port=port):
            ended = supervisor.run()
        write_to_run_directory(ended, run.directory)
        return ended


def _check_data(job: JobFile, credentials: Path) -> None:
    """What is wrong with the data, before torch is imported; a little text is prepared at once, and
    the ranks find it done. Raises TrainerError."""
    cache = Path(job.data_cache_directory)
    form = form_of(job.spec)
    size_bytes = check_sources(job.spec.data, credentials, reader_of(form))
    is_early = size_bytes is not None and size_bytes <= EARLY_TEXT_BYTES_MAX
    if not is_early or job.spec.model.pretrained is not None:  # in its tokens, once it is here
        return
    key = prepare(
        job.spec.data,
        cache=cache,
        credentials=credentials,
        owner=job.job_uid,
        form=form,
        progress=lambda _: None,
    )
    data = open_prepared(cache, key)
    if data is not None:
        check_enough(data, job.spec)


def _recorded(directory: Path) -> dict[str, Any] | None:
    """What the run before left in run.json."""
    try:
        return read_json(directory / RUN)
    except OSError as error:
        raise _unusable(directory, error) from error


def _intent(job: JobFile, attempt: int) -> str:
    """The starting gun, by and for ourselves."""
    peer = Peer(replica=0, pod_uid=LOCAL_POD, address=LOOPBACK)
    intent = Intent(job_uid=job.job_uid, attempt=attempt, generation=1, peers=[peer])
    return intent.model_dump_json(by_alias=True)


@contextmanager
def _next_attempt(directory: Path, mirror: Mirror | None) -> Iterator[int]:
    """The number of this attempt; the directory is locked for as long as it runs, and holds what an
    object store knows of the run."""
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise _unusable(directory, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainerError(
                FailureClass.CONFIGURATION,
                "RunInUse",
                f"another `lmtraining run`{_holder(file)} is at work in {directory}: wait for it, "
                "or choose another directory with --runs",
            ) from error
        try:
            newest = newest_mark(directory) if mirror is None else _newest_in_store(mirror)
            attempt = _counted(file, fenced=newest.attempt if newest else 0)
        except RemoteError as error:
            raise error.failure() from error
        except OSError as error:
            raise _unusable(directory, error) from error
        yield attempt


def _newest_in_store(mirror: Mirror) -> Mark | None:
    """The newest gang there, once it is known that we may write there. Raises OSError."""
    mirror.run.check()
    mirror.bring()
    return newest_of(mirror.fence_names)


def _unusable(directory: Path, error: OSError) -> TrainerError:
    return TrainerError(
        FailureClass.STORAGE,
        "RunDirectoryUnusable",
        f"the run directory {directory} cannot be written ({error.strerror}): free space there or "
        "make it writable, or choose another with --runs",
    )


def _counted(file: FileIO, *, fenced: int) -> int:
    """One more than the attempt noted in the file, noted there with our name before anything is
    started.

    A crash may have cut the file short; `fenced`, the newest attempt that wrote into the run, is
    refused to nobody but its successors.
    """
    file.seek(0)
    try:
        noted = int(json.loads(file.read())["attempt"])
    except (ValueError, KeyError, TypeError):
        noted = 0
    attempt = max(noted, fenced) + 1
    holder = {"process": os.getpid(), "host": socket.gethostname()}
    content = json.dumps({"attempt": attempt, **holder}).encode()
    file.truncate(0)
    if file.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return attempt


def _holder(file: FileIO) -> str:
    """Who holds the lock, as far as it has said so."""
    file.seek(0)
    try:
        said = json.loads(file.read())
        return f" (process {said['process']} on {said['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port
