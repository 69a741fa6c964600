"""anyformer train --seeds: the same as one training for each seed, resumable, with mean and standard deviation."""

import dataclasses
import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest

from anyformer.report.progress import Progress
from anyformer.training import job as jobs
from cli_kit import SHORT, TINY, assert_refused, call, nothing_changes, read_folder, train


def call_seeds(data: Path, out: Path, *flags: object) -> Any:
    return call(*TINY, "--data", data, "--out", out, *SHORT, *flags)


def read_evidence(run: Path) -> dict[str, bytes | None]:
    """Everything but what depends on the time and the command."""
    hidden = ("timings.jsonl", "result.json", "report.html", "config.json", "SHA256SUMS")
    return {name: content for name, content in read_folder(run).items() if Path(name).name not in hidden}


def test_each_seed_is_a_training_of_its_own(text: Path, tmp_path: Path):
    result = call_seeds(text, tmp_path / "a", "--seeds", 3, "--json").ok()
    runs = [tmp_path / f"a-seed-{seed}" for seed in (1, 2, 3)]
    assert result.json["runs"] == [str(run) for run in runs]
    losses = [json.loads((run / "result.json").read_text())["val_loss"] for run in runs]
    sample = result.json["metrics"]["loss"]
    assert sample["values"] == losses and len(set(losses)) == 3
    assert (sample["mean"], sample["std"]) == (statistics.fmean(losses), statistics.stdev(losses))
    train(text, tmp_path / "single", "--seed", 2)
    assert read_evidence(runs[1]) == read_evidence(tmp_path / "single")
    (group,) = call("compare", *runs, "--json").ok().json["groups"]
    assert group["seeds"] == [1, 2, 3] and group["scores"]["loss"]["interval"] == sample["interval"]
    assert not (tmp_path / "a").exists()


def test_a_series_can_be_interrupted_and_continued(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped within the second of three; what was finished is not trained again."""
    out, update = tmp_path / "a", Progress.update

    def stop(self: Progress, record: dict) -> None:
        update(self, record)
        if record["step"] == 3 and (tmp_path / "a-seed-2" / "config.json").exists():
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", stop)
        stopped = call_seeds(text, out, "--seeds", 3)
    assert stopped.code == 1 and f"--out {out} --seeds 3 --resume" in stopped.err
    assert not (tmp_path / "a-seed-3").exists() and not (tmp_path / "a-seed-2" / "result.json").exists()
    with nothing_changes(tmp_path / "a-seed-1"):
        result = call_seeds(text, out, "--seeds", 3, "--resume").ok()
    assert "seed 1 of 3: finished already" in result.err
    lines = result.out.splitlines()
    assert lines[0].split()[:2] == ["seed", "loss"] and [line.split()[0] for line in lines[1:]] == [
        *"123",
        "mean",
        "std",
    ]
    call_seeds(text, tmp_path / "b", "--seeds", 3).ok()
    for seed in (1, 2, 3):
        assert read_evidence(tmp_path / f"a-seed-{seed}") == read_evidence(tmp_path / f"b-seed-{seed}")


def test_a_time_is_planned_once(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All seeds train the config that the first was measured for."""
    budgets, apply_budget = [], jobs.apply_budget

    def plan(job: jobs.TrainingJob) -> jobs.TrainingJob:
        if job.budget is None:
            return apply_budget(job)
        budgets.append(job.budget.minutes)
        train = dataclasses.replace(job.config.train, steps=3)
        return dataclasses.replace(job, config=dataclasses.replace(job.config, train=train))

    monkeypatch.setattr(jobs, "apply_budget", plan)
    call(*TINY, "--data", text, "--out", tmp_path / "a", "--minutes", 0.1, "--seeds", 2).ok()
    stored = [json.loads((tmp_path / f"a-seed-{seed}" / "config.json").read_text()) for seed in (1, 2)]
    assert budgets == [0.1] and [values["config"]["train"]["steps"] for values in stored] == [3, 3]
    assert [values["seed"] for values in stored] == [1, 2]


def test_the_runs_have_a_free_name(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "language-text-1-seed-1").mkdir(parents=True)
    command = (*TINY, "--data", text, "--steps", 1, "--seeds", 2, "--json")
    assert call(*command).ok().json["runs"] == [f"runs/language-text-2-seed-{seed}" for seed in (1, 2)]


def test_misuse(text: Path, tmp_path: Path):
    (tmp_path / "a-seed-2").mkdir()
    (tmp_path / "a-seed-2" / "notes.txt").write_text("mine")
    with nothing_changes(tmp_path):
        assert_refused(call_seeds(text, tmp_path / "a", "--seeds", 2), "a-seed-2 is not empty")
        assert_refused(call_seeds(text, tmp_path / "a", "--seeds", 2, "--resume"), "a-seed-2 is not empty")
        assert_refused(call_seeds(text, tmp_path / "a", "--seeds", 1), "--seeds is 1; it must be at least 2")
        assert_refused(call_seeds(text, tmp_path / "a", "--seeds", 2, "--seed", 3), "leave --seed out")
        assert_refused(call_seeds(text, tmp_path / "b", "--seeds", 2, "--train.lr", -1), "--train.lr is -1")
        result = call_seeds(text, tmp_path / "a", "--seeds", 2, "--print-config").ok()
        assert json.loads(result.out)["config"]["train"]["seed"] == 1
