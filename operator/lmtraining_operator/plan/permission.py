"""What the administrator lets the jobs of this installation use.

Promise: a job that asks for more makes nothing; it says which field is outside and what would do,
and goes on by itself once the field or the limits are changed (P12). A job that has begun is left
alone (P10). Trap avoided: `registry.example/team` as the start of a text is also the start of
`registry.example/team-of-somebody-else`; a prefix ends where a part of a name ends.
"""

from collections.abc import Iterator

from lmtraining_api.job import LMTrainingJobSpec
from lmtraining_operator.plan.model import Allowed

_ENDS_OF_PARTS = ("/", ":", "@")
_OF_THE_POD = "file:"
"""What a pod reads from its own disks is no access to anything else."""
_CHAIN = "::"
"""How fsspec chains one file system behind another, which may be anywhere."""


def outside(spec: LMTrainingJobSpec, allowed: Allowed) -> str:
    """A sentence about the first field that is not allowed, or "". A uri is not named, since it
    may hold a secret (P11)."""
    image = spec.workers.image
    if image is not None and not _is_under(image, allowed.images):
        return _sentence(f"workers.image {image}", "images that begin with", allowed.images)
    account = spec.workers.service_account_name
    if account is not None and allowed.service_accounts and account not in allowed.service_accounts:
        return _sentence(
            f"workers.serviceAccountName {account}", "service accounts", allowed.service_accounts
        )
    if spec.pod_template.host_network and not allowed.host_network:
        return (
            "podTemplate.hostNetwork is not allowed here: remove it, or ask the administrator of "
            "lm-training-operator to set allowed.hostNetwork"
        )
    for field, uri in _remote_uris(spec):
        if not _is_under(uri, allowed.uris):
            return _sentence(field, "URIs that begin with", allowed.uris)
    return ""


def _remote_uris(spec: LMTrainingJobSpec) -> Iterator[tuple[str, str]]:
    """Every place that is not in the pod, with its field."""
    named = [
        *((f"data.train[{i}].uri", source.uri) for i, source in enumerate(spec.data.train)),
        *((f"data.validation[{i}].uri", s.uri) for i, s in enumerate(spec.data.validation)),
    ]
    if spec.model.pretrained is not None:
        named.append(("model.pretrained.uri", spec.model.pretrained.uri))
    if spec.checkpoint.storage.uri is not None:
        named.append(("checkpoint.storage.uri", spec.checkpoint.storage.uri))
    if spec.tracking.mlflow is not None:
        named.append(("tracking.mlflow.uri", spec.tracking.mlflow.uri))
    if spec.tracking.wandb is not None and spec.tracking.wandb.credentials is not None:
        named.append(("tracking.wandb.uri", spec.tracking.wandb.uri))
    return ((field, uri) for field, uri in named if not uri.startswith(_OF_THE_POD))


def _is_under(value: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the value is one of these or continues one; no prefixes allow everything."""
    return not prefixes or (
        _CHAIN not in value and any(_continues(value, prefix) for prefix in prefixes)
    )


def _continues(value: str, prefix: str) -> bool:
    rest = value.removeprefix(prefix)
    if not value.startswith(prefix):
        return False
    return not rest or prefix.endswith(_ENDS_OF_PARTS) or rest.startswith(_ENDS_OF_PARTS)


def _sentence(found: str, kind: str, values: tuple[str, ...]) -> str:
    return (
        f"{found} is not allowed here: the administrator of lm-training-operator allows {kind} "
        f"{', '.join(values)}"
    )
