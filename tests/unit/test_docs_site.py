"""The site of docs/: every link leads somewhere, and no page asks another host for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
BUILD_SECONDS_MAX = 120
IMAGE_BYTES_MAX = 300_000
#: What a browser fetches by itself, as against an `a`, which somebody must click.
FETCHED = {
    "script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src",
    "video": "src", "audio": "src", "object": "data", "embed": "src", "use": "href",
}  # fmt: skip
ELSEWHERE = re.compile(r"^\s*(?:[a-z]+:)?//", re.IGNORECASE)


class Fetches(HTMLParser):
    """The addresses that a page has fetched, and whether it draws with a library from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") == "canonical":
            return
        address = values.get(FETCHED.get(tag, ""))
        if address and ELSEWHERE.match(address):
            self.found.append(address)
        if "mermaid" in (values.get("class") or "").split():
            self.found.append("mermaid, which the theme loads from a public host")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(source / "mkdocs.yml"), "--site-dir", str(target)],
        cwd=source, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS_MAX,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the page for what is missing
    assert {found for page in pages for found in Fetches(page.read_text()).found} == set()
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", styles) == []


def test_a_picture_is_small_and_asks_for_nothing() -> None:
    pictures = list((ROOT / "docs/images").iterdir())
    assert {picture.suffix for picture in pictures} == {".png", ".svg"}
    assert [path.name for path in pictures if path.stat().st_size > IMAGE_BYTES_MAX] == []
    drawn = "".join(path.read_text() for path in pictures if path.suffix == ".svg")
    assert re.findall(r"url\([^#)][^)]*\)|@font-face|<(?:image|script)", drawn) == []


def test_a_page_that_loads_something_is_noticed() -> None:
    text = '<img src="https://a.example/x.png"><script src="//b.example/y.js"></script>'
    assert len(Fetches(text + '<pre class="mermaid">graph</pre>').found) == 3
    assert Fetches('<a href="https://a.example">x</a><img src="images/x.png">').found == []


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    del config["nav"], config["not_in_nav"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A\n\n[b](b.md), [c](index.md#c)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "'b.md'" in done.stderr
    assert "'index.md#c'" in done.stderr
