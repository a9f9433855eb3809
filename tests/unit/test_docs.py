"""What the documentation names is there: fields of a job, and tests that are cited as proof."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtraining_api.job import LMTrainingJob
from lmtraining_crdgen import manifest
from tests.contract_cases import Document, merged, minimal

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
#: docs/reference is made from the models.
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "runbooks").glob("*.md"),
    ]
)
VALUES = yaml.safe_load((ROOT / "charts/lm-training-operator/values.yaml").read_text())
BLOCKS = manifest.root_schema()["properties"]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def names_in(page: Path) -> Iterator[str]:
    """Dotted names in backticks that begin with a field of the spec or of the status."""
    first = {*BLOCKS["spec"]["properties"], *BLOCKS["status"]["properties"], "spec", "status"}
    for name in re.findall(r"`([a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)+)[`:=\[ ]", page.read_text()):
        if name.partition(".")[0] in first:
            yield name


def is_value(name: str) -> bool:
    """Of the chart."""
    value = VALUES
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def is_field(name: str, schema: dict[str, Any]) -> bool:
    for part in name.split("."):
        schema = schema.get("items", schema)
        if "additionalProperties" in schema:
            return True
        if part not in schema.get("properties", {}):
            return False
        schema = schema["properties"][part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_field_that_a_page_names_exists(page: Path) -> None:
    unknown = [
        name
        for name in names_in(page)
        if not any(is_field(name, BLOCKS[block]) for block in ("spec", "status"))
        and not is_field(name, {"properties": BLOCKS})
        and not is_value(name)
    ]
    assert unknown == []


def test_names_are_found_at_all() -> None:
    assert sum(1 for page in PAGES for _ in names_in(page)) > 20
    assert not is_field("stability.skipsMax", BLOCKS["spec"])


def test_a_job_on_a_page_is_a_valid_job() -> None:
    jobs = [
        "apiVersion: lmtraining.dev/" + part.partition("\nEND")[0]
        for page in PAGES
        for block in FENCE.findall(page.read_text())
        for part in block.split("apiVersion: lmtraining.dev/")[1:]
    ]
    assert len(jobs) > 1
    for job in jobs:
        LMTrainingJob.from_document(yaml.safe_load(job.replace("$CLAIM", "a-claim")))


#: Part of a job, of any size.
PARTS = [
    (page.name, part)
    for page in PAGES
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for part in [yaml.safe_load(block)]
    if isinstance(part, dict) and {*part} <= {"spec", *BLOCKS["spec"]["properties"]}
]


def test_parts_are_found_at_all() -> None:
    assert sum(name == "recipes.md" for name, _ in PARTS) > 8


@pytest.mark.parametrize(("page", "part"), PARTS)
def test_a_part_of_a_job_on_a_page_makes_a_job_valid(page: str, part: Document) -> None:
    spec = part.get("spec", part)
    job = minimal(training={"batchTokens": 2**19, "budget": {"steps": 10_000}})
    if "pretrained" in spec.get("model", {}):
        job = merged(job, {"spec": {"model": {"config": None}}})
    if "budget" in spec.get("training", {}):
        job = merged(job, {"spec": {"training": {"budget": None}}})
    LMTrainingJob.from_document(merged(job, {"spec": spec}))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_test_that_a_page_cites_exists(page: Path) -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    cited = re.findall(r"`(test_[a-z0-9_]+)(?:\[[^`]*\])?`", page.read_text())
    assert [name for name in cited if f"def {name}(" not in sources] == []
    files = re.findall(r"`(tests/[a-z0-9_/]+\.py)`", page.read_text())
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_a_link_of_the_readme_leads_to_a_file() -> None:
    """Within docs/ the build of the site looks."""
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", text)
    targets = [one or other for one, other in linked if "://" not in one + other]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []
