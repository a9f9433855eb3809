"""`lmtraining-operator`: the command line, and everything put together.

Promise: SIGTERM ends the process within seconds; what was cut short is done again by the next one.
"""

import argparse
import asyncio
import json
import logging
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, start_http_server

from lmtraining_api import names as api
from lmtraining_operator import checking, logs
from lmtraining_operator.election import Alone, Election, Leadership, LeaseName
from lmtraining_operator.gateway import NOT_FOUND, ApiError, KubernetesGateway
from lmtraining_operator.health import Health, served
from lmtraining_operator.leading import Leader
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.plan import Allowed, Settings
from lmtraining_operator.plan.model import HARDWARE_FAULTS, PROMETHEUS, Object
from lmtraining_operator.reconcile import JobKey, JobReconciler
from lmtraining_operator.reports import Reports

DISTRIBUTION = "lm-training-operator"
INSTALL = f"kubectl apply --server-side -f crds/{api.PLURAL}.{api.GROUP}.yaml"
ALLOW_FLAGS = {
    "--allow-image": "starts of images",
    "--allow-uri": "starts of places of data and checkpoints",
    "--allow-service-account": "service accounts",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    trainer_image: str
    allowed: Allowed = field(default_factory=Allowed)
    metrics_readers: tuple[Object, ...] = (PROMETHEUS,)
    reads_nodes: bool = False
    hardware_faults: frozenset[str] = HARDWARE_FAULTS
    namespaces: tuple[str, ...] = ()
    lease: LeaseName | None = None
    health_address: str = "0.0.0.0:8080"
    metrics_address: str = "0.0.0.0:9090"
    log_format: logs.LogFormat = "json"
    check_seconds: int | None = None
    """Only check, for so long, that the API server answers for the jobs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run until told to stop."""
    options = parse(arguments)
    if options.check_seconds is not None:
        seconds = options.check_seconds
        sys.exit(asyncio.run(checking.check(options.namespaces, limit_seconds=seconds)))
    logs.configure(options.log_format)
    with suppress(KeyboardInterrupt):
        asyncio.run(run(options))


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="lmtraining-operator", description="Runs LMTrainingJobs: the controller."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True)
    checking.add_command(commands)
    run_command = commands.add_parser("run", help="watch jobs and run them")
    run_command.add_argument(
        "--trainer-image", required=True, metavar="REF", help="image of jobs that name none"
    )
    run_command.add_argument(
        "--watch-namespace",
        dest="namespaces",
        action="extend",
        nargs="+",
        default=[],
        metavar="NS",
        help="watch these namespaces only (default: all)",
    )
    run_command.add_argument(
        "--lease",
        metavar="NAMESPACE/NAME",
        help="run jobs only while holding this Lease (default: this operator is the only one)",
    )
    run_command.add_argument(
        "--health-address",
        default=Options.health_address,
        metavar="HOST:PORT",
        help="/healthz and /readyz",
    )
    run_command.add_argument(
        "--metrics-address", default=Options.metrics_address, metavar="HOST:PORT", help="/metrics"
    )
    run_command.add_argument("--log-format", choices=("json", "text"), default="json")
    for flag, what in ALLOW_FLAGS.items():
        run_command.add_argument(
            flag, action="extend", nargs="+", default=[], metavar="VALUE",
            help=f"{what} that jobs may use (default: any)",
        )  # fmt: skip
    run_command.add_argument(
        "--allow-host-network", action="store_true", help="jobs may use the network of their nodes"
    )
    run_command.add_argument(
        "--metrics-readers",
        default=json.dumps(Options.metrics_readers),
        metavar="JSON",
        help="a list of NetworkPolicy peers that may scrape the pods that train (default: the pods "
        "of any namespace with the label app.kubernetes.io/name=prometheus)",
    )
    run_command.add_argument(
        "--read-nodes", action="store_true", help="ask the nodes of pods that fail for the cause"
    )
    run_command.add_argument(
        "--hardware-fault",
        dest="hardware_faults",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="conditions and taints of nodes whose hardware is at fault, instead of those that "
        "NVSentinel, node-problem-detector and the node agent of EKS set",
    )
    parsed = parser.parse_args(arguments)
    if parsed.command == checking.COMMAND:
        return Options(
            trainer_image="",
            namespaces=tuple(parsed.namespaces),
            check_seconds=parsed.limit_seconds,
        )
    try:
        for address in (parsed.health_address, parsed.metrics_address):
            host_and_port(address)
        lease = LeaseName.parse(parsed.lease) if parsed.lease else None
        readers = peers(parsed.metrics_readers)
    except ValueError as error:
        parser.error(str(error))
    return Options(
        trainer_image=parsed.trainer_image,
        allowed=Allowed(
            images=tuple(parsed.allow_image),
            uris=tuple(parsed.allow_uri),
            service_accounts=tuple(parsed.allow_service_account),
            host_network=parsed.allow_host_network,
        ),
        metrics_readers=readers,
        reads_nodes=parsed.read_nodes,
        hardware_faults=frozenset(parsed.hardware_faults) or HARDWARE_FAULTS,
        namespaces=tuple(parsed.namespaces),
        lease=lease,
        health_address=parsed.health_address,
        metrics_address=parsed.metrics_address,
        log_format=parsed.log_format,
    )


def host_and_port(address: str) -> tuple[str, int]:
    """('0.0.0.0', 9090) of "0.0.0.0:9090"."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"{address!r} is not HOST:PORT, such as 0.0.0.0:9090")
    return host.strip("[]"), int(port)


def peers(text: str) -> tuple[Object, ...]:
    """NetworkPolicy peers, as a JSON list; the API server checks what is in each of them."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--metrics-readers {text!r} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) and one for one in found):
        raise ValueError(
            f"--metrics-readers {text!r} is not a list of NetworkPolicy peers, such as "
            f"{json.dumps([PROMETHEUS])}"
        )
    return tuple(found)


async def run(options: Options) -> None:
    """The operator, until SIGTERM or SIGINT."""
    metrics = Metrics(_version())
    leases = await KubernetesGateway.connect(metrics.count_answer)
    leadership = _leadership(options.lease, leases)
    gateway = await KubernetesGateway.connect(metrics.count_answer, may_write=leadership.is_held)
    await require_jobs(gateway, options.namespaces)
    reports = Reports()
    settings = Settings(
        trainer_image=options.trainer_image,
        allowed=options.allowed,
        metrics_readers=options.metrics_readers,
        reads_nodes=options.reads_nodes,
        hardware_faults=options.hardware_faults,
    )

    def reconciler(key: JobKey) -> JobReconciler:
        return JobReconciler(
            key,
            gateway=gateway,
            reports=reports,
            settings=settings,
            clock=utc_now,
            pace=leader.pace,
            on_written=metrics.count_milestones,
        )

    leader = Leader(
        leadership, reconciler=reconciler, metrics=metrics, namespaces=options.namespaces
    )
    metrics.show_jobs(
        leader.count_by_state, oldest_unstarted_seconds=leader.oldest_unstarted_seconds
    )
    health = Health(
        metrics,
        oldest_pass_seconds=leader.oldest_pass_seconds,
        not_ready=leader.not_ready,
    )
    watch = asyncio.create_task(health.watch_loop())
    try:
        with (
            served(health, *host_and_port(options.health_address)),
            _metrics_served(metrics.registry, *host_and_port(options.metrics_address)),
        ):
            await leader.run()
    finally:
        watch.cancel()
        for one in (reports, gateway, leases):
            await one.close()


def _leadership(lease: LeaseName | None, leases: KubernetesGateway) -> Leadership:
    """One name per process: a container that starts again in its pod is another operator."""
    if lease is None:
        return Alone()
    return Election(leases, lease, identity=f"{socket.gethostname()}_{uuid.uuid4()}")


@contextmanager
def _metrics_served(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    server, thread = start_http_server(port, host, registry=registry)
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


async def require_jobs(gateway: KubernetesGateway, namespaces: tuple[str, ...]) -> None:
    """Exit, with a sentence, where the API server knows no jobs: kopf would wait in silence."""
    try:
        await gateway.list_page(api.KIND, namespaces[0] if namespaces else "", limit=1)
    except ApiError as error:
        if error.code == NOT_FOUND:
            await gateway.close()
            raise SystemExit(
                f"the cluster has no {api.PLURAL}.{api.GROUP}: install the "
                f"CustomResourceDefinition, by the chart (crds.create=true) or by `{INSTALL}`, "
                "then start the operator again"
            ) from None
        logger.warning("jobs could not be listed, which is tried again: %s", error)


def utc_now() -> datetime:
    """Now, to the millisecond: what status shows."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "development"


if __name__ == "__main__":
    main()
