"""Command lines of etcd and the API server, the same for tests and for the full cluster.

Promise: what passes or is refused against `ApiServer` in a test is decided by the same flags as in
the full cluster. Everything listens on loopback, etcd asks for a client certificate. Trap avoided:
flags that drift apart in two places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from devcluster.pki import FRONT_PROXY_NAME, Pki

LOOPBACK = "127.0.0.1"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # of the Service "kubernetes", the first of the range
ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIT_MAX_MEGABYTES = 100


@dataclass(frozen=True)
class ControlPlane:
    """Where one pair of etcd and API server lives."""

    directory: Path
    binaries: Mapping[str, Path]
    pki: Pki
    etcd_port: int
    api_port: int
    advertise_address: str = LOOPBACK

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.api_port}"

    @property
    def etcd_url(self) -> str:
        return f"https://{LOOPBACK}:{self.etcd_port}"

    @property
    def audit_policy(self) -> Path:
        return self.directory / "audit-policy.yaml"

    @property
    def audit_log(self) -> Path:
        return self.directory / "logs" / "audit.log"


def etcd_command(plane: ControlPlane) -> list[str]:
    """etcd without fsync: a development cluster may lose its state with the machine's power."""
    pki = plane.pki
    return [
        str(plane.binaries["etcd"]),
        f"--data-dir={plane.directory / 'etcd'}",
        f"--listen-client-urls={plane.etcd_url}",
        f"--advertise-client-urls={plane.etcd_url}",
        f"--listen-peer-urls=http://{LOOPBACK}:0",  # one member: nobody calls
        f"--cert-file={pki.certificate('etcd')}",
        f"--key-file={pki.key('etcd')}",
        f"--trusted-ca-file={pki.ca}",
        "--client-cert-auth",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_command(plane: ControlPlane, *, extra: Sequence[str] = ()) -> list[str]:
    """The API server with RBAC and Node authorization, default admission and an audit log."""
    pki = plane.pki
    return [
        str(plane.binaries["kube-apiserver"]),
        f"--bind-address={LOOPBACK}",
        f"--secure-port={plane.api_port}",
        f"--advertise-address={plane.advertise_address}",
        f"--tls-cert-file={pki.certificate('apiserver')}",
        f"--tls-private-key-file={pki.key('apiserver')}",
        f"--client-ca-file={pki.ca}",
        f"--token-auth-file={pki.tokens}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",  # besides the defaults
        f"--etcd-servers={plane.etcd_url}",
        f"--etcd-cafile={pki.ca}",
        f"--etcd-certfile={pki.certificate('etcd')}",
        f"--etcd-keyfile={pki.key('etcd')}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki.service_account_key}",
        f"--service-account-signing-key-file={pki.service_account_key}",
        f"--kubelet-client-certificate={pki.certificate('kubelet-client')}",
        f"--kubelet-client-key={pki.key('kubelet-client')}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki.ca}",
        f"--requestheader-allowed-names={FRONT_PROXY_NAME}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki.certificate('front-proxy')}",
        f"--proxy-client-key-file={pki.key('front-proxy')}",
        "--allow-privileged=true",
        "--profiling=false",
        f"--audit-policy-file={plane.audit_policy}",
        f"--audit-log-path={plane.audit_log}",
        f"--audit-log-maxsize={AUDIT_MAX_MEGABYTES}",
        "--audit-log-maxbackup=1",
        *extra,
    ]


def audit_policy() -> str:
    """Record who wrote what, once per request; leave out reads and the cluster's own heartbeat."""
    own_leases = {
        "level": "None",
        "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"],
        "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
    }
    own_user_leases = {
        "level": "None",
        "users": ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"],
        "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
    }
    document = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            own_leases,
            own_user_leases,
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata"},
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)
