"""Attention sinks: what a model loses when a window slides past the first nodes, and what keeping these brings back.

    python -m bench.inference.attention_sinks runs/novels --text novel.txt --window 255
    python -m bench.inference.attention_sinks SmolLM2-135M-Instruct.gguf --text novel.txt --window 256 --nodes 1024

A model that was trained with full causal attention reads pieces of a text under other edges (2309.17453): the loss of
the nodes that the window does not reach back from to the first node. "far": the first nodes at their true distance; the
library's own `first(n)` lets them seem no further away than the context, here the window, is long. And the share of the
attention that the first node gets within the window, of each layer, beside an equal share.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer import api
from anyformer.model import Edges, attention_weights, causal, first, window
from bench._common import make_parser


def build_rules(size: int) -> dict[str, Edges]:
    """Return the rules to compare; each node reads at most `size` nodes, but for "causal"."""

    def is_early(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < 4) & (q >= 0)

    far = Edges(is_early, "far(4)", uses_batch=False, uses_head=False)
    rules = [causal, causal & window(size), *(causal & (window(size - n) | first(n)) for n in (1, 4))]
    return {rule.name: rule for rule in [*rules, causal & (window(size - 4) | far)]}


@torch.inference_mode()
def measure(model: Any, ids: Tensor, size: int) -> dict[str, Any]:
    """Return the mean loss after the first `size` nodes by rule, and the largest share of node 0. ids: (rows, T)"""
    stack, losses = model.body.config, {}
    for name, rule in build_rules(size).items():
        model.body.config = stack if rule is causal else replace(stack, context=size)
        rows = []
        for row in ids:
            logits = model.head(model.body(model.nodes(row[None, :-1]), rule))[0, size:]
            rows.append(F.cross_entropy(logits.float(), row[size + 1 :]).item())
        losses[name] = sum(rows) / len(rows)
    model.body.config = stack
    start = ids[:1, :size]
    weights = attention_weights(model.body, lambda: model.body(model.nodes(start), causal))  # (layers, B, H, Q, K)
    late = weights[:, 0, :, size // 2 :, 0]  # of queries in the second half
    return {"losses": losses, "shares": late.mean((1, 2)).tolist(), "equal share": 4 / (3 * size)}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="a run of language, or a checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=255)
    parser.add_argument("--nodes", type=int, default=1024, help="of a piece of the text")
    parser.add_argument("--rows", type=int, default=8, help="pieces, from all over the text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = api.load(options.run, "cpu").module
    text, pieces = options.text.read_text(encoding="utf-8"), []
    for row in range(options.rows):
        start = row * len(text) // options.rows
        piece = model.tokenizer.encode(text[start : start + 8 * options.nodes])
        pieces.append(torch.tensor(piece[: options.nodes + 1]).long())
    result = measure(model, torch.stack(pieces), options.window)
    if options.json:
        print(json.dumps(result))
        return
    for name, loss in result["losses"].items():
        print(f"{loss:.4f} nats   {name}")
    shares = ", ".join(f"{100 * share:.1f}" for share in result["shares"])
    print(f"attention of node 0 by layer, %: {shares}; an equal share is {100 * result['equal share']:.1f} %")


if __name__ == "__main__":
    main()
