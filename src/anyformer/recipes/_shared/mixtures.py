"""Several sources of text in one training: validation by source, and what each gave."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.io.sources import split_sources
from ...data.text.mixtures import Mixture
from .text import load_mixture

SOURCE_KEY = "source/"  # of a validation batch: SOURCE_KEY + name of a source -> its share, first row and last + 1
Sums = Sequence[float]
"""What is summed over the batches of an evaluation; the last of them is the number of predictions."""


def tag_batch(batch: dict[str, Tensor], text: Mixture, owners: np.ndarray) -> dict[str, Tensor]:
    """Return a validation batch that says which of its rows are of which source, by the ascending numbers of these,
    (B,)."""
    if len(text.sources) == 1:
        return batch
    bounds = np.searchsorted(owners, np.arange(len(text.sources) + 1)).tolist()
    parts = zip(text.sources, text.shares, bounds, bounds[1:])
    return batch | {
        SOURCE_KEY + source.name: torch.tensor([share, start, stop])
        for source, share, start, stop in parts
        if stop > start
    }


def score_by_source(
    batches: Iterable[dict[str, Tensor]],
    add: Callable[[dict[str, Tensor]], Sums],
    describe: Callable[..., dict[str, float]],
) -> dict[str, float]:
    """Return the metrics of an evaluation; over a mixture each source counts by its weight, and NAME_loss is the loss
    of each source.

    Args:
        add: Returns the sums of a batch.
        describe: Returns the metrics, "loss" among them, of sums.
    """
    sums: dict[str, np.ndarray] = {}
    weights: dict[str, float] = {}
    for key, weight, rows in (part for batch in batches for part in split_batch(batch)):
        weights[key], values = weight, np.array(add(rows), np.float64)
        sums[key] = sums[key] + values if key in sums else values
    metrics = describe(*balance_sums(sums, weights))
    by_source = {key.removeprefix(SOURCE_KEY): describe(*sums[key].tolist())["loss"] for key in sorted(sums) if key}
    return metrics | {f"{name}_loss": loss for name, loss in by_source.items()}


def split_batch(batch: dict[str, Tensor]) -> Iterator[tuple[str, float, dict[str, Tensor]]]:
    """Yield (key, weight, rows) of each source in a batch; of a single source ("", 1, the batch)."""
    keys = [key for key in batch if key.startswith(SOURCE_KEY)]
    if not keys:
        yield "", 1.0, batch
    for key in keys:
        weight, start, stop = batch[key].tolist()
        rows = slice(int(start), int(stop))
        yield key, weight, {name: value[rows] for name, value in batch.items() if name not in keys}


def balance_sums(sums: dict[str, np.ndarray], weights: dict[str, float]) -> list[float]:
    """Return the sums over all sources, each scaled so that its share of the predictions is that of its weight."""
    counts = {key: max(1.0, values[-1]) for key, values in sums.items()}
    total = sum(counts.values())
    scales = {key: weights[key] * total / (counts[key] * sum(weights.values())) for key in sums}
    return sum((scales[key] * values for key, values in sums.items()), np.zeros(3)).tolist()


def describe_sources(config: Any, n_batches: int) -> dict[str, dict[str, Any]]:
    """Return what each source of a mixture gives; see `SupportsMixtures`."""
    return count_sources(load_mixture(config), config, config.model.context, n_batches)


def count_sources(mixture: Mixture, config: Any, width: int, n_batches: int) -> dict[str, dict[str, Any]]:
    """Return what each source of a mixture gives in so many batches of rows of `width` tokens."""
    if len(mixture.sources) == 1:
        return {}
    counts = mixture.count_rows(n_batches * config.train.batch, config.train.seed)
    facts = {}
    for source, (data, weight), rows in zip(mixture.sources, split_sources(config.data), counts, strict=True):
        n_tokens = len(source.corpus.split("train"))
        facts[source.name] = {
            "data": data,
            "weight": float(weight),
            "tokens": n_tokens,
            "share": rows / max(1, sum(counts)),
            "epochs": rows * width / n_tokens,
        }
    return facts
