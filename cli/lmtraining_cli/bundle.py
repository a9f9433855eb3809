"""`report --bundle`: what support needs, in one archive.

Promise: manifests, events, logs and the page, each at most so large; no Secret is read, a uri loses
its query, and of environment variables and annotations that are not ours the value is left out.
Trap avoided: managedFields and kubectl's own last-applied annotation hold the whole spec once more.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtraining_api.names import GROUP
from lmtraining_cli.errors import CliError

LOG_BYTES_MAX = 4 * 1024 * 1024
HIDDEN = "(left out)"


def redacted(value: Any, key: str = "") -> Any:
    """The same, without what may be a secret."""
    if isinstance(value, dict):
        if key == "annotations":
            return {name: _annotation(name, text) for name, text in value.items()}
        if {"name", "value"} == value.keys():  # an environment variable
            return value | {"value": HIDDEN}
        kept = {name: inner for name, inner in value.items() if name != "managedFields"}
        return {name: redacted(inner, name) for name, inner in kept.items()}
    if isinstance(value, list):
        return [redacted(one, key) for one in value]
    if key == "uri" and isinstance(value, str):
        return value.partition("?")[0] + ("?…" if "?" in value else "")
    return value


def write(path: Path, *, objects: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """The archive: objects as JSON, and texts, of long ones the end. Raises CliError."""
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, found in objects.items():
                archive.writestr(name, json.dumps(redacted(found), indent=2, default=str))
            for name, text in texts.items():
                archive.writestr(name, text.encode()[-LOG_BYTES_MAX:])
    except OSError as error:
        raise CliError(f"{path} cannot be written ({error.strerror})") from error


def _annotation(name: str, text: str) -> str:
    return text if name.partition("/")[0] == GROUP else HIDDEN
