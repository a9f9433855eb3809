"""A real Kubernetes API server for a test, in a directory of its own, ready in seconds.

Promise: etcd and kube-apiserver on free loopback ports, as many at once as the test likes, beside
a running cluster or without one, as any user. Nothing is left when the `with` block ends; when the
test process is killed the kernel kills both servers too. Traps avoided: a free port can be taken
between asking for it and using it, so a start that fails is tried again on other ports; a directory
that an earlier crash left behind is cleaned first, and only of processes proven to be ours.

    with ApiServer(tmp_path) as server:
        server.kubeconfig, server.url, server.admin_token, server.audit_log

There are no controllers: nothing makes default service accounts (so that admission plugin is off),
nothing collects garbage, and no pod ever runs.
"""

import http.client
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from devcluster import binaries, controlplane, kubeconfig, pki, processes
from devcluster.environment import child_environment
from devcluster.errors import DevclusterError
from devcluster.paths import Layout
from devcluster.waiting import wait_until

ADMIN = pki.Identity("admin", (pki.ADMIN_GROUP,))
READY_LIMIT_SECONDS = 60.0
REQUEST_LIMIT_SECONDS = 5.0
START_ATTEMPTS_MAX = 3
PORT_TAKEN = "address already in use"
NO_CONTROLLERS = ("--disable-admission-plugins=ServiceAccount",)


class ApiServer:
    """etcd and kube-apiserver in `directory`; builds the two binaries first if they are missing.

    `extra_arguments` go to kube-apiserver, `identities` are users besides the administrator
    (`token_of(user)`, `kubeconfig_of(user)`). With `persistent` the servers outlive this process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        identities: Sequence[pki.Identity] = (),
        extra_arguments: Sequence[str] = (),
        persistent: bool = False,
        layout: Layout | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._identities = (ADMIN, *identities)
        self._extra_arguments = (*NO_CONTROLLERS, *extra_arguments)
        self._persistent = persistent
        self._layout = layout or Layout.from_environment()

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of the administrator."""
        return self.directory / "kubeconfig"

    @property
    def url(self) -> str:
        return (self.directory / "url").read_text()

    @property
    def admin_token(self) -> str:
        return self.token_of(ADMIN.user)

    @property
    def ca(self) -> Path:
        """The certificate authority that vouches for `url`."""
        return self._pki.ca

    @property
    def audit_log(self) -> Path:
        """One JSON object per line for every write: user, verb, object, answer."""
        return self.directory / "logs" / "audit.log"

    @property
    def _pki(self) -> pki.Pki:
        return pki.Pki(self.directory / "pki")

    @property
    def _records(self) -> Path:
        return self.directory / "processes"

    def token_of(self, user: str) -> str:
        return self._pki.token(user)

    def kubeconfig_of(self, user: str) -> Path:
        """A kubeconfig of one of the `identities`."""
        path = self.directory / f"kubeconfig-{user.replace(':', '-')}"
        return self._write_kubeconfig(path, self.url, user)

    def start(self) -> Self:
        """Return when the API server says it is ready."""
        self.stop()
        programs = binaries.ensure(["etcd", "kube-apiserver"], self._layout)
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            try:
                self._start_once(programs)
                break
            except DevclusterError as error:
                self.stop()
                if PORT_TAKEN not in str(error) or attempt == START_ATTEMPTS_MAX:
                    raise
        return self

    def stop(self) -> None:
        """Stop both and remove what they wrote, except the logs; harmless when nothing runs."""
        for name in ("kube-apiserver", "etcd"):
            processes.stop_recorded(self._records, name, grace_seconds=0)  # nothing to save
        for name in ("etcd", "pki", "processes"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def is_running(self) -> bool:
        records = processes.read_records(self._records)
        return len(records) == 2 and all(map(processes.is_alive, records.values()))

    def _start_once(self, programs: Mapping[str, Path]) -> None:
        etcd_port, api_port = free_ports(2)
        addresses = (controlplane.LOOPBACK, controlplane.SERVICE_ADDRESS)
        plane = controlplane.ControlPlane(
            directory=self.directory,
            binaries=programs,
            pki=pki.create(
                self.directory / "pki", api_addresses=addresses, identities=self._identities
            ),
            etcd_port=etcd_port,
            api_port=api_port,
        )
        plane.audit_policy.write_text(controlplane.audit_policy())
        (self.directory / "url").write_text(plane.url)
        self._spawn("etcd", controlplane.etcd_command(plane))
        server = self._spawn(
            "kube-apiserver", controlplane.apiserver_command(plane, extra=self._extra_arguments)
        )
        wait_ready(server, url=plane.url, ca=plane.pki.ca, token=self.admin_token)
        self._write_kubeconfig(self.kubeconfig, plane.url, ADMIN.user)

    def _spawn(self, name: str, command: list[str]) -> processes.ProcessRecord:
        # The kernel's promise is about the thread that starts the process, and only the main
        # thread is sure to live as long as the tests.
        in_main_thread = threading.current_thread() is threading.main_thread()
        return processes.start(
            name,
            command,
            records=self._records,
            log=self.directory / "logs" / f"{name}.log",
            environment=child_environment(os.environ),
            die_with_parent=in_main_thread and not self._persistent,
        )

    def _write_kubeconfig(self, path: Path, url: str, user: str) -> Path:
        text = kubeconfig.render(
            server=url, ca=self.ca.read_bytes(), token=self.token_of(user), user=user
        )
        kubeconfig.write(path, text)
        return path

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((controlplane.LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def is_ready(*, url: str, ca: Path, token: str, path: str = "/readyz") -> bool:
    """Whether a server says 200 on `path`; False while it cannot be reached."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection(
        host, int(port), context=context, timeout=REQUEST_LIMIT_SECONDS
    )
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_ready(
    server: processes.ProcessRecord, *, url: str, ca: Path, token: str, path: str = "/readyz"
) -> None:
    """Wait until the API server is ready; an error with its last words when it dies before."""

    def ready() -> bool:
        if not processes.is_alive(server):
            tail = processes.log_tail(Path(server.log))
            raise DevclusterError(f"{server.name} died while starting; {server.log} ends:\n{tail}")
        return is_ready(url=url, ca=ca, token=token, path=path)

    wait_until(
        f"{server.name} ready at {url}{path}",
        ready,
        limit_seconds=READY_LIMIT_SECONDS,
        hint=f"Its log: {server.log}",
    )
