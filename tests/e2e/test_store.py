"""A run in an object store: real pods, a real client, a server on the node's own bridge."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from devcluster.kubectl import Kubectl
from devcluster.node import NODE_ADDRESS
from devcluster.product import NAMESPACE, RELEASE, Product
from tests.e2e.jobs import Watcher, job

pytestmark = pytest.mark.e2e

SECRET = "bucket-writer"
CORPUS = Path("/usr/lib/python3.11/asyncio")
TRAINING_TEXT = "Base implementation of event loop"
"""Words of what the job trains on."""
ENOUGH_TO_SEARCH = 200
OPERATOR_SELECTOR = ("--selector", f"app.kubernetes.io/instance={RELEASE}")
OPERATOR = ("--namespace", NAMESPACE, *OPERATOR_SELECTOR, "--tail=-1")


@pytest.fixture
def endpoint(kubectl: Kubectl) -> Iterator[str]:
    """An S3 server that pods reach, and nobody outside this machine."""
    server = ThreadedMotoServer(ip_address=NODE_ADDRESS, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_a_run_lives_in_a_bucket(product: Product, kubectl: Kubectl, endpoint: str) -> None:
    """P8, P11: its pods leave nothing behind on the node that counts; a deleted one goes on from
    the bucket; neither the login nor the text is anywhere to be read."""
    assert any(TRAINING_TEXT in path.read_text() for path in CORPUS.glob("*.py"))
    login = {"key": "writer", "secret": uuid.uuid4().hex}
    files = fsspec.filesystem("s3", endpoint_url=endpoint, **login)
    bucket = f"runs-{uuid.uuid4().hex}"  # other servers of this process have the same buckets
    files.mkdir(bucket)
    options = [f"--from-literal={k}={v}" for k, v in {"endpoint_url": endpoint, **login}.items()]
    kubectl.run("create", "secret", "generic", SECRET, *options)
    storage = {"uri": f"s3://{bucket}/team", "credentials": {"secretRef": {"name": SECRET}}}
    kubectl.apply(job("bucket", checkpoint__storage=storage))
    watcher = Watcher(kubectl, "bucket")

    watcher.wait("a checkpoint", lambda s: s.checkpoint is not None and s.progress.step >= 60)
    told = [answer_of(kubectl, pod["metadata"]["name"]) for pod in watcher.pods()]
    kubectl.run("delete", "pod", watcher.pods()[0]["metadata"]["name"], "--wait=false")
    ended = watcher.wait_for_end()

    assert watcher.reason() == "Completed", watcher.message()
    assert ended.last_recovery is not None
    assert ended.last_recovery.resumed_from_step
    assert not kubectl.list("pvc", "")
    (export,) = files.glob(f"{bucket}/team/runs/*/export/model.safetensors")
    assert files.size(export) > 0
    for manifest in files.glob(f"{bucket}/team/runs/*/checkpoints/step-*/manifest.json"):
        kept = {path.rsplit("/", 1)[1] for path in files.ls(manifest.rsplit("/", 1)[0])}
        assert {*json.loads(files.cat(manifest))["files"], "intact.json"} <= kept
    told.append(kubectl.run("get", "lmtj,events,configmaps,pods", "-o", "yaml"))
    told.append(product.kubectl.run("logs", *OPERATOR))
    told.append(product.kubectl.run("get", "--raw", f"{operator_pod(product)}:9090/proxy/metrics"))
    for text in told:
        assert len(text) > ENOUGH_TO_SEARCH
        assert login["secret"] not in text
        assert TRAINING_TEXT not in text


def answer_of(kubectl: Kubectl, pod: str) -> str:
    """Everything that a trainer pod answers."""
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}:8080/proxy"
    return "".join(kubectl.run("get", "--raw", f"{path}/{page}") for page in ("report", "metrics"))


def operator_pod(product: Product) -> str:
    """Its path in the API."""
    found = product.kubectl.get("pods", "--namespace", NAMESPACE, *OPERATOR_SELECTOR)["items"]
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{found[0]['metadata']['name']}"
