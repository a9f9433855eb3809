"""The children of a job, as plain dicts.

Promise: each child has a deterministic name and says whose it is; a pod runs under the restricted
level with a read-only root and no API-server token. Trap avoided: YAML built from strings.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from lmtraining_api import names as api
from lmtraining_api.base import BEGUN
from lmtraining_api.job import LMTrainingJob, TrainingSpec
from lmtraining_api.records import JobFile
from lmtraining_operator.plan import names, placement
from lmtraining_operator.plan.model import Object

USER_ID = 65532
HOME_DIRECTORY = "/home/lmtraining"
CONTAINER = "trainer"
MANAGED_BY = "lm-training-operator"
OPERATOR: Object = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {api.LABEL_COMPONENT: api.COMPONENT_OPERATOR}},
}
"""As a peer of a NetworkPolicy: it reads reports, whoever else may."""
SHARED_MEMORY_VOLUME = "shared-memory"
SCRATCH_SIZE_MAX = "2Gi"
"""Size limit of /tmp, and of the home directory."""
READ_BY_OWNER_AND_GROUP = 0o440


def config_map(job: LMTrainingJob) -> Object:
    """The job file; it cannot change under a running pod."""
    spec = job.spec.model_dump(include=set(TrainingSpec.model_fields))
    content: Object = {
        "job_name": job.metadata.name,
        "namespace": job.metadata.namespace,
        "job_uid": job.metadata.uid,
        "run_directory": names.run_directory(job),
        "data_cache_directory": api.DATA_CACHE_DIRECTORY,
        "run_uri": names.uri_of(job, names.run_directory_in_volume(job)),
        "data_cache_uri": names.uri_of(job, api.DATA_CACHE),
        "spec": spec,
    }
    # Accepted it is already, and perhaps before there was a rule against it.
    job_file = JobFile.model_validate(content, context=BEGUN)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, names.config_map_name(job.metadata.name)),
        "immutable": True,
        "data": {PurePosixPath(api.JOB_FILE_PATH).name: job_file_text(job_file)},
    }


def job_file_text(content: JobFile) -> str:
    """Without what is left at its default: a trainer image that is older than this operator refuses
    a field of the spec that it does not know."""
    written = content.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps({"schemaVersion": content.schema_version} | written)


def claim(job: LMTrainingJob) -> Object:
    """The volume of the job. It has no owner: it stays when the job is deleted."""
    wanted = job.spec.checkpoint.storage.claim
    assert wanted is not None, "asked for only where the job wants a claim of its own"
    metadata = _metadata(job, names.own_claim_name(job.metadata.name))
    del metadata["ownerReferences"]
    spec: Object = {
        "accessModes": [job.spec.claim_access_mode],
        "resources": {"requests": {"storage": wanted.size}},
    }
    if wanted.storage_class_name is not None:
        spec["storageClassName"] = wanted.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
    }


def network_policy(job: LMTrainingJob, *, readers: Sequence[Object]) -> Object:
    """Who may reach the pods: each other, and, of reports and metrics, the operator and `readers`,
    which are peers of a NetworkPolicy. Egress stays open, since storage may be anywhere."""
    of_job = {"matchLabels": {api.LABEL_JOB_UID: job.metadata.uid}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job, names.network_policy_name(job)),
        "spec": {
            "podSelector": of_job,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": of_job}]},
                {
                    "from": [OPERATOR, *readers],
                    "ports": [{"port": api.REPORT_PORT, "protocol": "TCP"}],
                },
            ],
        },
    }


def pod(
    job: LMTrainingJob,
    name: str,
    *,
    attempt: int,
    replica: int,
    intent: str,
    image: str,
    avoided_nodes: tuple[str, ...] = (),
) -> Object:
    """One pod of the gang; it waits until its intent names all peers."""
    workers = job.spec.workers
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.spec.recovery.grace_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, image)],
        "volumes": _volumes(job),
    }
    if workers.service_account_name is not None:
        spec["serviceAccountName"] = workers.service_account_name
    spec |= placement.spec(job, avoided_nodes)
    metadata = _metadata(job, name, attempt=attempt, replica=replica)
    metadata["labels"] = placement.labels(job, attempt) | metadata["labels"]
    metadata["annotations"] = placement.annotations(job) | {api.ANNOTATION_INTENT: intent}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _container(job: LMTrainingJob, image: str) -> Object:
    resources = _resources(job)
    return {
        "name": CONTAINER,
        "image": image,
        "args": ["supervise"],
        "env": _environment(job),
        "ports": [{"name": "report", "containerPort": api.REPORT_PORT, "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": api.TERMINATION_LOG_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(job),
    }


def _resources(job: LMTrainingJob) -> dict[str, str]:
    workers = job.spec.workers
    resources = {"cpu": workers.resources.cpu, "memory": workers.resources.memory}
    if workers.accelerator is not None:
        resources[workers.accelerator.resource] = str(workers.accelerator.count)
    return resources


def _environment(job: LMTrainingJob) -> list[Object]:
    fields = {
        api.ENV_POD_UID: "metadata.uid",
        api.ENV_POD_NAME: "metadata.name",
        api.ENV_POD_ADDRESS: "status.podIP",
        api.ENV_ATTEMPT: f"metadata.labels['{api.LABEL_ATTEMPT}']",
        api.ENV_REPLICA: f"metadata.labels['{api.LABEL_REPLICA}']",
    }
    downward: list[Object] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in fields.items()
    ]
    grace = str(job.spec.recovery.grace_seconds)
    return [
        *({"name": one.name, "value": one.value} for one in job.spec.pod_template.env),
        *downward,
        {"name": api.ENV_GRACE_SECONDS, "value": grace},
        {"name": "HOME", "value": HOME_DIRECTORY},
    ]


def _mounts(job: LMTrainingJob) -> list[Object]:
    return [
        _mount("job", str(PurePosixPath(api.JOB_FILE_PATH).parent), read_only=True),
        _mount("intent", str(PurePosixPath(api.INTENT_FILE_PATH).parent), read_only=True),
        _mount("storage", api.STORAGE_DIRECTORY),
        _mount(SHARED_MEMORY_VOLUME, "/dev/shm"),  # noqa: S108  a mount point, not a file of ours
        _mount("tmp", "/tmp"),  # noqa: S108
        _mount("home", HOME_DIRECTORY),
        *(
            _mount(f"credentials-{index}", f"{api.CREDENTIALS_DIRECTORY}/{name}", read_only=True)
            for index, name in enumerate(secrets(job))
        ),
    ]


def _volumes(job: LMTrainingJob) -> list[Object]:
    return [
        {"name": "job", "configMap": {"name": names.config_map_name(job.metadata.name)}},
        {"name": "intent", "downwardAPI": {"items": [_intent_file()]}},
        {"name": "storage", **_storage(job)},
        {
            "name": SHARED_MEMORY_VOLUME,
            "emptyDir": {"medium": "Memory", "sizeLimit": job.spec.workers.shared_memory},
        },
        {"name": "tmp", "emptyDir": {"sizeLimit": SCRATCH_SIZE_MAX}},
        {"name": "home", "emptyDir": {"sizeLimit": SCRATCH_SIZE_MAX}},
        *(
            {
                "name": f"credentials-{index}",
                "secret": {"secretName": name, "defaultMode": READ_BY_OWNER_AND_GROUP},
            }
            for index, name in enumerate(secrets(job))
        ),
    ]


def _storage(job: LMTrainingJob) -> Object:
    """The volume of the run; scratch space for a copy where the run lives in an object store. How
    large that may grow is the node's matter, since nobody knows the size of a checkpoint yet."""
    claim = names.claim_name(job)
    return {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}


def secrets(job: LMTrainingJob) -> list[str]:
    """Names of the Secrets that the job's sources, its model, its store and its trackers ask
    for, each once."""
    data, storage, tracking = job.spec.data, job.spec.checkpoint.storage, job.spec.tracking
    trackers = (tracking.mlflow, tracking.wandb)
    of_blocks = (*data.train, *data.validation, job.spec.model.pretrained, storage, *trackers)
    wanted = [block.credentials for block in of_blocks if block is not None]
    return sorted({one.secret_ref.name for one in wanted if one is not None})


def _intent_file() -> Object:
    return {
        "path": PurePosixPath(api.INTENT_FILE_PATH).name,
        "fieldRef": {"fieldPath": f"metadata.annotations['{api.ANNOTATION_INTENT}']"},
    }


def _mount(name: str, path: str, *, read_only: bool = False) -> Object:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _metadata(
    job: LMTrainingJob, name: str, *, attempt: int | None = None, replica: int | None = None
) -> Object:
    labels = {
        "app.kubernetes.io/name": "lmtraining-trainer",
        "app.kubernetes.io/managed-by": MANAGED_BY,
        api.LABEL_JOB_NAME: job.metadata.name,
        api.LABEL_JOB_UID: job.metadata.uid,
    }
    if attempt is not None:
        labels[api.LABEL_ATTEMPT] = str(attempt)
    if replica is not None:
        labels[api.LABEL_REPLICA] = str(replica)
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(job)],
    }


def owner_reference(job: LMTrainingJob) -> Object:
    """The job as owner: the garbage collector deletes the child after it, operator or not."""
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
    }
