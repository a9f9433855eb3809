"""What kubectl asks for when a user presses Tab (`kubectl_complete-lmtrain`).

Promise: an answer or none; a cluster that does not answer costs the user nothing but the names.
"""

import sys
from collections.abc import Sequence

from lmtraining_cli.errors import CliError
from lmtraining_cli.kubectl import Cluster, Place
from lmtraining_cli.refusals import RefusalError

#: Of kubectl: offer no files beside these.
NO_FILES = ":4"
FILES = ":0"
TAKES_FILES = frozenset({"validate", "run"})


def job_names(incomplete: str, place: Place | None = None) -> list[str]:
    """Jobs of the namespace that begin so."""
    from lmtraining_cli.reading import read_jobs  # noqa: PLC0415 - the models are half a second

    try:
        jobs = read_jobs(Cluster(place or Place()))
    except (CliError, RefusalError):
        return []
    names = (str(job["metadata"]["name"]) for job in jobs)
    return sorted(name for name in names if name.startswith(incomplete))


def offered(words: Sequence[str]) -> tuple[list[str], str]:
    """What may stand for the last of `words`, and kubectl's directive."""
    from lmtraining_cli.app import command_names, split_place  # noqa: PLC0415

    *before, last = words or [""]
    flags, rest = split_place(before)
    command = next((word for word in rest if not word.startswith("-")), None)
    if command is None:
        return [name for name in command_names() if name.startswith(last)], NO_FILES
    if command in TAKES_FILES:
        return [], FILES
    place = Place(
        context=flags.get("--context", ""),
        namespace=flags.get("--namespace", ""),
        kubeconfig=flags.get("--kubeconfig", ""),
        user=flags.get("--as", ""),
    )
    return job_names(last, place), NO_FILES


def main() -> None:
    """The script `kubectl_complete-lmtrain`."""
    names, directive = offered(sys.argv[1:])
    sys.stdout.write("".join(f"{name}\n" for name in names) + f"{directive}\n")
