"""What came before: the window of 2003, the vector of 2014, the first attention; each against a slow telling of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer import api
from anyformer.baselines.recurrent import Pair, Search, SequenceToSequence, Window
from anyformer.inference.decode import new_cache, prefill, step
from anyformer.model.edges import within
from cli_kit import call, refused

SIZES = {"vocab_sizes": (23, 23), "dim": 8, "hidden": 12, "layers": 2, "context": 16, "dropout": 0.0}
KINDS = {"seq2seq": SequenceToSequence, "rnnsearch": Search}


def pair(kind: str, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return KINDS[kind](**SIZES).eval()


def texts(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources padded on the right, and how long they are."""
    ids = torch.randint(23, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor(lengths)


# --- 2003 ---


@pytest.mark.parametrize("direct", [False, True])
def test_the_window_sees_its_words_and_nothing_else(direct: bool):
    torch.manual_seed(0)
    model = Window(11, 5, 7, words=3, context=16, direct=direct, dropout=0.0).eval()
    ids = torch.randint(11, (2, 9))
    nothing = torch.full((2, 2), 11)  # the entry that stands before a text
    told = torch.cat([nothing, ids], dim=1)
    with torch.no_grad():
        for t in range(9):
            x = torch.cat([model.token.weight[told[:, t + i]] for i in range(3)], dim=-1)
            want = model.answer(torch.tanh(model.body.net(x)))
            want = want if model.direct is None else want + model.direct(x)
            torch.testing.assert_close(model(ids)[:, t], want)


def test_the_window_remembers_what_it_read():
    """Rows of unequal length, then word by word: as if each had been read whole."""
    torch.manual_seed(0)
    model = Window(11, 5, 7, words=4, context=16, direct=True, dropout=0.0).eval()
    rows = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    with torch.no_grad():
        cache = new_cache(model, 3)
        got = prefill(model, rows, cache)
        for new in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
            for row, logits in zip(rows, got, strict=True):
                torch.testing.assert_close(logits, model(torch.tensor([row]))[0, -1])
            rows = [[*row, one] for row, one in zip(rows, new, strict=True)]
            got = step(model, torch.tensor(new), cache)


# --- 2014 ---


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str):
    model, (source, lengths) = pair(kind), texts([7, 3, 5])
    ids = torch.randint(23, (3, 6))
    with torch.no_grad():
        whole = model(source, ids, within(lengths))
        for i, n in enumerate(lengths.tolist()):
            torch.testing.assert_close(whole[i : i + 1], model(source[i : i + 1, :n], ids[i : i + 1]))
        source[1, 3:] = 0
        torch.testing.assert_close(model(source, ids, within(lengths)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_word_by_word_is_all_at_once(kind: str):
    model, (source, lengths) = pair(kind, 1), texts([4, 6])
    ids = torch.randint(23, (2, 7))
    with torch.no_grad():
        whole = model(source, ids, within(lengths))
        given = model.given(model.encode(source, within(lengths)), within(lengths))
        cache = new_cache(given, 2)
        got = prefill(given, [[int(row[0])] for row in ids], cache)
        for t in range(1, 7):
            torch.testing.assert_close(got, whole[:, t - 1])
            got = step(given, ids[:, t], cache)
        cache.pick(torch.tensor([1, 1]))
        again = step(given, torch.tensor([3, 3]), cache)
    torch.testing.assert_close(again.isfinite(), torch.ones_like(again, dtype=torch.bool))


def test_one_vector_of_fixed_size_is_all_that_passes():
    model, (source, lengths) = pair("seq2seq"), texts([9, 2])
    with torch.no_grad():
        memory = model.encode(source, within(lengths))
        assert memory.shape == (2, 1, 2 * 2 * 12)
        lstm = model.encoder.net
        _, (h, c) = lstm(model.source(source[1:, :2].flip(1)))  # from behind
        torch.testing.assert_close(memory[1, 0], torch.cat([h, c]).transpose(0, 1).flatten())


def test_looking_back_is_a_softmax_over_the_source():
    """e_ij = v tanh(W s_(i-1) + U h_j), told slowly (1409.0473, section 3.1)."""
    model, (source, lengths) = pair("rnnsearch"), texts([5, 3])
    ids = torch.randint(23, (2, 4))
    looks = model.alignment(source, ids, within(lengths))
    assert looks.shape == (2, 4, 5)
    torch.testing.assert_close(looks.sum(-1), torch.ones(2, 4))
    assert (looks[1, :, 3:] == 0).all()
    with torch.no_grad():
        memory = model.encode(source, within(lengths))
        s = model.begin(memory)[0]
        scores = torch.zeros(3)
        for j in range(3):
            scores[j] = model.fits(torch.tanh(model.asks(s[1]) + model.has(memory[1, j])))
        torch.testing.assert_close(looks[1, 0, :3], scores.softmax(-1))


@pytest.mark.parametrize(
    ("recipe", "flags", "says"),
    [
        ("seq2seq", ("--hidden", 0), "hidden is 0; it must be at least 1"),
        ("rnnsearch", ("--dropout", 1.5), "dropout is 1.5; it must be at least 0 and below 1"),
        ("mlp", ("--model.words", 0), "words is 0; it must be at least 1"),
        ("translation", ("--encoder.dim", 16), "encoder.dim is 16 and decoder.dim 32"),
    ],
)
def test_numbers_that_make_no_sense_are_one_line(recipe: str, flags: tuple, says: str, tmp_path: Path):
    refused(call("train", recipe, "--preset", "tiny", *flags, "--out", tmp_path / "run"), says)


@pytest.mark.parametrize("recipe", KINDS)
def test_it_is_trained_asked_and_measured(recipe: str, tmp_path: Path):
    few = ("--preset", "tiny", "--steps", 30, "--device", "cpu", "--train.eval-batches", 2)
    call("train", recipe, *few, "--out", tmp_path / "run").well()
    one = call("predict", tmp_path / "run", "31415", "27", "--request", '{"beam": 2}', "--json").well().json
    alone = call("predict", tmp_path / "run", "27", "--request", '{"beam": 2}', "--json").well().json
    assert one["results"][1]["text"] == alone["results"][0]["text"]
    assert one["results"][1]["score"] == pytest.approx(alone["results"][0]["score"], abs=1e-6)
    model = api.load(tmp_path / "run", "cpu")
    assert isinstance(model.module, nn.Module) and model.evaluate()["loss"] > 0
