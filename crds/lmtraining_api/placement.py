"""Where the pods go, and who lets them: the part of their template that a person may write.

Promise: nothing that is written here can weaken a pod (the restricted level), reach the node, or
take the operator's own labels, variables and ports. It is no part of the job file, so a change of
it changes no training. Trap avoided: a free pod template, in which every field is a hole.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lmtraining_api.base import Rule, SpecModel
from lmtraining_api.fields import (
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    NAME_PATTERN,
    PATTERN_HINTS,
    VARIABLE_PATTERN,
    ObjectName,
    matches,
)
from lmtraining_api.names import ENV_PREFIX, GROUP

ENTRIES_MAX = 32
KEY_LENGTH_MAX = 317
_OURS = ("app.kubernetes.io/", f"{GROUP}/", "kueue.x-k8s.io/")
#: Variables that our own code and Python's start depend on.
_RESERVED = f"^({ENV_PREFIX}.*|HOME|PATH|PYTHON.*|LD_.*)$"


def _label_key(key: str) -> str:
    """A CRD has no words for the keys of a map, so the operator asks what the schema cannot."""
    if not matches(LABEL_KEY_PATTERN, key) or len(key) > KEY_LENGTH_MAX:
        raise PydanticCustomError(
            "label_key",
            'key "{key}" is not one that Kubernetes takes: write {hint}',
            {"key": key[:KEY_LENGTH_MAX], "hint": PATTERN_HINTS[LABEL_KEY_PATTERN]},
        )
    return key


LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE_PATTERN, max_length=63)]
#: The name of an object that pods carry as a label.
LabelledName = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=63)]
AnnotationValue = Annotated[str, Field(max_length=1024)]
TopologyKey = Annotated[
    str, Field(pattern=LABEL_KEY_PATTERN, min_length=1, max_length=KEY_LENGTH_MAX)
]


def _not_ours(field: str) -> Rule:
    """The operator's own keys, and the queue's, are not for people."""
    cel = " || ".join(f"k.startsWith('{prefix}')" for prefix in _OURS)
    return Rule(
        cel=f"!self.{field}.exists(k, {cel})",
        message=f"{field} has a key of the operator's own, or of a queue ({', '.join(_OURS)}): "
        "take another key; a queue is named in spec.queue",
        check=lambda t: not any(key.startswith(_OURS) for key in getattr(t, field)),
        at=field,
    )


class Toleration(SpecModel):
    """A taint of nodes that the pods bear."""

    key: Annotated[str, Field(pattern=LABEL_KEY_PATTERN, max_length=KEY_LENGTH_MAX)] | None = None
    """Key of the taint. Left out, with operator Exists: all of them."""
    operator: Literal["Equal", "Exists"] | None = None
    """Left out: Equal."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Left out: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=31_536_000)
    """How long a NoExecute taint is borne. Left out: for ever."""

    rules: ClassVar = (
        Rule(
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            message="a toleration without key bears every taint, which needs operator Exists: set "
            "it, or name the key",
            check=lambda t: t.key is not None or t.operator == "Exists",
            at="key",
        ),
        Rule(
            cel="!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
            message="value has no effect with operator Exists: remove value, or set operator to "
            "Equal",
            check=lambda t: t.value is None or t.operator in (None, "Equal"),
            at="value",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds is for effect NoExecute alone: set effect to it, or remove "
            "tolerationSeconds",
            check=lambda t: t.toleration_seconds is None or t.effect == "NoExecute",
            at="tolerationSeconds",
        ),
    )


class EnvironmentVariable(SpecModel):
    """A variable of the trainer's container, such as NCCL_DEBUG. Not for secrets: whoever may read
    the job reads it."""

    name: Annotated[str, Field(pattern=VARIABLE_PATTERN, min_length=1, max_length=128)]
    """Its name; those that begin with LMTRAINING_, PYTHON or LD_, HOME and PATH are taken."""
    value: Annotated[str, Field(max_length=1024)]
    """Its value."""

    rules: ClassVar = (
        Rule(
            cel=f"!self.name.matches('{_RESERVED}')",
            message="env {name} is set by the operator or changes how Python starts: remove it",
            check=lambda e: not matches(_RESERVED, e.name),
            at="name",
        ),
    )


class Topology(SpecModel):
    """How the pods of one job lie to each other."""

    policy: Literal["Pack", "Spread"]
    """Pack: all in one domain, or none is placed. Spread: over the domains, as evenly as there is
    room."""
    key: TopologyKey = "kubernetes.io/hostname"
    """Label of nodes whose values are the domains, such as topology.kubernetes.io/zone."""


class PodTemplate(SpecModel):
    """What the pods have beside what the operator gives them. A change is for pods made after it.
    A fixed list: what is not here cannot be set."""

    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Labels, such as a team for accounting, or the group of a gang scheduler."""
    annotations: dict[LabelKey, AnnotationValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Annotations."""
    node_selector: dict[LabelKey, LabelValue] = Field(default={}, max_length=ENTRIES_MAX)
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default=[], max_length=ENTRIES_MAX)
    """Taints that are borne, beside that of workers.accelerator."""
    topology: Topology | None = None
    """Left out: wherever there is room."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods. Left out: the cluster's default."""
    scheduler_name: ObjectName | None = None
    """Scheduler. Left out: the cluster's default."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass, such as that of a GPU vendor. Left out: the node's default."""
    image_pull_secrets: list[ObjectName] = Field(default=[], max_length=8)
    """Names of Secrets with the login of the image's registry."""
    env: list[EnvironmentVariable] = Field(default=[], max_length=ENTRIES_MAX)
    """Variables of the trainer's container."""
    host_network: bool = False
    """Use the node's network, as some fabrics need. Only where the administrator allows it, in a
    namespace that is not restricted, and with at most one pod of all jobs on a node."""

    rules: ClassVar = (_not_ours("labels"), _not_ours("annotations"))


class Queue(SpecModel):
    """The queue that lets the pods go: Kueue, for which the pods of an attempt are one group."""

    name: LabelledName
    """LocalQueue in the job's namespace."""
    priority_class: LabelledName | None = None
    """WorkloadPriorityClass: who comes first in the queue, and who is preempted. Left out: by the
    pods' own priority."""
