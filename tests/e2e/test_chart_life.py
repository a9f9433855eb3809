"""The chart is upgraded, taken back, removed and installed again under a job that trains on."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from devcluster import binaries
from devcluster.cluster import ensure_up
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.product import CHART, INSTALL_SECONDS_MAX, NAMESPACE, RELEASE, Product, install
from devcluster.waiting import wait_until
from lmtraining_api import ConditionType
from tests.e2e.jobs import Watcher, job

pytestmark = pytest.mark.e2e

GONE_SECONDS_MAX = 60
Helm = Callable[..., None]


@pytest.fixture
def helm(product: Product) -> Iterator[Helm]:
    """Helm on the cluster; where a test has failed half way, the product is installed after it."""
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
    if not operators(product):
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


def test_a_job_trains_on_through_upgrade_rollback_removal_and_reinstall(
    product: Product, kubectl: Kubectl, helm: Helm
) -> None:
    """P10: no pod is restarted, and the job outlives its operator's release."""
    kubectl.apply(job("lasting", training__budget={"steps": 100_000}, workers__replicas=1))
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
        "no operator is left", lambda: not operators(product), limit_seconds=GONE_SECONDS_MAX
    )
    assert watcher.status.attempt == 1, "the definition and the job stay"
    assert lives(watcher) == before

    install(ensure_up())
    watcher.wait_for_step(watcher.status.progress.step + 10)
    assert lives(watcher) == before
    kubectl.run("patch", "lmtj", "lasting", "--type=merge", "--patch", '{"spec":{"suspend":true}}')
    watcher.wait_for(ConditionType.SUCCEEDED, "Suspended")
    assert watcher.status.restarts.total == 0
