"""The live view of a training: a bar on a terminal, a line now and then anywhere else. Only ever on stderr.

with Progress(2000, "language on plays") as progress:
    for record in train(recipe, config):
        progress.update(record)   # step   250/2000 · loss 2.104 · val 2.087 · 61k tok/s · 0:42 left
"""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

FRAME = 0.2  # seconds between two pictures of the bar: smooth for the eye, nothing for the training
PAUSE = 5.0  # seconds between two plain lines
MEMORY = 0.95  # of the shown loss, this much is the past


class Progress:
    """Shows where a training is. `update` costs microseconds: it only draws when something is due.

    `total_steps` may be None when the end is a time, not a step; then there is neither a total nor a time left. With
    `enabled=False` nothing is ever written. `stream` is stderr unless told otherwise, never stdout.
    """

    def __init__(
        self, total_steps: int | None, title: str = "", enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self.total, self.title, self.enabled = total_steps, title, enabled
        self.stream = sys.stderr if stream is None else stream
        self.bar: rich_progress.Progress | None = None
        self.loss = math.nan
        self.record: dict[str, Any] = {}  # the latest value of every key
        self.first: tuple[int, float] | None = None  # (step, time) of the first record, which the time left counts from
        self.due = 0.0
        self.shown: int | None = None  # the step that was last drawn

    def __enter__(self) -> "Progress":
        if self.title:
            self.note(self.title)
        if self.enabled and self.stream.isatty():
            self.bar = rich_progress.Progress(
                rich_progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
                rich_progress.TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True)),
                console=Console(file=self.stream),
                expand=True,
                auto_refresh=False,  # a picture when a record comes; no thread beside the training
                redirect_stdout=False,  # rich would send what others print on stdout to its own console
                redirect_stderr=False,
            )
            self.task = self.bar.add_task("", total=self.total, line="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.record and self.shown != self.record.get("step"):
            self._show()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def update(self, record: Mapping[str, Any]) -> None:
        """Take a record of the training: step, loss, perhaps val_* and tokens_per_second."""
        if not self.enabled:
            return
        now = time.monotonic()
        self.record.update(record)
        loss = record.get("loss")
        if loss is not None:
            # a loss that is not finite is shown as it is, and one that comes after it starts afresh
            known = math.isfinite(self.loss) and math.isfinite(loss)
            self.loss = MEMORY * self.loss + (1 - MEMORY) * loss if known else loss
        if self.first is None:
            self.first = (self.record.get("step", 0), now)
        measured = self.bar is None and any(key.startswith("val_") for key in record)
        if measured or now >= self.due:
            self._show()
            self.due = now + (FRAME if self.bar else PAUSE)

    def note(self, text: str) -> None:
        """Print lines above the bar, for example a sample or where a checkpoint went."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def _show(self) -> None:
        self.shown = self.record.get("step")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.shown or 0, line=self.line())
            self.bar.refresh()
        else:
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """The training in one line: step, loss (smoothed), what was measured on validation data, speed, time left."""
        step = self.record.get("step", 0)
        parts = [f"step {step:>{len(str(self.total))}}/{self.total}" if self.total else f"step {step}"]
        if not math.isnan(self.loss) or "loss" in self.record:
            parts.append(f"loss {self.loss:.3f}")
        for key, value in self.record.items():
            if key.startswith("val_") and value is not None:
                parts.append(f"{'val' if key == 'val_loss' else key} {value:.3f}")
        speed = self.record.get("tokens_per_second")
        parts += [f"{short(speed)} tok/s"] if speed else []
        left = self._left(step)
        parts += [f"{clock(left)} left"] if left is not None else []
        return " · ".join(parts)

    def _left(self, step: int) -> float | None:
        """Seconds to go, were every step to take as long as those so far (evaluations and all)."""
        if self.first is None or self.total is None or step <= self.first[0] or step >= self.total:
            return None
        return (time.monotonic() - self.first[1]) / (step - self.first[0]) * (self.total - step)


def short(value: float) -> str:
    """A speed in two or three digits: 812, 6.1k, 61k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.{1 if value < 9.95 * size else 0}f}{unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """0:42 · 3:07 · 1:03:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
