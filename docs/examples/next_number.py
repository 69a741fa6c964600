"""Next number: continue a series of numbers.

raw    a text file with one number per line, or "waves": the sum of two sine waves
nodes  one for each number, standardized, with a position
edges  causal
head   the next number
loss   mean squared error, in standard deviations of the series

    anyformer train ./next_number.py --data prices.txt
    anyformer predict runs/next_number-prices-1 prices.txt --recipe ./next_number.py
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from anyformer import InputError, Transformer, TransformerConfig, causal
from anyformer.parsing import parse_dataclass, path_field
from anyformer.recipe import Graph, GraphInput, advance_stream, init_stream
from anyformer.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:  # every field is a flag, and the text below it its help
    data: str = path_field("waves")
    """A text file with one number per line, or waves."""
    scale: str = ""
    """A file with mean and std. Default: measured on the data; a trained model has its own (see `files`)."""
    model: TransformerConfig = field(default_factory=lambda: TransformerConfig(dim=32, n_layer=2, n_head=4, context=64))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, batch=16, warmup=30, eval_every=100))


PRESETS = {"tiny": Config(train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10)), "small": Config()}


class Forecaster(nn.Module):
    def __init__(self, config, mean, std):
        super().__init__()
        self.mean, self.std, self.context = mean, std, config.model.context
        self.nodes, self.body = nn.Linear(1, config.model.dim), Transformer(config.model)
        self.head = nn.Linear(config.model.dim, 1)
        self.files = {"scale.json": json.dumps({"mean": mean, "std": std})}  # stored with the weights: `config.scale`

    def forward(self, values):  # (B, T) -> the number after each of them (B, T)
        x = self.nodes((values[..., None] - self.mean) / self.std)  # (B, T, C)
        return self.head(self.body(x, causal))[..., 0] * self.std + self.mean


def read_series(data):
    if data == "waves":
        return np.sin(np.arange(4000) / 5, dtype=np.float32) + 0.5 * np.sin(np.arange(4000) / 17, dtype=np.float32)
    try:
        return np.array(Path(data).read_text().split(), np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"data '{data}': {error}; expected a file with one number per line") from None


def build(config):
    if config.scale:
        return Forecaster(config, **json.loads(Path(config.scale).read_text()))
    series = read_series(config.data)
    return Forecaster(config, float(series.mean()), float(series.std()) or 1.0)


def batches(config, split, state=None):
    series, size, context = read_series(config.data), config.train.batch, config.model.context
    state, cut = init_stream(state, config.data, hashlib.sha256(series).hexdigest()), len(series) * 9 // 10
    series = {"train": series[:cut], "val": series[cut:], "all": series}[split]
    if len(series) <= context:
        raise InputError(f"the {split} split has {len(series)} numbers; --model.context {context} needs more")
    windows = np.lib.stride_tricks.sliding_window_view(series, context + 1)
    end = 1 << 40 if split == "train" else -(-len(windows) // size)
    for step in range(state["step"], end, state.get("stride", 1)):  # other processes take the steps between
        if split == "train":  # drawn from seed and step alone: a resumed run sees the same batches
            rows = np.random.default_rng((config.train.seed, step)).integers(len(windows), size=size)
        else:
            rows = np.arange(step * size, min((step + 1) * size, len(windows)))
        x = torch.from_numpy(windows[rows])
        state = advance_stream(state, len(rows) * context)
        yield {"values": x[:, :-1], "labels": x[:, 1:]}, state


def loss(model, batch):
    return ((model(batch["values"]) - batch["labels"]) / model.std).square().mean()


def evaluate(model, batches):
    losses, counts = zip(*((loss(model, batch).item(), len(batch["labels"])) for batch in batches))
    mean = float(np.average(losses, weights=counts))
    return {"loss": mean, "rmse": mean**0.5 * model.std}


@dataclass(frozen=True, kw_only=True)
class Request:
    input: list[float] | list[str] | str = "waves"  # the last numbers of a series, or files of them
    steps: int = 16  # how many numbers to predict


def predict(model, request):
    request = parse_dataclass(Request, request, "request")
    inputs = [request.input] if isinstance(request.input, str) or isinstance(request.input[0], float) else request.input
    results = []
    for series in inputs:
        series = read_series(series) if isinstance(series, str) else series
        x = torch.tensor(series, dtype=torch.float32, device=model.head.weight.device)[None]
        for _ in range(request.steps):
            x = torch.cat([x, model(x[:, -model.context :])[:, -1:]], dim=1)
        results.append({"forecast": x[0, -request.steps :].tolist()})
    return {"results": results}


def export_graph(model):  # optional, for `anyformer export --to onnx`; more such names are in anyformer/recipe.py
    return Graph(model, {"values": GraphInput("batch length")}, ("next",), {"length": model.context})
