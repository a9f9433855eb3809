"""`make screenshots`: the pictures of README and docs, of one real run on the real cluster.

Promise: what is shown was there: a job that trains, a pod of it that is deleted by force, the
recovery, the screens of the plugin as they came out of it, and the report in a real browser.
Traps avoided: a font that a picture would fetch from another host; a picture that grows unseen.
"""

import base64
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from devcluster.cluster import ensure_up
from devcluster.kubectl import Kubectl
from devcluster.product import ensure_namespace, install
from lmtraining_api import ConditionType
from tests.browser import browser
from tests.e2e.jobs import Watcher

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
EXAMPLE = ROOT / "examples" / "tiny-gpt.yaml"
NAMESPACE = "screenshots"
COLUMNS = 108
COMMAND_SECONDS_MAX = 60
STEP_OF_THE_LOSS = 100
STEPS_AFTER_IT = 50
WAIT_SECONDS_MAX = 600.0  # on a machine with other work
BYTES_MAX = 300_000
#: Name, colour scheme, width and height in CSS pixels.
VIEWS = (
    ("report-light", "light", 1180, 900),
    ("report-dark", "dark", 1180, 900),
    ("report-phone", "light", 390, 844),
)
SVG_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    """One run, from its first step over a lost pod to its report."""
    IMAGES.mkdir(exist_ok=True)
    with _namespace() as kubectl:
        job = yaml.safe_load(EXAMPLE.read_text())
        name = job["metadata"]["name"]
        kubectl.apply(job)
        watcher = Watcher(kubectl, name)
        _wait_for_step(watcher, STEP_OF_THE_LOSS)
        kubectl.run("delete", "pod", f"{name}-1-1-0", "--force", "--grace-period=0")
        watcher.wait("the recovery", lambda status: status.last_recovery is not None)
        _wait_for_step(watcher, STEP_OF_THE_LOSS + STEPS_AFTER_IT)
        kubectl.apply(job | {"metadata": {"name": "greedy"}})  # for which there is no room now
        Watcher(kubectl, "greedy").wait_for(ConditionType.SCHEDULED, "Unschedulable")
        for picture, words in (
            ("status", ("status", name)),
            ("why", ("why", "greedy")),
            ("list", ("list",)),
        ):
            draw_terminal(IMAGES / f"{picture}.svg", kubectl, *words)
        with tempfile.TemporaryDirectory() as directory:
            page = Path(directory) / "report.html"
            _plugin(kubectl, "report", name, "--output", str(page))
            draw_page(page)
    for picture in sorted(IMAGES.iterdir()):
        size = picture.stat().st_size
        sys.stdout.write(f"{picture.relative_to(ROOT)}  {size / 1000:.0f} KB\n")
        if size > BYTES_MAX:
            raise SystemExit(f"{picture} has {size} bytes; the limit is {BYTES_MAX}")


def draw_terminal(target: Path, kubectl: Kubectl, *words: str) -> None:
    """What a command of the plugin writes to a terminal with colours, as SVG."""
    said = Text.from_ansi(_plugin(kubectl, *words))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(said)
    title = f"$ kubectl lmtrain {' '.join(words)}"
    svg = console.export_svg(title=title, code_format=SVG_FORMAT, unique_id=target.stem)
    target.write_text(svg)


def draw_page(page: Path) -> None:
    """The report, light, dark and on a phone, as PNG."""
    with browser() as tab:
        for name, scheme, width, height in VIEWS:
            tab.narrow(width, height)
            tab.prefer(scheme)
            tab.open(page)
            picture = tab.do("Page.captureScreenshot", format="png", optimizeForSpeed=False)
            (IMAGES / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


def _wait_for_step(watcher: Watcher, step: int) -> None:
    watcher.wait(
        f"step {step}", lambda status: status.progress.step >= step, limit_seconds=WAIT_SECONDS_MAX
    )


@contextmanager
def _namespace() -> Iterator[Kubectl]:
    """Of our own, on a cluster with the product."""
    product = install(ensure_up())
    ensure_namespace(product.kubectl, NAMESPACE)
    try:
        yield product.kubectl.within(NAMESPACE)
    finally:
        product.kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")


def _plugin(kubectl: Kubectl, *words: str) -> str:
    programs = f"{Path(sys.executable).parent}:{kubectl.binary.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(kubectl.binary), "lmtrain", *words, f"--kubeconfig={kubectl.kubeconfig}",
         f"--namespace={kubectl.namespace}"],
        capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS_MAX,
        env=os.environ | {
            "PATH": programs, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color",
        },
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    main()
