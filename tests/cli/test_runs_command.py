"""anyformer runs: the table of runs, and removing, pruning and opening them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anyformer.cli import runs as runs_command
from anyformer.errors import InputError
from anyformer.report import runs
from anyformer.training import checkpoints
from anyformer.training.run_directory import RunDirectory
from cli_kit import assert_refused, call, nothing_changes


@pytest.fixture
def folder(run_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/old and runs/new/inner: the same finished run twice, changed one after the other."""
    for i, name in enumerate(("old", "new/inner")):
        shutil.copytree(run_once, tmp_path / "runs" / name)
        for path in (tmp_path / "runs" / name).rglob("*"):
            os.utime(path, (1e9 + 1000 * i, 1e9 + 1000 * i))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@contextmanager
def lock_elsewhere(run: Path) -> Iterator[int]:
    """Let another live process hold the lock of a run; yields its id."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with RunDirectory(run).lock():
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)


def test_the_table_says_what_each_run_is(folder: Path):
    listed = call("runs", "--json").ok().json["runs"]
    assert [row["name"] for row in listed] == ["new/inner", "old"], "the newest first, also in folders below"
    row, result = listed[1], json.loads((folder / "old" / "result.json").read_text())
    assert (row["recipe"], row["preset"], row["step"], row["steps"]) == ("language", "tiny", 4, 4)
    assert (row["metric"], row["score"], row["state"], row["holder"]) == ("loss", result["val_loss"], "finished", None)
    assert row["baseline"]["value"] == min(result["baselines"]["loss"].values())
    assert row["size"] == sum(path.stat().st_size for path in (folder / "old").rglob("*") if path.is_file())
    assert row["changed_at"] == "2001-09-09T01:46:40+00:00" and row["minutes"] >= result["seconds"] / 60 - 0.01
    heading, newest, oldest = call("runs").ok().out.splitlines()
    assert heading.split()[0] == "run" and newest.split()[0] == "new/inner"
    assert "language · tiny" in oldest and "text.txt" in oldest and f"loss {result['val_loss']:.4g}" in oldest
    assert oldest.endswith("finished")


def test_a_table_needs_no_torch(folder: Path):
    code = "import sys; from anyformer.cli import run; run(['runs']); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "False"


def test_states(folder: Path):
    """Running while a process holds the lock, whatever a dead one left; interrupted without a result of the end."""
    (folder / "old" / ".lock").write_text("process 1 on host elsewhere\n")
    assert runs.summarize_run(RunDirectory(folder / "old")).state == "finished", "nobody holds the lock"
    with lock_elsewhere(folder / "old") as child:
        summary = runs.summarize_run(RunDirectory(folder / "old"))
        assert (summary.state, summary.holder.pid) == ("running", child)
        assert f"running: process {child} on host {os.uname().nodename}" in call("runs").ok().out
    with open(folder / "old" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    summary = runs.summarize_run(RunDirectory(folder / "old"))
    assert (summary.state, summary.step, summary.metric) == ("interrupted", 5, "loss")
    best = checkpoints.read_state(checkpoints.find_latest(folder / "old" / "checkpoints"))["best"]["val_loss"]
    assert summary.score == best, "the lowest validation loss so far"
    assert "5/4" in call("runs").ok().out and "so far" in call("runs").ok().out


def test_the_time_of_a_resumed_run_counts_every_process(tmp_path: Path):
    log = tmp_path / "timings.jsonl"
    log.write_text("".join(f'{{"step": {i}, "seconds": {s}, "x": 1}}\n' for i, s in enumerate([1.5, 30, 2, 12.5])))
    assert runs.read_seconds(log) == 42.5 and runs.read_seconds(tmp_path / "none") == 0


def test_the_score_is_the_metric_that_tells_most():
    result = {"val_loss": 0.3, "val_accuracy": 0.9, "val_rmse": 2.0}
    baselines = {"loss": {"even": 0.7}, "accuracy": {"majority": 0.5, "linear": 0.8}}
    assert runs.choose_score(result | {"baselines": baselines}) == ("accuracy", 0.9, ("linear", 0.8))
    assert runs.choose_score(result | {"baselines": {"rmse": {"mean": 3.0, "last": 2.5}}})[2] == ("last", 2.5)
    assert runs.choose_score(result) == ("loss", 0.3, None) and runs.choose_score({})[1] is None


def test_what_is_no_run_is_left_out(folder: Path):
    for name, text in {"public": '{"model_type": "gpt2"}', "damaged": "{", "list": "[]"}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    assert len(call("runs", "--json").ok().json["runs"]) == 2
    assert "no runs below" in call("runs", folder / "public").ok().out
    assert_refused(call("runs", folder / "missing"), "there is no folder", "missing")


def test_malformed_files_are_left_out(folder: Path):
    """The table, the pruning and the comparison go on with what can be read."""
    old = folder / "old"
    (old / "result.json").write_text('{"step": 4, "val_loss": "x", "seconds": [], "baselines": {"loss": [1]}}')
    (old / "timings.jsonl").write_bytes(b'\xff\n{"step": 1, "seconds": "x"}\n{"seconds": 6')
    setup = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(setup | {"config": {"data": 7, "train": [1]}}))
    summary = runs.summarize_run(RunDirectory(old))
    assert (summary.score, summary.baseline, summary.steps, summary.data) == (None, None, None, "7")
    assert len(call("runs").ok().out.splitlines()) == 3
    latest = checkpoints.find_latest(old / "checkpoints")
    (latest / "state.json").write_text("{")
    assert "left as it is" in call("runs", "prune").ok().err
    with open(old / "metrics.jsonl", "ab") as file:
        file.write(b'\xfe\n[1]\n{"step": Infinity}\n')
    assert runs.summarize_run(RunDirectory(old)).step == 4
    call("compare", "old", "new/inner", "--out", folder / "page.html").ok()


def test_removing_runs(folder: Path):
    with nothing_changes(folder):
        assert_refused(call("runs", "rm"), "needs the name of a run")
        assert_refused(call("runs", "rm", "olt"), "there is no run 'olt'", "did you mean 'old'?")
        assert_refused(call("runs", "rm", "old"), "Remove 1 run", "add --yes")
        assert_refused(call("runs", "rm", "old", "new", "--yes"), "there is no run 'new'")
        assert "would free" in call("runs", "rm", "old", "--dry-run").ok().out
    facts = call("runs", "rm", "old", folder / "new" / "inner", "--yes", "--json").ok().json
    assert facts["bytes"] > 100_000 and list(folder.rglob("*")) == [folder / "new"]


def test_a_run_in_use_is_not_removed(folder: Path):
    with lock_elsewhere(folder / "old") as child, nothing_changes(folder):
        refusal = call("runs", "rm", "new/inner", "old", "--yes")
        assert_refused(refusal, f"old is being trained by process {child} on host", "stop it first")
        with pytest.raises(InputError, match=f"process {child}"):
            runs_command.remove_run(RunDirectory(folder / "old"))
        result = call("runs", "prune", "old", "--json").ok()
        assert result.json == {"runs": {}, "bytes": 0, "dry_run": False} and f"process {child}" in result.err


def test_removal_goes_no_further_than_the_run(folder: Path):
    shutil.copytree(folder / "new" / "inner", folder / "old" / "nested")
    (folder / "link").symlink_to(folder / "new" / "inner")
    assert_refused(call("runs", "rm", "old", "--yes"), "holds another run", "nested")
    assert_refused(call("runs", "rm", "link", "--yes"), "is a link to", "inner")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2)])
def test_removal_asks(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int):
    monkeypatch.setattr("builtins.input", lambda: answer)
    monkeypatch.setattr(runs_command, "is_terminal", lambda: True)
    assert call("runs", "rm", "old").code == code
    assert (folder / "old").exists() == bool(code)


def test_pruning_keeps_the_best_and_the_last(folder: Path):
    """Others go, and what a kill left; the answers and the continuation of the run stay the same."""
    kept = checkpoints.list_checkpoints(folder / "old" / "checkpoints")
    for name in ("step-1", "step-3", ".step-9.123"):
        shutil.copytree(kept[-1], folder / "old" / "checkpoints" / name)
    shutil.copytree(kept[-1], folder / "old" / "checkpoints" / checkpoints.AVERAGE_DIR)
    average = folder / "old" / "checkpoints" / checkpoints.AVERAGE_DIR / "state.json"
    average.write_text(json.dumps(json.loads(average.read_text()) | {"step": 3}))
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (kept[-1], average.parent)]
    with nothing_changes(folder):
        planned = call("runs", "prune", "--dry-run", "--json").ok().json
    facts = call("runs", "prune", "--json").ok().json
    assert facts["runs"] == planned["runs"] == {"new/inner": 0, "old": 3 * sizes[0] + sizes[1]}
    assert sorted((folder / "old" / "checkpoints").iterdir()) == kept
    assert call("runs", "prune").ok().out == "freed 0 B\n"


def test_pruning_keeps_what_an_unfinished_run_will_average(folder: Path):
    path = folder / "old" / "config.json"
    setup = json.loads(path.read_text())
    setup["config"]["train"] |= {"average": 2, "steps": 8}
    path.write_text(json.dumps(setup))
    (folder / "old" / "result.json").unlink()
    latest = checkpoints.find_latest(folder / "old" / "checkpoints")
    for name in ("step-1", "step-3"):
        shutil.copytree(latest, folder / "old" / "checkpoints" / name)
    call("runs", "prune", "old").ok()
    names = [path.name for path in checkpoints.list_checkpoints(folder / "old" / "checkpoints")]
    assert names[-2:] == ["step-3", "step-4"] and "step-1" not in names


def test_opening_the_report(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    (folder / "old" / "report.html").unlink()
    assert call("runs", "open", "old").ok().out == "report  runs/old/report.html\n" and not opened
    assert "<svg" in (folder / "old" / "report.html").read_text(), "a missing report is written"
    monkeypatch.setenv("DISPLAY", ":0")
    assert call("runs", "open", "old", "--json").ok().json["opened"] is True
    assert opened == [(folder / "old" / "report.html").as_uri()]
    assert_refused(call("runs", "open"), "the name of one run")
