"""Reads a `Snapshot` from the cluster.

Promise: only the job itself is needed; whatever else the user may not see costs its part of the
answer and is named. All that does not wait for another answer is asked at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from lmtraining_api import TrainerReport, names
from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster, Question
from lmtraining_cli.refusals import RefusalError, forbidden, sentence, unknown_context, unknown_job
from lmtraining_cli.snapshot import Event, Object, Pod, Snapshot, event_of

PODS_ASKED_MAX = 16
"""Pods whose report or events are read: the others wait for the same."""
EVENTS_PER_OBJECT_MAX = 100

JOBS = f"/apis/{names.API_VERSION}/namespaces/{{}}/{names.PLURAL}"


def read(cluster: Cluster, name: str, *, causes: bool = False, reports: bool = False) -> Snapshot:
    """The job and what is around it; `causes` with what may hold it up, `reports` with what its
    pods say. Raises CliError."""
    namespace = namespace_of(cluster)
    core = f"/api/v1/namespaces/{namespace}"
    labels = quote(f"{names.LABEL_JOB_NAME}={name}")
    asked = {
        "job": cluster.ask(f"{JOBS.format(namespace)}/{name}"),
        "pods": cluster.ask(f"{core}/pods?labelSelector={labels}"),
        "events": _ask_events(cluster, core, name),
    }
    if causes:
        asked["quotas"] = cluster.ask(f"{core}/resourcequotas")
        asked["nodes"] = cluster.ask("/api/v1/nodes")
    job = _job(cluster, asked.pop("job"), name)
    answers, unseen = _answers(asked)
    pods = _pods(job, answers["pods"])
    bare = Snapshot(job=job, now=datetime.now(UTC), pods=pods)
    more = _ask_more(cluster, core, bare, causes=causes, reports=reports)
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
        nodes=_items(answers.get("nodes")),
        quotas=_items(answers.get("quotas")),
        report=next((one for one in read_reports if _is_lead(one)), None),
        reports=read_reports,
        unseen=list(dict.fromkeys(unseen.values())),
    )


def read_jobs(cluster: Cluster, *, all_namespaces: bool = False) -> list[Object]:
    """All jobs of the namespace, or of all. Raises CliError."""
    namespace = namespace_of(cluster)
    path = f"/apis/{names.API_VERSION}/{names.PLURAL}" if all_namespaces else JOBS.format(namespace)
    try:
        return list(cluster.get(path)["items"])
    except RefusalError as refused:
        raise CliError(refusal_sentence(cluster, refused)) from None


def lead_pods(cluster: Cluster, snapshot: Snapshot) -> list[Pod]:
    """Every lead pod that is still there, of all attempts; none where pods may not be seen."""
    labels = quote(f"{names.LABEL_JOB_NAME}={snapshot.name},{names.LABEL_REPLICA}=0")
    path = f"/api/v1/namespaces/{snapshot.namespace}/pods?labelSelector={labels}"
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
    return sentence(refused, context=context, server=server)


def _job(cluster: Cluster, question: Question, name: str) -> Object:
    try:
        return question.answer()
    except RefusalError as refused:
        if refused.reason != "NotFound":
            raise CliError(refusal_sentence(cluster, refused)) from None
    known = [str(job["metadata"]["name"]) for job in read_jobs(cluster)]
    where = {"namespace": cluster.namespace, "context": cluster.context}
    raise CliError(unknown_job(name, known, **where)) from None


def _ask_events(cluster: Cluster, core: str, name: str) -> Question:
    fields = quote(f"involvedObject.name={name}")
    return cluster.ask(f"{core}/events?fieldSelector={fields}&limit={EVENTS_PER_OBJECT_MAX}")


def _ask_more(
    cluster: Cluster, core: str, bare: Snapshot, *, causes: bool, reports: bool
) -> dict[str, Question]:
    """What the pods and the job name."""
    asked: dict[str, Question] = {}
    if causes:
        for pod in [pod for pod in bare.pods if not pod.has_started][:PODS_ASKED_MAX]:
            asked[f"events {pod.name}"] = _ask_events(cluster, core, pod.name)
        if bare.claim_name:
            asked["claim"] = cluster.ask(f"{core}/persistentvolumeclaims/{bare.claim_name}")
            asked["events claim"] = _ask_events(cluster, core, bare.claim_name)
    if reports:
        for pod in [pod for pod in bare.pods if pod.phase == "Running"][:PODS_ASKED_MAX]:
            port = f"{pod.name}:{names.REPORT_PORT}"
            asked[f"report {pod.name}"] = cluster.ask(f"{core}/pods/{port}/proxy/report")
    return asked


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
