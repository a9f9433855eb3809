"""The generated files are those of the models, and everything in the schema has a limit."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtraining_api import LMTrainingJob
from lmtraining_api.exits import FailureClass
from lmtraining_api.names import KIND
from lmtraining_api.reasons import REASON_HELP, REASONS_OF
from lmtraining_crdgen import __main__ as command
from lmtraining_crdgen import manifest, reference
from tests.contract_cases import MINIMAL

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
#: `kubectl apply` keeps the whole object in an annotation, which may have 256 KiB.
CLIENT_SIDE_APPLY_BYTES_MAX = 256 * 1024


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def all_nodes() -> list[tuple[str, dict[str, Any]]]:
    root = manifest.root_schema()["properties"]
    return [*nodes(root["spec"], "spec"), *nodes(root["status"], "status")]


def bound_of(node: dict[str, Any]) -> str | None:
    """The keyword that must be there for what the node holds."""
    if node.get("type") == "array":
        return "maxItems"
    if "additionalProperties" in node:
        return "maxProperties"
    if node.get("type") == "string" and "enum" not in node:
        return "maxLength"
    if node.get("x-kubernetes-int-or-string"):
        return "maxLength"
    return "maximum" if node.get("type") in ("integer", "number") else None


def test_everything_has_a_limit() -> None:
    unbounded = [path for path, node in all_nodes() if (k := bound_of(node)) and k not in node]
    assert unbounded == []
    assert len(all_nodes()) > 100


def test_everything_has_a_meaning() -> None:
    """`kubectl explain` has a text for every field."""
    silent = [p for p, n in all_nodes() if "description" not in n and not p.endswith("[]")]
    assert silent == []


def test_nothing_is_kept_that_the_schema_does_not_know() -> None:
    assert "preserve-unknown-fields" not in manifest.rendered()


def test_the_committed_files_are_those_of_the_models() -> None:
    assert command.drifted(ROOT) == [], "run `make crds`"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all files are as they were made."""
    root = tmp_path_factory.mktemp("written")
    assert command.main([], root=root) == 0
    return root


class TestCheck:
    def test_passes_after_a_write(self, written: Path) -> None:
        assert command.main(["--check"], root=written) == 0

    @pytest.mark.parametrize("path", command.outputs())
    def test_names_a_file_that_was_edited(
        self, tmp_path: Path, written: Path, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(written, tmp_path, dirs_exist_ok=True)
        with (tmp_path / path).open("a") as file:
            file.write("# edited\n")
        assert command.main(["--check"], root=tmp_path) == 1
        assert capsys.readouterr().err == f"{path} differs from the models: run `make crds`\n"
        assert (tmp_path / path).read_text().endswith("# edited\n"), "--check writes nothing"

    def test_names_every_file_that_is_missing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.main(["--check"], root=tmp_path) == 1
        assert len(capsys.readouterr().err.splitlines()) == len(command.outputs())


def test_the_file_holds_what_was_made_and_fits_client_side_apply() -> None:
    text = manifest.rendered()
    assert yaml.safe_load(text) == manifest.manifest()
    assert len(text.encode()) < CLIENT_SIDE_APPLY_BYTES_MAX


def test_the_chart_has_the_same_crd() -> None:
    crd, chart = list(command.outputs().values())[:2]
    assert crd == chart


class TestReference:
    def test_has_every_field(self) -> None:
        text = reference.rendered()
        for path, node in all_nodes():
            if "properties" in node:
                assert f"## `{path}`" in text or "credentials" in path or "validation" in path
            name = path.rstrip("[]").split(".")[-1]
            assert f"`{name}`" in text or path in ("spec", "status"), path

    def test_has_every_rule_as_a_sentence(self) -> None:
        text = reference.rendered()
        for _, node in [*all_nodes(), ("", manifest.root_schema())]:
            if node.get("type") == "number":
                continue  # a bound, which is in the column of bounds
            for rule in node.get("x-kubernetes-validations", []):
                assert rule["message"] in text

    def test_explains_every_reason(self) -> None:
        """P4: every not-Ready has a reason a person can act on."""
        for kind, reasons in REASONS_OF.items():
            assert set(REASON_HELP[kind]) == {reason.value for reason in reasons}
            assert all(help_.means and help_.do for help_ in REASON_HELP[kind].values())

    def test_the_page_of_conditions_has_all_that_status_may_say(self) -> None:
        text = reference.conditions_page()
        said = [reason for reasons in REASONS_OF.values() for reason in reasons]
        for word in (*said, *FailureClass):
            assert f"| `{word}` |" in text

    def test_has_nothing_that_markdown_would_swallow(self) -> None:
        pages = f"{reference.rendered()}\n{reference.conditions_page()}"
        tables = [line for line in pages.splitlines() if line.startswith("|")]
        assert not any(re.search("<[a-z]", line) for line in tables)


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name
)
def test_an_example_is_a_valid_job(example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        if document["kind"] == KIND:
            LMTrainingJob.from_document(document)


def test_a_job_survives_being_written_and_read() -> None:
    job = LMTrainingJob.from_document(MINIMAL)
    written = json.loads(job.model_dump_json(exclude_none=True))
    assert LMTrainingJob.from_document(written) == job
