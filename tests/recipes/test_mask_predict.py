"""Mask-predict: the bound of a target and its length, drafts of several lengths, batches of any sources."""

import math
from typing import Any

import pytest
import torch

from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.errors import InputError
from anyformer.recipes import mask_predict, translation
from anyformer.recipes._shared.pairs import load_pairs

CONFIG = mask_predict.PRESETS["tiny"]


@pytest.fixture(scope="module")
def model() -> mask_predict.DraftTranslator:
    torch.manual_seed(0)
    model = mask_predict.build(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def test_batches_are_those_of_a_translator_with_some_of_the_target_hidden():
    config = translation.PRESETS["tiny"]
    for (batch, state), (pair, pair_state) in zip(
        mask_predict.batches(CONFIG, "val"), translation.batches(config, "val"), strict=True
    ):
        assert torch.equal(batch["source"], pair["source"]) and state == pair_state
        n = batch["target_lengths"]
        assert torch.equal(n, (pair["labels"] != IGNORE_INDEX).sum(1) - 1)
        is_hidden = batch["labels"] != IGNORE_INDEX
        text = torch.where(is_hidden, batch["labels"], batch["ids"])
        for row, length in enumerate(n):
            assert torch.equal(text[row, :length], pair["labels"][row, :length])
            assert not is_hidden[row, length:].any() and 1 <= is_hidden[row].sum() <= length
        assert torch.allclose(batch["weight"], n / is_hidden.sum(1))


def test_the_bound_of_a_model_that_guesses_evenly():
    """Of every token and of the length."""
    model = mask_predict.build(CONFIG)
    for module in (model.head.project, model.length_head):
        torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(model.length_head.bias)
    batch, _ = next(mask_predict.batches(CONFIG, "val"))
    n = batch["target_lengths"]
    nats = n.sum() * math.log(model.mask_id + 1) + len(n) * math.log(model.decoder.config.context + 1)
    assert mask_predict.loss(model.eval(), batch).item() == pytest.approx(float(nats / (n + 1).sum()))
    metrics = mask_predict.evaluate(model, iter([batch]))
    assert metrics["loss"] == pytest.approx(float(nats / (n + 1).sum()))
    assert (metrics["rows"], metrics["tokens"]) == (len(n), int((n + 1).sum()))


def ask(model: Any, **request: Any) -> list[dict[str, Any]]:
    return mask_predict.predict(model, request)["results"]


@pytest.mark.parametrize("settings", [{}, {"passes": 2, "temperature": 1.0}, {"order": "left", "revise": 1}])
def test_texts_are_translated_together_as_alone(model: mask_predict.DraftTranslator, settings: dict):
    texts = ["123", "9", "31415926535", "0000"]
    together = ask(model, input=texts, **settings)
    for text, result in zip(texts, together, strict=True):
        (alone,) = ask(model, input=text, **settings)
        assert alone.pop("score") == pytest.approx(result.pop("score"), abs=1e-5)
        assert alone == result


def test_the_best_of_several_lengths(model: mask_predict.DraftTranslator):
    scores = {n: ask(model, input="1234", lengths=n)[0]["score"] for n in (1, 3, 20)}
    assert scores[1] <= scores[3] <= scores[20]


def test_passes_are_counted(model: mask_predict.DraftTranslator):
    for passes in (1, 2, 3):
        (result,) = ask(model, input="123456789", passes=passes, lengths=1)
        assert result["passes"] == min(passes, len(result["text"])) or len(result["text"]) < passes


def test_what_cannot_be_answered(model: mask_predict.DraftTranslator):
    with pytest.raises(InputError, match="has 40 tokens, and 23 fit into the context"):
        ask(model, input="1" * 40)
    assert ask(model, input="1" * 40, cut=True)
    with pytest.raises(InputError, match="lengths is 0"):
        ask(model, input="1", lengths=0)


@pytest.mark.slow
def test_a_split_is_scored_by_its_translations(model: mask_predict.DraftTranslator):
    pytest.importorskip("sacrebleu", reason="scores need sacrebleu: pip install 'anyformer[scores]'")
    metrics = mask_predict.score(model, CONFIG, passes=1, lengths=1)
    sources, targets = zip(*load_pairs(CONFIG).split("val"))
    texts = [result["text"] for result in ask(model, input=list(sources), passes=1, lengths=1, cut=True)]
    assert metrics["sentences"] == len(texts)
    assert metrics["exact"] == sum(map(str.__eq__, texts, targets)) / len(texts)
