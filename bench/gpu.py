"""What one NVIDIA GPU makes of it: training, a text learned, answers, and windows of edges, each beside a peer.

    python -m bench.gpu --nanogpt ../nanoGPT --shakespeare input.txt
    python -m bench.gpu --only window training --json
    python -m bench.gpu --dry                  tiny shapes on whatever is here: does every part still run?

training      GPT-2's 124M shape, context 1024, bfloat16, torch.compile: nanoGPT's model and ours, tokens/s and MFU,
              and into how many graphs the model fell, since each break costs
shakespeare   seconds until the whole validation split of tiny Shakespeare has a loss of 1.4697, which is nanoGPT's own
generation    GPT-2's 124M shape, a prompt of 32 tokens, 128 new ones: ours, eager, captured and compiled, transformers
window        one layer of causal & window(256) through FlexAttention, beside all of the past through SDPA

Nothing is downloaded, and no command line of ours is run: torch, numpy, tokenizers and rich are enough. A part, or a
row of one, that fails says why in a line, and the others go on.
"""

import argparse
import contextlib
import json
import math
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch._dynamo.utils import counters

from anyformer.labs.benchmark import random_ids
from anyformer.recipe import Recipe
from anyformer.recipes import language
from anyformer.training import hardware as ceilings
from anyformer.training import loop
from anyformer.training.device import autocast
from anyformer.training.device import resolve_device as find_device
from bench._common import nanogpt
from bench.inference.gpu_generation import generation
from bench.model.gpu_long_context import windows

PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}  # dense bfloat16, TFLOP/s, as sold
FOR_EVER = 1 << 30
TARGET = 1.4697
TRIES = (64, 32, 16, 8, 4)  # rows of a batch of training
SETTLING = 5  # updates that do not count
Row = dict[str, Any]
Work = tuple[str, Callable[[], Row]]  # of a row: what it is called, and how it is measured


class Here:
    """Where it runs, and how large things are."""

    def __init__(self, asked: argparse.Namespace):
        self.asked, self.dry = asked, asked.dry
        self.device = find_device(asked.device)
        self.backend = "eager" if self.dry else "inductor"  # tracing is tried, compiling is not
        gpt2 = language.PRESETS["gpt2"]
        small = replace(gpt2.model, dim=64, n_layer=2, n_head=2, context=64)
        words = {"data": "", "tokenizer": "ids", "padded_vocab": 512 if self.dry else gpt2.padded_vocab}
        self.gpt2 = replace(gpt2, **words, model=small if self.dry else gpt2.model)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """FLOP/s in bfloat16, as told or as sold."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        sold = next((tera for kind, tera in PEAKS.items() if kind in name), None)
        tera = self.asked.peak or sold
        return None if tera is None else 1e12 * tera


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """A row, told as soon as it is there; or why there is none."""
    try:
        row = {"what": name} | work()
    except (Exception, SystemExit) as error:
        row = {"what": name, "problem": why(error)}
    figures = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print("  ".join(figures).removeprefix("what "), flush=True)
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def why(error: BaseException) -> str:
    return f"{type(error).__name__}: {ceilings.first_line(error)}"


# --- training ---


def training(here: Here) -> Iterator[Work]:
    batch = largest(here) if here.asked.batch is None else here.asked.batch
    config = for_batch(here, batch)
    shape = config.model
    with torch.device("meta"):
        weights = sum(p.numel() for name, p in language.build(config).named_parameters() if "position" not in name)
    flops = 6 * weights + 12 * shape.n_layer * shape.dim * shape.context  # of a token, as nanoGPT counts them
    sides: dict[str, Callable[[], Iterator[Any]]] = {
        "anyformer": lambda: ours(here, config),
        "anyformer, the loss compiled too": lambda: ours(here, config, whole=True),
        "nanoGPT": lambda: theirs(here, config),
    }
    for name, run in sides.items():

        def measured(run: Callable[[], Iterator[Any]] = run) -> Row:
            counters.clear()
            speed = batch * shape.context / seconds(here, run())
            mfu = speed * flops / peak if (peak := here.peak()) else None
            about = {"batch": batch, "context": shape.context, "graphs": counters["stats"]["unique_graphs"]}
            return about | {"tokens_per_second": speed, "mfu": mfu}

        yield f"training, {name}", measured
    best = lambda: {"tflops": ceilings.measure_matmul_gflops(str(here.device), "bfloat16") / 1e3}  # noqa: E731
    yield "best product of two matrices", best


def for_batch(here: Here, batch: int) -> language.Config:
    often = {"steps": FOR_EVER, "eval_every": FOR_EVER, "accumulate": 1, "batch": batch}
    where = {"device": str(here.device), "dtype": "bfloat16", "compile": False}
    return replace(here.gpt2, train=replace(here.gpt2.train, **often, **where))


def recipe(loss: Callable[..., Any] = language.loss) -> Recipe:
    """The language recipe on random ids."""
    return typing.cast(Recipe, SimpleNamespace(build=language.build, loss=loss, batches=random_ids))


def largest(here: Here) -> int:
    """The batch that memory holds even where nothing is compiled, which keeps more."""
    for batch in (2,) if here.dry else TRIES:
        with contextlib.suppress(torch.OutOfMemoryError):
            next(loop.train(recipe(), for_batch(here, batch)))
            return batch
        torch.cuda.empty_cache()
    raise RuntimeError(f"a batch of {TRIES[-1]} is too large for this GPU")


def ours(here: Here, config: language.Config, whole: bool = False) -> Iterator[Any]:
    """Updates of our loop, the model compiled as `--train.compile` does it, or the loss with it."""
    if whole:
        yield from loop.train(recipe(torch.compile(language.loss, backend=here.backend)), config)
        return
    state = loop.init_state(recipe(), config)
    state.model.compile(backend=here.backend)
    yield from loop.train(recipe(), config, state)


def theirs(here: Here, config: language.Config) -> Iterator[Any]:
    """Updates as nanoGPT's train.py makes them: it waits for the loss only where it prints one."""
    if here.asked.nanogpt is None:
        raise SystemExit("no --nanogpt: a checkout of github.com/karpathy/nanoGPT")
    module, shape, c = nanogpt(here.asked.nanogpt), config.model, config.train
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.dim, "block_size": shape.context}
    model = module.GPT(module.GPTConfig(**sizes, vocab_size=config.padded_vocab, dropout=0.0, bias=True))
    model.to(here.device)
    optimizer = model.configure_optimizers(c.weight_decay, c.lr, (0.9, c.beta2), here.device.type)
    run = torch.compile(model, backend=here.backend)
    for batch, _ in random_ids(config, "train", None):
        batch = loop.move_batch(batch, here.device)
        with autocast(here.device, torch.bfloat16):
            _, loss = run(batch["ids"], batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss


def seconds(here: Here, updates: Iterator[Any]) -> float:
    """Of an update, the mean over some time."""
    for _ in range(SETTLING):
        next(updates)
    here.wait()
    began, done = time.perf_counter(), 0
    while done < 5 or time.perf_counter() - began < here.asked.patience:
        next(updates)
        done += 1
    here.wait()
    return (time.perf_counter() - began) / done


# --- shakespeare ---


def shakespeare(here: Here) -> Iterator[Work]:
    with TemporaryDirectory() as folder:
        data = here.asked.shakespeare or ("shakespeare" if not here.dry else written(Path(folder) / "text.txt"))
        for name, config in candidates(here, str(data)).items():
            language.load_corpus(config)  # prepared before the clock starts
            for compiled in (False, True):
                how = "compiled" if compiled else "eager"
                yield f"shakespeare, {name}, {how}", lambda c=config, with_=compiled: learned(here, c, with_)


def written(path: Path) -> Path:
    path.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    return path


def candidates(here: Here, data: str) -> dict[str, language.Config]:
    """Presets of the language recipe, each with its own steps; and "modern": nanoGPT's shape in the manner of the
    preset `small`. Its steps and learning rate were never tuned: --steps and --lr."""
    asked, presets = here.asked, language.PRESETS
    base, small = (presets["tiny" if here.dry else name] for name in ("nanogpt-gpu", "small"))
    sizes = {name: getattr(base.model, name) for name in ("dim", "n_layer", "n_head", "context", "dropout")}
    steps = 4 if here.dry else asked.steps
    train = {"steps": steps, "lr": asked.lr, "batch": base.train.batch, "warmup": steps // 20}
    modern = replace(small, model=replace(small.model, **sizes), train=replace(small.train, **train))
    known = presets | {"modern": modern} | ({"nanogpt-gpu": base} if here.dry else {})
    if unknown := [name for name in asked.presets if name not in known]:
        raise SystemExit(f"there is no preset {unknown[0]}: {', '.join(known)}")
    often: Row = {"eval_every": 2 if here.dry else asked.every, "eval_batches": FOR_EVER}
    often |= {"dtype": "bfloat16", "device": str(here.device)}
    return {n: replace(known[n], data=data, train=replace(known[n].train, **often)) for n in asked.presets}


def learned(here: Here, config: language.Config, compiled: bool) -> Row:
    """Seconds from the making of the model on, validations and compiling among them."""
    target, best, record = 99.0 if here.dry else here.asked.target, math.inf, {}
    began = time.perf_counter()
    state = loop.init_state(typing.cast(Recipe, language), config)
    if compiled:
        state.model.compile(backend=here.backend)
    for record in loop.train(typing.cast(Recipe, language), config, state):
        passed = time.perf_counter() - began
        best = min(best, record.get("val_loss", math.inf))
        if best <= target or passed > 60 * here.asked.minutes:
            break
    about = {"reached": best <= target, "seconds": time.perf_counter() - began, "steps": record["step"]}
    return about | {"best_loss": best, "target": target}


PARTS: dict[str, Callable[[Any], Iterator[Work]]] = {
    "training": training,
    "shakespeare": shakespeare,
    "generation": generation,
    "window": windows,
}


def rows(name: str, here: Here) -> Iterator[Row]:
    """All rows of a part; where it ends before its end, the last says why."""
    try:
        for what, work in PARTS[name](here):
            yield attempt(what, work)
    except (Exception, SystemExit) as error:
        yield {"what": name, "problem": why(error)}
        print(name, why(error), flush=True)


def main(asked: argparse.Namespace) -> None:
    here = Here(asked)
    if here.device.type != "cuda" and not here.dry:
        sys.exit("there is no NVIDIA GPU here: --dry tries the script without one")
    name = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else str(here.device)
    found: Row = {"device": name, "torch": torch.__version__, "peak": here.peak(), "dry": here.dry}
    with contextlib.redirect_stdout(sys.stderr) if asked.json else contextlib.nullcontext():
        print(f"{name}, torch {torch.__version__}", flush=True)
        for part in asked.only:
            found[part] = list(rows(part, here))
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, nothing compiled, on a CPU too")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--peak", type=float, help="dense bfloat16 TFLOP/s of this GPU; known for some by their name")
    parser.add_argument("--batch", type=int, help="of training; else as much as memory holds")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds of measuring a side of training")
    parser.add_argument("--shakespeare", type=Path, help="input.txt; else the set by name, from where it lies")
    parser.add_argument("--presets", nargs="+", default=["nanogpt-gpu", "modern"], help="of language, for shakespeare")
    parser.add_argument("--target", type=float, default=TARGET, help="loss over the whole validation split")
    parser.add_argument("--minutes", type=float, default=2.0, help="the most of each run of shakespeare")
    parser.add_argument("--every", type=int, default=100, help="steps from one validation to the next")
    parser.add_argument("--steps", type=int, default=1000, help="of the modern one")
    parser.add_argument("--lr", type=float, default=2e-3, help="of the modern one")
    parser.add_argument("--rounds", type=int, default=3, help="of generation")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << i for i in range(10, 17)])
    parser.add_argument("--width", type=int, default=256, help="of the window")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; rows go to stderr")
    main(parser.parse_args())
