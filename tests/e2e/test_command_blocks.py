"""What README and quick start tell a newcomer to type, on the real cluster and in this order."""

import os
from pathlib import Path

import pytest
import yaml

from devcluster.kubectl import Kubectl
from tests.command_blocks import Tier, blocks_of, clean_copy, typed

pytestmark = pytest.mark.e2e


def config_within(kubectl: Kubectl, directory: Path) -> Path:
    """The cluster's kubeconfig, with the test's namespace as that of its context."""
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = kubectl.namespace
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


def test_what_a_newcomer_types_works(kubectl: Kubectl, tmp_path: Path) -> None:
    where = clean_copy(tmp_path)
    programs = [str(where / ".venv/bin"), str(kubectl.binary.parent), os.environ["PATH"]]
    environment = {
        "PATH": ":".join(programs),
        "KUBECONFIG": str(config_within(kubectl, tmp_path)),
    }
    for block in blocks_of(Tier.CLUSTER):
        said = typed(block, where, environment=environment)
        if block.language == "console":
            shown = block.text.splitlines()[1]
            assert said.splitlines()[0].split() == shown.split(), "the columns that are shown"
    assert "<polyline" in (where / "tiny-gpt.html").read_text()
    assert kubectl.list("lmtj") == []
