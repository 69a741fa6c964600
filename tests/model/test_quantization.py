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
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.model import KVCache, LMHead, Transformer, TransformerConfig, attention_weights, causal, within
from anyformer.model.kernels import linear as linear_module
from anyformer.model.kernels.linear import Linear, has_onednn
from anyformer.model.quantization import int4
from anyformer.model.quantization import quantize as quantize_module
from anyformer.model.quantization.fbgemm import HalfLinear, has_fbgemm
from anyformer.model.quantization.fusion import FusedAttention, FusedMLP, fuse_linears
from anyformer.model.quantization.int4 import GROUP_SIZE, MAX_INT4PACK_ROWS, Int4Linear, find_block, round_in_groups
from anyformer.model.quantization.quantize import (
    MAX_INT8PACK_ROWS,
    MAX_INTEGER_ROWS,
    QUANTIZED,
    FloatLinear,
    Int8Linear,
    PackedInt8Linear,
    quantize,
)
from anyformer.training import lora
from anyformer.training.config import LoRAConfig
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA
from rules import caption, pairwise

QUICK = {
    "test_every_recipe_predicts_the_same_in_float32_and_runs_in_fewer_bits": {
        "language",
        "translation",
        "vision",
        "tagging",
    },
    "test_perplexity_hardly_depends_on_the_number_of_rows": {"float32", "int4"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


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


needs_fbgemm = pytest.mark.skipif(not has_fbgemm(), reason="this processor has better kernels than FBGEMM's")
INT8_CLASSES = [Int8Linear, pytest.param(PackedInt8Linear, marks=needs_fbgemm)]


@pytest.mark.parametrize("kind", INT8_CLASSES)
@pytest.mark.parametrize("rows", [1, 3, MAX_INT8PACK_ROWS, MAX_INT8PACK_ROWS + 1, MAX_INTEGER_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (48, 7), (272, 66)])
@torch.inference_mode()
def test_an_int8_map_is_within_its_rounding(rows: int, inputs: int, outputs: int, kind: type[Int8Linear]):
    """Half a step of a weight for each input, and bfloat16's rounding of inputs and outputs."""
    exact = make_linear(inputs, outputs)
    int8, x = kind(exact), torch.randn(rows, inputs)
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


@needs_fbgemm
@torch.inference_mode()
def test_packed_int8_is_the_product_with_its_integers():
    """Inputs keep 14 bits, and a row is the same in every batch, beside large rows and rows of zeros too."""
    exact, x = make_linear(64, 50), torch.randn(9, 64) * torch.logspace(-3, 3, 9)[:, None]
    x[4] = 0
    plain, packed = Int8Linear(exact), PackedInt8Linear(exact)
    expected = x.double() @ (plain.weight.double() * plain.scale.double()[:, None]).T + exact.bias.double()
    bound = x.abs().amax(-1, keepdim=True) / 16_000 * exact.weight.abs().sum(-1) + 1e-6 * (1 + x.abs().sum(-1, True))
    together = packed(x)
    assert ((together - expected).abs() <= bound).all()
    assert torch.equal(together, torch.cat([packed(row[None]) for row in x]))
    assert torch.equal(pickle.loads(pickle.dumps(packed))(x), together)


@needs_fbgemm
@torch.inference_mode()
def test_half_precision_keeps_the_weights_of_bfloat16():
    exact, x = make_linear(96, 40), torch.randn(5, 96)
    expected = x.double() @ exact.weight.bfloat16().double().T + exact.bias.double()
    for rows, y in ((x, expected), (x[:1], expected[:1]), (x[0], expected[0])):
        torch.testing.assert_close(HalfLinear(exact)(rows), y.float(), rtol=1e-5, atol=1e-5)


def make_int4(inputs: int, outputs: int, bias: bool = True) -> tuple[Int4Linear, Linear]:
    """The map, and one in float32 with the numbers that its groups can hold."""
    exact = make_linear(inputs, outputs, bias)
    integers, scale, offset = round_in_groups(exact.weight.detach())
    groups = integers.view(outputs, -1, GROUP_SIZE)
    rounded = make_linear(inputs, outputs, bias)
    rounded.weight.data = (groups * scale[..., None] + offset[..., None]).flatten(1)
    return Int4Linear(exact), rounded


@pytest.mark.parametrize("rows", [1, 5, MAX_INT4PACK_ROWS, MAX_INT4PACK_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 16), (96, 80), (288, 128)])
@torch.inference_mode()
def test_an_int4_map_is_the_product_with_its_rounded_weights(rows: int, inputs: int, outputs: int):
    quantized, rounded = make_int4(inputs, outputs)
    x = torch.randn(rows, inputs)
    y, expected = quantized(x), rounded(x)
    sizes = x.abs() @ rounded.weight.abs().T + 1
    assert y.dtype == torch.float32 and ((y - expected).abs() <= 2 * BFLOAT16_EPS * sizes).all()


@torch.inference_mode()
def test_int4_rounds_to_sixteen_numbers_of_a_group():
    torch.manual_seed(0)
    matrix = torch.randn(64, 4 * GROUP_SIZE)
    matrix[0, :GROUP_SIZE], matrix[1, :GROUP_SIZE] = 0, 3.0
    integers, scale, offset = round_in_groups(matrix)
    assert integers.dtype == torch.int32 and integers.min() >= 0 and integers.max() <= 15
    rounded = (integers.view(64, 4, GROUP_SIZE) * scale[..., None] + offset[..., None]).flatten(1)
    steps = ((matrix.view(64, 4, -1).amax(-1) - matrix.view(64, 4, -1).amin(-1)) / 15).repeat_interleave(GROUP_SIZE, 1)
    error = (rounded - matrix).abs()
    assert (error[2:] <= 3 * steps[2:]).all() and error[2:].square().mean() < (
        steps[2:] / math.sqrt(12)
    ).square().mean()
    assert error[0].max() <= 3 * steps[0].max() and rounded[0, :GROUP_SIZE].abs().max() < 1e-20
    torch.testing.assert_close(rounded[1, :GROUP_SIZE], torch.full((GROUP_SIZE,), 3.0), rtol=1e-2, atol=0)


@torch.inference_mode()
def test_fitting_the_scale_lowers_the_error(monkeypatch: pytest.MonkeyPatch):
    matrix, errors = make_linear(256, 64).weight.detach(), {}
    matrix = matrix + 0.2 * torch.randn(matrix.shape) ** 3
    for steps in (0, int4.FIT_STEPS):
        monkeypatch.setattr(int4, "FIT_STEPS", steps)
        integers, scale, offset = round_in_groups(matrix)
        rounded = integers.view(64, -1, GROUP_SIZE) * scale[..., None] + offset[..., None]
        errors[steps] = float((rounded.flatten(1) - matrix).square().mean())
    assert errors[int4.FIT_STEPS] < 0.95 * errors[0]


@torch.inference_mode()
def test_int4_weights_can_be_written_out(monkeypatch: pytest.MonkeyPatch):
    """Where the packing is known, and by the kernel where it is not."""
    quantized, rounded = make_int4(64, 128, bias=False)
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        torch.testing.assert_close(quantized.dequantize(find_block()), rounded.weight, rtol=1e-5, atol=1e-6)
    x = torch.randn(MAX_INT4PACK_ROWS + 1, 64)
    expected = quantized(x)
    monkeypatch.setattr(int4, "find_block", lambda: 0)
    torch.testing.assert_close(quantized(x), expected, rtol=2 * BFLOAT16_EPS, atol=0.05)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@torch.inference_mode()
def test_a_part_common_to_all_logits_costs_no_precision(weights: str):
    """The rows of a trained head have much in common: logits of about a hundred, with differences below one."""
    torch.manual_seed(0)
    head, common = LMHead(64, 200), torch.randn(64)
    head.project.weight.data = 0.02 * torch.randn(200, 64) + common
    x = torch.randn(1, 64) + 3 * common
    expected, naive, centered = head(x), Int8Linear(head.project)(x), Int8Linear(head.project, centered=True)(x)
    assert expected.abs().min() > 100 and expected.std() < 1
    assert (centered - expected).abs().max() < 0.02 and (naive - expected).abs().max() > 0.1
    quantize(head, weights)
    assert isinstance(head.project, Int8Linear) and (head(x) - expected).abs().max() < 0.02


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
    assert has_fbgemm() or type(model[0]) is Linear
    assert isinstance(model[1], Int8Linear)
    with pytest.raises(ValueError, match="float32, bfloat16, int8 or int4, not 'int3'"):
        quantize(model, "int3")


def test_shapes_that_int4_cannot_read_keep_eight_bits():
    model = nn.Sequential(make_linear(64, 32), make_linear(48, 32), make_linear(64, 20))
    quantize(model, "int4")
    assert type(model[0]) is Int4Linear and all(isinstance(linear, Int8Linear) for linear in model[1:])


@pytest.mark.slow
def test_int4_is_refused_where_it_has_no_kernel(small_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantize_module, "has_int4", lambda: False)
    assert_refused(call("sample", small_run, "--weights", "int4"), "int4", "choose int8")
    with pytest.raises(ValueError, match="for a CPU"):
        quantize(nn.Linear(32, 32, device="meta"), "int4")


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
    for weights in ("float32", "bfloat16", "int8", "int4"):
        torch.manual_seed(0)
        model = recipe.build(config).eval()
        expected = recipe.predict(model, {}) if expected is None else expected
        model = pickle.loads(pickle.dumps(model))
        fuse_linears(model)
        widths = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
        quantize(model, weights)
        quantized = [module for module in model.modules() if isinstance(module, QUANTIZED)]
        if weights == "float32":
            assert bool(quantized) == has_onednn(torch.float32) and is_close(recipe.predict(model, {}), expected)
        else:
            reads_all = weights == "bfloat16" or has_fbgemm()
            assert len(quantized) == sum(reads_all or width % 16 == 0 for width in widths)
            assert recipe.predict(model, {}).keys() == expected.keys()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("quantization")
    (folder / "a.txt").write_text("".join(f"the {n} cats sat on the {n % 7} mats. " for n in range(2000)))
    shape = {"dim": 64, "context": 64}
    train = {"steps": 60, "lr": 5e-3, "eval_every": 60, "device": "cpu", "dtype": "float32"}
    api.train("language", "tiny", data=str(folder / "a.txt"), out=folder / "run", model=shape, train=train)
    return folder / "run"


@pytest.mark.parametrize(("weights", "rise"), [("bfloat16", 0.01), ("int8", 0.01), ("int4", 0.03)])
def test_perplexity_rises_by_less_than_so_much(small_run: Path, weights: str, rise: float):
    exact = call("eval", small_run, "--json").ok().json
    quantized = call("eval", small_run, "--weights", weights, "--json").ok().json
    assert exact["perplexity"] < 3 and quantized["loss"] != exact["loss"]
    assert abs(quantized["perplexity"] / exact["perplexity"] - 1) < rise


RISES = {"float32": 1.0001, "bfloat16": 1.01, "int8": 1.01, "int4": 1.03}


@torch.inference_mode()
@pytest.mark.parametrize("weights", RISES)
@pytest.mark.slow
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
        assert math.exp(abs(nats[1] - nats[0]) / len(batches)) < RISES[weights]


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
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
