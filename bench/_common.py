"""What the benchmarks share: nanoGPT as a peer, fetched by whoever runs them (git clone karpathy/nanoGPT)."""

import argparse
import importlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from anyformer.data.io.resolve import resolve
from anyformer.data.text.prepare import Corpus


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def import_nanogpt(path: Path) -> ModuleType:
    """nanoGPT's model.py."""
    if not (path / "model.py").is_file():
        sys.exit(f"{path} is no checkout of nanoGPT: model.py is missing")
    sys.path.insert(0, str(path.resolve()))
    return importlib.import_module("model")


def find_shakespeare(checkout: Path) -> Path:
    """Tiny Shakespeare: the copy that nanoGPT's prepare.py fetched, or the set by name."""
    path = checkout / "data" / "shakespeare_char" / "input.txt"
    return path.resolve() if path.is_file() else resolve("shakespeare")[0]


def write_nanogpt_data(corpus: Corpus, folder: Path) -> None:
    """train.bin, val.bin and meta.pkl as nanoGPT's own prepare.py makes them, with our ids: its training does not look
    at what they mean."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        corpus.split(split).astype(np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.tokenizer.vocab_size}))


@torch.inference_mode()
def split_loss(model: Any, val: np.ndarray, context: int) -> float:
    """Mean loss of a nanoGPT model over the whole split in windows side by side, the remainder included."""
    total = 0.0
    for start in range(0, len(val) - 1, context):
        window = torch.from_numpy(val[start : start + context + 1].astype(np.int64))[None]
        total += model(window[:, :-1], window[:, 1:])[1].item() * (window.shape[1] - 1)
    return total / (len(val) - 1)


def print_report(title: str, rows: dict[str, tuple[float, float, str]], as_json: bool) -> None:
    """Both sides of each figure and the ratio anyformer / nanoGPT."""
    if as_json:
        print(
            json.dumps({k: {"anyformer": a, "nanogpt": b, "ratio": a / b, "unit": u} for k, (a, b, u) in rows.items()})
        )
        return
    print(f"{title}\n\n{'':<34}{'anyformer':>12}{'nanoGPT':>12}{'ratio':>9}")
    for name, (ours, theirs, unit) in rows.items():
        print(f"{name + ' (' + unit + ')':<34}{ours:>12.4f}{theirs:>12.4f}{ours / theirs:>9.3f}")
