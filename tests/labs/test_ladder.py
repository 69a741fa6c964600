"""The ladder: every rung is trained and compared, on pairs and on text."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer.inference.translation import select_sharpest_layer
from anyformer.labs import ladder
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import within
from anyformer.model.embeddings import TokenEmbedding
from anyformer.model.encoder_decoder import EncoderDecoder
from anyformer.model.heads import LMHead
from cli_kit import assert_refused, call


def test_the_alignment_is_the_softmax_of_queries_and_keys():
    """Cross-attention computed head by head, with grouped heads and rows of unequal length."""
    torch.manual_seed(0)
    shape = TransformerConfig(dim=16, n_layer=2, n_head=4, n_kv_head=2, context=12, position="rotary")
    source, target = TokenEmbedding(19, shape), TokenEmbedding(19, shape)
    model = EncoderDecoder(source, shape, target, shape, LMHead(16, 19)).eval()
    ids, targets, lengths = torch.randint(19, (2, 7)), torch.randint(19, (2, 5)), torch.tensor([7, 4])
    weights = model.alignment(ids, targets, within(lengths))
    assert weights.shape == (2, 4, 2, 5, 7)  # layers, heads, rows, queries, keys
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 2, 5))
    assert (weights[:, :, 1, :, 4:] == 0).all()
    block, inputs = model.decoder.blocks[0], []
    block.cross.register_forward_pre_hook(lambda module, args: inputs.append(args))
    with torch.no_grad():
        model(ids, targets, within(lengths))
        x, _, memory = inputs[0][:3]
        q, k = block.cross.query(x)[0].view(5, 4, 4), block.cross.key(memory)[0].view(7, 2, 4)
        for head in range(4):
            expected = (q[:, head] @ k[:, head // 2].T / 2).softmax(-1)
            torch.testing.assert_close(weights[0, head, 0], expected)


def test_the_sharpest_layer_has_the_largest_weights():
    flat, sharp = torch.full((1, 2, 3, 4), 0.25), torch.eye(4)[:3].expand(1, 2, 3, 4)
    torch.testing.assert_close(select_sharpest_layer(torch.cat([flat, sharp])), torch.eye(4)[:3])


def climb(data: object, out: Path) -> dict:
    """Climb the ladder of these data: a few steps on every rung, instead of what the clock allows."""

    def train(name: str, preset: str, minutes: float, yes: bool, train: dict, **options: Any) -> Any:
        assert (minutes, yes, options["progress"]) == (0.05, True, False)
        return api.train(name, preset, train=train | {"batch": 8, "final_every": 9}, steps=3, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "api", SimpleNamespace(train=train, ignore=api.ignore))
        flags = ("--data", data, "--minutes", 0.05, "--sentences", 60, "--out", out, "--json")
        return call("ladder", *flags).ok().json


@pytest.fixture(scope="module")
def pairs_ladder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("ladder") / "out"
    return out, climb("reverse", out)


@pytest.mark.slow
def test_every_rung_is_trained_and_can_predict(pairs_ladder: tuple[Path, dict]):
    out, facts = pairs_ladder
    assert [rung["name"] for rung in facts["rungs"]] == ["seq2seq", "rnnsearch", "translation"]
    assert json.loads((out / "ladder.json").read_text()) == {k: v for k, v in facts.items() if k != "out"}
    for rung in facts["rungs"]:
        assert rung["steps"] == 3 and rung["result"]["val_loss"] > 0 and rung["losses"] and rung["steps_per_second"] > 0
        assert sum(bucket["sentences"] for bucket in rung["by_length"]) <= 60
        call("predict", out / rung["name"], "31415", "--device", "cpu").ok()
    paths = {rung["name"]: rung["path"] for rung in facts["rungs"]}
    assert paths["seq2seq"][0] > 15 and paths["rnnsearch"][0] < 5 and paths["rnnsearch"][1] > 30
    assert paths["translation"] == [1, 10], "attention alone does not grow with the length"


@pytest.mark.slow
def test_models_with_attention_have_alignments(pairs_ladder: tuple[Path, dict]):
    out, facts = pairs_ladder
    assert [m["title"] for m in facts["alignments"][0]["maps"]] == ["RNNsearch (2014)", "Transformer (2017)"]
    maps = [m for pair in facts["alignments"] for m in pair["maps"]]
    for m in maps:
        assert len(m["weights"]) == len(m["rows"]) and len(m["weights"][0]) == len(m["columns"])
    page = (out / "ladder.html").read_text()
    assert page.count("<svg") == 2 + len(maps)
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_text_has_a_ladder_of_language_models(tmp_path: Path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 200)
    facts = climb(tmp_path / "text.txt", tmp_path / "out")
    assert [rung["name"] for rung in facts["rungs"]] == ["mlp", "language"]
    assert not facts["pairs"] and (tmp_path / "out" / "ladder.html").is_file()


def test_pairs_are_told_from_text(tmp_path: Path):
    for name, text in {"a.tsv": "a\tb\n", "b.jsonl": '{"en": "a", "fr": "b"}\n', "c.jsonl": '{"text": "a"}\n'}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    for language in ("en", "fr"):
        (tmp_path / "folder" / f"train.{language}").write_text("a\n")
    kinds = {name: ladder.is_pairs(str(tmp_path / name)) for name in ("a.tsv", "b.jsonl", "c.jsonl", "folder")}
    assert kinds == {"a.tsv": True, "b.jsonl": True, "c.jsonl": False, "folder": True}
    assert ladder.is_pairs("reverse") and ladder.is_pairs("a.en,a.fr")


def test_mistakes_are_one_line(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert_refused(call("ladder", "--data", "reverse", "--out", tmp_path / "full"), "full exists and is not empty")
    assert_refused(call("ladder", "--data", "nowhere.tsv", "--out", tmp_path / "out"), "nowhere.tsv", "no such file")
    assert_refused(call("ladder", "--data", "reverse", "--minutes", 0, "--out", tmp_path / "out"), "minutes")
    assert_refused(call("ladder", "--sentences", 0), "--sentences is 0")
    assert not (tmp_path / "out").exists()
