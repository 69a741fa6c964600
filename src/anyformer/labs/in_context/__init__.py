"""Lab in-context: a Transformer that learns within its forward pass, beside the methods that it might have found."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...model.config import TransformerConfig
from ...parsing import check_range
from ...training.config import TrainConfig
from ...training.device import resolve_device
from ...training.optimizers import Optimizer, get_lr
from ..lab import LabResult, LabSettings, LabTable, Log
from .regression import RegressionModel, Task, predict_descent, predict_neighbors, predict_ridge, probe_layers

DESCENT_STEPS = (1, 2, 4, 8, 16)
RATES = torch.logspace(-2, 0.6, 27)
CURRICULUM_SHARE = 0.3  # of the steps, in which the number of dimensions grows to its full value
FIT_SEQUENCES = 4096  # of the linear maps that read each layer
SHIFTS = {
    "as trained": lambda x: x,
    "inputs twice as large": lambda x: 2 * x,
    "inputs half as large": lambda x: x / 2,
    "inputs all positive": lambda x: x.abs(),
}


@dataclass(frozen=True, kw_only=True)
class Settings(LabSettings):
    """Train a Transformer on linear regressions, each with weights of its own that
    only its examples tell, and compare its error over the number of examples with
    least squares, ridge regression, gradient descent and nearest neighbours."""

    dim: int = 8
    """Numbers of an input."""
    pairs: int = 24
    """Examples of a sequence."""
    noise: float = 0.0
    """Standard deviation of the noise on the answers, whose own is 1."""
    width: int = 128
    """Channels of the Transformer."""
    layers: int = 6
    """Its blocks."""
    steps: int = 8000
    """Of training, each on 64 new sequences."""
    lr: float = 2e-3
    """The learning rate."""
    tests: int = 2000
    """Sequences of the test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "dim", at_least=1, at_most=256)
        check_range(self, "pairs", at_least=2, at_most=1024)
        check_range(self, "noise", at_least=0, at_most=10)
        check_range(self, "width", at_least=8, at_most=4096)
        check_range(self, "layers", at_least=1, at_most=64)
        check_range(self, "steps", at_least=1, at_most=10**8)
        check_range(self, "tests", at_least=10, at_most=10**6)
        check_range(self, "lr", above=0, at_most=1)


def run(settings: Settings, log: Log) -> LabResult:
    task = Task(settings.dim, settings.pairs, settings.noise)
    device = resolve_device(settings.device)
    torch.manual_seed(settings.seed)
    config = TransformerConfig(
        dim=settings.width,
        n_layer=settings.layers,
        n_head=4,
        context=2 * settings.pairs,
        position="none",
        norm="rmsnorm",
        bias=False,
        activation="relu2",
    )
    model = RegressionModel(settings.dim, config).to(device)
    seconds = train(model, task, settings, device, log)
    model = model.cpu().eval()
    with torch.no_grad():
        facts = measure(model, task, settings)
    facts |= {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}
    return describe(settings, facts)


def train(model: RegressionModel, task: Task, settings: Settings, device: torch.device, log: Log) -> float:
    """Train; return the seconds of processor time. Numbers of dimensions begin small: all of them at once are a long
    plateau."""
    c = TrainConfig(
        steps=settings.steps, batch=64, lr=settings.lr, optimizer="muon", schedule="trapezoid", min_lr=0.0,
        weight_decay=0.0, warmup=min(50, settings.steps),
    )  # fmt: skip
    optimizer, start = Optimizer(model, c), time.process_time()
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        share = step / (CURRICULUM_SHARE * settings.steps)
        active = min(task.d, max(1, round(task.d * (0.25 + 0.75 * share))))
        x, w = task.draw(c.batch, generator, active)
        y, _ = (values.to(device) for values in task.answer(x, w, generator))
        loss = (model(x.to(device), y) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(get_lr(step, c))
        if step % max(1, settings.steps // 40) == 0 or step == settings.steps - 1:
            log({"step": step, "loss": loss.item(), "dimensions": active, "seconds": time.process_time() - start})
    return time.process_time() - start


def measure(model: RegressionModel, task: Task, settings: Settings) -> dict[str, Any]:
    """Return the errors of all methods over the number of examples, by layer, and out of distribution."""
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003)
    x, w = task.draw(settings.tests, generator)
    y, truth = task.answer(x, w, generator)
    methods: dict[str, Tensor] = {"Transformer": model(x, y), "least squares": predict_ridge(x, y, 0.0)}
    if task.noise:
        methods["ridge (Bayes)"] = predict_ridge(x, y, task.noise**2 * task.d)
    methods |= {f"{n} gradient step{'s' * (n > 1)}": predict_descent(x, y, n, RATES) for n in DESCENT_STEPS}
    methods["nearest neighbours"] = predict_neighbors(x, y)
    curves = {name: (values - truth).square().mean(0).tolist() for name, values in methods.items()}
    pair = min(2 * task.d, task.pairs - 1)
    fit_x, fit_w = task.draw(FIT_SEQUENCES, generator)
    fit = fit_x, task.answer(fit_x, fit_w, generator)[0]
    shifts = {}
    for name, shift in SHIFTS.items():
        moved = shift(x)
        shown, hidden = task.answer(moved, w, generator)
        pairs = (("Transformer", model(moved, shown)), ("least squares", predict_ridge(moved, shown, 0.0)))
        shifts[name] = {method: relative_error(values, hidden, pair) for method, values in pairs}
    return {"curves": curves, "pair": pair, "layers": probe_layers(model, fit, (x, y), pair), "shifts": shifts}


def relative_error(predictions: Tensor, truth: Tensor, pair: int) -> float:
    """The mean squared error after `pair` examples, as a share of the mean square of what is predicted."""
    return float((predictions - truth)[:, pair].square().mean() / truth[:, pair].square().mean())


def describe(settings: Settings, facts: dict[str, Any]) -> LabResult:
    curves, pair = facts["curves"], facts["pair"]
    shown = sorted({0, 1, settings.dim // 2, settings.dim, pair, settings.pairs - 1})
    rows = [[name, *(f"{errors[k]:.4f}" for k in shown)] for name, errors in curves.items()]
    table = LabTable("Mean squared error", ["after examples", *map(str, shown)], rows)
    layers = [[f"after block {i}" if i else "embedding", f"{error:.4f}"] for i, error in enumerate(facts["layers"])]
    probes = LabTable(
        f"A linear map of each layer, after {pair} examples", ["layer", "error"], layers,
        "beside the gradient steps of the same number in the table above",
    )  # fmt: skip
    shifts = [[name, *(f"{value:.4f}" for value in values.values())] for name, values in facts["shifts"].items()]
    outside = LabTable(
        f"Other inputs than those of the training, after {pair} examples", ["inputs", *facts["shifts"]["as trained"]],
        shifts, "as shares of the mean square of the answers",
    )  # fmt: skip
    summary = [
        f"After {pair} examples of {settings.dim} numbers the Transformer errs by {curves['Transformer'][pair]:.4f}, "
        f"16 gradient steps by {curves['16 gradient steps'][pair]:.4f}, "
        f"one step by {curves['1 gradient step'][pair]:.3f}; a guess of 0 by 1.",
        f"{facts['parameters']:,} parameters, {facts['seconds']:,.0f} seconds of processor time.",
    ]
    lines = [draw_line(name, errors) for name, errors in curves.items()]
    figures = [
        {
            "kind": "lines",
            "title": "Error over the number of examples",
            "x_label": "examples",
            "zero": True,
            "lines": lines,
        }
    ]
    return LabResult("Learning within the forward pass", summary, [table, probes, outside], figures, facts=facts)


def draw_line(name: str, errors: Sequence[float]) -> dict[str, Any]:
    return {"name": name, "x": list(range(len(errors))), "y": list(errors)}
