"""The clock of a step: its parts add up to the whole, in a training and by rank."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from anyformer.recipes import language
from anyformer.training import hardware, loop, step_clock
from anyformer.training.estimate import estimate
from anyformer.training.step_clock import StepClock, summarize_ranks
from anyformer.training.trackers import select_numbers

CPU = torch.device("cpu")


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_data_communication_and_compute_add_up():
    hand = Hand()

    def draw() -> Any:
        for i in range(3):
            hand.now += 0.25
            yield {}, {"step": i}

    clock = StepClock(CPU, flops_per_token=10.0, peak=1000.0, clock=hand)
    stream = clock.time_data(draw())
    for _ in range(2):
        next(stream)
        hand.now += 1.0  # compute
        with clock.communicate():
            hand.now += 0.5
        figures = clock.end_step(tokens=70)
        assert figures.pop("memory_gb") > 0.01
        expected = {"data_seconds": 0.25, "communication_seconds": 0.5, "compute_seconds": 1.0}
        assert figures == expected | {"tokens_per_second": 40, "mfu": 0.4}
    hand.now += 7  # a validation
    clock.restart()
    assert len(list(stream)) == 1
    assert clock.end_step(0)["data_seconds"] == 0.25 and clock.data == 0


def test_waiting_after_the_last_gradient_is_communication():
    """DistributedDataParallel waits in a callback at the end of the backward pass, as here."""
    hand, model = Hand(), nn.Linear(2, 2)
    clock = StepClock(CPU, clock=hand)
    clock.watch_gradients(model)

    def wait(gradient: torch.Tensor) -> None:
        hand.now += 1.0  # compute, before the gradients are there
        torch.autograd.Variable._execution_engine.queue_callback(lambda: setattr(hand, "now", hand.now + 0.5))

    y = model(torch.ones(1, 2, requires_grad=True))
    y.register_hook(wait)
    y.sum().backward()
    clock.end_backward()
    figures = clock.end_step(0)
    assert (figures["compute_seconds"], figures["communication_seconds"]) == (1.0, 0.5)
    clock.end_backward()  # no gradient since
    assert clock.end_step(0)["communication_seconds"] == 0 and "mfu" not in figures


def test_on_a_gpu_waits_are_measured_by_events(monkeypatch: pytest.MonkeyPatch):
    def make_event(enable_timing: bool) -> Any:
        assert enable_timing
        return SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 250.0)  # milliseconds

    for name, value in {"Event": make_event, "get_device_name": lambda _: "NVIDIA H100 80GB HBM3"}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    hand, model = Hand(), nn.Linear(2, 2)
    clock = StepClock(torch.device("cuda:0"), flops_per_token=989e9, clock=hand)
    clock.watch_gradients(model)
    model(torch.ones(1, 2)).sum().backward()
    clock.end_backward()
    hand.now += 1.0
    figures = clock.end_step(500)
    expected = {"data_seconds": 0.0, "communication_seconds": 0.25, "compute_seconds": 0.75}
    assert figures == expected | {"tokens_per_second": 500, "mfu": 0.5, "memory_gb": 3.0}


def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch):
    for name, tflops in {
        "NVIDIA H100 PCIe": 756,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L40S": 362,
        "NVIDIA L4": 121,
        "NVIDIA A10G": 70,
        "Tesla T4": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert hardware.get_peak_flops(torch.device("cuda")) == (tflops and tflops * 1e12), name
    assert hardware.get_peak_flops(CPU) is None


def test_a_training_is_timed(text: Path):
    """Through the recipe's batches and the records of the loop, in one process."""
    tiny = language.PRESETS["tiny"]
    train = replace(tiny.train, steps=5, eval_every=5, device="cpu", dtype="float32")
    config = replace(tiny, data=str(text), train=train)
    facts = estimate(language, config)
    clock = StepClock(CPU, facts["flops_per_step"] / facts["tokens_per_step"], peak=1e12)

    def batches(*arguments: Any) -> Any:
        return clock.time_data(language.batches(*arguments))

    tokens, rows = 0, []
    clock.restart()
    for record in loop.train(SimpleNamespace(**{**vars(language), "batches": batches}), config):
        rows.append(record | clock.end_step(record["tokens"] - tokens))
        tokens = record["tokens"]
    assert len(rows) == 5
    for row in rows[:-1]:
        assert min(row["data_seconds"], row["compute_seconds"]) > 0 == row["communication_seconds"]
        assert 0 < row["mfu"] < 1 and row["tokens_per_second"] > 0
        assert {*step_clock.MAIN, "tokens_per_second", "mfu", "memory_gb"} <= select_numbers(row).keys()


def test_figures_of_all_ranks_name_the_slowest():
    rows = [
        {"data_seconds": 0.0, "communication_seconds": 0.4, "tokens_per_second": 10, "memory_gb": 2.0},
        {"data_seconds": 0.3, "communication_seconds": 0.1, "tokens_per_second": 10, "memory_gb": 3.0},
    ]
    expected = {"data_seconds": 0.15, "communication_seconds": 0.25, "tokens_per_second": 20, "memory_gb": 3.0}
    assert summarize_ranks(rows) == pytest.approx(expected | {"slowest_rank": 1, "memory_rank": 1})
    assert summarize_ranks(rows[:1]) == rows[0]


def train_in_parallel(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    clock = StepClock(CPU)
    clock.watch_gradients(model)
    parallel, rows = nn.parallel.DistributedDataParallel(model), []
    for step in range(4):
        clock.restart()
        if step == 3 and rank == 1:
            time.sleep(0.5)  # its data are late, and the other waits
        parallel(torch.randn(8, 256)).sum().backward()
        clock.end_backward()
        rows.append(clock.end_step(8))
    figures: list[Any] = [None, None]
    dist.all_gather_object(figures, rows[-1])
    Path(folder, f"{rank}.json").write_text(json.dumps(summarize_ranks(figures) | {"own": rows[-1]}))
    dist.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_processes_wait_for_the_slowest(tmp_path: Path):
    torch.multiprocessing.spawn(train_in_parallel, (str(tmp_path),), nprocs=2)
    rows = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert rows[0]["own"]["communication_seconds"] > 0.4 > rows[1]["own"]["communication_seconds"] > 0
    assert rows[0]["slowest_rank"] == rows[1]["slowest_rank"] == 1
