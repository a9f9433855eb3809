"""What `lmtraining` says of a mistake in a job, a file or a source: sentences, and early."""

from typing import Any

import pytest

from lmtraining_api import ExitCode
from tests.trainer.supervisor_pods import corpus, spec
from tests.trainer.terminal import Terminal

pytestmark = pytest.mark.trainer


MISTAKES = [
    ("file:///nowhere/*.txt", 300, ExitCode.DATA, "data.train[0].uri file:///nowhere/*.txt"),
    (None, 60_000, ExitCode.DATA, "data.tokenizer.vocabSize"),
]


@pytest.mark.parametrize(("uri", "vocabulary", "code", "words"), MISTAKES)
def test_a_mistake_in_the_data_is_one_sentence(
    terminal: Terminal, uri: str | None, vocabulary: int, code: ExitCode, words: str
) -> None:
    """P4: with the exit code, before torch is imported, and nothing of the code's insides."""
    trace = terminal.without_torch()
    wanted = spec(uri or corpus(terminal.directory / "corpus"))
    wanted["data"]["tokenizer"]["vocabSize"] = vocabulary
    returned, output = terminal.type("run", str(terminal.job(wanted)))
    assert returned == code, output
    last = output.splitlines()[-1]
    assert f"(exit code {int(code)}): " in last
    assert words in last
    for inside in ("Traceback", ".py:", "Try again", "Log:"):
        assert inside not in output
    assert not trace.exists()


BAD = [
    ({"traning": {}}, "traning"),
    ({"workers": {"replicas": 3}}, "training.batchTokens 128 is not a multiple"),
    ({"model": {"config": {"layers": 1, "hiddenSize": 15, "heads": 2}}}, "heads 2"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_bad_job_is_refused_in_sentences(
    terminal: Terminal, command: str, change: dict[str, Any], words: str
) -> None:
    code, output = terminal.type(command, str(terminal.job(spec() | change)))
    assert code == ExitCode.CONFIGURATION
    assert words in output
    assert output.startswith(f"{terminal.directory}/job.yaml: spec.")
    assert "pydantic" not in output
    assert "Traceback" not in output
    assert not (terminal.directory / "runs").exists()


NO_JOBS = [
    ("a: [", "line 1, column 5"),
    ("", "no Kubernetes object"),
    ("kind: Pod", "kind Pod"),
    ("kind: LMTrainingJob", "metadata is missing"),
    ("apiVersion: lmtraining.dev/v1alpha1\nkind: LMTrainJob", "choose 'LMTrainingJob'"),
    ("- 1", "no Kubernetes object"),
    ("\x00", "not text"),
]


@pytest.mark.parametrize(("text", "words"), NO_JOBS)
def test_a_file_without_a_job_is_refused(terminal: Terminal, text: str, words: str) -> None:
    path = terminal.directory / "job.yaml"
    path.write_text(text)
    code, output = terminal.type("validate", str(path))
    assert code == ExitCode.CONFIGURATION
    assert words in output


def test_a_good_job_is_called_valid(terminal: Terminal) -> None:
    code, output = terminal.type("validate", str(terminal.job(spec(replicas=2))))
    assert (code, "is valid: tiny, 20 steps, 2 ranks" in output) == (0, True), output


SAID = [
    "jobs.yaml document 1 is skipped: kind Pod is not checked",
    "jobs.yaml document 2 is valid: tiny, 20 steps, 2 ranks",
    "jobs.yaml document 3: spec.model.config.heads: hiddenSize",
    'jobs.yaml document 3: spec.suspend is "maybe": write true or false',
    "jobs.yaml document 3: spec.workers.replicas is 0: choose 1 or more",
    "jobs.yaml, line",
]


def test_every_document_of_a_file_is_checked_and_every_problem_told(terminal: Terminal) -> None:
    good = terminal.job(spec(replicas=2)).read_text()
    bad = terminal.job(spec() | {"workers": {"replicas": 0}} | {"suspend": "maybe"}).read_text()
    broken = bad.replace("heads: 2", "heads: 3")
    assert broken != bad
    path = terminal.directory / "jobs.yaml"
    path.write_text("---\n".join(["kind: Pod\n", good, broken, "a: ["]))
    code, output = terminal.type("validate", "jobs.yaml")
    assert code == ExitCode.CONFIGURATION
    told = zip(sorted(output.splitlines()), SAID, strict=True)
    assert [line[: len(start)] for line, start in told] == SAID


def test_every_file_is_checked_and_named(terminal: Terminal) -> None:
    terminal.job(spec(replicas=2)).rename(terminal.directory / "good.yaml")
    terminal.job(spec() | {"workers": {"replicas": 0}}).rename(terminal.directory / "bad.yaml")
    code, output = terminal.type("validate", "absent.yaml", "bad.yaml", "good.yaml")
    assert code == ExitCode.CONFIGURATION
    assert "absent.yaml cannot be read" in output
    assert "bad.yaml: spec.workers.replicas is 0: choose 1 or more" in output
    assert "good.yaml is valid: tiny, 20 steps, 2 ranks" in output
    code, output = terminal.type("validate", "good.yaml", "good.yaml")
    assert (code, output.count(" is valid")) == (ExitCode.FINISHED, 2)


def test_a_run_needs_one_job(terminal: Terminal) -> None:
    job = terminal.job().read_text()
    (terminal.directory / "jobs.yaml").write_text(f"{job}---\n{job}")
    code, output = terminal.type("run", "jobs.yaml")
    assert (code, "holds 2 jobs" in output) == (ExitCode.CONFIGURATION, True), output


def test_an_absent_file_and_an_absent_model_are_said(terminal: Terminal) -> None:
    code, output = terminal.type("run", "absent.yaml")
    assert (code, "absent.yaml cannot be read" in output) == (ExitCode.CONFIGURATION, True)
    code, output = terminal.type("sample", str(terminal.directory))
    assert (code, "no exported model" in output) == (ExitCode.CONFIGURATION, True), output
