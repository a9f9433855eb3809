"""Objects that a fresh cluster needs before the first user: rights of our processes, storage."""

from typing import Any

from devcluster import components

Manifest = dict[str, Any]

PROVISIONER = "devcluster.lmtraining.dev/shared"
READ = ["get", "list", "watch"]


def _bind(user: str, role: str) -> Manifest:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"devcluster:{user.rpartition(':')[2]}"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def dns_rights() -> list[Manifest]:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "devcluster:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": READ},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ},
        ],
    }
    return [role, _bind(components.USER_OF_COMPONENT["coredns"], "devcluster:coredns")]


def storage() -> list[Manifest]:
    """The default StorageClass "shared"; a claim gets its volume at once, before any pod."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "shared",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }
    user = components.USER_OF_COMPONENT["sharedstorage"]
    return [storage_class, _bind(user, "system:persistent-volume-provisioner")]


def native() -> list[Manifest]:
    return [*dns_rights(), *storage()]
