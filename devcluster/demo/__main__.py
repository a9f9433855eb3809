"""`make demo`: cluster, images, chart, a job, a killed pod, the recovery, the model's own words.

Promise: ends with exit code 0 only if all of it happened. Long steps say what they do.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from devcluster.cluster import ensure_up
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
    _title(console, 3, "A job")
    job = yaml.safe_load(JOB_FILE.read_text())
    _apply(kubectl, job)
    console.print(f"$ kubectl -n {NAMESPACE} apply -f examples/{JOB_FILE.name}", highlight=False)
    story = Story(kubectl, console, job["metadata"]["name"])
    view = story.follow()
    claims = check(view, story)
    _title(console, 4, "What came of it")
    draw_curve(console, story.curve, float(view.status.metrics.unigram_loss))
    _summary(console, view)
    text = _read_back(kubectl, product, view)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    for claim in claims:
        console.print(f"[green]✓[/green] {claim}", highlight=False)
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
