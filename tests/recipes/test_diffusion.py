"""Diffusion: what is hidden, the bound, lines as examples, gaps and errors."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.tokenizers.build import Characters, train_bpe
from anyformer.errors import InputError
from anyformer.model import TransformerConfig
from anyformer.recipe_loading import load_recipe
from anyformer.recipes import diffusion
from anyformer.recipes._shared.presets import make_model_config

SHAPE = TransformerConfig(dim=16, n_layer=2, n_head=2, context=12)
GRIDS = ["123456", "234561", "345612", "456123", "561234", "612345", "12", "1"]


@pytest.fixture(scope="module")
def model() -> diffusion.DiffusionModel:
    torch.manual_seed(0)
    model = diffusion.DiffusionModel(diffusion.Config(model=SHAPE), Characters("abcdef _."))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def grids(tmp_path: Path) -> diffusion.Config:
    (tmp_path / "grids.txt").write_text("\n".join(GRIDS) + "\n")
    train = diffusion.PRESETS["tiny"].train
    return diffusion.Config(data=str(tmp_path / "grids.txt"), lines=True, val_fraction=0.3, model=SHAPE, train=train)


def test_shares_are_spread_evenly():
    ids = np.arange(1, 65).reshape(1, -1).repeat(16, 0)
    shares = []
    for step in range(20):
        batch = diffusion.make_batch(99, ids, np.full(16, 64), 0, step)
        is_hidden = batch["labels"] != IGNORE_INDEX
        assert torch.equal(is_hidden, batch["ids"] == 99)
        assert torch.equal(batch["labels"][is_hidden], torch.from_numpy(ids)[is_hidden])
        n_hidden = is_hidden.sum(1)
        assert torch.allclose(batch["weight"], 64 / n_hidden)
        assert ((n_hidden.sort().values - 1) // 4).tolist() == list(range(16))  # one in each sixteenth
        shares += n_hidden.tolist()
    assert set(range(1, 65)) - set(shares) == set() and len(batch) == 3


def test_hidden_places_are_uniform_and_never_padding():
    ids, sizes, counts = np.ones((8, 6), np.int64), np.array([6, 6, 6, 6, 3, 3, 1, 1]), torch.zeros(8, 6)
    for step in range(3000):
        batch = diffusion.make_batch(99, ids, sizes, 1, step)
        counts += batch["labels"] != IGNORE_INDEX
    assert batch["lengths"].tolist() == sizes.tolist()
    assert not counts[4:6, 3:].any() and not counts[6:, 1:].any() and (counts[6:, 0] == 3000).all()
    assert (counts[:4] / 3000 - 3.5 / 6).abs().max() < 0.04  # of 1 to 6 hidden ones, all alike: 3.5 on average


def test_the_bound_is_exact_where_tokens_are_independent(model: diffusion.DiffusionModel):
    """Of a model that guesses evenly it is log V for every token, whatever is hidden."""
    config = diffusion.Config(model=SHAPE)
    even = diffusion.DiffusionModel(config, Characters("abcdef _."))
    torch.nn.init.zeros_(even.head.project.weight)
    batches = [diffusion.make_batch(10, np.ones((4, 12), np.int64), np.array([12, 5, 1, 7]), 0, i) for i in range(3)]
    expected = math.log(even.vocab_size)
    assert [diffusion.loss(even, batch).item() for batch in batches] == pytest.approx([expected] * 3)
    metrics = diffusion.evaluate(even, iter(batches))
    assert metrics["loss"] == pytest.approx(expected) and metrics["standard_error"] == pytest.approx(0, abs=1e-6)
    assert (metrics["rows"], metrics["tokens"]) == (12, 75)
    assert metrics["bits_per_byte"] == pytest.approx(expected / math.log(2))


def test_the_loss_is_that_of_the_formula(model: diffusion.DiffusionModel):
    """The sum over hidden tokens, each row divided by its share, over all tokens; chunked or not."""
    ids, sizes = np.random.default_rng(0).integers(0, 9, (3, 8)), np.array([8, 5, 6])
    batch = diffusion.make_batch(10, ids, sizes, 0, 3)
    logprobs = model(batch["ids"], batch["lengths"]).log_softmax(-1)
    total = 0.0
    for row, size in enumerate(sizes):
        hidden = [i for i in range(8) if batch["labels"][row, i] != IGNORE_INDEX]
        total += sum(-float(logprobs[row, i, ids[row, i]]) for i in hidden) * size / len(hidden)
    assert float(diffusion.loss(model, batch)) == pytest.approx(total / sizes.sum(), rel=1e-5)


def test_chunks_of_logits_give_the_same_loss_and_gradient(
    model: diffusion.DiffusionModel, monkeypatch: pytest.MonkeyPatch
):
    from anyformer.model.kernels import cross_entropy

    batch = diffusion.make_batch(10, np.ones((3, 8), np.int64), np.array([8, 5, 6]), 0, 3)
    results = []
    for most in (1 << 24, 40):
        monkeypatch.setattr(cross_entropy, "MAX_CPU_LOGITS", most)
        model.zero_grad()
        loss = diffusion.loss(model, batch)
        loss.backward()
        results.append((float(loss), model.nodes.token.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0]) and torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_each_line_is_an_example(grids: diffusion.Config):
    batches = [batch for batch, _ in diffusion.batches(grids, "all")]
    tokenizer = diffusion.load_text_tokenizer(grids)
    rows = []
    for batch in batches:
        ids = torch.where(batch["labels"] == IGNORE_INDEX, batch["ids"], batch["labels"])
        lengths = batch.get("lengths", torch.full((len(ids),), ids.shape[1]))
        rows += [tokenizer.decode(row[:n].tolist()) for row, n in zip(ids, lengths)]
    assert rows == GRIDS
    lines = diffusion.find_lines(diffusion.load_corpus(grids), 12, "")
    parts = [lines.split(name).tolist() for name in ("train", "val")]
    assert parts[0] + parts[1] == list(range(8)) and len(parts[1]) > 0
    seen = {int(n) for batch, _ in islice(diffusion.batches(grids, "train"), 3) for n in batch["ids"].shape[1:]}
    assert seen == {6}


def test_a_line_that_exceeds_the_context(grids: diffusion.Config):
    config = replace(grids, model=make_model_config(16, 1, 2, 5))
    with pytest.raises(InputError, match=r"an example has 6 tokens, the context holds 5: --model.context 6"):
        next(diffusion.batches(config, "train"))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
def test_two_lines_are_one_for_each_split(grids: diffusion.Config, fraction: float):
    Path(grids.data).write_text("123\n231\n")
    config = replace(grids, val_fraction=fraction)
    assert [len(list(diffusion.batches(config, split))) for split in ("val", "all")] == [1, 1]
    assert next(diffusion.batches(config, "train"))[0]["ids"].shape == (8, 3)


def test_a_single_line(grids: diffusion.Config):
    Path(grids.data).write_text("123\n")
    with pytest.raises(InputError, match="a single example leaves none to validate on: bring at least two"):
        next(diffusion.batches(grids, "train"))


def ask(model: Any, **request: Any) -> list[dict[str, Any]]:
    return diffusion.predict(model, request)["results"]


def test_gaps_are_filled_and_the_text_around_them_stays(model: diffusion.DiffusionModel):
    (result,) = ask(model, input="ab__e_", drafts=True)
    assert result["text"][:2] + result["text"][4] == "abe" and len(result["text"]) == 6
    assert result["passes"] == 3 and [d.count("_") - result["text"].count("_") for d in result["drafts"][-1:]] == [0]
    (other,) = ask(model, input="ab??e?", gap="?", passes=1)
    assert other["passes"] == 1 and "?" not in other["text"]


def test_texts_are_filled_together_as_alone(model: diffusion.DiffusionModel):
    texts, settings = ["a_c", "______", "ab cd e_ f"], {"temperature": 1.0, "samples": 2, "seed": 3, "revise": 1}
    together = ask(model, input=texts, **settings)
    assert together == [result for text in texts for result in ask(model, input=text, **settings)]
    assert together[2]["text"] != together[3]["text"]


def test_a_text_from_nothing(model: diffusion.DiffusionModel):
    assert len(ask(model)[0]["text"]) == 12 and len(ask(model, tokens=5)[0]["text"]) == 5


def test_only_some_characters_are_written(model: diffusion.DiffusionModel):
    assert set(ask(model, input="__________", allow="ab", temperature=1.0)[0]["text"]) <= set("ab")


def test_the_figure_shows_a_grid_as_it_is_filled(tmp_path: Path):
    (tmp_path / "grids.txt").write_text("123456789\n" * 20)
    config = diffusion.Config(data=str(tmp_path / "grids.txt"), lines=True, model=SHAPE)
    model = diffusion.build(config).eval()
    (figure,) = diffusion.figures(model, config)
    first, *others = figure["drafts"]
    assert [len(line) for line in first.split("\n")] == [3, 3, 3] and first.count("_") == 5
    assert all(len(text) == 11 for text in others) and "_" not in others[-1]
    shown = [(a, b) for a, b in zip(first, others[4]) if a != "_"]  # the first passes leave what is known as it is
    assert shown and all(a == b for a, b in shown)
    assert "of which 5 tokens are hidden" in figure["note"]


def test_the_figure_of_a_text_is_one_row(tmp_path: Path):
    (tmp_path / "text.txt").write_text("abcd efgh. " * 50)
    config = diffusion.Config(data=str(tmp_path / "text.txt"), model=SHAPE)
    (figure,) = diffusion.figures(diffusion.build(config).eval(), config)
    assert {len(text) for text in figure["drafts"]} == {12}


def test_a_text_is_edited(model: diffusion.DiffusionModel):
    """Without gaps nothing is hidden at first: revisions alone change it, and no more than they may."""
    (result,) = ask(model, input="abcdefab", edit=True, revise=1, remask=0.125)
    assert sum(a != b for a, b in zip(result["text"], "abcdefab")) <= 1 and result["passes"] >= 8


def test_a_gap_of_words_has_any_length():
    """Of units larger than characters, a run of gaps is one, and the best number of tokens is chosen."""
    tokenizer = train_bpe(iter(["the cat sat on the mat " * 50]), 280)
    torch.manual_seed(1)
    model = diffusion.DiffusionModel(diffusion.Config(model=replace(SHAPE, context=32)), tokenizer).eval()
    (result,) = ask(model, input="the ____ sat on the mat")
    assert result["text"].startswith("the") and result["text"].endswith(" sat on the mat")
    (single,) = ask(model, input="the _ sat on the mat", tokens=1)
    assert single["passes"] == 1


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"input": "abc"}, "'abc' has no gap: write _ for each token that is missing"),
        ({"input": "_" * 13}, "has 13 tokens, the context holds 12: shorten it"),
        ({"input": "a_", "order": "sure"}, "order is 'sure': did you mean 'surest'"),
        ({"input": "a_", "gap": ""}, "gap is ''; it must be one character"),
        ({"input": "", "edit": True, "revise": 1}, "an empty text has no tokens"),
        ({"input": "a_", "edit": True}, "edit: a text is edited in revisions: set revise"),
        ({"input": "a_", "allow": "Q"}, "allow is 'Q': no token of the vocabulary"),
        ({"input": "Q_"}, "Q"),
    ],
)
def test_requests_that_cannot_be_answered(model: diffusion.DiffusionModel, request_fields: dict, message: str):
    with pytest.raises(InputError) as error:
        ask(model, **request_fields)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["language", "recall", "masked", "spans"])
@pytest.mark.parametrize("field", [{"order": "left"}, {"passes": 2}, {"gap": "?"}, {"revise": 1}])
def test_recipes_that_write_no_drafts_say_which_one_does(name: str, field: dict):
    with pytest.raises(InputError, match="not trained to fill gaps in any order: anyformer train diffusion"):
        load_recipe(name).predict(SimpleNamespace(tokenizer=None), {"input": "a__"} | field)


def test_examples_of_lines_are_half_hidden(grids: diffusion.Config):
    examples = diffusion.examples(grids)
    lines = GRIDS[-len(examples.truths) :]
    assert examples.truths == lines
    for text, line in zip(examples.request["input"], lines, strict=True):
        assert text.count("_") == -(-len(line) // 2)
        assert all(a in ("_", b) for a, b in zip(text, line, strict=True))


def test_examples_of_a_text_hide_some_characters(tmp_path: Path):
    (tmp_path / "text.txt").write_text("a line of words\n" * 50)
    examples = diffusion.examples(diffusion.Config(data=str(tmp_path / "text.txt"), model=SHAPE))
    assert examples.request["input"][0].count("____") == 1 and len(examples.truths[0]) == 12
