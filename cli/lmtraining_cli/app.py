"""The commands of `kubectl lmtrain`.

Promise: help comes at once, since each command imports what it needs when it is called; kubectl's
own --context, --namespace, --kubeconfig and --as are understood wherever they stand. What is
destructive names the context and the namespace before it asks.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmtraining_cli.errors import CliError

if TYPE_CHECKING:
    from rich.console import Console

    from lmtraining_cli.kubectl import Cluster, Place

PIPE_COLUMNS = 160
PLACE_FLAGS = {
    "-n": "--namespace", "--namespace": "--namespace", "--context": "--context",
    "--kubeconfig": "--kubeconfig", "--as": "--as",
}  # fmt: skip

app = typer.Typer(
    name="kubectl lmtrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Look at language-model trainings, and stop and start them. kubectl's own --context, "
    "--namespace, --kubeconfig and --as work with every command.",
)


def _complete_job(incomplete: str) -> list[str]:
    from lmtraining_cli.completion import job_names  # noqa: PLC0415 - not needed to run a command

    return job_names(incomplete)


JobName = Annotated[str, typer.Argument(help="Name of the job.", autocompletion=_complete_job)]
Output = Annotated[str, typer.Option("--output", "-o", help="table or json.")]
Timeout = Annotated[float, typer.Option(min=1, max=3600, help="Seconds to wait for the answer.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback()
def place(
    context: typer.Context,
    kube_context: Annotated[str, typer.Option("--context", help="Context of the kubeconfig.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")] = "",
    kubeconfig: Annotated[str, typer.Option("--kubeconfig", help="Kubeconfig.")] = "",
    user: Annotated[str, typer.Option("--as", help="User to act as.")] = "",
) -> None:
    """Which cluster."""
    from lmtraining_cli.kubectl import Place  # noqa: PLC0415

    context.obj = Place(context=kube_context, namespace=namespace, kubeconfig=kubeconfig, user=user)


@app.command()
def status(context: typer.Context, job: JobName, output: Output = "table") -> None:
    """One screen: state and why, progress, loss, ranks, checkpoints, recoveries, goodput."""
    cluster = _cluster(context, job)
    from lmtraining_cli.looking import status as look  # noqa: PLC0415

    look(cluster, job, as_json=_is_json(output), console=_console())


@app.command()
def why(context: typer.Context, job: JobName, output: Output = "table") -> None:
    """Why it is pending, slow or failed: one sentence, the evidence, the fix."""
    cluster = _cluster(context, job)
    from lmtraining_cli.looking import why as look  # noqa: PLC0415

    look(cluster, job, as_json=_is_json(output), console=_console())


@app.command("list")
def list_jobs(
    context: typer.Context,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")
    ] = False,
    output: Output = "table",
) -> None:
    """All jobs, those that need somebody first."""
    cluster = _cluster(context)
    from lmtraining_cli.looking import list_jobs as look  # noqa: PLC0415

    look(cluster, everywhere=all_namespaces, as_json=_is_json(output), console=_console())


@app.command()
def watch(
    context: typer.Context,
    job: JobName,
    interval: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between looks.")] = 2.0,
) -> None:
    """Live curves of loss, throughput and gradient norm, until the job has ended."""
    cluster = _cluster(context, job)
    from lmtraining_cli.watching import watch as look  # noqa: PLC0415

    look(cluster, job, console=_console(), seconds=interval)


@app.command()
def logs(
    context: typer.Context,
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, also over restarts.")] = (
        False
    ),
    tail: Annotated[int, typer.Option(help="Newest lines, so many of each pod; -1: all.")] = -1,
    rank: Annotated[int, typer.Option(help="Only the pod of this rank; -1: all.")] = -1,
) -> None:
    """The logs of all pods of the job in one stream, by time."""
    cluster = _cluster(context, job)
    from lmtraining_cli.looking import logs as look  # noqa: PLC0415

    look(cluster, job, follow=follow, tail=tail, rank=rank)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="YAML files; every job in them is checked.")],
) -> None:
    """Check job files by the rules of the API server, without one."""
    import lmtraining_manifests as manifests  # noqa: PLC0415 - the models are half a second

    raise typer.Exit(int(manifests.validate(files, output=sys.stdout, errors=sys.stderr)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="YAML file with one job.")],
) -> None:
    """Train on this machine, without a cluster: hands over to `lmtraining run`."""
    from lmtraining_cli.local import hand_over  # noqa: PLC0415

    hand_over(["run", str(file), *context.args])


@app.command()
def suspend(context: typer.Context, job: JobName, yes: Yes = False) -> None:
    """Save a checkpoint and free the devices."""
    cluster = _cluster(context, job)
    from lmtraining_cli.acting import suspend as act  # noqa: PLC0415

    act(cluster, job, wanted=True, ask=None if yes else _ask)


@app.command()
def resume(context: typer.Context, job: JobName) -> None:
    """Go on from the newest checkpoint."""
    cluster = _cluster(context, job)
    from lmtraining_cli.acting import suspend as act  # noqa: PLC0415

    act(cluster, job, wanted=False, ask=None)


@app.command()
def checkpoint(context: typer.Context, job: JobName, timeout: Timeout = 120) -> None:
    """Save a checkpoint now, and wait for it."""
    cluster = _cluster(context, job)
    from lmtraining_cli.requesting import checkpoint as ask_for  # noqa: PLC0415

    ask_for(cluster, job, limit_seconds=timeout)


@app.command()
def rollback(
    context: typer.Context,
    job: JobName,
    to_step: Annotated[int, typer.Option(min=0, help="Step of the checkpoint to go back to.")],
    yes: Yes = False,
    timeout: Timeout = 120,
) -> None:
    """Go back to an earlier checkpoint and train on from there; no pod is restarted."""
    cluster = _cluster(context, job)
    from lmtraining_cli.requesting import rollback as ask_for  # noqa: PLC0415

    ask_for(cluster, job, to_step=to_step, ask=None if yes else _ask, limit_seconds=timeout)


@app.command()
def delete(context: typer.Context, job: JobName, yes: Yes = False) -> None:
    """Delete a job and its pods; its checkpoints stay."""
    cluster = _cluster(context, job)
    from lmtraining_cli.acting import delete as act  # noqa: PLC0415

    act(cluster, job, ask=None if yes else _ask)


@app.command()
def report(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="Name of the job.", autocompletion=_complete_job)] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write.")] = (
        None
    ),
    directory: Annotated[
        Path | None, typer.Option(help="A run directory on this machine, instead of a job.")
    ] = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="A ZIP with manifests, events and logs too, redacted.")
    ] = False,
) -> None:
    """Write one HTML file with curves, events, goodput, recoveries, configuration, checkpoints."""
    from lmtraining_cli.reporting import of_directory, of_job  # noqa: PLC0415

    if bundle and directory is not None:
        raise CliError("--bundle is of a job: name one instead of --directory")
    if bool(job) == (directory is not None):
        raise CliError("name a job, or a run directory with --directory, and not both")
    if directory is not None:
        of_directory(directory, output)
    else:
        of_job(_cluster(context, job), job, output, bundled=bundle)


@app.command()
def version(context: typer.Context, output: Output = "table") -> None:
    """Versions of this client, the operator and the CRD, and whether they fit."""
    cluster = _cluster(context)
    from lmtraining_cli.versions import show  # noqa: PLC0415

    show(cluster, as_json=_is_json(output))


def main(arguments: list[str] | None = None) -> None:
    """The script `kubectl-lmtrain`."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=with_place_first(given), prog_name="kubectl lmtrain")
    except CliError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


def with_place_first(arguments: list[str]) -> list[str]:
    """kubectl's own flags before the command, wherever they stood."""
    places, rest = split_place(arguments)
    return [word for flag, value in places.items() for word in (flag, value)] + rest


def split_place(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """kubectl's own flags, and all the rest."""
    places: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if word == "--":
            return places, [*rest, word, *left]
        if flag not in PLACE_FLAGS or not (equals or left):
            rest.append(word)
        else:
            places[PLACE_FLAGS[flag]] = value if equals else left.pop(0)
    return places, rest


def _cluster(context: typer.Context, job: str = "") -> "Cluster":
    """kubectl is started here, and works while the command's modules are imported."""
    from lmtraining_cli.kubectl import Cluster  # noqa: PLC0415
    from lmtraining_cli.paths import ask_early  # noqa: PLC0415

    found: Place = context.obj
    cluster = Cluster(found)
    if job:
        ask_early(cluster, job)
    return cluster


def _console() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    # A pipe has no width, and a table that is cut can be read by nobody.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(highlight=False, width=width)


def _is_json(output: str) -> bool:
    if output not in ("table", "json"):
        raise CliError(f"--output {output} is not known: write table or json")
    return output == "json"


def _ask(question: str) -> None:
    """Go on only after a yes; nobody to ask is a no."""
    if not sys.stdin.isatty():
        raise CliError(f"{question} Nobody is there to ask: say it with --yes")
    typer.confirm(question, abort=True)


def command_names() -> list[str]:
    """All commands, for completion."""
    group: Any = typer.main.get_command(app)
    return sorted(group.commands)
