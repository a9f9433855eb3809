"""A running Prometheus, and how to ask it.

Promise: an answer is what Prometheus said, or DevclusterError with its own words.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from devcluster.errors import DevclusterError

ANSWER_SECONDS_MAX = 30


@dataclass(frozen=True)
class Server:
    """A Prometheus at `url`."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; DevclusterError where it refuses."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS_MAX) as answer:  # noqa: S310
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise DevclusterError(f"Prometheus, {parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query, now."""
        return list(self.ask("query", query=expr)["result"])

    def is_ready(self) -> bool:
        """Whether it answers questions now."""
        try:
            url = f"{self.url}/-/ready"
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS_MAX) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False
