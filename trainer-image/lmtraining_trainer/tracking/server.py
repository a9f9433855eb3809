"""JSON requests to a tracker.

Promise: a request ends within its limit, and its error says what a person can act on, in our words:
no token, no answer's text (P11).
Trap avoided: a redirect to another host, to which the standard library would send the token too.
"""

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

REQUEST_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024
CODE_LENGTH_MAX = 64


class TrackerError(Exception):
    """A tracker that did not do what it was asked to."""

    def __init__(self, message: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        """What the tracker calls it, such as RESOURCE_DOES_NOT_EXIST."""
        self.status = status
        """Of HTTP; 0 where there was no answer."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Server:
    """A tracker's server, and how to sign requests to it."""

    uri: str
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    """token, or username and password; empty where the server asks for none."""

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """Raises TrackerError."""
        return self._answer(f"{path}?{urllib.parse.urlencode(parameters)}", None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises TrackerError."""
        return self._answer(path, json.dumps(body).encode())

    def _answer(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - http or https, by the job's schema
            f"{self.uri.rstrip('/')}{path}",
            data=body,
            headers={"Content-Type": "application/json", **self._signature()},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=REQUEST_SECONDS_MAX) as answer:
                found = json.loads(answer.read(ANSWER_BYTES_MAX) or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from error
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            name = type(reason if isinstance(reason, Exception) else error).__name__
            raise TrackerError(f"no answer ({name})") from error
        return found if isinstance(found, dict) else {}

    def _signature(self) -> dict[str, str]:
        if token := self.secret.get("token"):
            return {"Authorization": f"Bearer {token}"}
        if user := self.secret.get("username"):
            pair = f"{user}:{self.secret.get('password', '')}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}


def _refusal(error: urllib.error.HTTPError) -> TrackerError:
    try:
        said = json.loads(error.read(ANSWER_BYTES_MAX)).get("error_code", "")
    except (OSError, ValueError, AttributeError):
        said = ""
    code = said if isinstance(said, str) and said.isidentifier() else ""
    message = f"HTTP {error.code}" + (f" {code[:CODE_LENGTH_MAX]}" if code else "")
    return TrackerError(message, code=code, status=error.code)
