"""Sizes of recipes that predict no loss: `--minutes` takes the largest for which there are enough steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api, cli, recipe, recipe_loading, resolve_job
from anyformer.errors import InputError
from anyformer.model.config import find_stacks
from anyformer.recipes import language, mlp, speech, translation, vision
from anyformer.recipes._shared.sizes import Size, offer_sizes, shrink
from anyformer.training import budget
from anyformer.training.run_directory import RunDirectory

BY_LOSS = ("language", "recall")
COST = budget.EvalCost(batch=0.001, sample=0.01, figures=0.0)


def allow(seconds: float, **settings: Any) -> budget.Budget:
    """A budget by a clock that stands still, a little longer than these seconds."""
    return budget.Budget(minutes=seconds / 57, started_at=0.0, clock=lambda: 0.0, **settings)


@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_every_recipe_offers_smaller_sizes(name: str):
    module: Any = recipe_loading.load_recipe(name)
    assert isinstance(module, recipe.SupportsSizes)
    if name in BY_LOSS:
        return
    for preset in list(module.PRESETS)[1:]:
        config = module.PRESETS[preset]
        config = replace(config, train=replace(config.train, seed=7, device="cpu"))
        options = list(module.sizes(config))
        if preset == recipe_loading.default_preset(module):
            assert len(options) > 1
        assert options[0].steps == 0 or len(options) == 1, "the smallest needs nothing"
        assert [option.steps for option in options] == sorted(option.steps for option in options)
        assert options[-1].config == config
        for option in options:
            train = option.config.train
            assert (train.seed, train.device) == (7, "cpu") and train.batch <= config.train.batch
            assert replace(option.config, train=config.train, **shape(config)) == config


def shape(config: Any) -> dict[str, Any]:
    """The fields that a size may change."""
    names = [*find_stacks(config), "local_layers", "dim", "hidden", "layers"]
    names += ["model"] if isinstance(config, mlp.Config) else []
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def test_a_smaller_stack_keeps_its_kind():
    config = speech.PRESETS["llama"]  # grouped heads and a width of the MLP
    small = shrink(config, Size(64, 2, 8, 0))
    assert (small.encoder.dim, small.encoder.n_head, small.encoder.n_kv_head, small.encoder.mlp_dim) == (64, 2, 2, 172)
    assert (small.encoder.n_layer, small.decoder.n_layer) == (2, 2) and small.encoder.position == "rotary"
    assert small.train.lr == pytest.approx(config.train.lr * 2**0.5) and small.train.batch == 8
    odd = shrink(vision.PRESETS["small"], Size(64, 3, 8, 0)).model
    assert odd.dim % odd.n_head == 0, "96 channels have 4 heads, 64 cannot have 3"
    assert [option.config.model.dim for option in offer_sizes(language.PRESETS["tiny"], (Size(64, 1, 8, 0),), 9)] == [
        32
    ]


@pytest.mark.parametrize(("seconds", "dim", "tried"), [(10, 64, 1), (200, 96, 2), (600, 128, 3), (3000, 192, 4)])
def test_enough_steps_come_before_a_large_model(monkeypatch: pytest.MonkeyPatch, seconds: float, dim: int, tried: int):
    measured: list[int] = []

    def measure_speed(module: Any, config: Any, *_: Any) -> budget.StepSpeed:
        measured.append(config.encoder.dim)
        return budget.StepSpeed(config.encoder.dim / 500, 100, None)

    monkeypatch.setattr(budget, "measure_speed", measure_speed)
    monkeypatch.setattr(budget, "measure_eval", lambda *_: COST)
    monkeypatch.setattr(budget, "count_batches", lambda *_: 5)
    config = translation.PRESETS["multi30k"]
    (config, _), reasons = budget.choose_size(translation, config, allow(seconds, is_forced=True, choose_size=True))
    assert config.encoder.dim == config.decoder.dim == dim and len(measured) == len(reasons["sizes"]) == tried
    steps = {size.dim: size.steps for size in translation.SIZES} | {192: 2000}
    assert config.train.steps >= steps[dim] and "expects" not in reasons
    text = api.describe_plan({"minutes": 1.0} | reasons, config)
    assert f"of {dim} channels, context 64, about {config.train.steps:,} steps" in text and f"{tried} size" in text


@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_every_recipe_refuses_a_time_that_teaches_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    module: Any = recipe_loading.load_recipe(name)
    monkeypatch.setattr(budget, "measure_speed", lambda *_: budget.StepSpeed(3.0, 100, None))
    monkeypatch.setattr(budget, "measure_eval", lambda *_: COST)
    monkeypatch.setattr(budget, "count_batches", lambda *_: 5)
    config = module.PRESETS["tiny"]
    with pytest.raises(
        InputError, match=r"1 minutes are too few: \d+ steps will learn nothing; give at least"
    ) as error:
        budget.plan_steps(module, config, replace(allow(1), minutes=1.0))
    assert str(error.value).endswith("start anyway with --yes")
    has_sizes = isinstance(module, recipe.SupportsSizes)
    assert ("the size is chosen" in str(error.value)) == has_sizes
    if has_sizes:
        smallest = next(iter(module.sizes(module.PRESETS[recipe_loading.default_preset(module)]))).config
        with pytest.raises(InputError) as error:
            budget.check_steps(module, smallest, allow(60, choose_size=True), 20, 3.0, 1.0)
        assert "smaller" not in str(error.value), "there is none"


def test_stacks_and_training_settings_fix_the_size():
    for overrides, is_free in (({}, True), ({"train": {"lr": 1e-4}}, False), ({"decoder": {"n_layer": 1}}, False)):
        job = resolve_job.resolve_job("speech", None, overrides, minutes=1)
        assert job.budget is not None and job.budget.choose_size == is_free
    for is_suggested in (False, True):
        job = resolve_job.resolve_job("speech", "digits", minutes=1, is_preset_free=is_suggested)
        assert job.budget is not None and job.budget.choose_size == is_suggested


def test_a_preset_that_was_recognized_does_not_fix_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = "".join(f"{i % 7},{i % 3},{'ab'[i % 2]}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(f"x,y,kind\n{rows}")
    jobs: list[Any] = []
    train: Any = cli.importlib.import_module("anyformer.cli.train")
    monkeypatch.setattr(train, "train", lambda job, *_: jobs.append(job) or 0)
    words = [str(tmp_path / "t.csv"), "--target", "kind", "--minutes", "1", "--yes"]
    assert train.run(words) == train.run([*words, "--preset", "table"]) == 0
    assert [job.preset for job in jobs] == ["table", "table"]
    assert [job.budget.choose_size for job in jobs] == [True, False]


@pytest.mark.slow
def test_a_slow_machine_trains_a_small_translator_to_the_end(tmp_path: Path):
    """By a simulated clock on which a step of the preset takes half a second."""
    now = [0.0]

    class Costly:
        PRESETS, SIZES = translation.PRESETS, translation.SIZES
        __name__ = translation.__name__
        build, batches, evaluate = translation.build, translation.batches, translation.evaluate
        sizes, predict = translation.sizes, translation.predict

        @staticmethod
        def loss(model: Any, batch: dict) -> torch.Tensor:
            now[0] += sum(p.numel() for p in model.parameters()) / 3e5
            return translation.loss(model, batch)

    config = translation.PRESETS["reverse"]
    config = replace(config, train=replace(config.train, device="cpu", dtype="float32"))
    limit = budget.Budget(minutes=1.0, started_at=0.0, clock=lambda: now[0], choose_size=True)
    job = resolve_job.TrainingJob(
        recipe=Costly,  # type: ignore[arg-type]
        preset="reverse",
        config=config,
        run=RunDirectory(tmp_path / "run"),
        budget=limit,
    )
    records: list[dict] = []
    model = api.train_job(job, on_record=records.append)
    assert model.config.encoder.n_layer == 1 and len(records) > 100
    assert now[0] == pytest.approx(60, rel=0.05)
    assert records[-1]["val_loss"] < records[0]["loss"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "with enough steps was chosen" in report and "1 layers of 64, context 24" in report
