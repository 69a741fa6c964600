"""Marian's vocabulary: two ways to cut texts into the pieces of one vocab.json."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer
from anyformer import api
from anyformer.data.tokenizers.build import load_tokenizer
from anyformer.data.tokenizers.marian_vocabulary import have_one_vocabulary
from anyformer.errors import InputError
from checkpoint_kit import build_reference, save, transformers

SOURCE = {"\u2581the": -2.0, "\u2581hen": -3.0, "\u2581": -3.1, "h": -5.0, "e": -5.0, "n": -5.0, "t": -5.0}
TARGET = {
    "\u2581la": -2.0,
    "\u2581poule": -3.0,
    "\u2581": -3.1,
    "l": -5.0,
    "a": -5.0,
    "e": -5.0,
    "n": -5.0,
    "\u00e9": -6.0,
}
SPECIAL = ["</s>", "<unk>"]
TOKENS = [*SPECIAL, *dict.fromkeys([*SOURCE, *TARGET]), ">>fra<<", "<pad>"]


def encode_field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer; numbers, lengths and values are below 128."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def make_model(pieces: dict[str, float], kind: int = 1) -> bytes:
    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, score, 1) for text, score in pieces.items())]
    fields = (encode_field(1, t.encode()) + encode_field(2, s) + encode_field(3, k) for t, s, k in rows)
    return b"".join(encode_field(1, field) for field in fields) + encode_field(2, encode_field(3, kind))


def write_vocabulary(folder: Path, tokens: Any = TOKENS, kind: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "source.spm").write_bytes(make_model(SOURCE, kind))
    (folder / "target.spm").write_bytes(make_model(TARGET))
    ids = tokens if isinstance(tokens, dict) else {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    return folder


def test_each_side_cuts_texts_by_its_own_pieces(tmp_path: Path):
    folder = write_vocabulary(tmp_path)
    source, target = load_tokenizer(folder / "source.spm"), load_tokenizer(folder / "target.spm")
    ids = {token: i for i, token in enumerate(TOKENS)}
    assert source.encode("the  hen").tolist() == [ids["\u2581the"], ids["\u2581hen"]]
    assert target.encode("la poule").tolist() == [ids["\u2581la"], ids["\u2581poule"]]
    assert target.encode("hen").tolist() == [ids[piece] for piece in ("\u2581", "h", "e", "n")], "not in one piece"
    assert source.encode("\u00e9").tolist() == [ids["\u2581"], ids["\u00e9"]], "a character of the other side"
    assert source.encode("\u2603").tolist() == [ids["\u2581"], ids["<unk>"]]
    assert source.encode_parsing_special(">>fra<< the").tolist() == [ids[">>fra<<"], ids["\u2581the"]]
    both = [ids[piece] for piece in ("\u2581la", "\u2581hen", "\u2581", "\u00e9")]
    assert source.decode(both) == target.decode(both) == "la hen \u00e9"
    assert (source.end_id, source.vocab_size, target.vocab_size) == (0, len(TOKENS), len(TOKENS))
    assert have_one_vocabulary(source, target) and have_one_vocabulary(source, source)
    other = write_vocabulary(tmp_path / "other", [*TOKENS[:3], *reversed(TOKENS[3:])])
    assert not have_one_vocabulary(source, load_tokenizer(other / "target.spm"))
    assert not have_one_vocabulary(source, load_tokenizer_of_bytes())


def load_tokenizer_of_bytes() -> Any:
    from anyformer.data.tokenizers.base import Bytes

    return Bytes()


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        ([token for token in TOKENS if token != "h"], 1, "vocab.json has no id for 'h', a piece of source.spm"),
        ({token: 2 * i for i, token in enumerate(TOKENS)}, 1, "but ids up to 30: an id is missing"),
        (TOKENS, 2, "of type 2; Marian's is a unigram model"),
        ([token for token in TOKENS if token != "<unk>"], 1, "has 0 pieces for what is unknown"),
        ({}, 1, "0 tokens"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tokens: Any, kind: int, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        load_tokenizer(write_vocabulary(tmp_path, tokens, kind) / "source.spm")


def test_a_model_is_imported_with_both_and_exported_with_both(tmp_path: Path):
    ends = {"eos_token_id": 0, "forced_eos_token_id": 0, "bos_token_id": None}
    ends |= dict.fromkeys(("pad_token_id", "decoder_start_token_id"), len(TOKENS) - 1)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 20))}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "max_position_embeddings": 40}
    config = transformers.MarianConfig(vocab_size=len(TOKENS), **sizes, **ends)
    reference = build_reference("MarianMTModel", config)
    folder = write_vocabulary(save(reference, tmp_path / "public"))
    model = anyformer.load(folder, "cpu")
    ids, request = model.module.pair_tokenizer.mark_source([2, 3]), {"input": "the hen", "tokens": 6, "beam": 1}
    (answer,) = model.predict(request)["results"]
    with torch.no_grad():
        expected = reference.generate(torch.tensor([ids]), max_new_tokens=6, num_beams=1, do_sample=False)[0].tolist()
    assert answer["text"] == model.module.pair_tokenizer.target.decode([i for i in expected[1:] if i > 0])
    run = api.import_checkpoint(folder, tmp_path / "run")
    assert run.predict(request) == model.predict(request)
    api.export_checkpoint(tmp_path / "run", "hf", tmp_path / "out")
    again = anyformer.load(tmp_path / "out", "cpu")
    assert again.predict(request) == model.predict(request)
    assert again.module.pair_tokenizer.source.encode("the hen").tolist() == [2, 3]
