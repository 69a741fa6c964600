"""Older vocabularies give the ids of the public tokenizers, and what stands beside them is understood."""

import base64
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers import gguf_read as gguf_vocabulary
from anyformer.data.tokenizers import json_layout as layout
from anyformer.data.tokenizers import vocabularies
from data_kit import DATA, SAMPLE, needs_data, refuses, write

HOME = Path(DATA or "") / "tokenizers"
NASTY = [
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


def corpus() -> Iterator[str]:
    """The texts above, and mixtures of them."""
    yield from NASTY
    rng, letters = random.Random(0), "".join(NASTY)
    for _ in range(60):
        yield "".join(rng.choice(letters) for _ in range(40))


def agrees(own: tok.Tokenizer, public, **decoding) -> None:
    """The same ids and the same texts, alone and with what stands around a text."""
    for text in corpus():
        ids = public(text, add_special_tokens=False).input_ids
        assert own.encode(text).tolist() == ids, repr(text)
        assert own.whole(text).tolist() == public(text).input_ids
        assert own.decode(ids) == public.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def gpt2() -> tok.Tokenizer:
    return tok.load(HOME / "gpt2")


@needs_data
def test_gpt2_is_the_public_one(gpt2):
    transformers = pytest.importorskip("transformers")
    public = transformers.GPT2TokenizerFast(str(HOME / "gpt2" / "vocab.json"), str(HOME / "gpt2" / "merges.txt"))
    agrees(gpt2, public)
    for text in corpus():
        assert gpt2.prompt(text).tolist() == public(text).input_ids
        assert gpt2.decode(gpt2.encode(text)) == text
    assert (gpt2.vocab_size, gpt2.end, gpt2.ends, gpt2.beside) == (50257, 50256, (50256,), {})
    assert gpt2.encode_special(f"a{tok.END}").tolist() == [64, 50256] and gpt2.id_of(tok.END) == 50256


@needs_data
def test_gpt2_ranks_are_its_merges(gpt2, tmp_path):
    shown = {c: b for b, c in enumerate(layout.byte_alphabet())}
    vocab = json.loads((HOME / "gpt2" / "vocab.json").read_text())
    ranks = {bytes(shown[c] for c in token): i for token, i in vocab.items() if i < 50256}
    lines = [f"{base64.b64encode(token).decode()} {i}" for token, i in sorted(ranks.items(), key=lambda x: x[1])]
    write(tmp_path / "gpt2.tiktoken", "\n".join(lines) + "\n")
    own = tok.load(tmp_path)
    theirs, ours = (json.loads(one.json())["model"] for one in (gpt2, own))
    assert ours["merges"] == theirs["merges"] and ours["vocab"] == theirs["vocab"]
    assert own.end == 50256
    tiktoken = pytest.importorskip("tiktoken")
    cuts = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    public = tiktoken.Encoding("gpt2", pat_str=cuts, mergeable_ranks=ranks, special_tokens={tok.END: 50256})
    for text in corpus():
        assert own.encode(text).tolist() == public.encode_ordinary(text)


@needs_data
@pytest.mark.parametrize("lower", [None, True, False])
def test_wordpiece_is_the_public_one(tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "vocab.txt", (HOME / "bert" / "vocab.txt").read_bytes())
    more = {} if lower is None else {"do_lower_case": lower, "strip_accents": not lower}
    write(tmp_path / "tokenizer_config.json", json.dumps(more))
    own = tok.load(tmp_path)
    public = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), **more)
    agrees(own, public)
    assert own.whole("a").tolist() == [101, *own.encode("a"), 102] and own.prompt("a").tolist()[:1] == [101]
    saved = tokenizers.Tokenizer.from_str(own.json()).encode("one", "two")
    assert saved.ids == public("one", "two").input_ids and saved.type_ids == public("one", "two").token_type_ids


@needs_data
def test_whisper_is_the_public_one():
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    own = tok.load(HOME / "whisper")
    assert list(LANGUAGES) == vocabularies.LANGUAGES
    made = json.loads(own.json())["model"]
    public = transformers.WhisperTokenizerFast(
        vocab={t: i for t, i in made["vocab"].items() if i < 50257}, merges=[tuple(pair) for pair in made["merges"]]
    )
    special = sorted((i, t) for t, i in made["vocab"].items() if i >= 50257)
    public.add_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for _, t in special])
    public.set_prefix_tokens()
    agrees(own, public)
    known = {"<|en|>": 50259, "<|su|>": 50357, "<|translate|>": 50358, "<|transcribe|>": 50359}
    known |= {"<|nospeech|>": 50362, "<|notimestamps|>": 50363, "<|0.00|>": 50364, "<|30.00|>": 51864}
    assert {token: own.id_of(token) for token in known} == known and (own.end, own.vocab_size) == (50257, 51865)
    assert own.prompt("a").tolist() == [50258, 50363, *own.encode("a")]
    large = vocabularies.of_tiktoken(
        HOME / "whisper" / "multilingual.tiktoken", {"model_type": "whisper", "vocab_size": 51866}
    )
    assert tok.Subwords(large).id_of("<|yue|>") == 50358 and tok.Subwords(large).vocab_size == 51866


# --- GGUF ---


def gguf(pre: str = "gpt-2", **more) -> dict:
    """A small byte-level vocabulary as a GGUF file has it."""
    made = json.loads(tok.train_bpe([SAMPLE], 300).json())["model"]
    tokens = [*sorted(made["vocab"], key=made["vocab"].get), "<|im_start|>", "<|im_end|>", "<user>"]
    tokens[0] = tok.END
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 4) + [3, 3, 4],
        "merges": [" ".join(pair) for pair in made["merges"]],
        "bos_token_id": 0,
        "eos_token_id": len(tokens) - 2,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in (values | more).items()}


def pieces(pre: str, text: str) -> list[str]:
    """How words are cut before anything is merged."""
    own = tokenizers.Tokenizer.from_str(gguf_vocabulary.of_gguf(gguf(pre))["tokenizer.json"])
    return [text[slice(*span)] for _, span in own.pre_tokenizer.pre_tokenize_str(text)]


def test_gguf_byte_level():
    files = gguf_vocabulary.of_gguf(gguf() | {"tokenizer.chat_template": "hi"})
    own = tok.of_files(files)
    assert own.encode(SAMPLE).tolist() == tok.train_bpe([SAMPLE], 300).encode(SAMPLE).tolist()
    assert tok.of_files(gguf_vocabulary.of_gguf(gguf(eot_token_id=0))).ends == (301, 0)
    assert own.ends == (301,) and own.chat([{"role": "user", "content": "x"}]) == "hi"
    assert own.encode("<user>").tolist() == [302] and len(own.encode("<|im_end|>")) > 3
    assert own.encode_special("<|im_end|>").tolist() == [301] and own.prompt("a").tolist() == own.encode("a").tolist()
    for text in corpus():
        for pre in ("gpt-2", "smollm", "llama-bpe", "default"):
            made = tok.of_files(gguf_vocabulary.of_gguf(gguf(pre)))
            assert made.decode(made.encode(text)) == text


def test_gguf_words_are_cut_as_they_were():
    text = "I'LL pay 12345 now!\n\n x"
    assert pieces("gpt-2", text) == ["I", "'", "LL", " pay", " 12345", " now", "!", "\n\n", " x"]
    assert pieces("smollm", text) == ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!", "\n\n", " x"]
    assert pieces("llama-bpe", text) == ["I", "'LL", " pay", " ", "123", "45", " now", "!\n\n", " x"]
    assert pieces("qwen2", text) == ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!\n\n", " x"]
    assert pieces("default", text) == ["I", "'", "LL", " pay", " ", "123", "45", " now", "!", "\n\n", " x"]


def sentencepiece() -> dict:
    rng = random.Random(1)
    words = ["\u2581" + word for word in SAMPLE.replace("🌞", "").split()]
    grown = {word[:n] for word in words for n in range(2, len(word) + 1)} | {w[n:] for w in words for n in (1, 2)}
    letters = sorted({c for word in words for c in word})
    more = sorted(t for t in grown if len(t) > 1)
    rng.shuffle(more)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *more, *letters]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    values = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    values |= {"bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def slow(values: dict, text: str) -> list[int]:
    """SentencePiece in four lines: merge the neighbours whose token scores best, until none are a token."""
    ids = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"]) if i > 258}
    parts = list(("\u2581" + text if text else "").replace(" ", "\u2581"))
    while found := [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + b for b in part.encode()])]


def test_gguf_sentencepiece():
    values = sentencepiece()
    own = tok.of_files(gguf_vocabulary.of_gguf(values))
    for text in [*corpus(), *SAMPLE[:400].split("\n"), SAMPLE[3:200].replace("\n", " ")]:
        assert own.encode(text).tolist() == slow(values, text), repr(text)
        assert own.decode(own.encode(text)) == text
        assert own.prompt(text).tolist() == [1, *slow(values, text)]
    assert (own.end, own.ends, own.vocab_size) == (2, (2,), len(values["tokenizer.ggml.tokens"]))


def test_gguf_prompts_are_the_public_ones():
    transformers = pytest.importorskip("transformers")
    for values in (sentencepiece(), gguf("llama-bpe"), gguf("smollm")):
        own = tok.of_files(gguf_vocabulary.of_gguf(values))
        public = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(own.json()))
        for text in NASTY[1:]:
            assert own.prompt(text).tolist() == public(text).input_ids


def test_gguf_sentencepiece_is_the_public_llama():
    transformers = pytest.importorskip("transformers")
    own = tok.of_files(gguf_vocabulary.of_gguf(sentencepiece()))
    made = json.loads(own.json())["model"]
    merges = [tuple(pair) for pair in made["merges"]]
    public = transformers.LlamaTokenizerFast(vocab=made["vocab"], merges=merges, add_bos_token=True)
    for text in corpus():
        if not text.startswith(" "):  # there the public one leaves out the space that SentencePiece puts in front
            assert own.prompt(text).tolist() == public(text).input_ids
            assert own.decode(own.prompt(text)) == text


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("readme", "", ["holds no tokenizer: expected tokenizer.json"]),
        ("spiece.model", "", ["holds no tokenizer", "SentencePiece"]),
        ("vocab.json", "{", ["vocab.json: not JSON"]),
        ("vocab.json", "[]", ["vocab.json: should hold a JSON object"]),
        ("vocab.json", '{"a": "b"}', ["vocab.json: the id of 'a' is 'b'"]),
        ("vocab.json", '{"a": 1, "b": 1}', ["'b' and 'a' have the same id 1"]),
        ("vocab.json", '{"a": 1, "b": 0}', ["the merge of 'a' and 'b' needs 'ab'"]),
        ("merges.txt", "#version\na b\nabc\n", ["merges.txt, line 3: 'abc' is not two tokens"]),
        ("vocab.txt", "[UNK]\na\na\n", ["vocab.txt, line 3: 'a' stands on line 2"]),
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
        tok.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"pre": "lama-bpe"}, ["tokenizer.ggml.pre 'lama-bpe'", "did you mean 'llama-bpe'", "gpt-2, smollm"]),
        ({"model": "bert"}, ["tokenizer.ggml.model is 'bert'", "gpt2, llama"]),
        ({"tokens": 3}, ["tokenizer.ggml.tokens should be a list of str"]),
        ({"tokens": ["a", "a"]}, ["has 'a' twice"]),
        ({"token_type": [1]}, ["tokenizer.ggml.token_type has 1 entries for"]),
        ({"merges": ["ab"]}, ["merges has 'ab'"]),
        ({"merges": ["zz z"]}, ["the merge of 'zz' and 'z' needs 'zz'"]),
        ({"eos_token_id": 10**9}, ["tokenizer.ggml.eos_token_id is 1000000000"]),
        ({"model": "llama"}, ["tokenizer.ggml.scores should be a list of float"]),
    ],
)
def test_malformed_gguf(change, parts):
    with refuses(*parts):
        gguf_vocabulary.of_gguf(gguf(**change))
