"""The chart is upgraded, taken back, removed and installed again under a job that trains on."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import binaries
from devcluster.cluster import ensure_up
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.product import CHART, INSTALL_SECONDS_MAX, NAMESPACE, RELEASE, Product, install
from devcluster.waiting import wait_until
from lmtraining_api import ConditionType
from tests.command_blocks import Tier, blocks_of, clean_copy, typed
from tests.e2e.jobs import ALONE, POLL_SECONDS, Watcher, job

pytestmark = pytest.mark.e2e

GONE_SECONDS_MAX = 60
Helm = Callable[..., None]


@pytest.fixture
def helm(product: Product) -> Iterator[Helm]:
    """Helm on the cluster; after the test the product is there as all other tests expect it."""
    program = binaries.ensure(["helm"], Layout.from_environment())["helm"]

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [
                *(str(program), "--kubeconfig", str(product.kubectl.kubeconfig)),
                *("--namespace", NAMESPACE, *arguments),
            ],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    yield run
    if len(operators(product)) != 1:
        install(ensure_up())


def lives(watcher: Watcher) -> dict[str, int]:
    """The pods of the job that run, and how often their containers have started again."""
    return {
        pod["metadata"]["uid"]: sum(c["restartCount"] for c in pod["status"]["containerStatuses"])
        for pod in watcher.pods()
        if pod["status"]["phase"] == "Running"
    }


def operators(product: Product) -> list[str]:
    found = product.kubectl.within(NAMESPACE).list("pods", "lmtraining.dev/component=operator")
    return [pod["metadata"]["uid"] for pod in found]


def install_as_told(product: Product, directory: Path) -> None:
    """As README and quick start say it, with the registry and the tags of the cluster's images."""
    (block,) = blocks_of(Tier.CHART)
    images = {}
    for name, image in (("image", product.operator_image), ("trainerImage", product.trainer_image)):
        repository, _, tag = image.rpartition(":")
        told = f"{name}.repository=REGISTRY/{repository.rpartition('/')[2]}"
        images[told] = f"{name}.repository={repository},{name}.tag={tag}"
    programs = f"{product.kubectl.binary.parent}:{os.environ['PATH']}"
    environment = {"PATH": programs, "KUBECONFIG": str(product.kubectl.kubeconfig)}
    typed(block, clean_copy(directory), environment=environment, instead=images)


def test_a_job_trains_on_through_upgrade_rollback_removal_and_reinstall(
    product: Product, kubectl: Kubectl, helm: Helm, tmp_path: Path
) -> None:
    """P10: no pod is restarted, and the job outlives its operator's release."""
    kubectl.apply(job("lasting", **ALONE, training__budget={"steps": 100_000}))
    watcher = Watcher(kubectl, "lasting")
    watcher.wait_for_step(10)
    before, first = lives(watcher), operators(product)
    assert list(before.values()) == [0]

    waits = ("--wait", "--timeout", f"{INSTALL_SECONDS_MAX}s")
    values = ("--reuse-values", "--set", "commonAnnotations.release=second")
    helm("upgrade", RELEASE, str(CHART), *values, *waits)
    assert not set(first) & set(operators(product)), "the operator was replaced"
    step = watcher.status.progress.step
    watcher.wait_for_step(step + 10)
    assert lives(watcher) == before

    helm("rollback", RELEASE, *waits)
    watcher.wait_for_step(watcher.status.progress.step + 10)
    assert lives(watcher) == before

    helm("uninstall", RELEASE, "--wait")
    wait_until(
        "no operator is left",
        lambda: not operators(product),
        limit_seconds=GONE_SECONDS_MAX,
        poll_seconds=POLL_SECONDS,
    )
    assert watcher.status.attempt == 1, "the definition and the job stay"
    assert lives(watcher) == before

    install_as_told(product, tmp_path)
    assert len(operators(product)) == 2
    watcher.wait_for_step(watcher.status.progress.step + 10)
    assert lives(watcher) == before
    kubectl.run("patch", "lmtj", "lasting", "--type=merge", "--patch", '{"spec":{"suspend":true}}')
    watcher.wait_for(ConditionType.SUCCEEDED, "Suspended")
    assert watcher.status.restarts.total == 0
