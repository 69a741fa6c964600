"""Batches that a thread prepares: the same ones, in order, with their errors and their end, and no thread left."""

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyformer.errors import InputError
from anyformer.events import listen, report_progress
from anyformer.recipes import language
from anyformer.training import loop, prefetch
from anyformer.training.prefetch import run_ahead


def count_up(n: int, drawn: list[int] | None = None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for i in range(n):
        if drawn is not None:
            drawn.append(i)
        yield {"ids": torch.tensor([i])}, {"step": i + 1}


def list_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def double(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: 2 * value for name, value in batch.items()}


def test_batches_come_in_order_with_their_states_and_end():
    pairs = [(batch["ids"].item(), state["step"]) for batch, state in run_ahead(count_up(20), double)]
    assert pairs == [(2 * i, i + 1) for i in range(20)]
    assert list_threads() == []


def test_a_few_batches_are_prepared_and_the_thread_ends_with_its_reader():
    drawn: list[int] = []
    stream = run_ahead(count_up(1000, drawn), double, ahead=3)
    for _ in range(5):
        next(stream)
    assert 5 <= len(drawn) <= 5 + 3 + 1
    stream.close()
    assert list_threads() == [] and len(drawn) <= 10


def test_errors_are_raised_where_their_batch_is_due():
    def break_down() -> Iterator[Any]:
        yield from count_up(2)
        raise InputError("a shard is missing")

    stream = run_ahead(break_down(), double)
    assert [next(stream)[1]["step"] for _ in range(2)] == [1, 2]
    with pytest.raises(InputError, match="a shard is missing"):
        next(stream)
    assert list_threads() == []


def test_progress_in_the_thread_reaches_the_listener():
    def report() -> Iterator[Any]:
        report_progress("tokenizing", 1, 2)
        yield from count_up(1)

    tasks: list[str] = []
    with listen(lambda task, done, total: tasks.append(task)):
        list(run_ahead(report(), double))
    assert tasks == ["tokenizing"]


def test_a_cpu_keeps_its_stream_and_a_gpu_gets_pinned_batches(monkeypatch: pytest.MonkeyPatch):
    stream, devices = count_up(3), []
    assert prefetch.prefetch(stream, torch.device("cpu")) is stream
    monkeypatch.setattr(prefetch, "pin_batch", double)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    batches = list(prefetch.prefetch(stream, torch.device("cuda:0")))
    assert [batch["ids"].item() for batch, _ in batches] == [0, 2, 4] and devices == [torch.device("cuda:0")]


def test_training_gives_the_same_weights_and_the_state_of_the_last_batch_that_was_used(text: Path):
    tiny = language.PRESETS["tiny"]
    settings = {"steps": 6, "eval_every": 3, "accumulate": 2, "device": "cpu", "dtype": "float32"}
    config = replace(tiny, data=str(text), train=replace(tiny.train, **settings))

    def batches_ahead(config: Any, split: str, state: Any = None) -> Any:
        stream = language.batches(config, split, state)
        return run_ahead(stream, dict) if split == "train" else stream

    ahead = SimpleNamespace(**{**vars(language), "batches": batches_ahead})
    states = []
    for recipe in (language, ahead):
        state = loop.init_state(recipe, config)
        updates = loop.train(recipe, config, state)
        records = list(itertools.islice(updates, 4))
        updates.close()
        states.append((records, state.stream_state, [p.detach() for p in state.model.parameters()]))
    (records, place, weights), (records_ahead, place_ahead, weights_ahead) = states
    assert records == records_ahead and place == place_ahead
    assert all(map(torch.equal, weights, weights_ahead))
