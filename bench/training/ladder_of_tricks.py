"""What each change of the fast recipe is worth: added one after the other, with the same time on the same text.

    python -m bench.training.ladder_of_tricks                            a minute for each rung, two seeds: 22 minutes
    python -m bench.training.ladder_of_tricks --minutes 2 --data eltec --seeds 1 2 3
    python -m bench.training.ladder_of_tricks --without "RMSNorm, QK-norm" Muon      ablations of the last Transformer
    python -m bench.training.ladder_of_tricks --with "outputs from zero"             and changes that were rejected

The first rung is nanoGPT's CPU recipe (preset `nanogpt-cpu`) with as many steps as fit into the time; each rung keeps
the changes before it. Loss over the validation split, each at its own context. The time is that of a complete run, as
planned by `--minutes`.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from anyformer import api
from anyformer.model.kernels import sdpa
from bench._common import make_parser

COUNTS_RUNG = "with n-gram counts"
MUON = {"optimizer": "muon", "lr": 4e-3, "warmup": 20, "weight_decay": 0.01, "clip": 0.0}
RUNGS: dict[str, dict[str, Any]] = {  # overrides of the config
    "nanoGPT's recipe, float32": {"train": {"dtype": "float32", "batch": 16}},
    "bfloat16": {"train": {"dtype": "bfloat16"}},
    "attention by matmul": {},
    "rotary positions": {"model": {"position": "rotary"}},
    "RMSNorm, QK-norm": {"model": {"norm": "rmsnorm", "qk_norm": True}},
    "squared ReLU": {"model": {"activation": "relu2"}},
    "Muon": {"train": MUON},
    "trapezoid to zero": {"train": {"schedule": "trapezoid", "min_lr": 0.0}},
    "context 256": {"model": {"context": 256}, "train": {"batch": 8}},
    COUNTS_RUNG: {"model": {"dim": 128, "n_layer": 4}, "train": {"eval_batches": 10}},
}
REJECTED: dict[str, dict[str, Any]] = {"outputs from zero": {"model": {"init": "zero"}}}


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: merge(a.get(k, {}), v) if isinstance(v, dict) else v for k, v in b.items()}


def train_rung(name: str, overrides: dict[str, Any], data: str, minutes: float, seed: int) -> dict[str, float]:
    """Return loss and steps of a training; torch's attention is used up to the rung that replaces it."""
    uses_matmul = name not in ("nanoGPT's recipe, float32", "bfloat16")
    select = sdpa.is_matmul_faster if uses_matmul else lambda q, k, dropout_p=0.0: False
    recipe, preset = ("recall", "counts") if name == COUNTS_RUNG else ("language", "nanogpt-cpu")
    settings = merge(overrides, {"train": {"seed": seed, "eval_every": 1 << 30, "save_every": 1 << 30}})
    with TemporaryDirectory() as folder, patch.object(sdpa, "is_matmul_faster", select):
        model = api.train(recipe, preset, data=data, minutes=minutes, out=Path(folder) / "run", **settings)
        return {"loss": model.evaluate()["loss"], "steps": model.step}


def list_rungs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (title, rung, all overrides up to it) of each rung."""
    overrides: dict[str, Any] = {}
    for name, change in RUNGS.items():
        overrides = merge(overrides, change)
        yield name, name, overrides


def list_ablations(without: list[str], added: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the last rung before the counts, without each of these changes, and with each of those."""
    names = [name for name in RUNGS if name != COUNTS_RUNG]
    for removed in (None, *without):
        changes = [RUNGS[name] for name in names if name != removed]
        yield "all changes" if removed is None else f"without {removed}", names[-1], reduce(merge, changes, {})
    for name in added:
        yield f"with {name}", names[-1], reduce(merge, [*(RUNGS[rung] for rung in names), REJECTED[name]], {})


def main(rungs: Iterable[tuple[str, str, dict[str, Any]]], options: argparse.Namespace) -> None:
    results = {}
    for title, name, overrides in rungs:
        runs = [train_rung(name, overrides, options.data, options.minutes, seed) for seed in options.seeds]
        results[title] = {"losses": [result["loss"] for result in runs], "steps": [result["steps"] for result in runs]}
        if not options.json:
            single = ", ".join(f"{loss:.4f}" for loss in results[title]["losses"])
            loss, steps = (mean(results[title][key]) for key in ("losses", "steps"))
            print(f"{title:<26} loss {loss:.4f} ({single})  {steps:>7,.0f} steps", flush=True)
    if options.json:
        print(json.dumps({"data": options.data, "minutes": options.minutes, "seeds": options.seeds, "rungs": results}))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, for each rung and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    rungs = [name for name in RUNGS if name != COUNTS_RUNG]
    parser.add_argument("--without", nargs="+", metavar="RUNG", choices=rungs, default=[])
    parser.add_argument("--with", nargs="+", metavar="CHANGE", choices=REJECTED, default=[], dest="added")
    options = parser.parse_args()
    main(list_ablations(options.without, options.added) if options.without or options.added else list_rungs(), options)
