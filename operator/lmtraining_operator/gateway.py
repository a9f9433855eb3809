"""The one door to the API server.

Promise: dict in, dict out; a LIST is a consistent read, never a cache; every request has a time
limit; a delete and a patch name the UID they mean. Traps avoided: typed decoding (13 times slower,
and it blocks the loop); a child of another life of the same name.
"""

import json
from collections.abc import Callable
from typing import Any, Protocol

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

NOT_FOUND = 404
CONFLICT = 409

_PATHS = {
    names.KIND: (f"/apis/{names.API_VERSION}", names.PLURAL),
    "Pod": ("/api/v1", "pods"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Event": ("/api/v1", "events"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
}


class ApiError(Exception):
    """An answer of the API server other than success; code 0 when there was none."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


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
OnAnswer = Callable[[str, str, int], None]


class KubernetesGateway:
    """`Gateway` over the official client's transport."""

    def __init__(self, client: ApiClient, on_answer: OnAnswer) -> None:
        self._client = client
        self._on_answer = on_answer

    @classmethod
    async def connect(cls, on_answer: OnAnswer) -> "KubernetesGateway":
        """By the service account in a cluster, by the kubeconfig outside."""
        configuration = Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        configuration.connection_pool_maxsize = CONNECTIONS_MAX
        return cls(ApiClient(configuration), on_answer)

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
            body=body,
            content_type="application/apply-patch+yaml",
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
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        root, plural = _PATHS[kind]
        space = f"namespaces/{namespace}" if namespace else ""
        parts = [root, space, plural, name, subresource]
        method, url, headers, payload, _ = await self._client.param_serialize(
            verb,
            "/".join(part for part in parts if part),
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        code, data = await self._call(method, url, headers, payload)
        self._on_answer(verb, kind, code)
        if code >= 400:
            raise _error(code, data)
        return _lean(json.loads(data))

    async def _call(
        self, method: str, url: str, headers: dict[str, str], payload: Any
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        try:
            answer = await self._client.call_api(
                method, url, header_params=headers, body=payload, _request_timeout=timeout
            )
            content = await answer.read()  # type: ignore[no-untyped-call]
            return int(answer.status), bytes(content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from error


def _lean(found: Object) -> Object:
    """Without managedFields: half of an object's size, of which nobody here asks anything."""
    found.get("metadata", {}).pop("managedFields", None)
    return found


def _error(code: int, data: bytes) -> ApiError:
    """The API server's Status object, or whatever stood in its way."""
    try:
        status = json.loads(data)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", data.decode(errors="replace")
    return ApiError(code, reason, message[:ERROR_MESSAGE_LENGTH_MAX])
