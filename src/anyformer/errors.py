"""What we say to a person who made a mistake: one line with what was given, where, and what would be right.

Every room may raise `InputError`; the command line prints it without a traceback and exits with 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used. The message is one line and names what would be right."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """A half-sentence that points to the nearest valid name: "did you mean 'gpt2'? valid: gpt2, tiny"."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


class TrainingError(RuntimeError):
    """Training cannot go on, through no mistake of input that we can name. One line, with what to try."""
