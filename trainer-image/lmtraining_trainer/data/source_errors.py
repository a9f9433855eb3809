"""What an error of a storage library means for a source of text.

Promise: what may mend itself (a name that does not resolve, a refused connection, a server that is
overloaded) is a storage error, so that the operator tries again; a missing file and a refused login
are final. Our own sentence names the source and the fix, never the library's text (P11).
"""

import re
from collections.abc import Sequence

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.remote_errors import Kind, host_in, trouble_of

NAMES_SHOWN_MAX = 20

#: What programs call a column. The first line of a file without a header is text (an address, a
#: number of a card): where one of them is no such name, none is said.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def explained(error: Exception, *, name: str, field: str) -> TrainerError:
    """`error` in our words. `name` is the source without its secrets, `field` its place in the
    job."""
    trouble = trouble_of(error)
    match trouble.kind:
        case Kind.FORBIDDEN:
            return data_error(
                "NotAllowed",
                f"reading {field} {name} is not allowed: grant it, or set credentials.secretRef",
            )
        case Kind.OUT_OF_REACH:
            return _unreachable(trouble.detail, name=name, field=field)
        case Kind.ABSENT:
            return data_error(
                "NoSuchFile",
                f"{field} {name} does not exist: correct the uri, or put the file there",
            )
        case Kind.NO_PACKAGE:
            return data_error(
                "NoSuchProtocol",
                f"{field} {name} needs a package that this environment lacks ({trouble.detail}): "
                "install it; in a cluster use an image that has it",
            )
        case Kind.BAD_URI:
            return data_error(
                "BadUri", f"{field} {name} is not a URI that fsspec understands: correct it"
            )
        case _:
            return _unreadable(trouble.detail, name=name, field=field)


def data_error(reason: str, message: str) -> TrainerError:
    """Only a person can mend it."""
    return TrainerError(FailureClass.DATA, reason, message)


def shown_names(names: Sequence[str], kind: str) -> str:
    """What a file has of a `kind` (column, field), in words: 'the columns id, body and 2 more'."""
    if not names:
        return f"no {kind} at all"
    if not all(map(_NAME.fullmatch, names)):
        plural = "s" if len(names) > 1 else ""
        return f"{len(names)} {kind}{plural}, not all with names of letters, digits and underscores"
    shown = names[:NAMES_SHOWN_MAX]
    others = len(names) - len(shown)
    return f"the {kind}s {', '.join(shown)}" + (f" and {others} more" if others else "")


def _unreadable(why: str, *, name: str, field: str) -> TrainerError:
    return TrainerError(
        FailureClass.STORAGE,
        "SourceUnreadable",
        f"reading {field} {name} failed ({why}): check the file and the server",
    )


def _unreachable(kind: str, *, name: str, field: str) -> TrainerError:
    return TrainerError(
        FailureClass.STORAGE,
        "SourceUnreachable",
        f"{field} {name} is out of reach ({host_in(name)}: {kind}): check the host's name, and "
        "that DNS, egress (NetworkPolicy) and any proxy let the trainer reach it",
    )
