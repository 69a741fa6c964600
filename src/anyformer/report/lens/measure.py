"""What is measured of one run: the head read after every layer, norms, and what each head does.

Shapes: L layers, T nodes, C channels, H heads, Q queries, K keys, R rows of scores, O outputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...model.intervention import replace_stacks
from ...model.trace import Trace
from ...recipe import LensNodes, LensView

TOP_OUTPUTS = 5  # of each cell of the logit lens
MAX_VALUES = 64  # outputs of a cell that are numbers
MAX_ROWS = 200  # of the logit lens


def list_streams(trace: Trace, stack: str) -> list[Tensor]:
    """The residual stream before the first block and after each: L + 1 tensors (1, T, C)."""
    prefix = f"{stack}." if stack else ""
    blocks = [trace[name] for name in list_blocks(trace, prefix)]
    return [blocks[0].input, *(block.output for block in blocks)]


def list_blocks(trace: Trace, prefix: str) -> list[str]:
    names, layer = [], 0
    while (name := f"{prefix}blocks.{layer}") in trace:
        names.append(name)
        layer += 1
    return names


def read_streams(module: nn.Module, view: LensView, trace: Trace) -> Iterator[Tensor]:
    """The logit lens (nostalgebraist 2020): what the head makes of the stream after each layer, as if the others were
    not there: L + 1 scores (R, O). The last are those of the model."""
    *others, last = view.stacks
    norm = module.get_submodule(last).get_submodule("norm")
    outputs = {name: trace[name].output for name in others}
    for stream in list_streams(trace, last):
        with replace_stacks(module, outputs | {last: norm(stream)}):
            yield view.forward()


def describe_readings(module: nn.Module, view: LensView, trace: Trace) -> dict[str, Any]:
    """The logit lens as plain values: the likeliest outputs of each row after each layer, or its numbers."""
    n_rows, scores = len(view.rows), trace_scores(module, view, trace)
    shown = pick_rows(n_rows, view.answer % n_rows)
    cells, final, names = [], [], {}
    best = scores[shown].argmax(-1)
    for layer_scores in read_streams(module, view, trace):
        layer_scores = layer_scores[shown]
        if not view.is_logits:
            cells.append([format_values(row[:MAX_VALUES]) for row in layer_scores])
            continue
        probabilities = layer_scores.softmax(-1)
        top = probabilities.topk(min(TOP_OUTPUTS, probabilities.shape[-1]), dim=-1)
        ids = [[names.setdefault(i, len(names)) for i in row] for row in top.indices.tolist()]
        cells.append([[[i, round(p, 4)] for i, p in zip(*row)] for row in zip(ids, top.values.tolist())])
        final.append([round(p, 4) for p in probabilities.gather(1, best[:, None])[:, 0].tolist()])
    rows = [{"label": view.rows[i][0], "node": view.rows[i][1]} for i in shown]
    if not view.is_logits:
        names = {i: i for i in range(min(MAX_VALUES, scores.shape[1]))}
    outputs = [view.name_output(i) for i in names]
    facts = {"is_logits": view.is_logits, "rows": rows, "outputs": outputs, "cells": cells, "final": final}
    return facts | {"answer": shown.index(view.answer % n_rows)}


def trace_scores(module: nn.Module, view: LensView, trace: Trace) -> Tensor:
    with replace_stacks(module, {name: trace[name].output for name in view.stacks}):
        return view.forward()


def pick_rows(n_rows: int, answer: int) -> list[int]:
    """Which rows are shown: all, or of very many the last and the answer."""
    return list(range(n_rows)) if n_rows <= MAX_ROWS else sorted({answer, *range(n_rows - MAX_ROWS + 1, n_rows)})


def format_values(row: Tensor) -> list[float]:
    return [float(f"{x:.4g}") for x in row.tolist()]


def measure_norms(trace: Trace, stack: str) -> dict[str, Tensor]:
    """The norm of the stream at each node (L + 1, T), and of what each kind of sublayer adds to it, (L, T)."""
    prefix = f"{stack}." if stack else ""
    norms = {"stream": torch.stack([x[0].norm(dim=-1) for x in list_streams(trace, stack)])}
    for kind in ("attn", "cross", "mlp"):
        names = [f"{block}.{kind}" for block in list_blocks(trace, prefix)]
        if names[0] in trace:
            norms[kind] = torch.stack([trace[name].output[0].norm(dim=-1) for name in names])
    return norms


# --- what a head does ---


def summarize_heads(weights: Tensor, nodes: LensNodes, is_self: bool) -> dict[str, Tensor]:
    """What the heads of a layer do, from weights (H, Q, K): (H,) each, the mean over the queries that can.

    "entropy" in nats; for self-attention also the "distance" in nodes and the weight that goes to "self", to the
    "previous" and the "first" node, to an earlier or later "same" label, and to what followed the same label before
    ("induction", 2209.11895). nan where no query could.
    """
    if not is_self:
        return {"entropy": torch.stack([torch.special.entr(w.float()).sum(-1).mean() for w in weights])}
    position = torch.arange(weights.shape[-1], device=weights.device)
    offset = position - position[:, None]  # (Q, K): key minus query
    numbers = {label: i for i, label in enumerate(dict.fromkeys(nodes.labels))}
    label = torch.tensor([numbers[text] for text in nodes.labels], device=weights.device)
    is_same = label == label[:, None]
    follows_same = torch.zeros_like(is_same)
    follows_same[:, 1:] = is_same[:, :-1]
    heads = [summarize_head(w.float(), offset, is_same, follows_same) for w in weights]  # one by one: memory
    return {name: torch.stack([head[name] for head in heads]) for name in heads[0]}


def summarize_head(w: Tensor, offset: Tensor, is_same: Tensor, follows_same: Tensor) -> dict[str, Tensor]:
    """The summaries of one head; all arguments are (Q, K)."""
    return {
        "entropy": torch.special.entr(w).sum(-1).mean(),
        "distance": (w * offset.abs()).sum(-1).mean(),
        "self": w.diagonal().mean(),
        "previous": w.diagonal(-1).mean(),
        "first": w[1:, 0].mean(),
        "same": mean_where(w, is_same & (offset != 0)),
        "induction": mean_where(w, follows_same & (offset <= 0)),
    }


def mean_where(weights: Tensor, mask: Tensor) -> Tensor:
    """The weight on the keys of a mask, the mean over the queries that can read one of them: (Q, K) each -> ()"""
    read = (weights * mask).sum(-1)
    can_read = ((weights > 0) & mask).any(-1)
    return (read * can_read).sum(-1) / can_read.sum(-1)  # 0 / 0: nan


def list_summaries(layers: Sequence[dict[str, Tensor]]) -> dict[str, list[list[float | None]]]:
    """The summaries of all layers by their name: [layer][head]; None where no query could."""
    return {
        name: [[float(f"{x:.4g}") if x == x else None for x in layer[name].tolist()] for layer in layers]
        for name in layers[0]
    }
