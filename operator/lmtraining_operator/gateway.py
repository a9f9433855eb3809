"""The one door to the API server.

Promise: dict in, dict out; a LIST is a consistent read, never a cache; every request has a time
limit; a delete and a patch name the UID they mean; no write leaves here without the right to write,
asked for at that very moment. A server that is busy is asked again when it says; a token that it
does not take any more is read anew. Traps avoided: typed decoding (13 times slower, and it blocks
the loop); a child of another life of the same name; asking again after an answer that does not say
whether the request was carried out; a server-side apply is read as YAML, which knows no pairs of
surrogates: with the escapes of plain JSON, one 💥 in a message has the whole status refused.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from lmtraining_api import names

Object = dict[str, Any]

FIELD_MANAGER = names.GROUP
REQUEST_SECONDS_MAX = 30.0
CONNECT_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 64
ERROR_MESSAGE_LENGTH_MAX = 1024
BUSY_TRIES_MAX = 3
BUSY_SECONDS_MAX = 5.0
"""Longest wait for a busy server within one request; what is longer is the caller's to wait."""
RETRY_AFTER_SECONDS_MAX = 60.0

APPLY = "application/apply-patch+yaml; charset=utf-8"
"""With the charset, the client sends a text as it is."""
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409
TOO_MANY_REQUESTS = 429

_NOT_IN_YAML = re.compile(
    r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

_PATHS = {
    names.KIND: (f"/apis/{names.API_VERSION}", names.PLURAL),
    "Pod": ("/api/v1", "pods"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Event": ("/api/v1", "events"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Node": ("/api/v1", "nodes"),
    "Workload": ("/apis/kueue.x-k8s.io/v1beta2", "workloads"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
}


class ApiError(Exception):
    """An answer of the API server other than success; code 0 when there was none."""

    def __init__(
        self, code: int, reason: str, message: str, *, retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        """When the server wants to be asked again; 0 where it does not say."""


class Gateway(Protocol):
    """What the operator asks of the API server."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None when there is none."""

    async def list_objects(
        self, kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """The objects that match, as of now."""

    async def create(self, body: Object) -> Object:
        """Make it; ApiError 409 when the name is taken."""

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None
    ) -> None:
        """Delete exactly that one; harmless when it is gone. `grace_seconds` None: its own."""

    async def annotate(
        self, kind: str, namespace: str, name: str, *, uid: str, annotations: dict[str, str]
    ) -> None:
        """Set annotations of exactly that one; harmless when it is gone."""

    async def apply_status(self, body: Object) -> Object:
        """Server-side apply of a job's whole status; ApiError 409 when metadata.resourceVersion
        is not the newest or metadata.uid another."""


#: Told of each answer: verb, kind, code.
OnAnswer = Callable[[str, str, int, float], None]
"""Verb, kind, HTTP status (0: no answer) and seconds of a request."""


async def log_in(configuration: Configuration) -> None:
    """By the service account in a cluster, by the kubeconfig outside, as they are now."""
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Answer:
    """What came back."""

    code: int
    data: bytes
    retry_after: str


class KubernetesGateway:
    """`Gateway` over the official client's transport."""

    def __init__(
        self,
        client: ApiClient,
        on_answer: OnAnswer,
        *,
        may_write: Callable[[], bool] = lambda: True,
        log_in: Callable[[Configuration], Awaitable[None]] = log_in,
    ) -> None:
        self._client = client
        self._on_answer = on_answer
        self._may_write = may_write
        self._log_in = log_in

    @classmethod
    async def connect(
        cls, on_answer: OnAnswer, *, may_write: Callable[[], bool] = lambda: True
    ) -> "KubernetesGateway":
        configuration = Configuration()
        await log_in(configuration)
        configuration.connection_pool_maxsize = CONNECTIONS_MAX
        # Where the environment is trusted, each request looks into ~/.netrc, in a thread.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        return cls(ApiClient(configuration), on_answer, may_write=may_write)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return await self._request("GET", kind, namespace, name)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def list_objects(
        self, kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        query = {"labelSelector": labels, "fieldSelector": fields}
        answer = await self._request(
            "GET", kind, namespace, query={key: value for key, value in query.items() if value}
        )
        return [_lean(item) for item in answer["items"]]

    async def list_page(self, kind: str, namespace: str, *, limit: int) -> list[Object]:
        """The first objects of a namespace, or of all where it is empty."""
        answer = await self._request("GET", kind, namespace, query={"limit": str(limit)})
        return [_lean(item) for item in answer["items"]]

    async def create(self, body: Object) -> Object:
        return await self._request(
            "POST",
            body["kind"],
            body["metadata"]["namespace"],
            query={"fieldManager": FIELD_MANAGER},
            body=body,
        )

    async def replace(self, body: Object) -> Object:
        """Write it over the version that it names; ApiError 409 when that is not the newest."""
        metadata = body["metadata"]
        return await self._request(
            "PUT",
            body["kind"],
            metadata["namespace"],
            metadata["name"],
            query={"fieldManager": FIELD_MANAGER},
            body=body,
        )

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None
    ) -> None:
        options: Object = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._unless_gone("DELETE", kind, namespace, name, body=options)

    async def annotate(
        self, kind: str, namespace: str, name: str, *, uid: str, annotations: dict[str, str]
    ) -> None:
        await self._unless_gone(
            "PATCH",
            kind,
            namespace,
            name,
            query={"fieldManager": FIELD_MANAGER},
            body={"metadata": {"uid": uid, "annotations": annotations}},
            content_type="application/merge-patch+json",
        )

    async def apply_status(self, body: Object) -> Object:
        metadata = body["metadata"]
        return await self._request(
            "PATCH",
            names.KIND,
            metadata["namespace"],
            metadata["name"],
            subresource="status",
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=json_in_yaml(body),
            content_type=APPLY,
        )

    async def _unless_gone(
        self, verb: str, kind: str, namespace: str, name: str, **rest: Any
    ) -> None:
        try:
            await self._request(verb, kind, namespace, name, **rest)
        except ApiError as error:
            # 409: another object has the name by now; the one that was meant is gone.
            if error.code not in (NOT_FOUND, CONFLICT):
                raise

    async def _request(
        self,
        verb: str,
        kind: str,
        namespace: str,
        name: str = "",
        *,
        subresource: str = "",
        query: dict[str, str] | None = None,
        body: Object | str | None = None,
        content_type: str = "application/json",
    ) -> Object:
        root, plural = _PATHS[kind]
        space = f"namespaces/{namespace}" if namespace else ""
        parts = [root, space, plural, name, subresource]
        path = "/".join(part for part in parts if part)

        async def send() -> _Answer:
            request = await self._client.param_serialize(
                verb,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            if verb != "GET" and not self._may_write():
                raise ApiError(0, "NotLeader", "this operator does not hold the lease")
            return await self._counted(verb, kind, self._call(*request[:4]))

        answer = await self._answer(send)
        if answer.code >= 400:
            raise _error(answer)
        return _lean(json.loads(answer.data))

    async def _counted(self, verb: str, kind: str, call: Awaitable[_Answer]) -> _Answer:
        """The answer, once it is told; none at all is told as code 0."""
        loop = asyncio.get_running_loop()
        started, code = loop.time(), 0
        try:
            answer = await call
            code = answer.code
            return answer
        finally:
            self._on_answer(verb, kind, code, loop.time() - started)

    async def _answer(self, send: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The answer, after those that ask for another try and were surely not carried out."""
        answer = await send()
        if answer.code == UNAUTHORIZED:
            await self._log_in(self._client.configuration)
            answer = await send()
        for _ in range(BUSY_TRIES_MAX - 1):
            wait_seconds = seconds_of(answer.retry_after)
            if answer.code != TOO_MANY_REQUESTS or not 0 < wait_seconds <= BUSY_SECONDS_MAX:
                break
            await asyncio.sleep(wait_seconds)
            answer = await send()
        return answer

    async def _call(self, method: str, url: str, headers: dict[str, str], payload: Any) -> _Answer:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        try:
            answer = await self._client.call_api(
                method, url, header_params=headers, body=payload, _request_timeout=timeout
            )
            content = await answer.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from error
        retry_after = answer.getheader("Retry-After", "")  # type: ignore[no-untyped-call]
        return _Answer(int(answer.status), bytes(content), str(retry_after))


def json_in_yaml(body: Object) -> str:
    """The body as JSON that is YAML too: each character stands for itself where YAML prints it."""
    text = json.dumps(body, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    """Half a pair of surrogates is no character, and becomes the mark of one that is lost."""
    is_half = 0xD800 <= ord(character) <= 0xDFFF
    return "\\ufffd" if is_half else f"\\u{ord(character):04x}"


def _lean(found: Object) -> Object:
    """Without managedFields: half of an object's size, of which nobody here asks anything."""
    found.get("metadata", {}).pop("managedFields", None)
    return found


def seconds_of(retry_after: str) -> float:
    """What the header Retry-After asks for, within bounds; 0 where it is no number of seconds."""
    return min(float(retry_after), RETRY_AFTER_SECONDS_MAX) if retry_after.isdecimal() else 0.0


def _error(answer: _Answer) -> ApiError:
    """The API server's Status object, or whatever stood in its way."""
    try:
        status = json.loads(answer.data)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", answer.data.decode(errors="replace")
    return ApiError(
        answer.code,
        reason,
        message[:ERROR_MESSAGE_LENGTH_MAX],
        retry_after_seconds=seconds_of(answer.retry_after),
    )
