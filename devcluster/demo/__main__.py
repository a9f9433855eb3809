"""`make demo`: cluster, images, chart, a job, a killed pod, the recovery, the model's own words;
then what Prometheus and the run report say.

Promise: ends with exit code 0 only if all of it happened. Long steps say what they do.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from devcluster import prometheus
from devcluster.cluster import Cluster, ensure_up
from devcluster.demo import watch
from devcluster.demo.job_view import JobView
from devcluster.demo.screen import draw_curve
from devcluster.demo.story import Story, check
from devcluster.errors import DevclusterError
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.product import Product, ensure_namespace, install
from devcluster.waiting import wait_until
from lmtraining_api.names import STORAGE_DIRECTORY

NAMESPACE = "lmtraining-demo"
JOB_FILE = Path(__file__).resolve().parents[2] / "examples" / "tiny-gpt.yaml"
PROMPT = "def __init__(self"
SHELL_COMMAND = 'eval "$(.venv/bin/python -m devcluster up)"'
READER = "tiny-gpt-reader"
GONE_SECONDS_MAX = 120
FIRST_RUN_BYTES = 28_000_000_000
"""With the CUDA build of torch; where the CPU build is reachable, a fifth of it is used."""
READ_SECONDS_MAX = 180
REPORT_SECONDS_MAX = 60


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    console = Console()
    try:
        _play(console)
    except DevclusterError as error:
        console.print(f"\n[bold red]The demo failed:[/bold red] {error}", highlight=False)
        sys.exit(1)


def _play(console: Console) -> None:
    _say_disk(console)
    _title(console, 1, "A real Kubernetes on this machine")
    cluster = ensure_up()
    _title(console, 2, "The operator, by its Helm chart")
    product = install(cluster)
    ensure_namespace(product.kubectl, NAMESPACE)
    kubectl = product.kubectl.within(NAMESPACE)
    layout = Layout.from_environment()
    watching = _watch(console, layout, product.kubectl)
    _title(console, 3, "A job")
    job = yaml.safe_load(JOB_FILE.read_text())
    _apply(kubectl, job)
    console.print(f"$ kubectl -n {NAMESPACE} apply -f examples/{JOB_FILE.name}", highlight=False)
    since = time.monotonic()
    also = watching.look if watching else _nothing
    story = Story(kubectl, console, job["metadata"]["name"], also)
    view = story.follow()
    claims = check(view, story)
    _title(console, 4, "What came of it")
    draw_curve(console, story.curve, float(view.status.metrics.unigram_loss))
    _summary(console, view)
    text = _read_back(kubectl, product, view)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    for claim in claims:
        console.print(f"[green]✓[/green] {claim}", highlight=False)
    _title(console, 5, "What watched it")
    if watching is not None:
        name = job["metadata"]["name"]
        _figures(console, watching, watching.figures(namespace=NAMESPACE, job=name, since=since))
    _report(console, cluster, layout, job["metadata"]["name"])
    _what_next(console)


def _say_disk(console: Console) -> None:
    """Before the first run of a machine: how much disk it takes, and whether that is there."""
    layout = Layout.from_environment()
    if layout.containerd_root.exists() and layout.images.exists():
        return
    existing = next(p for p in (layout.cache, *layout.cache.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    console.print(
        f"The first run on a machine takes up to {FIRST_RUN_BYTES / 1e9:.0f} GB of disk below "
        f"{layout.cache}, and about 25 minutes; {free / 1e9:.0f} GB are free. `make clean` gives "
        "it all back.",
        highlight=False,
    )
    if free < FIRST_RUN_BYTES:
        raise DevclusterError(
            f"{existing} has {free / 1e9:.0f} GB free: free some disk, or set LMTRAIN_CACHE to a "
            "directory on a larger one"
        )


def _title(console: Console, number: int, text: str) -> None:
    console.rule(f"[bold]{number}  {text}", align="left")


def _apply(kubectl: Kubectl, job: dict[str, Any]) -> None:
    """Apply the job afresh: one of an earlier demo goes first, its volume stays."""
    name = job["metadata"]["name"]
    kubectl.run("delete", "lmtj", name, "--ignore-not-found", "--wait=true")
    wait_until(
        f"pods of the former lmtj/{name} to go",
        lambda: not kubectl.list("pods", f"lmtraining.dev/job-name={name}"),
        limit_seconds=GONE_SECONDS_MAX,
    )
    kubectl.apply(job)


def _summary(console: Console, view: JobView) -> None:
    metrics, recovery = view.status.metrics, view.status.last_recovery
    console.print(
        f"Validation loss [bold]{metrics.validation_loss}[/bold] nats per token; "
        f"a unigram model of the same text has {metrics.unigram_loss}.",
        highlight=False,
    )
    if recovery is not None:
        console.print(
            f"From the killed pod to the next optimizer step: [bold]{recovery.seconds} s[/bold], "
            f"of these {recovery.load_seconds or '0'} s to load the checkpoint of step "
            f"{recovery.resumed_from_step}; {recovery.replayed_steps} steps done again.\n",
            highlight=False,
        )


def _read_back(kubectl: Kubectl, product: Product, view: JobView) -> str:
    """A pod like any user's: mounts the volume, lists the checkpoints, samples the model."""
    kubectl.run("delete", "pod", READER, "--ignore-not-found", "--wait=true")
    kubectl.apply(_reader(product, view))

    def finished() -> str | None:
        phase = kubectl.get("pod", READER)["status"].get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = wait_until("the exported model to be read", finished, limit_seconds=READ_SECONDS_MAX)
    checkpoints = kubectl.run("logs", READER, "--container", "checkpoints")
    sample = kubectl.run("logs", READER, "--container", "sample")
    if phase != "Succeeded" or PROMPT not in sample:
        raise DevclusterError(f"the exported model could not be sampled:\n{checkpoints}\n{sample}")
    kubectl.run("delete", "pod", READER, "--wait=false")
    return f"{checkpoints}\nThe model, asked to go on from {PROMPT!r}:\n\n{sample}"


def _reader(product: Product, view: JobView) -> dict[str, Any]:
    artifacts = view.status.artifacts
    root = f"{STORAGE_DIRECTORY}/"
    commands = {
        "checkpoints": ["checkpoints", root + artifacts.run_directory],
        "sample": ["sample", root + artifacts.export, "--prompt", PROMPT, "--tokens", "120"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": READER},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                _container(name, product.trainer_image, arguments)
                for name, arguments in commands.items()
            ],
            "volumes": [
                {"name": "storage", "persistentVolumeClaim": {"claimName": artifacts.claim}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def _container(name: str, image: str, arguments: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "args": arguments,
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - an emptyDir of the pod
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "storage", "mountPath": STORAGE_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _nothing() -> None:
    """Where nobody watches."""


def _watch(console: Console, layout: Layout, kubectl: Kubectl) -> watch.Watch | None:
    """A Prometheus, where this machine can have one: not every one that has Docker can."""
    try:
        prometheus.ensure(layout)
    except DevclusterError as error:
        console.print(f"[yellow]No Prometheus on this machine:[/yellow] {error}", highlight=False)
        return None
    return watch.start(layout, kubectl)


def _figures(console: Console, watching: watch.Watch, figures: list[watch.Figure]) -> None:
    url = watching.server.url
    console.print(f"Asked of a Prometheus that scraped operator and pods ({url}):", highlight=False)
    for figure in figures:
        console.print(
            f"  {figure.name:<10}[bold]{figure.text:>8}[/bold]  {figure.meaning}", highlight=False
        )
    console.print(
        f"Boards: in a Grafana of yours add {url} as a data source and import\n"
        f"  {watch.BOARDS}/*.json",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _report(console: Console, cluster: Cluster, layout: Layout, name: str) -> None:
    """What `kubectl lmtrain report` says; the file goes with the cluster."""
    path = layout.cluster / "demo" / f"{name}.html"
    path.parent.mkdir(exist_ok=True)
    search = f"{cluster.binaries}{os.pathsep}{os.environ.get('PATH', '')}"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "lmtraining_cli", "report", name, f"--namespace={NAMESPACE}"),
            *(f"--kubeconfig={cluster.kubeconfig}", f"--output={path}"),
        ],
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
        timeout=REPORT_SECONDS_MAX,
        check=False,
    )
    if result.returncode != 0 or not path.exists():
        raise DevclusterError(f"kubectl lmtrain report {name}: {result.stderr or result.stdout}")
    console.print(
        f"The run's report, one file of kubectl lmtrain report {name}:\n"
        f"  {result.stdout.strip()}\n"
        "  open it in a browser; from another machine: scp it there first. "
        "Copy it to keep it: `make cluster-down` takes it away.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _what_next(console: Console) -> None:
    console.print(
        "\nTry next:\n"
        f"  {SHELL_COMMAND}   # kubectl for this shell\n"
        f"  kubectl -n {NAMESPACE} get lmtj -o wide\n"
        f"  kubectl -n {NAMESPACE} describe lmtj tiny-gpt\n"
        "  kubectl explain lmtj.spec.training\n"
        "Your own text: docs/your-own-text.md. And `make cluster-down` when you have seen enough.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
