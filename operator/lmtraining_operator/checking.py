"""`lmtraining-operator check`: does the API server answer for the jobs, and to this account?

Promise: 0 once it does in every namespace that is watched, else 1 after a limit, with a sentence
that says what is wrong and what to do. It reads, and writes nothing.
Trap avoided: `helm install` that reports success while the definitions are missing or not yet
served, or a role is; the first job would find out.
"""

import argparse
import asyncio
import sys

from lmtraining_api import names as api
from lmtraining_operator.gateway import FORBIDDEN, NOT_FOUND, ApiError, KubernetesGateway

COMMAND = "check"
LIMIT_SECONDS = 60
POLL_SECONDS = 1.0


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`check`, and its arguments."""
    command = commands.add_parser(COMMAND, help="does the API server answer for the jobs?")
    command.add_argument(
        "--watch-namespace",
        dest="namespaces",
        action="extend",
        nargs="+",
        default=[],
        metavar="NS",
        help="ask about these namespaces only (default: all)",
    )
    command.add_argument(
        "--limit-seconds",
        type=int,
        default=LIMIT_SECONDS,
        metavar="N",
        help=f"give up after so long (default: {LIMIT_SECONDS})",
    )


async def check(namespaces: tuple[str, ...], *, limit_seconds: int) -> int:
    """The command; returns its exit status."""
    gateway = await KubernetesGateway.connect(lambda *_: None)
    try:
        trouble = await trouble_with_jobs(gateway, namespaces, limit_seconds=limit_seconds)
    finally:
        await gateway.close()
    if trouble:
        print(trouble, file=sys.stderr)  # noqa: T201
        return 1
    where = ", ".join(namespaces) or "all namespaces"
    print(f"the API server answers for {api.PLURAL}.{api.GROUP} in {where}")  # noqa: T201
    return 0


async def trouble_with_jobs(
    gateway: KubernetesGateway, namespaces: tuple[str, ...], *, limit_seconds: int
) -> str:
    """Why jobs cannot be listed, in a sentence; empty as soon as they can in each namespace."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_seconds
    for namespace in namespaces or ("",):
        while trouble := await _trouble(gateway, namespace):
            if loop.time() >= deadline:
                return trouble
            await asyncio.sleep(POLL_SECONDS)
    return ""


async def _trouble(gateway: KubernetesGateway, namespace: str) -> str:
    where = f"namespace {namespace}" if namespace else "all namespaces"
    try:
        await gateway.list_page(api.KIND, namespace, limit=1)
    except ApiError as error:
        if error.code == NOT_FOUND:
            return (
                f"the API server serves no {api.PLURAL}.{api.GROUP}: install the definition with "
                "crds.create=true, or by hand before the chart"
            )
        if error.code == FORBIDDEN:
            return (
                f"this account may not list {api.PLURAL} in {where}: set rbac.create to true, or "
                f"give it the role by hand ({error})"
            )
        return f"the API server does not answer for {api.PLURAL} in {where}: {error}"
    return ""
