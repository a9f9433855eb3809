"""The processes of the native node, in the order in which they start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster import controlplane, node, pki
from devcluster.node import NodeFiles

IDENTITIES = (
    pki.Identity("admin", (pki.ADMIN_GROUP,)),
    pki.Identity("system:kube-controller-manager"),
    pki.Identity("system:kube-scheduler"),
    pki.Identity("system:kube-proxy"),
    pki.Identity(f"system:node:{node.NODE_NAME}", ("system:nodes",)),
    pki.Identity("system:coredns"),
    pki.Identity("system:shared-storage"),
    pki.Identity("kwok", (pki.ADMIN_GROUP,)),
)
USER_OF_COMPONENT = {
    "kube-controller-manager": "system:kube-controller-manager",
    "kube-scheduler": "system:kube-scheduler",
    "kube-proxy": "system:kube-proxy",
    "kubelet": f"system:node:{node.NODE_NAME}",
    "coredns": "system:coredns",
    "sharedstorage": "system:shared-storage",
    "kwok": "kwok",
}


@dataclass(frozen=True)
class Component:
    """One process: its name for people, logs and records, and how it is started."""

    name: str
    command: list[str]


def control_plane(files: NodeFiles, programs: Mapping[str, Path]) -> controlplane.ControlPlane:
    return controlplane.ControlPlane(
        directory=files.layout.cluster,
        binaries=programs,
        pki=pki.Pki(files.layout.pki),
        etcd_port=node.port_of("etcd"),
        api_port=node.API_PORT,
        advertise_address=node.NODE_ADDRESS,
    )


def foundation(files: NodeFiles, programs: Mapping[str, Path]) -> list[Component]:
    """What must answer before anything else can start."""
    plane = control_plane(files, programs)
    return [
        Component("etcd", controlplane.etcd_command(plane)),
        Component("kube-apiserver", controlplane.apiserver_command(plane)),
        Component("containerd", _containerd(files)),
        Component("registry", ["docker-registry", "serve", str(files.registry_config)]),
        Component("api-relay", _api_relay(programs)),
    ]


def rest(files: NodeFiles, programs: Mapping[str, Path]) -> list[Component]:
    """Everything else; they may start in any order and find each other."""
    certificates = pki.Pki(files.layout.pki)
    return [
        Component("kube-controller-manager", _controller_manager(files, programs, certificates)),
        Component("kube-scheduler", _scheduler(files, programs)),
        Component("kubelet", _kubelet(files, programs)),
        Component("kube-proxy", _kube_proxy(files, programs)),
        Component("coredns", _coredns(files, programs)),
        Component("sharedstorage", _shared_storage(files, programs)),
    ]


def _containerd(files: NodeFiles) -> list[str]:
    return ["containerd", "--config", str(files.config / "containerd.toml")]


def _api_relay(programs: Mapping[str, Path]) -> list[str]:
    """A plain TCP relay: the API server listens on loopback only, pods reach it at the bridge."""
    return [
        *(str(programs["etcd"]), "gateway", "start"),
        f"--listen-addr={node.NODE_ADDRESS}:{node.API_PORT}",
        f"--endpoints=127.0.0.1:{node.API_PORT}",
    ]


def _kubeconfig_flags(files: NodeFiles, component: str) -> list[str]:
    path = files.kubeconfig_of(component)
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--authentication-tolerate-lookup-failure=true",
        "--bind-address=127.0.0.1",
        f"--secure-port={node.port_of(component)}",
        "--leader-elect=false",
        "--profiling=false",
    ]


def _controller_manager(
    files: NodeFiles, programs: Mapping[str, Path], certificates: pki.Pki
) -> list[str]:
    return [
        str(programs["kube-controller-manager"]),
        *_kubeconfig_flags(files, "kube-controller-manager"),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={certificates.service_account_key}",
        f"--root-ca-file={certificates.ca}",
        f"--cluster-signing-cert-file={certificates.ca}",
        f"--cluster-signing-key-file={certificates.ca_key}",
        f"--cluster-cidr={node.POD_CIDR}",
        "--allocate-node-cidrs=false",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
    ]


def _scheduler(files: NodeFiles, programs: Mapping[str, Path]) -> list[str]:
    return [str(programs["kube-scheduler"]), *_kubeconfig_flags(files, "kube-scheduler")]


def _kubelet(files: NodeFiles, programs: Mapping[str, Path]) -> list[str]:
    return [
        str(programs["kubelet"]),
        f"--config={files.config / 'kubelet.yaml'}",
        f"--kubeconfig={files.kubeconfig_of('kubelet')}",
        f"--hostname-override={node.NODE_NAME}",
        f"--node-ip={node.NODE_ADDRESS}",
        f"--root-dir={files.kubelet_root}",
        f"--cert-dir={files.kubelet_root / 'certificates'}",
    ]


def _kube_proxy(files: NodeFiles, programs: Mapping[str, Path]) -> list[str]:
    return [str(programs["kube-proxy"]), f"--config={files.config / 'kube-proxy.yaml'}"]


def _coredns(files: NodeFiles, programs: Mapping[str, Path]) -> list[str]:
    return [str(programs["coredns"]), "-conf", str(files.config / "Corefile")]


def _shared_storage(files: NodeFiles, programs: Mapping[str, Path]) -> list[str]:
    return [
        str(programs["sharedstorage"]),
        f"-kubeconfig={files.kubeconfig_of('sharedstorage')}",
        f"-directory={files.layout.volumes}",
        f"-node={node.NODE_NAME}",
    ]
