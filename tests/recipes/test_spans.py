"""Gaps in a text: what is cut out and what is asked for are the text; models that fill them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anyformer.data.text.masking import SpanCorruption, random_partition
from hypothesis import given
from hypothesis import strategies as st

from anyformer import api
from anyformer.recipes import spans
from cli_kit import call, refused

SHAPES = st.tuples(st.integers(2, 80), st.floats(0.05, 0.9), st.floats(1, 8))


@given(SHAPES, st.integers(0, 1000))
def test_source_and_target_together_are_the_text(shape: tuple[int, float, float], step: int):
    length, rate, span = shape
    how = SpanCorruption(rate, span, 999)
    x = np.arange(2 * length).reshape(2, length)
    sources, targets = how(x, 3, step)
    assert (sources.shape[1], targets.shape[1]) == how.sizes(length)
    for row, source, target in zip(x, sources.tolist(), targets.tolist(), strict=True):
        gaps = spans.split_at_sentinels(target, 999, how.hidden(length)[1])
        assert all(gaps), "no gap is empty"
        filled = [token for one in source for token in (gaps[999 - one] if one >= 999 - len(gaps) + 1 else [one])]
        assert filled == row.tolist()
        assert sum(map(len, gaps)) == how.hidden(length)[0]


@given(st.integers(1, 30), st.integers(0, 99))
def test_parts_are_whole(total: int, seed: int):
    drawn = np.random.default_rng(seed)
    n = 1 + seed % total
    found = random_partition(total, n, drawn)
    assert len(found) == n and found.sum() == total and found.min() >= 1


def test_the_gaps_of_a_step_are_its_own_and_the_same_each_time():
    x = np.arange(200).reshape(4, 50)
    how = SpanCorruption(0.15, 3, 999)
    one, again, other = how(x, 1, 5)[0], how(x, 1, 5)[0], how(x, 1, 6)[0]
    assert (one == again).all() and not np.array_equal(one, other)
    assert len({tuple(np.flatnonzero(row > 900)) for row in one}) > 1, "rows differ too"


def test_windows_fill_the_contexts_and_no_more():
    how = SpanCorruption(0.15, 3, 999)
    length = how.window(31, 31, 100)
    assert max(how.sizes(length)) <= 31 < max(how.sizes(length + 1))
    assert how.window(1, 1, 100) == 0


def test_batches_feed_what_follows():
    config = spans.PRESETS["tiny"]
    batch, _ = next(spans.batches(config, "train"))
    assert (batch["target"][:, 1:] == batch["labels"][:, :-1]).all()
    end = spans.load_text_tokenizer(spans.text_config(config)).end
    assert (batch["labels"][:, -1] == end).all() and (batch["source"][:, -1] == end).all()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has read one line again and again."""
    home = tmp_path_factory.mktemp("spans")
    (home / "text.txt").write_text("the quick brown fox jumps over the lazy dog and runs\n" * 400)
    few = ("--steps", 300, "--train.lr", 3e-3, "--train.eval-every", 100, "--train.batch", 16, "--device", "cpu")
    call("train", "spans", "--preset", "tiny", "--data", home / "text.txt", *few, "--out", home / "run").well()
    return home / "run"


def test_it_fills_the_gaps(learned: Path):
    asked = "quick brown ___ jumps over"
    found = call("predict", learned, asked, "--json", "--device", "cpu").well().json["results"][0]
    assert found["input"] == asked and len(found["gaps"]) == 1
    assert found["text"] == asked.replace("___", found["gaps"][0])
    assert api.load(learned, "cpu").evaluate()["accuracy"] > 0.5


def test_translation_goes_on_from_it(learned: Path, tmp_path: Path):
    (tmp_path / "pairs.tsv").write_text("".join(f"the fox {w}\tthe dog {w}\n" for w in ["runs", "jumps", "over"] * 9))
    few = ("--steps", 2, "--train.eval-every", 1, "--train.batch", 2, "--train.lr", 1e-12, "--device", "cpu")
    asked = ("--init", learned, "--data", tmp_path / "pairs.tsv", *few, "--out", tmp_path / "run")
    call("train", "translation", *asked).well()
    before, after = api.load(learned, "cpu").module.state_dict(), api.load(tmp_path / "run", "cpu").module.state_dict()
    torch.testing.assert_close(after["decoder.norm.weight"], before["decoder.norm.weight"])
    torch.testing.assert_close(after["source.token.weight"], before["source.token.weight"], atol=1e-5, rtol=0)


def test_mistakes_are_one_line(learned: Path, tmp_path: Path):
    refused(call("predict", learned, "no gap here", "--device", "cpu"), "has 0 gaps", "___")
    refused(call("predict", learned, "___ a " * 20, "--device", "cpu"), "has 20 gaps; write 1 to 8")
    refused(call("predict", learned, "the fox " * 9 + "___", "--device", "cpu"), "tokens; 31 fit")
    few = ("--preset", "tiny", "--steps", 1, "--out", tmp_path / "run")
    refused(call("train", "spans", *few, "--padded-vocab", 40), "padded_vocab is 40", "--padded-vocab")
    refused(call("train", "spans", *few, "--rate", 1.5), "rate 1.5 must be above 0 and below 1")
