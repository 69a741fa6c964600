"""Two ways to one answer, on generated input: a text streamed and whole, a training resumed and uninterrupted."""

import json
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from anyformer import recipe_loading
from anyformer.data.tokenizers.base import Tokenizer
from anyformer.data.tokenizers.build import Bytes, Characters, Subwords, train_bpe
from anyformer.inference.completion import Completion
from anyformer.recipes import language
from anyformer.training import checkpoints, loop
from anyformer.training.run_directory import describe_run
from data_kit import SAMPLE, SMALL_DATA
from examples_kit import IS_FUZZ, few_examples

pytestmark = pytest.mark.fuzz

# --- streamed = whole ---

PIECES = ["a", "b", " a", "aa", " ", ".", "'", "n't", "\n", "é", "ab", " b."]


def build_subwords(tokens: list[str], decoder: Any, kind: str = "WordLevel") -> Subwords:
    tokenizer = tokenizers.Tokenizer(getattr(models, kind)({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<pad>"])  # without text
    return Subwords(tokenizer.to_str())


def build_tokenizers() -> dict[str, Tokenizer]:
    spaces = [piece.replace(" ", "\u2581") for piece in PIECES]
    fallback = [f"<0x{byte:02X}>" for byte in (0xE2, 0x82, 0xAC, 0xC3, 0xA9, 0xFF, 0x41)]
    like_llama = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return {
        "char": Characters("ab \n.é夏🌞"),
        "byte": Bytes(),
        "bpe": train_bpe([SAMPLE], 300),
        "wordpiece": build_subwords(
            ["[UNK]", *PIECES, *(f"##{piece}" for piece in PIECES)], decoders.WordPiece("##", True), "WordPiece"
        ),
        "metaspace": build_subwords(spaces, decoders.Metaspace()),
        "byte fallback": build_subwords([*spaces, *fallback], decoders.Sequence(like_llama)),
        "suffix": build_subwords([*PIECES, *(f"{piece}</w>" for piece in PIECES)], decoders.BPEDecoder("</w>")),
        "fuse": build_subwords(PIECES, decoders.Fuse()),
    }


TOKENIZERS = build_tokenizers()


@dataclass(frozen=True)
class Writing:
    kind: str
    prompt: list[int]
    ids: list[int]
    stops: list[str]
    is_streamed: bool


@st.composite
def writings(draw: st.DrawFn) -> Writing:
    """Ids at random, or runs that repeat few of them; and stop texts that may occur, also across many tokens."""
    kind = draw(st.sampled_from(sorted(TOKENIZERS)))
    tokenizer = TOKENIZERS[kind]
    alphabet = draw(
        st.lists(st.integers(0, tokenizer.vocab_size + 1), min_size=1, max_size=draw(st.sampled_from([2, 9])))
    )
    if kind == "byte" and draw(st.booleans()):
        alphabet = list(draw(st.text(min_size=1, max_size=9)).encode())
    size = draw(st.sampled_from([3, 30, 200]))
    length = draw(st.integers(0, size))
    ids = list(draw(st.binary(min_size=length, max_size=length)))
    ids = [alphabet[i % len(alphabet)] for i in ids]
    text = tokenizer.decode(ids)
    starts = draw(st.lists(st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 40)), max_size=2))
    stops = [stop for start, n in starts if (stop := text[start : start + n] + draw(st.sampled_from(["", "", "x"])))]
    prompt = draw(st.lists(st.sampled_from(alphabet), max_size=12))
    return Writing(kind, prompt, ids, stops, draw(st.booleans()))


def complete_slowly(tokenizer: Tokenizer, writing: Writing) -> tuple[str, int, str | None]:
    """The text, its number of tokens and why it ends: all of it is decoded again for each token."""
    context = writing.prompt[-8:]
    before, text = len(tokenizer.decode(context)), ""
    for n, token in enumerate(writing.ids, 1):
        if token in tokenizer.end_ids:
            return text, n - 1, "stop"
        text = tokenizer.decode(context + writing.ids[:n])[before:]
        starts = [text.find(stop) for stop in writing.stops if stop in text]
        if starts:
            return text[: min(starts)], n, "stop"
    return text, len(writing.ids), None


@few_examples
@given(writings())
def test_a_text_is_the_same_streamed_and_decoded_at_once(writing: Writing):
    tokenizer, shown = TOKENIZERS[writing.kind], []
    completion = Completion("", writing.prompt, tokenizer, writing.stops)
    for token in writing.ids:
        is_done = completion.add(token)
        if writing.is_streamed:
            shown.append(completion.new_text())
        if is_done:
            break
    text, n, reason = complete_slowly(tokenizer, writing)
    assert (completion.text, len(completion.tokens), completion.finish_reason) == (text, n, reason)
    completion.finish_reason = reason or "length"
    # The library takes back the characters of a run of such bytes when a byte follows that is no UTF-8.
    if writing.kind != "byte fallback" or "\ufffd" not in tokenizer.decode(writing.ids):
        assert "".join([*shown, completion.new_text()]) == text


# --- resumed = uninterrupted ---


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resumed") / "text.jsonl"
    lines = (json.dumps({"text": f"the cat sat on the mat {i * 37}. "}) for i in range(80))
    path.write_text("\n".join(lines))
    return path


TRAIN = st.fixed_dictionaries(
    {
        "steps": st.just(3),
        "batch": st.integers(1, 3),
        "accumulate": st.integers(1, 2),
        "optimizer": st.sampled_from(["adamw", "muon"]),
        "schedule": st.sampled_from(["cosine", "trapezoid"]),
        "clip": st.sampled_from([0.0, 0.1]),
        "eval_every": st.integers(1, 4),
        "seed": st.integers(0, 2**32 - 1),
    }
)
SHAPE = st.fixed_dictionaries(
    {
        "position": st.sampled_from(["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]),
        "dropout": st.sampled_from([0.0, 0.2]),
        "qk_norm": st.booleans(),
        "context": st.integers(1, 20),
    }
)


def check_resuming(recipe: Any, config: Any, interrupted_at: int) -> None:
    """A new process that reads the checkpoint is a new state of training: the same weights and records to the bit."""
    state = loop.init_state(recipe, config)
    expected = list(loop.train(recipe, config, state))
    first, second = loop.init_state(recipe, config), loop.init_state(recipe, config)
    records = list(islice(loop.train(recipe, config, first), interrupted_at))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.save_checkpoint(Path(folder), first, describe_run("any", "tiny", config, ""))
        torch.manual_seed(9)
        checkpoints.load_checkpoint(checkpoint, second)
    records += loop.train(recipe, config, second)
    assert records == expected
    weights, resumed = (checkpoints.collect_tensors(s.model) for s in (state, second))
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


@pytest.mark.slow
@few_examples
@given(SHAPE, TRAIN, st.none() | st.integers(1, 9), st.sampled_from(["joined", "apart"]), st.integers(1, 2))
def test_a_language_model_is_the_same_resumed_and_uninterrupted(
    text_file: Path, shape: dict, train: dict, window: int | None, documents: Any, interrupted_at: int
):
    tiny = language.PRESETS["tiny"]
    model = replace(tiny.model, dim=8, n_layer=2, n_head=2, mlp_dim=8, **shape)
    train_config = replace(tiny.train, device="cpu", dtype="float32", eval_batches=1, warmup=1, **train)
    config = replace(tiny, data=str(text_file), model=model, window=window, documents=documents, train=train_config)
    check_resuming(language, config, interrupted_at)


@pytest.mark.skipif(not IS_FUZZ, reason="reads the data of every recipe: HYPOTHESIS_PROFILE=fuzz")
@pytest.mark.parametrize("name", recipe_loading.list_recipes())
@settings(max_examples=20)
@given(TRAIN, st.integers(1, 2))
def test_every_recipe_is_the_same_resumed_and_uninterrupted(name: str, train: dict, interrupted_at: int):
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    train_config = replace(config.train, device="cpu", dtype="float32", eval_batches=1, **train)
    config = replace(config, data=str(SMALL_DATA.get(name, config.data)), train=train_config)
    check_resuming(recipe, config, interrupted_at)
