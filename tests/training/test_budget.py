"""What fits into a time: steps, and the size of the model."""

import json
import math
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import anyformer
from anyformer import resolve
from anyformer.errors import InputError
from anyformer.parsing import to_json
from anyformer.recipe import SizeOption, load_recipe, parse_config
from anyformer.recipes import language
from anyformer.recipes.language import scaling
from anyformer.training import budget as plan
from anyformer.training import loop
from anyformer.training.job import TrainingJob, apply_budget
from anyformer.training.run_directory import RunDirectory
from cli_kit import call

TINY = language.PRESETS["tiny"]
NAMES = ("build", "batches", "loss", "evaluate", "predict")


def config(text: Path, **train) -> language.Config:
    return replace(TINY, data=str(text), train=replace(TINY.train, device="cpu", dtype="float32", **train))


def recipe(**own) -> SimpleNamespace:
    """The language recipe but for what is given."""
    return SimpleNamespace(**{name: getattr(language, name) for name in NAMES} | own)


def still(monkeypatch: pytest.MonkeyPatch, looks: plan.EvalCost, steps: dict[int, float]) -> None:
    """A machine whose speed is known, seconds of a step by the width of the model, and where no time passes."""
    pace = lambda recipe, config, seconds: plan.StepSpeed(steps[config.model.dim], 256, None)  # noqa: E731
    monkeypatch.setattr(plan, "measure_speed", pace)
    monkeypatch.setattr(plan, "measure_eval", lambda recipe, config, state: looks)
    monkeypatch.setattr(plan.time, "monotonic", lambda: 0.0)


# --- steps ---


def test_steps_fill_the_time_that_validations_leave(text: Path, monkeypatch: pytest.MonkeyPatch):
    still(monkeypatch, plan.EvalCost(validation=2.0, batch=0.01), {32: 0.1})
    found = plan.fit_steps(language, config(text, eval_every=50, warmup=100), 100.0)
    batches = sum(1 for _ in language.batches(config(text), "val"))
    left = 100 - 0.01 * batches
    assert found.train.steps == int(left / (0.1 + 2.0 / 50)) and found.train.warmup == found.train.steps // 10
    assert found.train.final_every == 1
    assert replace(found, train=config(text, eval_every=50).train) == config(text, eval_every=50)  # nothing else moved


def test_the_last_validation_takes_a_tenth_of_the_time_at_most(text: Path, monkeypatch: pytest.MonkeyPatch):
    still(monkeypatch, plan.EvalCost(validation=0.1, batch=5.0), {32: 0.1})
    batches = sum(1 for _ in language.batches(config(text), "val"))
    found = plan.fit_steps(language, config(text), 60.0).train
    assert found.final_every == math.ceil(5.0 * batches / 6.0) > 1


def test_every_second_batch_of_the_split(run: Path):
    model = anyformer.load(run)
    batches = [batch for batch, _ in language.batches(model.config, "val")]
    want = loop.evaluate(language, model.module, iter(batches[::2]), model.config.train.dtype)
    assert len(batches) > 1 and model.evaluate(every=2) == want != model.evaluate()


def test_the_speed_is_measured_on_the_batches_of_later_steps(text: Path):
    """A recipe may begin with easy rows: they are not what most of the time will go to."""
    steps: list[int] = []

    def batches(*args):
        for batch, place in language.batches(*args):
            steps.extend([place["step"]] * (args[1] == "train"))
            yield batch, place

    known = plan.measure_speed(recipe(batches=batches), config(text), 0.2)
    assert len(steps) > 3 and min(steps[1:]) > 10_000
    assert known.step > 0 and known.tokens == TINY.train.batch * TINY.model.context
    looks = plan.measure_eval(language, config(text), known.state)
    assert looks.validation > looks.batch > 0


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.inf, math.nan])
def test_no_time_and_no_end_of_it_are_refused_before_anything_is_read(minutes: float):
    with pytest.raises(InputError, match=rf"--minutes is {minutes:g}; it must be above 0, and have an end"):
        anyformer.train("language", data="nothing.txt", minutes=minutes)


def test_reading_the_data_is_part_of_the_time(text: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    monkeypatch.setattr(plan, "fit_steps", lambda recipe, config, seconds: asked.append(seconds))
    monkeypatch.setattr(plan.time, "monotonic", lambda: 100.0)
    job = TrainingJob(
        recipe=language, recipe_name="language", preset="tiny", config=config(text), run=RunDirectory(text / "run")
    )
    for began in (100.0, 70.0, 0.0):
        apply_budget(replace(job, budget=plan.Budget(minutes=1.0, started_at=began)))
    assert asked == [60.0, 30.0, 15.0]  # a quarter is left in any case


# --- sizes ---


def offered(text: Path, *widths: int) -> list[SizeOption]:
    """Sizes whose loss falls with what they see, to a floor of their own: the wider, the lower."""

    def expects(width: int, tokens: float) -> tuple[float, float]:
        loss = 1 / width + 1000 / tokens
        return loss, 1.1 * loss

    own = [replace(config(text), model=replace(TINY.model, dim=width)) for width in widths]
    return [SizeOption(one, lambda tokens, width=one.model.dim: expects(width, tokens)) for one in own]


@pytest.mark.parametrize(("seconds", "best"), [(10, 8), (100, 16), (100_000, 32)])
def test_more_time_takes_a_larger_model(text: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, best: int):
    still(monkeypatch, plan.EvalCost(1e-3, 1e-6), {width: width**2 / 200 for width in (8, 16, 32)})
    found, why = plan.choose_size(recipe(sizes=lambda c: offered(text, 8, 16, 32)), config(text), seconds)
    assert found.model.dim == best
    c = found.train
    assert c.steps * best**2 / 200 == pytest.approx(seconds, rel=0.05)
    assert c.eval_every == c.save_every and 0 <= c.eval_every * plan.EVALS_PER_RUN - c.steps < plan.EVALS_PER_RUN
    low, high = why["expects"]
    assert low < high and [one["dim"] for one in why["sizes"]] == [8, 16, 32][: len(why["sizes"])]
    json.dumps(why)


def test_a_size_that_promises_less_ends_the_search(text: Path, monkeypatch: pytest.MonkeyPatch):
    still(monkeypatch, plan.EvalCost(0.1, 0.001), {8: 0.1, 16: 9.0})
    found, why = plan.choose_size(recipe(sizes=lambda c: offered(text, 8, 16, 32)), config(text), 20)  # 32 has no pace
    assert found.model.dim == 8 and [one["dim"] for one in why["sizes"]] == [8, 16]


def test_a_size_that_memory_does_not_hold_ends_the_search(text: Path, monkeypatch: pytest.MonkeyPatch):
    def pace(recipe, config, seconds):
        if config.model.dim > 8:
            raise torch.OutOfMemoryError
        return plan.StepSpeed(0.1, 256, None)

    still(monkeypatch, plan.EvalCost(0.1, 0.001), {})
    monkeypatch.setattr(plan, "measure_speed", pace)
    found, _ = plan.choose_size(recipe(sizes=lambda c: offered(text, 8, 16)), config(text), 1e5)
    assert found.model.dim == 8


def test_memory_that_does_not_hold_even_the_smallest_is_said(text: Path, monkeypatch: pytest.MonkeyPatch):
    def pace(recipe, config, seconds):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(plan, "measure_speed", pace)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        plan.choose_size(recipe(sizes=lambda c: offered(text, 8, 16)), config(text), 60)


@pytest.mark.parametrize(
    ("own", "free"),
    [
        ({}, True),
        ({"data": "b.txt", "window": 8}, True),
        ({"train": {"seed": 7, "device": "cpu", "dtype": "float32"}}, True),
        ({"train": {"lr": 1e-4}}, False),
        ({"model": {"n_layer": 2}}, False),
    ],
)
def test_a_flag_of_the_model_or_its_training_is_a_choice(own: dict, free: bool):
    base = language.PRESETS["small"]
    mine = parse_config(language, resolve.merge_overrides(to_json(base), own), "test")
    assert resolve.can_choose_size(language, None, mine) == free
    assert not resolve.can_choose_size(language, "small", mine)
    vision = load_recipe("vision")
    assert not resolve.can_choose_size(vision, None, vision.PRESETS["tiny"])


# --- what a language model expects ---


def corpus(folder: Path, text: str) -> language.Config:
    (folder / "a.txt").write_text(text)
    return replace(TINY, data=str(folder / "a.txt"))


def test_how_hard_a_text_is(tmp_path: Path):
    """Dice leave all of their entropy open, a refrain nothing."""
    rng = random.Random(0)
    dice = corpus(tmp_path, "".join(rng.choices("abcdefgh", k=50_000)))
    assert scaling.measure_difficulty(language.load_corpus(dice)) == pytest.approx(math.log(8), abs=0.1)
    refrain = corpus(tmp_path, "over the hills " * 2000)
    assert scaling.measure_difficulty(language.load_corpus(refrain)) < 0.02


@pytest.mark.parametrize("length", [40, 300, 5000])
def test_a_short_text_has_a_difficulty_too(tmp_path: Path, length: int):
    text = "".join(random.Random(0).choices("ab", k=length))
    assert 0 < scaling.measure_difficulty(language.load_corpus(corpus(tmp_path, text))) < 2


def test_pieces_come_from_all_over():
    tokens = np.arange(1000)
    found = scaling.sample_pieces(tokens, 100, 10)
    assert found.shape == (10, 10) and found[0, 0] == 0 and found[-1, -1] == 999
    assert scaling.sample_pieces(tokens[:5], 100, 10).tolist() == [[0, 1, 2, 3, 4]]


def test_more_tokens_more_weights_and_new_tokens_promise_more():
    def says(weights: float, tokens: float, unique: float, vocab: int = 64) -> float:
        return scaling.predict_loss(scaling.TextStatistics(1.5, int(unique), vocab), weights, tokens, *scaling.LAW)

    assert says(1e6, 2e6, 1e9) > says(1e6, 4e6, 1e9) > says(1e7, 4e6, 1e9)
    assert says(1e6, 4e6, 1e6) > says(1e6, 4e6, 4e6) == says(1e6, 4e6, 1e9)
    assert says(1e6, 1e12, 1e6) == pytest.approx(says(1e6, 1e13, 1e6))  # a text that is known has no more to say
    assert says(1e6, 1, 1e6) == math.log(64)  # who has learned nothing guesses evenly
    assert says(1e6, 4e6, 1e9, 4096) < says(1e6, 4e6, 1e9) == says(1e6, 4e6, 1e9, 32)


def test_the_law_says_what_was_measured():
    """Of `bench/training/budget_law.py`: nats a character of tiny Shakespeare and of novels, and of a BPE, after so many tokens."""
    plays, novels = scaling.TextStatistics(1.518, 1_003_854, 66), scaling.TextStatistics(1.441, 56_906_281, 192)
    pieces = scaling.TextStatistics(4.625, 15_926_686, 4096)
    measured = [(plays, 331_776, 2_041_856, 1.5736), (plays, 786_432, 4_728_832, 1.4652)]
    measured += [(novels, 331_776, 7_499_776, 1.3625), (pieces, 786_432, 628_736, 4.8518)]
    for text, weights, tokens, loss in measured:
        low, high = scaling.predict_loss_range(text, weights, tokens)
        assert low < loss < high


def test_the_sizes_keep_what_is_not_theirs(text: Path):
    mine = replace(language.PRESETS["small"], data=str(text), window=8, tied=False)
    mine = replace(mine, train=replace(mine.train, seed=7, device="cpu", dtype="float32"))
    choices = list(language.sizes(mine))
    assert [one.config.model.dim for one in choices] == sorted({one.config.model.dim for one in choices})
    for one in choices:
        assert (one.config.data, one.config.window, one.config.tied) == (str(text), 8, False)
        assert (one.config.train.seed, one.config.train.device, one.config.train.dtype) == (7, "cpu", "float32")
        assert next(islice(language.batches(choices[0].config, "train"), 1))


@pytest.mark.parametrize(("length", "contexts"), [(40, [64]), (200, [64, 128]), (500, [64, 128, 256])])
def test_a_size_whose_context_the_text_cannot_fill_is_not_offered(tmp_path: Path, length: int, contexts: list[int]):
    text = "".join(random.Random(0).choices("ab", k=length))
    found = [one.config.model.context for one in language.sizes(corpus(tmp_path, text))]
    assert sorted(set(found)) == contexts


# --- all of it ---


def test_minutes_from_the_command_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(random.Random(0).choices("abcd ", k=20_000)))
    asked = ("train", "language", "--data", tmp_path / "a.txt", "--minutes", 0.05, "--device", "cpu")
    facts = json.loads(call(*asked, "--dry-run", "--json").ok().out)
    assert facts["plan"]["minutes"] == 0.05 and facts["steps"] >= 2
    said = call(*asked, "--out", tmp_path / "run").ok()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    low, high = stored["plan"]["expects"]
    assert f"expect a validation loss from {low:.2f} to {high:.2f}" in said.err
    assert stored["config"]["model"]["dim"] in [one["dim"] for one in stored["plan"]["sizes"]]
    assert stored["config"]["model"]["position"] == "rotary" and stored["config"]["train"]["steps"] >= 2
    report = (tmp_path / "run" / "report.html").read_text()
    assert "over the whole split, at step" in report and f", expected {low:.2f} to {high:.2f}" in report
    assert "expect" not in call(*asked, "--out", tmp_path / "small", "--preset", "tiny").ok().err
