"""Older vocabulary files give the ids of the public tokenizers."""

import base64
import json
import random
import string
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers import vocabularies
from anyformer.data.tokenizers.base import byte_alphabet
from anyformer.data.tokenizers.gguf_vocabulary import convert_from_gguf
from anyformer.errors import InputError
from data_kit import DATA, SAMPLE, needs_data, refuses, write

TOKENS = "tokenizer.ggml.tokens"
HOME = Path(DATA or "") / "tokenizers"
HARD_TEXTS = [
    "",
    " ",
    "Hello, world!",
    "I'll  don't WE'VE it's I'M'D",
    "3.14159 1234567890 ٣٤٥ ²³ Ⅷ 1,000,000",
    "tab\there \n\n\n new \r\n lines   \t trailing   ",
    "été ÉTÉ e\u0301te\u0301 İstanbul ß ﬁ Å",
    "夏目漱石は日本の작가 שלום مرحبا हिन्दी ภาษาไทย",
    "🌞👩‍👩‍👧‍👦🇫🇷 👍🏽 \u200b\u200d\ufeff\u00a0x\u2003y",
    "\0\x01\x07\x1b[31m\x7f\x85\u2028\u2029",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ue000",
    "def f(x):\n    return x**2  # <html>&amp;</html> __init__ $%^~|+=",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 5,
    "naïve co-operate […] “quotes” — dash's ’tis can’t",
]


def texts() -> Iterator[str]:
    """Yield the texts above, and random mixtures of their characters."""
    yield from HARD_TEXTS
    rng, letters = random.Random(0), "".join(HARD_TEXTS)
    for _ in range(60):
        yield "".join(rng.choice(letters) for _ in range(40))


def check_equal(own: tok.Tokenizer, public) -> None:
    """Check ids and decoded texts, with and without the special tokens around a text."""
    for text in texts():
        ids = public(text, add_special_tokens=False).input_ids
        assert own.encode(text).tolist() == ids, repr(text)
        assert own.encode_with_bos_eos(text).tolist() == public(text).input_ids
        assert own.decode(ids) == public.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def gpt2() -> tok.Tokenizer:
    return tok.load_tokenizer(HOME / "gpt2")


@needs_data
def test_gpt2_is_the_public_one(gpt2):
    transformers = pytest.importorskip("transformers")
    public = transformers.GPT2TokenizerFast(str(HOME / "gpt2" / "vocab.json"), str(HOME / "gpt2" / "merges.txt"))
    check_equal(gpt2, public)
    for text in texts():
        assert gpt2.encode_prompt(text).tolist() == public(text).input_ids
        assert gpt2.decode(gpt2.encode(text)) == text
    assert (gpt2.vocab_size, gpt2.end_id, gpt2.end_ids, gpt2.extra_files) == (50257, 50256, (50256,), {})
    assert gpt2.encode_parsing_special(f"a{tok.END}").tolist() == [64, 50256] and gpt2.token_to_id(tok.END) == 50256


@pytest.mark.slow
@needs_data
def test_gpt2_ranks_are_its_merges(gpt2, tmp_path):
    byte = {c: b for b, c in enumerate(byte_alphabet())}
    vocab = json.loads((HOME / "gpt2" / "vocab.json").read_text())
    ranks = {bytes(byte[c] for c in token): i for token, i in vocab.items() if i < 50256}
    lines = [f"{base64.b64encode(token).decode()} {i}" for token, i in sorted(ranks.items(), key=lambda x: x[1])]
    write(tmp_path / "gpt2.tiktoken", "\n".join(lines) + "\n")
    own = tok.load_tokenizer(tmp_path)
    theirs, ours = (json.loads(tokenizer.to_json())["model"] for tokenizer in (gpt2, own))
    assert ours["merges"] == theirs["merges"] and ours["vocab"] == theirs["vocab"]
    assert own.end_id == 50256
    tiktoken = pytest.importorskip("tiktoken")
    words = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    public = tiktoken.Encoding("gpt2", pat_str=words, mergeable_ranks=ranks, special_tokens={tok.END: 50256})
    for text in texts():
        assert own.encode(text).tolist() == public.encode_ordinary(text)


@needs_data
@pytest.mark.parametrize("lower", [None, True, False])
def test_wordpiece_is_the_public_one(tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "vocab.txt", (HOME / "bert" / "vocab.txt").read_bytes())
    options = {} if lower is None else {"do_lower_case": lower, "strip_accents": not lower}
    write(tmp_path / "tokenizer_config.json", json.dumps(options))
    own = tok.load_tokenizer(tmp_path)
    public = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), **options)
    check_equal(own, public)
    assert own.encode_with_bos_eos("a").tolist() == [101, *own.encode("a"), 102]
    assert own.encode_prompt("a").tolist() == [101, *own.encode("a")]
    saved = tokenizers.Tokenizer.from_str(own.to_json()).encode("one", "two")
    assert saved.ids == public("one", "two").input_ids and saved.type_ids == public("one", "two").token_type_ids


@pytest.mark.slow
@needs_data
def test_whisper_is_the_public_one():
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    own = tok.load_tokenizer(HOME / "whisper")
    assert list(LANGUAGES) == vocabularies.LANGUAGES
    model = json.loads(own.to_json())["model"]
    public = transformers.WhisperTokenizerFast(
        vocab={t: i for t, i in model["vocab"].items() if i < 50257}, merges=[tuple(pair) for pair in model["merges"]]
    )
    special = sorted((i, t) for t, i in model["vocab"].items() if i >= 50257)
    public.add_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for _, t in special])
    public.set_prefix_tokens()
    check_equal(own, public)
    ids = {"<|en|>": 50259, "<|su|>": 50357, "<|translate|>": 50358, "<|transcribe|>": 50359}
    ids |= {"<|nospeech|>": 50362, "<|notimestamps|>": 50363, "<|0.00|>": 50364, "<|30.00|>": 51864}
    assert {token: own.token_to_id(token) for token in ids} == ids
    assert (own.end_id, own.vocab_size) == (50257, 51865)
    assert own.encode_prompt("a").tolist() == [50258, 50363, *own.encode("a")]
    large = vocabularies.convert_tiktoken(
        HOME / "whisper" / "multilingual.tiktoken", {"model_type": "whisper", "vocab_size": 51866}
    )
    assert tok.Subwords(large).token_to_id("<|yue|>") == 50358 and tok.Subwords(large).vocab_size == 51866


# --- GGUF ---


def gguf(pre: str = "gpt-2", **changes) -> dict:
    """Return the metadata of a small byte-level vocabulary in a GGUF file."""
    model = json.loads(tok.train_bpe([SAMPLE], 300).to_json())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>", "<user>"]
    tokens[0] = tok.END
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 4) + [3, 3, 4],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": len(tokens) - 2,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in (values | changes).items()}


def split_words(pre: str, text: str) -> list[str]:
    """Split words by a rule of GGUF."""
    own = tokenizers.Tokenizer.from_str(convert_from_gguf(gguf(pre))["tokenizer.json"])
    return [text[slice(*span)] for _, span in own.pre_tokenizer.pre_tokenize_str(text)]


def test_gguf_byte_level():
    files = convert_from_gguf(gguf() | {"tokenizer.chat_template": "hi"})
    own = tok.tokenizer_from_files(files)
    assert own.encode(SAMPLE).tolist() == tok.train_bpe([SAMPLE], 300).encode(SAMPLE).tolist()
    assert tok.tokenizer_from_files(convert_from_gguf(gguf(eot_token_id=0))).end_ids == (301, 0)
    assert own.end_ids == (301,) and own.apply_chat_template([{"role": "user", "content": "x"}]) == "hi"
    assert own.encode("<user>").tolist() == [302] and len(own.encode("<|im_end|>")) > 3
    assert own.encode_parsing_special("<|im_end|>").tolist() == [301]
    assert own.encode_prompt("a").tolist() == own.encode("a").tolist()
    for pre in ("gpt-2", "smollm", "llama-bpe", "default"):
        tokenizer = tok.tokenizer_from_files(convert_from_gguf(gguf(pre)))
        for text in texts():
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gguf_rules_split_words_as_llama_cpp_does():
    text = "I'LL pay 12345 now!\n\n x"
    expected = {
        "gpt-2": "I|'|LL| pay| 12345| now|!|\n\n| x",
        "smollm": "I|'|LL| pay| |1|2|3|4|5| now|!|\n\n| x",
        "llama-bpe": "I|'LL| pay| |123|45| now|!\n\n| x",
        "qwen2": "I|'LL| pay| |1|2|3|4|5| now|!\n\n| x",
        "default": "I|'|LL| pay| |123|45| now|!|\n\n| x",
    }
    assert {rule: "|".join(split_words(rule, text)) for rule in expected} == expected


def sentencepiece() -> dict:
    """Return the metadata of a small SentencePiece vocabulary in a GGUF file."""
    rng = random.Random(1)
    words = ["\u2581" + word for word in SAMPLE.replace("🌞", "").split()]
    parts = {word[:n] for word in words for n in range(2, len(word) + 1)} | {w[n:] for w in words for n in (1, 2)}
    letters = sorted({c for word in words for c in word})
    merged = sorted(t for t in parts if len(t) > 1)
    rng.shuffle(merged)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *merged, *letters]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    values = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    values |= {"bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def encode_slowly(values: dict, text: str) -> list[int]:
    """SentencePiece in four lines: merge the neighbors whose token scores best, until none are a token."""
    ids = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"]) if i > 258}
    parts = list(("\u2581" + text if text else "").replace(" ", "\u2581"))
    while merges := [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
        first = min(merges)[1]
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + b for b in part.encode()])]


def test_gguf_sentencepiece():
    values = sentencepiece()
    own = tok.tokenizer_from_files(convert_from_gguf(values))
    for text in [*texts(), *SAMPLE[:400].split("\n"), SAMPLE[3:200].replace("\n", " ")]:
        assert own.encode(text).tolist() == encode_slowly(values, text), repr(text)
        assert own.decode(own.encode(text)) == text
        assert own.encode_prompt(text).tolist() == [1, *encode_slowly(values, text)]
    assert (own.end_id, own.end_ids, own.vocab_size) == (2, (2,), len(values["tokenizer.ggml.tokens"]))


def test_gguf_sentencepiece_is_the_public_llama():
    transformers = pytest.importorskip("transformers")
    own = tok.tokenizer_from_files(convert_from_gguf(sentencepiece()))
    model = json.loads(own.to_json())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    public = transformers.LlamaTokenizerFast(vocab=model["vocab"], merges=merges, add_bos_token=True)
    for text in texts():
        if not text.startswith(" "):  # there the public one leaves out the space that SentencePiece puts in front
            assert own.encode_prompt(text).tolist() == public(text).input_ids
            assert own.decode(own.encode_prompt(text)) == text


def encode_field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer whose number, length and value are below 2^14."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])

    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def make_model_file(kind: int = 2, removes_spaces: int = 0, prefix: int = 1) -> bytes:
    """The vocabulary of `sentencepiece` as SentencePiece stores it."""
    names = ("tokens", "scores", "token_type")
    rows = zip(*(sentencepiece()[f"tokenizer.ggml.{name}"] for name in names), strict=True)
    pieces = [encode_field(1, t.encode()) + encode_field(2, s) + encode_field(3, k) for t, s, k in rows]
    trainer = encode_field(3, kind) + encode_field(41, 1) + encode_field(42, 2)
    normalizer = encode_field(1, b"identity") + encode_field(3, prefix) + encode_field(4, removes_spaces)
    content = b"".join(encode_field(1, piece) for piece in pieces)
    return content + encode_field(2, trainer) + encode_field(3, normalizer)


def test_a_sentencepiece_model_is_that_of_gguf_with_the_added_tokens(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(make_model_file())
    expected, n = tok.tokenizer_from_files(convert_from_gguf(sentencepiece())), len(sentencepiece()[TOKENS])
    assert tok.load_tokenizer(tmp_path).to_json() == expected.to_json()
    added = {str(n): {"content": "<|im_end|>", "special": True}, "2": {"content": "</s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    own = tok.load_tokenizer(tmp_path)
    assert own.vocab_size == n + 1 and own.encode_parsing_special("<|im_end|>").tolist()[-1] == n
    assert own.encode(SAMPLE[:200]).tolist() == expected.encode(SAMPLE[:200]).tolist()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"9999": {"content": "x y"}}}))
    with pytest.raises(InputError, match="the added token 'x y' should have the id 9999, which is not the next one"):
        tok.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_model_file(kind=3), "is a SentencePiece model of type 3; only BPE and unigram"),
        (make_model_file(removes_spaces=1), "removes spaces of texts, which is not supported"),
        (make_model_file()[:5000], "tokenizer.model is truncated, or is not a SentencePiece model"),
        (b"\x0a" + b"\xff" * 20, "a number has more than 64 bits"),
        (b"version https://git-lfs.github.com/spec/v1", "SentencePiece model"),
        (b"", "has 0 pieces for what is unknown"),
    ],
    ids=["words", "spaces", "cut", "long", "pointer", "empty"],
)
def test_a_sentencepiece_model_that_cannot_be_read_is_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        tok.load_tokenizer(tmp_path)


# --- unigram vocabularies of SentencePiece ---

UNIGRAM = {
    "\u2581": -3.0,
    "\u2581the": -2.0,
    "\u2581then": -3.5,
    "n": -4.0,
    "e": -4.5,
    "t": -4.6,
    "h": -4.7,
    "he": -5.0,
}
UNIGRAM |= {"\u2581a": -2.5, "a": -4.1, "i": -4.2, "an": -3.9, "fi": -9.0, "f": -5.0}


def encode_unigram_slowly(text: str) -> list[str]:
    """Try every way to cut a text; characters that no piece has are one unknown piece."""
    best: dict[int, tuple[float, list[str]]] = {0: (0.0, [])}
    for end in range(1, len(text) + 1):
        options = []
        for start in range(max(0, end - 6), end):
            piece = text[start:end]
            score = UNIGRAM.get(piece, min(UNIGRAM.values()) - 10 if end - start == 1 else None)
            if score is not None and start in best:
                options.append((best[start][0] + score, [*best[start][1], piece]))
        best[end] = max(options)
    return best[len(text)][1]


def make_charsmap(old: str, new: str) -> bytes:
    """A table that rewrites one character of one byte: a trie of three blocks, and the new text."""
    units = np.zeros(3 * 256, "<u4")
    units[0] = 256 << 10  # the root: its block begins at 256
    units[256 ^ ord(old)] = (((256 ^ ord(old)) ^ 512) << 10) | 1 << 8 | ord(old)  # a leaf, whose block begins at 512
    units[512] = 1 << 31  # the new text begins at 0
    return struct.pack("<I", units.nbytes) + units.tobytes() + new.encode() + b"\0"


def make_unigram_file(charsmap: bytes = b"", kinds: tuple[int, ...] = (2, 3), trainer: bytes = b"") -> bytes:
    special = [("<unk>", 0.0, kinds[0]), ("</s>", 0.0, kinds[1]), ("<sep>", 0.0, 4)]
    rows = [*special, *((piece, score, 1) for piece, score in UNIGRAM.items())]
    pieces = [encode_field(1, t.encode()) + encode_field(2, s) + encode_field(3, k) for t, s, k in rows]
    content = b"".join(encode_field(1, piece) for piece in pieces) + encode_field(2, encode_field(3, 1) + trainer)
    return content + encode_field(3, encode_field(2, charsmap)) if charsmap else content


def test_a_unigram_vocabulary_is_the_likeliest_cut(tmp_path: Path):
    """Spaces are removed at the ends and where they repeat, as the file says by default."""
    (tmp_path / "spiece.model").write_bytes(make_unigram_file())
    own, ids = tok.load_tokenizer(tmp_path), {piece: i for i, piece in enumerate(UNIGRAM, 3)}
    assert (own.kind, own.vocab_size) == ("unigram", 3 + len(UNIGRAM))
    for text in ("the then", "  a   hen ", "theni", "naan fi the", "eeee", "t h e n", ""):
        normal = " ".join(text.split())
        expected = encode_unigram_slowly("\u2581" + normal.replace(" ", "\u2581")) if normal else []
        assert own.encode(text).tolist() == [ids[piece] for piece in expected], text
        assert own.decode(own.encode(text)) == normal
    assert own.encode("a<sep>a").tolist()[1] == 2  # user-defined pieces are found in any text
    assert own.encode("a \u2603 a").tolist() == [ids["\u2581a"], ids["\u2581"], 0, ids["\u2581a"]]


def test_texts_of_siglip_are_simplified_and_ended(tmp_path: Path):
    """As its authors' `canonicalize_text`: lower case, no ASCII punctuation, single spaces."""
    (tmp_path / "spiece.model").write_bytes(make_unigram_file())
    plain = tok.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    own = tok.load_tokenizer(tmp_path)
    for text in ("The  THEN!", f"a{string.punctuation}n", " - an -- the ", "(a) hen, then."):
        simple = " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
        assert own.encode(text).tolist() == plain.encode(simple).tolist() != plain.encode(text).tolist()
        assert own.encode_with_bos_eos(text).tolist() == [*plain.encode(simple).tolist(), 1]


def test_the_table_of_characters_is_applied(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(make_unigram_file(make_charsmap("T", "t")))
    own = tok.load_tokenizer(tmp_path)
    assert own.encode("THe Then").tolist()[-1] == own.encode("then").tolist()[-1] != 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_unigram_file(kinds=(1, 3)), "has 0 pieces for what is unknown"),
        (make_unigram_file(kinds=(2, 2)), "has 2 pieces for what is unknown"),
        (make_unigram_file(kinds=(2, 9)), "type 9"),
        (make_unigram_file(trainer=encode_field(24, 1)), "spaces behind words"),
        (make_unigram_file(make_charsmap("T", "t")[:900]), "the table of characters is damaged"),
        (make_unigram_file(b"abc"), "the table of characters is damaged"),
        (make_unigram_file(make_charsmap("T", "t").replace(struct.pack("<I", 256 << 10), b"\0\0\xff\x7f")), "damaged"),
        (make_unigram_file(make_charsmap("T", "t").replace(b"\0\0\0\x80", b"\xff\0\0\x80")), "damaged"),
        (make_unigram_file(make_charsmap("T", "\u00e9").replace(b"\0\0\0\x80", b"\1\0\0\x80")), "damaged"),
    ],
)
def test_a_unigram_vocabulary_that_makes_no_sense_is_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        tok.load_tokenizer(tmp_path)


# --- bad files ---


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("readme", "", ["holds no tokenizer: expected tokenizer.json"]),
        ("sentencepiece.bpe.model", "", ["holds no tokenizer", "SentencePiece"]),
        ("vocab.json", "{", ["vocab.json: not JSON"]),
        ("vocab.json", "[]", ["vocab.json: should hold a JSON object"]),
        ("vocab.json", '{"a": "b"}', ["vocab.json: the id of 'a' is 'b'"]),
        ("vocab.json", '{"a": 1, "b": 1}', ["'b' and 'a' have the same id 1"]),
        ("vocab.json", '{"a": 1, "b": 0}', ["the merge of 'a' and 'b' needs 'ab'"]),
        ("merges.txt", "#version\na b\nabc\n", ["merges.txt, line 3: 'abc' is not two tokens"]),
        ("vocab.txt", "[UNK]\na\na\n", ["vocab.txt, line 3: 'a' is on line 2"]),
        ("vocab.txt", "[UNK]\na\n", ["vocab.txt: a WordPiece vocabulary needs [CLS]"]),
        ("vocab.txt", b"\xff", ["vocab.txt: cannot be read as text"]),
        ("a.tiktoken", "IQ== 0\nIg==\n", ["a.tiktoken, line 2: 'Ig==' is not base64"]),
        ("a.tiktoken", "IQ== 0\nI!== 1\n", ["a.tiktoken, line 2"]),
        ("a.tiktoken", "IQ== 1\n", ["a.tiktoken, line 1: rank 1", "expected a new token, 0"]),
        ("a.tiktoken", "IQ== 0\n", ["a.tiktoken: byte 0 has no rank"]),
    ],
)
def test_malformed_files(tmp_path, name, content, parts):
    if name in ("vocab.json", "merges.txt"):
        write(tmp_path / "vocab.json", '{"a": 0, "b": 1, "ab": 2}')
        write(tmp_path / "merges.txt", "a b\n")
    write(tmp_path / name, content)
    with refuses(*parts):
        tok.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"pre": "lama-bpe"}, ["tokenizer.ggml.pre 'lama-bpe'", "did you mean 'llama-bpe'", "gpt-2, smollm"]),
        ({"model": "bert"}, ["tokenizer.ggml.model is 'bert'", "gpt2, llama"]),
        ({"tokens": 3}, ["tokenizer.ggml.tokens should be a list of str"]),
        ({"tokens": ["a", "a"]}, ["has 'a' twice"]),
        ({"token_type": [1]}, ["tokenizer.ggml.token_type has 1 entries for"]),
        ({"merges": ["ab"]}, ["tokenizer.ggml.merges: 'ab' is not two tokens"]),
        ({"merges": ["zz z"]}, ["the merge of 'zz' and 'z' needs 'zz'"]),
        ({"eos_token_id": 10**9}, ["tokenizer.ggml.eos_token_id is 1000000000"]),
        ({"model": "llama"}, ["tokenizer.ggml.scores should be a list of float"]),
    ],
)
def test_malformed_gguf(change, parts):
    with refuses(*parts):
        convert_from_gguf(gguf(**change))
