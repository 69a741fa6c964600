"""Spans: source and target together are the text; a trained model fills gaps and starts a translation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer import api
from anyformer.data.text.masking import SpanCorruption, random_partition
from anyformer.errors import InputError
from anyformer.parsing import parse_dataclass
from anyformer.recipes import spans
from anyformer.recipes._shared.text import load_text_tokenizer
from cli_kit import assert_refused, call


@given(st.integers(2, 80), st.floats(0.05, 0.9), st.floats(1, 8), st.integers(0, 1000))
def test_source_and_target_together_are_the_text(length: int, rate: float, span: float, step: int):
    corruption = SpanCorruption(rate, span, 999)
    windows = np.arange(2 * length).reshape(2, length)
    sources, targets = corruption(windows, 3, step)
    assert (sources.shape[1], targets.shape[1]) == corruption.side_lengths(length)
    count, n_spans = corruption.count_removed(length)
    for row, source, target in zip(windows, sources.tolist(), targets.tolist(), strict=True):
        gaps = spans.split_at_sentinels(target, 999, n_spans)
        assert all(gaps), "no gap is empty"
        restored = [token for i in source for token in (gaps[999 - i] if i > 999 - n_spans else [i])]
        assert restored == row.tolist() and sum(map(len, gaps)) == count


@given(st.integers(1, 30), st.integers(0, 99))
def test_a_partition_adds_up(total: int, seed: int):
    n = 1 + seed % total
    parts = random_partition(total, n, np.random.default_rng(seed))
    assert len(parts) == n and parts.sum() == total and parts.min() >= 1


def test_the_gaps_depend_on_seed_step_and_row():
    windows, corruption = np.arange(200).reshape(4, 50), SpanCorruption(0.15, 3, 999)
    first, again, other = (corruption(windows, 1, step)[0] for step in (5, 5, 6))
    assert (first == again).all() and not np.array_equal(first, other)
    assert len({tuple(np.flatnonzero(row > 900)) for row in first}) > 1, "rows differ"


def test_windows_fill_the_contexts():
    corruption = SpanCorruption(0.15, 3, 999)
    length = corruption.longest_window(31, 31, 100)
    assert max(corruption.side_lengths(length)) <= 31 < max(corruption.side_lengths(length + 1))
    assert corruption.longest_window(1, 1, 100) == 0


def test_the_target_is_the_labels_one_step_later():
    config = spans.PRESETS["tiny"]
    batch, _ = next(spans.batches(config, "train"))
    end = load_text_tokenizer(config).end_id
    assert (batch["target"][:, 1:] == batch["labels"][:, :-1]).all() and (batch["target"][:, 0] == end).all()
    assert (batch["labels"][:, -1] == end).all() and (batch["source"][:, -1] == end).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on one line that is repeated."""
    folder = tmp_path_factory.mktemp("spans")
    (folder / "text.txt").write_text("the fox runs over the log\n" * 400)
    flags = ("--steps", 120, "--train.lr", 5e-3, "--train.eval-every", 120, "--train.batch", 8, "--device", "cpu")
    call("train", "spans", "--preset", "tiny", "--data", folder / "text.txt", *flags, "--out", folder / "run").ok()
    return folder / "run"


@pytest.mark.slow
def test_gaps_are_filled(run: Path):
    text = "the fox ___ over the"
    result = call("predict", run, text, "--json", "--device", "cpu").ok().json["results"][0]
    assert result["input"] == text and len(result["gaps"]) == 1
    assert result["text"] == text.replace("___", result["gaps"][0])
    assert api.load(run, "cpu").evaluate()["accuracy"] > 0.5


def test_translation_starts_from_it(run: Path, tmp_path: Path):
    words = ["runs", "over", "the log"]
    (tmp_path / "pairs.tsv").write_text("".join(f"the fox {w}\tthe log {w}\n" for w in words * 9))
    flags = ("--steps", 2, "--train.eval-every", 1, "--train.batch", 2, "--train.lr", 1e-12, "--device", "cpu")
    start = ("--init", run, "--data", tmp_path / "pairs.tsv", *flags, "--out", tmp_path / "run")
    call("train", "translation", *start).ok()
    before, after = api.load(run, "cpu").module.state_dict(), api.load(tmp_path / "run", "cpu").module.state_dict()
    torch.testing.assert_close(after["decoder.norm.weight"], before["decoder.norm.weight"])
    torch.testing.assert_close(after["source.token.weight"], before["source.token.weight"], atol=1e-5, rtol=0)


def test_mistakes_get_one_line(run: Path, tmp_path: Path):
    assert_refused(call("predict", run, "no gap here", "--device", "cpu"), "has 0 gaps", "___")
    assert_refused(call("predict", run, "___ a " * 20, "--device", "cpu"), "has 20 gaps; write 1 to 8")
    assert_refused(call("predict", run, "the fox " * 9 + "___", "--device", "cpu"), "tokens; 31 fit")
    flags = ("--preset", "tiny", "--steps", 1, "--out", tmp_path / "run")
    assert_refused(call("train", "spans", *flags, "--padded-vocab", 40), "padded_vocab is 40", "--padded-vocab")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 1.5}, "rate is 1.5; it must be above 0 and below 1"),
        ({"span": 0.5}, "span is 0.5; it must be at least 1"),
        ({"sentinels": 0}, "sentinels is 0; it must be at least 1"),
        ({"source_tokenizer": "char", "shared": False}, "source_tokenizer: .* leave it out"),
    ],
)
def test_values_that_make_no_sense_get_one_line(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        parse_dataclass(spans.Config, fields, "config.json")
