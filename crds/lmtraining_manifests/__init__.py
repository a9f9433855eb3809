"""Job files: YAML, read as kubectl reads it, and judged by the models of the contract."""

from lmtraining_manifests.files import BadJobError, Checked, check_file, read_job, validate

__all__ = ["BadJobError", "Checked", "check_file", "read_job", "validate"]
