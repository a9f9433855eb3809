"""Which of the processes that share the tests this one is, for what the machine has only once."""

import os


def process_number() -> int:
    """From 1; for addresses of a process's own, 127.<number>.x.y."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) + 1
