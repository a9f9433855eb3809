"""`python -m lmtraining_trainer`.

Trap avoided: PID 1 has no default action for SIGTERM, so a pod that is told to stop while it still
imports would not hear it and be killed only when its grace is over. The signal is held back until
the supervisor has a handler.
"""

import signal
import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["supervise"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    from lmtraining_trainer.cli import main

    main()
