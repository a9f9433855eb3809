"""A key changes exactly when something that goes into the image changes."""

from pathlib import Path, PurePosixPath

import pytest

from devcluster.errors import DevclusterError
from devcluster.images.pins import Pins, requirements_of
from devcluster.images.progress import Step
from devcluster.images.recipe import (
    RECIPES,
    REPOSITORY_ROOT,
    Recipe,
    dependencies_key,
    image_key,
    recipe_named,
    short_hash,
    snapshot,
)

pytestmark = pytest.mark.unit

STEP = Step(title="a step", usual_seconds=1, disk_bytes=1)
RECIPE = Recipe(
    name="toy",
    image_name="lmtraining-toy",
    dockerfile=PurePosixPath("toy/Dockerfile"),
    extra="toy",
    sources=(PurePosixPath("api"), PurePosixPath("toy/package")),
    dependencies=STEP,
    push=STEP,
)
FILES = {
    "pyproject.toml": (
        '[project]\nversion = "1"\ndependencies = ["a"]\n'
        '[project.optional-dependencies]\ntoy = ["b"]\n'
    ),
    "constraints/python.txt": "a==1\nb==1\n",
    "toy/Dockerfile": "FROM x AS dependencies\nRUN y\nFROM dependencies AS code\nCOPY api\n",
    "api/names.py": "A = 1",
    "toy/package/main.py": "B = 2",
}
PINS = Pins(key="pins", torch_backend="", packages=("a==1", "b==1"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def keys(root: Path, *, base: str = "base:1", pins: Pins = PINS) -> tuple[str, str]:
    """Keys of the dependency layer and of the whole image."""
    dependencies = dependencies_key(RECIPE, root=root, base=base, pins=pins)
    return dependencies, image_key(RECIPE, root=root, dependencies=dependencies)


@pytest.mark.parametrize(
    ("changed", "text", "dependencies_change", "image_changes"),
    [
        pytest.param("toy/package/main.py", "B = 3", False, True, id="code"),
        pytest.param("toy/package/new.py", "", False, True, id="an empty new file"),
        pytest.param("api/names.py", "A = 2", False, True, id="the contract"),
        pytest.param("constraints/python.txt", "ruff==9", False, False, id="pins of other things"),
        pytest.param("pyproject.toml", '[project]\nversion = "2"\n', False, True, id="version"),
        pytest.param("toy/package/__pycache__/m.pyc", "x", False, False, id="bytecode"),
        pytest.param(
            "toy/Dockerfile",
            "FROM x AS dependencies\nRUN y\nFROM dependencies AS code\nCOPY z\n",
            False,
            True,
            id="how code is added",
        ),
        pytest.param(
            "toy/Dockerfile",
            "FROM x AS dependencies\nRUN z\nFROM dependencies AS code\nCOPY api\n",
            True,
            True,
            id="how dependencies are installed",
        ),
    ],
)
def test_keys_follow_the_files(
    tree: Path, changed: str, text: str, dependencies_change: bool, image_changes: bool
) -> None:
    before = keys(tree)
    (tree / changed).parent.mkdir(parents=True, exist_ok=True)
    (tree / changed).write_text(text)
    after = keys(tree)
    assert (before[0] != after[0], before[1] != after[1]) == (dependencies_change, image_changes)


@pytest.mark.parametrize(
    "other",
    [
        {"base": "base:2"},
        {"pins": Pins("other", "", ())},
        {"pins": Pins("pins", "cpu", ("a==1", "b==1"))},
    ],
)
def test_base_pins_and_build_of_torch_change_both_keys(tree: Path, other: dict[str, str]) -> None:
    before, after = keys(tree), keys(tree, **other)  # type: ignore[arg-type]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_file_moved_between_names_changes_the_key(tree: Path) -> None:
    before = keys(tree)
    (tree / "toy/package/main.py").rename(tree / "toy/package/other.py")
    assert keys(tree)[1] != before[1]


def test_a_tag_is_never_a_number_to_yaml(tree: Path) -> None:
    tags = [image_key(RECIPE, root=tree, dependencies=str(number)) for number in range(50)]
    assert len(set(tags)) == 50
    assert all(tag.isalpha() and len(tag) == 12 for tag in tags)


def test_a_snapshot_has_the_key_of_the_tree_and_keeps_it_when_the_tree_changes(
    tree: Path, tmp_path: Path
) -> None:
    snapshot(RECIPE, root=tree, destination=tmp_path / "context", code=True)
    named = keys(tree)
    (tree / "toy/package/main.py").write_text("saved during the build")
    assert keys(tmp_path / "context") == named != keys(tree)


def test_dependencies_need_no_code(tree: Path, tmp_path: Path) -> None:
    (tree / "toy/package/main.py").unlink()
    snapshot(RECIPE, root=tree, destination=tmp_path / "context", code=False)
    assert (tmp_path / "context/constraints/python.txt").exists()


def test_an_image_without_code_is_refused(tree: Path) -> None:
    (tree / "toy/package/main.py").unlink()
    with pytest.raises(DevclusterError, match="has no files"):
        keys(tree)


def test_a_dockerfile_without_the_code_stage_is_refused(tree: Path) -> None:
    (tree / "toy/Dockerfile").write_text("FROM x\n")
    with pytest.raises(DevclusterError, match="FROM dependencies AS code"):
        keys(tree)


def test_an_unknown_image_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DevclusterError, match=r"'trainr'.*trainer, operator"):
        recipe_named("trainr")


def test_texts_that_join_to_the_same_text_have_different_keys() -> None:
    assert short_hash(["ab", "c"]) != short_hash(["a", "bc"])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_recipes_match_this_repository(recipe: Recipe) -> None:
    text = (REPOSITORY_ROOT / recipe.dockerfile).read_text()
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY crds")]
    assert copied == [str(one) for one in recipe.sources if one.parts[0] == "crds"]
    assert all(f"COPY {source} " in text for source in recipe.sources)
    assert f"--extra {recipe.extra} " in text
    assert requirements_of(recipe.extra, REPOSITORY_ROOT / "pyproject.toml")
    ignored = (REPOSITORY_ROOT / f"{recipe.dockerfile}.dockerignore").read_text()
    assert all(f"!{source}\n" in ignored for source in recipe.sources)


def test_an_unknown_extra_is_answered_with_the_known_ones(tree: Path) -> None:
    with pytest.raises(DevclusterError, match="no extra 'toys': it has toy"):
        requirements_of("toys", tree / "pyproject.toml")
