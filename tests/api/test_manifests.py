"""Our reader of YAML and a real kubectl make the same of a file."""

import json
from pathlib import Path

import pytest

from devcluster.kubectl import Kubectl
from lmtraining_manifests.yaml_documents import documents
from tests.contract_yaml import YAML_TEXT

pytestmark = pytest.mark.api


def test_kubectl_reads_a_file_as_we_do(kubectl: Kubectl, tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(YAML_TEXT)
    local = ("label", "--local", "--filename", str(path), "unchanged=", "--output", "json")
    (ours,) = [one.content for one in documents(YAML_TEXT.encode())]
    theirs = json.loads(kubectl.run(*local))
    theirs["metadata"].pop("labels")
    assert theirs == ours
