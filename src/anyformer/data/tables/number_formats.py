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
    """Return the number that a cell holds. Raises InputError.

    Args:
        decimal: What separates the fraction; the other of "." and "," separates thousands.
    """
    number = read_number(value, decimal)
    if number is None:
        raise InputError(f"{str(value)[:40]!r} is not a number")
    return number


def read_number(value: Any, decimal: Decimal = ".") -> float | None:
    """Return the number that a cell holds, or None."""
    if not isinstance(value, str):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
        return None
    text = value.strip()
    if decimal == "." and "_" not in text:
        with suppress(ValueError):
            return float(text)
    is_negative = text.startswith("(") and text.endswith(")")
    match = PATTERNS[decimal].fullmatch(text[1:-1] if is_negative else text)
    if match is None or not (match["whole"] or match["fraction"]):
        return None
    whole = re.sub(r"\D", "", match["whole"] or "0")
    number = float(f"{whole}.{match['fraction'] or '0'}{match['exponent'] or ''}")
    return -number if is_negative or "-" in (sign := match["sign"] + match["inner"]) or "−" in sign else number


def is_code(text: str) -> bool:
    """Whether digits are a code and no number, such as 02139: they start with a zero."""
    return len(text) > 1 and text[0] == "0" and text.isdecimal()
