"""Several sources of text in one training: validation by source, and what each gave."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.io.sources import split_sources
from ...data.text.mixtures import Mixture, Source
from .text import load_mixture

SOURCE_KEY = "source/"  # of a validation batch of a mixture: SOURCE_KEY + name -> the weight of the source, ()
Sums = Sequence[float]
"""What is summed over the batches of an evaluation; the last of them is the number of predictions."""


def tag_batch(batch: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """Return a validation batch that says which source of a mixture it is of."""
    return batch | ({SOURCE_KEY + source.name: torch.tensor(float(source.weight))} if source.name else {})


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
    for batch in batches:
        key = next((key for key in batch if key.startswith(SOURCE_KEY)), "")
        weights[key] = float(batch[key]) if key else 1.0
        values = np.array(add({name: value for name, value in batch.items() if name != key}), np.float64)
        sums[key] = sums[key] + values if key in sums else values
    metrics = describe(*balance_sums(sums, weights))
    by_source = {key.removeprefix(SOURCE_KEY): describe(*sums[key].tolist())["loss"] for key in sorted(sums) if key}
    return metrics | {f"{name}_loss": loss for name, loss in by_source.items()}


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
