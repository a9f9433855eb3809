"""One job's passes against a world in memory: writes, refusals, reports, other lives."""

import pytest

from lmtraining_api import names as api
from lmtraining_api.exits import FailureClass
from lmtraining_api.status import ConditionType
from lmtraining_operator.apply import batches
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.plan import Create, PublishEvent, SetIntent
from lmtraining_operator.plan.writes import PROGRESS_SECONDS, REPORT_SECONDS_MIN
from lmtraining_operator.reconcile import MISSING_SECONDS
from tests.unit.operator_world import CrashError, World, job_body

pytestmark = pytest.mark.unit


@pytest.fixture
def world() -> World:
    made = World()
    made.add(job_body())
    return made


async def test_status_is_written_before_the_first_child(world: World) -> None:
    """P1: a crash after the first write leaves the attempt and none of its pods."""
    world.crash_at_write, world.crash_after = 1, True
    with pytest.raises(CrashError):
        await world.operator().look()
    assert world.status.attempt == 1
    assert world.pods == []
    await world.operator().look()
    assert len(world.pods) == 2
    assert world.status.attempt == 1


async def test_a_job_waits_for_its_pods_until_all_of_them_have_run(world: World) -> None:
    operator = world.operator()
    assert operator.unstarted_seconds == 0.0, "nothing is known yet"
    await operator.look()
    world.pass_time(90)
    assert operator.unstarted_seconds == 90.0
    world.start_all()
    await operator.look()
    world.pass_time(90)
    assert operator.unstarted_seconds == 0.0


async def test_other_words_are_written_when_their_write_is_due(world: World) -> None:
    """P4: also where no report comes that would carry them."""

    def scheduled() -> str:
        condition = world.status.condition(ConditionType.SCHEDULED)
        return condition.message if condition else ""

    operator = world.operator()
    await operator.look()
    for pod in world.pods:
        pod["spec"]["schedulingGates"] = [{"name": "example.com/one"}]
    await operator.look()
    for pod in world.pods:
        pod["spec"]["schedulingGates"] = [{"name": "example.com/other"}]
    waited_seconds = 0.0
    while "example.com/one" in scheduled() and waited_seconds < PROGRESS_SECONDS:
        outcome = await operator.look()
        world.pass_time(outcome.look_seconds)
        waited_seconds += outcome.look_seconds
    await operator.look()
    assert "example.com/other" in scheduled()
    assert waited_seconds == PROGRESS_SECONDS


async def test_whole_life_costs_few_writes(world: World) -> None:
    operator = world.operator()
    await operator.look()
    world.start_all()
    await operator.look()
    for _ in range(30):
        world.pass_time(REPORT_SECONDS_MIN)
        world.train(steps=1)
        await operator.pull_report()
        await operator.after_report()
    outcome = await operator.look()
    assert outcome.is_done
    assert world.reason() == "Completed"
    trained_seconds = 20 * REPORT_SECONDS_MIN
    assert len(world.status_writes) <= 4 + trained_seconds / PROGRESS_SECONDS + 1
    assert world.status.metrics.loss == "3.25", "the exit record has the last word"


@pytest.mark.parametrize("seconds", [None, 600])
async def test_what_is_left_of_an_ended_job_goes_when_it_has_been_kept(
    world: World, seconds: int | None
) -> None:
    """Its record stays as it was (P2), and so does the claim; without the field all of it stays."""
    if seconds is not None:
        world.job["spec"]["keepPodsSeconds"] = seconds
    await world.operator().look()
    world.start_all()
    await world.operator().look()
    world.train(steps=20)
    outcome = await world.operator().look()
    assert world.reason() == "Completed"
    assert outcome.is_done is (seconds is None), "somebody must come back"
    world.pass_time(599)
    left = set(world.objects)
    outcome = await world.operator().look()
    assert set(world.objects) == left, "kept until then"
    if seconds is None:
        return
    assert outcome.look_seconds == 1
    world.pass_time(1)
    for _ in range(3):  # the pods, a first time; the rest; nothing
        outcome = await world.operator().look()
    assert {kind for kind, _ in world.objects} == {api.KIND, "PersistentVolumeClaim", "Event"}
    assert outcome.is_done
    assert world.reason() == "Completed"
    world.objects["ConfigMap", "tiny-job-file"] = {
        "kind": "ConfigMap",
        "metadata": {"name": "tiny-job-file", "uid": "x"},
    }
    await world.operator().look()
    assert ("ConfigMap", "tiny-job-file") in world.objects, "somebody else's"


async def test_trouble_is_an_event_also_of_a_job_that_was_never_looked_at(world: World) -> None:
    """Once, however often it is told."""
    operator = world.operator()
    for _ in range(2):
        await operator.tell_trouble("422 Invalid: status is too long")
    (event,) = [one for (kind, _), one in world.objects.items() if kind == "Event"]
    assert (event["reason"], event["type"]) == ("ReconcileFailed", "Warning")
    assert event["message"] == "422 Invalid: status is too long"
    assert event["involvedObject"]["name"] == "tiny"
    assert operator.event_errors == []


async def test_pods_that_are_all_made_cost_no_question_about_what_they_need(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand jobs that start are a thousand times fewer."""
    operator = world.operator()
    await operator.look()
    asked: list[str] = []
    get = world.get

    async def noted(kind: str, namespace: str, name: str) -> object:
        asked.append(kind)
        return await get(kind, namespace, name)

    monkeypatch.setattr(world, "get", noted)
    await operator.look()
    assert set(asked) == {api.KIND, "PersistentVolumeClaim"}
    del world.objects["Pod", world.pods[0]["metadata"]["name"]]
    await operator.look()
    assert {"ConfigMap", "NetworkPolicy"} < set(asked)


async def test_second_look_at_a_still_world_writes_nothing(world: World) -> None:
    """P12: it gets there, and stays."""
    operator = world.operator()
    await operator.look()
    world.start_all()
    await operator.look()
    version = {key: one["metadata"]["resourceVersion"] for key, one in world.objects.items()}
    for one in (operator, world.operator()):
        await one.look()
    assert {k: o["metadata"]["resourceVersion"] for k, o in world.objects.items()} == version


async def test_view_that_has_grown_old_changes_nothing(world: World) -> None:
    """A status is applied on the version that was seen: a conflict means look again."""
    operator = world.operator()
    original = world.apply_status

    async def edited_first(body: dict[str, object]) -> dict[str, object]:
        world.apply_status = original  # type: ignore[method-assign]
        world.edit(suspend=True)
        return await original(body)

    world.apply_status = edited_first  # type: ignore[assignment,method-assign]
    outcome = await operator.look()
    assert world.pods == []
    assert world.status_writes == []
    assert outcome.look_seconds < 1
    await operator.look()
    assert world.reason() == "Suspended"


async def test_job_deleted_in_the_middle_of_a_pass_is_no_error(world: World) -> None:
    operator = world.operator()
    original = world.apply_status

    async def deleted_first(body: dict[str, object]) -> dict[str, object]:
        del world.objects[api.KIND, "tiny"]
        return await original(body)

    world.apply_status = deleted_first  # type: ignore[assignment,method-assign]
    assert (await operator.look()).look_seconds < 1
    assert world.pods == []
    world.pass_time(MISSING_SECONDS)
    await operator.look()
    world.pass_time(MISSING_SECONDS)
    assert (await operator.look()).is_gone


async def test_job_of_the_same_name_is_another_job(world: World) -> None:
    """P1: what belongs to the other life is neither adopted nor touched, but waited for; P4: nobody
    is told to delete what goes by itself."""
    operator = world.operator()
    await operator.look()
    old = world.job["metadata"]["uid"]
    del world.objects[api.KIND, "tiny"]
    world.add(job_body())
    await operator.look()
    outcome = await operator.look()
    assert outcome.look_seconds < 1, "what goes is soon gone"
    assert world.reason("Scheduled") == "Pending"
    world.pass_time(PROGRESS_SECONDS)
    await operator.look()
    assert "waiting until ConfigMap tiny-job-file is gone" in world.message("Scheduled")
    assert old in world.message("Scheduled")
    assert {pod["metadata"]["labels"][api.LABEL_JOB_UID] for pod in world.pods} == {old}
    for kind, name in list(world.objects):
        if kind in ("Pod", "ConfigMap", "NetworkPolicy"):
            del world.objects[kind, name]
    world.pass_time(5)
    await operator.look()
    assert len(world.pods) == 2
    assert "PersistentVolumeClaim/tiny-checkpoints" in world.creates
    assert world.creates.count("PersistentVolumeClaim/tiny-checkpoints") == 1, "the claim is reused"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "NameTaken"),
        ({"deletionTimestamp": "2026-01-31T12:00:00Z"}, "Pending"),
        ({"ownerReferences": [{"kind": api.KIND, "name": "tiny", "uid": "old"}]}, "Pending"),
        ({"ownerReferences": [{"kind": api.KIND, "name": "other", "uid": "old"}]}, "NameTaken"),
    ],
)
async def test_advice_to_delete_is_for_what_stays(
    world: World, metadata: dict[str, object], reason: str
) -> None:
    world.add({"kind": "ConfigMap", "metadata": {"name": "tiny-job-file"} | metadata})
    operator = world.operator()
    for _ in range(2):
        await operator.look()
    assert world.reason("Scheduled") == reason
    assert ("delete it" in world.message("Scheduled")) is (reason == "NameTaken")
    assert "Pod/tiny-1-0-0" not in world.creates


async def test_gone_job_is_done(world: World) -> None:
    """P5: a GET that says 404 is the end, whether an event came or not, once it has said so for a
    while: a server that lags behind may not know of the job yet."""
    operator = world.operator()
    await operator.look()
    job = world.objects.pop((api.KIND, "tiny"))
    assert (await operator.look()).look_seconds == MISSING_SECONDS
    world.pass_time(MISSING_SECONDS / 2)
    outcome = await operator.look()
    assert (outcome.look_seconds, outcome.is_done) == (MISSING_SECONDS / 2, False)
    world.objects[api.KIND, "tiny"] = job
    await operator.look()
    del world.objects[api.KIND, "tiny"]
    assert not (await operator.look()).is_done, "it was there meanwhile"
    world.pass_time(MISSING_SECONDS)
    outcome = await operator.look()
    assert outcome.is_done
    assert outcome.is_gone


async def test_refusal_is_said_at_once_and_tried_again_slowly(world: World) -> None:
    world.forbid["Pod"] = "exceeded quota: team"
    operator = world.operator()
    outcome = await operator.look()
    assert outcome.look_seconds < 1, "there is news to say"
    offered = len(world.status_writes)
    outcome = await operator.look()
    assert world.reason("Scheduled") == "QuotaExceeded"
    assert outcome.look_seconds > 1
    assert len(world.status_writes) == offered + 1
    world.forbid.clear()
    world.pass_time(outcome.look_seconds)
    outcome = await operator.look()
    assert len(world.pods) == 2
    assert outcome.look_seconds < 1, "P4: they are made, and status says that they are refused"
    await operator.look()
    assert world.reason("Scheduled") == "Starting"


async def test_answer_other_than_a_refusal_ends_the_pass(world: World) -> None:
    world.fail_next = ApiError(500, "InternalError", "etcd is away")
    with pytest.raises(ApiError):
        await world.operator().look()
    assert world.pods == []


async def test_event_that_cannot_be_written_stops_nothing(world: World) -> None:
    world.forbid["Event"] = "no events here"
    operator = world.operator()
    await operator.look()
    assert len(world.pods) == 2
    assert [error.code for error in operator.event_errors] == [403]


async def test_event_is_written_once_for_two_operators(world: World) -> None:
    for _ in range(2):
        await world.operator().look()
    assert len([name for name in world.creates if name.startswith("Event/")]) == 1


async def test_report_alone_never_acts(world: World) -> None:
    """Between two LISTs a report changes figures; what else comes of it is seen afresh."""
    operator = world.operator()
    await operator.look()
    world.start_all()
    await operator.look()
    world.train(steps=1)
    await operator.pull_report()
    world.fail_pod(world.pods[1], FailureClass.HANG)
    await operator.after_report()
    assert world.status.last_failure is not None, "Training would have been said of a lost gang"
    assert world.reason() == "Recovering"


async def test_silence_is_remembered_from_its_beginning(world: World) -> None:
    operator = world.operator()
    await operator.look()
    world.start_all()
    await operator.look()
    world.train(steps=1)
    await operator.pull_report()
    await operator.after_report()
    world.is_silent = True
    for _ in range(8):
        world.pass_time(REPORT_SECONDS_MIN)
        await operator.pull_report()
        await operator.after_report()
    assert world.reason("Progressing") == "Unreachable"
    assert "2026-01-31T12:00:02Z" in world.message("Progressing")


def test_what_pods_need_is_made_together_then_the_pods_and_all_else_in_order() -> None:
    pods = [Create(body={"kind": "Pod", "metadata": {"name": str(n)}}) for n in range(20)]
    config_map = Create(body={"kind": "ConfigMap", "metadata": {"name": "a"}})
    intent = SetIntent(name="0", uid="0", intent="")
    event = PublishEvent(type="Normal", reason="R", message="", attempt=1)
    policy = Create(body={"kind": "NetworkPolicy", "metadata": {"name": "a"}})
    found = batches([config_map, policy, *pods, intent, intent, event])
    assert [len(batch) for batch in found] == [2, 16, 4, 2, 1]


async def test_report_is_pulled_though_the_clock_was_set_back(world: World) -> None:
    """P4: an hour of the clock is no hour without figures."""
    operator = world.operator()
    await operator.look()
    world.start_all()
    await operator.look()
    world.train(steps=1)
    await operator.pull_report()
    world.pass_time(-3600)
    outcome = await operator.look()
    assert outcome.report_seconds is not None
    assert outcome.report_seconds <= REPORT_SECONDS_MIN
