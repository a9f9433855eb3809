"""The commands that ask running ranks for something: a checkpoint now, a step back.

Promise: what is said is what became of it, since the answer under the request's own name is waited
for; nobody waits for pods that do not run. Trap avoided: a name that was used before, which the
ranks would not follow again; names hold the time of the request.
"""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from lmtraining_api import LMTrainingJobStatus
from lmtraining_api.status import Succeeded
from lmtraining_cli import paths
from lmtraining_cli.acting import Ask, change, where
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.reading import read
from lmtraining_cli.snapshot import Snapshot

Outcome = TypeVar("Outcome")

POLL_SECONDS = 0.5
FOLLOWING = frozenset({Succeeded.TRAINING, Succeeded.STARTING, Succeeded.RECOVERING})
"""States in which the pods of a job run, or soon will."""


def checkpoint(cluster: Cluster, name: str, *, limit_seconds: float) -> None:
    """Save a checkpoint at the step that is being taken. Raises CliError."""
    snapshot = _asked_of(cluster, name)
    request = _request_name("save", datetime.now(UTC))
    change(cluster, name, {"requests": {"checkpoint": request}})
    if not _follows(snapshot):
        return

    def step(status: LMTrainingJobStatus) -> int | None:
        applied = status.applied
        return applied.checkpoint_step if applied and applied.checkpoint == request else None

    saved = _until(cluster, snapshot, step, "the checkpoint", limit_seconds)
    sys.stdout.write(f"job {name} has saved a checkpoint of step {saved}\n")


def rollback(
    cluster: Cluster, name: str, *, to_step: int, ask: Ask | None, limit_seconds: float
) -> None:
    """Go back to the checkpoint of a step. Raises CliError."""
    snapshot = _asked_of(cluster, name)
    if no := no_way_back(snapshot, to_step):
        raise CliError(no)
    if ask is not None:
        ask(
            f"Roll back {where(cluster, snapshot)} to step {to_step}? Newer checkpoints are moved "
            "aside, and the steps are taken again."
        )
    request = _request_name("back", datetime.now(UTC))
    change(cluster, name, {"requests": {"rollback": {"name": request, "toStep": to_step}}})
    if not _follows(snapshot):
        return

    def outcome(status: LMTrainingJobStatus) -> str | None:
        applied = status.applied
        if applied is None or applied.rollback != request:
            return None
        return applied.refusal if applied.rollback_step is None else ""

    refusal = _until(cluster, snapshot, outcome, "the rollback", limit_seconds)
    if refusal:
        raise CliError(f"job {name} was not rolled back and trains on: {refusal}")
    sys.stdout.write(f"job {name} trains on from its checkpoint of step {to_step}\n")


def no_way_back(snapshot: Snapshot, to_step: int) -> str:
    """Why a job cannot go back to a step, as far as its status can tell; "" where it perhaps can.
    The ranks, which know every checkpoint, have the last word."""
    newest = snapshot.status.checkpoint
    if newest is None:
        return (
            f"job {snapshot.name} has no checkpoint to go back to ({snapshot.state}): wait for "
            f"its first one, or ask for it: kubectl lmtrain checkpoint {snapshot.name}"
        )
    if to_step > newest.last_step:
        return (
            f"job {snapshot.name} has no checkpoint of step {to_step} to go back to: the newest is "
            f"of step {newest.last_step}"
        )
    return ""


def _asked_of(cluster: Cluster, name: str) -> Snapshot:
    snapshot = read(cluster, name)
    if snapshot.status.is_terminal:
        raise CliError(f"job {name} has ended ({snapshot.state}): nothing can be asked of it")
    return snapshot


def _request_name(kind: str, now: datetime) -> str:
    """In the alphabet of names; two requests of one second would be one."""
    return f"{kind}-{now:%Y%m%d-%H%M%S}"


def _follows(snapshot: Snapshot) -> bool:
    """Whether there are ranks that will answer; says so where there are none."""
    if snapshot.state in FOLLOWING:
        return True
    sys.stdout.write(
        f"job {snapshot.name} does not train ({snapshot.state}): it is asked when it next does\n"
    )
    return False


def _until(
    cluster: Cluster,
    snapshot: Snapshot,
    look: Callable[[LMTrainingJobStatus], Outcome | None],
    what: str,
    limit_seconds: float,
) -> Outcome:
    """The first answer. Raises CliError after the limit, or when the job ends or is made anew."""
    name, path = snapshot.name, paths.job(snapshot.namespace, snapshot.name)
    until = time.monotonic() + limit_seconds
    sys.stderr.write(f"waiting for {what}, at most {limit_seconds:g} s\n")
    while time.monotonic() < until:
        body: dict[str, Any] = cluster.get(path)
        if body["metadata"]["uid"] != snapshot.job["metadata"]["uid"]:
            raise CliError(f"job {name} was deleted and made anew meanwhile")
        status = LMTrainingJobStatus.model_validate(body.get("status") or {})
        found = look(status)
        if found is not None:
            return found
        if status.is_terminal:
            raise CliError(f"job {name} has ended before: kubectl lmtrain status {name}")
        time.sleep(POLL_SECONDS)
    raise CliError(
        f"{what} has not come within {limit_seconds:g} s; it is still asked for: "
        f"kubectl lmtrain why {name}"
    )
