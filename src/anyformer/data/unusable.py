"""Rows that cannot be used: a few are left out and counted, many are an error, as the user wishes."""

from collections.abc import Sequence
from typing import Literal

from ..errors import InputError
from ..events import report_notice

EmptyPolicy = Literal["few", "skip", "error"]
"""What becomes of empty rows: few: left out where they are at most 1 %, else an error."""
LengthPolicy = Literal["few", "cut", "skip", "error"]
"""What becomes of rows that exceed the context: the same, or they are cut."""
MAX_SHARE = 0.01  # of the rows, that is few


def is_refused(n: int, total: int, policy: str) -> bool:
    """Whether a policy refuses data of which n rows cannot be used."""
    return n > 0 and (policy == "error" or (policy == "few" and n > MAX_SHARE * total))


def check_unusable(n: int, total: int, policy: str, flag: str, problem: str, hint: str) -> None:
    """Raise InputError where the policy refuses the data; else say what becomes of the n rows.

    Args:
        problem: what the rows have in common, and where the first is: "texts are empty (the first: a.csv, line 3)".
        hint: what the person can do.
    """
    count = f"{n:,} of {total:,} {problem}"
    if is_refused(n, total, policy):
        raise InputError(f"{count}: {hint}")
    if n:
        report_notice(f"{count}: {'cut' if policy == 'cut' else 'left out'} ({flag} error refuses them)")


def check_empty(places: Sequence[str], total: int, policy: EmptyPolicy, what: str) -> None:
    """Check rows without a value, "texts are empty", at these places; see `check_unusable`."""
    if places:
        problem = f"{what} (the first: {places[0]})"
        check_unusable(len(places), total, policy, "--empty", problem, "fill them in, or leave them out: --empty skip")
