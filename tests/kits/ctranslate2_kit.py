"""Convert Whisper from CTranslate2's file to a folder of transformers, for the tests with real weights.

The file holds: version, name and revision of the layout, a number of variables (name, rank, sizes, type, bytes), and
aliases. Little-endian; a name is its length in 2 bytes, then its characters and a zero byte.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
LINEARS = {"self_attention": ("qkv", "out"), "attention": ("q", "kv", "out")}
NORM = {"gamma": "weight", "beta": "bias"}
TABLES = {"embeddings": "embed_tokens", "position_encodings": "embed_positions", "conv1": "conv1", "conv2": "conv2"}
Variables = Iterator[tuple[str, np.ndarray]]


def read_text(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", file.read(2))
    return file.read(size).decode().rstrip("\0")


def read_variables(path: Path) -> Variables:
    with open(path, "rb") as file:
        (version,) = struct.unpack("<I", file.read(4))
        layout, (_, n) = read_text(file), struct.unpack("<II", file.read(8))
        assert (version, layout) == (6, "WhisperSpec"), f"{path}: version {version} of {layout}"
        for _ in range(n):
            name, rank = read_text(file), file.read(1)[0]
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            dtype, (size,) = DTYPES[file.read(1)[0]], struct.unpack("<I", file.read(4))
            yield name, np.frombuffer(file.read(size), dtype).reshape(shape)


def translate(name: str, value: np.ndarray) -> Variables:
    """Yield the tensors of transformers that a variable holds; none for settings."""
    stack, *path = name.split("/")
    if not value.shape:
        return
    if path[0] in TABLES:
        yield f"model.{stack}.{TABLES[path[0]]}.{path[1].replace('encodings', 'weight')}", value
    elif path[0] == "layer_norm":
        yield f"model.{stack}.layer_norm.{NORM[path[1]]}", value
    elif path[0].startswith("layer_"):
        yield from translate_layer(f"model.{stack}.layers.{path[0].removeprefix('layer_')}", path[1:], value)


def translate_layer(prefix: str, path: list[str], value: np.ndarray) -> Variables:
    sublayer, part, last = path
    if sublayer == "ffn":
        name = {
            "layer_norm": f"final_layer_norm.{NORM.get(last)}",
            "linear_0": f"fc1.{last}",
            "linear_1": f"fc2.{last}",
        }
        yield f"{prefix}.{name[part]}", value
        return
    attention = f"{prefix}.{ATTENTION[sublayer]}"
    if part == "layer_norm":
        yield f"{attention}_layer_norm.{NORM[last]}", value
        return
    maps = LINEARS[sublayer][int(part.removeprefix("linear_"))]
    if maps == "out":
        yield f"{attention}.out_proj.{last}", value
        return
    for letter, piece in zip(maps, np.split(value, len(maps))):  # query, key and value are concatenated
        if (letter, last) != ("k", "bias"):  # it has no effect, and no place in transformers' layout
            yield f"{attention}.{letter}_proj.{last}", piece


def convert(source: Path, target: Path) -> Path:
    """Convert `source`, which holds model.bin and tokenizer.json, to a new folder `target`."""
    variables = dict(read_variables(source / "model.bin"))
    arrays = {name: array for old, value in variables.items() for name, array in translate(old, value)}
    tensors = {name: torch.from_numpy(array.astype(np.float32)).contiguous() for name, array in arrays.items()}
    target.mkdir()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    conv, words = tensors["model.encoder.conv1.weight"], tensors["model.decoder.embed_tokens.weight"]
    config = {
        "model_type": "whisper",
        "vocab_size": len(words),
        "d_model": conv.shape[0],
        "num_mel_bins": conv.shape[1],
    }
    for stack, side in (("encoder", "source"), ("decoder", "target")):
        prefix = f"model.{stack}.layers."
        config |= {
            f"{stack}_layers": sum(name.startswith(prefix) and name.endswith(".fc1.bias") for name in tensors),
            f"{stack}_attention_heads": int(variables[f"{stack}/num_heads"]),
            f"{stack}_ffn_dim": len(tensors[f"{prefix}0.fc1.bias"]),
            f"max_{side}_positions": len(tensors[f"model.{stack}.embed_positions.weight"]),
        }
    config |= {"decoder_start_token_id": 50258, "eos_token_id": 50257, "activation_function": "gelu"}
    (target / "config.json").write_text(json.dumps(config))
    heads = json.loads((source / "config.json").read_text())["alignment_heads"]
    (target / "generation_config.json").write_text(json.dumps({"alignment_heads": heads}))
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return target
