"""Tokenizers: a text is decoded to itself, and the public library reads the same ids from the saved file."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.base import encode_each
from data_kit import ANY_TEXT, SAMPLE, load_gpt2, needs_data, refuses, write


@pytest.fixture(scope="module")
def bpe() -> tok.Subwords:
    return tok.train_bpe([SAMPLE], 300)


@given(ANY_TEXT)
def test_text_is_decoded_to_itself(bpe, text):
    for tokenizer in (tok.Characters(sorted(set(text))), tok.Bytes(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.count_bytes(ids) == len(text.encode())
        texts = [text, "", text[1:], text]
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(t).tolist() for t in texts]


@given(st.binary(max_size=60))
def test_bytes_are_decoded_to_themselves(raw):
    tokenizer = tok.Bytes()
    assert tokenizer.encode(raw).tolist() == list(raw) and tokenizer.count_bytes(tokenizer.encode(raw)) == len(raw)
    assert tokenizer.decode(tokenizer.encode(raw)) == raw.decode("utf-8", "replace")
    assert tokenizer.encode(raw.decode("utf-8", "surrogateescape")).tolist() == list(raw)


@settings(max_examples=20)
@given(text=st.text(st.sampled_from("ab é夏🌞\n\r\t\0\x85\u2028")))
def test_the_public_library_reads_the_same_ids(tmp_path_factory, bpe, text):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    for tokenizer in (tok.Characters(sorted("ab é夏🌞\n\r\t\0\x85\u2028")), tok.Bytes(), bpe):
        tokenizer.save(path)
        public = tokenizers.Tokenizer.from_file(str(path))
        ids = tokenizer.encode(text).tolist()
        assert public.encode(text).ids == ids and public.decode(ids) == text
        assert public.get_vocab_size() == tokenizer.vocab_size and public.token_to_id(tok.END) == tokenizer.end_id


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, bpe):
    path = tmp_path / "tokenizer.json"
    for tokenizer in (tok.Characters("ba\n"), tok.Bytes(), bpe):
        tokenizer.save(path)
        loaded = tok.load_tokenizer(path)
        assert type(loaded) is type(tokenizer) and loaded.to_json() == tokenizer.to_json()
        assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
        assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"], "no temporary file may stay"
        tokenizers.Tokenizer.from_file(str(path)).save(str(path))  # saved again by the public library
        loaded = tok.load_tokenizer(path)
        assert type(loaded) is type(tokenizer) and loaded.encode("ab").tolist() == tokenizer.encode("ab").tolist()


def test_end_ids_and_sizes(bpe):
    chars = tok.Characters("ab")
    assert (chars.end_id, chars.vocab_size, tok.Bytes.end_id, tok.Bytes.vocab_size) == (2, 3, 256, 257)
    assert bpe.vocab_size == 300 and bpe.end_id == bpe.token_to_id(tok.END) == 0
    assert [chars.token_to_id(token) for token in ("b", "c", tok.END)] == [1, None, 2]
    for tokenizer in (chars, tok.Bytes(), bpe):
        assert tokenizer.end_ids == (tokenizer.end_id,) and tokenizer.extra_files == {}
        ids = tokenizer.encode("ab").tolist()
        assert tokenizer.encode_with_bos_eos("ab").tolist() == tokenizer.encode_prompt("ab").tolist() == ids
        ids = [*ids, tokenizer.end_id, *tokenizer.encode("a"), tokenizer.vocab_size + 5]
        assert tokenizer.decode(ids) == "aba" and tokenizer.count_bytes(ids) == 3
    largest = tok.Characters([chr(i) for i in range(0x10000, 0x10000 + 65535)])
    assert largest.encode("\U00010001").dtype == np.uint16
    assert tok.Characters([*largest.characters, "a"]).encode("a").dtype == np.uint32


def test_raw_text_never_becomes_a_special_token(bpe):
    assert bpe.end_id not in bpe.encode(f"a{tok.END}b") and bpe.decode(bpe.encode(tok.END)) == tok.END


def test_nothing_is_truncated_padded_or_added(bpe):
    public = tokenizers.Tokenizer.from_str(bpe.to_json())
    public.enable_truncation(3)
    public.enable_padding(length=500)
    assert tok.Subwords(public.to_str()).encode(SAMPLE).tolist() == bpe.encode(SAMPLE).tolist()


def test_bytes_are_counted_by_decoding_where_a_vocabulary_is_not_of_bytes():
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"été": 0, "##s": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.decoder = tokenizers.decoders.WordPiece()
    tokenizer = tok.Subwords(words.to_str())
    assert tokenizer.count_bytes(tokenizer.encode("étés été")) == len("étés été".encode()) and tokenizer.end_id is None


def test_training_is_deterministic(bpe):
    assert tok.train_bpe([SAMPLE], 300).to_json() == bpe.to_json()


def test_training_samples_large_data_evenly():
    texts = [f"{i:04}" for i in range(1000)]
    sampled = list(tok.subsample_texts(lambda: iter(texts), 400))
    assert 90 <= len(sampled) <= 100 and max(np.diff([int(t) for t in sampled])) <= 11
    assert list(tok.subsample_texts(lambda: iter(texts), 4000)) == texts


@needs_data
def test_gpt2_ids():
    assert load_gpt2().encode("Hello, world!").tolist() == [15496, 11, 995, 0]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["t.json: not a tokenizer.json", "Expecting"]),
        ("[]", ["t.json: not a tokenizer.json", "no model"]),
        ('{"model": {"type": "BPE"}}', ["t.json: not a tokenizer.json"]),
        ('{"model": {"type": "WordLevel", "vocab": 3}}', ["t.json: not a tokenizer.json"]),
        (b"\xff", ["t.json: cannot be read as text", "not UTF-8"]),
    ],
)
def test_bad_tokenizer_file(tmp_path, content, parts):
    with refuses(*parts):
        tok.load_tokenizer(write(tmp_path / "t.json", content))


def test_bad_tokenizers(tmp_path, monkeypatch):
    with refuses("tokenizer 'bype'", "did you mean", "char, byte, bpe"):
        tok.build_tokenizer("bype", lambda: iter(["a"]), 300)
    with refuses("'no/t.json'", "no such file"):
        tok.load_tokenizer(Path("no/t.json"))
    with refuses("vocabulary of 256", "at least 257"):
        tok.build_tokenizer("bpe", lambda: iter(["a"]), 256)
    with refuses("vocabulary of 2 characters", "'c', 'd', 'e', 'f', 'g' and more", "character 2", "byte or bpe"):
        tok.Characters("ab").encode("abcdefgha")
    for tokenizer in (tok.Characters("ab"), tok.Bytes(), tok.train_bpe([SAMPLE], 257)):
        with refuses(r"'\ud800'", "at character 2"):
            tokenizer.encode_batch(["ab", "ab\ud800"])
    with refuses("the third text", "no 'c'"):
        encode_each(tok.Characters("ab"), ["a", "b", "c"], ["first", "second", "the third text"])
    monkeypatch.setattr(tok, "MAX_FILE_BYTES", 10)
    with refuses("holds more than"):
        tok.load_tokenizer(write(tmp_path / "t.json", " " * 11))


def test_tokens_without_text_have_a_name():
    assert tok.Characters("ab").special_name(2) == "⟨end⟩" and tok.Characters("ab").special_name(9) == "⟨9⟩"
    bpe = tok.build_tokenizer("bpe", lambda: iter(["a b c"] * 9), 300)
    assert bpe.decode([bpe.end_id]) == "" and bpe.special_name(bpe.end_id) == "<|endoftext|>"
    assert bpe.special_name(10**6) == f"⟨{10**6}⟩"
