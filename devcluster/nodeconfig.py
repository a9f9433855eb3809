"""Configuration files of the native node, as text. Pure: paths in, text out.

Each setting that looks odd was needed on some real machine: cgroup v1, no CAP_SYS_RESOURCE (a
container's root), a disk that is nearly full, a swap file.
"""

import json
from pathlib import Path

import yaml

from devcluster import node
from devcluster.node import NodeFiles

EVICTION = {
    "memory.available": "100Mi",
    "nodefs.available": "1%",
    "nodefs.inodesFree": "1%",
    "imagefs.available": "1%",
}


def containerd(files: NodeFiles, *, snapshotter: str, cni_plugins: Path) -> str:
    """containerd apart from the system's: own root, state, socket and runtime directories."""
    state = files.containerd_state
    return f"""version = 2
root = "{files.layout.containerd_root}"
state = "{state}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "{files.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
{_container_runtime_interface(files, snapshotter=snapshotter, cni_plugins=cni_plugins)}"""


def _container_runtime_interface(files: NodeFiles, *, snapshotter: str, cni_plugins: Path) -> str:
    return f"""
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{node.PAUSE_IMAGE}"
  restrict_oom_score_adj = true          # runc fails without CAP_SYS_RESOURCE otherwise
  netns_mounts_under_state_dir = true    # so that cleaning up finds them
  max_concurrent_downloads = 6
  tolerate_missing_hugetlb_controller = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni_plugins}"
  conf_dir = "{files.config}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
  discard_unpacked_layers = true         # the registry beside it holds them already

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{files.containerd_state}/runc"

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{files.config}/registries"
"""


def registry_hosts() -> str:
    """Tell containerd that our registry speaks plain HTTP."""
    return f'server = "http://{node.REGISTRY}"\n'


def registry(files: NodeFiles) -> str:
    return yaml.safe_dump(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(files.layout.registry)},
                "delete": {"enabled": True},
            },
            "http": {"addr": node.REGISTRY},
        }
    )


def cni(files: NodeFiles) -> str:
    """Pods hang on our bridge; addresses are handed out from one file-based pool."""
    bridge = {
        "type": "bridge",
        "bridge": node.BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(files.address_leases),
            "ranges": [[{"subnet": node.POD_CIDR, "gateway": node.NODE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    document = {"cniVersion": "0.4.0", "name": files.cni_network, "plugins": [bridge]}
    return json.dumps(document, indent=2)


def kubelet(files: NodeFiles) -> str:
    socket = f"unix://{files.containerd_socket}"
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(files.layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": socket,
        "imageServiceEndpoint": socket,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{files.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # lowering it needs CAP_SYS_RESOURCE
        "protectKernelDefaults": False,
        "makeIPTablesUtilChains": False,  # kube-proxy brings the chains it needs
        "clusterDomain": node.CLUSTER_DOMAIN,
        "clusterDNS": [node.NODE_ADDRESS],
        "resolvConf": str(files.config / "resolv.conf"),
        "podLogsDir": str(files.pod_logs),
        "volumePluginDir": str(files.kubelet_root / "volume-plugins"),
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "imageGCHighThresholdPercent": 100,  # else a full disk costs the pause image
        "imageGCLowThresholdPercent": 99,
        "evictionHard": EVICTION,
        "evictionPressureTransitionPeriod": "10s",
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "maxPods": 110,
    }
    return yaml.safe_dump(document, sort_keys=False)


def kube_proxy(files: NodeFiles) -> str:
    """iptables mode; conntrack's and the loopback's kernel settings stay as they are."""
    untouched = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s"}
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(files.kubeconfig_of("kube-proxy"))},
        "hostnameOverride": node.NODE_NAME,
        "clusterCIDR": node.POD_CIDR,
        "detectLocalMode": "ClusterCIDR",
        "bindAddress": node.NODE_ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nodePortAddresses": [f"{node.NODE_ADDRESS}/32"],
        "oomScoreAdj": 0,
        "conntrack": {**untouched, "tcpCloseWaitTimeout": "0s"},
        "iptables": {"localhostNodePorts": False, "minSyncPeriod": "0s", "syncPeriod": "30s"},
    }
    return yaml.safe_dump(document, sort_keys=False)


def coredns(files: NodeFiles, *, egress: bool) -> str:
    """The cluster's names; outside names only where pods may go outside."""
    outside = (
        "forward . /etc/resolv.conf" if egress else "template ANY ANY {\n    rcode NXDOMAIN\n  }"
    )
    return f"""{node.CLUSTER_DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
  bind {node.NODE_ADDRESS}
  errors
  kubernetes {node.CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
    kubeconfig {files.kubeconfig_of("coredns")} devcluster
    pods insecure
    ttl 1
  }}
  ready 127.0.0.1:{node.port_of("coredns")}
}}
.:53 {{
  bind {node.NODE_ADDRESS}
  errors
  {outside}
}}
"""


def resolv_conf() -> str:
    """What pods inherit besides the cluster's DNS: nothing of the host's search domains."""
    return f"nameserver {node.NODE_ADDRESS}\n"
