"""nanoGPT as a peer of the benchmarks, from a checkout of github.com/karpathy/nanoGPT."""

import argparse
import importlib
import json
import pickle
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from anyformer.data.io.resolve import resolve
from anyformer.data.text.prepare import Corpus
from anyformer.recipes import language
from anyformer.training.device import autocast, move_batch
from bench._common import make_parser


def make_nanogpt_parser(doc: str | None) -> argparse.ArgumentParser:
    parser = make_parser(doc)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of github.com/karpathy/nanoGPT")
    return parser


def import_nanogpt(path: Path) -> ModuleType:
    """Import nanoGPT's model.py."""
    if not (path / "model.py").is_file():
        sys.exit(f"{path} is no checkout of nanoGPT: model.py is missing")
    sys.path.insert(0, str(path.resolve()))
    return importlib.import_module("model")


def find_shakespeare(checkout: Path) -> Path:
    """Return tiny Shakespeare: the copy that nanoGPT's prepare.py downloaded, or the set by name."""
    path = checkout / "data" / "shakespeare_char" / "input.txt"
    return path.resolve() if path.is_file() else resolve("shakespeare")[0]


def write_nanogpt_data(corpus: Corpus, folder: Path) -> None:
    """Write train.bin, val.bin and meta.pkl as nanoGPT's prepare.py does, with our token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        corpus.split(split).astype(np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.tokenizer.vocab_size}))


def step_nanogpt(
    module: ModuleType, config: Any, vocab_size: int, batches: Iterable[Any], backend: str | None
) -> Iterator[Any]:
    """Yield the loss after each update as in nanoGPT's train.py, for the shape and the batches of our config."""
    shape, c = config.model, config.train
    torch.manual_seed(c.seed)
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.dim, "block_size": shape.context}
    model = module.GPT(module.GPTConfig(**sizes, vocab_size=vocab_size, dropout=shape.dropout, bias=shape.bias))
    device = torch.device(c.device)
    optimizer = model.to(device).configure_optimizers(c.weight_decay, c.lr, (0.9, c.beta2), device.type)
    forward = torch.compile(model, backend=backend) if backend else model
    for batch, _ in batches:
        batch = move_batch(batch, device)
        with autocast(device, getattr(torch, c.dtype)):
            _, loss = forward(batch["ids"], batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss


def count_flops(config: language.Config) -> float:
    """Return the FLOPs per token, forward and backward, as nanoGPT counts them."""
    with torch.device("meta"):
        model = language.build(config)
    weights = sum(p.numel() for name, p in model.named_parameters() if "position" not in name)
    return 6 * weights + 12 * config.model.n_layer * config.model.dim * config.model.context


@torch.inference_mode()
def split_loss(model: Any, val: np.ndarray, context: int) -> float:
    """Return the mean loss of a nanoGPT model over a split in consecutive windows, the last one shorter."""
    total = 0.0
    for start in range(0, len(val) - 1, context):
        window = torch.from_numpy(val[start : start + context + 1].astype(np.int64))[None]
        total += model(window[:, :-1], window[:, 1:])[1].item() * (window.shape[1] - 1)
    return total / (len(val) - 1)


def print_report(title: str, rows: dict[str, tuple[float, float, str]], as_json: bool) -> None:
    """Print both values of each metric and the ratio anyformer / nanoGPT."""
    if as_json:
        results = {k: {"anyformer": a, "nanogpt": b, "ratio": a / b, "unit": u} for k, (a, b, u) in rows.items()}
        print(json.dumps(results))
        return
    print(f"{title}\n\n{'':<34}{'anyformer':>12}{'nanoGPT':>12}{'ratio':>9}")
    for name, (ours, theirs, unit) in rows.items():
        print(f"{name + ' (' + unit + ')':<34}{ours:>12.4f}{theirs:>12.4f}{ours / theirs:>9.3f}")
