"""Language: documents kept apart, local layers, numbers that make no sense."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.errors import InputError
from anyformer.parsing import parse_dataclass
from anyformer.recipes import language, recall
from anyformer.training import loop

DOCUMENTS = ["the cat sat", "on the mat", "a", "the dog ran to the log", "it sat", "the rat ate the malt", "on it"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS * 4))
    return str(path)


def make_config(data: str, recipe=language, position: str = "rotary", **fields) -> language.Config:
    config = recipe.PRESETS["tiny"]
    model = replace(config.model, position=position, context=64)
    fields = {"documents": "apart", "val_fraction": 0.0} | fields
    return replace(config, data=data, model=model, **fields)


def build_model(recipe, config: language.Config) -> language.LanguageModel:
    torch.manual_seed(0)
    model = recipe.build(config).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("head.weigh"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def split_documents(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each document of a batch as a batch of its own."""
    pieces = []
    for ids, labels, document in zip(batch["ids"], batch["labels"], batch["document"]):
        for number in document.unique():
            is_own = (document == number) & (labels != IGNORE_INDEX)
            if is_own.any():
                pieces.append({"ids": ids[is_own][None], "labels": labels[is_own][None]})
    return pieces


@pytest.mark.parametrize("position", ["learned", "rotary", "relative", "alibi"])
@pytest.mark.parametrize(("recipe", "fields"), [(language, {}), (language, {"window": 4}), (recall, {"counts": "3"})])
def test_packed_documents_equal_separate_ones_in_loss_and_gradient(data: str, recipe, fields: dict, position: str):
    config = make_config(data, recipe, position, **fields)
    model, (batch, _) = build_model(recipe, config), next(recipe.batches(config, "all"))
    batch = {name: value for name, value in batch.items() if name != "previous"}  # what only n-grams read
    assert batch["document"].max() >= 3
    recipe.loss(model, batch).backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pieces = split_documents(batch)
    count = sum(piece["labels"].numel() for piece in pieces)
    assert count == int((batch["labels"] != IGNORE_INDEX).sum())
    losses = [recipe.loss(model, piece) * piece["labels"].numel() / count for piece in pieces]
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(recipe.loss(model, batch), torch.stack(losses).sum())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_joined_documents_attend_across_borders(data: str):
    config = make_config(data, documents="joined")
    batch, _ = next(language.batches(config, "all"))
    assert batch.keys() == {"ids", "labels"}
    apart, _ = next(language.batches(replace(config, documents="apart"), "all"))
    assert torch.equal(batch["ids"], apart["ids"]) and torch.equal(batch["labels"], apart["labels"])
    model = build_model(language, config)
    assert abs(language.loss(model, batch).item() - language.loss(model, apart).item()) > 1e-3


def test_one_document_needs_no_mask(text: Path):
    """The batches of a corpus of one document, or of rows without a border, are the same in both modes."""
    config = make_config(str(text), val_fraction=0.1)
    for split in ("train", "val"):
        apart, joined = (
            next(language.batches(replace(config, documents=mode), split))[0] for mode in ("apart", "joined")
        )
        assert apart.keys() == {"ids", "labels"} and torch.equal(apart["ids"], joined["ids"])


def test_training_and_evaluation_with_documents_apart(data: str):
    config = make_config(data, val_fraction=0.3)
    config = replace(config, train=replace(config.train, steps=2, eval_every=2, device="cpu", dtype="float32"))
    state = loop.init_state(language, config)
    records = list(loop.train(language, config, state))
    assert np.isfinite(records[-1]["val_loss"])
    tokens = [
        loop.evaluate(language, state.model, (b for b, _ in language.batches(c, "all")))["tokens"]
        for c in (config, replace(config, documents="joined"))
    ]
    assert tokens[0] == tokens[1], "every label is predicted in both modes"


def test_documents_as_rows(data: str):
    """Every window of the training begins with a document, and each document of the validation is a row."""
    config = make_config(data, documents="rows", val_fraction=0.25)
    config = replace(config, model=replace(config.model, context=16), train=replace(config.train, batch=4))
    tokenizer = language.load_text_tokenizer(config)
    starts = {text[:4] for text in DOCUMENTS}
    batches = language.batches(config, "train")
    rows = [tokenizer.decode(row.tolist()) for batch, _ in (next(batches) for _ in range(8)) for row in batch["ids"]]
    assert all(any(row.startswith(start) for start in starts) for row in rows) and len(set(rows)) > 5
    labels = [row[row != IGNORE_INDEX] for batch, _ in language.batches(config, "val") for row in batch["labels"]]
    texts = [tokenizer.decode(row.tolist()) for row in labels]
    assert set(texts[1:]) <= {text[1:17] for text in DOCUMENTS} and len(texts) > 5
    assert language.loss(build_model(language, config), next(language.batches(config, "val"))[0]).isfinite()


def test_rows_are_of_one_text(data: str):
    config = make_config(f"{data}:1 {data}:2", documents="rows")
    with pytest.raises(InputError, match="documents is rows, which takes one source"):
        next(language.batches(config, "train"))
    with pytest.raises(InputError, match="documents is 'rows'"):
        parse_dataclass(recall.Config, {"documents": "rows"}, "config.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": 4, "global_every": 0}, "global_every is 0; it must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number"),
        ({"padded_vocab": -1}, "padded_vocab is -1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"),
        ({"documents": "appart"}, "did you mean 'apart'"),
        ({"tied": 1}, "tied is 1; it must be true or false"),
        ({"model": {"position": "rope"}}, "rotary"),
    ],
)
def test_values_that_make_no_sense_get_one_line(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        parse_dataclass(language.Config, fields, "config.json")
