"""The settings that make a node run on the machines people have."""

import ipaddress
import json
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from devcluster import (
    components,
    controlplane,
    gpu,
    kindcluster,
    kubeconfig,
    kwok,
    manifests,
    node,
    nodeconfig,
    pki,
)
from devcluster.node import NodeFiles
from devcluster.paths import Layout

pytestmark = pytest.mark.unit
LAYOUT = Layout(Path("/cache"))
FILES = NodeFiles(LAYOUT)
PROGRAMS = {
    name: Path("/programs") / name
    for name in (
        *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"),
        *("kube-proxy", "coredns", "sharedstorage"),
    )
}


def all_commands() -> dict[str, list[str]]:
    parts = (*components.foundation(FILES, PROGRAMS), *components.rest(FILES, PROGRAMS))
    return {part.name: part.command for part in parts}


def test_containerd_lives_apart_from_the_systems() -> None:
    config = tomllib.loads(
        nodeconfig.containerd(FILES, snapshotter="overlayfs", cni_plugins=Path("/cni"))
    )
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    runc = cri["containerd"]["runtimes"]["runc"]["options"]
    for path in (config["root"], config["state"], config["grpc"]["address"], runc["Root"]):
        assert Path(path).is_relative_to(LAYOUT.cache)
    assert cri["sandbox_image"] == node.PAUSE_IMAGE
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True


def test_the_image_cache_outlives_the_cluster_and_nothing_else_does() -> None:
    for kept in (LAYOUT.binaries, LAYOUT.containerd_root, LAYOUT.registry):
        assert not kept.is_relative_to(LAYOUT.cluster)
    for wiped in (LAYOUT.volumes, LAYOUT.pki, LAYOUT.kubeconfig, FILES.kubelet_root):
        assert wiped.is_relative_to(LAYOUT.cluster)


def test_the_kubelet_accepts_old_control_groups_swap_and_a_full_disk() -> None:
    config = yaml.safe_load(nodeconfig.kubelet(FILES))
    assert config["failCgroupV1"] is False
    assert config["failSwapOn"] is False
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["cgroupRoot"] == f"/{LAYOUT.identity}"


def test_two_caches_never_share_a_control_group() -> None:
    assert Layout(Path("/a")).identity != Layout(Path("/b")).identity


@pytest.mark.parametrize("component", sorted(all_commands()))
def test_nothing_listens_on_every_address(component: str) -> None:
    assert "0.0.0.0" not in " ".join(all_commands()[component])


def test_the_api_server_listens_on_loopback_and_pods_reach_it_by_the_bridge() -> None:
    commands = all_commands()
    assert "--bind-address=127.0.0.1" in commands["kube-apiserver"]
    assert f"--advertise-address={node.NODE_ADDRESS}" in commands["kube-apiserver"]
    assert f"--listen-addr={node.NODE_ADDRESS}:{node.API_PORT}" in commands["api-relay"]
    assert "--authorization-mode=Node,RBAC" in commands["kube-apiserver"]


def test_the_relays_address_is_the_first_of_the_pod_range() -> None:
    hosts = ipaddress.ip_network(node.POD_CIDR).hosts()
    assert str(next(hosts)) == node.NODE_ADDRESS
    services = ipaddress.ip_network(controlplane.SERVICE_CIDR)
    assert str(next(services.hosts())) == controlplane.SERVICE_ADDRESS
    assert not services.overlaps(ipaddress.ip_network(node.POD_CIDR))


def test_every_component_with_a_kubeconfig_has_an_identity() -> None:
    known = {identity.user for identity in components.IDENTITIES}
    assert set(components.USER_OF_COMPONENT.values()) <= known


def test_outside_names_do_not_exist_unless_pods_may_go_outside() -> None:
    assert "rcode NXDOMAIN" in nodeconfig.coredns(FILES, egress=False)
    assert "forward . /etc/resolv.conf" in nodeconfig.coredns(FILES, egress=True)


def test_the_audit_log_holds_writes_and_no_reads() -> None:
    rules = yaml.safe_load(controlplane.audit_policy())["rules"]
    assert {"level": "None", "verbs": ["get", "list", "watch"]} in rules
    assert rules[-1] == {"level": "Metadata"}


def test_the_default_storage_class_binds_before_any_pod() -> None:
    storage = next(m for m in manifests.native() if m["kind"] == "StorageClass")
    assert storage["metadata"]["name"] == "shared"
    assert storage["volumeBindingMode"] == "Immediate"


def test_simulated_pods_and_nodes_have_addresses_of_this_machine_only() -> None:
    loopback = ipaddress.IPv4Network("127.0.0.0/8")
    assert ipaddress.IPv4Network(kwok.POD_CIDR).subnet_of(loopback)
    assert ipaddress.ip_address(kwok.NODE_ADDRESS) in loopback


def test_ordinary_pods_stay_away_from_simulated_nodes() -> None:
    spec = kwok.fake_node(7, gpus=4)
    assert spec["metadata"]["name"] == "simulated-0007"
    assert spec["spec"]["taints"][0]["effect"] == "NoSchedule"
    assert spec["status"]["allocatable"]["nvidia.com/gpu"] == "4"


def test_accelerators_are_set_in_capacity_and_allocatable() -> None:
    status = json.loads(gpu.status_patch(3))["status"]
    assert status["capacity"] == status["allocatable"] == {"nvidia.com/gpu": "3"}


def test_kind_mounts_our_volumes_and_finds_registries_by_files() -> None:
    config = yaml.safe_load(kindcluster.configuration(LAYOUT))
    mount = config["nodes"][0]["extraMounts"][0]
    assert mount == {"hostPath": str(LAYOUT.volumes), "containerPath": kindcluster.NODE_VOLUMES}
    assert config["networking"]["apiServerAddress"] == "127.0.0.1"
    patch = tomllib.loads(config["containerdConfigPatches"][0])
    assert patch["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"]
    assert tomllib.loads(kindcluster.registry_hosts())["host"]


def test_an_image_has_the_same_name_on_the_host_and_in_the_kind_node() -> None:
    assert kindcluster.REGISTRY_DIRECTORY.endswith(node.REGISTRY)


def test_a_kubeconfig_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    kubeconfig.write(path, kubeconfig.render(server="https://x", ca=b"ca", token="t", user="u"))
    assert path.stat().st_mode & 0o077 == 0
    assert yaml.safe_load(path.read_text())["users"][0]["user"]["token"] == "t"


def test_certificates_are_signed_by_the_ca_and_tokens_are_found_by_user(tmp_path: Path) -> None:
    made = pki.create(
        tmp_path / "pki",
        api_addresses=["127.0.0.1"],
        identities=[pki.Identity("jo", ("dev", "ops")), pki.Identity("admin")],
    )
    assert made.token("jo") != made.token("admin")
    assert '"dev,ops"' in made.tokens.read_text()
    assert made.tokens.stat().st_mode & 0o077 == 0
    with pytest.raises(KeyError):
        made.token("nobody")
    verified = subprocess.run(
        ["openssl", "verify", "-CAfile", str(made.ca), str(made.certificate("apiserver"))],
        capture_output=True,
        check=False,
    )
    assert verified.returncode == 0
