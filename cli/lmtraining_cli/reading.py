"""Reads a `Snapshot` from the cluster.

Promise: only the job itself is needed; whatever else the user may not see costs its part of the
answer and is named. All that does not wait for another answer is asked at once.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from lmtraining_api import ConditionType, TrainerReport, names
from lmtraining_api.status import Scheduled, Succeeded
from lmtraining_cli import paths
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster, Question
from lmtraining_cli.refusals import RefusalError, forbidden, sentence, unknown_context, unknown_job
from lmtraining_cli.snapshot import Event, Object, Pod, Snapshot, event_of
from lmtraining_cli.why.finding import shortened

PODS_ASKED_MAX = 16
"""Pods whose report or events are read: the others wait for the same."""
NO_REPORT = "ranks: the API server does not reach port 8080 of the pods"
WITH_NODES = (Succeeded.UNREACHABLE, Succeeded.STALLED, Succeeded.RECOVERING)
"""States that a dead node may explain."""


def read(cluster: Cluster, name: str, *, causes: bool = False, reports: bool = False) -> Snapshot:
    """The job and what is around it; `causes` with what may hold it up, `reports` with what its
    pods say. Raises CliError."""
    namespace = namespace_of(cluster)
    asked = {
        "job": cluster.ask(paths.job(namespace, name)),
        "pods": cluster.ask(paths.pods(namespace, name)),
        "events": cluster.ask(paths.events(namespace, name)),
    }
    job = _job(cluster, asked.pop("job"), name)
    answers, unseen = _answers(asked)
    pods = _pods(job, answers["pods"])
    bare = Snapshot(job=job, now=datetime.now(UTC), pods=pods)
    more = _ask_causes(cluster, bare) if causes else {}
    if reports:
        more |= _ask_reports(cluster, bare)
    further, refused = _answers(more)
    unseen |= refused
    read_reports = [
        report
        for key, found in further.items()
        if key.startswith("report") and found and (report := _report(found, job))
    ]
    events = [found for key, found in (answers | further).items() if key.startswith("events")]
    claim = further.get("claim") if causes else None
    return Snapshot(
        job=job,
        now=datetime.now(UTC),
        pods=pods,
        events=_newest_first(events),
        claim=claim,
        claim_is_known=causes and "claim" in further and "claim" not in refused,
        nodes=_items(further.get("nodes")),
        quotas=_items(further.get("quotas")),
        report=next((one for one in read_reports if _is_lead(one)), None),
        reports=read_reports,
        unseen=list(dict.fromkeys(unseen.values())),
    )


def read_jobs(cluster: Cluster, *, all_namespaces: bool = False) -> list[Object]:
    """All jobs of the namespace, or of all. Raises CliError."""
    namespace = namespace_of(cluster)
    everywhere = f"/apis/{names.API_VERSION}/{names.PLURAL}"
    path = everywhere if all_namespaces else paths.jobs(namespace)
    try:
        return list(cluster.get(path)["items"])
    except RefusalError as refused:
        raise CliError(refusal_sentence(cluster, refused)) from None


def lead_pods(cluster: Cluster, snapshot: Snapshot) -> list[Pod]:
    """Every lead pod that is still there, of all attempts; none where pods may not be seen."""
    lead = quote(f",{names.LABEL_REPLICA}=0")
    path = paths.pods(snapshot.namespace, snapshot.name) + lead
    try:
        found = cluster.get(path)["items"]
    except RefusalError:
        return []
    uid = snapshot.job["metadata"]["uid"]
    return [Pod(body=body) for body in found if _is_owned(body, uid)]


def namespace_of(cluster: Cluster) -> str:
    """The namespace that is meant. Raises CliError, also for a context that is none."""
    try:
        return cluster.namespace
    except RefusalError as refused:
        raise CliError(refusal_sentence(cluster, refused)) from None


def refusal_sentence(cluster: Cluster, refused: RefusalError) -> str:
    """One sentence with the fix."""
    if refused.reason == "NoContext":
        return unknown_context(cluster.context, cluster.contexts())
    try:
        context, server = cluster.context, cluster.server
    except RefusalError:
        context, server = "none", ""
    named = cluster.kubeconfig
    missing = named if named and os.pathsep not in named and not Path(named).exists() else ""
    return sentence(refused, context=context, server=server, missing_file=missing)


def _job(cluster: Cluster, question: Question, name: str) -> Object:
    try:
        return question.answer()
    except RefusalError as refused:
        if refused.reason != "NotFound":
            raise CliError(refusal_sentence(cluster, refused)) from None
    known = [str(job["metadata"]["name"]) for job in read_jobs(cluster)]
    where = {"namespace": cluster.namespace, "context": cluster.context}
    raise CliError(unknown_job(name, known, **where)) from None


def _ask_causes(cluster: Cluster, bare: Snapshot) -> dict[str, Question]:
    """What may hold the job up, as far as its state leaves that open: each question costs time."""
    asked: dict[str, Question] = {}
    namespace = bare.namespace
    core = paths.core(namespace)
    if bare.status.is_terminal:
        return asked
    if bare.reason(ConditionType.SCHEDULED) == Scheduled.QUOTA_EXCEEDED:
        asked["quotas"] = cluster.ask(f"{core}/resourcequotas")
    if any(pod.unschedulable for pod in bare.pods) or bare.state in WITH_NODES:
        asked["nodes"] = cluster.ask("/api/v1/nodes")
    waiting = [pod for pod in bare.pods if not pod.has_started]
    for pod in waiting[:PODS_ASKED_MAX]:
        asked[f"events {pod.name}"] = cluster.ask(paths.events(namespace, pod.name))
    if bare.claim_name and (waiting or not bare.pods):
        asked["claim"] = cluster.ask(f"{core}/persistentvolumeclaims/{bare.claim_name}")
        asked["events claim"] = cluster.ask(paths.events(namespace, bare.claim_name))
    return asked


def _ask_reports(cluster: Cluster, bare: Snapshot) -> dict[str, Question]:
    """Of the pods that run."""
    running = [pod for pod in bare.pods if pod.phase == "Running"][:PODS_ASKED_MAX]
    core, port = paths.core(bare.namespace), names.REPORT_PORT
    return {
        f"report {pod.name}": cluster.ask(f"{core}/pods/{pod.name}:{port}/proxy/report")
        for pod in running
    }


def _answers(asked: Mapping[str, Question]) -> tuple[dict[str, Any], dict[str, str]]:
    """The answers, None where there is none, and why not where that is a matter of rights."""
    found: dict[str, Any] = {}
    unseen: dict[str, str] = {}
    for key, question in asked.items():
        try:
            found[key] = question.answer()
        except RefusalError as refused:
            found[key] = None
            if refused.reason == "Forbidden":
                unseen[key] = forbidden(refused.message)
            elif key.startswith("report"):
                unseen["report"] = f"{NO_REPORT} ({shortened(refused.message)})"
    return found, unseen


def _pods(job: Object, answer: Object | None) -> list[Pod]:
    """Of the newest attempt, without those that were replaced, the lead first."""
    uid = job["metadata"]["uid"]
    ours = [Pod(body=body) for body in (answer or {}).get("items", []) if _is_owned(body, uid)]
    attempt = max((pod.attempt for pod in ours), default=0)
    newest: dict[int, Pod] = {}
    for pod in sorted(ours, key=lambda pod: (pod.attempt == attempt, _number(pod.name))):
        if pod.attempt == attempt:
            newest[pod.replica] = pod
    return [newest[replica] for replica in sorted(newest)]


def _number(name: str) -> int:
    """The last part of a pod's name: how often it was replaced."""
    last = name.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _is_owned(body: Object, uid: str) -> bool:
    owners = body["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


def _report(found: Object, job: Object) -> TrainerReport | None:
    """A report of this job; what cannot be read says nothing."""
    try:
        report = TrainerReport.model_validate(found)
    except ValidationError:
        return None
    return report if report.job_uid == job["metadata"]["uid"] else None


def _is_lead(report: TrainerReport) -> bool:
    return any(rank.rank == 0 for rank in report.ranks) or report.step > 0


def _items(answer: Object | None) -> list[Object] | None:
    return None if answer is None else list(answer.get("items", []))


def _newest_first(answers: Iterable[Object | None]) -> list[Event]:
    bodies: Sequence[Object] = [body for one in answers if one for body in one.get("items", [])]
    events = [event_of(body) for body in bodies]
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(events, key=lambda event: event.time or oldest, reverse=True)
