"""Training by the clock, on a simulated machine: its clock advances by a scripted cost, and nobody waits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import anyformer
from anyformer import api, resolve_job
from anyformer.errors import InputError
from anyformer.recipes import language
from anyformer.training import checkpoints
from anyformer.training.budget import Budget
from anyformer.training.checksums import write_checksums
from anyformer.training.job import TrainingJob, run_job
from anyformer.training.loop import TrainState
from anyformer.training.run_directory import RunDirectory
from anyformer.training.timer import Timer, TimerState
from cli_kit import assert_refused, call

QUICK = {
    "test_a_machine_that_changes_its_speed_ends_on_time": {"slower"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


TINY = language.PRESETS["tiny"]
STEP, EVAL_BATCH, SAMPLE = 0.25, 0.02, 0.05  # seconds at speed 1


class Machine:
    """A machine whose speed changes with the time. A step, a batch of an evaluation and a sample have their costs."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0):
        self.now, self.slowdown = 0.0, slowdown
        functions = {name: getattr(language, name) for name in ("PRESETS", "build", "batches")}
        costly = {"loss": self.loss, "evaluate": self.evaluate, "predict": self.predict}
        self.recipe: Any = SimpleNamespace(__name__=language.__name__, **functions, **costly)

    def work(self, seconds: float) -> None:
        self.now += seconds * self.slowdown(self.now)

    def loss(self, model: Any, batch: dict) -> Any:
        self.work(STEP)
        return language.loss(model, batch)

    def evaluate(self, model: Any, batches: Any) -> dict[str, float]:
        batches = list(batches)
        self.work(EVAL_BATCH * len(batches))
        return language.evaluate(model, iter(batches))

    def predict(self, model: Any, request: dict) -> dict:
        self.work(SAMPLE)
        return {"samples": [{"text": "x"}]}

    def make_job(self, text: Path, run: Path, minutes: float, **settings: Any) -> TrainingJob:
        train = replace(TINY.train, device="cpu", dtype="float32", batch=2, min_lr=0.0, warmup=10, eval_every=50)
        budget = Budget(minutes=minutes, started_at=self.now, clock=lambda: self.now, is_forced=True)
        config = replace(TINY, data=str(text), train=train)
        job = TrainingJob(recipe=self.recipe, preset="tiny", config=config, run=RunDirectory(run), budget=budget)
        return replace(job, **settings)


@pytest.mark.parametrize(
    "slowdown",
    [
        lambda now: 1.0,
        lambda now: 3.0 if now > 12 else 1.0,
        lambda now: 5.0 if now > 24 else 1.0,
        lambda now: 0.4 if now > 10 else 1.0,
        lambda now: 4.0 if 8 < now < 20 else 1.0,
    ],
    ids=["steady", "slower", "slower at the end", "faster", "slower for a while"],
)
def test_a_machine_that_changes_its_speed_ends_on_time(text: Path, tmp_path: Path, slowdown: Callable[[float], float]):
    machine, records = Machine(slowdown), []
    model = api.train_job(machine.make_job(text, tmp_path / "run", 0.5), on_record=records.append)
    assert machine.now == pytest.approx(30, rel=0.05)
    rates = [record["lr"] for record in records]
    assert max(rates) > 0.95 * TINY.train.lr and rates.index(max(rates)) < len(rates) / 2
    assert rates[-1] == 0.0 and rates[-4] < 0.1 * max(rates), "the schedule has reached its end"
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert "val_loss" in records[-1]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["minutes"] == 0.5 and result["seconds"] == pytest.approx(30, rel=0.05)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["train"]
    assert stored["steps"] == len(records) == model.config.train.steps, "the steps that were done"
    left = [record["seconds_left"] for record in records]
    assert left == sorted(left, reverse=True) and -1 < left[-1] < 5


@pytest.mark.slow
def test_expensive_validations_are_smaller_and_rarer(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("test_timer.EVAL_BATCH", 1.0)
    machine, records = Machine(), []
    text.write_text(20 * text.read_text())
    model = api.train_job(machine.make_job(text, tmp_path / "run", 0.5), on_record=records.append)
    train, n_evals = model.config.train, sum("val_loss" in record for record in records)
    assert train.eval_batches == 1 and n_evals <= 3 and train.final_every > 1
    assert len(records) * STEP > 16, "most of the time is spent on steps"
    assert machine.now == pytest.approx(30, rel=0.05)


@pytest.mark.slow
def test_an_interrupted_run_continues_by_the_clock(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    machine, run, records = Machine(), tmp_path / "run", []

    def interrupt(record: dict) -> None:
        records.append(record)
        if machine.now > 15 and "val_loss" in record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(machine.make_job(text, run, 0.5), on_record=interrupt)
    latest = checkpoints.find_latest(RunDirectory(run).checkpoints)
    timer = checkpoints.read_timer(latest)
    assert timer is not None and latest is not None
    assert 0.3 < timer.share < 0.8 and 5 < timer.seconds_left < 20
    done, started_at, logged = int(latest.name[5:]), machine.now, len(records)
    stored = resolve_job.resolve_job("language", out=run, resume=True)
    assert stored.keeps_timer and stored.budget is None
    monkeypatch.setattr("anyformer.training.job.time.monotonic", lambda: machine.now)
    run_job(replace(stored, recipe=machine.recipe), on_record=records.append)
    assert records[logged]["step"] == done + 1 and records[logged]["lr"] == pytest.approx(
        records[done - 1]["lr"], rel=0.1
    )
    assert machine.now - started_at == pytest.approx(timer.seconds_left, abs=2) and records[-1]["lr"] == 0


@pytest.mark.slow
def test_more_minutes_for_a_finished_run(text: Path, tmp_path: Path):
    machine, run, records = Machine(), tmp_path / "run", []
    first = api.train_job(machine.make_job(text, run, 0.25)).config.train.steps
    started_at = machine.now
    job = machine.make_job(text, run, 0.5, is_resumed=True)
    api.train_job(job, on_record=records.append)
    assert machine.now - started_at == pytest.approx(30, rel=0.05)
    assert records[0]["step"] == first + 1 and records[-1]["lr"] == 0.0
    assert 0.5 * TINY.train.lr < records[0]["lr"] < TINY.train.lr and records[-1]["step"] > 2.5 * first


def test_finished_by_the_clock_is_finished_until_told_otherwise(text: Path, tmp_path: Path):
    machine, run = Machine(), tmp_path / "run"
    trained = api.train_job(machine.make_job(text, run, 0.1)).config.train
    steps, final_every = trained.steps, trained.final_every
    records: list[dict] = []
    anyformer.train("language", out=run, resume=True, progress=False, on_record=records.append)
    assert records == []
    assert resolve_job.resolve_job("language", out=run, resume=True).config.train.final_every == final_every
    anyformer.train("language", out=run, resume=True, steps=steps + 3, progress=False, on_record=records.append)
    assert [record["step"] for record in records] == [steps + 1, steps + 2, steps + 3]
    folder = checkpoints.find_latest(run / "checkpoints")
    assert folder is not None and checkpoints.read_timer(folder) is None, "it follows the number of steps now"


@pytest.mark.slow
def test_too_few_minutes_are_refused_with_enough(text: Path, tmp_path: Path):
    machine = Machine(lambda now: 20.0)
    job = machine.make_job(text, tmp_path / "run", 0.5)
    assert job.budget is not None
    honest = replace(job, budget=replace(job.budget, is_forced=False))
    message = r"0\.5 minutes are too few: \d steps will learn nothing; give at least \d+ minutes \(--minutes (\d+)\), "
    message += r"a smaller --preset or a GPU; start anyway with --yes"
    with pytest.raises(InputError, match=message) as caught:
        run_job(honest)
    assert not (tmp_path / "run").exists(), "nothing was written"
    minutes = float(str(caught.value).partition("--minutes ")[2].partition(")")[0])
    slow = Machine(lambda now: 20.0)
    enough = slow.make_job(text, tmp_path / "run", minutes)
    assert enough.budget is not None
    _, state = run_job(replace(enough, budget=replace(enough.budget, is_forced=False)))
    assert state.step >= 100
    forced = replace(job.budget, started_at=machine.now)
    _, state = run_job(replace(job, run=RunDirectory(tmp_path / "forced"), budget=forced))
    assert 1 <= state.step < 20


def test_refused_from_the_command_line(text: Path, tmp_path: Path):
    command = ("train", "language", "--data", text, "--preset", "tiny", "--minutes", 0.0001, "--device", "cpu")
    result = call(*command, "--out", tmp_path / "run")
    assert_refused(result, "0.0001 minutes are too few", "will learn nothing", "--minutes", "--yes")
    assert "trained in" in call(*command, "--out", tmp_path / "run", "--yes").ok().err
    resumed = call("train", "language", "--out", tmp_path / "run", "--resume", "--minutes", 0.01, "--yes").ok()
    assert "of the 1 s of --minutes" in resumed.err and "more steps" in resumed.err


# --- the timer alone ---


def test_the_final_evaluation_fits_into_what_is_left():
    state = TimerState(
        seconds_left=100, step_seconds=1, validation_steps=2, final_validations=5, other_steps=3, n_batches=40
    )
    now = [0.0]
    timer = Timer(state, lambda: now[0])
    for elapsed, every in ((0, 1), (87, 1), (94, 2), (98, 10), (150, 40)):
        now[0] = elapsed
        assert timer.fit_final_every(1) == every
    now[0] = 87
    assert timer.fit_final_every(4) == 4


@pytest.mark.parametrize("change", [{"share": 1.5}, {"step_seconds": -1}, {"seconds_left": float("nan")}, {"x": 1}])
def test_a_damaged_timer_is_one_line(text: Path, tmp_path: Path, change: dict):
    machine, run = Machine(), tmp_path / "run"
    api.train_job(machine.make_job(text, run, 0.05))
    folder = checkpoints.find_latest(run / "checkpoints")
    assert folder is not None
    state = json.loads((folder / "state.json").read_text())
    state["timer"] |= change
    (folder / "state.json").write_text(json.dumps(state))
    write_checksums(folder)
    with pytest.raises(InputError, match=rf"state\.json: timer: {next(iter(change))}|state\.json: timer: .*'x'"):
        run_job(resolve_job.resolve_job("language", out=run, resume=True))


def test_runs_by_steps_have_no_timer(run: Path):
    folder = checkpoints.find_latest(run / "checkpoints")
    assert folder is not None and "timer" not in json.loads((folder / "state.json").read_text())
    assert TrainState.__dataclass_fields__["timer"].default is None
