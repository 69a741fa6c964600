"""anyformer sweep: successive halving around the default config, resumable, compared on data that did not choose."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from anyformer import api, load, recipe_loading
from anyformer.errors import TrainingError
from anyformer.parsing import to_json
from anyformer.search_space import SearchChoice, SearchRange
from anyformer.sweep import engine, held_out, sampler, schedule, space
from anyformer.sweep.state import Result, Rung, SweepState, Trial, read_state
from anyformer.training.run_directory import RunDirectory
from cli_kit import assert_refused, call, nothing_changes, read_folder

QUICK = {
    "test_a_killed_sweep_continues_exactly": {"kill_at1"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


SweepOnce = tuple[Path, Path, dict[str, Any]]
SWEEP = ("sweep", "language", "--preset", "tiny", "--device", "cpu", "--dtype", "float32")
STEPS = ("--steps", 28, "--trials", 3)  # 3 x 2 steps, then 2 x 4, then 14 of the best


def sweep(data: Path, out: Path, *flags: object) -> Any:
    return call(*SWEEP, "--data", data, "--out", out, *flags)


def read_evidence(folder: Path) -> dict[str, bytes | None]:
    """Everything but what depends on the time and the command."""
    hidden = ("timings.jsonl", "result.json", "report.html", "config.json", "SHA256SUMS", "sweep.json")
    return {name: content for name, content in read_folder(folder).items() if Path(name).name not in hidden}


def read_results(folder: Path) -> dict[str, Any]:
    """The trials of a sweep, and what came of it."""
    state = json.loads((folder / "sweep.json").read_text())
    return {name: state[name] for name in ("trials", "rungs")} | {"held_out": state["final"]["held_out"]}


@pytest.fixture(scope="module")
def sweep_once(tmp_path_factory: pytest.TempPathFactory) -> SweepOnce:
    """A text, the folder of a finished sweep, and what was printed."""
    folder = tmp_path_factory.mktemp("sweep")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    return text, folder / "sweep", sweep(text, folder / "sweep", *STEPS, "--json").ok().json


# --- what it leaves ---


def test_trials_are_runs_and_the_best_is_trained_anew(sweep_once: SweepOnce):
    _, folder, facts = sweep_once
    assert [trial["number"] for trial in facts["trials"]] == [0, 1, 2]
    assert [len(trial["losses"]) for trial in facts["trials"]].count(2) == 2, "one goes on, and the default"
    assert len(facts["trials"][0]["losses"]) == 2
    rows = call("runs", folder, "--json").ok().json["runs"]
    assert {row["name"] for row in rows} == {"best", *(f"trial-{i:03d}" for i in range(3))}
    assert {row["state"] for row in rows} == {"finished"}
    assert sum(row["steps"] for row in rows) == 28 == {row["name"]: row["steps"] for row in rows}["best"] + 14
    finalists = {number: trial["losses"][1] for number, trial in enumerate(facts["trials"]) if len(trial["losses"]) > 1}
    chosen = min(finalists, key=lambda number: finalists[number])
    losses = {name: metrics["loss"] for name, metrics in facts["held_out"].items() if name != "data"}
    assert set(losses) == {"best", "trial-000", f"trial-{chosen:03d}"}
    is_better = losses[f"trial-{chosen:03d}"] < losses["trial-000"]
    assert facts["best"]["trial"] == (chosen if is_better else 0)
    assert call("sample", folder / "best", "--tokens", 3).ok().out
    call("compare", folder / "best", folder / "trial-000").ok()


def test_trial_0_is_the_default_config(sweep_once: SweepOnce):
    _, folder, facts = sweep_once
    default = recipe_loading.load_recipe("language").PRESETS["tiny"]
    stored = json.loads((folder / "trial-000" / "config.json").read_text())["config"]
    changed = {"steps", "eval_every", "warmup", "device", "dtype"}
    assert {k: v for k, v in stored["train"].items() if k not in changed} == {
        k: v for k, v in to_json(default)["train"].items() if k not in changed
    }
    assert stored["model"] == to_json(default)["model"]
    assert facts["trials"][0]["values"]["train.lr"] == default.train.lr


def test_the_command_reproduces_the_best_run(sweep_once: SweepOnce, tmp_path: Path):
    _, folder, facts = sweep_once
    words = shlex.split(facts["command"])
    assert words[-2:] == ["--out", str(folder / "best-again")], "best is there already"
    call(*words[1:-1], tmp_path / "again").ok()
    assert read_evidence(tmp_path / "again") == read_evidence(folder / "best")
    assert json.loads((folder / "best" / "config.json").read_text())["command"] == facts["command"]


def test_the_comparison_is_on_data_that_did_not_choose(sweep_once: SweepOnce):
    """The losses are those of the two halves of the validation split, recomputed here batch by batch."""
    _, folder, facts = sweep_once
    model = load(folder / "trial-000", "cpu")
    config = recipe_loading.parse_config(model.recipe, json.loads((folder / "sweep.json").read_text())["config"], "")
    choosing, comparing = held_out.divide(model.recipe, config)
    batches = [batch for batch, _ in model.recipe.batches(choosing.config, "val", None)]
    assert len(batches) >= held_out.MIN_BATCHES
    halves = [batches[0 : 2 * config.train.eval_batches : 2], batches[1::2]]
    for part, expected in zip((choosing, comparing), halves):
        read = list(part.read(model.recipe))
        assert [b["ids"].tolist() for b in read] == [b["ids"].tolist() for b in expected[: len(read)]] and read
    loss = comparing.evaluate(model.recipe, model.module)["loss"]
    assert facts["held_out"]["trial-000"]["loss"] == loss
    assert facts["trials"][0]["losses"][-1] == choosing.evaluate(model.recipe, model.module)["loss"] != loss


# --- interrupted and continued ---


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [("trial-000", 4), ("best", 9)])
def test_an_interrupted_sweep_continues_exactly(
    sweep_once: SweepOnce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: tuple[str, int],
):
    """Stopped by Ctrl-C in the second rung, and while the best is trained."""
    text, folder, _ = sweep_once
    train_job = api.train_job

    def train_and_stop(job: Any, *_: Any, **__: Any) -> Any:
        def stop(record: dict[str, Any]) -> None:
            if (job.run.path.name, record["step"]) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        return train_job(job, on_record=stop)

    with monkeypatch.context() as patch:
        patch.setattr(api, "train_job", train_and_stop)
        stopped = sweep(text, tmp_path / "sweep", *STEPS)
    assert stopped.code == 1 and f"--out {tmp_path / 'sweep'} --resume" in stopped.err
    sweep(text, tmp_path / "sweep", "--resume").ok()
    assert read_results(tmp_path / "sweep") == read_results(folder)
    assert read_evidence(tmp_path / "sweep") == read_evidence(folder)
    with nothing_changes(tmp_path / "sweep", but=lambda name: name in ("sweep.json",)):
        sweep(text, tmp_path / "sweep", "--resume").ok()


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [("trial-001", 1), ("trial-000", 4)])
def test_a_killed_sweep_continues_exactly(sweep_once: SweepOnce, tmp_path: Path, kill_at: tuple[str, int]):
    """SIGKILL: no handler runs, nothing is saved at the end."""
    text, folder, _ = sweep_once
    if (child := os.fork()) == 0:
        train_job = api.train_job

        def train_and_die(job: Any, *_: Any, **__: Any) -> Any:
            def die(record: dict[str, Any]) -> None:
                if (job.run.path.name, record["step"]) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            return train_job(job, on_record=die)

        try:
            api.train_job = train_and_die
            sweep(text, tmp_path / "sweep", *STEPS)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    sweep(text, tmp_path / "sweep", "--resume").ok()
    assert read_results(tmp_path / "sweep") == read_results(folder)
    assert read_evidence(tmp_path / "sweep") == read_evidence(folder)


def test_the_default_config_is_trained_for_the_total(sweep_once: SweepOnce, tmp_path: Path):
    text, folder, _ = sweep_once
    shutil.copytree(folder, tmp_path / "sweep")
    result = sweep(text, tmp_path / "sweep", "--resume", "--check").ok()
    assert "at equal total, 28 steps, the sweep" in result.out
    stored = json.loads((tmp_path / "sweep" / "default" / "config.json").read_text())
    assert stored["config"]["train"]["steps"] == 28


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held_out_losses", "winner", "run", "says"),
    [
        ((0.7, 0.8, 0.6, 0.65), 1, "best", ("trial-001 beats the default", "the sweep beats the default")),
        ((0.7, 0.8, 0.6, 0.6), 0, "default", ("trial-001 beats the default", "does not beat the default config: loss")),
        ((0.8, 0.8, 0.6, 0.5), 0, "default", ("trial-001 does not beat", "best is the default config")),
    ],
)
def test_the_default_config_is_kept_where_nothing_beats_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out_losses: tuple[float, ...], winner: int,
    run: str, says: tuple[str, ...],
):  # fmt: skip
    """Trial 1 is best on the part that chooses. On the other: the losses of trial 1, trial 0, best and default."""
    losses = {0: iter((0.5, 0.4, 0.6, 0.5, 0.3)), 1: iter(held_out_losses)}
    monkeypatch.setattr(held_out.EvalPart, "evaluate", lambda part, *_: {"loss": next(losses[part.start])})
    result = sweep(text, tmp_path / "sweep", *STEPS, "--check").ok()
    folder, state = tmp_path / "sweep", read_state(tmp_path / "sweep")
    assert all(word in result.out for word in says)
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line.startswith(("best  ", "reproduce")))
    assert lines["best"] == str(folder / run) and lines["reproduce"].endswith(f"--out {folder / f'{run}-again'}")
    rates = [json.loads((folder / name / "config.json").read_text())["config"]["train"]["lr"] for name in ("best", run)]
    first = state.trials[1 if held_out_losses[0] < held_out_losses[1] else 0]
    assert rates == [first.values["train.lr"], state.trials[winner].values["train.lr"]]


def test_the_default_config_wins_ties():
    results = (Result(amount=1, step=1, loss=0.5),)
    trials = tuple(Trial(number=number, values={}, results=results) for number in range(3))
    state = SweepState(
        recipe="", preset="", config={}, unit="steps", total=1, n_trials=3, sampler="random", fixed=(), vary_size=False,
        rungs=(Rung(amount=1, trials=(2, 1, 0)),), trials=trials,
    )  # fmt: skip
    assert state.rank(0) == [0, 1, 2]


# --- the clock ---


@pytest.mark.slow
def test_a_total_time_is_divided(text: Path, tmp_path: Path):
    """By a clock that the test turns: each training takes exactly its budget, each evaluation a second."""
    flags = ("--minutes", 4, "--trials", 5, "--json")
    with pytest.MonkeyPatch.context() as patch:
        now, budgets = 1000.0, []

        def train_job(job: Any, on_record: Any) -> Any:
            nonlocal now
            seconds = job.budget.minutes * 60
            budgets.append((job.run.path.name, seconds))
            now += seconds
            steps = len(budgets)
            train = dataclasses.replace(job.config.train, steps=steps, warmup=0)
            short = dataclasses.replace(job, budget=None, config=dataclasses.replace(job.config, train=train))
            return original(short)

        def evaluate(self: Any, recipe: Any, model: Any) -> dict[str, float]:
            nonlocal now
            now += 1
            return {"loss": 1.0 / now}

        original = api.train_job
        patch.setattr(engine.api, "train_job", train_job)
        patch.setattr(held_out.EvalPart, "evaluate", evaluate)
        patch.setattr(engine.time, "monotonic", lambda: now)
        facts = sweep(text, tmp_path / "sweep", *flags).ok().json
    total = sum(seconds for _, seconds in budgets) + len(budgets) + 2
    assert 0.95 * 240 < total <= 240 and facts["seconds"] <= 240
    rungs = [seconds for name, seconds in budgets if name != "best"]
    assert len(rungs) == 5 + 2 and len({round(s, 6) for s in rungs[:5]}) == 1, "a rung has one budget"
    assert rungs[5] == rungs[6] > 1.5 * rungs[0]
    assert 0.4 * 240 < budgets[-1][1] < 0.55 * 240 and budgets[-1][0] == "best"
    assert {"train.batch", "model.dim", "model.n_layer"} <= set(facts["trials"][0]["values"])


def test_trials_that_take_too_long_are_left_out(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By a clock that the test turns: each training takes 70 seconds more than planned."""
    now, original = 1000.0, api.train_job

    def train_job(job: Any, on_record: Any) -> Any:
        nonlocal now
        now += job.budget.minutes * 60 + (70 if job.run.path.name != "best" else 0)
        train = dataclasses.replace(job.config.train, steps=1, warmup=0)
        return original(dataclasses.replace(job, budget=None, config=dataclasses.replace(job.config, train=train)))

    monkeypatch.setattr(engine.api, "train_job", train_job)
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)
    result = sweep(text, tmp_path / "sweep", "--minutes", 4, "--trials", 5).ok()
    assert "the time allows 1 of 5 trials" in result.err
    assert "the time allowed no other config: best is the default config" in result.out
    state = read_state(tmp_path / "sweep")
    assert [trial.number for trial in state.trials] == [0] and state.seconds <= 240
    assert f"--minutes {state.final['amount'] / 60:.4g} " in state.final["commands"]["best"]


@pytest.mark.slow
def test_a_sweep_by_the_clock_continues(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped within a trial, whose training goes on with the time that it had left. How exactly a run ends on time is
    tested with --minutes of train."""
    train_job, jobs = api.train_job, []

    def stop(job: Any, on_record: Any) -> Any:
        jobs.append(job)
        number = len(jobs)

        def interrupt(record: dict[str, Any]) -> None:
            if number == 2 and record["step"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return train_job(job, on_record=interrupt)

    monkeypatch.setattr(engine.api, "train_job", stop)
    monkeypatch.setattr(engine, "MIN_FIRST", {"seconds": 1.5})  # several steps, on any machine
    monkeypatch.setattr(engine.Sweep, "is_late", lambda *_: False)
    flags = ("--minutes", 0.1, "--trials", 2, "--train.save-every", 1)
    assert sweep(text, tmp_path / "sweep", *flags).code == 1
    facts = sweep(text, tmp_path / "sweep", "--resume", "--json").ok().json
    names = [job.run.path.name for job in jobs]
    assert names[:3] == ["trial-000", "trial-001", "trial-001"] and names[-1] == "best"
    assert jobs[1].budget is not None and jobs[2].budget is None and jobs[2].timer.step_seconds > 0
    assert len(facts["trials"]) == 2 and facts["best"]["unit"] == "seconds" and "--minutes" in facts["command"]
    assert math.isfinite(facts["held_out"]["best"]["loss"])


# --- which configs ---


def test_the_space_of_every_recipe_has_valid_configs():
    for name in recipe_loading.list_recipes():
        recipe = recipe_loading.load_recipe(name)
        config = recipe_loading.get_preset(recipe)
        options = space.build_space(recipe, config, (), vary_size=True, vary_batch=True)
        assert {"train.lr", "train.weight_decay", "train.batch"} <= set(options), name
        default = space.read_values(config, options)
        assert space.apply_values(recipe, config, default) == config
        for values in space.draw_values(options, 3, 0):
            other = space.apply_values(recipe, config, values)
            assert other.train.lr == values["train.lr"] and other != config


def test_the_space_is_what_the_user_leaves_free():
    recipe = recipe_loading.load_recipe("translation")
    config = recipe.PRESETS["tiny"]
    options = space.build_space(recipe, config, ("train.lr", "encoder.dim"), vary_size=True, vary_batch=False)
    assert set(options) == {"train.weight_decay", "encoder.dropout,decoder.dropout", "encoder.n_layer,decoder.n_layer"}
    changed = space.apply_values(recipe, config, {"encoder.dropout,decoder.dropout": 0.2})
    assert changed.encoder.dropout == changed.decoder.dropout == 0.2
    multimodal = recipe_loading.load_recipe("multimodal")
    options = space.build_space(multimodal, multimodal.PRESETS["tiny"], (), vary_size=False, vary_batch=False)
    assert {"field_dropout", "noise"} <= set(options), "the recipe's own"


def test_draws_cover_a_range_evenly():
    options = {"a": SearchRange(1e-4, 1e-2), "b": SearchChoice((0, 1, 2))}
    drawn = space.draw_values(options, 9, seed=3)
    exponents = sorted(math.log10(values["a"]) for values in drawn)
    assert all(abs(e - (-4 + 2 * (i + 0.5) / 9)) <= 1 / 9 + 0.01 for i, e in enumerate(exponents))
    assert sorted(values["b"] for values in drawn) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert drawn == space.draw_values(options, 9, seed=3) != space.draw_values(options, 9, seed=4)
    with pytest.raises(ValueError, match="above 0"):
        SearchRange(0, 1)


@pytest.mark.parametrize("trials", range(2, 28))
def test_rungs_are_thinned_and_fit_the_search(trials: int):
    sizes = schedule.count_survivors(trials)
    assert sizes[0] == trials and sizes[-1] >= 2 and all(b <= a // 3 + 1 or b == 2 for a, b in pairwise(sizes))
    cost = sum(size * schedule.grow(rung) for rung, size in enumerate(sizes))
    assert schedule.count_units(trials) == cost
    lengths = [sum(map(schedule.grow, range(rung + 1))) for rung in range(len(sizes))]
    assert lengths == [3**rung for rung in range(len(sizes))]


def test_a_diverging_trial_is_left_out(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train_job = api.train_job

    def diverge(job: Any, on_record: Any) -> Any:
        if job.run.path.name == "trial-001":
            raise TrainingError("the loss is nan")
        return train_job(job)

    monkeypatch.setattr(engine.api, "train_job", diverge)
    result = sweep(text, tmp_path / "sweep", "--steps", 12, "--trials", 2).ok()
    assert "cannot be trained: the loss is nan" in result.err and "failed" in result.out
    assert read_state(tmp_path / "sweep").trials[1].error == "the loss is nan"


def test_a_test_split_compares_where_there_is_one():
    recipe = recipe_loading.load_recipe("classify")
    choosing, comparing = held_out.divide(recipe, recipe.PRESETS["tiny"])
    assert (choosing.split, comparing.split) == ("val", "test") and "test split" in comparing.about


# --- Optuna ---


def test_without_optuna_there_is_one_line(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert_refused(sweep(text, tmp_path / "s", *STEPS, "--sampler", "tpe"), "needs Optuna", "anyformer[sweep]")
    assert not (tmp_path / "s").exists()


def test_tpe_learns_from_earlier_trials_and_continues_exactly(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'anyformer[sweep]'")
    monkeypatch.setattr(sampler, "MIN_STARTUP", 2)
    flags = ("--steps", 24, "--trials", 4, "--sampler", "tpe")
    first = sweep(text, tmp_path / "a", *flags, "--json").ok().json
    train_job = api.train_job

    def stop_before(job: Any, on_record: Any) -> Any:
        if job.run.path.name == "trial-003":
            raise KeyboardInterrupt
        return train_job(job)

    with monkeypatch.context() as patch:
        patch.setattr(engine.api, "train_job", stop_before)
        assert sweep(text, tmp_path / "b", *flags).code == 1
    sweep(text, tmp_path / "b", "--resume").ok()
    assert read_results(tmp_path / "a") == read_results(tmp_path / "b")
    state = read_state(tmp_path / "a")
    options = {name: SearchRange(1e-4, 1e-2) for name in ("x", "y")}
    trials = [
        Trial(number=i, values={"x": x, "y": 1e-3}, results=(Result(amount=1, step=1, loss=abs(math.log(x / 2e-4))),))
        for i, x in enumerate((1e-4, 2e-4, 3e-4, 1e-3, 3e-3, 8e-3, 9e-3, 1e-2) * 2)
    ]
    drawn = [sampler.suggest_values(options, trials, 16, seed)["x"] for seed in range(9)]
    assert sorted(drawn)[4] < 1e-3, "near the best"
    assert len(first["trials"]) == len(state.trials) == 4


# --- misuse ---


def test_misuse(sweep_once: SweepOnce, tmp_path: Path):
    text, folder, _ = sweep_once
    with nothing_changes(folder), nothing_changes(tmp_path):
        assert_refused(call("sweep", "--minutes", 1), "sweep needs data or a recipe first")
        assert_refused(sweep(text, tmp_path / "s"), "needs --minutes", "or --steps")
        assert_refused(sweep(text, tmp_path / "s", "--minutes", 1, "--steps", 3), "give one of them")
        assert_refused(sweep(text, tmp_path / "s", "--minutes", 0), "--minutes is 0.0; it must be above 0")
        assert_refused(sweep(text, tmp_path / "s", "--minutes", "nan"), "--minutes is nan")
        assert_refused(sweep(text, tmp_path / "s", "--minutes", 0.01), "--minutes 0.01 is too little", "give --minutes")
        assert_refused(sweep(text, tmp_path / "s", "--steps", 9, "--trials", 9), "--steps 9 is too little", "--steps")
        assert_refused(sweep(text, tmp_path / "s", "--steps", 99, "--trials", 1), "--trials is 1; it must be at least")
        assert_refused(sweep(text, tmp_path / "s", *STEPS, "--train.steps", 3), "--train.steps is chosen")
        assert_refused(sweep(text, tmp_path / "s", *STEPS, "--train.lr", -1), "--train.lr is -1")
        assert_refused(sweep(text, tmp_path / "s", "--resume"), "needs --minutes")
        assert_refused(call(*SWEEP, "--resume"), "--resume needs --out")
        assert_refused(sweep(text, folder, *STEPS), "already holds a sweep", "--resume")
        assert_refused(sweep(text, folder, "--resume", "--steps", 50), "was begun with --steps 28, not 50")
        assert_refused(sweep(text, folder, "--resume", "--minutes", 50), "was begun without --minutes")
        assert_refused(sweep(text, folder, "--resume", "--model.dim", 64), "was begun with another config")
        assert_refused(call("sweep", "masked", "--out", folder, "--resume"), "is a sweep of recipe 'language'")
        assert_refused(call("sweep", "speach", "--minutes", 1), "there is no recipe 'speach'")


def test_a_folder_has_one_process(sweep_once: SweepOnce):
    text, folder, _ = sweep_once
    with RunDirectory(folder).lock(), nothing_changes(folder):
        assert_refused(sweep(text, folder, "--resume"), f"{folder} is being trained by process {os.getpid()}")


def test_a_damaged_state_is_refused(sweep_once: SweepOnce, tmp_path: Path):
    text, _, _ = sweep_once
    for content in ("{", "[]", '{"recipe": 3}'):
        (tmp_path / "sweep.json").write_text(content)
        assert_refused(sweep(text, tmp_path, "--resume"), "sweep.json")
