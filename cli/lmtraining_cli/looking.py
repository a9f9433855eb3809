"""The commands that look: status, why, list, logs."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from lmtraining_cli.curves import ask_log, joined, points_of, text_or_none
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.listing import listing
from lmtraining_cli.logs import Followed, Line, merged, who_is
from lmtraining_cli.reading import read, read_jobs, refusal_sentence
from lmtraining_cli.refusals import RefusalError, forbidden
from lmtraining_cli.screen import screen
from lmtraining_cli.snapshot import CONTAINER, Pod, Snapshot
from lmtraining_cli.why import Finding
from lmtraining_cli.why import why as find


def status(cluster: Cluster, name: str, *, as_json: bool, console: Console) -> None:
    """The screen of a job. Raises CliError."""
    snapshot = read(cluster, name, reports=True)
    text, refused = lead_log(cluster, snapshot)
    if refused is not None and refused.reason == "Forbidden":
        snapshot = replace(snapshot, unseen=[*snapshot.unseen, forbidden(refused.message)])
    points = joined(points_of(text))
    if as_json:
        ranks = [rank.model_dump(mode="json") for one in snapshot.reports for rank in one.ranks]
        write_json(
            {
                "name": snapshot.name,
                "namespace": snapshot.namespace,
                "state": snapshot.state,
                "why": asdict(find(snapshot)),
                "status": snapshot.job.get("status") or {},
                "ranks": ranks,
                "curve": [point.model_dump(mode="json", exclude_none=True) for point in points],
                "notShown": list(snapshot.unseen),
            }
        )
        return
    console.print(screen(snapshot, find(snapshot), points, context=cluster.context))


def lead_log(cluster: Cluster, snapshot: Snapshot) -> tuple[str, RefusalError | None]:
    """What the lead pod has said so far; empty where there is none, or with why it is not known."""
    lead = next((pod for pod in snapshot.pods if pod.replica == 0 and pod.has_started), None)
    if lead is None:
        return "", None
    return text_or_none(ask_log(cluster, snapshot.namespace, lead))


def why(cluster: Cluster, name: str, *, as_json: bool, console: Console) -> None:
    """The cause. Raises CliError."""
    snapshot = read(cluster, name, causes=True, reports=True)
    found = find(snapshot)
    if as_json:
        write_json({**asdict(found), "notShown": list(snapshot.unseen)})
        return
    for line in lines_of(found, snapshot):
        console.print(line, markup=False, soft_wrap=True)


def lines_of(finding: Finding, snapshot: Snapshot) -> list[str]:
    """The cause as text."""
    lines = [f"{snapshot.name} ({snapshot.state}): {finding.sentence}  [{finding.cause}]"]
    lines += [f"  evidence: {line}" for line in finding.evidence]
    lines.append(f"  do: {finding.fix}")
    return lines + [f"  not seen: {line}" for line in snapshot.unseen]


def list_jobs(cluster: Cluster, *, everywhere: bool, as_json: bool, console: Console) -> None:
    """All jobs. Raises CliError."""
    jobs = read_jobs(cluster, all_namespaces=everywhere)
    if as_json:
        write_json({"items": jobs})
    elif jobs:
        console.print(listing(jobs, namespaces=everywhere))
    else:
        where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
        sys.stderr.write(f"no LMTrainingJobs in {where} of context {cluster.context}\n")


def logs(cluster: Cluster, name: str, *, follow: bool, tail: int, rank: int) -> None:
    """All pods' logs by time. Raises CliError."""
    snapshot = read(cluster, name)
    each = int(snapshot.value("workers.ranksPerReplica") or 0) or int(
        snapshot.value("workers.accelerator.count") or 1
    )
    ranks = each * int(snapshot.value("workers.replicas") or 1)
    if rank >= ranks:
        raise CliError(f"job {name} has no rank {rank}: its last one is {ranks - 1}")

    def wanted(found: Snapshot) -> list[Pod]:
        return [pod for pod in found.pods if rank < 0 or pod.replica == rank // each]

    if not wanted(snapshot) and not follow:
        raise CliError(f"job {name} has no pods, and so no logs: kubectl lmtrain why {name}")
    with suppress(KeyboardInterrupt, BrokenPipeError):
        if follow:
            _follow(cluster, snapshot, tail=tail, wanted=wanted)
        else:
            _print_logs(cluster, snapshot, wanted(snapshot), tail=tail)


def _print_logs(cluster: Cluster, snapshot: Snapshot, pods: list[Pod], *, tail: int) -> None:
    """Read side by side, so that however long they are, little of them is held."""
    streams = [
        cluster.stream(
            "logs", pod.name, f"--namespace={snapshot.namespace}", f"--container={CONTAINER}",
            "--timestamps", f"--tail={tail}",
        )
        for pod in pods
    ]  # fmt: skip
    named = zip(map(who_is, pods), streams, strict=True)
    is_silent = True
    for line in merged((who, stream.lines()) for who, stream in named):
        is_silent = False
        _print(line)
    for refused in filter(None, (stream.refusal() for stream in streams)):
        if refused.reason == "Forbidden":
            raise CliError(refusal_sentence(cluster, refused))
    if is_silent and all(pod.phase == "Pending" for pod in pods):
        raise CliError(
            f"no pod of job {snapshot.name} has started, so there are no logs: "
            f"kubectl lmtrain why {snapshot.name}"
        )


def _follow(cluster: Cluster, first: Snapshot, *, tail: int, wanted: Any) -> None:
    followed = Followed(cluster, first.namespace, tail=tail)

    def look() -> tuple[list[Pod], bool]:
        found = read(cluster, first.name)
        return wanted(found), found.status.is_terminal

    try:
        for line in followed.follow(look):
            _print(line)
    finally:
        followed.stop()
    if followed.refused is not None:
        raise CliError(refusal_sentence(cluster, followed.refused))


def _print(line: Line) -> None:
    _, who, words = line
    sys.stdout.write(f"[{who}] {words}\n")
    sys.stdout.flush()


def write_json(document: Any) -> None:
    """For another program."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
