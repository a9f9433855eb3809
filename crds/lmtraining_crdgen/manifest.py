"""The CustomResourceDefinition: names, columns, selectable fields and the schema.

Promise: `kubectl get lmtj` answers where the job is, how far, how fast and how often it was mended.
Trap avoided: a `date` column of another machine's clock prints <invalid>, and a raw float 14
digits; so every column but AGE is a number or a short text of the operator's making.
"""

from typing import Any

import yaml

from lmtraining_api import LMTrainingJob, LMTrainingJobSpec, LMTrainingJobStatus, names
from lmtraining_crdgen.convert import (
    Schema,
    structural_schema,
    without_defaults,
    without_item_defaults,
)
from lmtraining_crdgen.rules import with_rules
from lmtraining_crdgen.words import explained

HEADER = "# Made by `make crds` from crds/lmtraining_api. Do not edit.\n"

#: Fields for `kubectl get --field-selector`: at most eight, text, numbers or booleans.
SELECTABLE = (
    "spec.suspend",
    "spec.model.config.architecture",
    "spec.workers.replicas",
    "spec.workers.image",
    "spec.checkpoint.path",
    "spec.checkpoint.storage.existingClaim",
    "status.attempt",
)


def _reason(condition: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].reason'


#: Header, type, JSONPath; those of the second group appear with `-o wide`.
COLUMNS = (
    ("State", "string", _reason("Succeeded")),
    ("Step", "integer", ".status.progress.step"),
    ("Progress", "string", ".status.progress.percent"),
    ("ETA", "string", ".status.progress.eta"),
    ("Loss", "string", ".status.metrics.loss"),
    ("Tok/s", "string", ".status.metrics.tokensPerSecond"),
    ("Restarts", "integer", ".status.restarts.total"),
    ("Age", "date", ".metadata.creationTimestamp"),
)
WIDE_COLUMNS = (
    ("Reason", "string", _reason("Progressing")),
    ("Attempt", "integer", ".status.attempt"),
    ("LastCkpt", "integer", ".status.checkpoint.lastStep"),
    ("Message", "string", '.status.conditions[?(@.type=="Succeeded")].message'),
)
_API_VERSION = "Version of this schema: lmtraining.dev/v1alpha1."
_KIND = "Kind of this object: LMTrainingJob."


def manifest() -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": without_item_defaults(_explained(root_schema()))},
        "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": f".{path}"} for path in SELECTABLE],
        "additionalPrinterColumns": [
            *(_column(*column, priority=0) for column in COLUMNS),
            *(_column(*column, priority=1) for column in WIDE_COLUMNS),
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": [names.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "versions": [version],
        },
    }


def root_schema() -> Schema:
    """spec, status and the rules on metadata, whose fields are Kubernetes' own."""
    root: Schema = {
        "type": "object",
        "description": (LMTrainingJob.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": _API_VERSION},
            "kind": {"type": "string", "description": _KIND},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(LMTrainingJobSpec, with_rules),
            "status": without_defaults(structural_schema(LMTrainingJobStatus, with_rules)),
        },
    }
    return with_rules(LMTrainingJob, root)


def _explained(root: Schema) -> Schema:
    """With the facts that `kubectl explain` would not show, where a person writes: in spec."""
    return root | {
        "properties": root["properties"] | {"spec": explained(root["properties"]["spec"])}
    }


def rendered() -> str:
    """The file that is committed."""
    text = yaml.dump(manifest(), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return HEADER + text


class _Dumper(yaml.SafeDumper):
    """Plain YAML: a schema used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _column(name: str, kind: str, path: str, *, priority: int) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})
