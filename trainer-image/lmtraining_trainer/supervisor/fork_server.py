"""A process that has torch imported, and does nothing but fork ranks.

Promise: once `ready`, a rank costs a fork (tens of milliseconds) and not an import (seconds). The
import happens while the supervisor waits for its peers, and never in the supervisor itself.
Trap avoided: a fork of a process with threads or CUDA. The libraries are imported there and never
used; starting a process through `multiprocessing` blocks until the import is done, so a thread asks
for the first one, and the supervisor goes on answering and hearing signals meanwhile.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

from lmtraining_trainer.supervisor.wake import STOP_SIGNALS

#: What a rank imports. The trainer's own modules come with the module of the rank function.
LIBRARIES = (
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.nn.parallel",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "tokenizers",
    "safetensors.torch",
    "fsspec",
)
#: The console script is every rank's main module, and imports the command line.
OURS = ("lmtraining_trainer.supervisor.rank_process", "lmtraining_trainer.cli")


#: A process whose socket has closed is a zombie within this.
ENDED_SECONDS_MAX = 5.0
POLL_SECONDS = 0.01

logger = logging.getLogger(__name__)


class ForkServer:
    """The fork server, of which there is one per process."""

    def __init__(
        self, *, rank_module: str, libraries: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.ready = False
        self.error: Exception | None = None
        os.environ.update(environment)
        self.context.set_forkserver_preload([*libraries, *OURS, rank_module])

    def start(self, on_ready: Callable[[], None]) -> None:
        """Start importing; `on_ready` is called from a thread when that is done, or failed."""
        # Ranks inherit this mask, and open it once they have a handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks some of them
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        threading.Thread(target=self._probe, args=(on_ready,), name="preload", daemon=True).start()

    @property
    def process_id(self) -> int | None:
        """Its process; `multiprocessing` has no public name for it."""
        server: Any = vars(forkserver)["_forkserver"]
        process_id: int | None = server._forkserver_pid
        return process_id

    @property
    def exit_code(self) -> int | None:
        """How it ended, as a `Process` has it: a signal is negative; None while it lives."""
        if self.process_id is None:
            return None
        try:  # WNOWAIT: `multiprocessing` reaps it
            ended = os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def await_end(self) -> int | None:
        """Its exit code, where a connection broke: that is seen a moment before it can be asked."""
        deadline = time.monotonic() + ENDED_SECONDS_MAX
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self.exit_code

    def _probe(self, on_ready: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            probe = self.context.Process(target=nothing)
            probe.start()
            probe.join()
            self.ready = True
            logger.info("libraries imported in %.1f s", time.monotonic() - began)
        except Exception as error:  # raised again by the supervisor's main thread
            self.await_end()
            self.error = error
        on_ready()


def nothing() -> None:
    """What the probe does: it ends, and so shows that a fork can be had."""
