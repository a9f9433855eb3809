"""The environment that child processes get.

Promise: the cluster's own addresses are never asked of a proxy. Trap avoided: on a machine with
`HTTPS_PROXY` set, every component would send its calls to the API server to the proxy and hang.
"""

from collections.abc import Mapping

CLUSTER_HOSTS = (
    "127.0.0.1",
    "localhost",
    "10.96.0.0/16",
    "10.244.0.0/16",
    ".svc",
    ".cluster.local",
)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with the system's directories on PATH and, where a proxy is set, ours exempt."""
    environment = dict(base)
    environment["PATH"] = ":".join(filter(None, [base.get("PATH", ""), SYSTEM_PATH]))
    if any(base.get(name) or base.get(name.upper()) for name in PROXY_VARIABLES):
        known = base.get("NO_PROXY") or base.get("no_proxy") or ""
        exempt = ",".join(filter(None, [known, *CLUSTER_HOSTS]))
        environment["NO_PROXY"] = environment["no_proxy"] = exempt
    return environment
