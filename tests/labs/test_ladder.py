"""The ladder of history: every rung is trained and compared, on pairs and on text."""

import json
from pathlib import Path

import pytest
import torch

from anyformer.inference.translation import select_sharpest_layer
from anyformer.labs import ladder
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import within
from anyformer.model.embeddings import TokenEmbedding
from anyformer.model.encoder_decoder import EncoderDecoder
from anyformer.model.heads import LMHead
from cli_kit import call, assert_refused


def test_where_it_looks_is_the_softmax_of_queries_and_keys():
    """Cross-attention told slowly, for grouped heads and rows of unequal length."""
    torch.manual_seed(0)
    shape = TransformerConfig(dim=16, n_layer=2, n_head=4, n_kv_head=2, context=12, position="rotary")
    source, target = TokenEmbedding(19, shape), TokenEmbedding(19, shape)
    model = EncoderDecoder(source, shape, target, shape, LMHead(16, 19)).eval()
    ids, said, lengths = torch.randint(19, (2, 7)), torch.randint(19, (2, 5)), torch.tensor([7, 4])
    looks = model.alignment(ids, said, within(lengths))
    assert looks.shape == (2, 4, 2, 5, 7)  # layers, heads, rows, asks, tells
    torch.testing.assert_close(looks.sum(-1), torch.ones(2, 4, 2, 5))
    assert (looks[:, :, 1, :, 4:] == 0).all()
    block, heard = model.decoder.blocks[0], []
    block.cross.register_forward_pre_hook(lambda module, given: heard.append(given))
    with torch.no_grad():
        model(ids, said, within(lengths))
    x, _, memory = heard[0][:3]
    with torch.no_grad():
        q, k = block.cross.query(x)[0].view(5, 4, 4), block.cross.key(memory)[0].view(7, 2, 4)
        for head in range(4):
            want = (q[:, head] @ k[:, head // 2].T / 2).softmax(-1)
            torch.testing.assert_close(looks[0, head, 0], want)


def test_the_sharpest_layer_is_the_most_decided():
    flat, sharp = torch.full((1, 2, 3, 4), 0.25), torch.eye(4)[:3].expand(1, 2, 3, 4)
    torch.testing.assert_close(select_sharpest_layer(torch.cat([flat, sharp])), torch.eye(4)[:3])


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("ladder") / "out"
    said = call("ladder", "--data", "reverse", "--minutes", 0.05, "--sentences", 60, "--out", out, "--json").ok()
    return out, said.json


def test_every_rung_is_there_and_can_be_asked(climbed: tuple[Path, dict]):
    out, found = climbed
    assert [rung["name"] for rung in found["rungs"]] == ["seq2seq", "rnnsearch", "translation"]
    assert json.loads((out / "ladder.json").read_text()) == {k: v for k, v in found.items() if k != "out"}
    for rung in found["rungs"]:
        assert rung["result"]["val_loss"] > 0 and rung["losses"] and rung["steps_per_second"] > 0
        assert sum(bucket["sentences"] for bucket in rung["by_length"]) <= 60
        call("predict", out / rung["name"], "31415", "--device", "cpu").ok()


def test_it_is_measured_not_written_down(climbed: tuple[Path, dict]):
    """The paths grow with the length where there are chains, and do not where there is attention alone."""
    paths = {rung["name"]: rung["path"] for rung in climbed[1]["rungs"]}
    assert paths["seq2seq"][0] > 15 and paths["rnnsearch"][0] < 5 and paths["rnnsearch"][1] > 30
    assert paths["translation"] == [1, 10]


def test_those_that_look_back_are_drawn(climbed: tuple[Path, dict]):
    out, found = climbed
    assert [one["title"] for one in found["alignments"][0]["maps"]] == ["RNNsearch (2014)", "Transformer (2017)"]
    for one in found["alignments"]:
        for drawn in one["maps"]:
            assert len(drawn["weights"]) == len(drawn["rows"]) and len(drawn["weights"][0]) == len(drawn["columns"])
    page = (out / "ladder.html").read_text()
    assert page.count("<svg") == 2 + sum(len(one["maps"]) for one in found["alignments"])
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


def test_on_text_the_window_of_2003_stands_beside_the_transformer(tmp_path: Path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 200)
    asked = ("--data", tmp_path / "text.txt", "--minutes", 0.03, "--out", tmp_path / "out", "--json")
    found = call("ladder", *asked).ok().json
    assert [rung["name"] for rung in found["rungs"]] == ["mlp", "language"]
    assert not found["pairs"] and (tmp_path / "out" / "ladder.html").is_file()


def test_what_is_pairs_and_what_is_text(tmp_path: Path):
    for name, text in {"a.tsv": "a\tb\n", "b.jsonl": '{"en": "a", "fr": "b"}\n', "c.jsonl": '{"text": "a"}\n'}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sides").mkdir()
    for side in ("en", "fr"):
        (tmp_path / "sides" / f"train.{side}").write_text("a\n")
    kinds = {name: ladder.paired(str(tmp_path / name)) for name in ("a.tsv", "b.jsonl", "c.jsonl", "sides")}
    assert kinds == {"a.tsv": True, "b.jsonl": True, "c.jsonl": False, "sides": True}
    assert ladder.paired("reverse") and ladder.paired("a.en,a.fr")


def test_mistakes_are_one_line(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert_refused(call("ladder", "--data", "reverse", "--out", tmp_path / "full"), "full is not empty")
    assert_refused(call("ladder", "--data", "nowhere.tsv", "--out", tmp_path / "out"), "nowhere.tsv", "no such file")
    assert_refused(call("ladder", "--data", "reverse", "--minutes", 0, "--out", tmp_path / "out"), "minutes")
    assert_refused(call("ladder", "--sentences", 0), "--sentences is 0")
    assert not (tmp_path / "out").exists()
