"""Log lines: JSON for machines, text for people.

Promise: one line per message, with the job, the attempt and the reason as fields. Trap avoided:
kopf logs every successful handler, which is every event.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["json", "text"]

FIELDS = ("namespace", "job", "attempt", "reason", "frames")
MESSAGE_LENGTH_MAX = 2048
QUIET = ("asyncio", "aiohttp.access", "kopf.objects", "kopf.activities.probe")
"""Loggers that say something for every event and every probe."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_LENGTH_MAX],
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, job, message."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        where = [str(getattr(record, name)) for name in FIELDS[:2] if hasattr(record, name)]
        reason = getattr(record, "reason", "")
        text = record.getMessage()[:MESSAGE_LENGTH_MAX]
        parts = [time, f"{record.levelname:7}", "/".join(where), str(reason), text]
        line = " ".join(part for part in parts if part)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(log_format: LogFormat) -> None:
    """Send everything to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
