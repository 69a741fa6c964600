"""Tokens a second in training at equal architecture: nanoGPT's model and loop beside ours, on the same machine.

    python -m bench.training.throughput --nanogpt ../nanoGPT
    python -m bench.training.throughput --nanogpt ../nanoGPT --shapes nanogpt-cpu --compile

Whole updates: batch, forward, backward, clipping, AdamW. nanoGPT's CPU recipe computes in float32; what it would do in
bfloat16 is measured too. The FLOPs of a token are those of nanoGPT's own count: 6 a weight, and 12 a layer, channel and
place of the context. The ceiling is the best product of two matrices on this machine, in the same format.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from anyformer import recipe
from anyformer.recipes import language
from anyformer.training import loop
from anyformer.training.device import autocast
from anyformer.training.hardware import measure_matmul_gflops
from bench._common import arguments, nanogpt

BATCH = {"nanogpt-cpu": 12, "nanogpt-gpu": 16}  # of the larger shape as much as a small machine stands
SETTLING = 4  # updates that do not count


def config(preset: str, batch: int, dtype: str, compiled: bool) -> Any:
    found = recipe.get_preset(recipe.load_recipe("language"), preset)
    train = {"steps": 1 << 30, "eval_every": 1 << 30, "batch": batch, "dtype": dtype, "compile": compiled}
    return replace(found, train=replace(found.train, **train))


def ours(c: Any) -> Iterator[float]:
    """When each update ends."""
    for _ in loop.train(recipe.load_recipe("language"), c):
        yield time.perf_counter()


def theirs(module: Any, c: Any) -> Iterator[float]:
    """nanoGPT's loop on the same batches: what its train.py does in each step, but for the batch."""
    torch.manual_seed(c.train.seed)
    shape, vocab = c.model, language.load_corpus(c).tokenizer.vocab_size
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.dim, "block_size": shape.context}
    model = module.GPT(module.GPTConfig(**sizes, vocab_size=vocab, dropout=shape.dropout, bias=shape.bias))
    optimizer = model.configure_optimizers(c.train.weight_decay, c.train.lr, (0.9, c.train.beta2), "cpu")
    run = torch.compile(model) if c.train.compile else model
    for batch, _ in language.batches(c, "train"):
        with autocast(torch.device("cpu"), getattr(torch, c.train.dtype)):
            _, loss = run(batch["ids"], batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield time.perf_counter()


def seconds(ends: Iterator[float], patience: float) -> float:
    """Of an update, the median over some time."""
    times: list[float] = []
    for at in ends:
        times.append(at)
        if len(times) > SETTLING + 5 and times[-1] - times[SETTLING] > patience:
            break
    return statistics.median(b - a for a, b in zip(times[SETTLING:], times[SETTLING + 1 :]))


def waiting(c: Any) -> float:
    """Seconds that an update waits for its batch, once the text is open."""
    stream = language.batches(c, "train")
    next(stream)
    began = time.perf_counter()
    for _ in range(200):
        next(stream)
    return (time.perf_counter() - began) / 200


def flops(c: Any) -> float:
    """Of a token, forward and backward."""
    with torch.device("meta"):
        model = language.build(c)
    weights = sum(p.numel() for name, p in model.named_parameters() if "position" not in name)
    return 6 * weights + 12 * c.model.n_layer * c.model.dim * c.model.context


def measure(module: Any, preset: str, compiled: bool, patience: float, ceilings: dict[str, float]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for dtype in ceilings:
        c = config(preset, BATCH[preset], dtype, compiled)
        tokens = c.train.batch * c.model.context
        for side, run in (("nanoGPT", theirs(module, c)), ("anyformer", ours(c))):
            speed = tokens / seconds(run, patience)
            share = speed * flops(c) / 1e9 / ceilings[dtype]
            made[f"{side} {dtype}"] = {"tokens_per_second": speed, "share_of_ceiling": share}
            print(
                f"{preset}, batch {c.train.batch}: {side:<9} {dtype:<8} {speed:>9,.0f} tokens/s, {share:.0%} of ceiling"
            )
    made["waiting_for_data"] = waiting(c) * speed / tokens
    print(f"{preset}: {made['waiting_for_data']:.2%} of an update is waiting for data")
    fastest = max(made[f"anyformer {dtype}"]["tokens_per_second"] for dtype in ceilings)
    made["ratios"] = {f"to nanoGPT {d}": fastest / made[f"nanoGPT {d}"]["tokens_per_second"] for d in ceilings}
    print(
        f"{preset}: " + ", ".join(f"{ratio:.2f} times {name[3:]}" for name, ratio in made["ratios"].items()), flush=True
    )
    return made


if __name__ == "__main__":
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds of measuring for each")
    asked = parser.parse_args()
    ceilings = {dtype: measure_matmul_gflops("cpu", dtype) for dtype in ("float32", "bfloat16")}
    print(
        f"{torch.get_num_threads()} threads, ceilings: "
        + ", ".join(f"{d} {g:,.0f} GFLOP/s" for d, g in ceilings.items())
    )
    module = nanogpt(asked.nanogpt)
    found = {shape: measure(module, shape, asked.compile, asked.patience, ceilings) for shape in asked.shapes}
    if asked.json:
        print(json.dumps({"ceilings": ceilings, "threads": torch.get_num_threads(), **found}))
