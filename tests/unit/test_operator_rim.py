"""The rim: command line, kopf's settings, logs, health, reports."""

import http.client
import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import aiohttp.web
import kopf
import pytest

from devcluster.apiserver import free_ports
from lmtraining_api.names import LABEL_JOB_UID, REPORT_BYTES_MAX, REPORT_PORT
from lmtraining_operator import checking, handlers, health, main
from lmtraining_operator.election import LeaseName
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.logs import JsonFormatter, TextFormatter
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.observe import pod_view, warning_events
from lmtraining_operator.reports import ReportError, Reports, parse
from tests.unit.operator_situations import (
    UID,
    report_of,
)
from tests.unit.operator_world import START, World, job_body

pytestmark = pytest.mark.unit

ADDRESS = "127.1.0.5"


def test_command_line() -> None:
    options = main.parse(
        [
            "run",
            "--trainer-image",
            "r/t:1",
            "--watch-namespace",
            "a",
            "b",
            "--watch-namespace=c",
            "--lease=system/operator",
        ]
    )
    assert options == main.Options(
        trainer_image="r/t:1", namespaces=("a", "b", "c"), lease=LeaseName("system", "operator")
    )


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "--trainer-image=x", "--health-address=nonsense"]]
)
def test_command_line_that_is_wrong(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.parse(arguments)
    assert stopped.value.code == 2


def test_pods_are_watched_by_label_under_the_key_that_works() -> None:
    """'v1/pods' would silently match nothing, and every pod of the cluster would come."""
    settings = handlers.settings()
    assert settings.watching.label_selectors[("v1", "pods")] == LABEL_JOB_UID
    assert settings.scanning.disabled

    assert settings.peering.standalone


def test_kopf_has_no_handler_that_writes() -> None:
    """No finalizer and no annotation: nothing but events."""
    registry = handlers.registry(None)  # type: ignore[arg-type]
    assert not list(registry._changing.get_all_handlers())
    assert not list(registry._spawning.get_all_handlers())
    assert len(list(registry._watching.get_all_handlers())) == 2


def test_status_of_a_job_event_does_not_matter() -> None:
    job: dict[str, Any] = {"metadata": {"uid": "1", "generation": 1}, "status": {"attempt": 1}}
    seen = handlers.matters(kopf.Body(job), is_deleted=False)
    job["status"] = {"attempt": 2}
    assert handlers.matters(kopf.Body(job), is_deleted=False) == seen
    assert handlers.matters(kopf.Body(job), is_deleted=True) != seen
    paused = job["metadata"] | {"annotations": {"lmtraining.dev/paused": "true"}}
    assert handlers.matters(kopf.Body(job | {"metadata": paused}), is_deleted=False) != seen
    job["metadata"]["generation"] = 2
    assert handlers.matters(kopf.Body(job), is_deleted=False) != seen


async def test_kopf_remembers_nothing_of_an_object() -> None:
    """Memory does not grow with the number of jobs that have ended."""
    memories = handlers.NoMemories()
    await memories.recall({"metadata": {"uid": "1"}}, noticed_by_listing=True)
    assert list(memories.iter_all_memories()) == []


def test_a_pod_to_which_nothing_has_happened_yet_wakes_nobody() -> None:
    """The operator that made it knows all of it."""
    metadata: dict[str, Any] = {"name": "tiny-1-0-0", "finalizers": ["kueue"]}
    status: dict[str, Any] = {"phase": "Pending", "qosClass": "Guaranteed"}
    made: dict[str, Any] = {"metadata": metadata, "spec": {}, "status": status}
    assert handlers.is_as_made(kopf.Body(made))
    assert handlers.is_as_made(kopf.Body({"metadata": metadata, "spec": {}}))
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    for happened in (
        {"metadata": metadata | {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"spec": {"nodeName": "one"}},
        {"status": status | {"conditions": [waits]}},
    ):
        assert not handlers.is_as_made(kopf.Body(made | happened))


def test_log_line_has_its_fields() -> None:
    record = logging.makeLogRecord(
        {"msg": "attempt %s", "args": (2,), "job": "tiny", "namespace": "team", "reason": "R"}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["job"], line["reason"]) == ("attempt 2", "tiny", "R")
    assert "team/tiny R attempt 2" in TextFormatter().format(record)


@pytest.mark.parametrize(
    ("lag", "oldest", "words"),
    [(0.0, 0.0, ""), (0.0, 40.0, ""), (11.0, 0.0, "event loop"), (0.0, 181.0, "a pass")],
)
def test_health(lag: float, oldest: float, words: str) -> None:
    found = health.problem(lag_seconds=lag, oldest_pass_seconds=oldest)
    assert words in found
    assert bool(found) is bool(words)


class Probes:
    """A loop whose time the test moves, and what the kubelet hears of it."""

    def __init__(self) -> None:
        self.now, self.pass_seconds, self.not_ready, self.port = 100.0, 0.0, "", 0
        self.health = health.Health(
            Metrics("test"),
            oldest_pass_seconds=lambda: self.pass_seconds,
            not_ready=lambda: self.not_ready,
            clock=lambda: self.now,
        )

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, content


@pytest.fixture
def probes() -> Iterator[Probes]:
    made = Probes()
    (port,) = free_ports(1)
    with health.served(made.health, "127.0.0.1", port):
        made.port = port
        yield made


def test_loop_that_stands_still_is_told_by_a_thread(probes: Probes) -> None:
    assert probes.get("/healthz") == (200, "ok")
    probes.now += health.LAG_SECONDS_MAX + 0.5
    code, words = probes.get("/healthz")
    assert code == 503
    assert "the event loop is 10.5 s late" in words
    assert probes.get("/readyz")[0] == 503


def test_pass_that_does_not_come_back_is_told(probes: Probes) -> None:
    probes.pass_seconds = health.PASS_SECONDS_MAX + 1
    probes.health.beat()
    assert "a pass over a job has lasted 181 s" in probes.get("/healthz")[1]


def test_operator_that_could_not_take_over_is_alive_but_not_ready(probes: Probes) -> None:
    probes.not_ready = "Lease a/b was last read or written 20 s ago"
    assert probes.get("/healthz")[0] == 200
    assert probes.get("/readyz") == (503, probes.not_ready)
    assert probes.get("/elsewhere")[0] == 404


def test_jobs_are_counted_by_state() -> None:
    metrics = Metrics("test")
    metrics.show_jobs(lambda: {"Training": 2}, oldest_unstarted_seconds=lambda: 0.0)
    value = metrics.registry.get_sample_value("lmtraining_operator_jobs", {"state": "Training"})
    assert value == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"<html>", "cannot be read"),
        (b"{}", "cannot be read"),
        (report_of(job_uid="another").model_dump_json().encode(), "another job"),
        (report_of(attempt=2).model_dump_json().encode(), "attempt 2, not 1"),
    ],
)
def test_stray_report_is_not_taken(content: bytes, words: str) -> None:
    with pytest.raises(ReportError, match=words):
        parse(content, job_uid=UID, attempt=1)


class Lead:
    """What the lead pod answers."""

    def __init__(self) -> None:
        self.answer = aiohttp.web.Response(body=report_of().model_dump_json(by_alias=True))
        self.asked = 0

    async def report(self, _: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        self.asked += 1
        return self.answer


@pytest.fixture
async def lead() -> AsyncIterator[Lead]:
    made = Lead()
    application = aiohttp.web.Application()
    application.router.add_get("/report", made.report)
    application.router.add_get("/elsewhere", made.report)
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, ADDRESS, REPORT_PORT).start()
    yield made
    await runner.cleanup()


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    made = Reports()
    yield made
    await made.close()


async def test_report_is_pulled(lead: Lead, reports: Reports) -> None:
    report = await reports.pull(ADDRESS, job_uid=UID, attempt=1)
    assert report.step == 12


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (aiohttp.web.Response(status=503), "HTTP 503"),
        (aiohttp.web.Response(status=302, headers={"Location": "/elsewhere"}), "HTTP 302"),
        (aiohttp.web.Response(body=b" " * (REPORT_BYTES_MAX + 1)), "more than"),
    ],
)
async def test_answer_that_is_no_report(
    lead: Lead, reports: Reports, answer: aiohttp.web.Response, words: str
) -> None:
    """No redirect is followed, and no more is read than a report may have."""
    lead.answer = answer
    with pytest.raises(ReportError, match=words):
        await reports.pull(ADDRESS, job_uid=UID, attempt=1)
    assert lead.asked == 1


async def test_nobody_answers(reports: Reports) -> None:
    with pytest.raises(ReportError, match="no connection"):
        await reports.pull("127.1.0.6", job_uid=UID, attempt=1)


async def test_warnings_are_the_newest_and_none_that_has_passed() -> None:
    """Events outlive what they complain of by an hour, and come in the order of their names."""
    world = World()
    world.now = START + timedelta(seconds=1000)

    def event(message: str, seconds: float, **more: Any) -> None:
        metadata = {"name": message}
        body = {"kind": "Event", "metadata": metadata, "type": "Warning", "message": message}
        time = (START + timedelta(seconds=seconds)).isoformat()
        world.add(body | {"involvedObject": {"uid": "u"}, "lastTimestamp": time} | more)

    event("b-new", 990)
    event("a-old", 840)
    event("c-middle", 900)
    again = (START + timedelta(seconds=999)).isoformat()
    event("d-again", 100, series={"lastObservedTime": again})
    found = await warning_events(world, "team", "u", world.now)
    assert [one["message"] for one in found] == ["d-again", "b-new", "c-middle"]


async def test_claim_that_cannot_be_made_says_why() -> None:
    world = World()
    made = world.add(job_body())
    await world.operator().look()
    claim = world.objects["PersistentVolumeClaim", "tiny-checkpoints"]
    world.add(
        {
            "kind": "Event",
            "type": "Warning",
            "metadata": {"name": "e"},
            "involvedObject": {"uid": claim["metadata"]["uid"]},
            "message": "access mode not supported",
        }
    )
    await world.operator().look()
    assert world.reason("Scheduled") == "VolumeNotReady"
    assert "tiny-checkpoints (Pending): access mode" in world.message("Scheduled")
    assert made["metadata"]["name"] == "tiny"


class AnswersTo:
    """A gateway whose LIST has one answer."""

    def __init__(self, error: ApiError | None) -> None:
        self.error = error

    async def close(self) -> None:
        """Nothing to close."""

    async def list_page(self, kind: str, namespace: str, *, limit: int) -> list[Any]:
        if self.error:
            raise self.error
        return []


@pytest.mark.parametrize("code", [None, 404, 503])
async def test_cluster_without_the_definition_is_told_at_once(code: int | None) -> None:
    gateway: Any = AnswersTo(ApiError(code, "R", "m") if code else None)
    if code != 404:
        await main.require_jobs(gateway, ())
        return
    with pytest.raises(SystemExit, match=r"lmtrainingjobs.lmtraining.dev: install the"):
        await main.require_jobs(gateway, ("team",))


def test_pod_with_nothing_in_it_is_pending() -> None:
    """A pod as it is right after its creation, and one that a stranger made."""
    view = pod_view({"metadata": {"name": "p", "uid": "u"}})
    assert (view.phase, view.address, view.exit, view.attempt) == ("Pending", "", None, -1)


def test_pod_view_reads_what_the_kubelet_and_the_scheduler_say() -> None:
    time = "2026-01-31T12:00:00Z"
    ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": time}
    view = pod_view(
        {
            "metadata": {"name": "p", "uid": "u", "deletionTimestamp": time},
            "spec": {"nodeName": "n"},
            "status": {
                "phase": "Failed",
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "reason": "Preemption"},
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"},
                ],
                "containerStatuses": [
                    {"name": "injected", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "trainer", "state": {"terminated": ended}},
                ],
            },
        }
    )
    assert view.is_deleting
    assert view.exit is not None
    assert (view.exit.code, view.exit.reason) == (137, "OOMKilled")
    assert view.disruption is not None
    assert view.disruption.reason == "Preemption"
    assert view.unschedulable_message == "unschedulable"


class Serving:
    """Answers in turn: errors, or a page of jobs."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.asked: list[str] = []

    async def list_page(self, kind: str, namespace: str, *, limit: int) -> list[object]:
        assert (kind, limit) == ("LMTrainingJob", 1)
        self.asked.append(namespace)
        code = self.codes.pop(0) if self.codes else 200
        if code != 200:
            raise ApiError(code, "Reason", "words of the server")
        return []


async def test_the_check_waits_until_jobs_are_served_in_every_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "POLL_SECONDS", 0.0)
    serving = Serving(404, 0, 200, 403, 200)
    assert await checking.trouble_with_jobs(serving, ("a", "b"), limit_seconds=60) == ""
    assert serving.asked == ["a", "a", "a", "b", "b"]
    everywhere = Serving()
    assert await checking.trouble_with_jobs(everywhere, (), limit_seconds=60) == ""
    assert everywhere.asked == [""]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (404, "the API server serves no lmtrainingjobs.lmtraining.dev: install the definition"),
        (403, "this account may not list lmtrainingjobs in namespace a: set rbac.create to true"),
        (0, "the API server does not answer for lmtrainingjobs in namespace a: 0 Reason"),
    ],
)
async def test_the_check_says_what_is_wrong_and_what_to_do(code: int, sentence: str) -> None:
    trouble = await checking.trouble_with_jobs(Serving(code), ("a",), limit_seconds=0)
    assert trouble.startswith(sentence)
