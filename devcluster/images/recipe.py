"""What goes into each image, and the keys that follow from it.

Promise: a key changes exactly when something that goes in changes. The image is built from a
snapshot of the sources and named after that same snapshot, so a file saved in the middle of a
build can never end up under a name that was computed before it. Trap avoided: hashing a checkout
and building from it a moment later.
"""

import hashlib
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devcluster.errors import DevclusterError
from devcluster.images.pins import Pins
from devcluster.images.progress import Step

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = PurePosixPath("pyproject.toml")
CONSTRAINTS = PurePosixPath("constraints/python.txt")
DEPENDENCIES_STAGE = "dependencies"
CODE_STAGE_LINE = f"FROM {DEPENDENCIES_STAGE} AS code"
KEY_CHARACTERS = 12
#: A tag of digits, or like 12e4, is a number to `helm --set` and to YAML; of letters it never is.
LETTERS_FOR_DIGITS = str.maketrans("0123456789", "ghijklmnop")
IGNORED_DIRECTORIES = {"__pycache__"}
IGNORED_SUFFIXES = {".pyc"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One image: where its Dockerfile and sources are, and what its long steps cost."""

    name: str
    image_name: str
    dockerfile: PurePosixPath
    extra: str
    """The extra of pyproject.toml that names its dependencies."""
    sources: tuple[PurePosixPath, ...]
    """Packages that are copied in: the small last layer."""
    dependencies: Step
    push: Step

    def code(self, root: Path) -> Iterator[PurePosixPath]:
        """The files of the last layer, below `root`, in one order everywhere."""
        for source in self.sources:
            yield from sorted(_files_below(root, source))


TRAINER = Recipe(
    name="trainer",
    image_name="lmtraining-trainer",
    dockerfile=PurePosixPath("trainer-image/Dockerfile"),
    extra="trainer",
    sources=(
        PurePosixPath("crds/lmtraining_api"),
        PurePosixPath("crds/lmtraining_manifests"),
        PurePosixPath("trainer-image/lmtraining_trainer"),
    ),
    dependencies=Step(title="trainer dependencies", usual_seconds=130, disk_bytes=18_500_000_000),
    push=Step(title="trainer push", usual_seconds=90, disk_bytes=3_700_000_000),
)
OPERATOR = Recipe(
    name="operator",
    image_name="lmtraining-operator",
    dockerfile=PurePosixPath("operator/Dockerfile"),
    extra="operator",
    sources=(
        PurePosixPath("crds/lmtraining_api"),
        PurePosixPath("operator/lmtraining_operator"),
    ),
    dependencies=Step(title="operator dependencies", usual_seconds=20, disk_bytes=500_000_000),
    push=Step(title="operator push", usual_seconds=5, disk_bytes=300_000_000),
)
RECIPES = {recipe.name: recipe for recipe in (TRAINER, OPERATOR)}


def recipe_named(name: str) -> Recipe:
    """The recipe; DevclusterError for a name that is none."""
    if name not in RECIPES:
        raise DevclusterError(f"there is no image {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def dependencies_key(recipe: Recipe, *, root: Path, base: str, pins: Pins) -> str:
    """The key of the large layer: base, pins, and the Dockerfile up to where the code comes in."""
    text = (root / recipe.dockerfile).read_text()
    if CODE_STAGE_LINE not in text:
        raise DevclusterError(
            f"{recipe.dockerfile} has no line {CODE_STAGE_LINE!r}: the key of the dependency layer "
            "covers all above it, so keep that stage's name"
        )
    return short_hash((base, pins.key, pins.torch_backend, text.partition(CODE_STAGE_LINE)[0]))


def image_key(recipe: Recipe, *, root: Path, dependencies: str) -> str:
    """The key of the whole image: its dependency layer, version, Dockerfile and code."""
    digest = hashlib.sha256(f"{dependencies}\0{project_version(root)}".encode())
    for path in (recipe.dockerfile, *recipe.code(root)):
        content = (root / path).read_bytes()
        digest.update(f"\0{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:KEY_CHARACTERS].translate(LETTERS_FOR_DIGITS)


def project_version(root: Path) -> str:
    """The version that the image is labelled with."""
    return str(tomllib.loads((root / PYPROJECT).read_text())["project"]["version"])


def snapshot(recipe: Recipe, *, root: Path, destination: Path, code: bool) -> None:
    """Copy all that goes in, so that what is hashed is what is built."""
    for path in (
        PYPROJECT,
        CONSTRAINTS,
        recipe.dockerfile,
        *(recipe.code(root) if code else ()),
    ):
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, target)


def short_hash(parts: Iterable[str]) -> str:
    """A short key of some texts; no two different sequences are taken for one another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\0{part}".encode())
    return digest.hexdigest()[:KEY_CHARACTERS]


def _files_below(root: Path, source: PurePosixPath) -> Iterator[PurePosixPath]:
    found = False
    for path in (root / source).rglob("*"):
        relative = path.relative_to(root)
        if IGNORED_DIRECTORIES & set(relative.parts) or path.suffix in IGNORED_SUFFIXES:
            continue
        if path.is_file():
            found = True
            yield PurePosixPath(relative.as_posix())
    if not found:
        raise DevclusterError(f"{root / source} has no files: the image would have no code in it")
