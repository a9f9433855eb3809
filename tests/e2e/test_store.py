"""A run in an object store: real pods, a real client, a server on the node's own bridge."""

import json
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from devcluster.kubectl import Kubectl
from devcluster.node import NODE_ADDRESS
from tests.e2e.jobs import Watcher, job

pytestmark = pytest.mark.e2e

SECRET = "bucket-writer"


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


def test_a_run_lives_in_a_bucket(kubectl: Kubectl, endpoint: str) -> None:
    """P8, P11: its pods leave nothing behind on the node that counts; a deleted one goes on from
    the bucket; the login is nowhere to be read."""
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
    seen = kubectl.run("get", "lmtj,events,configmaps,pods", "-o", "yaml")
    assert login["secret"] not in seen
