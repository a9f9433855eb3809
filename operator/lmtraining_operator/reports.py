"""GET /report of the lead pod.

Promise: a slow, huge, redirecting or lying answer costs at most REPORT_SECONDS_MAX and changes
nothing; a report of another job or attempt is not taken.
"""

import aiohttp
from pydantic import ValidationError

from lmtraining_api.names import REPORT_BYTES_MAX, REPORT_PORT
from lmtraining_api.records import TrainerReport

REPORT_SECONDS_MAX = 2.0
CHUNK_BYTES = 16 * 1024
OK = 200


class ReportError(Exception):
    """Why there is no report; the text is ours and has nothing of the answer in it (P11)."""


class Reports:
    """Pulls reports over one session."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REPORT_SECONDS_MAX), trust_env=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def pull(self, address: str, *, job_uid: str, attempt: int) -> TrainerReport:
        """The report of this job and attempt, or a ReportError."""
        host = f"[{address}]" if ":" in address else address
        try:
            content = await self._read(f"http://{host}:{REPORT_PORT}/report")
        except TimeoutError as error:
            raise ReportError(f"no answer within {REPORT_SECONDS_MAX:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ReportError(f"no connection ({type(error).__name__})") from error
        return parse(content, job_uid=job_uid, attempt=attempt)

    async def _read(self, url: str) -> bytes:
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status != OK:
                raise ReportError(f"HTTP {answer.status}")
            content = b""
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                content += chunk
                if len(content) > REPORT_BYTES_MAX:
                    raise ReportError(f"the report has more than {REPORT_BYTES_MAX} bytes")
            return content


def parse(content: bytes, *, job_uid: str, attempt: int) -> TrainerReport:
    """The report, if it is one, and of this job and attempt."""
    try:
        report = TrainerReport.model_validate_json(content)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, one["loc"])) for one in error.errors()[:3])
        raise ReportError(f"the report cannot be read ({fields or 'not JSON'})") from None
    if report.job_uid != job_uid:
        raise ReportError("the report is of another job")
    if report.attempt != attempt:
        raise ReportError(f"the report is of attempt {report.attempt}, not {attempt}")
    return report
