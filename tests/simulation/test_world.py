"""The simulated world is like the real one where operators trip."""

from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_operator.gateway import ApiError, Object
from tests.simulation.server import OPERATOR, ApiServer
from tests.simulation.world import Shape

pytestmark = pytest.mark.simulation

JOB = (api.KIND, "tiny")
POD = ("Pod", "tiny-1-0-0")


class Bench:
    """A server and its clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.server = ApiServer(lambda: self.seconds)
        self.job = self.server.create(Shape().job(), "person")

    def pod(self, **spec: Any) -> Object:
        owner = {"kind": api.KIND, "name": "tiny", "uid": self.job["metadata"]["uid"]}
        return self.server.create(
            {
                "kind": "Pod",
                "metadata": {"name": POD[1], "ownerReferences": [owner]},
                "spec": {"terminationGracePeriodSeconds": 20} | spec,
            },
            OPERATOR,
        )

    def apply(self, status: Object, **metadata: str) -> Object:
        current = self.server.objects[JOB]["metadata"]
        named = {"name": "tiny", "uid": current["uid"]} | metadata
        body = {"kind": api.KIND, "metadata": named, "status": status}
        return self.server.apply_status(body, OPERATOR)


def code_of(error: pytest.ExceptionInfo[ApiError]) -> int:
    return error.value.code


def test_status_is_applied_on_the_version_that_was_seen() -> None:
    bench = Bench()
    seen = bench.job["metadata"]["resourceVersion"]
    bench.apply({"attempt": 1}, resourceVersion=seen)
    with pytest.raises(ApiError) as error:
        bench.apply({"attempt": 2}, resourceVersion=seen)
    assert code_of(error) == 409
    with pytest.raises(ApiError) as error:
        bench.apply({"attempt": 2}, uid="another")
    assert code_of(error) == 409


def test_apply_removes_what_it_named_before_and_leaves_what_others_wrote() -> None:
    bench = Bench()
    bench.apply({"attempt": 1, "round": 1})
    bench.server.edit_status_by_hand(JOB, "person", {"note": "mine"})
    made = bench.apply({"attempt": 2})
    assert made["status"] == {"attempt": 2, "note": "mine"}
    assert made["metadata"]["generation"] == 1


def test_write_that_changes_nothing_is_noted_and_makes_no_version() -> None:
    bench = Bench()
    pod = bench.pod()
    bench.apply({"attempt": 1})
    version = bench.server.version
    bench.apply({"attempt": 1})
    bench.server.annotate(POD, OPERATOR, uid=pod["metadata"]["uid"], annotations={})
    assert bench.server.version == version
    assert len(bench.server.empty_writes) == 2


@pytest.mark.parametrize(
    ("spec", "status", "grace", "is_gone"),
    [
        ({}, {"phase": "Pending"}, None, True),
        ({"nodeName": "n"}, {"phase": "Running"}, None, False),
        ({"nodeName": "n"}, {"phase": "Running"}, 5, False),
        ({"nodeName": "n"}, {"phase": "Running"}, 0, True),
        ({"nodeName": "n"}, {"phase": "Failed"}, None, True),
    ],
)
def test_pod_that_may_run_has_its_time_to_stop(
    spec: Object, status: Object, grace: int | None, is_gone: bool
) -> None:
    bench = Bench()
    uid = bench.pod(**spec)["metadata"]["uid"]
    bench.server.set_pod(uid, "kubelet", **status)
    with pytest.raises(ApiError) as error:
        bench.server.delete(POD, OPERATOR, uid="another", grace_seconds=grace)
    assert code_of(error) == 409
    bench.server.delete(POD, OPERATOR, uid=uid, grace_seconds=grace)
    assert (POD not in bench.server.objects) is is_gone
    if not is_gone:
        metadata = bench.server.objects[POD]["metadata"]
        assert metadata["deletionGracePeriodSeconds"] == (grace or 20)


def test_children_follow_their_owner() -> None:
    bench = Bench()
    bench.pod()
    bench.server.collect_garbage()
    assert POD in bench.server.objects
    bench.server.delete(JOB, "person", uid="", grace_seconds=None)
    bench.server.collect_garbage()
    assert POD not in bench.server.objects


def test_past_can_be_read() -> None:
    bench = Bench()
    bench.seconds = 5.0
    bench.pod()
    assert POD not in bench.server.at(4.9)
    assert POD in bench.server.at(5.0)


def test_name_that_is_taken_and_quota_that_is_full() -> None:
    bench = Bench()
    bench.pod()
    with pytest.raises(ApiError) as error:
        bench.pod()
    assert code_of(error) == 409
    bench.server.refused["Pod"] = "exceeded quota"
    bench.server.remove_pod(bench.server.objects[POD]["metadata"]["uid"], "person")
    with pytest.raises(ApiError) as error:
        bench.pod()
    assert code_of(error) == 403
