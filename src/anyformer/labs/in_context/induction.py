"""Part heads: induction heads appear (2209.11895), and with them what late positions gain.

A small model is trained on sequences in which each symbol has a successor of its own, drawn anew for every sequence
(2402.11004): what follows a symbol, only its earlier occurrences say. Meanwhile it reads random symbols that repeat:
the prefix-matching score of a head is the attention that goes to what followed the same symbol before.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...model.trace import record
from ...recipe import LensNodes
from ...report.lens.measure import summarize_heads
from ...training.device import resolve_device
from ..lab import LabResult, LabTable, Log
from .settings import Settings
from .training import TextModel, configure_text_model, configure_training, fit

SYMBOLS, CONTEXT, BATCH = 16, 64, 32
SURE = 0.8  # how often the successor follows; else any symbol does
LAYERS, WIDTH, LR = 2, 64, 1e-2
PERIOD, REPEATS = 16, 4  # of the random symbols that are read
EARLY, LATE = slice(2, 10), slice(47, 63)  # predictions whose losses are compared
MEASUREMENTS = 60
TEST_SEQUENCES = 128
MIN_SCORE = 0.3  # of an induction head; attention spread over all nodes has about 1 / 16


def draw_chains(batch: int, generator: torch.Generator) -> Tensor:
    """Sequences of symbols, each with its own successors: (B, T)"""
    successors = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)
    noise = torch.randint(SYMBOLS, (batch, CONTEXT), generator=generator)
    follows = torch.rand(batch, CONTEXT, generator=generator) < SURE
    ids = noise.clone()
    for t in range(1, CONTEXT):
        ids[:, t] = torch.where(follows[:, t], successors.gather(1, ids[:, t - 1 : t])[:, 0], noise[:, t])
    return ids


def run_heads(settings: Settings, log: Log) -> LabResult:
    device, generator = resolve_device(settings.device), torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    config = configure_text_model(WIDTH, LAYERS, CONTEXT)
    model = TextModel(SYMBOLS, config).to(device)
    tests = draw_chains(TEST_SEQUENCES, generator).to(device)
    random_ids = torch.randperm(SYMBOLS, generator=generator)[:PERIOD].repeat(REPEATS).to(device)
    records: list[dict[str, Any]] = []

    def compute_loss(step: int) -> tuple[Tensor, dict[str, Any]]:
        if step % max(1, settings.head_steps // MEASUREMENTS) == 0:
            records.append({"step": step} | measure(model, tests, random_ids))
        ids = draw_chains(BATCH, generator).to(device)
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        return loss, {name: records[-1][name] for name in ("gain", "induction")}

    seconds = fit(model, compute_loss, configure_training(settings.head_steps, LR, settings.seed), log)
    records.append({"step": settings.head_steps} | measure(model, tests, random_ids))
    facts = {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters()), "records": records}
    return describe(facts)


@torch.no_grad()
def measure(model: TextModel, tests: Tensor, random_ids: Tensor) -> dict[str, Any]:
    """Return the loss, what late positions gain over early ones, in nats, and the scores of all heads by layer, with
    the best of them."""
    losses = cross_entropy(model(tests[:, :-1]).transpose(1, 2), tests[:, 1:], reduction="none").mean(0)
    with record(model) as trace:
        model(random_ids[None])
    nodes = LensNodes([str(symbol) for symbol in random_ids.tolist()], ["token"] * len(random_ids))
    layers = [summarize_heads(trace[f"body.blocks.{i}.attn"].weights[0], nodes, True) for i in range(LAYERS)]
    scores = {name: [layer[name].tolist() for layer in layers] for name in ("induction", "previous")}
    best = {name: max(map(max, by_layer)) for name, by_layer in scores.items()}
    gain = (losses[EARLY].mean() - losses[LATE].mean()).item()
    return {"loss": losses.mean().item(), "gain": gain, **best, "heads": scores}


def describe(facts: dict[str, Any]) -> LabResult:
    records, last = facts["records"], facts["records"][-1]
    steps = [entry["step"] for entry in records]
    lines = {
        "loss of late positions below early ones, nats": "gain",
        "the best induction head": "induction",
        "the best head of the node before": "previous",
        "loss, nats": "loss",
    }
    figure = {
        "kind": "lines", "title": "Induction heads appear", "x_label": "steps", "zero": True,
        "note": "prefix-matching score of the best head, beside the loss",
        "lines": [{"name": text, "x": steps, "y": [entry[name] for entry in records]} for text, name in lines.items()],
    }  # fmt: skip
    rows = [
        [f"layer {i + 1}, head {j}", f"{induction:.3f}", f"{last['heads']['previous'][i][j]:.3f}"]
        for i, layer in enumerate(last["heads"]["induction"])
        for j, induction in enumerate(layer)
    ]
    table = LabTable("Heads after the training", ["head", "prefix matching", "the node before"], rows)
    bends = {name: find_half(records, name) for name in ("induction", "gain")}
    appeared = (
        f"Half of its final prefix-matching score, {last['induction']:.2f}, the best head has at step "
        f"{bends['induction']:,}, and half of their final gain, {last['gain']:.2f} nats, late positions have at step "
        f"{bends['gain']:,}."
    )
    summary = [
        appeared if last["induction"] > MIN_SCORE else "No induction head has appeared: more --head-steps.",
        f"{facts['parameters']:,} parameters, {facts['seconds']:,.0f} seconds of processor time.",
    ]
    return LabResult("", summary, [table], [figure], [], facts | {"bends": bends})


def find_half(records: list[dict[str, Any]], name: str) -> int:
    """Return the first step that is measured at which a value has reached half of its last one."""
    last = records[-1]
    return next((entry["step"] for entry in records if entry[name] >= last[name] / 2), last["step"])
