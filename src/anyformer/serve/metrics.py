"""Counters of a server, as text for Prometheus (exposition format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..memory import read_resident_memory

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
Labels = tuple[tuple[str, str], ...]


@dataclass
class Histogram:
    """How many values are at most each bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(SECONDS, value)] += 1
        self.total += value

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        cumulative = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            cumulative += count
            yield format_sample(f"{name}_bucket", (*labels, ("le", bound)), cumulative)
        yield format_sample(f"{name}_sum", labels, self.total)
        yield format_sample(f"{name}_count", labels, cumulative)


@dataclass
class Metrics:
    """What a server has done since its start. Labels are names of routes and models, never what a client sends."""

    requests: Counter[Labels] = field(default_factory=Counter)
    tokens: Counter[Labels] = field(default_factory=Counter)
    seconds: dict[Labels, Histogram] = field(default_factory=dict)
    first_seconds: dict[Labels, Histogram] = field(default_factory=dict)

    def add_request(self, route: str, model: str, status: int, seconds: float, first_seconds: float | None) -> None:
        labels = (("route", route), ("model", model))
        self.requests[(*labels, ("status", str(status)))] += 1
        self.seconds.setdefault(labels, Histogram()).add(seconds)
        if first_seconds is not None:
            self.first_seconds.setdefault(labels, Histogram()).add(first_seconds)

    def add_tokens(self, model: str, prompt: int, completion: int) -> None:
        for kind, count in (("prompt", prompt), ("completion", completion)):
            self.tokens[(("model", model), ("kind", kind))] += count

    def format(self, others: dict[str, dict[Labels, float]]) -> str:
        """Return all metrics as text; `others` are values of this moment, by name and labels: counters whose names end
        with _total, and gauges."""
        lines = [*format_family("anyformer_requests_total", "counter", self.requests.items())]
        lines += format_family("anyformer_tokens_total", "counter", self.tokens.items())
        for name, histograms in (("request", self.seconds), ("first_token", self.first_seconds)):
            lines.append(f"# TYPE anyformer_{name}_seconds histogram")
            for labels, histogram in histograms.items():
                lines += histogram.lines(f"anyformer_{name}_seconds", labels)
        others = others | {"process_resident_memory_bytes": {(): read_resident_memory()}}
        for name, values in others.items():
            lines += format_family(name, "counter" if name.endswith("_total") else "gauge", values.items())
        return "\n".join([*lines, ""])


def format_family(name: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield format_sample(name, labels, value)


def format_sample(name: str, labels: Labels, value: float) -> str:
    escaped = (f'{key}="{text.translate(ESCAPES)}"' for key, text in labels)
    return f"{name}{{{','.join(escaped)}}} {value:.10g}" if labels else f"{name} {value:.10g}"


ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
