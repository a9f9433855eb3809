"""The one exception a person is meant to read.

Promise: its text says what was wrong, where, and what to do; the command line prints it without
a traceback. Anything else that escapes is a defect of this package.
"""


class DevclusterError(Exception):
    """What was wrong, where, and the fix, in one message."""
