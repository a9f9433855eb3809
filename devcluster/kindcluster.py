"""The same cluster by kind, where a Docker daemon answers.

Promise: the same kubeconfig path, registry address, default StorageClass and simulated accelerators
as the native node. The registry is a container beside the node; the node reaches it under the
address that the host uses, so an image has one name everywhere. Trap avoided: kind's own default
class gives volumes that only one pod may write; ours is a host directory mounted into the node.
"""

import json
import os
import shutil
from collections.abc import Callable

import yaml

from devcluster import binaries, environment, gpu, manifests, node, processes
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.run import run, try_run
from devcluster.waiting import wait_until

Announce = Callable[[str], None]
NAME = "lmtrain-devcluster"
NODE_NAME = f"{NAME}-control-plane"
REGISTRY_NAME = f"{NAME}-registry"
REGISTRY_IMAGE = "registry:2"
REGISTRY_DIRECTORY = f"/etc/containerd/certs.d/{node.REGISTRY}"
NODE_VOLUMES = "/var/lib/devcluster-volumes"
CREATE_LIMIT_SECONDS = 900.0
NODE_LIMIT_SECONDS = 180.0


def configuration(layout: Layout) -> str:
    """kind's cluster file: one node, our volumes mounted, registries by files."""
    registries = (
        '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"'
    )
    document = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": NAME,
        "networking": {"apiServerAddress": "127.0.0.1"},
        "containerdConfigPatches": [registries],
        "nodes": [
            {
                "role": "control-plane",
                "extraMounts": [
                    {"hostPath": str(layout.volumes), "containerPath": NODE_VOLUMES},
                ],
            }
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)


def registry_hosts() -> str:
    """Inside the node the registry's container answers for the host's address."""
    return f'[host."http://{REGISTRY_NAME}:5000"]\n'


def up(layout: Layout, *, gpus: int, announce: Announce) -> None:
    """Return when the node is Ready; what exists is kept."""
    programs = binaries.ensure(binaries.KIND_PROGRAMS, layout)
    layout.volumes.mkdir(parents=True, exist_ok=True)
    layout.volumes.chmod(0o711)
    marker = {"backend": "kind", "boot": processes.boot_id()}
    layout.marker.write_text(json.dumps(marker))
    layout.programs.mkdir(exist_ok=True)
    for name, path in programs.items():
        link = layout.programs / name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    kind = str(programs["kind"])
    if NAME not in run(kind, "get", "clusters").split():
        announce("Creating the kind cluster (the first time its node image is fetched)")
        config = layout.cluster / "kind.yaml"
        config.write_text(configuration(layout))
        kubeconfig = f"--kubeconfig={layout.kubeconfig}"
        run(
            *(kind, "create", "cluster", f"--config={config}", kubeconfig),
            limit_seconds=CREATE_LIMIT_SECONDS,
        )
    run("docker", "start", NODE_NAME)
    _ensure_registry()
    run(kind, "export", "kubeconfig", f"--name={NAME}", f"--kubeconfig={layout.kubeconfig}")
    _furnish(layout, Kubectl(programs["kubectl"], layout.kubeconfig), gpus=gpus)


def down(layout: Layout) -> None:
    for record in processes.read_records(layout.processes).values():
        processes.stop(record, grace_seconds=0)
    kind = str(binaries.ensure(["kind"], layout)["kind"])
    run(kind, "delete", "cluster", f"--name={NAME}", limit_seconds=CREATE_LIMIT_SECONDS)
    try_run("docker", "rm", "--force", REGISTRY_NAME)
    _remove_state(layout)


def is_healthy(layout: Layout) -> bool:
    """Whether the node runs and our storage process with it."""
    state = try_run("docker", "inspect", "--format={{.State.Running}}", NODE_NAME, REGISTRY_NAME)
    storage = processes.read_records(layout.processes).get("sharedstorage")
    return (
        state.stdout.split() == ["true", "true"]
        and storage is not None
        and processes.is_alive(storage)
    )


def _ensure_registry() -> None:
    if try_run("docker", "inspect", REGISTRY_NAME).returncode:
        run(
            *("docker", "run", "--detach", "--restart=always", f"--name={REGISTRY_NAME}"),
            *("--network=kind", f"--publish={node.REGISTRY}:5000", REGISTRY_IMAGE),
            limit_seconds=CREATE_LIMIT_SECONDS,
        )
    run("docker", "start", REGISTRY_NAME)
    run("docker", "exec", NODE_NAME, "mkdir", "-p", REGISTRY_DIRECTORY)
    run(
        *("docker", "exec", "--interactive", NODE_NAME),
        *("cp", "/dev/stdin", f"{REGISTRY_DIRECTORY}/hosts.toml"),
        stdin=registry_hosts(),
    )


def _furnish(layout: Layout, kubectl: Kubectl, *, gpus: int) -> None:
    kubectl.run("wait", "node", NODE_NAME, "--for=condition=Ready", "--timeout=100s")
    kubectl.run("delete", "storageclass", "standard", "--ignore-not-found")
    kubectl.apply(*manifests.storage())
    gpu.set_count(kubectl, node=NODE_NAME, count=gpus)
    known = processes.read_records(layout.processes).get("sharedstorage")
    if known is None or not processes.is_alive(known):
        processes.start(
            "sharedstorage",
            storage_command(layout),
            records=layout.processes,
            log=layout.logs / "sharedstorage.log",
            environment=environment.child_environment(os.environ),
        )
    wait_until(
        "the default service account",
        lambda: bool(kubectl.find("serviceaccount", "default")),
        limit_seconds=NODE_LIMIT_SECONDS,
    )


def storage_command(layout: Layout) -> list[str]:
    """The provisioner on the host: it sees the volumes where the node has them mounted from."""
    return [
        str(binaries.ensure(["sharedstorage"], layout)["sharedstorage"]),
        f"-kubeconfig={layout.kubeconfig}",
        f"-directory={layout.volumes}",
        f"-node-directory={NODE_VOLUMES}",
        f"-node={NODE_NAME}",
    ]


def _remove_state(layout: Layout) -> None:
    """Volumes belong to whatever user wrote them in a pod, so a container of root clears them."""
    shutil.rmtree(layout.cluster, ignore_errors=True)
    if layout.cluster.exists():
        mount = f"--volume={layout.cluster.parent}:/cache"
        command = ("rm", "-rf", f"/cache/{layout.cluster.name}")
        run(
            "docker", "run", "--rm", mount, "--entrypoint", command[0], REGISTRY_IMAGE, *command[1:]
        )
