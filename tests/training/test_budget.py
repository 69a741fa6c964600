"""Time budgets: the number of steps, and the size of the model, that fit into a time."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import anyformer
from anyformer import resolve_job as resolve
from anyformer.errors import InputError
from anyformer.parsing import to_json
from anyformer.recipe import SizeOption
from anyformer.recipe_loading import load_recipe, parse_config
from anyformer.recipes import language
from anyformer.training import budget, loop
from anyformer.training.job import TrainingJob, apply_budget
from anyformer.training.run_directory import RunDirectory
from cli_kit import call

TINY = language.PRESETS["tiny"]
NAMES = ("build", "batches", "loss", "evaluate", "predict")


def configure(text: Path, **train: Any) -> language.Config:
    return replace(TINY, data=str(text), train=replace(TINY.train, device="cpu", dtype="float32", **train))


def make_recipe(**functions: Any) -> SimpleNamespace:
    """The language recipe with some of its functions replaced."""
    return SimpleNamespace(**{name: getattr(language, name) for name in NAMES} | functions)


def fake_machine(monkeypatch: pytest.MonkeyPatch, cost: budget.EvalCost, seconds_by_width: dict[int, float]) -> None:
    """Replace measurements: seconds of a step by the width of the model; a width that is not listed needs too much
    memory."""

    def measure_speed(recipe: Any, config: Any, seconds: float, clock: Any) -> budget.StepSpeed:
        if config.model.dim not in seconds_by_width:
            raise torch.OutOfMemoryError("out of memory")
        return budget.StepSpeed(seconds_by_width[config.model.dim], 256, None)

    monkeypatch.setattr(budget, "measure_speed", measure_speed)
    monkeypatch.setattr(budget, "measure_eval", lambda recipe, config, state, clock: cost)


def allow(seconds: float, is_forced: bool = True) -> budget.Budget:
    """A budget by a clock that stands still, without what it keeps for the end of the process."""
    seconds += min(budget.FINISH_SECONDS, seconds * budget.FINISH_FRACTION / (1 - budget.FINISH_FRACTION))
    return budget.Budget(minutes=seconds / 60, started_at=0.0, clock=lambda: 0.0, is_forced=is_forced)


# --- steps ---


def test_steps_fill_the_time_that_validations_leave(text: Path, monkeypatch: pytest.MonkeyPatch):
    fake_machine(monkeypatch, budget.EvalCost(batch=0.01, sample=0.4, figures=0.0), {32: 0.1})
    config = configure(text, eval_every=200, eval_batches=5, warmup=100)
    fitted, timer = budget.plan_steps(language, config, allow(100.0))
    n_batches = sum(1 for _ in language.batches(config, "val"))
    validation = 0.01 * min(5, n_batches)
    n_evals, training = 5, 100 - 0.01 * n_batches - validation - 0.4
    assert fitted.train.steps == int((training - (n_evals - 1) * (validation + 0.4)) / 0.1)
    assert fitted.train.eval_every == -(-fitted.train.steps // n_evals), "five validations at least"
    assert fitted.train.warmup == fitted.train.steps // 10 and fitted.train.final_every == 1
    assert timer.seconds_left == pytest.approx(100) and timer.share == 0 and timer.n_batches == n_batches
    later, timer = budget.plan_steps(language, config, allow(100.0), step=fitted.train.steps)
    assert later.train.steps == 2 * fitted.train.steps and timer.share == 0.5


def test_the_final_validation_takes_a_tenth_of_the_time_at_most(text: Path, monkeypatch: pytest.MonkeyPatch):
    fake_machine(monkeypatch, budget.EvalCost(batch=5.0, sample=0.1, figures=0.0), {32: 0.1})
    text.write_text(20 * text.read_text())
    n_batches = sum(1 for _ in language.batches(configure(text), "val"))
    fitted = budget.plan_steps(language, configure(text), allow(60.0)).config.train
    assert fitted.final_every == min(n_batches, math.ceil(5.0 * n_batches / 6.0)) > 1
    assert fitted.eval_batches == 1 and fitted.eval_every >= fitted.steps // 2, "few validations, of few batches"


def test_evaluation_of_every_second_batch(run: Path):
    model = anyformer.load(run)
    batches = [batch for batch, _ in language.batches(model.config, "val")]
    expected = loop.evaluate(language, model.module, iter(batches[::2]), model.config.train.dtype)
    assert len(batches) > 1 and model.evaluate(every=2) == expected != model.evaluate()


def test_speed_is_measured_on_late_batches(text: Path):
    """A recipe may start with easy rows, which are not what most of the time is spent on."""
    steps: list[int] = []

    def batches(*args: Any) -> Any:
        for batch, state in language.batches(*args):
            steps.extend([state["step"]] * (args[1] == "train"))
            yield batch, state

    speed = budget.measure_speed(make_recipe(batches=batches), configure(text), 0.2)
    assert len(steps) > 3 and min(steps[1:]) > 10_000
    assert speed.seconds > 0 and speed.tokens == TINY.train.batch * TINY.model.context
    cost = budget.measure_eval(language, configure(text), speed.state)
    assert cost.batch > 0 and cost.sample > 0


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.inf, math.nan])
def test_times_that_make_no_sense_are_refused_before_data_are_read(minutes: float):
    with pytest.raises(InputError, match=rf"^minutes is {minutes}; it must be (above 0|a finite)"):
        anyformer.train("language", data="missing.txt", minutes=minutes)


def test_reading_the_data_counts(text: Path, monkeypatch: pytest.MonkeyPatch):
    fake_machine(monkeypatch, budget.EvalCost(batch=0.01, sample=0.0, figures=0.0), {32: 0.1})
    settings = {"recipe": language, "preset": "tiny", "run": RunDirectory(text / "run")}
    seconds_left = []
    for started_at in (100.0, 70.0, 0.0):
        limit = budget.Budget(minutes=1.0, started_at=started_at, clock=lambda: 100.0, is_forced=True)
        job = apply_budget(TrainingJob(config=configure(text), budget=limit, **settings))
        assert job.timer is not None and job.baselines is not None
        seconds_left.append(job.timer.seconds_left)
    assert seconds_left == pytest.approx([58.2, 28.2, 0.0], abs=0.01)


# --- sizes ---


def offer_sizes(text: Path, *widths: int) -> list[SizeOption]:
    """Sizes whose loss falls with the number of tokens to a floor of their own: the wider, the lower."""

    def predict(width: int, tokens: float) -> tuple[float, float]:
        loss = 1 / width + 1000 / tokens
        return loss, 1.1 * loss

    configs = [replace(configure(text), model=replace(TINY.model, dim=width)) for width in widths]
    return [SizeOption(config, lambda tokens, width=config.model.dim: predict(width, tokens)) for config in configs]


@pytest.mark.parametrize(("seconds", "best"), [(10, 8), (100, 16), (100_000, 32)])
def test_more_time_chooses_a_larger_model(text: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, best: int):
    fake_machine(monkeypatch, budget.EvalCost(1e-6, 1e-4, 0.0), {width: width**2 / 200 for width in (8, 16, 32)})
    recipe = make_recipe(sizes=lambda config: offer_sizes(text, 8, 16, 32))
    (config, _), reasons = budget.choose_size(recipe, configure(text), allow(seconds))
    train = config.train
    assert config.model.dim == best and train.steps * best**2 / 200 == pytest.approx(seconds, rel=0.05)
    excess = train.eval_every * budget.MAX_EVALS - train.steps
    assert train.eval_every == train.save_every and 0 <= excess < budget.MAX_EVALS
    low, high = reasons["expects"]
    assert low < high and [size["dim"] for size in reasons["sizes"]] == [8, 16, 32][: len(reasons["sizes"])]
    json.dumps(reasons)


@pytest.mark.parametrize(("seconds_by_width", "tried"), [({8: 0.1, 16: 9.0}, [8, 16]), ({8: 0.1}, [8])])
def test_the_search_ends_at_a_worse_size_or_without_memory(
    text: Path, monkeypatch: pytest.MonkeyPatch, seconds_by_width: dict, tried: list
):
    fake_machine(monkeypatch, budget.EvalCost(0.001, 0.1, 0.0), seconds_by_width)
    recipe = make_recipe(sizes=lambda config: offer_sizes(text, 8, 16, 32))
    (config, _), reasons = budget.choose_size(recipe, configure(text), allow(20))
    assert config.model.dim == 8 and [size["dim"] for size in reasons["sizes"]] == tried
    fake_machine(monkeypatch, budget.EvalCost(0.001, 0.1, 0.0), {})
    with pytest.raises(torch.OutOfMemoryError):
        budget.choose_size(recipe, configure(text), allow(20))


@pytest.mark.parametrize(
    ("overrides", "is_free"),
    [
        ({}, True),
        ({"data": "b.txt", "window": 8}, True),
        ({"train": {"seed": 7, "device": "cpu", "dtype": "float32"}}, True),
        ({"train": {"lr": 1e-4}}, False),
        ({"model": {"n_layer": 2}}, False),
    ],
)
def test_settings_of_model_or_training_fix_the_size(overrides: dict, is_free: bool):
    values = resolve.merge_overrides(to_json(language.PRESETS["small"]), overrides)
    config = parse_config(language, values, "test")
    assert resolve.can_choose_size(language, None, {}, config) == is_free
    vision = load_recipe("vision")
    assert not resolve.can_choose_size(vision, None, {}, vision.PRESETS["tiny"])


def test_a_preset_fixes_the_size():
    for preset, is_free in ((None, True), ("small", False)):
        budget = resolve.resolve_job("language", preset, minutes=1).budget
        assert budget is not None and budget.choose_size == is_free


@pytest.mark.slow
def test_minutes_from_the_command_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(random.Random(0).choices("abcd ", k=20_000)))
    command = ("train", "language", "--data", tmp_path / "a.txt", "--minutes", 0.03, "--device", "cpu", "--yes")
    facts = call(*command, "--dry-run", "--json").ok().json
    assert facts["plan"]["minutes"] == 0.03 and facts["steps"] >= 2
    result = call(*command, "--out", tmp_path / "run").ok()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    low, high = stored["plan"]["expects"]
    assert f"expect a validation loss from {low:.2f} to {high:.2f}" in result.err
    assert stored["config"]["model"]["dim"] in [size["dim"] for size in stored["plan"]["sizes"]]
    assert stored["config"]["model"]["position"] == "rotary" and stored["config"]["train"]["steps"] >= 1
    assert f"{low:.2f} to {high:.2f}" in (tmp_path / "run" / "report.html").read_text()
    assert "plan" not in call(*command, "--dry-run", "--json", "--preset", "tiny").ok().json
