"""Keys and values in bfloat16 and int8: the memory they take, how far they are off, and that they are those of a
forward whose keys and values are rounded in the same way, however the nodes are read."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer import api
from anyformer.baselines.window_lm import WindowLM
from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.inference.batching import Batcher
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.model.compact_cache import CompactCache, count_node_bytes, decode, encode, set_cache_format
from anyformer.model.config import TransformerConfig
from anyformer.model.transformer import Attention
from anyformer.recipes import language, recall
from batching_kit import Arrival, answer_requests
from cli_kit import assert_refused, call

ALPHABET = "abcdefghij"
FORMATS = ["bfloat16", "int8"]
ERRORS: dict[Any, float] = {"bfloat16": 2**-8, "int8": 0.5 / 127 + 2**-8 / 2}
"""The most by which a number is off, relative to the largest of its head."""


def build(window: int | None = None, **settings: Any) -> language.LanguageModel:
    torch.manual_seed(0)
    shape = TransformerConfig(dim=32, n_layer=3, n_head=4, n_kv_head=2, context=48, mlp_dim=32, **settings)
    model = language.LanguageModel(language.Config(model=shape, window=window, sinks=1), Characters(ALPHABET))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


@pytest.mark.parametrize("form", FORMATS)
def test_numbers_come_back_rounded(form: Any):
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, 16) * torch.logspace(-20, 20, 5)[:, None]
    x[0, 0, 0] = 0
    back = decode(encode(x, form), form, torch.float32)
    assert back.dtype == torch.float32 and bool(
        ((back - x).abs() <= x.abs().amax(-1, keepdim=True) * ERRORS[form]).all()
    )
    assert torch.equal(decode(encode(back, form), form, torch.float32), back) or form == "int8"
    x[1, 1, 1, 1] = torch.nan
    assert decode(encode(x, form), form, torch.float32)[1, 1, 1].isnan().any(), "an error must not be hidden"


@pytest.mark.parametrize("form", ["float32", *FORMATS])
@torch.inference_mode()
def test_the_bytes_of_a_node(form: Any):
    model = build().float()
    set_cache_format(model, form)
    cache = new_cache(model, 3, 20)
    prefill(model, [[1], [2], [3]], cache)
    n_bytes = sum(tensor.nbytes for kv in cache.layers if kv is not None for tensor in kv)
    assert n_bytes == 3 * 20 * count_node_bytes(model.body.config, form)
    assert count_node_bytes(model.body.config, form) == 2 * 3 * 2 * {"float32": 32, "bfloat16": 16, "int8": 10}[form]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("form", FORMATS)
@torch.inference_mode()
def test_read_in_any_pieces_keys_are_rounded_once(form: Any, window: int | None, monkeypatch: pytest.MonkeyPatch):
    model, source = build(window), random.Random(0)
    rows = [source.choices(range(10), k=40) for _ in range(2)]
    exact = model(torch.tensor(rows))
    set_cache_format(model, form)
    cache, parts, start = new_cache(model, 2), [], 0
    while start < 40:
        stop = min(40, start + source.choice([1, 1, 3, 9]))
        parts.append(model(torch.tensor([row[start:stop] for row in rows]), cache))
        start = stop
    qkv = Attention.qkv

    def round_qkv(self: Attention, *arguments: Any) -> tuple[Tensor, ...]:
        q, k, v = qkv(self, *arguments)
        return q, *(decode(encode(x, form), form, x.dtype) for x in (k, v))

    monkeypatch.setattr(Attention, "qkv", round_qkv)
    expected = model(torch.tensor(rows))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-5)
    assert (expected - exact).abs().max() > 1e-3, "it is the rounding that is tested"


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_batch_and_their_prefixes_are_in_this_format(form: Any):
    model, ids = build(), list(range(10))
    set_cache_format(model, form)
    batcher = Batcher(model, prompt_tokens=9, prefix_bytes=1 << 20)
    prompts = [[3 * ids, 4 * ids], [3 * ids + [1, 2]]]
    requests = [CompletionRequest(prompt=prompt, tokens=9, temperature=0) for prompt in prompts]
    answers = [*answer_requests(batcher, [Arrival(requests[0])]), *answer_requests(batcher, [Arrival(requests[1])])]
    tensors = [block.kv for block in batcher.prefixes.blocks.values()] if batcher.prefixes else []
    batcher.close()
    for request, answer in zip(requests, answers, strict=True):
        completions = list(generate_text(model, model.tokenizer, request))[-1]
        assert answer.tokens == [completion.tokens for completion in completions]
    node_bytes = count_node_bytes(model.body.config, form)
    assert batcher.n_cached >= 16 and tensors and all(kv.nbytes == 16 * node_bytes for kv in tensors)


@torch.inference_mode()
def test_a_model_that_keeps_more_than_keys_has_the_format_too(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij" * 50)
    config = recall.Config(data=str(text), counts="2", model=TransformerConfig(dim=16, n_layer=1, n_head=2, context=16))
    model = recall.build(config).eval()
    set_cache_format(model, "int8")
    cache = new_cache(model, 1)
    prefill(model, [[1, 2, 3]], cache)
    assert isinstance(cache, CompactCache) and cache.layers[0] is not None and cache.layers[0][0].dtype == torch.int8
    logits = step(model, torch.tensor([4]), cache)
    torch.testing.assert_close(logits, model(torch.tensor([[1, 2, 3, 4]]))[:, -1], rtol=0, atol=0.05)


def test_what_makes_no_sense_is_refused(run_once: Path):
    with pytest.raises(InputError, match="cache_dtype is 'int4': did you mean 'int8'"):
        api.load(run_once, "cpu", cache_dtype="int4")
    with pytest.raises(ValueError, match="no Transformer"):
        set_cache_format(WindowLM(11, 4, 6, 3, 64, False, 0.0), "int8")
    assert_refused(call("sample", run_once, "--cache-dtype", "int4"), "int4", "int8")


def test_the_flag_reaches_the_cache(run_once: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    store = CompactCache.store
    monkeypatch.setattr(CompactCache, "store", lambda self, *args: seen.append(self.format) or store(self, *args))
    call("sample", run_once, "--cache-dtype", "int8", "--tokens", 2, "--prompt", "a").ok()
    call("predict", run_once, "a", "--cache-dtype", "bfloat16", "--request", '{"tokens": 2}').ok()
    assert set(seen) == {"int8", "bfloat16"}
