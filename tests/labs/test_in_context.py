"""Regression in context: the classical methods are exact, the model sees only what comes before."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyformer.labs.in_context.regression import (
    RegressionModel,
    Task,
    predict_descent,
    predict_neighbors,
    predict_ridge,
    probe_layers,
)
from anyformer.model.config import TransformerConfig
from cli_kit import assert_refused, call

CONFIG = TransformerConfig(dim=16, n_layer=2, n_head=2, context=20, position="none", norm="rmsnorm", bias=False)


def draw(d: int, pairs: int, noise: float = 0.0, batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """x, y as it is shown, and without noise."""
    task, generator = Task(d, pairs, noise), torch.Generator().manual_seed(0)
    x, w = task.draw(batch, generator)
    return x, *task.answer(x, w, generator)


def test_answers_have_a_variance_of_one():
    _, y, truth = draw(8, 24, noise=0.5, batch=4000)
    assert float(truth.var()) == pytest.approx(1, abs=0.05) and float((y - truth).std()) == pytest.approx(0.5, abs=0.02)


def test_least_squares_is_that_of_torch_and_exact_from_d_examples_on():
    x, y, _ = draw(3, 8)
    predictions = predict_ridge(x, y, 0.0)
    assert predictions[:, 3:] == pytest.approx(y[:, 3:], abs=1e-3)
    w = torch.linalg.lstsq(x[:, :5], y[:, :5, None]).solution
    assert predictions[:, 5] == pytest.approx((x[:, 5, None] @ w)[:, 0, 0], abs=1e-4)
    errors = [
        (predict_ridge(*draw(8, 8, batch=4000)[:2], 0.0) - draw(8, 8, batch=4000)[1])[:, k].square().mean()
        for k in range(8)
    ]
    assert errors == pytest.approx([(8 - k) / 8 for k in range(8)], abs=0.06), "of k examples it knows k directions"


def test_with_noise_the_bayes_penalty_errs_least():
    x, y, truth = draw(4, 12, noise=0.5, batch=8000)
    errors = {p: float((predict_ridge(x, y, p) - truth)[:, 4:].square().mean()) for p in (0.0, 0.25, 1.0, 4.0)}
    assert min(errors, key=lambda p: errors[p]) == 1.0, "variance 0.25 times 4 dimensions"


def test_gradient_descent_goes_towards_least_squares():
    x, y, _ = draw(3, 9)
    rates = torch.logspace(-2, 0, 21)
    errors = [float((predict_descent(x, y, steps, rates) - y)[:, 8].square().mean()) for steps in (1, 4, 200)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    w = 0.1 * x[:, :8].mT @ y[:, :8, None] / 8  # one step from 0
    single = predict_descent(x, y, 1, torch.tensor([0.1]))[:, 8]
    assert single == pytest.approx((x[:, 8, None] @ w)[:, 0, 0], abs=1e-5)


def test_neighbours_of_a_repeated_input_answer_as_it_did():
    x, y, _ = draw(3, 7)
    x[:, 4:7] = x[:, 3:4]
    y[:, 4:7] = y[:, 3:4]
    assert predict_neighbors(x, y)[:, 6] == pytest.approx(y[:, 3], abs=1e-6)


def test_a_prediction_depends_on_the_pairs_before_it_alone():
    torch.manual_seed(0)
    model, (x, y, _) = RegressionModel(3, CONFIG).eval(), draw(3, 10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    before = model(x, y)
    changed = y.clone()
    changed[:, 5:] += 1
    after = model(x, changed)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6:], after[:, 6:])


def test_a_probe_finds_what_a_layer_holds():
    torch.manual_seed(0)
    model = RegressionModel(3, CONFIG).eval()
    task, generator = Task(3, 10), torch.Generator().manual_seed(1)
    with torch.no_grad():
        parts = []
        for _ in range(2):
            x, _ = task.draw(500, generator)
            parts.append((x, x @ torch.tensor([1.0, -2.0, 0.5])))  # the same w everywhere: x alone says y
        errors = probe_layers(model, parts[0], parts[1], pair=4)
    assert len(errors) == 3 and errors[0] < 1e-6


def test_the_lab_writes_a_report(tmp_path: Path):
    flags = ["--dim", 2, "--pairs", 6, "--width", 16, "--layers", 2, "--steps", 3, "--tests", 50, "--noise", 0.3]
    result = call("lab", "in-context", *flags, "--json", "--out", tmp_path / "lab", "--device", "cpu").ok()
    facts = json.loads(result.out.splitlines()[-1])
    assert set(facts["curves"]) >= {
        "Transformer",
        "least squares",
        "ridge (Bayes)",
        "1 gradient step",
        "16 gradient steps",
    }
    assert all(len(errors) == 6 for errors in facts["curves"].values()) and len(facts["layers"]) == 3
    page = (tmp_path / "lab" / "report.html").read_text()
    assert "<svg" in page and "Error over the number of examples" in page and "inputs twice as large" in page
    assert_refused(call("lab", "in-context", "--pairs", 1), "--pairs is 1")
    assert_refused(call("lab", "incontext"), "there is no lab 'incontext': did you mean 'in-context'?")
