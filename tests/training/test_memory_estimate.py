"""The memory that a dry run says is what a training takes, within 10 %; for each of several processes less."""

import gc
import typing
from dataclasses import replace
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from anyformer.errors import InputError
from anyformer.labs.benchmark import make_random_recipe
from anyformer.recipes import language
from anyformer.training import loop
from anyformer.training.estimate import estimate, format_estimate


def configure(padded_vocab: int = 256, dropout: float = 0.0, **train: Any) -> Any:
    tiny = language.PRESETS["tiny"]
    model = replace(tiny.model, dim=64, context=64, dropout=dropout)
    settings = {"steps": 3, "eval_every": 100, "batch": 16, "device": "cpu", "dtype": "float32"} | train
    text = {"data": "", "tokenizer": "ids", "padded_vocab": padded_vocab}
    return replace(tiny, **text, model=model, train=replace(tiny.train, **settings))


def measure(config: Any) -> int:
    """Return the largest total of bytes that torch's allocator hands out in two updates."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for record in loop.train(make_random_recipe(), config):
            if record["step"] == 2:
                break
    events = typing.cast(Any, profiler.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, two batches": {"dropout": 0.1, "accumulate": 2},
    "bfloat16": {"dtype": "bfloat16"},
    "muon": {"optimizer": "muon"},
    "checkpointed": {"activation_checkpointing": True},
    "states in bfloat16": {"optimizer_dtype": "bfloat16", "activation_checkpointing": True},
    "logits in chunks": {"padded_vocab": 4096},
}


@pytest.mark.parametrize(
    "case", [case if case == "plain" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_estimate_is_what_a_training_takes(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.model.kernels.cross_entropy.MAX_CPU_LOGITS", 1 << 20)
    config = configure(**CASES[case])
    estimated = estimate(make_random_recipe(), config)["memory_bytes"]
    assert estimated["total"] == sum(size for part, size in estimated.items() if part != "total")
    assert estimated["total"] == pytest.approx(measure(config), rel=0.1)


def total(processes: int = 1, **settings: Any) -> int:
    return estimate(make_random_recipe(), configure(**settings), processes)["memory_bytes"]["total"]


@pytest.mark.slow
def test_settings_that_save_memory():
    assert total(activation_checkpointing=True) < 0.8 * total()
    few_rows = {"batch": 1, "dropout": 0.1}
    assert total(**few_rows, optimizer_dtype="bfloat16") < total(**few_rows)


@pytest.mark.slow
def test_a_part_for_each_process():
    config = configure(accumulate=8)
    for processes, per_process in ((4, 2), (8, 1)):
        alone = estimate(make_random_recipe(), replace(config, train=replace(config.train, accumulate=per_process)))
        facts = estimate(make_random_recipe(), config, processes)
        expected = alone["memory_bytes"] | {"communication": 4 * facts["parameters"]}  # the buckets of DDP
        assert {**facts["memory_bytes"], "total": 0} == {**expected, "total": 0}
        assert f"in each of {processes} processes" in format_estimate("language", facts)


def test_a_shared_copy_needs_less():
    """Half of what is shared, and the weights that are gathered: those outside of blocks, and three blocks."""
    copies, shared = (
        estimate(make_random_recipe(), configure(accumulate=4, shard=shard), 2)["memory_bytes"] for shard in (1, 2)
    )
    assert shared["weights"] == copies["weights"] / 2 and shared["optimizer"] == copies["optimizer"] / 2
    assert shared["activations"] == copies["activations"] and shared["gradients"] < copies["gradients"]
    assert copies["communication"] == copies["weights"] > 0 and shared["communication"] > 0
    for settings, message in (({"shard": 2}, "--train.shard 2 does not divide"), ({}, "--train.accumulate 1")):
        with pytest.raises(InputError, match=message):
            estimate(make_random_recipe(), configure(**settings), 3)


def test_the_table_names_every_part():
    facts = estimate(make_random_recipe(), configure(activation_checkpointing=True))
    lines = format_estimate("language", facts).splitlines()
    for part, size in facts["memory_bytes"].items():
        if size and part != "total":
            assert any(line.split() == [part, f"{size / 1e6:,.1f}", "MB"] for line in lines)
