"""What is made once for all jobs that ask for the same, and lies in the data cache.

Promise: <cache>/<key> appears by one rename, complete. An interrupted maker leaves nothing under a
final name, and two at once do no harm (the second one to finish throws its work away).
Trap avoided: what a maker that was killed left half done would fill the disk; the next one of the
same job removes it, and anybody after a day.
"""

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import publish_directory, remove_directory

#: What another job left half done is removed when this old.
LEFTOVER_AGE_SECONDS_MAX = 24 * 3600.0
TEMPORARY_PREFIX = ".preparing-"


def make_in_cache(
    cache: Path,
    key: str,
    *,
    owner: str,
    write: Callable[[Path], None],
    is_whole: Callable[[], bool],
    check: Callable[[], None],
) -> None:
    """Have `write` fill a directory and give it the name `key`; `is_whole` says whether one of that
    name is what it should be, `check` is called before anything is removed or published and may
    raise. Raises TrainerError(STORAGE) where `cache` cannot be written, and what `write` raises."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache, owner, check)
        temporary = cache / f"{TEMPORARY_PREFIX}{owner}-{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            write(temporary)
            _publish(temporary, cache / key, is_whole, check)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise TrainerError(
            FailureClass.STORAGE,
            "DataCacheUnusable",
            f"the data cache {cache} cannot be written ({error.strerror}): free space there, or "
            "make it writable",
        ) from error


def _publish(
    temporary: Path, final: Path, is_whole: Callable[[], bool], check: Callable[[], None]
) -> None:
    check()
    if final.exists() and not is_whole():
        remove_directory(final)  # damaged since: its manifest no longer agrees with it
    try:
        publish_directory(temporary, final, check)
    except OSError:
        if not is_whole():
            raise  # otherwise another job was first, with the same content


def _remove_leftovers(cache: Path, owner: str, check: Callable[[], None]) -> None:
    """What lies there before the check is not of a newer gang of `owner`."""
    leftovers = list(cache.glob(f"{TEMPORARY_PREFIX}*"))
    check()
    for path in leftovers:
        try:
            is_old = time.time() - path.stat().st_mtime > LEFTOVER_AGE_SECONDS_MAX
        except FileNotFoundError:
            continue
        if is_old or path.name.startswith(f"{TEMPORARY_PREFIX}{owner}-"):
            shutil.rmtree(path, ignore_errors=True)
