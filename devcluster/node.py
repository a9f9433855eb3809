"""Names and numbers of the native node: one place, so that cleaning up can never miss one.

Promise: every address below stays on this machine. The pod range is routed to our own bridge and
so is the service range, hence a packet for a service that has no rule yet ends there instead of
leaving by the default route.
"""

from dataclasses import dataclass
from pathlib import Path

from devcluster.paths import Layout

PROGRAMS = frozenset(
    {
        "containerd",
        "coredns",
        "docker-registry",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubelet",
        "kwok",
        "prometheus",
        "sharedstorage",
    }
)
"""The programs of which the node consists, and those that watch it."""
NODE_NAME = "devcluster"
BRIDGE = "lmtrain0"
BRIDGE_MAC = "02:6c:6d:74:72:00"  # fixed, else it changes with every pod and breaks ARP caches
POD_CIDR = "10.244.0.0/16"
NODE_ADDRESS = "10.244.0.1"
PREFIX_LENGTH = 16
CNI_PLUGIN_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_RESULTS = Path("/var/lib/cni/results")  # fixed by libcni
CONTAINER_LOG_LINKS = Path("/var/log/containers")  # fixed by the kubelet
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")  # fixed by the kubelet
PAUSE_IMAGE = "devcluster.local/pause:1"
CLUSTER_DOMAIN = "cluster.local"
REGISTRY_PORT = 5000
REGISTRY = f"127.0.0.1:{REGISTRY_PORT}"
API_PORT = 6443


@dataclass(frozen=True)
class Port:
    """A fixed port and who listens there."""

    component: str
    address: str
    number: int


PORTS = (
    Port("etcd", "127.0.0.1", 12379),
    Port("kube-apiserver", "127.0.0.1", API_PORT),
    Port("registry", "127.0.0.1", REGISTRY_PORT),
    Port("kube-controller-manager", "127.0.0.1", 10257),
    Port("kube-scheduler", "127.0.0.1", 10259),
    Port("kubelet", "127.0.0.1", 10248),
    Port("kube-proxy", "127.0.0.1", 10256),
    Port("kube-proxy", "127.0.0.1", 10249),
    Port("coredns", "127.0.0.1", 18181),
)


def port_of(component: str) -> int:
    """The first port of that component."""
    return next(port.number for port in PORTS if port.component == component)


def cni_plugins() -> Path:
    """Where this machine keeps the CNI plugins; Debian's place when they are missing."""
    present = (path for path in CNI_PLUGIN_DIRECTORIES if (path / "bridge").exists())
    return next(present, CNI_PLUGIN_DIRECTORIES[0])


@dataclass(frozen=True)
class NodeFiles:
    """Files and sockets of the native node, all below the cluster's directory."""

    layout: Layout

    @property
    def cgroup(self) -> str:
        """The control group above all pods."""
        return self.layout.identity

    @property
    def cni_network(self) -> str:
        return self.layout.identity

    @property
    def config(self) -> Path:
        return self.layout.cluster / "config"

    @property
    def registry_config(self) -> Path:
        return self.config / "registry.yaml"

    @property
    def containerd_state(self) -> Path:
        return self.layout.cluster / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd_state / "containerd.sock"

    @property
    def kubelet_root(self) -> Path:
        return self.layout.cluster / "kubelet"

    @property
    def pod_logs(self) -> Path:
        return self.layout.cluster / "pod-logs"

    @property
    def address_leases(self) -> Path:
        return self.layout.cluster / "cni-addresses"

    @property
    def saved_sysctls(self) -> Path:
        return self.layout.cluster / "sysctls.json"

    def kubeconfig_of(self, component: str) -> Path:
        return self.config / f"{component}.kubeconfig"
