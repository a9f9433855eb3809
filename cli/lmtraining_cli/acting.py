"""The commands that change something: suspend, resume, delete.

Promise: what is changed is the job that was looked at, and a question names the context and the
namespace it is in.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from lmtraining_api.names import API_VERSION, PLURAL
from lmtraining_cli import paths
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.reading import read, refusal_sentence
from lmtraining_cli.refusals import RefusalError
from lmtraining_cli.snapshot import Snapshot

Ask = Callable[[str], None]


def suspend(cluster: Cluster, name: str, *, wanted: bool, ask: Ask | None) -> None:
    """Set spec.suspend. Raises CliError."""
    snapshot = read(cluster, name)
    word = "suspended" if wanted else "to go on"
    if snapshot.status.is_terminal:
        raise CliError(
            f"job {name} has ended ({snapshot.state}): there is nothing to {_verb(wanted)}"
        )
    if bool(snapshot.value("suspend")) == wanted:
        sys.stdout.write(f"job {name} is {word} already\n")
        return
    if ask is not None:
        ask(f"Suspend {where(cluster, snapshot)}? It saves a checkpoint and frees its devices.")
    change(cluster, name, {"suspend": wanted})
    told = "saves a checkpoint and frees its devices" if wanted else "goes on from its checkpoint"
    sys.stdout.write(f"job {name} {told}: kubectl lmtrain status {name}\n")


def delete(cluster: Cluster, name: str, *, ask: Ask | None) -> None:
    """Delete the job. Raises CliError."""
    snapshot = read(cluster, name)
    if ask is not None:
        ask(f"Delete {where(cluster, snapshot)} and its pods? Its checkpoints stay.")
    path = paths.job(snapshot.namespace, name)
    _do(cluster, lambda: cluster.delete(path, uid=str(snapshot.job["metadata"]["uid"])))
    artifacts = snapshot.status.artifacts
    place = f"claim {artifacts.claim}" if artifacts.claim else artifacts.uri
    kept = f"; its run is kept in {place} ({artifacts.run_directory})" if place else ""
    sys.stdout.write(f"job {name} is deleted{kept}\n")


def change(cluster: Cluster, name: str, spec: Mapping[str, Any]) -> None:
    """Merge this into the job's spec. Raises CliError."""
    kind = f"{PLURAL}.{API_VERSION.partition('/')[0]}"
    _do(cluster, lambda: cluster.merge(kind, name, {"spec": spec}))


def where(cluster: Cluster, snapshot: Snapshot) -> str:
    """Which job exactly, for a question."""
    progress = snapshot.status.progress
    step = f", step {progress.step} of {progress.total_steps}" if progress.total_steps else ""
    return (
        f"job {snapshot.name} ({snapshot.state}{step}) in namespace {snapshot.namespace} of "
        f"context {cluster.context}"
    )


def _verb(wanted: bool) -> str:
    return "suspend" if wanted else "resume"


def _do(cluster: Cluster, act: Callable[[], None]) -> None:
    try:
        act()
    except RefusalError as refused:
        raise CliError(refusal_sentence(cluster, refused)) from None
