"""Part regression: train the Transformer on linear regressions, and compare it with the methods that it might have
found."""

from typing import Any

import torch
from torch import Tensor

from ...model.config import TransformerConfig
from ...training.device import autocast, resolve_device
from ..lab import LabResult, LabTable, Log
from .regression import RegressionModel, Task, predict_descent, predict_neighbors, predict_ridge, probe_layers
from .settings import Settings
from .training import Curriculum, choose_dtype, configure_training, fit

BATCH = 64
DESCENT_STEPS = (1, 2, 4, 8, 16)
RATES = torch.logspace(-2, 0.6, 27)
LEARNED = 0.8  # of the variance that can be explained: then another dimension is added
EXTRA_PAIRS = 8  # of a sequence of the curriculum, beyond twice its dimensions
SHARPNESS = 0.1  # of the weights of the loss: the variance at which the weight has halved
HALF_PRECISION = 0.6  # of the steps, before the learning rate decays, are computed in bfloat16: the last in float32
FIT_SEQUENCES = 4096  # of the linear maps that read each layer
SHIFTS = {
    "as trained": lambda x: x,
    "inputs twice as large": lambda x: 2 * x,
    "inputs half as large": lambda x: x / 2,
    "inputs all positive": lambda x: x.abs(),
}


def run_regression(settings: Settings, log: Log) -> LabResult:
    task = Task(settings.dim, settings.pairs, settings.noise)
    device = resolve_device(settings.device)
    torch.manual_seed(settings.seed)
    config = TransformerConfig(
        dim=settings.width,
        n_layer=settings.layers,
        n_head=4,
        context=2 * settings.pairs,
        position="none",
        bias=False,
    )
    model = RegressionModel(settings.dim, config).to(device)
    seconds = train(model, task, settings, device, log)
    model = model.cpu().eval()
    with torch.no_grad():
        facts = measure(model, task, settings)
    facts |= {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}
    return describe(settings, facts)


def train(model: RegressionModel, task: Task, settings: Settings, device: torch.device, log: Log) -> float:
    """Train; return the seconds of processor time. Sequences begin short and with one dimension: all of them at once
    are a long plateau."""
    generator = torch.Generator().manual_seed(settings.seed)
    curriculum, dtype = Curriculum(task.d, LEARNED), choose_dtype(device)

    def compute_loss(step: int) -> tuple[Tensor, dict[str, Any]]:
        active = curriculum.level + 1
        pairs = min(task.pairs, 2 * active + EXTRA_PAIRS)
        part = Task(task.d, pairs, task.noise * (active / task.d) ** 0.5)  # the noise keeps its share of the variance
        x, w = part.draw(BATCH, generator, active)
        y, truth = (values.to(device) for values in part.answer(x, w, generator))
        with autocast(device, dtype if step < HALF_PRECISION * settings.steps else torch.float32):
            predictions = model(x.to(device), y).float()
        share = float((predictions[:, -1] - truth[:, -1]).square().mean().detach()) * task.d / active
        curriculum.update(1 - share + task.noise**2 * active / pairs)
        weights = weigh_pairs(part, active).to(device)
        return ((predictions - y).square().mean(0) * weights).mean(), {"dimensions": active}

    return fit(model, compute_loss, configure_training(settings.steps, settings.lr, settings.seed), log)


def weigh_pairs(task: Task, active: int) -> Tensor:
    """The weight of each pair in the loss, with a mean of 1: less where the pairs before leave much of y open, so that
    the gradient has less noise. (K,)"""
    open_share = (active - torch.arange(task.pairs)).clamp(min=0) / task.d + task.noise**2
    weights = 1 / (open_share + SHARPNESS)
    return weights / weights.mean()


def measure(model: RegressionModel, task: Task, settings: Settings) -> dict[str, Any]:
    """Return the errors of all methods over the number of examples, by layer, and out of distribution."""
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003)
    x, w = task.draw(settings.tests, generator)
    y, truth = task.answer(x, w, generator)
    methods: dict[str, Tensor] = {"Transformer": model(x, y), "least squares": predict_ridge(x, y, 0.0)}
    if task.noise:
        methods["ridge (Bayes)"] = predict_ridge(x, y, task.noise**2 * task.d)
    methods |= {name_steps(n): predict_descent(x, y, n, RATES) for n in DESCENT_STEPS}
    methods["nearest neighbours"] = predict_neighbors(x, y)
    curves = {name: (values - truth).square().mean(0).tolist() for name, values in methods.items()}
    pair = min(2 * task.d, task.pairs - 1)
    fit_x, fit_w = task.draw(FIT_SEQUENCES, generator)
    others = fit_x, task.answer(fit_x, fit_w, generator)[0]
    shifts = {}
    for name, shift in SHIFTS.items():
        moved = shift(x)
        shown, hidden = task.answer(moved, w, generator)
        pairs = (("Transformer", model(moved, shown)), ("least squares", predict_ridge(moved, shown, 0.0)))
        shifts[name] = {method: relative_error(values, hidden, pair) for method, values in pairs}
    return {"curves": curves, "pair": pair, "layers": probe_layers(model, others, (x, y), pair), "shifts": shifts}


def relative_error(predictions: Tensor, truth: Tensor, pair: int) -> float:
    """The mean squared error after `pair` examples, as a share of the mean square of what is predicted."""
    return float((predictions - truth)[:, pair].square().mean() / truth[:, pair].square().mean())


def describe(settings: Settings, facts: dict[str, Any]) -> LabResult:
    curves, pair = facts["curves"], facts["pair"]
    shown = sorted({0, 1, settings.dim // 2, settings.dim, pair, settings.pairs - 1})
    rows = [[name, *(f"{errors[k]:.4f}" for k in shown)] for name, errors in curves.items()]
    table = LabTable("Mean squared error", ["after examples", *map(str, shown)], rows)
    layers = [[f"after block {i}" if i else "embedding", f"{error:.4f}"] for i, error in enumerate(facts["layers"])]
    probes = LabTable(f"A linear map of each layer, after {pair} examples", ["layer", "error"], layers)
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
    if settings.noise:
        pairs = zip(curves["Transformer"][1:], curves["ridge (Bayes)"][1:])
        excess = max(error / best for error, best in pairs) - 1
        summary.insert(1, f"It errs by {excess:.0%} more than the Bayes ridge estimate where it is farthest from it.")
    drawn = [name for name in curves if name not in map(name_steps, DESCENT_STEPS[1:-1])]
    steps = [0, *DESCENT_STEPS]
    descent = [curves["Transformer"][0], *(curves[name_steps(n)][pair] for n in DESCENT_STEPS)]
    figures = [
        {
            "kind": "lines", "title": "Error over the number of examples", "x_label": "examples", "zero": True,
            "lines": [{"name": name, "x": [*range(len(curves[name]))], "y": curves[name]} for name in drawn],
        },
        {
            "kind": "lines", "title": f"Layer by layer, after {pair} examples", "x_label": "blocks, or gradient steps",
            "note": "mean squared error of a linear map of each layer", "zero": True,
            "lines": [
                {"name": "Transformer", "x": [*range(len(facts["layers"]))], "y": facts["layers"]},
                {"name": "gradient descent", "x": steps, "y": descent},
            ],
        },
    ]  # fmt: skip
    return LabResult("", summary, [table, probes, outside], figures, facts=facts)


def name_steps(steps: int) -> str:
    return f"{steps} gradient step{'s' * (steps > 1)}"
