"""The training loop: updates, schedules, number formats, what it measures and when it refuses to go on."""

import math
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.errors import InputError, TrainingError
from anyformer.recipes import language
from anyformer.training import device, gradients, loop
from anyformer.training.config import TrainConfig
from anyformer.training.optimizers import Optimizer, get_lr
from anyformer.training.updates import make_update


def configure(text: Path, **train: Any) -> language.Config:
    tiny = language.PRESETS["tiny"]
    settings = {"steps": 6, "eval_every": 3, "device": "cpu", "dtype": "float32"} | train
    return replace(tiny, data=str(text), train=replace(tiny.train, **settings))


# --- updates ---


def test_accumulation_is_a_larger_batch(text: Path, monkeypatch: pytest.MonkeyPatch):
    """Two parts with different numbers of labels move the weights as the entire batch does."""
    config = configure(text, batch=8, steps=1)
    batch, _ = next(language.batches(config, "train"))
    batch["labels"][5:, 3:] = -100
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 5), slice(5, 8))]
    weights = []
    for stream in ([batch], parts):
        monkeypatch.setattr(language, "batches", lambda *_, stream=stream: ((part, {}) for part in stream * 3))
        settings = replace(config, train=replace(config.train, accumulate=len(stream), eval_batches=1))
        state = loop.init_state(language, settings)
        records = list(loop.train(language, settings, state))
        weights.append([records[0]["loss"], state.model.body.blocks[0].mlp.up.weight])
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)


def test_a_part_without_labels_is_left_out(text: Path):
    """Its mean loss is 0 / 0."""
    config = configure(text, accumulate=2)
    state = loop.init_state(language, config)
    batches = [batch for batch, _ in islice(language.batches(config, "train"), 2)]
    batches[1]["labels"][:] = -100
    update = make_update(language, batches)
    loss, _ = gradients.compute_gradient(state, update, "float32")
    assert loss.item() == pytest.approx(language.loss(state.model, batches[0]).item())
    assert all(p.grad.isfinite().all() for p in state.model.parameters())


def test_one_transfer_from_the_device_per_step(text: Path, monkeypatch: pytest.MonkeyPatch):
    transfers: list[str] = []

    class CountTransfers(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                transfers.append("item")
            return func(*args, **(kwargs or {}))

    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append("tolist") or tolist(self))
    config = configure(text, eval_every=100)
    state = loop.init_state(language, config)
    with CountTransfers():
        list(islice(loop.train(language, config, state), 3))
    assert transfers == ["tolist"] * 3


def test_a_step_on_a_cpu_prepares_no_accelerator(text: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.manual_seed formats a traceback for each kind of device that may come: more time than some models need."""
    monkeypatch.setattr(traceback, "format_stack", lambda *_: pytest.fail("a traceback is formatted"))
    config = configure(text, steps=2, eval_every=2)
    config = replace(config, model=replace(config.model, dropout=0.5))
    losses = []
    for seed in (1, 1, 2):
        torch.rand(3)  # what else was drawn does not matter
        config = replace(config, train=replace(config.train, seed=seed))
        losses.append([record["loss"] for record in loop.train(language, config)])
    assert losses[0] == losses[1] != losses[2]


def test_each_parameter_has_one_optimizer_and_only_matrices_decay(text: Path):
    config = configure(text, optimizer="muon")
    model = language.build(config)
    optimizers = Optimizer(model, config.train).optimizers
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    assert {tuple(p.shape) for p in optimizers[1].param_groups[0]["params"]} == {(32, 32), (128, 32), (32, 128)}


def test_schedules():
    cosine = TrainConfig(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [get_lr(step, cosine) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    trapezoid = replace(cosine, schedule="trapezoid", min_lr=0.0)
    assert get_lr(60, trapezoid) == 1 and get_lr(82, trapezoid) == pytest.approx(0.5)


def test_compile_reaches_the_loop(text: Path, monkeypatch: pytest.MonkeyPatch):
    """test_contract.py compares values; here the flag is followed to torch.compile."""
    monkeypatch.setattr(torch, "compile", lambda function: lambda *arguments: 2 * function(*arguments))
    plain, compiled = (next(loop.train(language, configure(text, compile=flag)))["loss"] for flag in (False, True))
    assert compiled == pytest.approx(2 * plain)


@pytest.mark.slow
def test_a_machine_that_cannot_compile(text: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(graph: Any, inputs: Any) -> None:
        raise RuntimeError("no working C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    message = r"^--compile fails on this machine: leave it out \(.*no working C\+\+ comp.*\)$"
    with pytest.raises(InputError, match=message):
        next(loop.train(language, configure(text, compile=True)))


# --- what is not finite ---


def test_a_loss_that_is_not_finite_stops_the_training(text: Path, monkeypatch: pytest.MonkeyPatch):
    loss, config = language.loss, configure(text)
    monkeypatch.setattr(
        language, "loss", lambda model, batch: loss(model, batch) * (math.nan if state.step == 2 else 1)
    )
    state = loop.init_state(language, config)
    records: Iterator[dict] = loop.train(language, config, state)
    next(records), next(records)
    weights = [p.clone() for p in state.model.parameters()]
    with pytest.raises(TrainingError, match=r"the loss is nan .* step 3 with learning rate .*: try --train.lr"):
        next(records)
    assert all(torch.equal(a, b) for a, b in zip(weights, state.model.parameters())), "the weights have changed"


@pytest.mark.slow
def test_float16_skips_updates_that_overflow(text: Path):
    """Each time the loss scale is halved, until gradients fit; then it learns."""
    config = configure(text, dtype="float16", steps=60, lr=1e-2, eval_every=100)
    state = loop.init_state(language, config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scale, losses = state.scaler.get_scale(), []
    weight = state.model.nodes.token.weight
    before = weight.clone()
    for record in loop.train(language, config, state):
        losses.append(record["loss"])
        if record.get("skipped_update"):
            scale /= 2
            assert record["grad_norm"] is None and record["loss_scale"] == scale
        assert torch.equal(weight, before) == ("skipped_update" in record)
        before = weight.clone()
    assert 1 < state.scaler.get_scale() < 2.0**24, "no gradient overflowed"
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.3


def test_float16_gives_up_without_a_scale_to_reduce(text: Path, monkeypatch: pytest.MonkeyPatch):
    """A gradient that overflows although the loss is not scaled any more is a failure of the training."""
    config = configure(text, dtype="float16")
    state = loop.init_state(language, config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="gradient's norm inf at step 1"):
        next(loop.train(language, config, state))


# --- devices ---


def test_auto_dtype(monkeypatch: pytest.MonkeyPatch):
    for has_bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert device.resolve_dtype("auto", torch.device("cuda")) == dtype
    assert device.resolve_dtype("auto", torch.device("mps")) == torch.float16
    for has_bfloat16, dtype in ((True, torch.bfloat16), (None, torch.float32)):
        monkeypatch.setattr(device, "has_native_bfloat16", lambda has=has_bfloat16: has)
        assert device.resolve_dtype("auto", torch.device("cpu")) == dtype


def test_a_device_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^--device cuda is not available on this machine; it has: auto, cpu$"):
        device.resolve_device("cuda")
    assert device.resolve_device("auto") == torch.device("cpu")
