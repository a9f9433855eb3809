"""What a registry holds.

Promise: "is it there?" costs one bounded request and no layer is touched. Trap avoided: asking by
`pull`, which for the trainer moves gigabytes to answer yes or no.
"""

import http.client

from devcluster.images.reference import ImageRef

ANSWER_SECONDS_MAX = 5.0
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


def registry_answers(registry: str) -> bool:
    """True where something at `host:port` speaks the registry protocol without TLS."""
    return _status(registry, "GET", "/v2/") in (200, 401)


def registry_has(reference: ImageRef) -> bool:
    """True where the reference's registry holds its manifest; False also where none answers."""
    if reference.registry is None:
        return False
    path = f"/v2/{reference.name}/manifests/{reference.tag}"
    return _status(reference.registry, "HEAD", path) == http.client.OK


def _status(registry: str, method: str, path: str) -> int | None:
    """HTTP status, or None where nothing answers within the limit."""
    connection = http.client.HTTPConnection(registry, timeout=ANSWER_SECONDS_MAX)
    try:
        connection.request(method, path, headers={"Accept": ", ".join(MANIFEST_TYPES)})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
