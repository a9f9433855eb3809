"""`python -m devcluster`: the cluster from a terminal."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from devcluster import binaries, cluster, gpu, images, kwok, machine, native, processes
from devcluster.apiserver import ApiServer
from devcluster.errors import DevclusterError
from devcluster.images.docker import docker_answers
from devcluster.paths import Layout

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
kwok_app = typer.Typer(no_args_is_help=True, help="Simulated nodes: hundreds of them, no machine.")
app.add_typer(kwok_app, name="kwok")
app.add_typer(images.app, name="image")
say = Console(stderr=True, highlight=False).print

EgressOption = Annotated[
    bool | None, typer.Option(help="Let pods reach the world outside; off in a new cluster.")
]
GpusOption = Annotated[int, typer.Option(min=0, help="Simulated nvidia.com/gpu on each node.")]


@app.command()
def up(
    backend: Annotated[
        cluster.Backend, typer.Option(help="auto: kind where Docker answers, else native.")
    ] = cluster.Backend.AUTO,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="etcd and the API server only, as any user.")
    ] = False,
    egress: EgressOption = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="Simulated nvidia.com/gpu; 8 in a new cluster.")
    ] = None,
) -> None:
    """Start the cluster, or repair it. Ends when pods can run."""
    layout = Layout.from_environment()
    if api_only:
        server = ApiServer(layout.api_only, persistent=True)
        if not server.is_running():
            server.start()
        print(f"export KUBECONFIG={server.kubeconfig}")
        return
    found = cluster.ensure_up(backend=backend, egress=egress, gpus=gpus, announce=say)
    say(f"The cluster is up. Images pushed to {found.registry}/... are there for its pods.")
    print(f"export KUBECONFIG={found.kubeconfig} PATH={found.binaries}:$PATH")


@app.command()
def down(
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Only what `up --api-only` started.")
    ] = False,
) -> None:
    """Stop the cluster. Its objects and volumes are gone; binaries and images stay cached."""
    layout = Layout.from_environment()
    ApiServer(layout.api_only).stop()
    shutil.rmtree(layout.api_only, ignore_errors=True)
    if not api_only:
        cluster.ensure_down(layout=layout)


@app.command()
def status() -> None:
    """What runs; exit code 1 when the cluster is not healthy."""
    layout = Layout.from_environment()
    backend = cluster.running_backend(layout)
    if ApiServer(layout.api_only).is_running():
        say(f"An API server alone runs too; kubeconfig {layout.api_only / 'kubeconfig'}")
    if backend is None:
        say("No cluster. Start one: python -m devcluster up")
        raise typer.Exit(1)
    table = Table("process", "pid", "state", "memory")
    for record in processes.read_records(layout.processes).values():
        alive = processes.is_alive(record)
        memory = f"{processes.resident_bytes(record) / 1024**2:.0f} MiB" if alive else ""
        table.add_row(record.name, str(record.pid), "running" if alive else "[red]dead", memory)
    Console().print(table)
    healthy = cluster.is_healthy(layout)
    say(f"{backend} cluster, {'healthy' if healthy else 'NOT healthy: python -m devcluster up'}")
    say(f"kubeconfig {layout.kubeconfig}, logs {layout.logs}")
    raise typer.Exit(0 if healthy else 1)


@app.command()
def kubeconfig() -> None:
    """Print the path of the administrator's kubeconfig."""
    print(Layout.from_environment().kubeconfig)


@app.command()
def check() -> None:
    """Say what is missing on this machine and what brings it."""
    layout = Layout.from_environment()
    if docker_answers():
        say("A Docker daemon answers: `up` uses kind.")
        return
    found = machine.problems(layout, ours_running=native.is_ours(layout))
    for problem in found:
        say(f"{problem.what}\n  fix: {problem.fix}", markup=False)
    if found:
        raise typer.Exit(1)
    say("This machine has all that the native node needs.")


@app.command()
def build() -> None:
    """Build the programs of cluster and tests into the cache, without starting anything."""
    layout = Layout.from_environment()
    of_cluster = binaries.KIND_PROGRAMS if docker_answers() else binaries.NATIVE_PROGRAMS
    names = (*of_cluster, *binaries.TEST_PROGRAMS)
    for path in sorted({path.parent for path in binaries.ensure(names, layout).values()}):
        print(path)


@app.command()
def clean() -> None:
    """`down`, then delete our part of the cache: binaries, image layers, the registry's content."""
    down(api_only=False)
    images.clean()
    layout = Layout.from_environment()
    for part in layout.parts:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        if part.exists():
            raise DevclusterError(f"{part} could not be removed: remove it by hand")
    if layout.cache.is_dir() and not any(layout.cache.iterdir()):
        layout.cache.rmdir()


@kwok_app.command("up")
def kwok_up(
    nodes: Annotated[int, typer.Option(min=1, max=kwok.NODES_MAX)],
    gpus: GpusOption = gpu.DEFAULT_COUNT,
) -> None:
    """Have exactly this many simulated nodes; the cluster must be up."""
    cluster.require_up(Layout.from_environment())
    kwok.up(Layout.from_environment(), nodes=nodes, gpus=gpus)


@kwok_app.command("down")
def kwok_down() -> None:
    """Remove the simulated nodes and what runs on them."""
    cluster.require_up(Layout.from_environment())
    kwok.down(Layout.from_environment())


def main() -> None:
    """Run it; an expected failure is one message and exit code 1."""
    try:
        app(prog_name=f"python -m {Path(__file__).parent.name}")
    except DevclusterError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False)
        raise SystemExit(1) from error
