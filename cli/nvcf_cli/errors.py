"""Errors of the command line: one line for the user, and the exit code."""


class CliError(Exception):
    """Something went wrong that the text explains; exit code 1."""

    exit_code = 1


class UsageError(CliError):
    """The command was not used as it should be; exit code 2."""

    exit_code = 2
