"""Paths of the API, known before the models are imported.

Promise: the same words as the contract's (a test compares them). Trap avoided: the contract takes a
third of a second to import, in which kubectl can have the first answers.
"""

from urllib.parse import quote

from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.refusals import RefusalError

API_VERSION = "lmtraining.dev/v1alpha1"
PLURAL = "lmtrainingjobs"
LABEL_JOB_NAME = "lmtraining.dev/job-name"
EVENTS_PER_OBJECT_MAX = 100


def jobs(namespace: str) -> str:
    """All jobs of a namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


def job(namespace: str, name: str) -> str:
    """One job."""
    return f"{jobs(namespace)}/{quote(name)}"


def core(namespace: str) -> str:
    """Kubernetes' own objects of a namespace."""
    return f"/api/v1/namespaces/{namespace}"


def pods(namespace: str, name: str) -> str:
    """The pods of a job."""
    return f"{core(namespace)}/pods?labelSelector={quote(f'{LABEL_JOB_NAME}={name}')}"


def events(namespace: str, name: str) -> str:
    """What was said about an object of that name."""
    fields = quote(f"involvedObject.name={name}")
    return f"{core(namespace)}/events?fieldSelector={fields}&limit={EVENTS_PER_OBJECT_MAX}"


def ask_early(cluster: Cluster, name: str) -> None:
    """The questions that every look at a job begins with. What is wrong is said later."""
    try:
        namespace = cluster.namespace
    except RefusalError:
        return
    for path in (job(namespace, name), pods(namespace, name), events(namespace, name)):
        cluster.ask_early(path)
