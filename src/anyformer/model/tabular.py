"""Numbers by their place among quantiles, and a linear model of numbers and categories beside the Transformer: few rows
often teach no more than it.

Shapes: B batch, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .embeddings import Normalized

STEP_SCALE = 10.0  # Adam's steps have the same size for every weight; those of a linear model need to be larger


class PiecewiseLinear(nn.Module):
    """The position of a number along the intervals between quantiles (2203.05556): 1 for each interval below it, the
    share of the one that it lies in, 0 above. The outermost intervals go on, up to three times their length; nan has
    only zeros. x (B, 1) -> (B, quantiles - 1)"""

    low: Tensor
    length: Tensor
    minimum: Tensor
    maximum: Tensor

    def __init__(self, quantiles: Sequence[float]):
        super().__init__()
        lengths = torch.tensor(quantiles, device="cpu").diff().tolist()  # on meta, torch would load its compiler
        inner = len(lengths) - 1
        buffers = {"low": quantiles[:-1], "length": lengths, "minimum": [-3.0] + [0.0] * inner}
        for name, values in (buffers | {"maximum": [1.0] * inner + [4.0]}).items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shares = (x.float() - self.low) / self.length
        return torch.nan_to_num(torch.clamp(shares, self.minimum, self.maximum), 0.0)


class NumberPath(nn.Module):
    """What numbers, their positions along quantiles if there are some, and their absence add to each output: values
    (B, features), is_present (B, 1) -> (B, O). A missing number counts as the mean, and that it is missing."""

    reference: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], quantiles: Sequence[float], outputs: int):
        super().__init__()
        self.normalize = Normalized(nn.Identity(), mean, std)
        self.locate = PiecewiseLinear(quantiles) if quantiles else None
        with torch.device("cpu"):
            reference = PiecewiseLinear(quantiles)(torch.tensor(mean)).tolist() if quantiles else []
        self.register_buffer("reference", torch.tensor(reference), persistent=False)
        self.project = nn.Linear(len(mean) + len(reference) + 1, outputs, bias=False)

    def forward(self, x: Tensor, is_present: Tensor) -> Tensor:
        features = [self.normalize(x)]
        if self.locate is not None:
            features.append(self.locate(x) - self.reference)
        return self.project(torch.cat([*(part * is_present for part in features), 1.0 - is_present], 1))


class CategoryPath(nn.Module):
    """What a category, or its absence, adds to each output: ids (B, 1), is_present (B, 1) -> (B, O)"""

    def __init__(self, categories: int, outputs: int):
        super().__init__()
        self.value = nn.Embedding(categories + 1, outputs)

    def forward(self, x: Tensor, is_present: Tensor) -> Tensor:
        missing = self.value.num_embeddings - 1
        return self.value(torch.where(is_present > 0, x, missing)[:, 0])


class LinearPath(nn.Module):
    """The sum of what the fields of a row add to each output, which is 0 before training. values: one for each of
    `parts`, None for fields that are not read; is_present (B, fields) -> (B, O)"""

    def __init__(self, parts: Sequence[nn.Module | None], outputs: int):
        super().__init__()
        self.parts = nn.ModuleDict({str(i): part for i, part in enumerate(parts) if part is not None})
        self.bias = nn.Parameter(torch.zeros(outputs))

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, values: Sequence[Tensor], is_present: Tensor) -> Tensor:
        is_present = is_present.float()
        terms = [part(values[int(i)], is_present[:, int(i), None]) for i, part in self.parts.items()]
        return STEP_SCALE * sum(terms, self.bias.expand(len(is_present), -1))
