"""Decoding with a cache: equal to decoding without one, whatever the position encoding, the batch and the context."""

import pytest
import torch

from anyformer.data.tokenizers.build import Characters
from anyformer.inference import decode, prompt_reading
from anyformer.inference.sampling import SamplingParams
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language

QUICK = {
    "test_what_all_prompts_begin_with_is_read_once": {
        "alibi-5-ragged",
        "rotary-5-same",
        "learned-5-ragged",
        "rotary-None-ragged",
    },
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

ALPHABET = "abcdefghijklmnopqrstuvwxyz \n"
POSITIONS = ["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]


def build_model(position: str = "rotary", window: int | None = None, global_every: int = 2, **fields):
    torch.manual_seed(0)
    shape = TransformerConfig(**{"dim": 32, "n_layer": 3, "n_head": 4, "context": 16} | fields, position=position)
    config = language.Config(model=shape, window=window, global_every=global_every)
    model = language.LanguageModel(config, Characters(ALPHABET))
    for parameter in model.parameters():  # large weights, so that a wrong key changes the result
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def decode_uncached(model: language.LanguageModel, prompt: list[int], tokens: int, keep: int | None = None):
    """Greedy decoding that reads the whole window again for every token."""
    context = model.body.config.context
    window, generated = prompt[-context:], []
    for _ in range(tokens):
        generated.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, generated[-1]]
        window = window[-(keep or context // 2) :] if len(window) > context else window
    return generated


def decode_greedily(model: language.LanguageModel, prompts: list[list[int]], tokens: int, keep: int | None = None):
    greedy = SamplingParams(temperature=0)
    steps = decode.generate(model, prompts, tokens=tokens, sampling=greedy, seeds=[0] * len(prompts), keep=keep)
    return [list(row) for row in zip(*steps)]


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("position", POSITIONS)
def test_cached_equals_uncached_within_and_beyond_the_context(position: str, window: int | None):
    model = build_model(position, window, n_kv_head=2)
    assert decode_greedily(model, [[3, 1, 4]], 40) == [decode_uncached(model, [3, 1, 4], 40)]


@torch.inference_mode()
@pytest.mark.parametrize("keep", [1, 7, 16])
def test_the_newest_tokens_are_kept(keep: int):
    """keep = context drops one token at a time, as nanoGPT does."""
    model = build_model("learned")
    assert decode_greedily(model, [[3, 1, 4]], 40, keep) == [decode_uncached(model, [3, 1, 4], 40, keep)]


@torch.inference_mode()
@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_of_unequal_length_decode_together_as_alone(position: str):
    model = build_model(position, window=6)
    prompts = [[1], [2, 3, 4, 5, 6], list(range(20)), [7, 8]]
    assert decode_greedily(model, prompts, 30) == [decode_greedily(model, [prompt], 30)[0] for prompt in prompts]


@torch.inference_mode()
@pytest.mark.parametrize(
    "ends", [[[], [], []], [[1], [2], [2]], [[1, 2, 3], [4], [5, 6]]], ids=["same", "equal", "ragged"]
)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("position", ["learned", "rotary", "alibi"])
def test_what_all_prompts_begin_with_is_read_once(position: str, window: int | None, ends: list[list[int]]):
    """Unless a layer has only a window, and rows of unequal length cannot be padded within it."""
    model = build_model(position, window, context=48)
    beginning = torch.randint(28, (prompt_reading.MIN_SHARED + 3,)).tolist()
    prompts = [beginning + end for end in ends]
    expected = [decode_greedily(model, [prompt], 40)[0] for prompt in prompts]
    shapes, hidden = [], model.hidden
    model.hidden = lambda ids, cache=None: shapes.append(tuple(ids.shape)) or hidden(ids, cache)
    assert decode_greedily(model, prompts, 40) == expected
    shared = len(beginning) - (not any(ends))
    ends_alone = (3, max(map(len, prompts)) - shared)
    is_ragged = len(set(map(len, ends))) > 1
    assert shapes[:2] == [(1, shared), (3, max(map(len, prompts))) if is_ragged and window else ends_alone]


def test_prompts_that_hardly_begin_alike_are_read_at_once():
    model = build_model(context=48)
    prompts, shapes, hidden = [[1] * (prompt_reading.MIN_SHARED - 1) + [i] for i in range(3)], [], model.hidden
    model.hidden = lambda ids, cache=None: shapes.append(tuple(ids.shape)) or hidden(ids, cache)
    decode_greedily(model, prompts, 2)
    assert shapes == [(3, prompt_reading.MIN_SHARED), (3, 1)]
    shapes.clear()
    decode_greedily(model, [[1] * 30], 2)
    assert shapes == [(1, 30), (1, 1)], "a single prompt"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    caches = []
    new_cache = decode.new_cache
    monkeypatch.setattr(decode, "new_cache", lambda *arguments: caches.append(new_cache(*arguments)) or caches[-1])
    decode_greedily(build_model(), [[1, 2]], 100)
    assert [cache.size for cache in caches] == [16]


def test_an_unbounded_cache_keeps_no_list_of_all_tokens(monkeypatch: pytest.MonkeyPatch):
    model, prefills = build_model(window=4, global_every=99), []
    prefill, note = prompt_reading.prefill, lambda m, rows, c: prefills.append((rows, c)) or prefill(m, rows, c)
    for module in (decode, prompt_reading):
        monkeypatch.setattr(module, "prefill", note)
    decode_greedily(model, [[1, 2]], 100)
    ((rows, cache),) = prefills
    assert cache.is_unbounded and rows == [[1, 2]]


@torch.inference_mode()
def test_the_repetition_penalty_counts_prompt_and_generated_tokens():
    """With a huge penalty no token comes twice while there are others, and tokens of the prompt do not come."""
    sampling = SamplingParams(temperature=0, repetition_penalty=1000.0)
    model = build_model(context=64)
    torch.nn.init.uniform_(model.head.project.weight, 0.01, 0.02)  # all logits of one sign
    (row,) = zip(*decode.generate(model, [[0, 1, 2]], tokens=20, sampling=sampling, seeds=[0]))
    assert len({0, 1, 2, *row}) == 23
