"""Whisper from CTranslate2's file to a folder as the public library has it, for the tests with real weights.

The file: version, name and revision of the layout, a number of variables (name, rank, sizes, kind of number, bytes),
and aliases. Little-endian; a name is its length in 2 bytes, then its characters and a zero.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

KINDS = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
ATTENTION = {"encoder": {"self_attention": "self_attn"}}
ATTENTION["decoder"] = ATTENTION["encoder"] | {"attention": "encoder_attn"}
NORM = {"gamma": "weight", "beta": "bias"}


def text(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", file.read(2))
    return file.read(size).decode().rstrip("\0")


def variables(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every variable in the order of the file."""
    with open(path, "rb") as file:
        (version,) = struct.unpack("<I", file.read(4))
        layout, (_, n) = text(file), struct.unpack("<II", file.read(8))
        assert (version, layout) == (6, "WhisperSpec"), f"{path}: version {version} of {layout}"
        for _ in range(n):
            name, rank = text(file), file.read(1)[0]
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            kind, size = file.read(1)[0], struct.unpack("<I", file.read(4))[0]
            yield name, np.frombuffer(file.read(size), KINDS[kind]).reshape(shape)


def thirds(name: str, found: np.ndarray, parts: str) -> Iterator[tuple[str, np.ndarray]]:
    """Query, key and value stand one below the other; the key's bias means nothing and has no place in the layout."""
    for part, piece in zip(parts, np.split(found, len(parts))):
        if not (part == "k" and name.endswith("bias")):
            yield name.replace("?", f"{part}_proj"), piece


def renamed(name: str, found: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The public library's names of one variable; nothing for settings."""
    stack, *path = name.split("/")
    if not found.shape:
        return
    fixed = {"embeddings": "embed_tokens", "position_encodings": "embed_positions", "conv1": "conv1", "conv2": "conv2"}
    if path[0] in fixed:
        yield f"model.{stack}.{fixed[path[0]]}.{path[1].replace('encodings', 'weight')}", found
    elif path[0] == "layer_norm":
        yield f"model.{stack}.layer_norm.{NORM[path[1]]}", found
    elif path[0].startswith("layer_"):
        yield from layer(f"model.{stack}.layers.{path[0].removeprefix('layer_')}", stack, path[1:], found)


def layer(at: str, stack: str, path: list[str], found: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    room, part, last = path
    if room == "ffn":
        names = {
            "layer_norm": f"final_layer_norm.{NORM.get(last)}",
            "linear_0": f"fc1.{last}",
            "linear_1": f"fc2.{last}",
        }
        yield f"{at}.{names[part]}", found
        return
    theirs = ATTENTION[stack][room]
    if part == "layer_norm":
        yield f"{at}.{theirs}_layer_norm.{NORM[last]}", found
        return
    maps = {"self_attention": ("qkv", "out"), "attention": ("q", "kv", "out")}[room]
    parts = maps[int(part.removeprefix("linear_"))]
    if parts == "out":
        yield f"{at}.{theirs}.out_proj.{last}", found
    else:
        yield from thirds(f"{at}.{theirs}.?.{last}", found, parts)


def convert(source: Path, target: Path) -> Path:
    """`source` holds model.bin (or model.bin.part1 and part2, joined beforehand) and tokenizer.json."""
    found = dict(variables(source / "model.bin"))
    tensors = {name: value for old, one in found.items() for name, value in renamed(old, one)}
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
    target.mkdir()
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    conv, words = tensors["model.encoder.conv1.weight"], tensors["model.decoder.embed_tokens.weight"]
    config = {
        "model_type": "whisper",
        "vocab_size": len(words),
        "d_model": conv.shape[0],
        "num_mel_bins": conv.shape[1],
    }
    for stack, sides in (("encoder", "source"), ("decoder", "target")):
        depth = sum(name.startswith(f"model.{stack}.layers.") and name.endswith(".fc1.bias") for name in tensors)
        config |= {
            f"{stack}_layers": depth,
            f"{stack}_attention_heads": int(found[f"{stack}/num_heads"]),
            f"{stack}_ffn_dim": len(tensors[f"model.{stack}.layers.0.fc1.bias"]),
            f"max_{sides}_positions": len(tensors[f"model.{stack}.embed_positions.weight"]),
        }
    config |= {"decoder_start_token_id": 50258, "eos_token_id": 50257, "activation_function": "gelu"}
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return target
