"""Time and loss of our fast presets and of nanoGPT's CPU recipe: complete processes on one text.

    python -m bench.training.time_to_loss --nanogpt ../nanoGPT                            characters of Shakespeare
    python -m bench.training.time_to_loss --nanogpt ../nanoGPT --data eltec --megabytes 1.1
    python -m bench.training.time_to_loss --nanogpt ../nanoGPT --tokenizer bpe --counts 3 --seeds 1

Our time is that of the whole process of `anyformer train`: it prepares the text, counts n-grams, trains, evaluates the
validation split and writes the run. nanoGPT's text is prepared before its time starts. The loss is over the validation
split in consecutive windows, each at its own context: nanoGPT's recipe has 64 tokens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from anyformer.data.io.resolve import resolve
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.text.read import read_pieces
from bench._common import make_parser
from bench.training.nanogpt_recipe import train_nanogpt

METHODS = {  # recipe, preset
    "n-gram counts": ("recall", "counts"),
    "Transformer": ("language", "fast"),
    "n-gram counts and Transformer": ("recall", "fast"),
    "15 minutes": ("recall", "quarter"),
}


def prepare_text(data: str, megabytes: float | None, folder: Path) -> str:
    """Return the set or file itself, or a file with its first megabytes."""
    if megabytes is None:
        return data
    path, remaining = folder / "slice.txt", int(megabytes * 1e6)
    with open(path, "wb") as file:
        for piece in read_pieces(resolve(data)):
            file.write(piece.data[:remaining])
            remaining -= len(piece.data)
            if remaining <= 0:
                break
    path.write_bytes(path.read_bytes().decode(errors="ignore").encode())
    return str(path)


def train_anyformer(recipe: str, preset: str, flags: list[str], seed: int, scratch: Path) -> dict[str, float]:
    """Return seconds of the process, loss and steps."""
    os.environ["ANYFORMER_CACHE"] = str(scratch / "cache")
    command = [sys.executable, "-m", "anyformer", "train", recipe, "--preset", preset, "--seed", str(seed), "--json"]
    start = time.perf_counter()
    process = subprocess.run([*command, *flags, "--out", str(scratch / "run")], check=True, stdout=subprocess.PIPE)
    seconds, result = time.perf_counter() - start, json.loads(process.stdout)
    return {"seconds": seconds, "loss": result["val_loss"], "steps": result["step"]}


def measure_seed(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    results = {}
    with tempfile.TemporaryDirectory() as name:
        text = prepare_text(options.data, options.megabytes, Path(name))
        flags = ["--data", text, "--tokenizer", options.tokenizer, "--vocab-size", str(options.vocab_size)]
        counts = ["--counts", str(options.counts)]
        if not options.alone:
            corpus = prepare_corpus(text, options.tokenizer, options.vocab_size)
            seconds, loss = train_nanogpt(options.nanogpt, Path(name), corpus, 2000, seed)
            results["nanoGPT"] = {"seconds": seconds, "loss": loss, "steps": 2000}
        for method in options.sides:
            with tempfile.TemporaryDirectory() as scratch:
                results[method] = train_anyformer(
                    *METHODS[method], flags + counts * (METHODS[method][0] == "recall"), seed, Path(scratch)
                )
    for method, result in results.items():
        print(
            f"seed {seed}  {method:<24} {result['seconds']:>7.1f} s   loss {result['loss']:.4f}",
            file=sys.stderr,
            flush=True,
        )
    return results


def print_summary(runs: list[dict[str, Any]]) -> None:
    for method in runs[0]:
        seconds, losses = ([run[method][key] for run in runs] for key in ("seconds", "loss"))
        times = mean(run["nanoGPT"]["seconds"] for run in runs) / mean(seconds) if "nanoGPT" in runs[0] else 1.0
        single = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"{method:<24} {mean(seconds):>7.1f} s  {times:>6.1f} x as fast   loss {mean(losses):.4f} ({single})")


if __name__ == "__main__":
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--megabytes", type=float, help="of the beginning of the data; by default all")
    parser.add_argument("--tokenizer", choices=("char", "byte", "bpe"), default="char")
    parser.add_argument("--vocab-size", type=int, default=1024, help="of a BPE")
    parser.add_argument("--counts", type=int, default=6, help="longest n-gram of recall; use less for a BPE")
    parser.add_argument("--sides", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--alone", action="store_true", help="without nanoGPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    runs = [measure_seed(options, seed) for seed in options.seeds]
    print(json.dumps(runs)) if options.json else print_summary(runs)
