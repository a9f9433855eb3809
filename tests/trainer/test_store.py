"""A run in an object store: a real client against a server on loopback.

Each pod has a directory of its own; what the pods share is the store. Kill and resume always begin
in fresh, empty directories.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import load

from lmtraining_api import FailureClass, JobFile, LMTrainingJob
from lmtraining_trainer import rank
from lmtraining_trainer.checkpoint import writer
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.run import Fence, Journal, Mirror
from lmtraining_trainer.supervisor import LocalRun, run_locally
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

LOGIN = {"key": "writer", "secret": "hunter2"}
BUCKET = "runs"
URI = f"s3://{BUCKET}/team"
RUN = f"{BUCKET}/team/runs/tiny"
SECRET = "bucket-writer"
KEEP_ALL = {"everySteps": 4, "keepLast": 9}


@dataclass
class Store:
    """The store, as the ranks and a person see it, and the pods that train with it."""

    server: ThreadedMotoServer
    directory: Path
    endpoint: str
    files: Any
    pods: int = 0
    secret: dict[str, str] = field(default_factory=dict)

    @property
    def credentials(self) -> Path:
        """The mounted Secret."""
        directory = self.directory / "credentials" / SECRET
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in {"endpoint_url": self.endpoint, **LOGIN, **self.secret}.items():
            (directory / name).write_text(value)
        return directory.parent

    def job(self, uri: str = URI, world_size: int = 1, **checkpoint: Any) -> JobFile:
        """The job, in a pod that has nothing yet."""
        self.pods += 1
        text = (self.directory / "text.jsonl").as_uri()
        storage = {"uri": uri, "credentials": {"secretRef": {"name": SECRET}}}
        spec = tiny_spec(
            text,
            world_size=world_size,
            checkpoint={**KEEP_ALL, "storage": storage, **checkpoint},
        )
        pod = job_of(spec, self.directory / f"pod-{self.pods}")
        places = {"run_uri": f"{uri}/runs/tiny", "data_cache_uri": f"{uri}/data-cache"}
        return pod.model_copy(update=places)

    def run(self, job: JobFile | None = None, *, attempt: int = 1, **faults: Any) -> Outcome:
        """One rank in a pod of its own."""
        job = job or self.job()
        return run_alone(
            job, faults=Faults(**faults), attempt=attempt, credentials=self.credentials
        )

    def names(self, below: str = "checkpoints") -> list[str]:
        """What is in the store below the run."""
        return sorted(path.rpartition("/")[2] for path in self.files.ls(f"{RUN}/{below}"))

    def journal(self) -> list[dict[str, Any]]:
        """Every entry, as the gangs put them."""
        parts = sorted(self.files.ls(f"{RUN}/journal", detail=False))
        lines = [line for part in parts for line in self.files.cat(part).splitlines()]
        return [json.loads(line) for line in lines]

    def weights(self) -> dict[str, torch.Tensor]:
        """The exported model."""
        tensors: dict[str, torch.Tensor] = load(self.files.cat(f"{RUN}/export/model.safetensors"))
        return tensors

    def fence(self, attempt: int) -> None:
        """A newer gang begins."""
        mirror = Mirror.of(self.job(), self.credentials)
        assert mirror is not None
        Fence(
            directory=mirror.directory,
            job_uid="uid-1",
            attempt=attempt,
            round=1,
            store=mirror.fence_names,
        ).raise_it()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    files = fsspec.filesystem(
        "s3", endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False, **LOGIN
    )
    with urlopen(f"{endpoint}/moto-api/reset", data=b""):
        pass
    files.mkdir(BUCKET)
    write_text(tmp_path / "text.jsonl")
    yield Store(server=server, directory=tmp_path, endpoint=endpoint, files=files)
    server.stop()


def undisturbed(store: Store, world_size: int = 1) -> dict[str, torch.Tensor]:
    """The weights of the same training on a disk."""
    spec = tiny_spec((store.directory / "text.jsonl").as_uri(), world_size=world_size)
    job = job_of(spec, store.directory / "disk")
    outcomes = run_gang(job, world_size)
    assert [outcome.end for outcome in outcomes] == ["finished"] * world_size, outcomes
    return exported(job)


@pytest.mark.parametrize("world_size", [1, 2])
def test_p7_killed_and_resumed_in_empty_pods_leaves_no_trace(store: Store, world_size: int) -> None:
    last = world_size - 1

    def pods() -> list[JobFile]:
        return [store.job(world_size=world_size) for _ in range(world_size)]

    killed = run_gang(
        pods(), world_size, faults=Faults(kill_at={last: 6}), credentials=store.credentials
    )
    assert killed[last].end == "died", killed
    (store.directory / "text.jsonl").rename(store.directory / "gone.jsonl")  # it keeps its data
    resumed = run_gang(pods(), world_size, attempt=2, credentials=store.credentials)
    assert [outcome.end for outcome in resumed] == ["finished"] * world_size, resumed
    assert resumed[0].link.report["resumed_from_step"] == 4
    (store.directory / "gone.jsonl").rename(store.directory / "text.jsonl")
    assert_equal_tensors(store.weights(), undisturbed(store, world_size))


def test_p2_finished_in_the_store_is_finished_everywhere(store: Store) -> None:
    assert store.run().end == "finished"
    again = store.run(attempt=2)
    assert (again.end, again.link.states) == ("finished", ["Starting", "Finished"])


def remove_manifest(store: Store, checkpoint: str) -> None:
    store.files.rm(f"{checkpoint}/manifest.json")


def remove_generators(store: Store, checkpoint: str) -> None:
    store.files.rm(f"{checkpoint}/rng-00000.json")


def truncate(store: Store, checkpoint: str) -> None:
    path = f"{checkpoint}/model.safetensors"
    store.files.pipe(path, store.files.cat(path)[:-1])


def flip_a_bit(store: Store, checkpoint: str) -> None:
    path = f"{checkpoint}/optimizer.safetensors"
    content = bytearray(store.files.cat(path))
    content[-7] ^= 1
    store.files.pipe(path, bytes(content))


def alter_manifest(store: Store, checkpoint: str) -> None:
    path = f"{checkpoint}/manifest.json"
    store.files.pipe(path, store.files.cat(path).replace(b'"world_size": 1', b'"world_size": 3'))


@pytest.mark.parametrize(
    ("damage", "why", "evidence"),
    [
        (remove_manifest, "no manifest", False),
        (remove_generators, "rng-00000.json is missing", True),
        (truncate, "model.safetensors has", True),
        (flip_a_bit, "optimizer.safetensors has another SHA-256", True),
        (alter_manifest, "not the one that was marked intact", True),
    ],
)
def test_p8_a_broken_checkpoint_is_passed_over_and_the_journal_says_why(
    store: Store, damage: Callable[[Store, str], None], why: str, evidence: bool
) -> None:
    assert store.run(stop_at={0: 8}).step == 9
    damage(store, f"{RUN}/checkpoints/step-00000009")
    outcome = store.run(attempt=2)
    assert (outcome.end, outcome.link.report["resumed_from_step"]) == ("finished", 8), outcome
    (rejected,) = [entry for entry in store.journal() if entry["kind"] == "Rejected"]
    assert rejected["step"] == 9
    assert why in rejected["detail"]["why"]
    assert ("rejected-step-00000009" in store.names()) is evidence
    assert "step-00000009" not in store.names()


def test_prepared_data_that_was_damaged_in_the_store_is_not_trained_on(store: Store) -> None:
    assert store.run(stop_at={0: 3}).step == 4
    (tokens,) = store.files.glob(f"{BUCKET}/team/data-cache/*/train.bin")
    store.files.pipe(tokens, bytes(len(store.files.cat(tokens))))
    outcome = store.run(attempt=2)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "StorageFailing")
    for part in ("checkpoint.storage.uri", "train.bin", "delete"):
        assert part in outcome.message
    store.files.rm(tokens.rpartition("/")[0], recursive=True)
    assert store.run(attempt=3).end == "finished"


def test_p3_where_all_are_broken_the_run_does_not_begin_anew(store: Store) -> None:
    assert store.run(stop_at={0: 3}).step == 4
    for name in store.names():
        flip_a_bit(store, f"{RUN}/checkpoints/{name}")
    outcome = store.run(attempt=2)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "CheckpointsLost")


def test_the_copy_in_the_pod_is_used_and_mended_by_the_store(store: Store) -> None:
    """A new round in the same pod: what is good here is not fetched, what is not, is."""
    job = store.job()
    assert store.run(job, stop_at={0: 8}).step == 9
    newest = Path(job.run_directory) / "checkpoints" / "step-00000009" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = store.run(job, attempt=2)
    assert (outcome.end, outcome.link.report["resumed_from_step"]) == ("finished", 9)
    assert not [entry for entry in store.journal() if entry["kind"] == "Rejected"]


def test_p1_a_replaced_gang_publishes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.run(stop_at={0: 5}).step == 6
    before, entries = store.names(), len(store.journal())
    real = rank.train

    def replaced(trainer: Any) -> None:
        store.fence(attempt=3)
        real(trainer)

    monkeypatch.setattr(rank, "train", replaced)
    outcome = store.run(attempt=2)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.PEER_LOST, "Fenced")
    assert store.names() == before
    assert "attempt 2 round 1 was replaced by attempt 3" in outcome.message
    assert len(store.journal()) == entries + 2  # it began and loaded, before it was replaced
    assert not store.files.exists(f"{RUN}/export")


def test_p1_the_fence_is_looked_at_directly_before_the_manifest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploading takes minutes, in which a gang can be replaced."""
    assert store.run(stop_at={0: 5}).step == 6
    real = Mirror.publish_checkpoint

    def overtaken(
        self: Mirror, directory: Path, check: Callable[[], None], on_part: Callable[[], None]
    ) -> None:
        def late() -> None:
            store.fence(attempt=3)
            check()

        real(self, directory, late, on_part)

    monkeypatch.setattr(Mirror, "publish_checkpoint", overtaken)
    assert store.run(attempt=2).reason == "Fenced"
    left = store.files.ls(f"{RUN}/checkpoints/step-00000008", detail=False)
    assert f"{RUN}/checkpoints/step-00000008/manifest.json" not in left
    assert left  # half an upload, which the next gang removes
    monkeypatch.undo()
    assert store.run(attempt=4).link.report["resumed_from_step"] == 6
    assert_equal_tensors(store.weights(), undisturbed(store))


def test_p1_what_an_older_gang_puts_too_late_overwrites_nothing(store: Store) -> None:
    """The look at the fence and the put are two acts. The late entry counts for nobody, and the
    late file does not replace the newer gang's."""
    job = store.job()
    assert store.run(job, stop_at={0: 5}).step == 6
    older = Mirror.of(job, store.credentials)
    assert older is not None
    assert store.run(attempt=2, stop_at={0: 7}).step == 8
    late = json.dumps({"sequence": 99, "kind": "Rewound"}).encode() + b"\n"
    path = f"{RUN}/journal/0-1-1-uid-1.jsonl"
    store.files.pipe(path, store.files.cat(path) + late)
    half = Path(job.run_directory) / "late.bin"
    half.write_bytes(b"other")
    checkpoint = older.run.child("checkpoints/step-00000008")
    assert not checkpoint.upload(half, "model.safetensors", only_new=True)
    outcome = store.run(attempt=3)
    assert (outcome.end, outcome.link.report["resumed_from_step"]) == ("finished", 8)
    assert outcome.link.report["rewinds"] == 0


def test_p8_retention_in_the_store_is_that_of_a_disk(store: Store) -> None:
    job = store.job(everySteps=1, keepLast=2)
    store.files.pipe(f"{RUN}/checkpoints/step-00000005/model.safetensors", b"half")
    assert store.run(job, stop_at={0: 6}).step == 7
    assert store.names() == ["step-00000000", "step-00000001", "step-00000006", "step-00000007"]
    here = [path.parent.name for path in Path(job.run_directory).rglob("model.safetensors")]
    assert here == ["step-00000007"]  # scratch space is for one


def test_a_store_that_is_away_costs_checkpoints_and_not_the_training(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.write_checkpoint

    def away(run: Any, snapshot: Any, pace: Any) -> Any:
        if snapshot.step != 8:
            return real(run, snapshot, pace)
        port = store.server.get_host_and_port()[1]
        store.server.stop()
        try:
            return real(run, snapshot, pace)
        finally:
            store.server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
            store.server.start()

    monkeypatch.setattr(writer, "write_checkpoint", away)
    outcome = store.run()
    assert outcome.end == "finished", outcome
    errors = [update.fields["checkpoint_error"] for update in outcome.link.updates
              if update.fields.get("checkpoint_error")]  # fmt: skip
    assert len(errors) == 1
    for part in ("step 8 could not be written", f"checkpoint.storage.uri {URI}", "out of reach",
                 "NetworkPolicy"):  # fmt: skip
        assert part in errors[0]
    assert store.names() == ["step-00000000", "step-00000004", "step-00000012"]


@contextmanager
def knows_its_users(store: Store) -> Iterator[None]:
    """The server asks who it is; it knows nobody."""

    def after(requests: str) -> None:
        url, kind = f"{store.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        with urlopen(Request(url, data=requests.encode(), headers=kind)):
            pass

    after("0")
    try:
        yield
    finally:
        after("inf")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("uri", "secret", "reason", "parts"),
    [
        ("s3://absent/team", {}, "NoSuchStorage", ["s3://absent/team", "make the bucket"]),
        (URI, {"key": "nobody"}, "StorageNotAllowed", [URI, "credentials.secretRef"]),
        (URI, {"endpoint_url": "closed"}, "StorageUnreachable", [URI, "NetworkPolicy"]),
        ("nonsense://a", {}, "BadUri", ["nonsense://a", "correct the uri"]),
    ],
)
def test_a_store_that_cannot_be_used_is_told_at_the_start(
    store: Store, uri: str, secret: dict[str, str], reason: str, parts: list[str]
) -> None:
    if "endpoint_url" in secret:
        secret = {"endpoint_url": f"http://127.0.0.1:{free_port()}"}
    store.secret = secret
    with knows_its_users(store) if "key" in secret else nullcontext():
        outcome = store.run(store.job(uri))
    is_passing = reason == "StorageUnreachable"
    kind = FailureClass.STORAGE if is_passing else FailureClass.CONFIGURATION
    assert (outcome.failure_class, outcome.reason) == (kind, reason), outcome
    for part in ["checkpoint.storage.uri", *parts]:
        assert part in outcome.message
    assert "hunter2" not in outcome.message


def test_a_secret_that_is_not_there_names_its_field(store: Store, tmp_path: Path) -> None:
    outcome = run_alone(store.job(), credentials=tmp_path / "nothing")
    assert outcome.reason == "CredentialsUnreadable"
    for part in (SECRET, "checkpoint.storage.uri", "in the job's namespace"):
        assert part in outcome.message


def test_a_journal_in_the_store_that_cannot_be_put_is_not_in_the_pod_either(
    store: Store, tmp_path: Path
) -> None:
    """P1: an entry is where the run lives before the act it describes."""

    def away(content: bytes) -> None:
        raise OSError(111, "Connection refused")

    fence = Fence(directory=tmp_path, job_uid="a", attempt=1, round=1)
    journal = Journal(fence, away)
    with pytest.raises(OSError, match="refused"):
        journal.append("Started", 0)
    assert journal.entries == []
    assert Journal(fence).entries == []


def local(directory: Path, uri: str) -> LocalRun:
    """`lmtraining run` in a directory of its own, as on another machine."""
    spec = tiny_spec("file:///nowhere.txt", checkpoint={"storage": {"uri": uri}})
    job = LMTrainingJob.model_validate(
        {"metadata": {"name": "tiny"}, "spec": spec.model_dump(by_alias=True, exclude_none=True)}
    )
    return LocalRun(job=job, runs_directory=directory)


def test_a_run_in_a_store_is_the_same_run_on_every_machine(tmp_path: Path) -> None:
    one, other = (local(tmp_path / machine, URI) for machine in ("one", "other"))
    assert one.job_file.job_uid == other.job_file.job_uid
    assert one.place == f"{URI}/runs/tiny"
    assert one.job_file.data_cache_uri == f"{URI}/data-cache"
    assert one.directory != other.directory


@pytest.mark.parametrize(
    ("uri", "reason"), [("s3://absent/team", "NoSuchStorage"), (URI, "NoSuchFile")]
)
def test_a_local_run_asks_the_store_before_anything_is_started(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    """The store first, then the sources; the ranks would have been started after both."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", LOGIN["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", LOGIN["secret"])
    run = local(store.directory / "runs", uri)
    with pytest.raises(TrainerError) as raised:
        run_locally(run, observe=lambda _: None)
    assert raised.value.reason == reason
    assert not (run.directory / "logs").exists()
