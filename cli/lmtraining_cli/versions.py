"""`version`: this client, the operator and the CRD, and whether they fit.

Promise: says which half is older, and what to upgrade; what this user may not see is said.
"""

import sys
from importlib import metadata

from lmtraining_api.names import COMPONENT_OPERATOR, LABEL_COMPONENT, PLURAL, VERSION
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.looking import write_json
from lmtraining_cli.reading import namespace_of, refusal_sentence
from lmtraining_cli.refusals import RefusalError
from lmtraining_cli.snapshot import Object

DISTRIBUTION = "lm-training-operator"
UNKNOWN = "not seen"


def show(cluster: Cluster, *, as_json: bool) -> None:
    """Print them. Raises CliError for a context that is none."""
    namespace_of(cluster)
    client = metadata.version(DISTRIBUTION)
    group = cluster.ask(f"/apis/lmtraining.dev/{VERSION}")
    pods = cluster.ask(f"/api/v1/pods?labelSelector={LABEL_COMPONENT}%3D{COMPONENT_OPERATOR}")
    notes: list[str] = []
    served = ""
    try:
        served = _kinds(group.answer())
    except RefusalError as refused:
        notes.append(refusal_sentence(cluster, refused))
    operators: list[str] = []
    try:
        operators = sorted(set(map(_image_version, pods.answer()["items"])))
    except RefusalError as refused:
        notes.append(refusal_sentence(cluster, refused))
    else:
        notes += [] if operators else ["no operator runs in this cluster"]
    notes += skew(client, operators)
    found = {
        "client": client,
        "operator": ", ".join(operators) or UNKNOWN,
        "crd": served or UNKNOWN,
    }
    if as_json:
        write_json({**found, "notes": notes})
        return
    for name, value in found.items():
        sys.stdout.write(f"{name:<9} {value}\n")
    for note in notes:
        sys.stdout.write(f"{note}\n")


def skew(client: str, operators: list[str]) -> list[str]:
    """A sentence for each operator that is not of our minor version."""
    return [
        f"operator {found} and client {client} differ: upgrade the "
        f"{'client' if _order(found) > _order(client) else 'operator'}; what one of them does not "
        "know is left out"
        for found in operators
        if _order(found) and _order(found)[:2] != _order(client)[:2]
    ]


def _order(version: str) -> tuple[int, ...]:
    """Comparable; empty for a tag that is no version."""
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _kinds(answer: Object) -> str:
    found = [one["name"] for one in answer.get("resources", []) if "/" not in one["name"]]
    return f"{VERSION} ({', '.join(sorted(found))})" if PLURAL in found else ""


def _image_version(pod: Object) -> str:
    image = str(pod["spec"]["containers"][0]["image"])
    return image.rpartition("@")[2] if "@" in image else image.rpartition(":")[2]
