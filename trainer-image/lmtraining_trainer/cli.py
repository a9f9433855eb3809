"""`lmtraining`: the trainer's command line.

Promise: `supervise` is what runs in a pod; `run` is the same trainer without a cluster, by the same
models and to the same exit codes. Help and lists come at once: torch is imported by the fork
server, and by `sample` and `suggest-rate`, which say so.
"""

import json
import logging
import os
import shlex
import shutil
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console

import lmtraining_manifests as manifests
from lmtraining_api import (
    CODE_OF_CLASS,
    ExitCode,
    ExitRecord,
    FailureClass,
    LMTrainingJob,
    names,
)
from lmtraining_api.training import ONE_WAY_TASKS
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.report import Snapshot
from lmtraining_trainer.report_terminal import ProgressView, duration
from lmtraining_trainer.run import inventory
from lmtraining_trainer.supervisor import (
    LocalRun,
    PodFiles,
    PodPorts,
    run_locally,
    supervise_pod,
)
from lmtraining_trainer.supervisor.assignment import RANK_FUNCTION

#: What one sentence explains: there is nothing to look up, and trying again alone cannot help.
USERS_TO_MEND = frozenset({FailureClass.CONFIGURATION, FailureClass.DATA})
#: What was not foreseen, so that the places in the code are worth their lines.
NOT_UNDERSTOOD = frozenset({FailureClass.CRASH, FailureClass.UNKNOWN})

#: How the classes of transformers end whose models can go on with a text.
WRITERS = ("LMHeadModel", "ForCausalLM")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # it would print the values of local variables
    help="Train language models: in a pod of lm-training-operator, or on this machine.",
)

JobPath = Annotated[Path, typer.Argument(help="YAML file with one LMTrainingJob.")]
RankFunctionPath = Annotated[
    str, typer.Option(hidden=True, help="module:name of the rank function; for tests.")
]


@app.command()
def supervise(  # noqa: PLR0917 - typer calls it, by name
    job_file: Annotated[Path, typer.Option(help="The job file.")] = Path(names.JOB_FILE_PATH),
    intent_file: Annotated[Path, typer.Option(help="The operator's intent.")] = Path(
        names.INTENT_FILE_PATH
    ),
    termination_log: Annotated[Path, typer.Option(help="Where the exit record goes.")] = Path(
        names.TERMINATION_LOG_PATH
    ),
    report_host: Annotated[str, typer.Option(help="Address of the report.")] = "0.0.0.0",  # noqa: S104 - the operator asks from outside the pod
    report_port: Annotated[int, typer.Option(help="Port of the report.")] = names.REPORT_PORT,
    rendezvous_port: Annotated[
        int, typer.Option(help="Port where the lead's ranks meet.")
    ] = names.RENDEZVOUS_PORT,
    rank_function: RankFunctionPath = RANK_FUNCTION,
) -> None:
    """Supervise the ranks of one pod; made for PID 1 of a pod of the operator."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = supervise_pod(
        os.environ,
        files=PodFiles(job=job_file, intent=intent_file, termination_log=termination_log),
        ports=PodPorts(report_host=report_host, report=report_port, rendezvous=rendezvous_port),
        rank_function=rank_function,
    )
    raise typer.Exit(int(code))


@app.command()
def run(
    job_path: JobPath,
    runs: Annotated[
        Path, typer.Option(help="Directory of the run directories and the data cache.")
    ] = Path("runs"),
    progress: Annotated[
        bool, typer.Option(help="A progress bar; --no-progress prints plain lines.")
    ] = True,
    report_port: Annotated[
        int | None, typer.Option(help="Serve /report and /metrics on this port of 127.0.0.1.")
    ] = None,
    rank_function: RankFunctionPath = RANK_FUNCTION,
) -> None:
    """Train on this machine; run it again to go on. Ctrl-C saves and stops."""
    local = LocalRun(job=_job_or_exit(job_path), runs_directory=runs)
    console = Console()
    newest: list[Snapshot] = []
    try:
        with ProgressView(console, bar=progress and console.is_terminal) as view:

            def observe(snapshot: Snapshot) -> None:
                newest[:] = [snapshot]
                with suppress(OSError):  # a terminal that was closed must not cost the checkpoint
                    view.show(snapshot)

            record = run_locally(
                local,
                observe=observe,
                say=lambda line: _say(console, line),
                report_port=report_port,
                rank_function=rank_function,
            )
    except TrainerError as error:
        code = CODE_OF_CLASS[error.failure_class]
        _say(console, _failed(error.reason, error.message, code))
        raise typer.Exit(int(code)) from error
    again = f"{_program()} {shlex.join(sys.argv[1:])}"
    for line in ending(record, local, newest[-1] if newest else None, again=again):
        _say(console, line)
    raise typer.Exit(int(record.exit_code))


@app.command()
def validate(
    job_paths: Annotated[
        list[Path], typer.Argument(help="YAML files; every LMTrainingJob in them is checked.")
    ],
) -> None:
    """Check job files by the rules of the API server, without one."""
    raise typer.Exit(int(manifests.validate(job_paths, output=sys.stdout, errors=sys.stderr)))


@app.command("suggest-rate")
def suggest_rate(
    job_path: JobPath,
    runs: Annotated[Path, typer.Option(help="Directory of the data cache.")] = Path("runs"),
    steps: Annotated[int, typer.Option(min=50, max=10_000, help="Steps to train.")] = 200,
) -> None:
    """Train for some steps at ever higher rates, and say which one the job could take."""
    local, console = LocalRun(job=_job_or_exit(job_path), runs_directory=runs), Console()
    rate_range = _with_torch("rate_range")
    try:
        tried = rate_range.range_test(
            local.job_file,
            steps=steps,
            credentials=Path(names.CREDENTIALS_DIRECTORY),
            say=lambda _: None,
        )
    except TrainerError as error:
        code = CODE_OF_CLASS[error.failure_class]
        _say(console, _failed(error.reason, error.message, code))
        raise typer.Exit(int(code)) from error
    pairs = list(zip(tried.rates, tried.losses, strict=True))
    for rate, loss in pairs[:: max(1, len(pairs) // 20)]:
        _say(console, f"rate {rate:.1e}  loss {loss:.3f}")
    if tried.suggestion is None:
        _say(console, "The loss never fell: look at the data, or at training.optimizer.")
    else:
        _say(console, f"Try training.optimizer.learningRate: {tried.suggestion:.1e}")


@app.command()
def sample(
    export_directory: Annotated[Path, typer.Argument(help="Directory of an exported model.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Tokens to generate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of tokens.")] = 1,
) -> None:
    """Let a finished model write. What is loaded meanwhile is told on standard error."""
    if not (export_directory / "config.json").is_file():
        where = "choose the directory that `lmtraining run` named as Model"
        _say(Console(stderr=True), f"{export_directory} holds no exported model: {where}")
        raise typer.Exit(int(ExitCode.CONFIGURATION))
    (kind,) = json.loads((export_directory / "config.json").read_text())["architectures"]
    if not kind.endswith(WRITERS):
        advice = "open it with transformers, which has a class of that name"
        _say(
            Console(stderr=True), f"{export_directory} holds a {kind}, which cannot write: {advice}"
        )
        raise typer.Exit(int(ExitCode.CONFIGURATION))
    os.environ.setdefault("TQDM_DISABLE", "1")
    generate = _with_torch("generate")
    _say(Console(stderr=True), f"loading {kind} from {export_directory}")
    text = generate.sample(export_directory, prompt=prompt, tokens=tokens, seed=seed)
    sys.stdout.write(f"{text}\n")


@app.command()
def checkpoints(
    run_directory: Annotated[Path, typer.Argument(help="Run directory, or a copy of one.")],
) -> None:
    """List the checkpoints of a run, newest first."""
    rows = inventory.rows(run_directory / "checkpoints")
    if not rows:
        _say(Console(stderr=True), f"{run_directory} holds no checkpoints")
        raise typer.Exit(int(ExitCode.CONFIGURATION))
    for row in rows:
        sys.stdout.write(f"{row}\n")


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="Run directory, or a copy of one.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write.")] = (
        None
    ),
) -> None:
    """Write the report of a run as one HTML file: hands over to `kubectl lmtrain report`."""
    plugin = _installed("kubectl-lmtrain")
    if plugin is None:
        advice = "pip install 'lm-training-operator[cli]' where the run directory is"
        _say(Console(stderr=True), f"kubectl-lmtrain, which writes reports, is not here: {advice}")
        raise typer.Exit(int(ExitCode.CONFIGURATION))
    written = [] if output is None else [f"--output={output}"]
    os.execv(plugin, [plugin, "report", f"--directory={run_directory}", *written])  # noqa: S606 - no shell, our own program


def ending(record: ExitRecord, local: LocalRun, last: Snapshot | None, *, again: str) -> list[str]:
    """What a person wants to know once a run has ended."""
    report = last.report if last else None
    checkpoint = report.checkpoint if report else None
    saved = f"Checkpoints: {local.place}/checkpoints"
    if checkpoint is not None:
        saved += f" (newest: step {checkpoint.step})"
    if record.exit_code == ExitCode.FINISHED:
        export = local.directory / (
            report.export_path if report and report.export_path else "export"
        )
        if local.in_store and not export.exists():  # finished on another machine
            return [_finished(last), saved, f"Model: {local.place}/{export.name}"]
        tried = f"Try it: {_program()} sample {shlex.quote(str(export))} --prompt 'The '"
        return [
            _finished(last),
            saved,
            f"Model: {export}",
            *([tried] if local.job.spec.model.task in ONE_WAY_TASKS else []),
        ]
    if record.exit_code == ExitCode.PREEMPTED:
        return [f"Stopped: {record.message}.", saved, f"Go on with: {again}"]
    said = _failed(record.reason, record.message, record.exit_code)
    if record.failure_class in USERS_TO_MEND:
        return [said]
    is_known = record.failure_class not in NOT_UNDERSTOOD
    frames = [] if is_known else [f"  {frame}" for frame in record.frames]
    log = f"Log: {local.log(record.attempt)}"
    failure = record.failure_class
    when = "Try again with" if failure is None or failure.may_retry else "Once corrected"
    return [said, *frames, saved, log, f"{when}: {again}"]


def main() -> None:
    """The script `lmtraining`."""
    app()


def _finished(last: Snapshot | None) -> str:
    if last is None:
        return "Finished."
    report = last.report
    if report.first_step_time is None:
        return f"This run was finished before, after {report.step} steps."
    loss = f", validation loss {report.validation_loss:.4f}" if report.validation_loss else ""
    baseline = f" (unigram {report.unigram_loss:.4f})" if loss and report.unigram_loss else ""
    seconds = duration(sum(last.clock.past_seconds.values()))
    return f"Finished {report.step} steps in {seconds}{loss}{baseline}."


def _program() -> str:
    """What to type: what was typed. An environment that is not activated has its programs on no
    PATH, which `python -m` does not ask."""
    typed, found = sys.argv[0], shutil.which("lmtraining")
    if Path(typed).name == "lmtraining":
        return "lmtraining" if typed == found else shlex.quote(typed)
    return "lmtraining" if found else shlex.quote(_installed("lmtraining") or "lmtraining")


def _installed(program: str) -> str | None:
    """Where a program of this distribution is: on the PATH, or beside this Python."""
    beside = Path(sys.executable).with_name(program)
    return shutil.which(program) or (str(beside) if beside.exists() else None)


def _failed(reason: str, message: str, code: ExitCode) -> str:
    return f"{reason} (exit code {int(code)}): {message.rstrip('.')}."


def _with_torch(module: str) -> ModuleType:
    """A module of ours that needs torch; said, since from a cold disk that takes a minute."""
    _say(Console(stderr=True), "loading torch and transformers")
    return import_module(f"lmtraining_trainer.{module}")


def _job_or_exit(path: Path) -> LMTrainingJob:
    try:
        return manifests.read_job(path)
    except manifests.BadJobError as error:
        console = Console(stderr=True)
        for problem in error.problems:
            _say(console, problem)
        raise typer.Exit(int(ExitCode.CONFIGURATION)) from error


def _say(console: Console, text: str) -> None:
    """As it is: neither wrapped nor read as markup, so that a path can be copied."""
    with suppress(OSError):  # a terminal that was closed
        console.print(text, markup=False, highlight=False, soft_wrap=True)
