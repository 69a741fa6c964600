"""Good files in the forms of `forms_kit` and in others, of which `make fuzz` makes damaged ones."""

# ruff: noqa: E501 (one line for each form)

import gzip
import io
import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from forms_kit import (
    CLASSES,
    COLOR_IMAGES,
    FORMS,
    SPOKEN,
    Build,
    archive,
    both,
    files,
    image,
    jsonl,
    media,
    sentence,
    sound,
    table,
)  # fmt: skip


class Form(NamedTuple):
    """Data, and how to train on them."""

    build: Build
    recipe: str = ""
    """"": it is recognized by the data."""
    fields: Mapping[str, str] = MappingProxyType({})
    """Of the config; {} stands for the folder of the data."""


def recode(content: Callable[[int], bytes], kind: str) -> Callable[[int], bytes]:
    """Return images or sounds in another format."""

    def write(i: int) -> bytes:
        buffer = io.BytesIO()
        if kind in ("flac", "ogg"):
            soundfile = pytest.importorskip("soundfile")
            soundfile.write(buffer, *soundfile.read(io.BytesIO(content(i))), format=kind)
        else:
            pytest.importorskip("PIL.Image").open(io.BytesIO(content(i))).save(buffer, kind)
        return buffer.getvalue()

    return write


def arrays(**content: Any) -> Build:
    def build(folder: Path) -> Path:
        np.savez(folder / "set.npz", **content)
        return folder / "set.npz"

    return build


def compress(name: str, kind: str, content: str) -> Build:
    import bz2
    import lzma

    def build(folder: Path) -> Path:
        pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[kind]
        (folder / f"{name}.{kind}").write_bytes(pack(content.encode()))
        return folder / f"{name}.{kind}"

    return build


def write_idx(folder: Path) -> None:
    """Write 20 images of 8 x 8 and their labels as MNIST's files, the labels compressed, which their name does not say."""
    pixels = np.arange(20 * 64, dtype=np.uint8).tobytes()
    (folder / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 20], *[0, 0, 0, 8] * 2]) + pixels)
    labels = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 20, *[0, 1] * 10]))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)


def write_npy_cells(folder: Path) -> Path:
    for i in range(24):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).normal(size=(5, 2)).astype(np.float32))
    return table("a.csv", "motion,size,kind", lambda i: f"{i}.npy,{i}.5,{SPOKEN[i % 3]}", 24)(folder)


def write_tokenizer(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([sentence(i) for i in range(50)], vocab_size=300)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_shards(folder: Path) -> Path:
    from cli_kit import call

    text = TEXT(folder)
    call("shard", text or folder, "--to", folder / "corpus", "--tokenizer", "char", "--shard-tokens", 900).ok()
    for path in folder.glob("*.txt"):
        path.unlink()
    return folder / "corpus"


TEXT = files("a.txt", "b.txt", content=lambda i: "".join(sentence(i + j) + "\n" for j in range(60)))
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8)
PNGS = [image(i) for i in range(20)]
NUMBERS = table("a.csv", "age,town,price,kind", lambda i: f"{i}.5,{CLASSES[i % 3]},{i * i},{SPOKEN[i % 3]}")
SCHEMA = """
[fields.age]
kind = "scalar"
[fields.town]
kind = "category"
values = ["red", "green"]
[targets.kind]
kind = "class"
"""
FURTHER_FORMS = {
    **{
        f"images as {kind}": Form(media(lambda i, kind=kind: f"{CLASSES[i % 3]}/{i}.{kind}", recode(image, kind)))
        for kind in ("JPEG", "GIF", "WebP", "BMP", "TIFF", "PPM")
    },
    **{
        f"sounds as {kind}": Form(media(lambda i, kind=kind: f"{SPOKEN[i % 3]}/{i}.{kind}", recode(sound, kind)))
        for kind in ("flac", "ogg")
    },
    "idx": Form(write_idx),
    "arrays of images": Form(arrays(images=PIXELS, labels=np.arange(20) % 2, classes=["a", "b"], is_test=np.arange(20) > 15)),
    "arrays of splits": Form(arrays(x_train=PIXELS, y_train=np.arange(20) % 2, x_test=PIXELS, y_test=np.arange(20) % 2)),
    "arrays of image files": Form(arrays(
        data=np.frombuffer(b"".join(PNGS), np.uint8), labels=np.arange(20) % 2, offsets=np.cumsum([0, *map(len, PNGS)])
    )),
    "arrays of episodes": Form(arrays(
        states=np.ones((30, 3), np.float32), actions=np.ones((30, 2), np.float32), rewards=np.ones(30), ends=[10, 20, 30]
    )),
    "arrays in cells": Form(write_npy_cells, "multimodal", {"target": "kind"}),
    "FASTA": Form(table("a.fasta", "", lambda i: f">s{i} a protein\n{'MKAV' * (i % 9 + 2)}\nACD*")),
    "Clustal": Form(table("a.aln", "CLUSTAL W\n", lambda i: f"s{i}    {'MKA-V' * 9}{'ACDE'[i % 4]}")),
    "a schema": Form(both(NUMBERS, files("s.toml", content=lambda _: SCHEMA)), "multimodal", {"data": "{}/a.csv", "schema": "{}/s.toml"}),
    "a tokenizer": Form(both(TEXT, write_tokenizer), "language", {"data": "{}/a.txt", "tokenizer": "{}/tokenizer.json"}),
    "shards": Form(write_shards, "language"),
    "a mixture": Form(TEXT, "language", {"data": "{}/a.txt:2 {}/b.txt"}),
    "a text file": Form(TEXT, "language", {"data": "{}/a.txt", "tokenizer": "bpe", "vocab_size": "300"}),
    **{
        f"text as {kind}": Form(compress("a.txt", kind, "".join(sentence(i) + "\n" for i in range(99))), "language", {})
        for kind in ("gz", "xz", "bz2")
    },
    "rows as gz": Form(compress("a.csv", "gz", "a,b,kind\n" + "".join(f"{i},{i % 5},{SPOKEN[i % 3]}\n" for i in range(60)))),
    "a tar of texts": Form(archive(TEXT, "xztar")),
    "a zip of a table with images": Form(archive(both(COLOR_IMAGES, table("homes.csv", "photo,rooms,price", lambda i: f"images/{i:04}.png,{i % 6},{i % 3 * 1000 + i}", 24)), "zip"), "", {"target": "price"}),
    "nested rows": Form(jsonl("a.jsonl", lambda i: {"id": i, "motion": [i, 0.5], "size": i / 3, "when": f"2024-01-{i % 28 + 1:02}", "kind": SPOKEN[i % 3]}), "multimodal", {"target": "kind"}),
    "a series with dates": Form(table("a.csv", "date,shop,sold", lambda i: f"{date.fromordinal(738_000 + i // 2)},{'ab'[i % 2]},{i % 7 + 3}", 500)),
    "rows of JSON in JSON": Form(files("a.json", content=lambda _: json.dumps({"rows": [{"a": i, "b": i % 7, "kind": SPOKEN[i % 3]} for i in range(60)]}))),
}  # fmt: skip
CORPUS = {name: Form(build) for name, (build, _, _) in FORMS.items()} | FURTHER_FORMS
