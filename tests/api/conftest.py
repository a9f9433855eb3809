"""One real API server for all tests here, with our CRD; a namespace of its own for each test."""

import http.client
import json
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from devcluster import binaries
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from tests.api.definition import ANSWER_SECONDS_MAX, define_jobs

JOBS = "/apis/lmtraining.dev/v1alpha1/namespaces/{namespace}/lmtrainingjobs"
APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Answer:
    """What the API server said, with what only a header says."""

    code: int
    body: dict[str, Any]
    warnings: list[str]

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Field and message of each problem of a refused object."""
        found = self.body.get("details", {}).get("causes", [])
        return [(cause.get("field", ""), cause["message"]) for cause in found]


@dataclass
class Jobs:
    """LMTrainingJobs of one namespace, over one connection: plain HTTP, so that a test sees what
    any client would see."""

    server: ApiServer
    namespace: str
    _connection: http.client.HTTPSConnection = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.server.ca))
        self._connection = http.client.HTTPSConnection(
            urlsplit(self.server.url).netloc, context=context, timeout=ANSWER_SECONDS_MAX
        )

    def create(self, document: dict[str, Any], query: str = "") -> Answer:
        return self.request("POST", query, document)

    def get(self, name: str = "") -> dict[str, Any]:
        return self.request("GET", f"/{name}").body

    def list(self, query: str) -> list[str]:
        """Names of the jobs that a query picks."""
        return [job["metadata"]["name"] for job in self.request("GET", query).body["items"]]

    def apply_status(self, name: str, status: dict[str, Any], manager: str = "operator") -> Answer:
        """Server-side apply on /status."""
        document = {"apiVersion": "lmtraining.dev/v1alpha1", "kind": "LMTrainingJob"}
        return self.request(
            "PATCH",
            f"/{name}/status?fieldManager={manager}&force=true",
            document | {"metadata": {"name": name}, "status": status},
            content_type=APPLY,
        )

    def merge(self, name: str, patch: dict[str, Any], subresource: str = "") -> Answer:
        path = f"/{name}/{subresource}".rstrip("/")
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Answer:
        headers = {
            "Authorization": f"Bearer {self.server.admin_token}",
            "Content-Type": content_type,
            "Accept": accept,
        }
        self._connection.request(
            method,
            JOBS.format(namespace=self.namespace) + path,
            None if body is None else json.dumps(body),
            headers,
        )
        response = self._connection.getresponse()
        warnings = response.headers.get_all("Warning", [])
        return Answer(response.status, json.loads(response.read()), warnings)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serving(tmp_path_factory.mktemp("api-server")) as server:
        yield server


@contextmanager
def serving(directory: Path) -> Iterator[ApiServer]:
    """etcd and kube-apiserver with the CRD established."""
    with ApiServer(directory) as server:
        kubectl = _kubectl(server)
        define_jobs(kubectl)
        yield server


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A namespace that no other test has used."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    _kubectl(api_server).run("create", "namespace", name)
    return name


@pytest.fixture
def kubectl(api_server: ApiServer, namespace: str) -> Kubectl:
    """kubectl in the test's namespace."""
    return _kubectl(api_server).within(namespace)


@pytest.fixture
def jobs(api_server: ApiServer, namespace: str) -> Iterator[Jobs]:
    """The jobs of the test's namespace."""
    client = Jobs(api_server, namespace)
    yield client
    client.close()


def _kubectl(server: ApiServer) -> Kubectl:
    program = binaries.ensure(["kubectl"], Layout.from_environment())["kubectl"]
    return Kubectl(program, server.kubeconfig)
