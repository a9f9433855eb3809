"""What PID 1 of a container owes the kernel.

Promise: processes whose parent died are reaped, so that none of them stays a zombie for the life of
the pod. Trap avoided: reaping what somebody else asks about later.
"""

import os

ORPHANS_PER_TURN_MAX = 64


def reap_orphans(*, spared: int | None) -> None:
    """PID 1 inherits processes whose parent died. The fork server reaps the ranks themselves, and
    is spared: how it ended is asked later, and ends the pod."""
    for _ in range(ORPHANS_PER_TURN_MAX):
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if dead is None or dead.si_pid == spared:
                return
            os.waitpid(dead.si_pid, os.WNOHANG)
        except ChildProcessError:
            return
