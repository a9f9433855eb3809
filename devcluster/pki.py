"""Certificates and tokens of one cluster, made anew each time it starts.

Promise: a certificate authority, the serving certificates and the keys that the components need,
by the `openssl` program, in about 0.1 s; private files are readable by their owner only. People
and components prove who they are by a bearer token each, so that the audit log can tell them
apart and RBAC applies to every one of them. Trap avoided: certificates that expire under a
long-lived cache: nothing here is reused by the next cluster.
"""

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError

VALID_DAYS = 3650
OPENSSL_LIMIT_SECONDS = 30
FRONT_PROXY_NAME = "front-proxy-client"
ADMIN_GROUP = "system:masters"
EC_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@dataclass(frozen=True)
class Identity:
    """A user of the API server, as RBAC and the audit log see it."""

    user: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pki:
    """Paths of what `create` made in one directory."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.directory / "ca.key"

    @property
    def service_account_key(self) -> Path:
        return self.directory / "service-account.key"

    @property
    def tokens(self) -> Path:
        return self.directory / "tokens.csv"

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def token(self, user: str) -> str:
        """The bearer token of `user`; KeyError when there is none."""
        for line in self.tokens.read_text().splitlines():
            token, name, *_ = line.split(",")
            if name == user:
                return token
        raise KeyError(user)


def create(directory: Path, *, api_addresses: Sequence[str], identities: Sequence[Identity]) -> Pki:
    """Make everything a cluster needs; `api_addresses` are the IPs that clients will use."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    pki = Pki(directory)
    subject = ["-subj", "/CN=devcluster-ca"]
    _openssl("req", "-x509", *EC_KEY, *_validity(), *subject, *_output(pki, "ca"))
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    _issue(pki, "apiserver", subject="/CN=kube-apiserver", names=names, addresses=api_addresses)
    _issue(pki, "etcd", subject="/CN=etcd", names=("localhost",), addresses=("127.0.0.1",))
    _issue(pki, "kubelet-client", subject=f"/O={ADMIN_GROUP}/CN=kube-apiserver-kubelet-client")
    _issue(pki, "front-proxy", subject=f"/CN={FRONT_PROXY_NAME}")
    _openssl(
        *("ecparam", "-genkey", "-name", "prime256v1", "-noout"),  # Kubernetes wants this form
        *("-out", str(pki.service_account_key)),
    )
    pki.tokens.touch(mode=0o600)
    pki.tokens.write_text("".join(map(token_line, identities)))
    return pki


def token_line(identity: Identity) -> str:
    """One line of the API server's static token file, with a fresh token."""
    groups = ",".join(identity.groups)
    return f'{secrets.token_urlsafe(32)},{identity.user},{identity.user},"{groups}"\n'


def _issue(
    pki: Pki, name: str, *, subject: str, names: Sequence[str] = (), addresses: Sequence[str] = ()
) -> None:
    alternatives = [f"DNS:{n}" for n in names] + [f"IP:{a}" for a in addresses]
    extension = ["-addext", f"subjectAltName={','.join(alternatives)}"] if alternatives else []
    authority = ["-CA", str(pki.ca), "-CAkey", str(pki.ca_key)]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    usage = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    common = [*EC_KEY, *_validity(), "-subj", subject]
    _openssl("req", "-x509", *authority, *common, *leaf, *usage, *extension, *_output(pki, name))


def _validity() -> list[str]:
    return ["-days", str(VALID_DAYS)]


def _output(pki: Pki, name: str) -> list[str]:
    return ["-keyout", str(pki.key(name)), "-out", str(pki.certificate(name))]


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments],
        capture_output=True,
        text=True,
        timeout=OPENSSL_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise DevclusterError(
            f"openssl {arguments[0]} failed (OpenSSL 3 is needed): {done.stderr.strip()}"
        )
