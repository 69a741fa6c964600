"""The prefix cache: answers are those without it, less is read, memory is bounded, and the least recently used goes
first."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from anyformer.baselines.window_lm import WindowLM
from anyformer.data.tokenizers.build import Characters
from anyformer.inference.batching import Batcher
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.prefix_cache import BLOCK_NODES, PrefixCache
from anyformer.inference.row_cache import SharedRows
from anyformer.model.config import RopeScaling, TransformerConfig
from anyformer.model.quantization.quantize import quantize
from anyformer.recipes import language
from batching_kit import Arrival, answer_requests

ALPHABET = "abcdefghij"
SHAPE = TransformerConfig(dim=16, n_layer=2, n_head=2, context=96, position="rotary", mlp_dim=16)
SCALING = RopeScaling(rope_type="dynamic", factor=4.0, original_max_position_embeddings=48)
NODE_BYTES = 2 * 2 * 16 * 4
CONFIGS = {
    "rotary": language.Config(model=replace(SHAPE, n_kv_head=1, norm="rmsnorm", activation="swiglu")),
    "learned": language.Config(model=replace(SHAPE, position="learned")),
    "alibi": language.Config(model=replace(SHAPE, position="alibi", norm_place="post")),
    "local layers": language.Config(model=SHAPE, window=40, sinks=2),
}


def build(config: language.Config, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = language.LanguageModel(config, Characters(ALPHABET))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def draw_requests(seed: int, n: int = 7) -> list[CompletionRequest]:
    """Prompts that begin as one of two texts do, up to anywhere; some with what an earlier one was continued with, some
    longer than the context."""
    source = random.Random(seed)
    stems = ["".join(source.choices(ALPHABET, k=120)) for _ in range(2)]
    requests: list[CompletionRequest] = []
    for _ in range(n):
        prompt = source.choice(stems)[: source.randint(1, 110)] + "".join(
            source.choices(ALPHABET, k=source.randint(0, 9))
        )
        settings: dict[str, Any] = {"tokens": source.choice([1, 4, 12]), "samples": source.choice([1, 1, 2])}
        settings |= {"temperature": source.choice([0.0, 0.8]), "seed": source.randint(0, 9), "logprobs": 0}
        requests.append(CompletionRequest(prompt=prompt, **settings))
    return requests


def check_answers(model: Any, requests: list[CompletionRequest], **settings: Any) -> Batcher:
    """Check that a batcher answers as `generate` does, one request after the other, then all at once."""
    batcher = Batcher(model, **{"max_rows": 4, "prompt_tokens": 24, "prefix_bytes": 1 << 20} | settings)
    answers = [answer for request in requests for answer in answer_requests(batcher, [Arrival(request)])]
    answers += answer_requests(batcher, [Arrival(request) for request in requests])
    batcher.close()
    expected = [list(generate_text(model, model.tokenizer, request))[-1] for request in requests]
    for completions, answer in zip([*expected, *expected], answers, strict=True):
        assert answer.errors == [None]
        for i, completion in enumerate(completions):
            assert (answer.tokens[i], answer.texts[i]) == (completion.tokens, completion.text)
            logprobs = [row.logprob for row in completion.logprobs or []]
            assert [row.logprob for row in answer.logprobs[i]] == pytest.approx(logprobs, abs=1e-3)
    return batcher


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_without_it(name: str):
    batcher = check_answers(build(CONFIGS[name]).double(), draw_requests(len(name)))
    assert batcher.n_hits and batcher.n_cached >= BLOCK_NODES * batcher.n_hits


def test_answers_are_those_without_it_in_int8():
    model = build(CONFIGS["rotary"])
    quantize(model, "int8")
    assert check_answers(model, draw_requests(1)).n_hits


def test_answers_are_those_without_it_where_memory_is_short():
    batcher = check_answers(build(CONFIGS["rotary"]), draw_requests(2), prefix_bytes=3 * BLOCK_NODES * NODE_BYTES)
    assert batcher.n_hits and batcher.prefixes is not None
    assert 0 < batcher.prefixes.n_bytes <= batcher.prefixes.max_bytes


def answer_one(batcher: Batcher, prompt: str, **settings: Any) -> tuple[str, int]:
    """Return the answer, and how many tokens of the prompt were read."""
    before = batcher.n_prompt_tokens
    request = CompletionRequest(prompt=prompt, **{"tokens": 20, "temperature": 0} | settings)
    (answer,) = answer_requests(batcher, [Arrival(request)])
    return answer.texts[0], batcher.n_prompt_tokens - before


def test_only_the_end_of_a_prompt_is_read():
    batcher = Batcher(build(CONFIGS["learned"]), prefix_bytes=1 << 20)
    first = "abcdefghij" * 4
    answer, n_read = answer_one(batcher, first)
    assert n_read == 40 and answer_one(batcher, first)[1] == 40 - 32, "whole blocks, of the same text"
    assert answer_one(batcher, first[:33] + "jjj")[1] == 4
    _, n_read = answer_one(batcher, first + answer + "ab")
    assert n_read == 62 - 48, "a chat goes on after the answer"
    assert answer_one(batcher, first[:32])[1] == 32 - 16, "the last token is read in any case"
    assert answer_one(batcher, "j" + first)[1] == 41
    batcher.close()
    assert (batcher.n_hits, batcher.n_cached) == (4, 32 + 32 + 48 + 16)


def test_samples_of_one_prompt_read_it_once():
    batcher = Batcher(build(CONFIGS["learned"]), prefix_bytes=1 << 20)
    assert answer_one(batcher, "abcdefghij" * 4, samples=4)[1] == 40 + 3 * 8
    batcher.close()


def test_a_prompt_that_is_scored_is_read_in_full():
    batcher = Batcher(build(CONFIGS["learned"]), prefix_bytes=1 << 20)
    settings = {"echo": True, "logprobs": 0}
    assert [answer_one(batcher, "abcdefghij" * 4, **settings)[1] for _ in range(2)] == [40, 40]
    batcher.close()


def test_none_is_kept_where_keys_depend_on_the_length_or_there_is_more_than_keys():
    model = build(language.Config(model=replace(SHAPE, rope_scaling=SCALING)))
    batcher = Batcher(model, prefix_bytes=1 << 20)
    assert [answer_one(batcher, "abcdefghij" * 6)[1] for _ in range(2)] == [60, 60], "beyond the 48 of the training"
    batcher.close()
    window = WindowLM(len(ALPHABET) + 1, 4, 6, 3, 64, False, 0.0)
    window.tokenizer = model.tokenizer
    batcher = Batcher(window, prefix_bytes=1 << 20)
    assert batcher.prefixes is None and [answer_one(batcher, "abcdefghij" * 4)[1] for _ in range(2)] == [40, 40]
    batcher.close()


@torch.inference_mode()
def test_what_was_used_the_longest_time_ago_is_dropped_first():
    model = build(CONFIGS["learned"])
    rows = SharedRows(model, 1 << 20)
    prefixes = PrefixCache(rows, 4 * BLOCK_NODES * NODE_BYTES)
    texts = {name: [i] * 33 for i, name in enumerate("abc")}

    def read(name: str) -> int:
        row = rows.add(64)
        n = prefixes.restore(row, texts[name])
        rows.read(row, [texts[name][n:]])
        prefixes.save(row, texts[name])
        rows.pop()
        return n

    assert [read(name) for name in "ababcab"] == [0, 0, 32, 32, 0, 0, 0], "each drives out the next"
    assert [read(name) for name in "babcb"] == [32, 32, 32, 0, 32], "a was the oldest"
    assert prefixes.n_bytes == prefixes.max_bytes
    prefixes = PrefixCache(rows, 3 * BLOCK_NODES * NODE_BYTES)
    assert [read(name) for name in "aba"] == [0, 0, 16], "the end of a text goes before its beginning"
