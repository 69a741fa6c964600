"""Errors for the person who made the mistake: one line with what was given, where, and what would be right.

The command line prints `InputError` without a traceback and exits with 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used. The message is one line and says what would be right."""


class TrainingError(RuntimeError):
    """Training cannot continue, although no input is known to be wrong. One line, with what to try."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop (Ctrl-C, SIGTERM), and everything is saved."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Point to the nearest valid name: "did you mean 'gpt2'? valid: gpt2, tiny"."""
    valid = list(valid)
    matches = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean '{matches[0]}'? " if matches else ""
    return f"{hint}valid: {', '.join(valid)}"
