"""Rows that cannot be used, or repeat another one: they are counted, and left out or refused as the user wishes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from ..errors import InputError
from ..events import report_notice

EmptyPolicy = Literal["few", "skip", "error"]
"""What becomes of empty rows: few: left out where they are at most 1 %, else an error."""
LengthPolicy = Literal["few", "cut", "skip", "error"]
"""What becomes of rows that exceed the context: the same, or they are cut."""
DuplicatePolicy = Literal["keep", "skip"]
"""What becomes of rows that repeat another one."""
T = TypeVar("T")
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


def select_distinct(
    rows: Sequence[T], key: Callable[[T], Any], policy: DuplicatePolicy, what: str, noun: str = "rows"
) -> list[T]:
    """Say how many rows have the key of another one, and return all of them, or the first of each key.

    Args:
        what: the data, and `noun` its rows, for the message; "" for none.
    """
    distinct = {key(row): row for row in reversed(rows)}
    report_duplicates(len(rows) - len(distinct), len(rows), policy, what, noun)
    return list(reversed(distinct.values())) if policy == "skip" else list(rows)


def report_duplicates(n: int, total: int, policy: DuplicatePolicy, what: str, noun: str) -> None:
    if n and what:
        verdict = "left out" if policy == "skip" else "kept (--duplicates skip leaves them out)"
        report_notice(f"{what}: {n:,} of {total:,} {noun} repeat another one: {verdict}")
