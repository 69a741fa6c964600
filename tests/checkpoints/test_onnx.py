"""ONNX: another runtime says what the model says, for any batch and any length."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import recipe as recipes
from anyformer.checkpoints import onnx as ours
from anyformer.errors import InputError
from checkpoint_kit import saved, shaken, transformers
from cli_kit import call, refused, train

onnxruntime = pytest.importorskip("onnxruntime", reason="the oracle of these tests: pip install onnxruntime")


def small(config: Any) -> Any:
    """The same kind of model in a size that is written in a second."""
    sizes = {"dim": 32, "n_layer": 2, "n_head": 4, "context": 48, "head_dim": None, "mlp_dim": 64}
    sizes |= {"n_kv_head": 2 if config.model.n_kv_head else None}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes), tokenizer="ids", vocab_size=61)


def built(name: str, preset: str) -> tuple[Any, Any]:
    config = recipes.load(name).PRESETS[preset]
    config = small(config) if (name, preset) != ("language", "tiny") and name == "language" else config
    torch.manual_seed(0)
    return config, shaken(recipes.load(name).build(config), 0)


def written(name: str, preset: str, folder: Path) -> tuple[Any, Any, Any]:
    """What the recipe says of its graph, the model, and the graph in the other runtime."""
    config, model = built(name, preset)
    ours.write(folder, name, recipes.to_json(config), model)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return recipes.load(name).graph(model), model, session


def agree(graph: Any, session: Any, inputs: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        want = graph.call(*inputs.values())
    read = {one.name for one in session.get_inputs()}
    found = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in read})
    for one, other in zip(want if isinstance(want, tuple) else (want,), found, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.numpy() - other).max() <= max(1e-5 * float(one.abs().max()), 1e-6)


# Two go word by word, which is no graph for any length, and one looks up in tables that are no tensors' business.
LOOPS = ["recall", "rnnsearch", "seq2seq"]
CASES = [(name, "tiny") for name in recipes.names() if name not in LOOPS]
CASES += [("language", preset) for preset in ("vaswani", "lamda", "bloom", "llama", "local", "gpt2")]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_another_runtime_says_the_same_at_other_sizes(name: str, preset: str, tmp_path: Path):
    graph, model, session = written(name, preset, tmp_path / "out")
    open_axes = {axis for one in graph.inputs.values() for axis in one.axes.split() if not axis.isdigit()}
    sizes = [{"batch": 1}, {"batch": 5}]
    lengths = sorted(open_axes - {"batch"})
    sizes += [dict.fromkeys(lengths, 2) | {"batch": 2}, {axis: graph.longest[axis] for axis in lengths} | {"batch": 1}]
    sizes += [dict.fromkeys(lengths, 1) | {"batch": 1}]
    for seed, size in enumerate(sizes):
        agree(graph, session, ours.example(graph, size, seed))
    assert [one.name for one in session.get_outputs()] == list(graph.outputs)
    described = json.loads(session.get_modelmeta().custom_metadata_map["anyformer"])
    assert described == {"recipe": name, "longest": dict(graph.longest)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", *getattr(model, "files", {})}


def test_every_recipe_lets_its_model_out_or_says_that_it_cannot(tmp_path: Path):
    assert [name for name in recipes.names() if not hasattr(recipes.load(name), "graph")] == LOOPS
    with pytest.raises(InputError, match="the recipe 'seq2seq' does not say what its graph reads"):
        written("seq2seq", "tiny", tmp_path / "out")


def test_a_public_checkpoint_goes_on_to_onnx(tmp_path: Path):
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, vocab_size=53)
    theirs = shaken(transformers.GPT2LMHeadModel(config), 0)
    call("export", saved(theirs, tmp_path / "gpt2"), "--to", "onnx", tmp_path / "out").well()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    ids = torch.randint(53, (3, 19))
    with torch.no_grad():
        want = theirs(ids).logits.numpy()
    (found,) = session.run(None, {"ids": ids.numpy()})
    assert np.abs(want - found).max() <= 1e-5 * np.abs(want).max()


def test_the_command_says_what_it_wrote_and_nothing_else(tmp_path: Path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    train(tmp_path / "text.txt", tmp_path / "run")
    said = call("export", tmp_path / "run", "--to", "onnx", tmp_path / "out", "--json").well()
    assert said.json["files"] == ["model.onnx", "tokenizer.json"]
    assert said.err == ""
    refused(call("export", tmp_path / "run", "--to", "onnx", tmp_path / "out"), "out is there already and not empty")


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    config, model = built("language", "vaswani")
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'anyformer\[onnx\]'"):
        ours.write(tmp_path / "out", "language", recipes.to_json(config), model)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The check runs the model again: one that has changed in between stands for an exporter's mistake."""
    config, model = built("language", "vaswani")
    check = ours.check

    def changed(path: Path, graph: recipes.Graph) -> None:
        with torch.no_grad():
            model.nodes.token.weight.mul_(2)
        check(path, graph)

    monkeypatch.setattr(ours, "check", changed)
    with pytest.raises(InputError, match="the graph's logits is not the model's"):
        ours.write(tmp_path / "out", "language", recipes.to_json(config), model)
    assert not (tmp_path / "out").exists()
