"""`image build`, `image used`, `image clean`.

Promise: names of images go to standard output, one a line, and nothing else does; all the rest is
for the person and goes to standard error.
"""

from enum import StrEnum
from typing import Annotated

import typer

from devcluster.errors import DevclusterError
from devcluster.images.build import ensure_base, ensure_dependencies, ensure_image
from devcluster.images.progress import GIGABYTE, say
from devcluster.images.recipe import RECIPES
from devcluster.images.store import bytes_used, clean
from devcluster.node import REGISTRY


class Choice(StrEnum):
    """What can be built."""

    TRAINER = "trainer"
    OPERATOR = "operator"
    BASE = "base"
    ALL = "all"


app = typer.Typer(help="Build the images of the product.", no_args_is_help=True)


@app.command()
def build(
    image: Annotated[Choice, typer.Argument(help="Which image.")] = Choice.ALL,
    push: Annotated[bool, typer.Option(help="Push to the registry.")] = True,
    registry: Annotated[str, typer.Option(help="host:port of a registry without TLS.")] = REGISTRY,
    dependencies_only: Annotated[
        bool, typer.Option(help="Only the large layer, without our code.")
    ] = False,
) -> None:
    """Build and push what is missing; prints the names."""
    destination = registry if push else None
    ensure = ensure_dependencies if dependencies_only else ensure_image
    try:
        if image is Choice.BASE:
            typer.echo(ensure_base())
            return
        for name in RECIPES if image is Choice.ALL else (image.value,):
            typer.echo(ensure(name, registry=destination))
    except DevclusterError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None


@app.command()
def used() -> None:
    """Disk taken by the image store, in GB."""
    for part, size in bytes_used().items():
        typer.echo(f"{part}\t{size / GIGABYTE:.2f}")


@app.command(name="clean")
def clean_command() -> None:
    """Delete the image store; the next build starts from nothing but uv's cache."""
    try:
        say(f"images: {clean() / GIGABYTE:.1f} GB given back")
    except DevclusterError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
