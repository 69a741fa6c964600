"""What happened during a run: metrics read as a stream and thinned to what a picture can show.

A log may hold 600,000 lines or end in half a line; it is never in memory as a whole, and nothing in it is trusted to be
there.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

SPLITS = ("val_", "valid_", "validation_", "eval_", "test_", "train_")


@dataclass
class Curve:
    """One metric over the steps in bounded memory: buckets that double their width whenever there are too many.

    Each bucket keeps its mean (for the smoothed line) and its lowest and highest point (so that a spike of one step
    stays visible among 600,000). A step that was seen before replaces what came after it: a run that was killed
    and resumed from an older checkpoint writes those steps twice.
    """

    most: int = 750
    width: int = 1
    buckets: list[list[float]] = field(default_factory=list)  # [count, sum x, sum y, x of low, low, x of high, high]
    last: tuple[float, float] = (-math.inf, math.nan)
    broken: list[float] = field(default_factory=list)  # the first steps at which the value was not finite

    def add(self, x: float, y: float) -> None:
        if not math.isfinite(y):
            self.broken += [x] if len(self.broken) < 3 else []
            return
        if x <= self.last[0]:
            self.buckets = [b for b in self.buckets if max(b[3], b[5]) < x]
        if self.buckets and self.buckets[-1][0] < self.width:
            bucket = self.buckets[-1]
            bucket[0], bucket[1], bucket[2] = bucket[0] + 1, bucket[1] + x, bucket[2] + y
            if y < bucket[4]:
                bucket[3:5] = x, y
            if y > bucket[6]:
                bucket[5:7] = x, y
        else:
            self.buckets.append([1, x, y, x, y, x, y])
            if len(self.buckets) > self.most:
                self._halve()
        self.last = (x, y)

    def _halve(self) -> None:
        pairs = [self.buckets[i : i + 2] for i in range(0, len(self.buckets), 2)]
        self.buckets, self.width = [_join(*pair) for pair in pairs], self.width * 2

    def lowest(self) -> tuple[float, float]:
        """(step, value) of the smallest value."""
        return min(((b[3], b[4]) for b in self.buckets), key=lambda point: point[1])

    def points(self) -> tuple[list[float], list[float]]:
        """At most two points a bucket, its lowest and its highest, in the order in which they happened."""
        chosen = [p for b in self.buckets for p in sorted({(b[3], b[4]), (b[5], b[6])})]
        return [x for x, _ in chosen], [y for _, y in chosen]

    def smooth(self) -> tuple[list[float], list[float]]:
        """The bucket means, averaged over a centred window of 3 %; at the start the window is as wide as fits."""
        n, half = len(self.buckets), max(2, len(self.buckets) // 66)
        xs, ys = [], []
        for i, bucket in enumerate(self.buckets):
            near = self.buckets[i - min(i, half) : i + min(i, half) + 1]
            xs.append(bucket[1] / bucket[0])
            ys.append(sum(b[2] for b in near) / sum(b[0] for b in near))
        return (xs, ys) if n else ([], [])

    def is_noisy(self) -> bool:
        """Whether the line goes up and down so much that a smoothed one helps: its travel is many times its range."""
        ys = self.points()[1]
        ranked = sorted(ys)[len(ys) // 20 : -(len(ys) // 20) or None]  # the range without a rare spike
        return len(ys) > 60 and sum(abs(b - a) for a, b in pairwise(ys)) > 8 * (ranked[-1] - ranked[0])


def _join(a: list[float], b: list[float] | None = None) -> list[float]:
    if b is None:
        return a
    low, high = (a if a[4] <= b[4] else b), (a if a[6] >= b[6] else b)
    return [a[0] + b[0], a[1] + b[1], a[2] + b[2], *low[3:5], *high[5:7]]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a `.jsonl` file, one at a time; lines that are not whole are skipped, no file is no lines."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a kill can leave half a line, and a resumed run writes on behind it
            if isinstance(record, dict):
                yield record


def read_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """metric -> its thinned curve, for every key that holds numbers. Records without a step are counted instead."""
    curves: dict[str, Curve] = {}
    for index, record in enumerate(records):
        step = record.get("step")
        step = step if is_number(step) else index
        for key, value in record.items():
            if is_number(value):
                if key not in curves:
                    curves[key] = Curve()
                curves[key].add(step, value)
    return {key: curve for key, curve in curves.items() if curve.buckets or curve.broken}


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def stem(key: str) -> str:
    """The metric without its split: val_loss -> loss."""
    return next((key.removeprefix(split) for split in SPLITS if key.startswith(split)), key)


def is_validation(key: str) -> bool:
    """Whether a metric was measured on data that were not trained on."""
    return key.startswith(SPLITS) and not key.startswith("train_")


def families(keys: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong on one chart: those that end alike. {"loss": ["loss", "val_loss", "policy_loss"], ...}"""
    keys = list(keys)
    stems = sorted({stem(key) for key in keys}, key=len)
    found: dict[str, list[str]] = {}
    for key in keys:
        name = stem(key)
        home = next((base for base in stems if name == base or name.endswith(f"_{base}")), name)
        found.setdefault(home, []).append(key)
    return found


def elapsed(curve: Curve) -> float:
    """Seconds that a run took, from its "seconds": a clock, which begins again after a resume, or each step's own."""
    means = [b[2] / b[0] for b in curve.buckets]
    rises = sum(b > a for a, b in pairwise(means))
    if rises < 0.9 * (len(means) - 1) or len(means) < 3:
        return sum(b[2] for b in curve.buckets)
    ends = [a for a, b in pairwise(curve.buckets) if b[2] / b[0] < a[2] / a[0]] + curve.buckets[-1:]
    return sum(b[6] for b in ends)
