"""Tokenizers: what goes in comes out, and the public library reads the same ids from the saved file."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.tokenizers import build as tok
from data_kit import ANY_TEXT, SAMPLE, gpt2, needs_data, refuses, write


@pytest.fixture(scope="module")
def trained() -> tok.Subwords:
    """A small BPE."""
    return tok.train_bpe([SAMPLE], 300)


@given(ANY_TEXT)
def test_characters_come_back(words):
    own = tok.Characters(sorted(set(words)))
    ids = own.encode(words)
    assert own.decode(ids) == words and len(ids) == len(words)
    assert own.n_bytes(ids) == len(words.encode())


@given(st.binary(max_size=60), ANY_TEXT)
def test_bytes_come_back(raw, words):
    own = tok.Bytes()
    assert own.encode(raw).tolist() == list(raw) and own.n_bytes(own.encode(raw)) == len(raw)
    assert own.decode(own.encode(words)) == words
    assert own.decode(own.encode(raw)) == raw.decode("utf-8", "replace")
    assert own.encode(raw.decode("utf-8", "surrogateescape")).tolist() == list(raw)


@given(ANY_TEXT)
def test_subwords_come_back(trained, words):
    ids = trained.encode(words)
    assert trained.decode(ids) == words and trained.n_bytes(ids) == len(words.encode())
    assert all(ids.tolist() == other.tolist() for other in trained.encode_batch([words, words]))


@settings(deadline=None, max_examples=25)
@given(words=st.text(st.sampled_from("ab é夏🌞\n\r\t\0\x85\u2028")))
def test_public_library_reads_the_same_ids(tmp_path_factory, trained, words):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    for own in (tok.Characters(sorted("ab é夏🌞\n\r\t\0\x85\u2028")), tok.Bytes(), trained):
        own.save(path)
        public = tokenizers.Tokenizer.from_file(str(path))
        assert public.encode(words).ids == own.encode(words).tolist()
        assert public.decode(own.encode(words).tolist()) == words == own.decode(own.encode(words))
        assert public.get_vocab_size() == own.vocab_size and public.token_to_id(tok.END) == own.end


def test_saved_and_loaded_is_the_same(tmp_path, trained):
    path = tmp_path / "tokenizer.json"
    for own in (tok.Characters("ba\n"), tok.Bytes(), trained):
        own.save(path)
        again = tok.load(path)
        assert type(again) is type(own) and again.json() == own.json()
        assert (again.kind, again.vocab_size, again.end) == (own.kind, own.vocab_size, own.end)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"], "no temporary file may stay"
    tokenizers.Tokenizer.from_file(str(path)).save(str(path))
    assert tok.load(path).encode(SAMPLE).tolist() == trained.encode(SAMPLE).tolist()


@pytest.mark.parametrize("own", [tok.Characters("ba\n"), tok.Bytes()])
def test_own_file_saved_again_by_the_library_is_still_ours(tmp_path, own):
    tokenizers.Tokenizer.from_str(own.json()).save(str(tmp_path / "t.json"))
    assert type(tok.load(tmp_path / "t.json")) is type(own)


def test_ends_and_sizes(trained):
    chars = tok.Characters("ab")
    assert (chars.end, chars.vocab_size, tok.Bytes.end, tok.Bytes.vocab_size) == (2, 3, 256, 257)
    assert trained.vocab_size == 300 and trained.end == 0
    assert (chars.id_of("b"), chars.id_of("c"), chars.id_of(tok.END), trained.id_of(tok.END)) == (1, None, 2, 0)
    for own in (chars, tok.Bytes(), trained):
        assert own.ends == (own.end,) and own.beside == {}
        assert own.whole("ab").tolist() == own.prompt("ab").tolist() == own.encode("ab").tolist()
    for own in (chars, tok.Bytes(), trained):
        ids = [*own.encode("ab"), own.end, *own.encode("a"), own.vocab_size + 5]
        assert own.decode(ids) == "aba" and own.n_bytes(ids) == 3
    many = tok.Characters([chr(i) for i in range(0x10000, 0x10000 + 65535)])
    assert many.encode("\U00010001").dtype == np.uint16
    assert tok.Characters([*many.characters, "a"]).encode("a").dtype == np.uint32


def test_raw_text_never_becomes_a_special_token(trained):
    assert trained.end not in trained.encode(f"a{tok.END}b") and trained.decode(trained.encode(tok.END)) == tok.END


def test_nothing_is_cut_padded_or_added(trained):
    public = tokenizers.Tokenizer.from_str(trained.json())
    public.enable_truncation(3)
    public.enable_padding(length=500)
    assert tok.Subwords(public.to_str()).encode(SAMPLE).tolist() == trained.encode(SAMPLE).tolist()


def test_n_bytes_by_decoding():
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"été": 0, "##s": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.decoder = tokenizers.decoders.WordPiece()
    own = tok.Subwords(words.to_str())
    assert own.n_bytes(own.encode("étés été")) == len("étés été".encode()) and own.end is None


def test_training_is_the_same_each_time(trained):
    assert tok.train_bpe([SAMPLE], 300).json() == trained.json()


def test_training_takes_evenly_from_large_data():
    texts = [f"{i:04}" for i in range(1000)]
    taken = list(tok.spread(lambda: iter(texts), 400))
    assert 90 <= len(taken) <= 100 and max(np.diff([int(t) for t in taken])) <= 11
    assert list(tok.spread(lambda: iter(texts), 4000)) == texts


@needs_data
def test_gpt2_ids():
    assert gpt2().encode("Hello, world!").tolist() == [15496, 11, 995, 0]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["t.json: not a tokenizer.json", "Expecting"]),
        ("[]", ["t.json: not a tokenizer.json", "no model"]),
        ('{"model": {"type": "BPE"}}', ["t.json: not a tokenizer.json"]),
        ('{"model": {"type": "WordLevel", "vocab": 3}}', ["t.json: not a tokenizer.json"]),
        (b"\xff", ["t.json: not a tokenizer.json", "utf-8"]),
    ],
)
def test_bad_tokenizer_file(tmp_path, content, parts):
    with refuses(*parts):
        tok.load(write(tmp_path / "t.json", content))


def test_bad_tokenizers(tmp_path, monkeypatch):
    with refuses("tokenizer 'bype'", "did you mean", "char, byte, bpe"):
        tok.make("bype", lambda: iter(["a"]), 300)
    with refuses("'no/t.json'", "no such file"):
        tok.load(Path("no/t.json"))
    with refuses("vocabulary of 256", "at least 257"):
        tok.make("bpe", lambda: iter(["a"]), 256)
    with refuses("vocabulary of 2 characters", "'c', 'd', 'e', 'f', 'g' and more", "character 2", "byte or bpe"):
        tok.Characters("ab").encode("abcdefgha")
    for own in (tok.Characters("ab"), tok.Bytes(), tok.train_bpe([SAMPLE], 257)):
        with refuses(r"'\ud800'", "at character 2"):
            own.encode_batch(["ab", "ab\ud800"])
    monkeypatch.setattr(tok, "LARGEST_FILE", 10)
    with refuses("larger than"):
        tok.load(write(tmp_path / "t.json", " " * 11))
