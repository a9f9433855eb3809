"""Only what is missing is done, and what is interrupted is done again."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devcluster.errors import DevclusterError
from devcluster.images import base, build
from devcluster.images.pins import PinMemory, Pins
from devcluster.images.reference import ImageRef
from devcluster.images.request import BuildRequest
from devcluster.images.store import Store
from devcluster.paths import Layout

pytestmark = pytest.mark.unit

REGISTRY = "127.0.0.1:5000"


@dataclass
class FakeBuilder:
    """Remembers what it was asked for; fails at the title in `fails_at`."""

    upstream_base: str | None = None
    images: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    can_pull: bool = False
    fails_at: str = ""

    def holds(self, image: str) -> bool:
        return image in self.images

    def pull(self, image: str) -> bool:
        return self.can_pull

    def build(self, request: BuildRequest) -> None:
        if request.title == self.fails_at:
            raise KeyboardInterrupt
        assert request.dockerfile.exists()
        self.built.append(request.title)
        self.images.append(request.image.local)

    def push(self, image: ImageRef, *, title: str, log: Path) -> None:
        self.pushed.append(str(image))

    def tags(self, name: str) -> list[str]:
        found = [image.partition(":") for image in reversed(self.images)]
        return [tag for image, _, tag in found if image == name]

    def remove(self, image: ImageRef) -> None:
        self.images.remove(image.local)

    def sweep(self) -> None:
        pass


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of what goes into the operator's image."""
    root = tmp_path / "tree"
    for name, text in {
        "pyproject.toml": '[project]\nversion = "1"\n',
        "constraints/python.txt": "",
        "operator/Dockerfile": "RUN x\nFROM dependencies AS code\n",
        "crds/lmtraining_api/names.py": "A = 1",
        "operator/lmtraining_operator/main.py": "B = 1",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(build, "REPOSITORY_ROOT", root)
    return root


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tree: Path) -> FakeBuilder:
    fake = FakeBuilder()
    own = build.own_base().local

    def open_workshop(layout: Layout) -> build.Workshop:
        store = Store.of(layout)
        return build.Workshop(store, fake, own, layout.tools, PinMemory(store.pins))

    def make_base_context(directory: Path, *, log: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "Dockerfile").write_text(base.DOCKERFILE)

    def has(reference: ImageRef) -> bool:
        return str(reference) in fake.pushed

    monkeypatch.setattr(build.Workshop, "open", open_workshop)
    monkeypatch.setattr(build.Workshop, "pins", lambda *_: Pins("pins", "", ("kopf==1",)))
    monkeypatch.setattr(base, "make_base_context", make_base_context)
    monkeypatch.setattr(build, "registry_has", has)
    monkeypatch.setattr(build, "registry_answers", lambda _: True)
    return fake


ALL_STEPS = ["base image", "operator dependencies", "operator image"]


def test_the_first_time_all_is_made_and_the_large_layer_is_pushed_first(
    builder: FakeBuilder, layout: Layout
) -> None:
    reference = build.ensure_image("operator", layout=layout)
    assert builder.built == ALL_STEPS
    assert [name.partition("operator:")[2][:13] for name in builder.pushed] == [
        "dependencies-",
        reference.tag,
    ]
    assert str(reference) == f"{REGISTRY}/lmtraining-operator:{reference.tag}"


def test_nothing_is_done_when_nothing_changed(builder: FakeBuilder, layout: Layout) -> None:
    first = build.ensure_image("operator", layout=layout)
    builder.built.clear()
    assert build.ensure_image("operator", layout=layout) == first
    assert builder.built == []


def test_a_change_of_code_rebuilds_the_small_layer_only(
    builder: FakeBuilder, layout: Layout, tree: Path
) -> None:
    first = build.ensure_image("operator", layout=layout)
    builder.built.clear()
    (tree / "operator/lmtraining_operator/main.py").write_text("B = 2")
    second = build.ensure_image("operator", layout=layout)
    assert builder.built == ["operator image"]
    assert first.tag != second.tag


@pytest.mark.parametrize("step", range(len(ALL_STEPS)))
def test_an_interrupted_build_goes_on_where_it_stopped(
    builder: FakeBuilder, layout: Layout, step: int
) -> None:
    builder.fails_at = ALL_STEPS[step]
    with pytest.raises(KeyboardInterrupt):
        build.ensure_image("operator", layout=layout)
    assert len(builder.images) == step
    builder.fails_at = ""
    build.ensure_image("operator", layout=layout)
    assert builder.built == ALL_STEPS


def test_a_registry_that_lost_its_images_gets_them_again_without_a_build(
    builder: FakeBuilder, layout: Layout
) -> None:
    first = build.ensure_image("operator", layout=layout)
    builder.built.clear()
    builder.pushed.clear()
    assert build.ensure_image("operator", layout=layout) == first
    assert builder.built == []
    assert builder.pushed[-1] == str(first)


def test_only_a_few_images_of_older_code_are_kept(
    builder: FakeBuilder, layout: Layout, tree: Path
) -> None:
    for number in range(build.OLD_IMAGES_KEPT + 3):
        (tree / "operator/lmtraining_operator/main.py").write_text(f"B = {number}")
        last = build.ensure_image("operator", layout=layout)
    tags = builder.tags("lmtraining-operator")
    assert tags[0] == last.tag
    code = [tag for tag in tags if not build.is_dependencies_tag(tag)]
    assert len(code) == build.OLD_IMAGES_KEPT
    assert len(tags) == build.OLD_IMAGES_KEPT + 1


def test_layers_of_older_pins_are_given_back(
    builder: FakeBuilder, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.ensure_image("operator", layout=layout)
    monkeypatch.setattr(build.Workshop, "pins", lambda *_: Pins("newer", "", ("kopf==2",)))
    build.ensure_image("operator", layout=layout)
    tags = builder.tags("lmtraining-operator")
    assert len([tag for tag in tags if build.is_dependencies_tag(tag)]) == 1


def test_without_a_registry_an_image_is_only_built(builder: FakeBuilder, layout: Layout) -> None:
    reference = build.ensure_image("operator", layout=layout, registry=None)
    assert builder.pushed == []
    assert str(reference) == f"lmtraining-operator:{reference.tag}"
    builder.built.clear()
    assert build.ensure_image("operator", layout=layout, registry=None) == reference
    assert builder.built == []


def test_a_registry_that_does_not_answer_is_said_before_anything_is_built(
    builder: FakeBuilder, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "registry_answers", lambda _: False)
    with pytest.raises(DevclusterError, match=r"127\.0\.0\.1:5000.*devcluster up"):
        build.ensure_image("operator", layout=layout)
    assert builder.built == []


@pytest.mark.parametrize(
    ("builder_state", "named", "expected"),
    [
        (FakeBuilder(), "mine:1", "mine:1"),
        (FakeBuilder(), None, "own"),
        (FakeBuilder(upstream_base="up:1", can_pull=True), None, "up:1"),
        (FakeBuilder(upstream_base="up:1", images=["up:1"]), None, "up:1"),
        (FakeBuilder(upstream_base="up:1", can_pull=False), None, "own"),
    ],
)
def test_the_base_is_the_named_one_then_upstream_then_our_own(
    monkeypatch: pytest.MonkeyPatch,
    builder_state: FakeBuilder,
    named: str | None,
    expected: str,
) -> None:
    if named:
        monkeypatch.setenv(build.BASE_VARIABLE, named)
    else:
        monkeypatch.delenv(build.BASE_VARIABLE, raising=False)
    own = build.own_base().local
    assert build.base_of(builder_state) == (own if expected == "own" else expected)
