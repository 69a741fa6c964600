"""Numbers as people write them: 1,234.5 or 1.234,5, 45 %, $ 12, (3.20) for -3.2, < 0.5.

Percent signs, currencies and bounds are dropped: "45 %" is 45 and "< 0.5" is 0.5.
"""

import re
from contextlib import suppress
from typing import Any, Literal

from ...errors import InputError

Decimal = Literal[".", ","]
DECIMALS: tuple[Decimal, ...] = (".", ",")
UNIT = r"(?:[$€£¥₹%‰]|US\$|R\$|USD|EUR|GBP|CHF|kr\.?|Rs\.?|zł)"
SEPARATORS = r"'’ \u00a0\u202f"  # of thousands, beside the comma or the point


def _compile_pattern(separator: str, point: str) -> re.Pattern[str]:
    thousands = rf"[1-9]\d{{0,2}}(?:[{separator}{SEPARATORS}]\d{{2,3}})*[{separator}{SEPARATORS}]\d{{3}}"
    digits = rf"(?P<whole>{thousands}|\d+)?(?:{point}(?P<fraction>\d*))?(?P<exponent>[eE][+-]?\d+)?"
    return re.compile(rf"(?:[<>≤≥~≈]=?\s*)?(?P<sign>[-+−]?)\s*(?:{UNIT}\s*)?(?P<inner>[-−]?){digits}\s*{UNIT}?")


PATTERNS = {".": _compile_pattern(",", r"\."), ",": _compile_pattern(r"\.", ",")}


def parse_number(value: Any, decimal: Decimal = ".") -> float:
    """Return the number that a cell holds; see `read_number`. Raises InputError."""
    number = read_number(value, decimal)
    if number is None:
        raise InputError(f"{str(value)[:40]!r} is not a number")
    return number


def read_number(value: Any, decimal: Decimal = ".") -> float | None:
    """Return the number that a cell holds, or None.

    Args:
        decimal: What separates the fraction; the other of "." and "," separates thousands. Where a text is no number
            that way, it is read the other way.
    """
    if isinstance(value, str):
        other: Decimal = "," if decimal == "." else "."
        number = read_text(value.strip(), decimal)
        return read_text(value.strip(), other) if number is None else number
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)
    return None


def read_text(text: str, decimal: Decimal) -> float | None:
    """Return the number in a text without space around it, with this decimal separator only, or None."""
    if decimal == "." and "_" not in text:
        with suppress(ValueError):
            return float(text)
    is_negative = text.startswith("(") and text.endswith(")")
    match = PATTERNS[decimal].fullmatch(text[1:-1] if is_negative else text)
    if match is None or not (match["whole"] or match["fraction"]):
        return None
    digits = re.sub(r"\D", "", match["whole"] or "0")
    number = float(f"{digits}.{match['fraction'] or '0'}{match['exponent'] or ''}")
    return -number if is_negative or set("-−") & set(match["sign"] + match["inner"]) else number


def is_code(text: str) -> bool:
    """Whether digits are a code and no number, such as 02139: they start with a zero."""
    return len(text) > 1 and text[0] == "0" and text.isdecimal()
