"""What an error of a storage library means: forbidden, absent, or only out of reach for now.

Promise: whatever fsspec and the libraries behind it raise is one of a few kinds of trouble; the
text of the error, which may quote data or a secret, is not in it (P11).
Trap avoided: fsspec turns whatever goes wrong over HTTP into FileNotFoundError, so the cause is
read from the chain behind it. The libraries' errors are told by their names, so that none of them
is imported.
"""

import errno
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

CHAIN_LENGTH_MAX = 16

_NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
_NETWORK_ERRNOS = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
#: Base classes of aiohttp; botocore and requests; botocore; google.auth.
_NETWORK_NAMES = {"ClientConnectionError", "ConnectionError", "HTTPClientError", "TransportError"}
#: Of botocore: no login was found.
_NO_LOGIN_NAMES = {"NoCredentialsError", "PartialCredentialsError"}
_FORBIDDEN = {401, 403}
_OVERLOADED = {408, 429}
_HOST = re.compile(r"\bhttps?://(\[[^]]*\]|[^/:?#]*)")
_USER = re.compile(r"(?<=://)[^/?#]*@")


class Kind(Enum):
    """What a person can do about it."""

    FORBIDDEN = "forbidden"
    OUT_OF_REACH = "out of reach"
    OVERLOADED = "overloaded"
    ABSENT = "absent"
    NO_PACKAGE = "no package"
    BAD_URI = "bad uri"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What went wrong, without the library's text."""

    kind: Kind
    detail: str
    """The type of the exception, the HTTP status, or the package that is missing."""


def trouble_of(error: Exception) -> Trouble:
    """What an error means, by all that is known of its causes."""
    chain = list(_chain(error))
    status = next((status for link in chain if (status := _http_status(link))), 0)
    if status in _FORBIDDEN or any(_is_refusal(link) for link in chain):
        return Trouble(kind=Kind.FORBIDDEN, detail=type(error).__name__)
    network = next((link for link in chain if _is_network(link)), None)
    if network is not None:
        return Trouble(kind=Kind.OUT_OF_REACH, detail=type(network).__name__)
    if status in _OVERLOADED or status >= 500:
        return Trouble(kind=Kind.OVERLOADED, detail=f"HTTP status {status}")
    if isinstance(error, ImportError):
        return Trouble(kind=Kind.NO_PACKAGE, detail=error.name or "see the log")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Trouble(kind=Kind.ABSENT, detail=type(error).__name__)
    kind = Kind.BAD_URI if isinstance(error, ValueError) else Kind.OTHER
    return Trouble(kind=kind, detail=type(error).__name__)


def host_in(name: str) -> str:
    """The server of an HTTP URI, for a message."""
    found = _HOST.search(name)
    return f"host {found[1]}" if found else "its server"


def redacted(uri: str) -> str:
    """`uri` without what may be secret: users and passwords, and whatever follows a question mark.
    In the path of a plain local file that is a wildcard and stays."""
    uri = _USER.sub("", uri)
    is_local = uri.startswith("file://") and "::" not in uri
    return uri if is_local else uri.partition("?")[0]


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(CHAIN_LENGTH_MAX):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or type(error).__name__ in _NO_LOGIN_NAMES


def _is_network(error: BaseException) -> bool:
    return (
        isinstance(error, _NETWORK)
        or (isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS)
        or any(kind.__name__ in _NETWORK_NAMES for kind in type(error).__mro__)
    )


def _http_status(error: BaseException) -> int:
    """The status of an answer that says no, as aiohttp, gcsfs and botocore tell it; else 0."""
    answer = getattr(error, "response", None)
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = (
        getattr(error, "status", None)
        or metadata.get("HTTPStatusCode")
        or getattr(error, "code", None)
    )
    return status if isinstance(status, int) and status >= 400 else 0
