"""All policy, pure: no kopf, no client, no clock, no I/O."""

from lmtraining_operator.plan.decide import plan
from lmtraining_operator.plan.model import (
    Action,
    ContainerExit,
    Create,
    DeletePod,
    Disruption,
    Object,
    Observed,
    ObservedClaim,
    ObservedPod,
    ObservedReport,
    Plan,
    PodWarning,
    PublishEvent,
    Refusal,
    SetIntent,
    Settings,
)

__all__ = [
    "Action",
    "ContainerExit",
    "Create",
    "DeletePod",
    "Disruption",
    "Object",
    "Observed",
    "ObservedClaim",
    "ObservedPod",
    "ObservedReport",
    "Plan",
    "PodWarning",
    "PublishEvent",
    "Refusal",
    "SetIntent",
    "Settings",
    "plan",
]
