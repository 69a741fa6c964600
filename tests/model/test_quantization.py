"""Weights in fewer bits: close to the whole ones by a stated bound, for any number of rows, in every recipe."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anyformer import api
from anyformer import recipe as recipes
from anyformer.inference.decode import new_cache, prefill, step
from anyformer.model.heads import LMHead
from anyformer.model.kernels import linear as ways
from anyformer.model.kernels.linear import Linear, has_onednn
from anyformer.model.quantization.fusion import fuse_linears
from anyformer.model.quantization.quantize import FEW, MANY, FloatLinear, Int8Linear, quantize
from anyformer.recipes.language import load_corpus
from cli_kit import call, assert_refused

ROUND = 2**-8  # what bfloat16 loses of a number at most


def linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    torch.manual_seed(inputs + outputs)
    return Linear(inputs, outputs, bias)


@pytest.mark.parametrize("rows", [1, 2, 3, FEW, FEW + 1, 40, MANY + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (48, 7), (64, 100), (272, 66)])
def test_an_int8_map_is_within_its_rounding(rows: int, inputs: int, outputs: int):
    """Half a step of a weight for each number that comes in, and bfloat16's share of what goes in and out."""
    whole = linear(inputs, outputs)
    few, x = Int8Linear(whole), torch.randn(rows, inputs)
    with torch.inference_mode():
        wanted, found = whole(x), few(x)
    sizes = x.abs() @ whole.weight.abs().T
    bound = x.abs().sum(-1, keepdim=True) * few.scale.float() * 0.51 + 3 * ROUND * sizes
    assert found.dtype == torch.float32 and ((found - wanted).abs() <= bound).all()
    assert not torch.equal(found, wanted)


def test_rows_do_not_depend_on_their_company():
    few, x = Int8Linear(linear(64, 50)), torch.randn(FEW + 8, 64)
    with torch.inference_mode():
        together, alone = few(x), torch.cat([few(row[None]) for row in x])
        shaped = few(x.view(2, -1, 64))
    torch.testing.assert_close(together, alone, rtol=4 * ROUND, atol=4 * ROUND * float(together.abs().max()))
    torch.testing.assert_close(shaped.flatten(0, 1), together, rtol=0, atol=0)


def test_what_all_logits_share_costs_no_precision():
    """The rows of a trained head have much in common: a number as large as a hundred, and differences below one."""
    torch.manual_seed(0)
    head = LMHead(64, 200)
    common = torch.randn(64)
    head.project.weight.data = 0.02 * torch.randn(200, 64) + common
    x = torch.randn(1, 64) + 3 * common
    with torch.inference_mode():
        wanted = head(x)
        naive = Int8Linear(head.project)(x)
        quantize(head, "int8")
        found = head(x)
    assert wanted.abs().min() > 100 and wanted.std() < 1
    errors = [(one - wanted).abs().max().item() for one in (found, naive)]
    assert errors[0] < 0.02 and errors[1] > 0.1


def test_bfloat16_is_the_map_with_its_weights_rounded():
    whole, x = linear(96, 40), torch.randn(5, 96)
    with torch.inference_mode():
        for rows in (x, x[:1]):
            found = FloatLinear(whole, torch.bfloat16)(rows)
            wanted = rows.bfloat16().float() @ whole.weight.bfloat16().float().T + whole.bias
            torch.testing.assert_close(found, wanted, rtol=2 * ROUND, atol=2 * ROUND)
            assert found.dtype == torch.float32


def test_widths_the_kernel_cannot_read_stay_whole():
    model = nn.Sequential(linear(20, 32), linear(32, 20))
    quantize(model, "int8")
    assert type(model[0]) is Linear and type(model[1]) is Int8Linear
    with pytest.raises(ValueError, match="int4"):
        quantize(model, "int4")


def alike(one: Any, other: Any) -> bool:
    """Answers in plain values, numbers to within rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == (pytest.approx(other, rel=1e-3, abs=1e-4) if isinstance(one, float) else other)


@torch.inference_mode()
@pytest.mark.parametrize("name", recipes.list_recipes())
def test_ready_for_answering_in_float32_every_recipe_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ways, "LARGE", 1 << 8)
    recipe = recipes.load_recipe(name)
    torch.manual_seed(0)
    model = recipe.build(recipe.PRESETS["tiny"]).eval()
    before = recipe.predict(model, {})
    quantize(model, "float32")
    assert any(isinstance(module, FloatLinear) for module in model.modules()) == has_onednn(torch.float32)
    assert alike(recipe.predict(model, {}), before)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", recipes.list_recipes())
def test_every_recipe_answers_in_fewer_bits(name: str, weights: str):
    recipe = recipes.load_recipe(name)
    torch.manual_seed(0)
    model = recipe.build(recipe.PRESETS["tiny"]).eval()
    with torch.inference_mode():
        before = recipe.predict(model, {})
        fuse_linears(model)
        widths = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
        quantize(model, weights)
        few = [module for module in model.modules() if isinstance(module, Int8Linear | FloatLinear)]
        assert len(few) == sum(weights == "bfloat16" or width % 16 == 0 for width in widths)
        assert recipe.predict(model, {}).keys() == before.keys()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learned something."""
    folder = tmp_path_factory.mktemp("narrow")
    (folder / "a.txt").write_text("".join(f"the {n} cats sat on the {n % 7} mats. " for n in range(2000)))
    shape = {"dim": 64, "context": 64}
    train = {"steps": 150, "lr": 3e-3, "eval_every": 150, "device": "cpu", "dtype": "float32"}
    api.train("language", "tiny", data=str(folder / "a.txt"), out=folder / "run", model=shape, train=train)
    return folder / "run"


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_perplexity_rises_by_less_than_one_percent(learned: Path, weights: str):
    whole = call("eval", learned, "--json").ok().json
    few = call("eval", learned, "--weights", weights, "--json").ok().json
    assert whole["perplexity"] < 3 and few["loss"] != whole["loss"]
    assert abs(few["perplexity"] / whole["perplexity"] - 1) < 0.01


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("rows", "nodes"), [(1, FEW), (MANY // 64, 64), (4 * MANY // 64, 64)])
def test_perplexity_is_nearly_the_same_however_many_rows_share_a_product(learned: Path, weights, rows: int, nodes: int):
    """As in a step of one text, in a step of many, and where a prompt is read: each has a way of its own."""
    models = [api.load(learned, "cpu"), api.load(learned, "cpu", weights=weights)]
    text = torch.from_numpy(load_corpus(models[0].config).split("val").astype("int64"))
    ids = text[: len(text) // (nodes + 1) * (nodes + 1)].view(-1, nodes + 1)[: 256 // nodes * 8 // rows * rows]
    nats = [
        sum(F.cross_entropy(one.module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item() for x in ids.split(rows))
        / len(ids.split(rows))
        for one in models
    ]
    assert math.exp(abs(nats[1] - nats[0])) < (1.0001 if weights == "float32" else 1.01)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_cached_is_uncached_and_says_the_same(learned: Path, weights: str):
    whole, few = api.load(learned, "cpu"), api.load(learned, "cpu", weights=weights)
    ids = [int(i) for i in whole.module.tokenizer.encode("the 7 cats sat on")]
    with torch.inference_mode():
        cache = new_cache(few.module, 1)
        prefill(few.module, [ids[:9]], cache)
        for token in ids[9:]:
            logits = step(few.module, torch.tensor([token]), cache)
        anew = few.module(torch.tensor([ids]))[:, -1]
    torch.testing.assert_close(logits, anew, rtol=0.02, atol=0.1)
    said = [one.generate("the 7 cats sat", tokens=8, temperature=0)["samples"][0]["text"] for one in (whole, few)]
    assert said[0] == said[1]


def test_formats_there_are_none_of(learned: Path):
    assert_refused(call("sample", learned, "--weights", "int3"), "int3", "int8")
    answer = call("sample", learned, "--weights", "int8", "--tokens", 5, "--json").ok()
    assert len(json.loads(answer.out)["samples"][0]["text"]) == 5
