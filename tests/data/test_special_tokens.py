"""What stands beside a tokenizer.json is understood and kept; numbers can be a tokenizer; a folder can be named."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from anyformer.data.text.prepare import prepare

from anyformer import api
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers import json_layout as layout
from cli_kit import train
from data_kit import SAMPLE, refuses, write


def test_beside(tmp_path):
    made = tokenizers.Tokenizer.from_str(tok.train_bpe([SAMPLE], 300).json())
    made.add_special_tokens(["<s>", "</s>"])
    write(tmp_path / "tokenizer.json", made.to_str())
    assert tok.load(tmp_path).ends == (0,)
    write(tmp_path / "special_tokens_map.json", '{"eos_token": {"content": "</s>"}, "bos_token": "no"}')
    assert tok.load(tmp_path / "tokenizer.json").ends == (301,)
    write(tmp_path / "config.json", '{"eos_token_id": 300, "bos_token_id": 300}')
    assert tok.load(tmp_path).ends == (300,)
    write(tmp_path / "generation_config.json", '{"eos_token_id": [301, 0, 99999], "temperature": 2}')
    write(tmp_path / "tokenizer_config.json", '{"bos_token": "<s>", "add_bos_token": true, "chat_template": "t"}')
    own = tok.load(tmp_path)
    assert (own.end, own.ends) == (301, (301, 0)) and own.prompt("a").tolist() == [300, *own.encode("a")]
    assert own.whole("a").tolist() == own.prompt("a").tolist() and own.prompt("").tolist() == [300]
    again = tok.of_files({"tokenizer.json": own.json(), **own.beside})
    assert again.beside == own.beside and again.ends == own.ends and again.prompt("a").tolist()[0] == 300
    write(tmp_path / "tokenizer_config.json", '{"bos_token": "<s>", "add_bos_token": true, "add_eos_token": true}')
    assert tok.load(tmp_path).whole("a").tolist()[-1] == 301
    assert tok.load(tmp_path).prompt("a").tolist() == own.prompt("a").tolist()


def test_ids_are_a_tokenizer(tmp_path):
    own = tok.Subwords(layout.of_ids(100))
    assert own.encode("12 7 3").tolist() == [12, 7, 3] and own.decode(np.array([12, 7, 3])) == "12 7 3"
    assert own.prompt("5").tolist() == own.whole("5").tolist() == [5] and own.ends == ()
    own.save(tmp_path / "tokenizer.json")
    assert tok.load(tmp_path).encode("99").tolist() == [99]
    with refuses("'a 100'", "vocabulary of 100 tokens lacks"):
        own.encode("a 100")


def as_folder(folder: Path) -> tok.Subwords:
    """A small BPE in GPT-2's two files."""
    own = tok.train_bpe([SAMPLE], 300)
    model = json.loads(own.json())["model"]
    write(folder / "vocab.json", json.dumps(model["vocab"]))
    write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    return own


def test_a_folder_is_a_tokenizer_and_a_run_keeps_it(text: Path, tmp_path: Path):
    own = as_folder(tmp_path / "home")
    write(tmp_path / "home" / "generation_config.json", '{"eos_token_id": [5, 0]}')
    train(text, tmp_path / "run", "--tokenizer", tmp_path / "home")
    for name in ("vocab.json", "merges.txt", "generation_config.json"):
        (tmp_path / "home" / name).unlink()
    kept = api.load(tmp_path / "run").module.tokenizer
    assert kept.encode(SAMPLE).tolist() == own.encode(SAMPLE).tolist() and kept.ends == (5, 0)


def test_prepared_tokens_know_which_token_ends_a_text(tmp_path: Path):
    as_folder(tmp_path / "home")
    write(tmp_path / "text" / "a.txt", "one")
    write(tmp_path / "text" / "b.txt", "two")
    tokens = []
    for end in (5, 7):
        write(tmp_path / "home" / "generation_config.json", json.dumps({"eos_token_id": end}))
        found = prepare(str(tmp_path / "text"), str(tmp_path / "home"))
        assert found.tokenizer.end == end and end in found.split("all")
        tokens.append(found.split("all").tolist())
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("config.json", "{", ["config.json: not JSON"]),
        ("generation_config.json", "[]", ["generation_config.json: should hold a JSON object"]),
        ("tokenizer_config.json", b"\xff", ["tokenizer_config.json: cannot be read as text"]),
    ],
)
def test_bad_files_beside(tmp_path: Path, name: str, content: str | bytes, parts: list[str]):
    write(tmp_path / "tokenizer.json", tok.train_bpe([SAMPLE], 300).json())
    write(tmp_path / name, content)
    with refuses(*parts):
        tok.load(tmp_path)
