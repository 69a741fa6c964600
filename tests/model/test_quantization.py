"""Weights for inference: fused maps give the same sums; fewer bits are close by a stated bound, in every recipe.

Shapes: B batch, T nodes, C channels.
"""

import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import api, recipe_loading
from anyformer.inference.decode import new_cache, prefill, step
from anyformer.model import KVCache, LMHead, Transformer, TransformerConfig, attention_weights, causal, within
from anyformer.model.kernels import linear as linear_module
from anyformer.model.kernels.linear import Linear, has_onednn
from anyformer.model.quantization.fusion import FusedAttention, FusedMLP, fuse_linears
from anyformer.model.quantization.quantize import MAX_INT8PACK_ROWS, MAX_INTEGER_ROWS, FloatLinear, Int8Linear, quantize
from anyformer.training import lora
from anyformer.training.config import LoRAConfig
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA
from rules import caption, pairwise

BFLOAT16_EPS = 2**-8  # the largest relative rounding error of bfloat16

# --- fused maps ---

B, T, C = 2, 7, 16
SETTINGS = pairwise(
    {
        "n_kv_head": [None, 2, 1],
        "head_dim": [None, 6],
        "bias": [True, False],
        "activation": ["gelu", "swiglu", "geglu"],
        "position": ["none", "rotary", "alibi"],
        "qk_norm": [False, True],
        "norm_place": ["pre", "post"],
        "cross": [False, True],
        "dropout": [0.0, 0.5],
    }
)


def build_stack(setting: dict) -> Transformer:
    torch.manual_seed(0)
    setting = dict(setting)
    cross = setting.pop("cross", False)
    stack = Transformer(TransformerConfig(dim=C, n_layer=2, n_head=4, context=T, **setting), cross).double().eval()
    for weight in stack.parameters():
        nn.init.normal_(weight, std=0.4)
    return stack


def run_stack(stack: Transformer) -> Tensor:
    """At once, and node by node with a cache: (2 B, T, C)"""
    torch.manual_seed(1)
    x, memory = torch.randn(B, T, C).double(), torch.randn(B, 5, C).double() if stack.cross else None
    memory_edges, cache = within(torch.tensor([5, 2])), KVCache(stack.config, B)
    steps = [stack(x[:, t : t + 1], causal, memory, memory_edges, cache) for t in range(T)]
    return torch.cat([stack(x, causal, memory, memory_edges), torch.cat(steps, dim=1)])


def weights_of(stack: Transformer) -> Tensor | None:
    x = torch.linspace(-1, 1, T * C).view(1, T, C).double()
    return None if stack.cross else attention_weights(stack, lambda: stack(x, causal))


@torch.inference_mode()
@pytest.mark.parametrize("setting", SETTINGS, ids=caption)
def test_fused_maps_give_the_same_output_and_attention_weights(setting):
    stack = build_stack(setting)
    before, weights = run_stack(stack), weights_of(stack)
    fuse_linears(stack)
    torch.testing.assert_close(run_stack(stack), before)
    torch.testing.assert_close(weights_of(stack), weights)
    is_gated = setting["activation"] != "gelu"
    assert all(isinstance(block.attn, FusedAttention) for block in stack.blocks)
    assert all(isinstance(block.mlp, FusedMLP) == is_gated for block in stack.blocks)


@torch.inference_mode()
def test_maps_with_and_without_bias_are_fused():
    """As in Whisper, whose keys have no bias."""
    stack = build_stack({})
    for block in stack.blocks:
        block.attn.key.bias = None
    before = run_stack(stack)
    fuse_linears(stack)
    torch.testing.assert_close(run_stack(stack), before)


@pytest.mark.parametrize("is_merged", [True, False])
def test_adapters_are_merged_or_keep_maps_apart(is_merged):
    stack = lora.add_lora(build_stack({"activation": "swiglu"}), LoRAConfig(rank=2, where="all")).double()
    with torch.inference_mode():
        for weight in stack.parameters():
            nn.init.normal_(weight, std=0.4)
        before = run_stack(stack)
        stack = lora.merge_lora(stack) if is_merged else stack
        fuse_linears(stack)
        torch.testing.assert_close(run_stack(stack), before)
        block = stack.blocks[0]
        assert isinstance(block.attn, FusedAttention) == is_merged == isinstance(block.mlp, FusedMLP)


# --- single maps in fewer bits ---


def make_linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    torch.manual_seed(inputs + outputs)
    return Linear(inputs, outputs, bias)


@pytest.mark.parametrize("rows", [1, 3, MAX_INT8PACK_ROWS, MAX_INT8PACK_ROWS + 1, MAX_INTEGER_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (48, 7), (272, 66)])
@torch.inference_mode()
def test_an_int8_map_is_within_its_rounding(rows: int, inputs: int, outputs: int):
    """Half a step of a weight for each input, and bfloat16's rounding of inputs and outputs."""
    exact = make_linear(inputs, outputs)
    int8, x = Int8Linear(exact), torch.randn(rows, inputs)
    y, expected = int8(x), exact(x)
    sizes = x.abs() @ exact.weight.abs().T
    bound = x.abs().sum(-1, keepdim=True) * int8.scale.float() * 0.51 + 3 * BFLOAT16_EPS * sizes
    assert y.dtype == torch.float32 and ((y - expected).abs() <= bound).all()
    assert not torch.equal(y, expected)


@torch.inference_mode()
def test_int8_rows_do_not_depend_on_the_batch():
    int8, x = Int8Linear(make_linear(64, 50)), torch.randn(MAX_INT8PACK_ROWS + 8, 64)
    together, alone = int8(x), torch.cat([int8(row[None]) for row in x])
    tolerance = 4 * BFLOAT16_EPS
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance * float(together.abs().max()))
    torch.testing.assert_close(int8(x.view(2, -1, 64)).flatten(0, 1), together, rtol=0, atol=0)


@torch.inference_mode()
def test_a_part_common_to_all_logits_costs_no_precision():
    """The rows of a trained head have much in common: logits of about a hundred, with differences below one."""
    torch.manual_seed(0)
    head, common = LMHead(64, 200), torch.randn(64)
    head.project.weight.data = 0.02 * torch.randn(200, 64) + common
    x = torch.randn(1, 64) + 3 * common
    expected, naive = head(x), Int8Linear(head.project)(x)
    quantize(head, "int8")
    assert expected.abs().min() > 100 and expected.std() < 1
    assert (head(x) - expected).abs().max() < 0.02 and (naive - expected).abs().max() > 0.1


@torch.inference_mode()
def test_bfloat16_is_the_map_with_its_weights_rounded():
    exact, x = make_linear(96, 40), torch.randn(5, 96)
    for rows in (x, x[:1]):
        y = FloatLinear(exact, torch.bfloat16)(rows)
        expected = rows.bfloat16().float() @ exact.weight.bfloat16().float().T + exact.bias
        torch.testing.assert_close(y, expected, rtol=2 * BFLOAT16_EPS, atol=2 * BFLOAT16_EPS)
        assert y.dtype == torch.float32


def test_widths_that_the_kernel_cannot_read_stay_float32():
    model = nn.Sequential(make_linear(20, 32), make_linear(32, 20))
    quantize(model, "int8")
    assert type(model[0]) is Linear and type(model[1]) is Int8Linear
    with pytest.raises(ValueError, match="float32, bfloat16 or int8, not 'int4'"):
        quantize(model, "int4")


# --- recipes and runs ---


def is_close(actual: Any, expected: Any) -> bool:
    """Whether two plain values agree, numbers to within rounding."""
    if isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(is_close(actual[name], expected[name]) for name in actual)
    if isinstance(actual, list):
        return len(actual) == len(expected) and all(map(is_close, actual, expected))
    return actual == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(actual, float) else expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_every_recipe_predicts_the_same_in_float32_and_runs_in_fewer_bits(name: str, monkeypatch: pytest.MonkeyPatch):
    """Models are pickled on the way, as to a spawned process."""
    monkeypatch.setattr(linear_module, "MIN_PACKED_WEIGHTS", 1 << 8)
    recipe, expected = recipe_loading.load_recipe(name), None
    config = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    for weights in ("float32", "bfloat16", "int8"):
        torch.manual_seed(0)
        model = recipe.build(config).eval()
        expected = recipe.predict(model, {}) if expected is None else expected
        model = pickle.loads(pickle.dumps(model))
        fuse_linears(model)
        widths = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
        quantize(model, weights)
        quantized = [module for module in model.modules() if isinstance(module, Int8Linear | FloatLinear)]
        if weights == "float32":
            assert bool(quantized) == has_onednn(torch.float32) and is_close(recipe.predict(model, {}), expected)
        else:
            assert len(quantized) == sum(weights == "bfloat16" or width % 16 == 0 for width in widths)
            assert recipe.predict(model, {}).keys() == expected.keys()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("quantization")
    (folder / "a.txt").write_text("".join(f"the {n} cats sat on the {n % 7} mats. " for n in range(2000)))
    shape = {"dim": 64, "context": 64}
    train = {"steps": 150, "lr": 3e-3, "eval_every": 150, "device": "cpu", "dtype": "float32"}
    api.train("language", "tiny", data=str(folder / "a.txt"), out=folder / "run", model=shape, train=train)
    return folder / "run"


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_perplexity_rises_by_less_than_one_percent(small_run: Path, weights: str):
    exact = call("eval", small_run, "--json").ok().json
    quantized = call("eval", small_run, "--weights", weights, "--json").ok().json
    assert exact["perplexity"] < 3 and quantized["loss"] != exact["loss"]
    assert abs(quantized["perplexity"] / exact["perplexity"] - 1) < 0.01


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_perplexity_hardly_depends_on_the_number_of_rows(small_run: Path, weights: str):
    """A step of one text, a step of several, and the reading of a prompt are computed in different ways."""
    text = (small_run.parent / "a.txt").read_text()[-2048:]
    models = [api.load(small_run, "cpu"), api.load(small_run, "cpu", weights=weights)]
    for rows, length in [(1, MAX_INT8PACK_ROWS), (MAX_INTEGER_ROWS // 64, 64), (4 * MAX_INTEGER_ROWS // 64, 64)]:
        ids = torch.tensor(models[0].module.tokenizer.encode(text).tolist())
        batches = ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)[: 256 // length * 8].split(rows)
        nats = [
            sum(F.cross_entropy(m.module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item() for x in batches)
            for m in models
        ]
        assert math.exp(abs(nats[1] - nats[0]) / len(batches)) < (1.0001 if weights == "float32" else 1.01)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@torch.inference_mode()
def test_cached_is_uncached_and_generates_the_same_text(small_run: Path, weights: str):
    exact, quantized = api.load(small_run, "cpu"), api.load(small_run, "cpu", weights=weights)
    ids = [int(i) for i in exact.module.tokenizer.encode("the 7 cats sat on")]
    cache = new_cache(quantized.module, 1)
    prefill(quantized.module, [ids[:9]], cache)
    for token in ids[9:]:
        logits = step(quantized.module, torch.tensor([token]), cache)
    torch.testing.assert_close(logits, quantized.module(torch.tensor([ids]))[:, -1], rtol=0.02, atol=0.1)
    prompt = "the 7 cats sat"
    texts = [m.generate(prompt, tokens=8, temperature=0)["samples"][0]["text"] for m in (exact, quantized)]
    assert texts[0] == texts[1]


def test_an_unknown_format_is_rejected(small_run: Path):
    assert_refused(call("sample", small_run, "--weights", "int3"), "int3", "int8")
    result = call("sample", small_run, "--weights", "int8", "--tokens", 5, "--json").ok()
    assert len(json.loads(result.out)["samples"][0]["text"]) == 5
