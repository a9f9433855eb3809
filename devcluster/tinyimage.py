"""An image of one static binary, assembled without any image tool.

Promise: the same binary gives the same bytes. Used for the pause image, which every pod needs and
which must not be fetched from anywhere; tests use it for images that start in milliseconds.
"""

import hashlib
import http.client
import io
import json
import os
import tarfile
from pathlib import Path

from devcluster.errors import DevclusterError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ENTRYPOINT_MODE = 0o755
UNPRIVILEGED_USER = "65535:65535"
PUSH_LIMIT_SECONDS = 30.0


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def image_files(binary: Path) -> tuple[bytes, bytes]:
    """The only layer (an uncompressed tar) and the configuration of an image of `binary`."""
    layer = _tar({binary.name: (binary.read_bytes(), ENTRYPOINT_MODE)})
    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": [f"/{binary.name}"], "User": UNPRIVILEGED_USER},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }
    return layer, json.dumps(config).encode()


def archive(binary: Path, *, name: str) -> bytes:
    """A `docker save` archive, which containerd imports under `name`."""
    layer, config = image_files(binary)
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "layer.tar": (layer, 0o644),
            "config.json": (config, 0o644),
            "manifest.json": (json.dumps(manifest).encode(), 0o644),
        }
    )


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def architecture() -> str:
    """This machine's architecture by Go's name."""
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    machine = os.uname().machine
    return names.get(machine, machine)


def push(binary: Path, *, registry: str, repository: str, tag: str) -> str:
    """Push an image of `binary` to a registry without TLS; its full name."""
    layer, config = image_files(binary)
    for blob in (layer, config):
        _push_blob(blob, registry=registry, repository=repository)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [_descriptor(layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    path = f"/v2/{repository}/manifests/{tag}"
    _request(registry, "PUT", path, json.dumps(manifest).encode(), content_type=MANIFEST_TYPE)
    return f"{registry}/{repository}:{tag}"


def _descriptor(content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def _push_blob(content: bytes, *, registry: str, repository: str) -> None:
    location = _request(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"")
    upload = location.partition(registry)[2]
    separator = "&" if "?" in upload else "?"
    _request(registry, "PUT", f"{upload}{separator}digest={digest(content)}", content)


def _request(
    registry: str,
    method: str,
    path: str,
    body: bytes,
    *,
    content_type: str = "application/octet-stream",
) -> str:
    """The answer's Location; DevclusterError unless the registry accepted."""
    connection = http.client.HTTPConnection(registry, timeout=PUSH_LIMIT_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        words = answer.read().decode(errors="replace")
        if answer.status not in (http.client.CREATED, http.client.ACCEPTED):
            raise DevclusterError(f"registry {registry}: {method} {path}: {answer.status} {words}")
        return answer.getheader("Location") or ""
    except OSError as error:
        raise DevclusterError(f"registry {registry} does not answer: {error}") from error
    finally:
        connection.close()
