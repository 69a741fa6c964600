"""Associative recall: local and global layers beside local layers only, by the distance of what is asked for.

    python -m bench.model.associative_recall --seeds 1 2

Many queries, as in Zoology (2312.04927): pairs of a key and a value, then keys; at each of these the model answers with
the value of its pair. Pairs and queries of a sequence are drawn anew: nothing but the sequence says which belong
together. Both models have two layers. In the first, a node reads itself and the node before it, so that a value meets
its key; in the second, it reads all nodes before it, or the last `width`. There are no positions. A query can be
answered only if its key's node reaches it: `hops` says where, and the accuracy is printed beside it.
"""

import json
import time
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.model import (
    Edges,
    LMHead,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
    causal,
    hops,
    initialize,
    window,
)
from anyformer.training.config import TrainConfig
from anyformer.training.optimizers import Optimizer, get_lr
from bench._common import make_parser

KEYS = VALUES = 256
LENGTH, PAIRS, LONGER = 128, 16, 4  # trained on; tested also on sequences so many times longer, with as many more pairs
LOCAL = causal & window(2)
CUTS = (8, 16, 24, 32, 33, 34, 40, 64, 128, 256)


class RecallModel(nn.Module):
    """tokens (B, T) -> logits of the values (B, T, VALUES)"""

    def __init__(self, edges: Sequence[Edges]):
        super().__init__()
        config = TransformerConfig(
            dim=64, n_layer=2, n_head=1, context=LENGTH, position="none", norm="rmsnorm", activation="relu2", bias=False
        )
        self.nodes, self.body = TokenEmbedding(KEYS + VALUES, config), Transformer(config)
        self.head, self.edges = LMHead(config.dim, VALUES), list(edges)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.nodes(tokens), self.edges))


def draw(rows: int, length: int, pairs: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (B, T), and of each query its label and the index of its pair, (B, T - 2 * pairs)."""
    keys = torch.rand(rows, KEYS, generator=rng).argsort(1)[:, :pairs]
    values = torch.randint(VALUES, (rows, pairs), generator=rng)
    index = torch.randint(pairs, (rows, length - 2 * pairs), generator=rng)
    facts = torch.stack([keys, values + KEYS], dim=2).flatten(1)
    return torch.cat([facts, keys.gather(1, index)], dim=1), values.gather(1, index), index


def train(edges: Sequence[Edges], steps: int, seed: int) -> RecallModel:
    """Train on short sequences for a third of the steps, then on sequences of LENGTH."""
    torch.manual_seed(seed)
    model, rng = RecallModel(edges), torch.Generator().manual_seed(seed)
    initialize(model, model.body.config)
    config = TrainConfig(
        optimizer="muon", schedule="trapezoid", lr=3e-3, min_lr=0.0, warmup=10, steps=steps, beta2=0.98
    )
    optimizer = Optimizer(model, config)
    for step in range(steps):
        pairs = PAIRS // 4 if step < steps // 3 else PAIRS
        tokens, labels, _ = draw(32, pairs * LENGTH // PAIRS, pairs, rng)
        loss = nn.functional.cross_entropy(model(tokens)[:, 2 * pairs :].flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step(get_lr(step, config))
        model.zero_grad()
    return model.eval()


@torch.no_grad()
def measure(model: RecallModel, times: int, rows: int = 64) -> dict[str, Any]:
    """Return the accuracy at so many times the trained length: of all queries, of those that their key reaches, by
    `hops`, of the others, and by the distance of a query from its key, with the share that its key reaches."""
    length, pairs = times * LENGTH, times * PAIRS
    tokens, labels, index = draw(rows, length, pairs, torch.Generator().manual_seed(0))
    is_right = (model(tokens)[:, 2 * pairs :].argmax(-1) == labels).float()
    query, key = torch.arange(2 * pairs, length).expand_as(index), 2 * index
    is_reached = (hops(model.edges, length) >= 0)[query, key]
    ends = [end for end in CUTS if end < length] + [length]
    masks = {f"{low}-{high - 1}": (query - key >= low) & (query - key < high) for low, high in pairwise([0, *ends])}
    rows_of_table = {name: (mean(is_right[mask]), mean(is_reached[mask].float())) for name, mask in masks.items()}
    parts = {"reached": mean(is_right[is_reached]), "not reached": mean(is_right[~is_reached])}
    return {"length": length, "accuracy": mean(is_right), **parts, "by distance": rows_of_table}


def mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() else None


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--width", type=int, default=32, help="nodes that the second layer of the local model reads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stacks = {"local and global": [LOCAL, causal], "local": [LOCAL, causal & window(options.width)]}
    results = []
    for seed, (name, edges) in product(options.seeds, stacks.items()):
        start = time.process_time()
        model = train(edges, options.steps, seed)
        facts = {"edges": name, "seed": seed, "seconds": time.process_time() - start}
        for times in (1, LONGER):
            results.append(facts | measure(model, times))
            if not options.json:
                report(results[-1])
    if options.json:
        print(json.dumps(results))


def report(result: dict[str, Any]) -> None:
    name, seed, length, seconds = (result[key] for key in ("edges", "seed", "length", "seconds"))
    print(f"{name}, seed {seed}, {seconds:.0f} CPU seconds; {length} nodes, {length // LENGTH * PAIRS} pairs:")
    for key, text in (
        ("accuracy", "of all"),
        ("reached", "where the key reaches"),
        ("not reached", "where it does not"),
    ):
        if result[key] is not None:
            print(f"  {100 * result[key]:6.2f} % right {text}")
    for distance, (accuracy, reached) in result["by distance"].items():
        if accuracy is not None:
            print(f"    distance {distance:<8} {100 * accuracy:6.2f} % right, {100 * reached:3.0f} % within reach")


if __name__ == "__main__":
    main()
