"""What kubectl said when it could not, and what a person does about it.

Promise: each refusal is one sentence with the verb and the resource, the cluster or the context
that it is about, and the fix.
Trap avoided: a missing job and a missing CRD are both a 404, and only one is a typing error.
"""

import difflib
import re
from collections.abc import Iterable

NEAREST_MAX = 3

_FROM_SERVER = re.compile(r"Error from server(?: \((\w+)\))?: (.*)", re.DOTALL)
_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group '
    r'"(?P<group>[^"]*)"(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_OTHERS = (
    ("NoContext", re.compile(r"cannot locate context|context .*does not exist|no context exists")),
    ("Unauthorized", re.compile(r"must be logged in|Unauthorized")),
    (
        "Unreachable",
        re.compile(
            r"was refused|Unable to connect|no such host|timeout|timed out|deadline exceeded"
            r"|no route to host|x509|connection reset|EOF"
        ),
    ),
    (
        "NoKubeconfig",
        re.compile(
            r"stat .*: no such file|Missing or incomplete configuration|current-context must exist"
        ),
    ),
    ("NoKind", re.compile(r"the server doesn't have a resource type|no matches for kind")),
)
_NO_FILE = re.compile(r"stat (.+): no such file")
_NO_PATH = "could not find the requested resource"


class RefusalError(Exception):
    """kubectl's refusal: a word of ours or of the API server, and its message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


def refusal_of(errors: str) -> RefusalError:
    """What kubectl's standard error says."""
    text = " ".join(errors.split())
    found = _FROM_SERVER.search(text)
    if found is not None:
        reason = found[1] or "Unknown"
        return RefusalError("NoKind" if _NO_PATH in found[2] else reason, found[2])
    for reason, pattern in _OTHERS:
        if pattern.search(text):
            return RefusalError(reason, text)
    return RefusalError("Unknown", text.removeprefix("error: ") or "kubectl failed without a word")


def sentence(
    refused: RefusalError, *, context: str, server: str = "", missing_file: str = ""
) -> str:
    """One sentence for a person; `context` is the one that was used, `missing_file` a kubeconfig
    that was named and is not there, of which kubectl says nothing."""
    where = f"the cluster of context {context}" + (f" ({server})" if server else "")
    match refused.reason:
        case "Forbidden":
            return forbidden(refused.message)
        case "Unauthorized":
            return f"{where} does not know you: log in again, or choose another --context"
        case "Unreachable":
            return (
                f"{where} does not answer ({_cause(refused.message)}): start it, connect to its "
                "network, or choose another --context"
            )
        case "NoKind":
            return (
                f"{where} has no LMTrainingJobs: install the chart lm-training-operator there, or "
                "choose another --context"
            )
        case "NoKubeconfig":
            found = _NO_FILE.search(refused.message)
            missing = found[1] if found else missing_file
            what = f"there is no kubeconfig {missing}" if missing else "no kubeconfig is set up"
            return (
                f"{what}, so no cluster is known: set KUBECONFIG or --kubeconfig to the file of "
                "your cluster, or choose one of its contexts (kubectl config use-context)"
            )
        case _:
            return refused.message


def forbidden(message: str) -> str:
    """Which verb on which resource, and the rule to ask for."""
    found = _FORBIDDEN.search(message)
    if found is None:
        return f"the API server forbids it: {message}"
    scope = f"in namespace {found['namespace']}" if found["namespace"] else "in the whole cluster"
    kind = "Role" if found["namespace"] else "ClusterRole"
    rule = f'apiGroups: ["{found["group"]}"], resources: [{found["resource"]}]'
    return (
        f"{found['user']} may not {found['verb']} {found['resource']} {scope}: ask for a {kind} "
        f"with {{{rule}, verbs: [{found['verb']}]}}"
    )


def unknown_context(context: str, known: Iterable[str]) -> str:
    """A context that the kubeconfig does not have."""
    return f"the kubeconfig has no context {context}: {nearest(context, known)}"


def unknown_job(name: str, known: Iterable[str], *, namespace: str, context: str) -> str:
    """A job that does not exist."""
    return (
        f"there is no LMTrainingJob {name} in namespace {namespace} of context {context}: "
        f"{nearest(name, known)}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The names that were perhaps meant; all of a few, where none is near."""
    names = sorted(known)
    if not names:
        return "there is none at all"
    close = difflib.get_close_matches(name, names, n=NEAREST_MAX, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - NEAREST_MAX} more" if len(names) > NEAREST_MAX else ""
    return f"there is {', '.join(names[:NEAREST_MAX])}{more}"


def _cause(message: str) -> str:
    """Without kubectl's own question behind it."""
    return message.removeprefix("Unable to connect to the server: ").partition(" - did you")[0]
