"""The quicker way of a byte-level BPE gives the ids of the slow one, or is not taken."""

import json
import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.tokenizers import subwords
from anyformer.data.tokenizers import tiktoken_backend as room
from anyformer.data.tokenizers.build import Subwords, train_bpe
from anyformer.data.tokenizers.tiktoken_backend import Quick, quick
from anyformer.errors import InputError

WORDS = [
    "the",
    "there",
    "then",
    "hen",
    "ten",
    "enter",
    "tenth",
    "théâtre",
    "don't",
    "1999",
    "199",
    "...",
    "日本語",
    "🙂🙂",
]


def learned(vocab_size: int = 600, seed: int = 0) -> Subwords:
    rng = random.Random(seed)
    return train_bpe([" ".join(rng.choices(WORDS, k=4000))], vocab_size)


def found(made: Subwords) -> Quick | None:
    return quick(made.json(), np.uint16)


@pytest.fixture(scope="module")
def bpe() -> Subwords:
    return learned()


@pytest.fixture(scope="module")
def sooner(bpe: Subwords) -> Quick:
    made = found(bpe)
    assert made is not None
    return made


@given(st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(WORDS)), max_size=12))
def test_the_same_ids(bpe: Subwords, sooner: Quick, parts: list[str]):
    for text in ("".join(parts), " ".join(parts), "\n\n ".join(parts)):
        assert sooner.encode(text).tolist() == bpe.encode(text).tolist()


def test_a_batch_keeps_its_order_and_its_type(bpe: Subwords, sooner: Quick):
    texts = [" ".join(WORDS[i % 7 :]) for i in range(200)] + ["", "<|endoftext|>"]
    want = bpe.encode_batch(texts)
    made = sooner.encode_batch(texts)
    assert [one.dtype for one in made] == [one.dtype for one in want]
    assert all(np.array_equal(a, b) for a, b in zip(made, want, strict=True))


def test_much_text_takes_the_quicker_way(bpe: Subwords, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subwords, "SMALL", 10), monkeypatch.setattr(subwords, "MUCH", 40)
    made, taken = Subwords(bpe.json()), []
    monkeypatch.setattr(Quick, "encode_batch", lambda self, texts: taken.append(len(texts)))
    texts = ["the tenth then"]
    made.encode_batch(texts), made.encode_batch(texts)
    assert taken == []  # not yet much
    made.encode_batch(texts), made.encode_batch(["the"])
    assert taken == [1]  # and nothing small
    with pytest.raises(InputError, match="surrogate"):
        made.encode_batch(["half a pair \ud800, and more"])


@pytest.mark.parametrize("seed", range(5))
def test_any_trained_vocabulary_agrees_on_its_own_text(seed: int):
    """Small alphabets, where words overlap in every way there is."""
    rng = random.Random(seed)
    texts = [" ".join("".join(rng.choices("abc", [5, 3, 1], k=rng.randint(1, 9))) for _ in range(3000))]
    made = train_bpe(texts, 257 + rng.choice([20, 60, 200]))
    sooner = found(made)
    assert sooner is not None and sooner.encode(texts[0]).tolist() == made.encode(texts[0]).tolist()


# --- what is not taken ---


def described(made: Subwords, **changes) -> str:
    return json.dumps(json.loads(made.json()) | changes)


def refused(text: str) -> bool:
    return quick(text, np.uint16) is None


def test_what_is_no_plain_byte_level_bpe(bpe: Subwords):
    model = json.loads(bpe.json())["model"]
    cuts = json.loads(bpe.json())["pre_tokenizer"]
    token = {"id": len(model["vocab"]), "content": "tenth", "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": True, "special": False}
    assert not refused(described(bpe))
    assert refused(described(bpe, normalizer={"type": "Lowercase"}))
    assert refused(described(bpe, pre_tokenizer=cuts | {"add_prefix_space": True}))
    assert refused(described(bpe, pre_tokenizer=cuts | {"use_regex": False}))
    assert refused(described(bpe, pre_tokenizer={"type": "Whitespace"}))
    assert refused(described(bpe, added_tokens=[token]))
    assert refused(described(bpe, model=model | {"ignore_merges": True}))
    assert refused(described(bpe, model=model | {"dropout": 0.1}))


def test_a_vocabulary_with_two_ways_to_an_entry(bpe: Subwords):
    """a + bc is learned after a + b: "abc" by itself is never one id, though its bytes are an entry's."""
    letters = room.byte_alphabet()
    merges = ["a b", "b c", "a bc"]
    vocab = {word: i for i, word in enumerate([*letters, "ab", "bc", "abc"])}
    model = json.loads(bpe.json())["model"] | {"vocab": vocab, "merges": [pair.split() for pair in merges]}
    assert refused(described(bpe, model=model, added_tokens=[]))
    twice = model | {"merges": [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]}
    assert refused(described(bpe, model=twice, added_tokens=[]))
    whole = model | {"merges": [["b", "c"], ["a", "bc"]], "vocab": {w: i for w, i in vocab.items() if w != "ab"}}
    assert not refused(described(bpe, model=whole, added_tokens=[]))


def test_an_entry_of_other_letters_than_bytes(bpe: Subwords):
    model = json.loads(bpe.json())["model"]
    vocab = model["vocab"] | {"語": 700, "語a": 701}
    assert refused(described(bpe, model=model | {"vocab": vocab, "merges": [*model["merges"], ["語", "a"]]}))


def test_a_byte_that_the_vocabulary_lacks(bpe: Subwords):
    model = json.loads(bpe.json())["model"]
    vocab = {word: i for word, i in model["vocab"].items() if word != "ÿ"}
    assert refused(described(bpe, model=model | {"vocab": vocab}))


@pytest.mark.parametrize(
    ("known", "table"),
    [
        (r"\p{L}", "[A-Za-z]"),
        (r"\p{L}", r"[\p{L}--\u0F40]"),
        (r"\p{N}", "[0-9]"),
        (r"\p{N}", r"[\p{N}--\u0F33]"),
        (r"\s", r"[\s--\u2003]"),
        (r"\s", r"[\s\x1c]"),
    ],
)
def test_other_tables_of_unicode(bpe: Subwords, monkeypatch: pytest.MonkeyPatch, known: str, table: str):
    """However little they differ: by one character."""
    monkeypatch.setattr(room, "WORDS", room.WORDS.replace(r"\S", r"[^\s]").replace(known, table))
    monkeypatch.setattr(room, "alike", room.alike.__wrapped__)
    assert found(bpe) is None


def test_without_tiktoken(bpe: Subwords, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert found(bpe) is None
