"""Which gang and which round a pod joins, asked of real report servers."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import JobFile, TrainerReport
from lmtraining_api.records import gang_digest
from lmtraining_trainer.report_server import JSON, Page, ReportServer
from lmtraining_trainer.run.fence import Fence
from lmtraining_trainer.supervisor.assignment import Assignment
from lmtraining_trainer.supervisor.identity import Identity
from lmtraining_trainer.supervisor.meeting import Meeting
from tests.unit.test_supervisor_intent import JOB

pytestmark = pytest.mark.unit

UIDS = ("pod-0", "pod-1", "pod-2")
DIGEST = gang_digest(UIDS)
OLD = gang_digest(("pod-0", "pod-1", "pod-x"))
TURNS_MAX = 40


def job(directory: Path) -> JobFile:
    workers = JOB.spec.workers.model_copy(update={"replicas": 3})
    spec = JOB.spec.model_copy(update={"workers": workers})
    return JOB.model_copy(update={"spec": spec, "run_directory": str(directory)})


def intent(*replicas: int) -> str:
    peers = [{"replica": r, "podUid": UIDS[r], "address": f"127.0.3.{r + 1}"} for r in replicas]
    return json.dumps({"jobUid": "uid", "attempt": 3, "generation": 1, "peers": peers})


@contextmanager
def served(reports: Mapping[int, Mapping[str, Any]]) -> Iterator[int]:
    """What these replicas say of themselves; the port."""
    with ExitStack() as stack:
        with socket.socket() as listener:
            listener.bind(("127.0.3.9", 0))
            port: int = listener.getsockname()[1]
        for replica, said in reports.items():
            values = {"job_uid": "uid", "attempt": 3, "state": "Waiting"}
            times = {"report_time": datetime.now(UTC), "gang": DIGEST}
            report = TrainerReport.model_validate(values | times | dict(said))
            body = report.model_dump_json(by_alias=True).encode()
            pages = {"/report": Page(body=lambda body=body: body, content_type=JSON)}
            server = ReportServer(host=f"127.0.3.{replica + 1}", port=port, pages=pages)
            server.start()
            stack.callback(server.stop)
        yield port


def met(
    directory: Path, replica: int, reports: Mapping[int, Mapping[str, Any]], *, past: int = 0
) -> int | None:
    """The round that this replica joins, or None where it waits."""
    left = TURNS_MAX

    def turn(_seconds: float) -> bool:
        nonlocal left
        left -= 1
        return left > 0

    with served(reports) as port:
        meeting = Meeting(
            assignment=Assignment(
                identity=Identity(
                    pod_uid=UIDS[replica], pod_name="job", attempt=3, replica=replica
                ),
                job=job(directory),
                read_intent=lambda: intent(0, 1, 2),
                report_port=port,
            ),
            turn=turn,
            waits=lambda _: None,
            goes_by=lambda _: None,
        )
        found = meeting.next(past=past)
    return found[1] if found else None


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ({1: {"round": 0}, 2: {"round": 0}}, 1),  # the first start
        ({1: {"round": 4}, 2: {"round": 0}}, 5),  # two pods were replaced
        ({1: {"round": 4}, 2: {"round": 6}}, 7),
        ({1: {"round": 4}}, None),  # one is not heard: it may have been further
        ({1: {"round": 4}, 2: {"round": 4, "gang": OLD}}, None),  # it may follow the old lead yet
        ({1: {"round": 4}, 2: {"round": 4, "gang": ""}}, None),
        ({1: {"round": 4}, 2: {"round": 9, "attempt": 2}}, None),
    ],
)
def test_new_lead_counts_from_where_the_others_were(
    tmp_path: Path, reports: dict[int, dict[str, Any]], expected: int | None
) -> None:
    """P1: a round of an attempt has one lead."""
    assert met(tmp_path, 0, reports) == expected


def test_new_lead_knows_the_round_that_wrote(tmp_path: Path) -> None:
    """P1: also where all others are new as well."""
    Fence(directory=tmp_path, job_uid="uid", attempt=3, round=8).raise_it()
    fresh = {1: {"round": 0}, 2: {"round": 0}}
    assert met(tmp_path, 0, fresh) == 9


def test_rounds_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    Fence(directory=tmp_path, job_uid="uid", attempt=2, round=8).raise_it()
    assert met(tmp_path, 0, {1: {"round": 0}, 2: {"round": 0}}) == 1


def test_lead_that_has_gone_on_asks_nobody(tmp_path: Path) -> None:
    assert met(tmp_path, 0, {}, past=4) == 5


@pytest.mark.parametrize(
    ("lead", "past", "expected"),
    [
        ({"round": 1}, 0, 1),
        ({"round": 5}, 4, 5),
        ({"round": 4}, 4, None),
        ({"round": 5, "gang": OLD}, 4, None),
        ({"round": 5, "state": "Failed"}, 4, None),
    ],
)
def test_others_go_with_the_lead_of_their_table(
    tmp_path: Path, lead: dict[str, Any], past: int, expected: int | None
) -> None:
    assert met(tmp_path, 1, {0: lead}, past=past) == expected
