"""Translation: long texts, padding, two vocabularies, requests that make no sense, and a small task that is learned."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.tokenizers import build as tok
from anyformer.errors import InputError
from anyformer.metrics import score_translations
from anyformer.model.edges import within
from anyformer.parsing import parse_dataclass, to_json
from anyformer.recipes import translation
from anyformer.recipes._shared.pairs import Translator
from anyformer.resolve_job import merge_overrides
from anyformer.training import loop
from cli_kit import SHORT, call
from data_kit import refuses, write

PAIRS = [("go", "va"), ("a cat", "un chat"), ("the dog", "le chien"), ("a cat", "une chatte"), ("stop", "assez")] * 8


def write_pairs(path: Path, rows: list[tuple[str, ...]] = PAIRS) -> str:
    return str(write(path, "".join("\t".join(row) + "\n" for row in rows)))


def make_config(preset: str = "tiny", **changes: Any) -> translation.Config:
    """A preset with some fields changed; nested ones as dicts."""
    values = to_json(translation.PRESETS[preset])
    return parse_dataclass(translation.Config, merge_overrides(values, changes), "config.json")


def build_model(config: translation.Config) -> Translator:
    torch.manual_seed(0)
    return translation.build(config).eval()


# --- lengths ---


def test_texts_longer_than_the_context_are_refused_or_cut(tmp_path: Path):
    data = write_pairs(tmp_path / "a.tsv", [*PAIRS, ("long " * 9, "court"), ("kurz", "lang" * 9)])
    config = make_config(data=data)
    both = ("1 sources of more than 23 tokens, up to 44", "1 targets of more than 23 tokens, up to 36")
    with refuses("2 of 42 pairs are longer than the context", *both, "a.tsv, line 41", "--too-long", "context 45"):
        next(translation.batches(config, "all"))
    config = dataclasses.replace(config, too_long="cut")
    assert next(translation.batches(config, "train"))[1]["skipped"] == 0
    batches = list(translation.batches(config, "all"))
    assert batches[0][1]["cut"] == 2
    for side in ("source", "target"):
        assert max(batch[side].shape[1] for batch, _ in batches) == 24
    model = build_model(make_config())
    with refuses("has 30 tokens, and 23 fit"):
        translation.predict(model, {"input": ["123", "0" * 30]})
    assert translation.predict(model, {"input": "0" * 30, "cut": True})["results"][0]["cut"] == 7


def test_a_character_that_the_vocabulary_lacks(tmp_path: Path):
    tok.Characters("abcdefghijklmnopqrstuvwxyz").save(tmp_path / "tokenizer.json")
    config = make_config(data=write_pairs(tmp_path / "a.tsv"), tokenizer=str(tmp_path / "tokenizer.json"))
    with refuses("the source of pair ", "' '"):
        next(translation.batches(config, "all"))


def test_padding_changes_nothing(tmp_path: Path):
    config = make_config(data=write_pairs(tmp_path / "a.tsv"))
    model = build_model(config)
    batch, _ = next(translation.batches(config, "all"))
    together = model(batch["source"], batch["target"], within(batch["lengths"]))
    for i, n in enumerate(batch["lengths"].tolist()):
        length = int((batch["labels"][i] != IGNORE_INDEX).sum())
        alone = model(batch["source"][i : i + 1, :n], batch["target"][i : i + 1, :length])
        torch.testing.assert_close(together[i : i + 1, :length], alone, rtol=1e-5, atol=1e-5)


# --- the model ---


@pytest.mark.parametrize("preset", translation.PRESETS)
def test_every_preset_translates_texts_together_as_alone(preset: str, tmp_path: Path):
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "mlp_dim": 40, "context": 32}
    data = {"data": write_pairs(tmp_path / "a.tsv"), "tokenizer": "bpe", "vocab_size": 270}
    model = build_model(make_config(preset, **data, encoder=shape, decoder=shape))
    for parameter in model.parameters():  # far from equal probabilities, whose order would be chance
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    texts, request = ["a cat", "the dog and a cat", "", "stop"], {"beam": 3, "n_best": 2}
    together = translation.predict(model, {"input": texts} | request)["results"]
    assert [result["input"] for result in together] == texts
    for text, result in zip(texts, together):
        alone = translation.predict(model, {"input": text} | request)["results"][0]
        assert alone["text"] == result["text"] and alone["score"] == pytest.approx(result["score"], abs=1e-5)
        scores = [candidate["score"] for candidate in result["candidates"]]
        assert len(scores) == 2 and scores[0] >= scores[1]


def test_shared_and_tied_embeddings_are_one_tensor():
    def token_tensors(**fields: bool) -> list[str]:
        names = (name for name, _ in build_model(make_config(**fields)).named_parameters())
        return [name for name in names if "token" in name or "head" in name]

    assert token_tensors(copy=False) == ["source.token.weight"]
    untied = ["source.token.weight", "target.token.weight", "head.project.weight"]
    assert token_tensors(copy=False, tied=False, shared=False) == untied


def test_each_side_may_have_its_own_vocabulary(tmp_path: Path):
    data = write_pairs(tmp_path / "a.tsv")
    fields = {"data": data, "tokenizer": "char", "source_tokenizer": "bpe", "vocab_size": 260, "copy": False}
    source, target = build_model(make_config(**fields, shared=False)).pair_tokenizer.tokenizers
    for side, tokenizer in enumerate((source, target)):
        assert all(tokenizer.decode(tokenizer.encode(pair[side])) == pair[side] for pair in PAIRS)
    with pytest.raises(InputError):
        target.encode("q")  # it knows the characters of its own side only
    model = api.train("translation", "tiny", **fields, shared=False, out=tmp_path / "run", train={"steps": 2})
    batch, _ = next(translation.batches(model.config, "val"))
    assert int(batch["source"].max()) < source.vocab_size and int(batch["target"].max()) < target.vocab_size
    assert (batch["source"][0, batch["lengths"][0] - 1]).item() == source.end_id != target.end_id
    Path(data).unlink()  # the run holds what the model needs
    request = {"input": "a cat", "beam": 2}
    assert api.load(tmp_path / "run").predict(request) == model.predict(request)


def test_a_model_is_built_from_its_tokenizer_without_data(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    tok.Characters("0123456789").save(path)
    model = build_model(make_config(data="", tokenizer=str(path)))
    assert translation.predict(model, {"input": "123", "beam": 1})["results"][0]["input"] == "123"
    pair = build_model(make_config(data="", tokenizer="ids", padded_vocab=20, start=0, end=1)).pair_tokenizer
    assert (pair.start_id, pair.end_id, pair.source_end_id) == (0, 1, 1)
    with refuses("no token that ends a text", "--end"):
        build_model(make_config(data="", tokenizer="ids", padded_vocab=20))
    with refuses("start is 99", "0 to 10"):
        build_model(make_config(data="", tokenizer=str(path), start=99))
    with refuses("end is 3", "ends a text with 10"):
        build_model(make_config(data="", tokenizer=str(path), end=3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beams": 2}, "request: unknown field 'beams': did you mean 'beam'"),
        ({"beam": 0}, "beam is 0; it must be at least 1"),
        ({"beam": "2"}, "beam is '2'; it must be a whole number"),
        ({"beam": 2, "n_best": 3}, "n_best is 3; it must be at least 1 and at most 2"),
        ({"tokens": 0}, "tokens is 0"),
        ({"input": [1]}, "input"),
        ({"input": 5}, "input is 5"),
        ({"length_penalty": "x"}, "length_penalty is 'x'; it must be a finite number"),
    ],
)
def test_a_request_that_makes_no_sense_gets_one_line(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        translation.predict(build_model(make_config()), fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": {"dim": 64}}, "encoder.dim is 32 and decoder.dim 64"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"source_tokenizer": "bpe"}, "no embedding to share: --no-shared"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0; it must be above 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"end": -1}, "end is -1"),
    ],
)
def test_values_that_make_no_sense_get_one_line(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        make_config(**fields)


# --- data and scores ---


def test_scores_are_those_of_sacrebleu():
    pytest.importorskip("sacrebleu", reason="BLEU and chrF: pip install sacrebleu")
    scores = score_translations(["the cat sat on the mat", "hello there"], ["the cat sat on the mat", "hello you"])
    assert scores["exact"] == 0.5 and 0 < scores["bleu"] < 100 and 0 < scores["chrf"] < 100
    assert "tok:13a" in scores["signature"] and scores["sentences"] == 2
    assert score_translations(["a b c d e"], ["a b c d e"])["bleu"] == pytest.approx(100)


def test_skipped_pairs_are_counted(tmp_path: Path):
    config = make_config(data=write_pairs(tmp_path / "a.tsv", [*PAIRS, ("alone",)]))
    with refuses("1 of 41 pairs have an empty side", "a.tsv, line 41"):
        next(translation.batches(config, "train"))
    batch, state = next(translation.batches(dataclasses.replace(config, empty="skip"), "train"))
    assert state["skipped"] == 1 and state["cut"] == 0 and state["step"] == 1
    assert state["tokens"] == int(batch["lengths"].sum() + (batch["labels"] != IGNORE_INDEX).sum())


def test_the_command_line_reports_skipped_and_cut_pairs(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("".join(f"{'x' * 30}{i}\ty\n" for i in range(20)) + "a\t\n")
    flags = (
        "--preset",
        "tiny",
        *SHORT,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
        "--empty",
        "skip",
        "--too-long",
        "cut",
    )
    err = call("train", "translation", "--data", tmp_path / "a.tsv", *flags).ok().err
    assert re.search(r"\b1 .*left out", err) and re.search(r"\b18 .*cut to the context", err)


def test_the_command_line_trains_translates_and_scores(tmp_path: Path):
    pytest.importorskip("sacrebleu", reason="BLEU and chrF: pip install sacrebleu")
    data, run = write_pairs(tmp_path / "a.tsv"), tmp_path / "run"
    flags = ("--preset", "tiny", "--data", data, *SHORT, "--device", "cpu", "--out", run)
    assert " → " in call("train", "translation", *flags).ok().out and " → " in (run / "samples.txt").read_text()
    assert "anyformer predict" in (run / "report.html").read_text()
    scores = call("eval", run, "--scores", "--json").ok().json
    assert scores["sentences"] == 8 and scores["bleu"] >= 0 and "tok:13a" in scores["signature"]
    other = write_pairs(tmp_path / "b.tsv", [("cat", "chat"), ("dog", "chien")])
    assert call("eval", run, "--data", other, "--scores", "--json").ok().json["sentences"] == 2, "all of other data"
    answer = call("predict", run, "the cat", "dog", "--request", '{"beam": 2}', "--json", "--device", "cpu").ok().json
    assert [result["input"] for result in answer["results"]] == ["the cat", "dog"]


# --- learning ---


def train(config: translation.Config) -> tuple[Translator, list[dict]]:
    state = loop.init_state(translation, config)
    records = list(loop.train(translation, config, state))
    return state.model.eval(), records


@pytest.mark.slow
def test_reversing_short_strings_is_learned(tmp_path: Path):
    """A few digits in a few seconds, on strings that were not in the training split."""
    texts = ["".join(row) for row in itertools.product("01234", repeat=4)]
    data = write_pairs(tmp_path / "a.tsv", [(text, text[::-1]) for text in texts])
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "context": 8, "norm": "rmsnorm", "bias": False}
    settings = {"steps": 500, "batch": 40, "lr": 1e-2, "warmup": 20, "eval_every": 500, "weight_decay": 0.01}
    model, records = train(make_config(data=data, label_smoothing=0.0, encoder=shape, decoder=shape, train=settings))
    assert records[0]["loss"] > 1.5 and records[-1]["val_loss"] < 0.1
    results = translation.predict(model, {"input": texts, "beam": 2})["results"]
    assert sum(result["text"] == result["input"][::-1] for result in results) / len(texts) > 0.9


@pytest.mark.slow
def test_a_pointer_copies_tokens_that_training_never_showed(tmp_path: Path):
    """Letters that no training pair has: without a pointer none of them is ever written."""
    tok.Characters("abcdefghijklmnopqrstuvwxyz ").save(tmp_path / "tokenizer.json")
    old, new = (["".join(word) for word in itertools.product(letters, repeat=3)] for letters in ("abcdef", "xyz"))
    data = write_pairs(tmp_path / "a.tsv", [(f"go {word}", f"va {word}") for word in old])
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "context": 12, "norm": "rmsnorm", "bias": False}
    settings = {"steps": 100, "batch": 20, "lr": 1e-2, "warmup": 20, "eval_every": 100, "weight_decay": 0.01}
    fields = {"data": data, "tokenizer": str(tmp_path / "tokenizer.json"), "label_smoothing": 0.0, "train": settings}
    exact = {}
    for copy in (False, True):
        model, _ = train(make_config(**fields, copy=copy, encoder=shape, decoder=shape))
        results = translation.predict(model, {"input": [f"go {word}" for word in new], "beam": 2})["results"]
        exact[copy] = sum(result["text"] == f"va {word}" for result, word in zip(results, new)) / len(new)
    assert exact[True] > 0.5 and exact[False] == 0, exact


def test_a_copying_model_returns_probabilities_and_decodes_as_it_is_trained(tmp_path: Path):
    model = build_model(make_config(data=write_pairs(tmp_path / "a.tsv"), copy=True))
    source, target = torch.tensor([[3, 4, 5, 1], [6, 1, 0, 0]]), torch.tensor([[1, 3, 4], [1, 6, 2]])
    edges = within(torch.tensor([4, 2]))
    log_probs = model(source, target, edges)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3))
    decoder = model.condition(model.encode(source, edges), edges, source)
    torch.testing.assert_close(decoder.head(decoder.hidden(target)[:, -1]), log_probs[:, -1])
    alone = model(source[1:, :2], target[1:])
    torch.testing.assert_close(log_probs[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_reversing_is_learned():
    """The default preset: at least 99 % exact on strings of the validation split."""
    pytest.importorskip("sacrebleu", reason="`score` needs it: pip install sacrebleu")
    config = translation.PRESETS["reverse"]
    model, _ = train(config)
    assert translation.score(model, config, beam=1)["exact"] >= 0.99
