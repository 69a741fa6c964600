"""Errors for the person who made the mistake: one line with what was given, where, and what would be right.

The command line prints `InputError` without a traceback and exits with 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used. The message is one line and says what would be right."""

    def __init__(self, message: str = ""):
        super().__init__(" ".join(message.splitlines()))  # a name that it repeats may hold line breaks


class TrainingError(RuntimeError):
    """Training cannot continue, although no input is known to be wrong. One line, with what to try."""


class HangError(TrainingError):
    """Another process of this training does not answer."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop (Ctrl-C, SIGTERM), and everything is saved."""


MAX_NAMES = 30  # in a message
OTHER_NAMES = {  # of other libraries, that no spelling distance would find
    "learning_rate": "lr",
    "batch_size": "batch",
    "epochs": "steps",
    "max_steps": "steps",
    "iterations": "steps",
    "hidden_size": "dim",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "block_size": "context",
    "max_length": "context",
}


def suggest(name: str, valid: Iterable[str]) -> str:
    """Point to the nearest valid name: "did you mean 'gpt2'? valid: gpt2, tiny"."""
    valid = list(valid)
    matches = difflib.get_close_matches(OTHER_NAMES.get(name.replace("-", "_"), name), valid, n=1)
    hint = f"did you mean '{matches[0]}'? " if matches else ""
    hidden = f" and {len(valid) - MAX_NAMES} more" if len(valid) > MAX_NAMES else ""
    return f"{hint}valid: {', '.join(valid[:MAX_NAMES])}{hidden}"
