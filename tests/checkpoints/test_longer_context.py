"""A run gets a longer context, or a window that slides over a stream: the weights stay, and decoding is exact."""

import json
from pathlib import Path

import pytest
import torch

import anyformer
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.trained_model import Model
from cli_kit import CommandResult, assert_refused, call, train

QUICK = {
    "test_a_run_with_a_longer_context_reads_it_at_once_as_it_does_step_by_step": {"ntk", "yarn"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

TEXT = "To be, or not to be:\nthat is the question\n" * 60
CONTEXT = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    llama = ("--model.position", "rotary", "--model.norm", "rmsnorm", "--model.activation", "swiglu")
    train(folder / "text.txt", folder / "run", "--model.context", CONTEXT, *llama)
    return folder / "run"


def change(run: Path, out: Path, *flags: object) -> Model:
    call("import", run, "--out", out, *flags).ok()
    return anyformer.load(out, "cpu")


def read_stepwise(model: Model, ids: list[int]) -> torch.Tensor:
    """The logits after each token, one at a time: (T, V)"""
    cache = new_cache(model.module, 1)
    first = prefill(model.module, [ids[:1]], cache)
    return torch.cat([first, *(step(model.module, torch.tensor([token]), cache) for token in ids[1:])])


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn", "llama3", None])
@torch.inference_mode()
def test_a_run_with_a_longer_context_reads_it_at_once_as_it_does_step_by_step(run: Path, tmp_path: Path, scaling):
    flags = () if scaling is None else ("--rope-scaling", scaling)
    model = change(run, tmp_path / "long", "--context", 4 * CONTEXT, *flags)
    old = anyformer.load(run, "cpu")
    assert model.config.model.context == 4 * CONTEXT and model.step == old.step
    weights = old.module.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.module.state_dict().items())
    ids = model.module.tokenizer.encode(TEXT)[: 4 * CONTEXT].tolist()
    logits = model.module(torch.tensor([ids]))[0]
    torch.testing.assert_close(read_stepwise(model, ids), logits, rtol=0, atol=1e-4)
    is_same = torch.allclose(old.module(torch.tensor([ids]))[0], logits, rtol=0, atol=1e-6)
    assert is_same == (scaling is None)


@torch.inference_mode()
def test_within_the_trained_context_dynamic_scaling_changes_nothing(run: Path, tmp_path: Path):
    model, old = (
        change(run, tmp_path / "long", "--context", 64, "--rope-scaling", "dynamic"),
        anyformer.load(run, "cpu"),
    )
    ids = torch.arange(64)[None] % 9
    assert torch.equal(model.module(ids[:, :CONTEXT]), old.module(ids[:, :CONTEXT]))
    assert not torch.allclose(model.module(ids), old.module(ids), atol=1e-6)


@torch.inference_mode()
def test_a_run_with_a_window_generates_without_reading_again(run: Path, tmp_path: Path):
    """From far past its context on, each token is the likeliest after all before it."""
    model = change(run, tmp_path / "stream", "--window", 8, "--sinks", 2)
    assert [edges.name for edges in model.module.edges] == ["causal & (window(8) | first(2))"] * 2
    sample = model.generate("To be", tokens=5 * CONTEXT, temperature=0)["samples"][0]
    ids = model.module.tokenizer.encode("To be").tolist() + sample["tokens"]
    likeliest = model.module(torch.tensor([ids]))[0].argmax(-1)
    assert likeliest[4:-1].tolist() == sample["tokens"]
    cache = new_cache(model.module, 1)
    model.module.hidden(torch.tensor([ids]), cache)
    assert cache.is_unbounded and {kv[0].shape[2] for kv in cache.layers if kv} == {10}


def test_the_new_run_is_evaluated_on_windows_of_its_context(run: Path, tmp_path: Path):
    change(run, tmp_path / "long", "--context", 64, "--rope-scaling", "yarn")
    assert call("eval", tmp_path / "long", "--json").ok().json["loss"] > 0
    stored = json.loads((tmp_path / "long" / "config.json").read_text())
    assert stored["config"]["model"]["rope_scaling"]["factor"] == 2.0
    assert f"anyformer import {run} --out" in stored["command"] and "--rope-scaling=yarn" in stored["command"]


def ask(run: Path, *flags: object) -> CommandResult:
    return call("import", run, "--out", run.with_name("refused"), *flags)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--context", 32), ("--context is 32", "above that of the training, 32")),
        (("--context", 0), ("--context is 0",)),
        (("--rope-scaling", "yarn"), ("--rope-scaling is yarn, but context is missing",)),
        (("--rope-scaling", "yran"), ("--rope-scaling", "did you mean", "yarn")),
        (("--sinks", 4), ("--sinks is 4, but window is missing",)),
        (("--window", 30, "--sinks", 2), ("--window and sinks are 32 together", "below the context, 32")),
        ((), ("is a run of anyformer already",)),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(run: Path, flags: tuple, parts: tuple):
    assert_refused(ask(run, *flags), *parts)
    assert not run.with_name("refused").exists()


def test_positions_that_end_with_the_context_are_not_lengthened(run: Path, tmp_path: Path):
    train(run.with_name("text.txt"), tmp_path / "learned", "--model.position", "learned", "--model.context", 32)
    assert_refused(ask(tmp_path / "learned", "--context", 64), "--context", "learned a vector for each position")
    train(run.with_name("text.txt"), tmp_path / "alibi", "--model.position", "alibi", "--model.context", 32)
    change(tmp_path / "alibi", tmp_path / "long", "--context", 64)
    refused = ask(tmp_path / "alibi", "--context", 64, "--rope-scaling", "yarn")
    assert_refused(refused, "--rope-scaling is for rotary positions", "alibi")
    change(run, tmp_path / "scaled", "--context", 64, "--rope-scaling", "yarn")
    refused = ask(tmp_path / "scaled", "--context", 128, "--rope-scaling", "yarn")
    assert_refused(refused, "--rope-scaling is for rotary positions", "scaled ones already")


@pytest.mark.parametrize("scaling", ["dynamic", "llama3"])
def test_a_model_with_scaled_positions_is_exported_with_them(scaling: str, run: Path, tmp_path: Path):
    change(run, tmp_path / "long", "--context", 64, "--rope-scaling", scaling)
    assert call("export", tmp_path / "long", "--to", "hf", tmp_path / "hf").code == 0
    long, again = anyformer.load(tmp_path / "long", "cpu"), anyformer.load(tmp_path / "hf", "cpu")
    for name in ("context", "rotary_base", "rope_scaling"):
        assert getattr(again.config.model, name) == getattr(long.config.model, name)
