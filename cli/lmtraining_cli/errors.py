"""What keeps a command from its answer, said in one sentence."""


class CliError(Exception):
    """A sentence with what is wrong and what to do; the command ends with exit code 1."""
