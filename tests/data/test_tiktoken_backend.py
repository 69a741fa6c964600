"""The tiktoken backend of a byte-level BPE gives the ids of the tokenizers library, or is not used."""

import json
import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.tokenizers import subwords, tiktoken_backend
from anyformer.data.tokenizers.base import byte_alphabet
from anyformer.data.tokenizers.build import Subwords, train_bpe
from anyformer.data.tokenizers.tiktoken_backend import TiktokenBackend, build_backend
from data_kit import refuses

WORDS = ["the", "there", "then", "hen", "ten", "enter", "tenth", "théâtre", "don't", "1999", "199", "...", "日本語🙂"]


@pytest.fixture(scope="module", autouse=True)
def few_scripts():
    """Compare word splits on some thousand characters only; `test_all_scripts` compares all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_backend, "SCRIPTS", ((0, 0x1000), (0x2000, 0x2100)))
        tiktoken_backend.splits_words_equally.cache_clear()
        yield
    tiktoken_backend.splits_words_equally.cache_clear()


def build(tokenizer: Subwords) -> TiktokenBackend | None:
    return build_backend(tokenizer.to_json(), np.uint16)


@pytest.fixture(scope="module")
def bpe() -> Subwords:
    return train_bpe([" ".join(random.Random(0).choices(WORDS, k=4000))], 600)


@pytest.fixture(scope="module")
def backend(bpe: Subwords) -> TiktokenBackend:
    backend = build(bpe)
    assert backend is not None
    return backend


@given(st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(WORDS)), max_size=12))
def test_ids_are_equal(bpe: Subwords, backend: TiktokenBackend, parts: list[str]):
    for text in ("".join(parts), " ".join(parts), "\n\n ".join(parts)):
        assert backend.encode(text).tolist() == bpe.encode(text).tolist()


def test_a_batch_keeps_its_order_and_its_type(bpe: Subwords, backend: TiktokenBackend):
    texts = [" ".join(WORDS[i % 7 :]) for i in range(200)] + ["", "<|endoftext|>"]
    for ours, expected in zip(backend.encode_batch(texts), bpe.encode_batch(texts), strict=True):
        assert ours.dtype == expected.dtype and np.array_equal(ours, expected)


def test_large_batches_use_the_backend(bpe: Subwords, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subwords, "MIN_BATCH_CHARACTERS", 10), monkeypatch.setattr(subwords, "MIN_TOTAL_CHARACTERS", 40)
    tokenizer, batches = Subwords(bpe.to_json()), []
    monkeypatch.setattr(TiktokenBackend, "encode_batch", lambda self, texts: batches.append(len(texts)))
    texts = ["the tenth then"]
    tokenizer.encode_batch(texts), tokenizer.encode_batch(texts)
    assert batches == [], "the total is still small"
    tokenizer.encode_batch(texts), tokenizer.encode_batch(["the"])
    assert batches == [1], "a small batch does not use it"
    with refuses("surrogate"):
        tokenizer.encode_batch(["half a pair \ud800, and more"])


@pytest.mark.parametrize("seed", range(5))
def test_any_trained_vocabulary_agrees_on_its_own_text(seed: int):
    """Small alphabets, in which words overlap in every way."""
    rng = random.Random(seed)
    text = " ".join("".join(rng.choices("abc", [5, 3, 1], k=rng.randint(1, 9))) for _ in range(3000))
    tokenizer = train_bpe([text], 257 + rng.choice([20, 60, 200]))
    backend = build(tokenizer)
    assert backend is not None and backend.encode(text).tolist() == tokenizer.encode(text).tolist()


# --- vocabularies for which there is no backend ---


def is_refused(bpe: Subwords, **changes) -> bool:
    """Whether there is no backend for the tokenizer with these changes of its file."""
    return build_backend(json.dumps(json.loads(bpe.to_json()) | changes), np.uint16) is None


def test_only_a_plain_byte_level_bpe_is_accepted(bpe: Subwords):
    content = json.loads(bpe.to_json())
    model, splits = content["model"], content["pre_tokenizer"]
    token = {"id": len(model["vocab"]), "content": "tenth", "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": True, "special": False}
    assert not is_refused(bpe)
    assert is_refused(bpe, normalizer={"type": "Lowercase"})
    assert is_refused(bpe, pre_tokenizer=splits | {"add_prefix_space": True})
    assert is_refused(bpe, pre_tokenizer=splits | {"use_regex": False})
    assert is_refused(bpe, pre_tokenizer={"type": "Whitespace"})
    assert is_refused(bpe, added_tokens=[token])
    assert is_refused(bpe, model=model | {"ignore_merges": True})
    assert is_refused(bpe, model=model | {"dropout": 0.1})
    missing = {word: i for word, i in model["vocab"].items() if word != "ÿ"}
    assert is_refused(bpe, model=model | {"vocab": missing}), "a byte is missing"
    others = {"vocab": model["vocab"] | {"語": 700, "語a": 701}, "merges": [*model["merges"], ["語", "a"]]}
    assert is_refused(bpe, model=model | others), "an entry has other letters than bytes"


def test_a_vocabulary_with_two_ways_to_an_entry(bpe: Subwords):
    """a + bc is learned after a + b: "abc" by itself is never one id, though its bytes are an entry's."""
    vocab = {word: i for i, word in enumerate([*byte_alphabet(), "ab", "bc", "abc"])}
    model = json.loads(bpe.to_json())["model"] | {"vocab": vocab, "merges": [["a", "b"], ["b", "c"], ["a", "bc"]]}
    assert is_refused(bpe, model=model, added_tokens=[])
    assert is_refused(bpe, model=model | {"merges": [*model["merges"], ["ab", "c"]]}, added_tokens=[])
    single = model | {"merges": [["b", "c"], ["a", "bc"]], "vocab": {w: i for w, i in vocab.items() if w != "ab"}}
    assert not is_refused(bpe, model=single, added_tokens=[])


@pytest.mark.parametrize(
    ("pattern", "table"),
    [
        (r"\p{L}", r"[\p{L}--\u0F40]"),
        (r"\p{N}", r"[\p{N}--\u0F33]"),
        (r"\s", r"[\s--\u2003]"),
        (r"\s", r"[\s\x1c]"),
    ],
)
def test_other_unicode_tables(bpe: Subwords, monkeypatch: pytest.MonkeyPatch, pattern: str, table: str):
    """A difference of one character is noticed."""
    words = tiktoken_backend.WORDS.replace(r"\S", r"[^\s]").replace(pattern, table)
    monkeypatch.setattr(tiktoken_backend, "WORDS", words)
    uncached = tiktoken_backend.splits_words_equally.__wrapped__
    monkeypatch.setattr(tiktoken_backend, "splits_words_equally", uncached)
    assert build(bpe) is None


@pytest.mark.slow
def test_all_scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiktoken_backend, "SCRIPTS", ((0, 0xD800), (0xE000, 0x20000)))
    assert tiktoken_backend.splits_words_equally.__wrapped__()


def test_without_tiktoken(bpe: Subwords, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert build(bpe) is None
