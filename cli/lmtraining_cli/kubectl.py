"""The one door to the API server: the user's own kubectl.

Promise: whatever works for `kubectl get` works here, since kubectl does it: contexts, exec plugins,
client certificates, proxies, `--as`. Questions that do not depend on each other are asked at once,
and every one has a time limit.
Trap avoided: the Python client takes three quarters of a second to import before it has asked
anything; kubectl answers in a twentieth.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from lmtraining_cli.errors import CliError
from lmtraining_cli.refusals import RefusalError, refusal_of

Object = dict[str, Any]

ANSWER_SECONDS_MAX = 10
PROGRAM = "kubectl"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which cluster and namespace, as kubectl's own options say it; empty: as the kubeconfig."""

    context: str = ""
    namespace: str = ""
    kubeconfig: str = ""
    user: str = ""

    @property
    def flags(self) -> list[str]:
        """For kubectl, without the namespace."""
        named = {"--context": self.context, "--kubeconfig": self.kubeconfig, "--as": self.user}
        return [f"{flag}={value}" for flag, value in named.items() if value]


class Question:
    """A question that is on its way."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def text(self) -> str:
        """The answer. Raises RefusalError."""
        try:
            output, errors = self._process.communicate(timeout=ANSWER_SECONDS_MAX + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise RefusalError("Unreachable", f"no answer within {ANSWER_SECONDS_MAX} s") from None
        if self._process.returncode != 0:
            raise refusal_of(errors.decode(errors="replace"))
        return output.decode(errors="replace")

    def answer(self) -> Object:
        """The answer as an object. Raises RefusalError."""
        text = self.text()
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RefusalError("NotUnderstood", "the answer is no JSON") from error
        return found if isinstance(found, dict) else {"value": found}


class Cluster:
    """One cluster, through kubectl."""

    def __init__(self, place: Place, *, program: str | None = None) -> None:
        found = program or shutil.which(PROGRAM)
        if found is None:
            raise CliError(
                "kubectl is not on the PATH, and this is a plugin of it: install kubectl"
            )
        self._program = found
        self._place = place
        self._config = self._start("config", "view", "--minify", "--output=json")
        self._early: dict[str, Question] = {}

    @cached_property
    def config(self) -> Object:
        """The part of the kubeconfig that is used. Raises RefusalError."""
        return self._config.answer()

    @property
    def kubeconfig(self) -> str:
        """Path of the kubeconfig that was named, by the option or by KUBECONFIG; empty: kubectl's
        own choice."""
        return self._place.kubeconfig or os.environ.get("KUBECONFIG", "")

    @property
    def context(self) -> str:
        """Name of the context. Raises RefusalError."""
        return self._place.context or str(self.config.get("current-context") or "none")

    @property
    def namespace(self) -> str:
        """The namespace that is meant. Raises RefusalError."""
        if self._place.namespace:
            return self._place.namespace
        contexts = self.config.get("contexts") or [{}]
        return str(contexts[0].get("context", {}).get("namespace") or "default")

    @property
    def server(self) -> str:
        """Address of the API server, as the kubeconfig has it. Raises RefusalError."""
        clusters = self.config.get("clusters") or [{}]
        return str(clusters[0].get("cluster", {}).get("server", ""))

    def contexts(self) -> list[str]:
        """Names of all contexts. Raises RefusalError."""
        flags = [f"--kubeconfig={self._place.kubeconfig}"] if self._place.kubeconfig else []
        question = Question([self._program, *flags, "config", "get-contexts", "--output=name"])
        return question.text().split()

    def ask(self, path: str) -> Question:
        """GET of a path of the API, on its way; the one that was asked early, once."""
        return self._early.pop(path, None) or self._start("get", "--raw", path)

    def ask_early(self, path: str) -> None:
        """Let kubectl ask while we do something else."""
        self._early[path] = self._start("get", "--raw", path)

    def get(self, path: str) -> Object:
        """GET of a path of the API. Raises RefusalError."""
        return self.ask(path).answer()

    def merge(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        """Merge patch of an object in the namespace. Raises RefusalError."""
        self._start(
            "patch", kind, name, f"--namespace={self.namespace}", "--type=merge",
            f"--patch={json.dumps(patch)}",
        ).text()  # fmt: skip

    def delete(self, path: str, *, uid: str) -> None:
        """DELETE exactly that object. Raises RefusalError."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        command = self._command("delete", "--raw", path, "--filename=-")
        done = subprocess.run(
            command, input=json.dumps(options).encode(), capture_output=True, check=False,
            timeout=ANSWER_SECONDS_MAX + 5,
        )  # fmt: skip
        if done.returncode != 0:
            raise refusal_of(done.stderr.decode(errors="replace"))

    def stream(self, *arguments: str) -> "Stream":
        """Lines of a kubectl command that may go on for ever."""
        command = [self._program, *self._place.flags, *arguments]
        return Stream(command)

    def _start(self, *arguments: str) -> Question:
        return Question(self._command(*arguments))

    def _command(self, *arguments: str) -> list[str]:
        limit = f"--request-timeout={ANSWER_SECONDS_MAX}s"
        return [self._program, *self._place.flags, limit, *arguments]


class Stream:
    """A running kubectl, line by line."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ, text=True, errors="replace",
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Until it ends."""
        output: IO[str] | None = self._process.stdout
        if output is not None:
            for line in output:
                yield line.rstrip("\n")

    def refusal(self) -> RefusalError | None:
        """Why it ended, if not well."""
        errors = self._process.stderr.read() if self._process.stderr else ""
        return refusal_of(errors) if self._process.wait() != 0 else None

    def stop(self) -> None:
        """End it; harmless when it has ended."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
