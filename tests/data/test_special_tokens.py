"""The metadata files of a checkpoint are read and kept; numbers can be a tokenizer; a folder can be a tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from anyformer import api
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.base import ids_json
from cli_kit import train
from data_kit import SAMPLE, refuses, write


def test_metadata_files_take_precedence_in_order(tmp_path):
    """A token named in tokenizer.json, then special_tokens_map.json, then config.json, then generation_config.json."""
    public = tokenizers.Tokenizer.from_str(tok.train_bpe([SAMPLE], 300).to_json())
    public.add_special_tokens(["<s>", "</s>"])
    write(tmp_path / "tokenizer.json", public.to_str())
    assert tok.load_tokenizer(tmp_path).end_ids == (0,)
    write(tmp_path / "special_tokens_map.json", '{"eos_token": {"content": "</s>"}, "bos_token": "no"}')
    assert tok.load_tokenizer(tmp_path / "tokenizer.json").end_ids == (301,)
    write(tmp_path / "config.json", '{"eos_token_id": 300, "bos_token_id": 300}')
    assert tok.load_tokenizer(tmp_path).end_ids == (300,)
    write(tmp_path / "generation_config.json", '{"eos_token_id": [301, 0, 99999], "temperature": 2}')
    write(tmp_path / "tokenizer_config.json", '{"bos_token": "<s>", "add_bos_token": true, "chat_template": "t"}')
    tokenizer = tok.load_tokenizer(tmp_path)
    assert (tokenizer.end_id, tokenizer.end_ids) == (301, (301, 0))
    ids = [300, *tokenizer.encode("a")]
    assert tokenizer.encode_prompt("a").tolist() == tokenizer.encode_with_bos_eos("a").tolist() == ids
    assert tokenizer.encode_prompt("").tolist() == [300]
    loaded = tok.tokenizer_from_files({"tokenizer.json": tokenizer.to_json(), **tokenizer.extra_files})
    assert loaded.extra_files == tokenizer.extra_files and loaded.end_ids == tokenizer.end_ids
    assert loaded.encode_prompt("a").tolist() == ids
    write(tmp_path / "tokenizer_config.json", '{"bos_token": "<s>", "add_bos_token": true, "add_eos_token": true}')
    assert tok.load_tokenizer(tmp_path).encode_with_bos_eos("a").tolist() == [*ids, 301]
    assert tok.load_tokenizer(tmp_path).encode_prompt("a").tolist() == ids


def test_ids_are_a_tokenizer(tmp_path):
    own = tok.Subwords(ids_json(100))
    assert own.encode("12 7 3").tolist() == [12, 7, 3] and own.decode(np.array([12, 7, 3])) == "12 7 3"
    assert own.encode_prompt("5").tolist() == own.encode_with_bos_eos("5").tolist() == [5] and own.end_ids == ()
    own.save(tmp_path / "tokenizer.json")
    assert tok.load_tokenizer(tmp_path).encode("99").tolist() == [99]
    with refuses("'a 100'", "vocabulary of 100 tokens lacks"):
        own.encode("a 100")


def write_gpt2_files(folder: Path) -> tok.Subwords:
    """Train a small BPE and write GPT-2's two files."""
    own = tok.train_bpe([SAMPLE], 300)
    model = json.loads(own.to_json())["model"]
    write(folder / "vocab.json", json.dumps(model["vocab"]))
    write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    return own


def test_a_folder_is_a_tokenizer_and_a_run_keeps_it(text: Path, tmp_path: Path):
    own = write_gpt2_files(tmp_path / "home")
    write(tmp_path / "home" / "generation_config.json", '{"eos_token_id": [5, 0]}')
    train(text, tmp_path / "run", "--tokenizer", tmp_path / "home")
    for name in ("vocab.json", "merges.txt", "generation_config.json"):
        (tmp_path / "home" / name).unlink()
    loaded = api.load(tmp_path / "run").module.tokenizer
    assert loaded.encode(SAMPLE).tolist() == own.encode(SAMPLE).tolist() and loaded.end_ids == (5, 0)


def test_prepared_tokens_depend_on_the_end_id(tmp_path: Path):
    write_gpt2_files(tmp_path / "home")
    write(tmp_path / "text" / "a.txt", "one")
    write(tmp_path / "text" / "b.txt", "two")
    tokens = []
    for end in (5, 7):
        write(tmp_path / "home" / "generation_config.json", json.dumps({"eos_token_id": end}))
        corpus = prepare_corpus(str(tmp_path / "text"), str(tmp_path / "home"))
        assert corpus.tokenizer.end_id == end and end in corpus.split("all")
        tokens.append(corpus.split("all").tolist())
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("config.json", "{", ["config.json: not JSON"]),
        ("generation_config.json", "[]", ["generation_config.json: should hold a JSON object"]),
        ("tokenizer_config.json", b"\xff", ["tokenizer_config.json: cannot be read as text"]),
    ],
)
def test_bad_metadata_files(tmp_path: Path, name: str, content: str | bytes, parts: list[str]):
    write(tmp_path / "tokenizer.json", tok.train_bpe([SAMPLE], 300).to_json())
    write(tmp_path / name, content)
    with refuses(*parts):
        tok.load_tokenizer(tmp_path)
