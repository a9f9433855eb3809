"""Names, paths and ports on which operator and trainer agree.

Promise: a string that crosses from one half of the product to the other is written once, here.
Trap avoided: a label or path spelled in two places drifts apart silently.
"""

from typing import Final

GROUP: Final = "lmtraining.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "lmtraining.dev/v1alpha1"
KIND: Final = "LMTrainingJob"
PLURAL: Final = "lmtrainingjobs"
SHORT_NAME: Final = "lmtj"
CATEGORY: Final = "lmtrain"

LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_REPLICA: Final = f"{GROUP}/replica"
#: On the operator's own pod, whatever the installation calls it.
LABEL_COMPONENT: Final = f"{GROUP}/component"
COMPONENT_OPERATOR: Final = "operator"
ANNOTATION_INTENT: Final = f"{GROUP}/intent"
#: On a job: "true" keeps the operator's hands off it.
ANNOTATION_PAUSED: Final = f"{GROUP}/paused"

#: A pod is named <job>-<attempt>-<replica>-<n>; this bound keeps that within a 63-character label.
JOB_NAME_LENGTH_MAX: Final = 50

#: Where a trainer pod finds what the operator gave it.
JOB_FILE_PATH: Final = "/etc/lmtraining/job/job.json"
INTENT_FILE_PATH: Final = "/etc/lmtraining/intent/intent.json"
CREDENTIALS_DIRECTORY: Final = "/etc/lmtraining/credentials"
TERMINATION_LOG_PATH: Final = "/dev/termination-log"
STORAGE_DIRECTORY: Final = "/storage"
#: The same on a volume and in an object store.
RUNS: Final = "runs"
DATA_CACHE: Final = "data-cache"
RUNS_DIRECTORY: Final = f"{STORAGE_DIRECTORY}/{RUNS}"
DATA_CACHE_DIRECTORY: Final = f"{STORAGE_DIRECTORY}/{DATA_CACHE}"
#: Name of the exported model below the run directory.
EXPORT_DIRECTORY: Final = "export"

#: The identity of a trainer pod, by the downward API. Never a hyper-parameter.
ENV_PREFIX: Final = "LMTRAINING_"
ENV_POD_UID: Final = f"{ENV_PREFIX}POD_UID"
ENV_POD_NAME: Final = f"{ENV_PREFIX}POD_NAME"
ENV_POD_ADDRESS: Final = f"{ENV_PREFIX}POD_ADDRESS"
ENV_ATTEMPT: Final = f"{ENV_PREFIX}ATTEMPT"
ENV_REPLICA: Final = f"{ENV_PREFIX}REPLICA"
#: How long the kubelet waits after it has told the pod to stop.
ENV_GRACE_SECONDS: Final = f"{ENV_PREFIX}GRACE_SECONDS"

#: GET /report, /metrics and /healthz of every supervisor; torch's rendezvous on the lead pod.
REPORT_PORT: Final = 8080
RENDEZVOUS_PORT: Final = 29500

#: Reason of the fault that ends a round because the peer table names another pod.
POD_REPLACED: Final = "PodReplaced"

REPORT_BYTES_MAX: Final = 64 * 1024
TERMINATION_LOG_BYTES_MAX: Final = 4096
