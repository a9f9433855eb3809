"""The model that a job goes on from, on every rank.

Promise: a run goes on with the weights it began with: their SHA-256 is in its journal and in
run.json, and once there is a checkpoint other weights are refused, not begun from in silence (P3).
"""

from pathlib import Path

from lmtraining_api import FailureClass, JobFile
from lmtraining_api.job import Pretrained
from lmtraining_trainer.data.pretrained import BaseModel, content_of, fetch_model, open_model
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import sha256_of
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.run import Mirror, Run
from lmtraining_trainer.run.directory import has_begun, storage_errors
from lmtraining_trainer.voice import Voice


def base_model(
    job: JobFile,
    run: Run | None,
    gang: Gang,
    voice: Voice,
    credentials: Path,
    *,
    mirror: Mirror | None,
) -> BaseModel | None:
    """The model of model.pretrained, in the data cache; None where there is none. The lead fetches
    it; the others have it from the volume, or from the object store. Raises TrainerError."""
    pretrained = job.spec.model.pretrained
    if pretrained is None:
        return None
    cache = Path(job.data_cache_directory)
    key = gang.lead_does(
        "fetch the model",
        lambda: _key(pretrained, job, run, voice, credentials) if run else "",
    )
    _bring(mirror, cache / key)
    return open_model(cache, key, job.spec)


def _key(pretrained: Pretrained, job: JobFile, run: Run, voice: Voice, credentials: Path) -> str:
    """On the lead: the key of the model, which is in the cache."""
    cache, known = Path(job.data_cache_directory), run.record
    uri_sha256 = sha256_of(pretrained.uri.encode())
    key, sha256 = str(known.get("pretrained_key")), known.get("pretrained_sha256")
    is_known = has_begun(run.directory) and sha256 is not None
    if is_known and known.get("pretrained_uri_sha256") == uri_sha256:
        _bring(run.mirror, cache / key)
        if content_of(cache, key) == sha256:
            return key

    def check() -> None:
        with storage_errors(run.directory):
            run.fence.check()

    key = fetch_model(
        pretrained,
        cache=cache,
        credentials=credentials,
        owner=job.job_uid,
        progress=lambda message: voice.progress("Preparing", message),
        check=check,
        fetch=lambda key: _bring(run.mirror, cache / key),
    )
    found = content_of(cache, key)
    if is_known and found != sha256:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "PretrainedChanged",
            f"model.pretrained.uri holds other files (SHA-256 {found}) than when this run began "
            f"({sha256}): put those back, or choose another checkpoint.path",
        )
    with storage_errors(run.directory):
        if run.mirror is not None:
            run.mirror.publish_data(cache / key, check)
        if found != sha256:
            run.journal.append("Pretrained", 0, sha256=found)
        run.remember(pretrained_uri_sha256=uri_sha256, pretrained_key=key, pretrained_sha256=found)
    return key


def _bring(mirror: Mirror | None, directory: Path) -> None:
    """Have the model here, where the object store has it."""
    if mirror is not None and content_of(directory.parent, directory.name) is None:
        with storage_errors(directory):
            mirror.fetch_data(directory)
