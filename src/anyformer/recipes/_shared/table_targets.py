"""The targets of a table: losses and scores of a batch, and how sure the answers are.

`model` is one with a `schema` whose `predict_batch(batch)` returns for each target logits (B, classes), or a number of
mean 0 and deviation 1 (B, 1).

Shapes: B batch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.tables.batches import label_key
from ...data.tables.schema import Target
from ...data.text.batches import IGNORE_INDEX
from ...inference.calibration import measure_radii
from ...metrics import accuracy, confusion_matrix, macro_f1, regression_scores


class TargetResult(NamedTuple):
    """The result of one target for a batch, (B,) each; `losses` is 0 where the label is not known."""

    losses: Tensor
    predictions: Tensor
    labels: Tensor
    is_known: Tensor

    def mean_loss(self) -> Tensor:
        return self.losses.sum() / self.is_known.sum().clamp(min=1)

    def scores(self, target: Target) -> dict[str, float]:
        """Return accuracy and macro F1 of a class, RMSE and R2 of a number."""
        if target.kind == "number":
            return regression_scores(self.labels[self.is_known], self.predictions[self.is_known])
        confusion = self.confusion(target)
        return {"accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion)}

    def confusion(self, target: Target) -> Tensor:
        return confusion_matrix(self.labels[self.is_known], self.predictions[self.is_known], len(target.values))


def evaluate_targets(model: Any, batch: dict[str, Tensor]) -> Iterator[TargetResult]:
    for target, output in zip(model.schema.targets, model.predict_batch(batch), strict=True):
        output, labels = output.float(), batch[label_key(target)]
        is_known = select_known(labels)
        if target.kind == "class":
            losses = F.cross_entropy(output, labels, reduction="none", ignore_index=IGNORE_INDEX)
            yield TargetResult(losses, output.argmax(-1), labels, is_known)
        else:
            output, normalized = output[:, 0], (labels - target.mean[0]) / target.std[0]
            losses = (output - torch.where(is_known, normalized, output)) ** 2
            yield TargetResult(losses, output * target.std[0] + target.mean[0], labels, is_known)


def select_known(labels: Tensor) -> Tensor:
    """Return which labels are known: no NaN among numbers, no IGNORE_INDEX among classes."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE_INDEX


def collect_results(model: Any, batches: Iterator[dict[str, Tensor]]) -> list[TargetResult]:
    """Return the result of each target over all batches, on the CPU."""
    parts = [[[tensor.cpu() for tensor in result] for result in evaluate_targets(model, batch)] for batch in batches]
    return [TargetResult(*map(torch.cat, zip(*results))) for results in zip(*parts)]


def measure_errors(model: Any, batches: Iterator[dict[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """Return the measured option `errors` of each target that is a number, from batches that were not trained on;
    nothing for one that no row of them has."""
    measurements = {}
    for target, result in zip(model.schema.targets, collect_results(model, batches), strict=True):
        if target.kind == "number" and result.is_known.any():
            errors = (result.predictions - result.labels)[result.is_known].abs()
            measurements[target.name] = {"errors": measure_radii(errors)}
    return measurements
