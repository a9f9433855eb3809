"""`report`: reads a run, writes its page."""

import sys
from dataclasses import asdict
from pathlib import Path

from lmtraining_cli import bundle
from lmtraining_cli.curves import ask_log, joined, points_of, text_or_none
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.reading import lead_pods, read
from lmtraining_cli.report import Content, page
from lmtraining_cli.report import of_directory as directories
from lmtraining_cli.report import of_job as jobs
from lmtraining_cli.snapshot import Pod, Snapshot
from lmtraining_cli.why import why

LINES_MAX = 20_000


def of_directory(directory: Path, output: Path | None) -> None:
    """The report of a run directory. Raises CliError."""
    content = directories.content_of(directory)
    _write(content, output or Path(f"{content.name}.html"))


def of_job(cluster: Cluster, name: str, output: Path | None, *, bundled: bool = False) -> None:
    """The report of a job; `bundled`, with what support needs. Raises CliError."""
    snapshot = read(cluster, name, causes=bundled)
    leads = lead_pods(cluster, snapshot)
    asked = [ask_log(cluster, snapshot.namespace, pod, lines=LINES_MAX) for pod in leads]
    texts = [text_or_none(question) for question in asked]
    points = joined(point for text, _ in texts for point in points_of(text))
    missing = [] if points else [_why_no_curve(snapshot, bool(leads))]
    content = jobs.content_of(snapshot, points, missing=missing)
    if not bundled:
        _write(content, output or Path(f"{name}.html"))
        return
    path = output or Path(f"{name}.zip")
    bundle.write(
        path,
        objects={
            "job.json": snapshot.job,
            "pods.json": [pod.body for pod in _all_pods(snapshot, leads)],
            "events.json": [asdict(event) for event in snapshot.events],
            "why.json": asdict(why(snapshot)),
        },
        texts={"report.html": page(content), **_logs(cluster, snapshot, leads)},
    )
    sys.stdout.write(f"{path}: job, pods, events, logs and report; look before you send it\n")


def _all_pods(snapshot: Snapshot, leads: list[Pod]) -> list[Pod]:
    return list({pod.uid: pod for pod in [*snapshot.pods, *leads]}.values())


def _logs(cluster: Cluster, snapshot: Snapshot, leads: list[Pod]) -> dict[str, str]:
    pods = _all_pods(snapshot, leads)
    asked = {
        f"logs/{pod.name}.log": ask_log(cluster, snapshot.namespace, pod, lines=LINES_MAX)
        for pod in pods
    }
    return {name: text_or_none(question)[0] for name, question in asked.items()}


def _why_no_curve(snapshot: Snapshot, has_pods: bool) -> str:
    artifacts = snapshot.status.artifacts
    place = f"claim {artifacts.claim}" if artifacts.claim else artifacts.uri
    copy = (
        f"copy {artifacts.run_directory} from {place} and run kubectl lmtrain report "
        "--directory on it"
        if artifacts.run_directory
        else "the run has left no directory yet"
    )
    if not snapshot.status.progress.step:
        return "the curves: no step has been made yet"
    gone = "the logs of its lead pod tell none" if has_pods else "its pods are gone"
    return f"the curves: {gone}; they are whole in the run directory: {copy}"


def _write(content: Content, path: Path) -> None:
    text = page(content)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(
            f"{path} cannot be written ({error.strerror}): choose another --output"
        ) from (error)
    size_kilobytes = len(text.encode()) / 1000
    sys.stdout.write(f"{path} ({size_kilobytes:.0f} KB, {len(content.points)} points)\n")
    for line in content.missing:
        sys.stdout.write(f"not in it: {line}\n")
