"""kopf at the rim: events wake, and nothing else.

Promise: no finalizer, no annotation, no write by kopf. Traps avoided: a label selector under the
key 'v1/pods' silently matches nothing, so it is the tuple; kopf would log in through the official
client when that is installed, so the login is explicit.
"""

from typing import Any, cast

import kopf
from kopf._core.reactor import inventory

from lmtraining_api import names
from lmtraining_operator.reconcile import JobKey
from lmtraining_operator.tasks import JobTasks

PODS = ("v1", "pods")
CHUNK_SIZE = 100
WATCH_SECONDS = 300
WATCH_CLIENT_SECONDS = 310
WATCH_CONNECT_SECONDS = 30
WORKER_IDLE_SECONDS = 0.05
"""How long kopf keeps a task, with the whole object, for the next event of it."""
REQUEST_SECONDS_MAX = 30
CONNECT_SECONDS_MAX = 5


def settings() -> kopf.OperatorSettings:
    """What notes and measurements of kopf advise for an operator that only listens."""
    made = kopf.OperatorSettings()
    made.scanning.disabled = True
    made.watching.label_selectors[PODS] = names.LABEL_JOB_UID
    made.watching.chunk_size = CHUNK_SIZE
    made.watching.server_timeout = WATCH_SECONDS
    made.watching.client_timeout = WATCH_CLIENT_SECONDS
    made.watching.connect_timeout = WATCH_CONNECT_SECONDS
    made.networking.request_timeout = REQUEST_SECONDS_MAX
    made.networking.connect_timeout = CONNECT_SECONDS_MAX
    made.queueing.idle_timeout = WORKER_IDLE_SECONDS
    made.peering.standalone = True
    made.persistence.diffbase_storage = NoDifferences()
    return made


class NoDifferences(kopf.DiffBaseStorage):
    """Nothing is compared with what it was: kopf would copy every object for that, at each event,
    a sixth of the operator's work with a thousand jobs."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return cast("kopf.BodyEssence", {})

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        """Nowhere."""


class NoMemories(inventory.ResourceMemories):
    """Nothing is remembered of an object between its events: that would be 0.9 KB for each job and
    pod there is, also of jobs that have ended. Handlers of events alone ask for none of it."""

    async def recall(self, raw_body: kopf.RawBody, **options: Any) -> inventory.ResourceMemory:
        return await super().recall(raw_body, **options | {"ephemeral": True})


def registry(tasks: JobTasks) -> kopf.OperatorRegistry:
    """The handlers, in a registry of their own."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    async def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=made)
    async def job_changed(*, body: kopf.Body, type: str | None, **_: object) -> None:  # noqa: A002
        key = JobKey(str(body.metadata.namespace), str(body.metadata.name))
        tasks.job_changed(key, matters(body, is_deleted=type == "DELETED"))

    @kopf.on.event(*PODS, labels={names.LABEL_JOB_UID: kopf.PRESENT}, registry=made)
    async def pod_changed(*, body: kopf.Body, type: str | None, **_: object) -> None:  # noqa: A002
        job = body.metadata.labels.get(names.LABEL_JOB_NAME)
        if job and not (type == "ADDED" and is_as_made(body)):
            tasks.wake(JobKey(str(body.metadata.namespace), job))

    return made


def matters(body: Any, *, is_deleted: bool) -> object:
    """What of a job's event can change the plan: all but status, which is ours."""
    metadata = body["metadata"]
    return (
        metadata.get("uid"),
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        (metadata.get("annotations") or {}).get(names.ANNOTATION_PAUSED),
        is_deleted,
    )


def is_as_made(pod: Any) -> bool:
    """Whether nothing has happened to the pod yet: whoever made it knows all of it."""
    return "deletionTimestamp" not in pod["metadata"] and not (
        pod["spec"].get("nodeName") or pod.get("status", {}).get("conditions")
    )
