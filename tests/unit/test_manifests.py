"""What is read from a job file, and what is said of it."""

import io
from pathlib import Path

import pytest
import yaml

from lmtraining_api import ExitCode
from lmtraining_manifests import BadJobError, check_file, read_job, validate
from lmtraining_manifests.yaml_documents import documents
from tests.contract_cases import MINIMAL
from tests.contract_yaml import YAML_KEYS, YAML_TEXT, YAML_WORDS

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def problems(path: Path) -> list[str]:
    return [problem for one in check_file(path) for problem in one.problems]


def test_a_word_is_read_as_kubectl_reads_it() -> None:
    (document,) = documents(YAML_TEXT.encode())
    assert isinstance(document.content, dict)
    read = document.content["words"]
    assert [(one, type(one)) for one in read] == [(one, type(one)) for one in YAML_WORDS.values()]
    assert list(document.content["keys"]) == list(YAML_KEYS.values())


def test_a_merge_is_no_key_that_is_there_twice() -> None:
    text = b"""
    base: &base {a: 1, b: 2}
    more: &more {<<: *base, b: 3}
    last: {<<: [*base, *more], a: 4}
    """
    (document,) = documents(text)
    assert document.content == {
        "base": {"a": 1, "b": 2},
        "more": {"a": 1, "b": 3},
        "last": {"a": 4, "b": 2},
    }
    assert document.repeated == ()


TWICE = """\
apiVersion: lmtraining.dev/v1alpha1
kind: LMTrainingJob
metadata: {name: tiny, "name": tiny}
spec:
  model: {config: {layers: 1, hiddenSize: 16, heads: 2}}
  data: {train: [{uri: "file:///data/*.txt"}], sequenceLength: 8}
  training:
    budget: {steps: 10}
    batchTokens: 64
  suspend: false
  training:
    batchTokens: 64
    budget: {steps: 10}
"""


def test_a_key_that_is_there_twice_is_named_with_its_lines(path: Path) -> None:
    """An API server never sees it: kubectl keeps the last of them without a word."""
    path.write_text(TWICE)
    said = [
        f'{path}, line 3: key "name" is there already, in line 3: keep one of them',
        f'{path}, line 11: key "training" is there already, in line 7: keep one of them',
    ]
    assert problems(path) == said
    with pytest.raises(BadJobError) as refused:
        read_job(path)
    assert refused.value.problems == said


def test_aliases_that_hold_each_other_many_times_over_take_no_time(path: Path) -> None:
    laughs = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    text = "\n".join(["a0: &a0 [1]", *laughs, "loop: &loop [*loop]", yaml.safe_dump(MINIMAL)])
    path.write_text(text)
    assert problems(path)[-1] == f"{path}: and 11 more problems"


def test_a_rate_may_be_written_as_kubectl_takes_it(path: Path) -> None:
    path.write_text(TWICE.partition("  suspend")[0] + "    optimizer: {learningRate: 6e-4}\n")
    path.write_text(path.read_text().replace(', "name": tiny', ""))
    assert read_job(path).spec.training.optimizer.learning_rate == 6e-4


@pytest.mark.parametrize("quoted", ['steps: "400"', 'steps: "4e2"'])
def test_a_number_in_quotes_is_refused(path: Path, quoted: str) -> None:
    text = (REPOSITORY / "examples" / "tiny-gpt.yaml").read_text()
    assert "steps: 400" in text
    path.write_text(text.replace("steps: 400", quoted))
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: spec.training.budget.steps is ")
    assert problem.endswith(": write a whole number, without quotes")
    path.write_text(text.replace("steps: 400", "steps: 400.0"))
    assert problems(path) == []


def test_every_problem_is_told_with_the_nearest_field(path: Path) -> None:
    text = (REPOSITORY / "examples" / "tiny-gpt.yaml").read_text()
    path.write_text(
        text.replace("batchTokens", "batchToken").replace("hiddenSize: 128", "hiddenSize: 130")
    )
    assert any("did you mean batchTokens?" in problem for problem in problems(path))
    assert any("130" in problem for problem in problems(path))
    path.write_text(f"{text}\n---\nkind: ConfigMap\napiVersion: v1\n")
    assert [(one.kind, one.problems) for one in check_file(path)] == [
        ("LMTrainingJob", []),
        ("ConfigMap", ()),
    ]


BAD_FILES = [
    ("a: [", "job.yaml, line 1, column 5: this is not YAML: "),
    ("kind: ConfigMap\n", "job.yaml holds kind ConfigMap: write apiVersion: "),
    ("", "job.yaml holds no Kubernetes object: write apiVersion: "),
    ("a: !!int b", "job.yaml, line 1, column 4: this is not YAML: 'b' is no number"),
    ("{}: 1", "job.yaml, line 1, column 1: this is not YAML: "),
    ("[" * 10_000, "job.yaml has blocks in blocks without end: it is no job file"),
    ("~: 1", "job.yaml, line 1, column 1: this is not YAML: a key is neither a word nor a number"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_a_file_without_a_job_is_a_problem(path: Path, content: str, words: str) -> None:
    path.write_text(content)
    assert words in problems(path)[-1]


def test_the_file_is_named_and_the_exit_code_is_that_of_a_bad_job(path: Path) -> None:
    """One mistake, one code: of both `validate` commands, of a local run and of a pod."""
    good, absent = path.with_name("good.yaml"), path.with_name("absent.yaml")
    good.write_text(yaml.safe_dump(MINIMAL))
    path.write_text(yaml.safe_dump(MINIMAL).replace("layers: 1", "layers: 0"))
    output, errors = io.StringIO(), io.StringIO()
    code = validate([good, path, absent], output=output, errors=errors)
    assert code == ExitCode.CONFIGURATION
    assert output.getvalue() == f"{good} is valid: tiny, 10 steps, 1 rank\n"
    assert errors.getvalue().splitlines() == [
        f"{path}: spec.model.config.layers is 0: choose 1 or more",
        f"{absent} cannot be read: No such file or directory",
    ]
    assert validate([good], output=output, errors=errors) == ExitCode.FINISHED
