"""`version`: this client, the operator and the CRD, and whether they fit.

Promise: says whether they fit, and where not, which is older and what to upgrade; what cannot be
known, or what this user may not see, is said too. Trap avoided: the CRD serves one version name
(v1alpha1) through all its changes, so its fields are compared, not its name.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from pydantic import BaseModel

from lmtraining_api import LMTrainingJobSpec, LMTrainingJobStatus
from lmtraining_api.names import COMPONENT_OPERATOR, GROUP, KIND, LABEL_COMPONENT, PLURAL, VERSION
from lmtraining_api.paths import field_paths
from lmtraining_cli.kubectl import Cluster, Question
from lmtraining_cli.looking import write_json
from lmtraining_cli.reading import namespace_of, refusal_sentence
from lmtraining_cli.refusals import RefusalError
from lmtraining_cli.snapshot import Object

DISTRIBUTION = "lm-training-operator"
LABEL_VERSION = "app.kubernetes.io/version"
UNKNOWN = "not seen"
FIELDS_NAMED_MAX = 3


def show(cluster: Cluster, *, as_json: bool) -> None:
    """Print them. Raises CliError for a context that is none."""
    namespace_of(cluster)
    client = metadata.version(DISTRIBUTION)
    group = cluster.ask(f"/apis/{GROUP}/{VERSION}")
    schemas = cluster.ask(f"/openapi/v3/apis/{GROUP}/{VERSION}")
    pods = cluster.ask(f"/api/v1/pods?labelSelector={LABEL_COMPONENT}%3D{COMPONENT_OPERATOR}")
    unseen: list[str] = []
    served = _answer(cluster, group, unseen)
    kinds = _kinds(served) if served else ""
    defined = (_answer(cluster, schemas, unseen) if kinds else None) or {}
    running = _answer(cluster, pods, unseen)
    operators = sorted({version_of(pod) for pod in (running or {}).get("items", [])})
    notes = unseen + ([] if running is None or operators else ["no operator runs in this cluster"])
    misfits = skew(client, operators) + crd_skew(_fields_of(defined))
    unsure = notes + unknown_versions(operators)
    found = {
        "client": client,
        "operator": ", ".join(operators) or UNKNOWN,
        "crd": kinds or UNKNOWN,
    }
    if as_json:
        fits = False if misfits else None if unsure else True
        write_json({**found, "fits": fits, "notes": misfits + unsure})
        return
    for name, value in found.items():
        sys.stdout.write(f"{name:<9} {value}\n")
    for note in misfits + unsure or ["they fit together"]:
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


def unknown_versions(operators: list[str]) -> list[str]:
    """A sentence for each operator whose image does not tell its version."""
    return [
        f"operator {found} is an image without a version in its tag: whether it fits is not known"
        for found in operators
        if not _order(found)
    ]


def crd_skew(fields: set[str]) -> list[str]:
    """What the CRD, with these fields, lacks of what this client knows, and the other way round;
    nothing where its fields are not known."""
    if not fields:
        return []
    ours = known_fields()
    lacks, has = sorted(ours - fields), sorted(fields - ours)
    older = (
        f"the CRD is older than this client: it lacks {_named(lacks)}. Upgrade the chart, which "
        "brings the CRD, before the operator; until then the API server takes no such field"
    )
    newer = (
        f"this client is older than the CRD, which has {_named(has)}: upgrade the client, which "
        "neither shows nor validates that"
    )
    return [older] * bool(lacks) + [newer] * bool(has)


def known_fields() -> set[str]:
    """Paths of all fields of a job that this client knows."""
    models: dict[str, type[BaseModel]] = {"spec": LMTrainingJobSpec, "status": LMTrainingJobStatus}
    below = (f"{name}.{path}" for name, model in models.items() for path in field_paths(model))
    return {*models, *below}


def fields_of_schema(schema: Object) -> set[str]:
    """Paths of all fields of a job by its OpenAPI schema."""
    properties = schema.get("properties") or {}
    ours = {name: properties[name] for name in ("spec", "status") if name in properties}
    return set(_paths({"properties": ours}))


def _paths(schema: Object, above: str = "") -> Iterator[str]:
    for name, inner in (schema.get("properties") or {}).items():
        path = f"{above}.{name}" if above else name
        yield path
        yield from _paths(inner, path)
        yield from _paths(inner.get("items") or {}, f"{path}[]")


def _fields_of(answer: Object) -> set[str]:
    schemas: Object = (answer.get("components") or {}).get("schemas") or {}
    ours = (
        schema
        for schema in schemas.values()
        for kind in schema.get("x-kubernetes-group-version-kind") or ()
        if kind.get("kind") == KIND
    )
    return fields_of_schema(next(ours, {}))


def _answer(cluster: Cluster, question: Question, unseen: list[str]) -> Object | None:
    """None where it may not be seen, which is said."""
    try:
        return question.answer()
    except RefusalError as refused:
        unseen.append(refusal_sentence(cluster, refused))
        return None


def _named(fields: Iterable[str]) -> str:
    names = list(fields)
    more = len(names) - FIELDS_NAMED_MAX
    return ", ".join(names[:FIELDS_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _order(version: str) -> tuple[int, ...]:
    """Comparable; empty for a tag that is no version."""
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _kinds(answer: Object) -> str:
    found = [one["name"] for one in answer.get("resources", []) if "/" not in one["name"]]
    return f"{VERSION} ({', '.join(sorted(found))})" if PLURAL in found else ""


def version_of(pod: Object) -> str:
    """By the tag of its image; where that is no version, by what the chart has said."""
    image = str(pod["spec"]["containers"][0]["image"])
    tag = image.rpartition("@")[2] if "@" in image else image.rpartition(":")[2]
    labels = pod["metadata"].get("labels") or {}
    return tag if _order(tag) else str(labels.get(LABEL_VERSION) or tag)
