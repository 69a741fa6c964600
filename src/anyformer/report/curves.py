"""Metrics of a run, read as a stream and thinned to what a chart can show.

A log may hold 600,000 lines and may end in the middle of one. It is never held in memory as a whole, and malformed
lines are skipped.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

SPLITS = ("val_", "valid_", "validation_", "eval_", "test_", "train_")


@dataclass
class Curve:
    """A metric over the steps in bounded memory: buckets, whose width is doubled when there are too many.

    Each bucket keeps its mean, for the smoothed line, and its lowest and highest point, so that a spike of a single
    step stays visible. A step that is added again replaces all later ones: a run that was killed and resumed from an
    older checkpoint logs those steps twice.
    """

    max_buckets: int = 750
    width: int = 1
    buckets: list[list[float]] = field(default_factory=list)  # [count, sum x, sum y, x of low, low, x of high, high]
    last: tuple[float, float] = (-math.inf, math.nan)
    nonfinite_steps: list[float] = field(default_factory=list)  # the first three

    def add(self, x: float, y: float) -> None:
        if not math.isfinite(y):
            self.nonfinite_steps += [x] if len(self.nonfinite_steps) < 3 else []
            return
        if x <= self.last[0]:
            self.buckets = [b for b in self.buckets if max(b[3], b[5]) < x]
        bucket = [1, x, y, x, y, x, y]
        if self.buckets and self.buckets[-1][0] < self.width:
            self.buckets[-1] = _merge_buckets(self.buckets[-1], bucket)
        else:
            self.buckets.append(bucket)
        if len(self.buckets) > self.max_buckets:
            pairs = [self.buckets[i : i + 2] for i in range(0, len(self.buckets), 2)]
            self.buckets, self.width = [reduce(_merge_buckets, pair) for pair in pairs], self.width * 2
        self.last = (x, y)

    def lowest(self) -> tuple[float, float]:
        """Return the (step, value) of the smallest value."""
        return min(((b[3], b[4]) for b in self.buckets), key=lambda point: point[1])

    def points(self) -> tuple[list[float], list[float]]:
        """Return the lowest and the highest point of each bucket, in the order of the steps."""
        chosen = [p for b in self.buckets for p in sorted({(b[3], b[4]), (b[5], b[6])})]
        return [x for x, _ in chosen], [y for _, y in chosen]

    def smooth(self) -> tuple[list[float], list[float]]:
        """Return the bucket means, averaged over a centered window of 3 %, which is narrower at both ends."""
        half, xs, ys = max(2, len(self.buckets) // 66), [], []
        for i, bucket in enumerate(self.buckets):
            window = self.buckets[i - min(i, half) : i + min(i, half) + 1]
            xs.append(bucket[1] / bucket[0])
            ys.append(sum(b[2] for b in window) / sum(b[0] for b in window))
        return xs, ys

    def is_noisy(self) -> bool:
        """Whether the line needs smoothing: its total variation is many times its range."""
        ys = self.points()[1]
        ranked = sorted(ys)[len(ys) // 20 : -(len(ys) // 20) or None]  # the range without a rare spike
        return len(ys) > 60 and sum(abs(b - a) for a, b in pairwise(ys)) > 8 * (ranked[-1] - ranked[0])


def _merge_buckets(a: list[float], b: list[float]) -> list[float]:
    low, high = (a if a[4] <= b[4] else b), (a if a[6] >= b[6] else b)
    return [a[0] + b[0], a[1] + b[1], a[2] + b[2], *low[3:5], *high[5:7]]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a `.jsonl` file; malformed lines are skipped, a missing file has none."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a killed process leaves half a line, and a resumed run appends to it
            if isinstance(record, dict):
                yield record


def read_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the curve of each metric. A record without a step has its index as step.

    Counts of a validation split (integers: rows, cells of a confusion matrix) are no metrics.
    """
    curves: defaultdict[str, Curve] = defaultdict(Curve)
    for index, record in enumerate(records):
        step = record.get("step")
        for key, value in record.items():
            if is_number(value) and not (is_validation(key) and isinstance(value, int)):
                curves[key].add(step if is_number(step) else index, value)
    return dict(curves)


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > sys.float_info.max


def strip_split(key: str) -> str:
    """Return the metric without its split: val_loss -> loss."""
    return next((key.removeprefix(split) for split in SPLITS if key.startswith(split)), key)


def is_validation(key: str) -> bool:
    """Whether a metric was measured on held-out data."""
    return key.startswith(SPLITS) and not key.startswith("train_")


def is_lower_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one: losses and errors."""
    return metric.endswith(("loss", "rmse", "mae", "mase", "wer", "cer", "error", "perplexity", "bits_per_byte"))


def group_metrics(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group metrics that share a chart, those with the same ending: {"loss": ["loss", "val_loss", "policy_loss"]}."""
    keys = list(keys)
    bases = sorted({strip_split(key) for key in keys}, key=len)
    groups: dict[str, list[str]] = {}
    for key in keys:
        group = next(base for base in bases if f"_{strip_split(key)}".endswith(f"_{base}"))
        groups.setdefault(group, []).append(key)
    return groups


def total_seconds(curve: Curve) -> float:
    """Return the seconds that a run took, from the curve of "seconds": a clock, which restarts when a run is resumed,
    or the duration of each step."""
    means = [b[2] / b[0] for b in curve.buckets]
    rises = sum(b > a for a, b in pairwise(means))
    if rises < 0.9 * (len(means) - 1) or len(means) < 3:
        return sum(b[2] for b in curve.buckets)
    ends = [a for a, b in pairwise(curve.buckets) if b[2] / b[0] < a[2] / a[0]] + curve.buckets[-1:]
    return sum(b[6] for b in ends)
