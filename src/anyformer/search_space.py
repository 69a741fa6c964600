"""What a sweep tries for the fields of a config (`recipe.SupportsSearch`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIGITS = 3  # of a number that is tried


@dataclass(frozen=True)
class SearchRange:
    """Numbers above 0 between two bounds, evenly on a logarithmic scale. Raises ValueError for bounds without sense."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a range from {self.low} to {self.high}: it must be above 0, and its end above its start")

    def pick(self, share: float) -> float:
        """Return the number at a share of the range, from 0 to 1."""
        value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class SearchChoice:
    """A few values, each as likely."""

    values: tuple[Any, ...]

    def pick(self, share: float) -> Any:
        """Return the value at a share of the list, from 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


SearchSpace = Mapping[str, SearchRange | SearchChoice]
"""By the dotted name of a config field; several names with commas between have one value in common."""
