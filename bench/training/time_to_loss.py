"""How much sooner than nanoGPT's CPU recipe: whole processes, on one text, loss over the whole validation split.

    python -m bench.training.time_to_loss --nanogpt ../nanoGPT                            characters of Shakespeare
    python -m bench.training.time_to_loss --nanogpt ../nanoGPT --data eltec --megabytes 1.1
    python -m bench.training.time_to_loss --nanogpt ../nanoGPT --tokenizer bpe --counts 3 --seeds 1

The time of ours is that of `anyformer train` from the start of the process to its end: it prepares the text, counts,
trains, goes over the whole validation split and writes the run. nanoGPT's text is prepared before its clock starts.
Each is judged at its own context, in windows side by side: nanoGPT's recipe reads 64 tokens.
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
from bench._common import arguments
from bench.training.nanogpt_recipe import theirs

SIDES = {  # recipe, preset
    "counts at once": ("recall", "counts"),
    "the Transformer": ("language", "fast"),
    "counts and Transformer": ("recall", "fast"),
    "a quarter of an hour": ("recall", "quarter"),
}


def text_of(data: str, megabytes: float | None, folder: Path) -> str:
    """The set or file itself, or a file with its beginning."""
    if megabytes is None:
        return data
    path, left = folder / "slice.txt", int(megabytes * 1e6)
    with open(path, "wb") as file:
        for piece in read_pieces(resolve(data)):
            file.write(piece.data[:left])
            left -= len(piece.data)
            if left <= 0:
                break
    path.write_bytes(path.read_bytes().decode(errors="ignore").encode())
    return str(path)


def ours(recipe: str, preset: str, words: list[str], seed: int, scratch: Path) -> dict[str, float]:
    """Seconds of the whole process, loss and steps."""
    os.environ["ANYFORMER_CACHE"] = str(scratch / "cache")
    command = [sys.executable, "-m", "anyformer", "train", recipe, "--preset", preset, "--seed", str(seed), "--json"]
    began = time.perf_counter()
    done = subprocess.run([*command, *words, "--out", str(scratch / "run")], check=True, stdout=subprocess.PIPE)
    seconds, told = time.perf_counter() - began, json.loads(done.stdout)
    return {"seconds": seconds, "loss": told["val_loss"], "steps": told["step"]}


def once(asked: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        text = text_of(asked.data, asked.megabytes, Path(name))
        words = ["--data", text, "--tokenizer", asked.tokenizer, "--vocab-size", str(asked.vocab_size)]
        counts = ["--counts", str(asked.counts)]
        if not asked.alone:
            ready = prepare_corpus(text, asked.tokenizer, asked.vocab_size)
            seconds, loss = theirs(asked.nanogpt, Path(name), ready, 2000, seed)
            found["nanoGPT"] = {"seconds": seconds, "loss": loss, "steps": 2000}
        for side in asked.sides:
            with tempfile.TemporaryDirectory() as scratch:
                found[side] = ours(*SIDES[side], words + counts * (SIDES[side][0] == "recall"), seed, Path(scratch))
    for side, one in found.items():
        print(f"seed {seed}  {side:<24} {one['seconds']:>7.1f} s   loss {one['loss']:.4f}", file=sys.stderr, flush=True)
    return found


def told(runs: list[dict[str, Any]]) -> None:
    for side in runs[0]:
        seconds, losses = ([run[side][what] for run in runs] for what in ("seconds", "loss"))
        times = mean(run["nanoGPT"]["seconds"] for run in runs) / mean(seconds) if "nanoGPT" in runs[0] else 1.0
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"{side:<24} {mean(seconds):>7.1f} s  {times:>6.1f} x sooner   loss {mean(losses):.4f} ({each})")


if __name__ == "__main__":
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--megabytes", type=float, help="of the data, from its beginning; by default all")
    parser.add_argument("--tokenizer", choices=("char", "byte", "bpe"), default="char")
    parser.add_argument("--vocab-size", type=int, default=1024, help="of a BPE")
    parser.add_argument("--counts", type=int, default=6, help="the longest n-gram of recall; shorter for a BPE")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--alone", action="store_true", help="without nanoGPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    runs = [once(asked, seed) for seed in asked.seeds]
    print(json.dumps(runs)) if asked.json else told(runs)
