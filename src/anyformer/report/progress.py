"""The progress of a training: a bar on a terminal, a line every few seconds elsewhere. Written to stderr, never stdout.

with Progress(2000, "language on plays") as progress:
    for record in train(recipe, config):
        progress.update(record)   # step   250/2000 · loss 2.104 · val 2.087 · 61k tok/s · 0:42 left
"""

import importlib.util
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

BAR_SECONDS = 0.2  # between two updates of the bar
LINE_SECONDS = 5.0  # between two plain lines
MIN_BAR = 12  # columns of the bar
LOSS_DECAY = 0.95  # of the moving average of the loss


class Progress:
    """Shows the progress of a training on stderr or `stream`. `update` takes microseconds: it draws only when due.

    With `total_steps` None the end is a time and not a step, and no time left is shown. `title` is printed first.
    """

    def __init__(
        self, total_steps: int | None, title: str = "", enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self.total, self.title, self.enabled = total_steps, title, enabled
        self.stream = stream or sys.stderr
        self.bar: rich_progress.Progress | None = None
        self.loss = math.nan
        self.record: dict[str, Any] = {}  # the latest value of every key
        self.start: tuple[int, float] | None = None  # (step, time) of the first record
        self.due = 0.0  # when to draw next
        self.drawn_step: int | None = None

    def __enter__(self) -> "Progress":
        if self.title:
            self.note(self.title)
        if self.enabled and (self.stream.isatty() or has_live_output()):
            self.bar = rich_progress.Progress(
                rich_progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
                rich_progress.TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True)),
                console=Console(file=self.stream),
                expand=True,
                auto_refresh=False,  # drawn when a record comes, without a thread
                redirect_stdout=False,  # rich would move other output from stdout to its console
                redirect_stderr=False,
            )
            self.task = self.bar.add_task("", total=self.total, line="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.record and self.drawn_step != self.record.get("step"):
            self._show()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def update(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training: step, loss, val_*, tokens_per_second."""
        if not self.enabled:
            return
        now = time.monotonic()
        self.record.update(record)
        if (loss := record.get("loss")) is not None:
            # a loss that is not finite is shown as it is, and restarts the average
            is_averaged = math.isfinite(self.loss) and math.isfinite(loss)
            self.loss = LOSS_DECAY * self.loss + (1 - LOSS_DECAY) * loss if is_averaged else loss
        if self.start is None:
            self.start = (self.record.get("step", 0), now)
        is_validated = self.bar is None and any(key.startswith("val_") for key in record)
        if is_validated or now >= self.due:
            self._show()
            self.due = now + (BAR_SECONDS if self.bar else LINE_SECONDS)

    def note(self, text: str) -> None:
        """Print lines above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        elif self.enabled:
            print(text, file=self.stream, flush=True)

    def _show(self) -> None:
        self.drawn_step = self.record.get("step")
        if self.bar is not None:
            total, completed = self.total, self.drawn_step or 0
            if "seconds_left" in self.record:
                completed = self.record["seconds"]
                total = completed + max(0.0, self.record["seconds_left"])
            self.bar.update(
                self.task, total=total, completed=completed, line=self.line(self.bar.console.width - MIN_BAR)
            )
            self.bar.refresh()
        else:
            print(self.line(), file=self.stream, flush=True)

    def line(self, width: int | None = None) -> str:
        """Return the state in one line: step, loss (moving average), validation metrics, speed, time left.

        "val" is the loss over a few validation batches; the result of a training is over the whole split. Where `width`
        is too small for all of it, metrics other than that loss are left out, the last one first.
        """
        step = self.record.get("step", 0)
        parts = [f"step {step:>{len(str(self.total))}}/{self.total}" if self.total else f"step {step}"]
        if not math.isnan(self.loss) or "loss" in self.record:
            parts.append(f"loss {self.loss:.3f}")
        if isinstance(val_loss := self.record.get("val_loss"), float):
            parts.append(f"val {val_loss:.3f}")
        others = [
            f"{key} {value:.3f}"
            for key, value in self.record.items()
            if key.startswith("val_") and key != "val_loss" and isinstance(value, float)  # integers are counts
        ]
        ends = self._speed_and_time(step)
        while width and others and len(" · ".join([*parts, *others, *ends])) > width:
            others.pop()
        return " · ".join([*parts, *others, *ends])

    def _speed_and_time(self, step: int) -> list[str]:
        parts = []
        if speed := self.record.get("tokens_per_second"):
            parts.append(f"{format_speed(speed)} tok/s")
        if (left := self.record.get("seconds_left")) is not None:  # training ends at a time
            parts.append(f"{format_clock(max(0.0, left))} left")
        elif self.start and self.total and self.start[0] < step < self.total:
            # all steps take as long as those so far, evaluations included
            seconds = (time.monotonic() - self.start[1]) / (step - self.start[0]) * (self.total - step)
            parts.append(f"{format_clock(seconds)} left")
        return parts


def has_live_output() -> bool:
    """Return whether this is Jupyter with ipywidgets, where rich draws a bar in the output of the cell."""
    return "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None


def format_speed(value: float) -> str:
    """Format a speed in two or three digits: 812, 6.1k, 61k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.{1 if value < 9.95 * size else 0}f}{unit}"
    return f"{value:.0f}"


def format_clock(seconds: float) -> str:
    """Format a time: 0:42 · 3:07 · 1:03:07."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"
