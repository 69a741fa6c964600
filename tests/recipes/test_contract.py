"""The contract of a recipe, tested on the tiny preset of every recipe in recipes/, a new one included."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from anyformer import api, recipe_loading
from anyformer import recipe as recipes
from anyformer.errors import InputError
from anyformer.model.config import TransformerConfig
from anyformer.model.kernels import cross_entropy
from anyformer.parsing import parse_dataclass, to_json
from anyformer.report.figures import draw_figure
from anyformer.training import checkpoints, gradients, loop
from anyformer.training.config import TrainConfig
from anyformer.training.estimate import estimate
from anyformer.training.evaluation import evaluate
from anyformer.training.run_directory import describe_run
from anyformer.training.updates import make_update
from cli_kit import call
from data_kit import SMALL_DATA

TRAIN = {"steps": 4, "batch": 4, "eval_every": 2, "eval_batches": 2, "device": "cpu", "dtype": "float32"}
LOSS_IN_CHUNKS = {
    "chat",
    "diffusion",
    "grpo",
    "language",
    "mask_predict",
    "masked",
    "preference",
    "recall",
    "spans",
    "speech",
}
LOSS_IN_CHUNKS |= {"music", "text2image", "translation", "tts"}
pytestmark = pytest.mark.parametrize("name", recipe_loading.list_recipes())
SHAPES = {"language", "translation", "vision", "multimodal", "rnnsearch"}
ALL = {*recipe_loading.list_recipes()}
QUICK = {
    "test_estimate_needs_no_training": SHAPES,
    "test_estimate_of_a_large_batch": set(),
    "test_compiled_equals_eager": {"language"},
    "test_command_line_trains_it": ALL
    - {"spans", "recall", "tts", "mask_predict", "forecast", "rnnsearch", "seq2seq", "masked"},
    "test_prediction_is_plain_and_repeats": ALL - {"recall"},
    "test_loaded_equals_saved": ALL - {"recall"},
}  # recipes of tests that are slow for all others: their code is mostly shared


def tiny(name: str, **train: Any) -> tuple[recipes.Recipe, Any]:
    """Return a recipe, and its tiny preset with a few small steps on the CPU."""
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    data = str(SMALL_DATA.get(name, config.data))
    return recipe, dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, **TRAIN | train))


def read_batches(name: str, split: str, state: recipes.StreamState | None = None, **train: Any) -> Iterator[Any]:
    recipe, config = tiny(name, **train)
    return recipe.batches(config, split, state)


def val_batches(name: str) -> Iterator[dict]:
    return (batch for batch, _ in islice(read_batches(name, "val"), 3))


def build(name: str, seed: int = 0) -> torch.nn.Module:
    recipe, config = tiny(name)
    torch.manual_seed(seed)
    return recipe.build(config)


def train(name: str) -> tuple[loop.TrainState, list[dict]]:
    recipe, config = tiny(name)
    state = loop.init_state(recipe, config)
    return state, list(loop.train(recipe, config, state))


train_once = cache(train)  # for tests that leave the model as it is


def with_one_layer(config: Any) -> Any:
    """One block in each stack, which takes half as long to trace."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    stacks = {key: value for key, value in fields.items() if isinstance(value, TransformerConfig)}
    return dataclasses.replace(config, **{key: dataclasses.replace(value, n_layer=1) for key, value in stacks.items()})


def complete(recipe: recipes.Recipe, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of which the loss can be computed: with the model's own answers, where it is trained on those."""
    return recipe.roll_out(model, [batch], 0)[0][0] if isinstance(recipe, recipes.SupportsRollouts) else batch


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- names, presets, the command line ---


def test_command_line_trains_it(name: str, tmp_path: Path):
    """Its fields do not clash with the flags that all recipes share (--steps)."""
    flags = ("--steps", 1, "--device", "cpu", "--train.batch", 64, "--train.eval-batches", 1)
    data = ("--data", SMALL_DATA[name]) if name in SMALL_DATA else ()
    flags = (*flags, *data, "--train.final-every", 100_000, "--out", tmp_path / "run")
    call("train", name, "--preset", "tiny", *flags).ok()


def test_docstring_and_presets(name: str):
    recipe, _ = tiny(name)
    assert isinstance(recipe, recipes.Recipe)
    summary = (recipe.__doc__ or "").splitlines()[0]
    assert summary.endswith(".") and len(summary) <= 120, "the first line is a summary"
    assert f"anyformer train {name}" in (recipe.__doc__ or ""), "the docstring contains the command"
    assert next(iter(recipe.PRESETS)) == "tiny"
    for preset, config in recipe.PRESETS.items():
        assert isinstance(config.train, TrainConfig), preset
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.train = None
        assert parse_dataclass(type(config), json.loads(json.dumps(to_json(config))), preset) == config
    with pytest.raises(InputError, match="unknown field 'trian': did you mean 'train'"):
        parse_dataclass(type(config), {"trian": {}}, "here")


def test_estimate_needs_no_training(name: str):
    recipe, config = tiny(name)
    config = with_one_layer(config)
    facts = estimate(recipe, config)
    model = recipe.build(config)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["flops_per_step"] > facts["parameters"] and facts["memory_bytes"]["activations"] > 0
    batch, _ = next(read_batches(name, "train"))
    assert {key: value["shape"] for key, value in facts["batch"].items()} == {
        key: list(value.shape) for key, value in batch.items()
    }


def test_estimate_of_a_large_batch(name: str):
    """A small batch is read, and scaled up."""
    facts, large = estimate(*tiny(name)), estimate(*tiny(name, batch=100_000))
    batch, _ = next(read_batches(name, "train"))
    rows = min(value["shape"][0] for value in large["batch"].values())
    assert rows >= 100_000 or rows < 256, "unless the data have no more rows"
    assert large["flops_per_step"] > 0.2 * rows * facts["flops_per_step"] / len(next(iter(batch.values())))


# --- batches ---


def test_training_stream_continues_from_its_state(name: str):
    stream = list(islice(read_batches(name, "train"), 5))
    state = json.loads(json.dumps(stream[1][1]))
    assert isinstance(state["tokens"], int) and isinstance(state["data"], str)
    for (batch, after), (resumed, after_resumed) in zip(stream[2:], read_batches(name, "train", state)):
        assert equal(batch, resumed) and json.loads(json.dumps(after)) == json.loads(json.dumps(after_resumed))
    assert not equal(stream[0][0], stream[1][0]), "the stream stands still"
    assert not equal(stream[0][0], next(read_batches(name, "train", seed=TrainConfig().seed + 1))[0])


def test_validation_ends_and_repeats(name: str):
    first, second = (list(islice(read_batches(name, "val"), 3)) for _ in range(2))
    assert first and all(equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert sum(1 for _ in read_batches(name, "val", batch=4096)) < 10_000


# --- model and training ---


def test_loss_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch):
    """Large logits over a vocabulary are never whole, in training and in evaluation (`model/kernels/cross_entropy`)."""
    recipe, config = tiny(name)
    config = dataclasses.replace(config, copy=False) if "copy" in vars(config) else config  # a copy has no chunks
    model, chunks, split = recipe.build(config).train(), [], cross_entropy.split
    batch = complete(recipe, model, next(recipe.batches(config, "train", None))[0])
    results = []
    for limit in (cross_entropy.MAX_CPU_LOGITS, 1 << 8):
        monkeypatch.setattr(cross_entropy, "MAX_CPU_LOGITS", limit)
        monkeypatch.setattr(cross_entropy, "split", lambda *args: chunks.append(args[1]) or split(*args))
        torch.manual_seed(0)
        loss = recipe.loss(model, batch)
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        results[-1].append(torch.tensor(evaluate(recipe, model, iter([batch]))["loss"]))
    for full, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, full, atol=1e-6 + 1e-5 * full.abs().max().item(), rtol=1e-4)
    assert (max(chunks, default=1) > 1) == (name in LOSS_IN_CHUNKS)


def test_seed_decides_the_model(name: str):
    assert equal(build(name).state_dict(), build(name).state_dict())
    assert not equal(build(name).state_dict(), build(name, seed=1).state_dict())


def test_loss_reaches_every_weight_and_falls(name: str):
    recipe, config = tiny(name)
    state = loop.init_state(recipe, config)
    batch, losses = complete(recipe, state.model, next(read_batches(name, "train"))[0]), []
    for _ in range(20):
        loss = recipe.loss(state.model, batch)
        assert loss.shape == ()
        loss.backward()
        if not losses:
            gradients = {key: p.grad for key, p in state.model.named_parameters() if p.requires_grad}
            assert {key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()} == set()
        state.optimizer.step(config.train.lr)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_training_repeats(name: str):
    (state, records), (state_again, records_again) = train_once(name), train(name)
    assert equal(state.model.state_dict(), state_again.model.state_dict()) and records == records_again
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(math.isfinite(record["loss"]) for record in records)
    assert {record["step"] for record in records if "val_loss" in record} == {2, 4}
    assert not equal(state.model.state_dict(), loop.init_state(*tiny(name)).model.state_dict()), "nothing was learned"


def without_dropout(config: Any) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = without_dropout(value)
        elif field.name == "dropout":
            changes[field.name] = 0.0
    return dataclasses.replace(config, **changes)


def test_accumulated_batches_equal_one_large_batch(name: str):
    """In loss and gradient, also if the micro-batches have different numbers of rows and labels."""
    recipe, config = tiny(name, batch=8)
    config = without_dropout(config)
    batch = complete(recipe, build(name), next(recipe.batches(config, "train"))[0])
    rows = max(len(value) for value in batch.values())

    def compute_gradient(*cuts: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        train = dataclasses.replace(config.train, accumulate=len(cuts) + 1)
        state = loop.init_state(recipe, dataclasses.replace(config, train=train))
        state.model.train()
        parts = [
            {key: value[start:end] for key, value in batch.items()} for start, end in zip((0, *cuts), (*cuts, rows))
        ]
        update = make_update(recipe, parts)
        loss, _ = gradients.compute_gradient(state, update, "float32")
        return loss, {key: p.grad for key, p in state.model.named_parameters() if p.grad is not None}

    loss, gradient = compute_gradient()
    for cuts in ((rows - 1,), (1, rows - 2)):
        accumulated_loss, accumulated = compute_gradient(*cuts)
        torch.testing.assert_close(accumulated_loss, loss, atol=1e-6, rtol=1e-6)
        for key, grad in gradient.items():
            torch.testing.assert_close(
                accumulated[key], grad, atol=2e-6, rtol=2e-5, msg=lambda text, key=key: key + text
            )


def test_compiled_equals_eager(name: str, monkeypatch: pytest.MonkeyPatch):
    """The same loss and gradients, and the compiled graph is really used."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()  # another recipe may have compiled the same code
    torch._dynamo.utils.counters.clear()
    recipe, config = tiny(name)
    config = with_one_layer(config)
    batch, _ = next(read_batches(name, "train"))
    if name in ("rnnsearch", "seq2seq"):  # their steps are unrolled
        batch |= {key: batch[key][:, :4] for key in ("target", "labels")}
    results = []
    for is_compiled in (False, True):
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=is_compiled))
        state = loop.init_state(recipe, config)
        state.model.train()
        torch.manual_seed(0)
        update = make_update(recipe, [batch])
        loss, _ = gradients.compute_gradient(state, update, "float32")
        results.append(
            {"loss": loss} | {key: p.grad for key, p in state.model.named_parameters() if p.grad is not None}
        )
    assert equal(*results) and torch._dynamo.utils.counters["stats"]["calls_captured"] > 0


# --- the trained model ---


def test_evaluation_repeats(name: str):
    recipe, _ = tiny(name)
    model = build(name).train()
    metrics = loop.evaluate(recipe, model, val_batches(name))
    assert math.isfinite(metrics["loss"]) and all(type(value) in (int, float) for value in metrics.values())
    assert loop.evaluate(recipe, model, val_batches(name)) == metrics and model.training


def test_prediction_is_plain_and_repeats(name: str):
    recipe, _ = tiny(name)
    model = build(name).eval()

    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("predict builds an autograd graph")

    with saved_tensors_hooks(fail, fail):
        answer = recipe.predict(model, {})
    assert json.loads(json.dumps(answer)) == answer and recipe.predict(model, {}) == answer
    with pytest.raises(InputError):
        recipe.predict(model, {"no such thing": 1})


def test_figures_can_be_drawn(name: str):
    recipe, config = tiny(name, batch=64)
    if isinstance(recipe, recipes.SupportsFigures):
        for figure in recipe.figures(build(name).eval(), config):
            assert draw_figure(json.loads(json.dumps(figure))) is not None, figure["title"]


def test_loaded_equals_saved(name: str, tmp_path: Path):
    recipe, config = tiny(name)
    state, _ = train_once(name)
    folder = checkpoints.save_checkpoint(tmp_path, state, describe_run(name, "tiny", config, ""))
    for file, text in getattr(state.model, "files", {}).items():
        assert (folder / file).read_text(encoding="utf-8") == text
    loaded = api.load(folder, "cpu")
    assert equal(state.model.state_dict(), loaded.module.state_dict())
    metrics = loop.evaluate(recipe, state.model, val_batches(name))
    assert loop.evaluate(recipe, loaded.module, val_batches(name)) == metrics
    assert loaded.predict({}) == recipe.predict(state.model.eval(), {})


def test_a_request_that_names_a_device_or_a_fifo_reads_nothing(name: str, tmp_path: Path):
    """Where inputs are texts, the path is one; /dev/zero had filled the memory of the machine."""
    os.mkfifo(tmp_path / "fifo")
    recipe, model = recipe_loading.load_recipe(name), build(name).eval()
    for path in ("/dev/zero", str(tmp_path / "fifo")):
        with contextlib.suppress(InputError):
            assert recipe.predict(model, {"input": path}), "a text as any other"
