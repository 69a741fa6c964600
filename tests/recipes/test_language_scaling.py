"""What a language model is predicted to reach: difficulty of a text, scaling law, sizes to choose from."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anyformer.recipes import language
from anyformer.recipes._shared import scaling

TINY = language.PRESETS["tiny"]


def write_corpus(folder: Path, text: str) -> language.Config:
    (folder / "a.txt").write_text(text)
    return replace(TINY, data=str(folder / "a.txt"))


def test_difficulty_of_a_text(tmp_path: Path):
    """Dice leave all of their entropy open, a refrain none; short texts have a difficulty too."""
    rng = random.Random(0)
    dice = write_corpus(tmp_path, "".join(rng.choices("abcdefgh", k=50_000)))
    assert scaling.measure_difficulty(language.load_mixture(dice)) == pytest.approx(math.log(8), abs=0.1)
    refrain = write_corpus(tmp_path, "over the hills " * 2000)
    assert scaling.measure_difficulty(language.load_mixture(refrain)) < 0.02
    for length in (40, 300, 5000):
        short = write_corpus(tmp_path, "".join(rng.choices("ab", k=length)))
        assert 0 < scaling.measure_difficulty(language.load_mixture(short)) < 2


def test_pieces_are_spread_over_the_text():
    tokens = np.arange(1000)
    pieces = scaling.sample_pieces(tokens, 100, 10)
    assert pieces.shape == (10, 10) and pieces[0, 0] == 0 and pieces[-1, -1] == 999
    assert scaling.sample_pieces(tokens[:5], 100, 10).tolist() == [[0, 1, 2, 3, 4]]


def test_more_tokens_more_weights_and_new_tokens_lower_the_loss():
    def predict(weights: float, tokens: float, unique: float, vocab: int = 64) -> float:
        return scaling.predict_loss(scaling.TextStatistics(1.5, int(unique), vocab), weights, tokens, *scaling.LAW)

    assert predict(1e6, 2e6, 1e9) > predict(1e6, 4e6, 1e9) > predict(1e7, 4e6, 1e9)
    assert predict(1e6, 4e6, 1e6) > predict(1e6, 4e6, 4e6) == predict(1e6, 4e6, 1e9)
    assert predict(1e6, 1e12, 1e6) == pytest.approx(predict(1e6, 1e13, 1e6))  # nothing is left to learn from the text
    assert predict(1e6, 1, 1e6) == math.log(64)  # an untrained model predicts all tokens alike
    assert predict(1e6, 4e6, 1e9, 4096) < predict(1e6, 4e6, 1e9) == predict(1e6, 4e6, 1e9, 32)


def test_the_law_agrees_with_measurements():
    """Of bench/training/budget_law.py: nats per character of plays and novels, and per BPE token."""
    plays, novels = scaling.TextStatistics(1.518, 1_003_854, 66), scaling.TextStatistics(1.441, 56_906_281, 192)
    bpe = scaling.TextStatistics(4.625, 15_926_686, 4096)
    measured = [(plays, 331_776, 2_041_856, 1.5736), (plays, 786_432, 4_728_832, 1.4652)]
    measured += [(novels, 331_776, 7_499_776, 1.3625), (bpe, 786_432, 628_736, 4.8518)]
    for text, weights, tokens, loss in measured:
        low, high = scaling.predict_loss_range(text, weights, tokens)
        assert low < loss < high


def test_sizes_change_only_the_shape(text: Path):
    config = replace(language.PRESETS["small"], data=str(text), window=8, tied=False)
    config = replace(config, train=replace(config.train, seed=7, device="cpu", dtype="float32"))
    options = [option.config for option in language.sizes(config)]
    widths = [option.model.dim for option in options]
    assert widths == sorted(set(widths)) and len(widths) > 1
    for option in options:
        assert (option.data, option.window, option.tied) == (str(text), 8, False)
        assert (option.train.seed, option.train.device, option.train.dtype) == (7, "cpu", "float32")
    next(language.batches(options[0], "train"))


@pytest.mark.parametrize(("length", "contexts"), [(40, {64}), (200, {64, 128}), (500, {64, 128, 256})])
def test_contexts_that_the_text_cannot_fill_are_not_offered(tmp_path: Path, length: int, contexts: set[int]):
    config = write_corpus(tmp_path, "".join(random.Random(0).choices("ab", k=length)))
    assert {option.config.model.context for option in language.sizes(config)} == contexts
