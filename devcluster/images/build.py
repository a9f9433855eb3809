"""What has to be done so that an image is there, and no more than that.

Promise: each step is skipped where its result exists under its final name, and a name appears only
when what it names is whole, so an interrupted build is simply done again. Trap avoided: "is it up
to date?" answered by time stamps, or by running a build to see.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images import base
from devcluster.images.buildah import Buildah
from devcluster.images.docker import Docker, docker_answers
from devcluster.images.pins import PinMemory, Pins, resolved_pins
from devcluster.images.progress import announce, say
from devcluster.images.recipe import (
    DEPENDENCIES_STAGE,
    REPOSITORY_ROOT,
    Recipe,
    dependencies_key,
    image_key,
    project_version,
    recipe_named,
    snapshot,
)
from devcluster.images.reference import ImageRef
from devcluster.images.registry import registry_answers, registry_has
from devcluster.images.request import Builder, BuildRequest, write_secrets
from devcluster.images.store import Store
from devcluster.node import REGISTRY
from devcluster.paths import Layout

BASE_VARIABLE = "LMTRAIN_BASE_IMAGE"
DEPENDENCIES_SECONDS_MAX = 3600.0
CODE_SECONDS_MAX = 300.0
DEPENDENCIES_TAG_PREFIX = "dependencies-"
#: Images of older code that stay in the build store: enough to go back, no more.
OLD_IMAGES_KEPT = 3


def ensure_image(
    name: str, *, layout: Layout | None = None, registry: str | None = REGISTRY
) -> ImageRef:
    """The image of the code as it is now, built and pushed as far as that is missing.

    Without a registry it is only built. DevclusterError where it cannot be made, with the reason.
    """
    recipe = recipe_named(name)
    workshop = Workshop.open(layout)
    dependencies = dependencies_tag(workshop.dependencies(recipe, REPOSITORY_ROOT))
    key = image_key(recipe, root=REPOSITORY_ROOT, dependencies=dependencies)
    reference = ImageRef(registry, recipe.image_name, key)
    if workshop.is_there(reference):
        return reference
    _require_registry(registry)
    with workshop.store.locked():
        workshop.builder.sweep()
        return workshop.make(recipe, registry)


def ensure_dependencies(
    name: str, *, layout: Layout | None = None, registry: str | None = REGISTRY
) -> ImageRef:
    """The large layer alone, before there is code to put on it."""
    recipe = recipe_named(name)
    workshop = Workshop.open(layout)
    _require_registry(registry)
    with workshop.store.locked():
        workshop.builder.sweep()
        context = workshop.snapshot(recipe, code=False)
        reference = workshop.make_dependencies(recipe, context, registry)
        workshop.drop_older(recipe, current=reference.tag)
        return reference


def ensure_base(*, layout: Layout | None = None) -> str:
    """The base image that the others are built on, by its name in the build store."""
    workshop = Workshop.open(layout)
    with workshop.store.locked():
        workshop.builder.sweep()
        return workshop.make_base()


def _require_registry(registry: str | None) -> None:
    if registry is not None and not registry_answers(registry):
        raise DevclusterError(
            f"no image registry answers at {registry}: bring the cluster up first "
            "(`python -m devcluster up`), or build without pushing (`image build --no-push`)"
        )


@dataclass(frozen=True)
class Workshop:
    """A builder, its store, and the base it builds on."""

    store: Store
    builder: Builder
    base: str
    tools: Path
    memory: PinMemory

    @classmethod
    def open(cls, layout: Layout | None) -> "Workshop":
        chosen = layout or Layout.from_environment()
        store = Store.of(chosen)
        builder: Builder = Docker() if docker_answers() else Buildah(store, uv_cache())
        tools, memory = chosen.tools, PinMemory(store.pins)
        return cls(store, builder, base_of(builder), tools, memory)

    def is_there(self, reference: ImageRef) -> bool:
        if reference.registry is None:
            return self.builder.holds(reference.local)
        return registry_has(reference)

    def pins(self, recipe: Recipe, root: Path) -> Pins:
        return resolved_pins(recipe.extra, root=root, memory=self.memory, tools=self.tools)

    def dependencies(self, recipe: Recipe, root: Path) -> str:
        """The key of the dependency layer."""
        return dependencies_key(recipe, root=root, base=self.base, pins=self.pins(recipe, root))

    def snapshot(self, recipe: Recipe, *, code: bool) -> Path:
        context = self.store.temporary / "context"
        snapshot(recipe, root=REPOSITORY_ROOT, destination=context, code=code)
        return context

    def make(self, recipe: Recipe, registry: str | None) -> ImageRef:
        """Build and push from a snapshot; the name is the snapshot's, whatever was saved since."""
        context = self.snapshot(recipe, code=True)
        dependencies = self.make_dependencies(recipe, context, registry)
        key = image_key(recipe, root=context, dependencies=dependencies.tag)
        reference = ImageRef(registry, recipe.image_name, key)
        if not self.builder.holds(reference.local):
            self.builder.build(self._request(recipe, context, reference))
        self.push(reference, recipe)
        self.drop_older(recipe, current=dependencies.tag)
        say(f"{recipe.name} image: {reference}")
        return reference

    def make_dependencies(self, recipe: Recipe, context: Path, registry: str | None) -> ImageRef:
        """Build the large layer, and push it under a name of its own: it is announced only once."""
        tag = dependencies_tag(self.dependencies(recipe, context))
        reference = ImageRef(registry, recipe.image_name, tag)
        if not self.builder.holds(reference.local):
            self.make_base()
            announce(recipe.dependencies, self.store.root)
            request = self._request(recipe, context, reference)
            self.builder.build(
                replace(
                    request,
                    title=recipe.dependencies.title,
                    target=DEPENDENCIES_STAGE,
                    limit_seconds=DEPENDENCIES_SECONDS_MAX,
                )
            )
        if registry is not None and not registry_has(reference):
            announce(recipe.push, self.store.root)
            self.push(reference, recipe)
        return reference

    def make_base(self) -> str:
        own = own_base()
        if self.base != own.local or self.builder.holds(own.local):
            return self.base
        announce(base.STEP, self.store.root)
        context = self.store.temporary / "base"
        base.make_base_context(context, log=self.store.logs / "base.log")
        self.builder.build(
            BuildRequest(
                title=base.STEP.title,
                image=own,
                context=context,
                dockerfile=context / "Dockerfile",
                log=self.store.logs / "base-import.log",
                limit_seconds=CODE_SECONDS_MAX,
            )
        )
        return self.base

    def push(self, reference: ImageRef, recipe: Recipe) -> None:
        if reference.registry is not None and not registry_has(reference):
            log = self.store.logs / f"{recipe.name}-push.log"
            self.builder.push(reference, title=recipe.push.title, log=log)

    def drop_older(self, recipe: Recipe, *, current: str) -> None:
        """Give back the layers of older pins at once, those of older code after a few builds."""
        tags = self.builder.tags(recipe.image_name)
        code = [tag for tag in tags if not is_dependencies_tag(tag)]
        older_pins = [tag for tag in tags if is_dependencies_tag(tag) and tag != current]
        for tag in (*code[OLD_IMAGES_KEPT:], *older_pins):
            self.builder.remove(ImageRef(None, recipe.image_name, tag))

    def _request(self, recipe: Recipe, context: Path, image: ImageRef) -> BuildRequest:
        secrets = self.store.temporary / "secrets"
        secrets.mkdir(exist_ok=True)
        pins = self.pins(recipe, context)
        return BuildRequest(
            title=f"{recipe.name} image",
            image=image,
            context=context,
            dockerfile=context / recipe.dockerfile,
            log=self.store.logs / f"{image.local.replace(':', '-')}.log",
            limit_seconds=CODE_SECONDS_MAX,
            arguments={
                "BASE_IMAGE": self.base,
                "REQUIREMENTS_KEY": pins.key,
                "TORCH_BACKEND": pins.torch_backend,
                "VERSION": project_version(context),
            },
            secrets=write_secrets(secrets),
        )


def base_of(builder: Builder) -> str:
    """The base to build on: the one asked for, one that can be pulled, else our own."""
    if named := os.environ.get(BASE_VARIABLE):
        return named
    own, upstream = own_base().local, builder.upstream_base
    if upstream is None:
        return own
    if builder.holds(upstream) or (not builder.holds(own) and builder.pull(upstream)):
        return upstream
    return own


def own_base() -> ImageRef:
    return ImageRef(None, base.NAME, base.base_key())


def dependencies_tag(key: str) -> str:
    return DEPENDENCIES_TAG_PREFIX + key


def is_dependencies_tag(tag: str) -> bool:
    return tag.startswith(DEPENDENCIES_TAG_PREFIX)


def uv_cache() -> Path:
    """uv's cache on this machine, by uv's own rules."""
    if named := os.environ.get("UV_CACHE_DIR"):
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "uv"
