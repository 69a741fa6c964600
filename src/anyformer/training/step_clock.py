"""Where the time of a training goes: data, communication and compute of each step, tokens per second, the share of the
device's peak (MFU), and memory.

    clock = StepClock(device, flops_per_token)
    stream = clock.time_data(recipe.batches(config, "train"))
    for ...:                            # steps, with `clock.communicate()` around collectives that the loop calls
        record |= clock.end_step(tokens)

Nothing here waits for a GPU: the loop does so once a step, when it reads the loss, and times between such moments are
right.
"""

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ..recipe import BatchStream
from .hardware import get_peak_flops

MAIN = ("data_seconds", "communication_seconds", "compute_seconds")


class StepClock:
    """Measures each step of a training in one process.

    Args:
        flops_per_token: forward and backward, as `estimate` counts them; None if it is not needed.
        peak: FLOP/s of the device in the training's dtype; None where it is not known: there is no MFU then.
        clock: returns seconds.
    """

    def __init__(
        self,
        device: torch.device,
        flops_per_token: float | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.device, self.clock = device, clock
        self.flops_per_token, self.peak = flops_per_token, peak or get_peak_flops(device)
        self.data = self.communication = 0.0
        self.started_at = clock()
        self.waits: list[tuple[Any, Any]] = []  # on a GPU: before and after waiting for gradients of other processes
        self.last_gradient: Any = None

    def time_data(self, stream: BatchStream) -> BatchStream:
        """Yield what a stream of batches yields; the time of drawing a batch counts as data."""
        while True:
            started_at = self.clock()
            try:
                item = next(stream)
            except StopIteration:
                return
            finally:
                self.data += self.clock() - started_at
            yield item

    @contextmanager
    def communicate(self) -> Generator[None]:
        """Count the block's time as communication."""
        started_at = self.clock()
        try:
            yield
        finally:
            self.communication += self.clock() - started_at

    def watch_gradients(self, model: nn.Module) -> None:
        """Note when the last gradient of a backward pass is there. What follows within the pass is communication that
        no computation hides: DistributedDataParallel waits for its buckets there. Sharded parameters (FSDP2) have no
        such moment: nothing is counted for them."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _: self._mark_gradient())

    def _mark_gradient(self) -> None:
        if self.device.type == "cuda":
            self.last_gradient = self.last_gradient or torch.cuda.Event(enable_timing=True)
            self.last_gradient.record()
        else:
            self.last_gradient = self.clock()

    def end_backward(self) -> None:
        """Count what a backward pass waited for after its last gradient; called right after `backward`."""
        if self.last_gradient is None:
            return
        if self.device.type == "cuda":
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self.waits.append((self.last_gradient, end))
        else:
            self.communication += self.clock() - self.last_gradient
        self.last_gradient = None

    def end_step(self, tokens: int) -> dict[str, float]:
        """Return the figures of the step that ends now, and start the next one.

        Returns:
            "data_seconds", "communication_seconds", "compute_seconds" (all the other time), "tokens_per_second" of this
            process, "mfu" where the peak is known, "memory_gb": of a GPU the most that was allocated in the step, else
            the most that the process has had.
        """
        now = self.clock()
        seconds = max(now - self.started_at, 1e-9)
        for start, end in self.waits:  # complete: the loop has read the loss since
            with suppress(RuntimeError, ValueError):
                self.communication += start.elapsed_time(end) / 1e3
        values = (self.data, self.communication, max(0.0, seconds - self.data - self.communication))
        figures = {name: round(value, 6) for name, value in zip(MAIN, values)}
        figures["tokens_per_second"] = round(tokens / seconds)
        if self.peak and self.flops_per_token:
            figures["mfu"] = round(self.flops_per_token * tokens / seconds / self.peak, 4)
        figures |= read_peak_memory(self.device)
        self.started_at, self.data, self.communication, self.waits = now, 0.0, 0.0, []
        return figures

    def restart(self) -> None:
        """Leave out the time since the last step: of a validation, a checkpoint, the caller."""
        self.started_at, self.data, self.communication, self.waits = self.clock(), 0.0, 0.0, []


def read_peak_memory(device: torch.device) -> dict[str, float]:
    """Return {"memory_gb"}, empty where it cannot be known. Of a GPU, the peak since the last call."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory_gb": round(peak / 1e9, 3)}
    with suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)}
    return {}


def summarize_ranks(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combine the figures of one step of all processes, by rank, for one record: the sum of the tokens per second, the
    mean MFU and times, the most memory; and which process kept the others waiting.

    Returns:
        The same names, and with several processes "slowest_rank" (it waited least for the others), "memory_rank".
    """
    combined = {name: sum(row[name] for row in figures) / len(figures) for name in figures[0]}
    combined["tokens_per_second"] *= len(figures)
    if "memory_gb" in combined:
        combined["memory_gb"] = max(row["memory_gb"] for row in figures)
    if len(figures) > 1:
        waits = [row["communication_seconds"] for row in figures]
        combined["slowest_rank"] = waits.index(min(waits))
        if "memory_gb" in combined:
            combined["memory_rank"] = [row["memory_gb"] for row in figures].index(combined["memory_gb"])
    return combined
