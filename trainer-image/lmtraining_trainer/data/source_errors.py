"""What a storage library's error means: absent, forbidden, or only out of reach for now.

Promise: what may mend itself (a name that does not resolve, a refused connection, a server that is
overloaded) is a storage error, so that the operator tries again; a missing file and a refused login
are final. Our own sentence names the source and the fix, never the library's text (P11).
Trap avoided: fsspec turns whatever goes wrong over HTTP into FileNotFoundError; the cause is read
from the chain behind it. Other libraries' errors are told by their names, so that none is imported.
"""

import errno
import re
import socket
from collections.abc import Iterator

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError

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


def explained(error: Exception, *, name: str, field: str) -> TrainerError:
    """`error` in our words. `name` is the source without its secrets, `field` its place in the
    job."""
    chain = list(_chain(error))
    status = next((status for link in chain if (status := _http_status(link))), 0)
    if status in _FORBIDDEN or any(_is_refusal(link) for link in chain):
        return data_error(
            "NotAllowed",
            f"reading {field} {name} is not allowed: grant it, or set credentials.secretRef",
        )
    network = next((link for link in chain if _is_network(link)), None)
    if network is not None:
        return _unreachable(type(network).__name__, name=name, field=field)
    if status in _OVERLOADED or status >= 500:
        return _unreadable(f"HTTP status {status}", name=name, field=field)
    final = _final(error, name=name, field=field)
    return final or _unreadable(type(error).__name__, name=name, field=field)


def data_error(reason: str, message: str) -> TrainerError:
    """Only a person can mend it."""
    return TrainerError(FailureClass.DATA, reason, message)


def _final(error: Exception, *, name: str, field: str) -> TrainerError | None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return data_error(
            "NoSuchFile", f"{field} {name} does not exist: correct the uri, or put the file there"
        )
    if isinstance(error, ImportError):
        return data_error(
            "NoSuchProtocol",
            f"{field} {name} needs a package that this environment lacks "
            f"({error.name or 'see the log'}): install it; in a cluster use an image that has it",
        )
    if isinstance(error, ValueError):
        return data_error(
            "BadUri", f"{field} {name} is not a URI that fsspec understands: correct it"
        )
    return None


def _unreadable(why: str, *, name: str, field: str) -> TrainerError:
    return TrainerError(
        FailureClass.STORAGE,
        "SourceUnreadable",
        f"reading {field} {name} failed ({why}): check the file and the server",
    )


def _unreachable(kind: str, *, name: str, field: str) -> TrainerError:
    found = _HOST.search(name)
    server = f"host {found[1]}" if found else "its server"
    return TrainerError(
        FailureClass.STORAGE,
        "SourceUnreachable",
        f"{field} {name} is out of reach ({server}: {kind}): check the host's name, and that DNS, "
        "egress (NetworkPolicy) and any proxy let the trainer reach it",
    )


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
