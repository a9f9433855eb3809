"""Why a job is pending, slow or failed: pure functions over a snapshot."""

from lmtraining_cli.why.decide import why
from lmtraining_cli.why.finding import Finding

__all__ = ["Finding", "why"]
