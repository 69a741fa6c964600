"""ONNX: onnxruntime returns what the model returns, for any batch size and any length."""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import recipe as recipes
from anyformer import recipe_loading
from anyformer.checkpoints import onnx
from anyformer.errors import InputError
from anyformer.model.config import TransformerConfig
from anyformer.parsing import to_json
from checkpoint_kit import build_reference, randomize, save, transformers
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA

QUICK = {
    "test_a_traced_graph_holds_at_other_sizes_and_has_operators_of_onnx": set(),
    "test_outputs_are_the_same_at_other_sizes": set(),
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


onnxruntime = pytest.importorskip("onnxruntime", reason="the oracle of these tests: pip install onnxruntime")
# Two generate token by token, which is no graph for any length, and one looks up n-grams outside of tensors.
WITHOUT_GRAPH = ["generalist", "mask_predict", "recall", "rnnsearch", "seq2seq"]
SAME_GRAPH = {"spans": "translation"} | dict.fromkeys(("chat", "grpo", "music", "preference"), "language")
CASES = [
    (name, "tiny") for name in recipe_loading.list_recipes() if name not in ("language", *WITHOUT_GRAPH, *SAME_GRAPH)
]
# Presets with other positions and edges, and in addition what the preset llama has and the activation that none has.
LANGUAGE: dict[str, dict[str, Any]] = {
    "lamda": {},
    "bloom": {"activation": "relu2"},
    "local": {"activation": "swiglu", "n_kv_head": 2, "n_layer": 2},
}
CASES += [("language", preset) for preset in LANGUAGE]
# These are written in every run of the tests: one stack and two, sound, patches, nothing but a window. The exporter
# takes seconds for each; the others are traced, which is a third of the work, and written by the slow tests.
WRITTEN = [("language", "bloom"), ("mlp", "tiny"), ("vision", "tiny")]
UNPROVEN = ("speech", "tiny")  # torch.export alone cannot prove a guard on its frames; the exporter traces it otherwise
WITHOUT_TRANSLATION = {"aten._assert_tensor_metadata.default"}  # the exporter drops it
Inputs = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def cache_registry() -> Any:
    """Build torch's table of operators once for all exports: it takes a quarter of the time of each."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:  # another version of torch: the tests are slower
        yield
        return
    from_torchlib = staticmethod(functools.cache(_registration.ONNXRegistry.from_torchlib))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", from_torchlib)
        yield


def build(name: str, preset: str) -> tuple[Any, Any, Any]:
    """Build a model of a preset with one layer in each stack (two if some are local); the exporter is slow."""
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS[preset]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    sizes: dict[str, Any] = {"n_layer": 1}
    if preset in LANGUAGE:
        sizes |= {"dim": 32, "n_head": 4, "context": 48, "head_dim": None, "mlp_dim": 64} | LANGUAGE[preset]
        config = dataclasses.replace(config, tokenizer="ids", vocab_size=61, global_every=2, tied=preset != "local")
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    stacks = {key: value for key, value in fields.items() if isinstance(value, TransformerConfig)}
    config = dataclasses.replace(config, **{key: dataclasses.replace(value, **sizes) for key, value in stacks.items()})
    torch.manual_seed(0)
    return recipe, config, randomize(recipe.build(config))


def write(name: str, preset: str, folder: Path) -> tuple[Any, Any, Any]:
    """Write a model; return its graph, the model and the session of the written file."""
    recipe, config, model = build(name, preset)
    onnx.write(folder, recipe, to_json(config), model)
    return recipe.export_graph(model), model, open_session(folder)


def open_session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def run(session: Any, inputs: Inputs) -> list[np.ndarray]:
    used = {x.name for x in session.get_inputs()}
    return session.run(None, {name: value.numpy() for name, value in inputs.items() if name in used})


def assert_same_outputs(graph: Any, session: Any, inputs: Inputs) -> None:
    with torch.inference_mode():
        expected = graph.call(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(expected, run(session, inputs), strict=True):
        assert a.shape == b.shape
        assert np.abs(a.numpy() - b).max() <= max(1e-5 * float(a.abs().max()), 1e-6)


@pytest.mark.parametrize("preset", LANGUAGE)
def test_a_graph_with_keys_and_values_continues_what_it_has_read(preset: str):
    recipe, config, model = build("language", preset)
    graph, ids = (
        recipe.export_cached_graph(model),
        torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0)),
    )
    shape = 2, config.model.kv_heads, 0, config.model.head_channels
    past, parts = [torch.zeros(shape)] * (len(graph.inputs) - 1), []
    with torch.inference_mode():
        for part in ids.split([9, 1, 30], dim=1):
            logits, *past = graph.call(part, *past)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-4, atol=1e-5)
    assert all(tensor.shape[2] == 40 for tensor in past) and len(graph.outputs) == 1 + len(past)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["local", "bloom"])
def test_a_graph_with_keys_and_values_generates_token_by_token(preset: str, tmp_path: Path):
    recipe, config, model = build("language", preset)
    onnx.write(tmp_path / "out", recipe, to_json(config), model, cached=True)
    session, ids, expected = open_session(tmp_path / "out"), [7, 1, 30], [7, 1, 30]
    shape = 2, config.model.kv_heads, 0, config.model.head_channels
    past = {x.name: np.zeros(shape, np.float32) for x in session.get_inputs() if x.name != "ids"}
    new = ids
    for _ in range(20):
        logits, *present = session.run(None, {"ids": np.array([new] * 2), **past})
        past = dict(zip(past, present, strict=True))
        new = [int(logits[1, -1].argmax())]
        ids = ids + new
        with torch.inference_mode():
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert ids == expected


def test_a_model_without_keys_and_values_says_so(tmp_path: Path):
    recipe, config, model = build("masked", "tiny")
    with pytest.raises(InputError, match="the recipe 'masked' has no such graph: cached is for models of text"):
        onnx.write(tmp_path / "out", recipe, to_json(config), model, cached=True)


def other_sizes(graph: Any) -> list[dict[str, int]]:
    """More rows than were traced, the longest inputs, and the shortest."""
    axes = {axis for graph_input in graph.inputs.values() for axis in onnx.find_open_axes(graph_input).values()}
    lengths = sorted(axes - {"batch"})
    longest = {axis: graph.max_lengths[axis] for axis in lengths}
    return [{"batch": 5}, longest | {"batch": 1}, dict.fromkeys(lengths, 1) | {"batch": 1}]


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(*case, marks=[] if case[0] in ("language", "diffusion", "vision") else pytest.mark.slow)
        for case in CASES
        if case not in (*WRITTEN, UNPROVEN)
    ],
)
def test_a_traced_graph_holds_at_other_sizes_and_has_operators_of_onnx(name: str, preset: str):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    recipe, _, model = build(name, preset)
    graph = recipe.export_graph(model)
    example = tuple(onnx.make_example_inputs(graph, onnx.TRACED_SIZES, seed=0).values())
    with torch.no_grad(), onnx.silence():
        shapes, registry = onnx.find_dynamic_shapes(graph), ONNXRegistry.from_torchlib()
        program = torch.export.export(onnx.GraphModule(graph, model), example, dynamic_shapes=shapes, strict=False)
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    decomposed = torch.export.default_decompositions()
    others = {op for op in operators if not registry.is_registered(op) and op not in decomposed}
    assert {str(op) for op in others if not op._can_decompose()} <= WITHOUT_TRANSLATION
    traced = program.module(check_guards=False)  # ONNX has none
    for seed, size in enumerate(other_sizes(graph)):
        inputs = onnx.make_example_inputs(graph, size, seed).values()
        with torch.inference_mode():
            torch.testing.assert_close(traced(*inputs), graph.call(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "preset"),
    [pytest.param(*case, marks=[] if case in WRITTEN else pytest.mark.slow) for case in CASES],
)
def test_outputs_are_the_same_at_other_sizes(name: str, preset: str, tmp_path: Path):
    graph, model, session = write(name, preset, tmp_path / "out")
    for seed, size in enumerate(other_sizes(graph)):
        assert_same_outputs(graph, session, onnx.make_example_inputs(graph, size, seed))
    assert [output.name for output in session.get_outputs()] == list(graph.outputs)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["anyformer"])
    assert metadata == {"recipe": name, "longest": dict(graph.max_lengths)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", *getattr(model, "files", {})}


def test_recipes_without_a_graph_say_so(tmp_path: Path):
    names = [
        n
        for n in recipe_loading.list_recipes()
        if not isinstance(recipe_loading.load_recipe(n), recipes.SupportsExport)
    ]
    assert names == WITHOUT_GRAPH
    for name, other in SAME_GRAPH.items():
        assert recipe_loading.load_recipe(name).export_graph is recipe_loading.load_recipe(other).export_graph
    with pytest.raises(InputError, match="the recipe 'seq2seq' cannot be exported to ONNX"):
        write("seq2seq", "tiny", tmp_path / "out")


@pytest.mark.slow
def test_the_command_exports_a_public_checkpoint_and_prints_only_its_files(tmp_path: Path):
    config = transformers.GPT2Config(n_embd=24, n_layer=1, n_head=3, n_positions=32, vocab_size=53)
    reference = build_reference("GPT2LMHeadModel", config)
    result = call("export", save(reference, tmp_path / "gpt2"), "--to", "onnx", tmp_path / "out", "--json").ok()
    assert result.json["files"] == ["model.onnx", "tokenizer.json"]
    assert result.err == ""
    ids = torch.randint(53, (3, 19))
    with torch.no_grad():
        expected = reference(ids).logits.numpy()
    (actual,) = run(open_session(tmp_path / "out"), {"ids": ids})
    assert np.abs(expected - actual).max() <= 1e-5 * np.abs(expected).max()
    assert_refused(call("export", tmp_path / "gpt2", "--to", "onnx", tmp_path / "out"), "out", "not empty")


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    recipe, config, model = build("language", "tiny")
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'anyformer\[onnx\]'"):
        onnx.write(tmp_path / "out", recipe, to_json(config), model)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_graph_that_differs_from_the_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model is changed before verification, as if the exporter had made a mistake."""
    recipe, config, model = build("language", "tiny")
    verify = onnx.verify

    def change_and_verify(path: Path, graph: recipes.Graph) -> None:
        with torch.no_grad():
            model.nodes.token.weight.mul_(2)
        verify(path, graph)

    monkeypatch.setattr(onnx, "verify", change_and_verify)
    with pytest.raises(InputError, match="the graph's logits differs from the model's"):
        onnx.write(tmp_path / "out", recipe, to_json(config), model)
    assert not (tmp_path / "out").exists()
