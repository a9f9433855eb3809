"""The real cluster, the product installed through its chart, a restricted namespace per test."""

import uuid
from collections.abc import Iterator

import pytest

from devcluster.cluster import ensure_up
from devcluster.kubectl import Kubectl
from devcluster.product import Product, ensure_namespace, install


@pytest.fixture(scope="session")
def product() -> Product:
    """Cluster up, images pushed, chart installed; left up for the next run."""
    return install(ensure_up())


@pytest.fixture
def kubectl(product: Product) -> Iterator[Kubectl]:
    """kubectl within a namespace of the test's own that enforces the restricted level."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    ensure_namespace(product.kubectl, namespace)
    yield product.kubectl.within(namespace)
    product.kubectl.run("delete", "namespace", namespace, "--wait=false")
