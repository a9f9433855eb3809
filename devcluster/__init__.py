"""A real Kubernetes for laptop, demo and tests.

`python -m devcluster up` for people, `devcluster.cluster.ensure_up()` for programs,
`devcluster.apiserver.ApiServer` for tests that need an API server and nothing else.
"""

from devcluster.model import Cluster

__all__ = ["Cluster"]
