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
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from anyformer.data.io.resolve import resolve
from anyformer.data.text.prepare import prepare_corpus
from anyformer.data.text.read import read_pieces
from bench._common import run_training
from bench._nanogpt import make_nanogpt_parser
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


def measure_seed(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    results = {}
    with tempfile.TemporaryDirectory() as name:
        text = prepare_text(options.data, options.megabytes, Path(name))
        flags = ["--data", text, "--tokenizer", options.tokenizer, "--vocab-size", options.vocab_size, "--seed", seed]
        counts = ["--counts", options.counts]
        if not options.alone:
            corpus = prepare_corpus(text, options.tokenizer, options.vocab_size)
            seconds, loss = train_nanogpt(options.nanogpt, Path(name), corpus, 2000, seed)
            results["nanoGPT"] = {"seconds": seconds, "loss": loss, "steps": 2000}
        for method in options.sides:
            with tempfile.TemporaryDirectory() as scratch:
                recipe, preset = METHODS[method]
                os.environ["ANYFORMER_CACHE"] = str(Path(scratch) / "cache")
                more_flags = counts if recipe == "recall" else []
                results[method] = run_training(recipe, preset, Path(scratch) / "run", *flags, *more_flags)
    for method, result in results.items():
        line = f"seed {seed}  {method:<24} {result['seconds']:>7.1f} s   loss {result['loss']:.4f}"
        print(line, file=sys.stderr, flush=True)
    return results


def print_summary(runs: list[dict[str, Any]]) -> None:
    for method in runs[0]:
        seconds, losses = ([run[method][key] for run in runs] for key in ("seconds", "loss"))
        times = mean(run["nanoGPT"]["seconds"] for run in runs) / mean(seconds) if "nanoGPT" in runs[0] else 1.0
        single = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"{method:<24} {mean(seconds):>7.1f} s  {times:>6.1f} x as fast   loss {mean(losses):.4f} ({single})")


if __name__ == "__main__":
    parser = make_nanogpt_parser(__doc__)
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
