"""The commands that README and the quick start tell a newcomer to type, and who types them first.

Promise: each block of commands of these pages is run by a test as it stands there, in a clean copy
of the repository, or is in NOT_RUN with the reason.
Traps avoided: a block that nobody runs since it was added later, or since its fence names no
language; a `./bootstrap.sh` in the copy, which would turn the real environment to the copy.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/quick-start.md")
COMMANDS = ("bash", "console")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK_SECONDS_MAX = 540  # on a machine with other work, within the limit of a test


class Tier(StrEnum):
    """Where a block is run."""

    UNIT = "tests/unit/test_command_blocks.py"
    TRAINER = "tests/trainer/test_examples.py"
    CLUSTER = "tests/e2e/test_command_blocks.py"
    CHART = "tests/e2e/test_chart_life.py"


#: The page and the first command, and who runs the block. A tier runs its blocks in this order.
RUN_BY = {
    "docs/quick-start.md: .venv/bin/lmtraining validate": Tier.UNIT,
    "docs/quick-start.md: .venv/bin/lmtraining run examples/poisoned-data.yaml": Tier.TRAINER,
    "README.md: helm install": Tier.CHART,
    "docs/quick-start.md: helm install": Tier.CHART,
    'docs/quick-start.md: eval "$(.venv/bin/python -m devcluster up)"': Tier.CLUSTER,
    "docs/quick-start.md: kubectl apply -f examples/tiny-gpt.yaml": Tier.CLUSTER,
    "README.md: $ kubectl get lmtj": Tier.CLUSTER,
    "README.md: kubectl lmtrain status": Tier.CLUSTER,
    "docs/quick-start.md: kubectl lmtrain suspend": Tier.CLUSTER,
    "docs/quick-start.md: kubectl apply -f - <<END": Tier.CLUSTER,
    "docs/quick-start.md: kubectl lmtrain delete gpt-on-gpus": Tier.CLUSTER,
}
DOCKER = "needs a Docker daemon; the cluster's tests install images built from the same Dockerfiles"
NOT_RUN = {
    "README.md: make demo": "they are these tests, and a demo that checks itself as it goes",
    "README.md: docker build": DOCKER,
    "docs/quick-start.md: ./bootstrap.sh": "every make target begins with it, this test's too",
    "docs/quick-start.md: make demo": "a demo that checks itself as it goes",
    "docs/quick-start.md: docker build": DOCKER,
}


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    page: str
    language: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.page}: {self.text.partition(chr(10))[0]}"

    @property
    def script(self) -> str:
        """What is typed: in a console block the lines behind a prompt."""
        if self.language == "bash":
            return self.text
        prompted = (line for line in self.text.splitlines() if line.startswith("$ "))
        return "\n".join(line.removeprefix("$ ") for line in prompted)


def fences(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [Block(page, *found) for found in FENCE.findall((ROOT / page).read_text())]


def command_blocks() -> list[Block]:
    """Those with commands, of all pages."""
    return [block for page in PAGES for block in fences(page) if block.language in COMMANDS]


def blocks_of(tier: Tier) -> list[Block]:
    """In the order in which they are to be run; what stands on two pages, once."""
    found = command_blocks()
    of_tier = [
        block
        for begin, by in RUN_BY.items()
        if by is tier
        for block in found
        if block.title.startswith(begin)
    ]
    return list({block.text: block for block in of_tier}.values())


def clean_copy(directory: Path) -> Path:
    """The repository as git would clone it, with the environment of these tests as its `.venv`."""
    target = directory / "lm-training-operator"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".venv").symlink_to(sys.prefix)
    return target


def typed(
    block: Block,
    where: Path,
    *,
    environment: Mapping[str, str] | None = None,
    instead: Mapping[str, str] | None = None,
) -> str:
    """Type a block into a shell that stops at the first failure; what it said.

    `instead` has words of the page that stand for something of the reader's, such as REGISTRY.
    """
    script = block.script
    for word, meant in (instead or {}).items():
        assert word in script, f"{block.title}: {word} is not in it"
        script = script.replace(word, meant)
    print(block.title)  # noqa: T201 - where the test itself runs out of time
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=where, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=BLOCK_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, f"{block.title}\n{said}"
    return said
