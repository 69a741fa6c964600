"""Runs: resumed equals uninterrupted, however they end; what they log and keep; one process at a time."""

import json
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import anyformer
from anyformer import api
from anyformer.errors import InputError, Stopped
from anyformer.recipes import language
from anyformer.training import checkpoints
from anyformer.training.run_directory import RunDirectory, read_samples
from cli_kit import assert_refused, call

QUICK = {
    "test_resumed_equals_uninterrupted": {"1-{}", "5-{'optimizer': 'muon', 'accumulate': 2}"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


SETTINGS = {"steps": 12, "eval_every": 6, "save_every": 4, "average": 2, "device": "cpu", "dtype": "float32"}


def train(text: Path, out: Path, on_record: Any = api.ignore, **settings: Any) -> api.Model:
    """Train or continue a tiny run; it has dropout, so that resuming has to restore randomness too."""
    settings = {"data": str(text), "model": {"dropout": 0.1}, "train": SETTINGS | settings}
    return api.train("language", "tiny", out=out, resume=True, on_record=on_record, **settings)


def read_evidence(run: Path) -> dict[str, bytes]:
    """Everything that must not depend on interruptions."""
    latest = checkpoints.find_latest(run / "checkpoints")
    names = ("metrics.jsonl", "samples.txt", "config.json", "checkpoints/mean/model.safetensors")
    files = {name: (run / name).read_bytes() for name in names}
    files |= {f"last/{path.name}": path.read_bytes() for path in latest.iterdir()}
    return files | {"checkpoints": repr(sorted(path.name for path in (run / "checkpoints").iterdir())).encode()}


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (1, {}),
        (5, {"optimizer": "muon", "accumulate": 2}),
        (7, {"optimizer": "muon", "dtype": "bfloat16"}),
        (7, {"dtype": "float16"}),
        (11, {}),
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(text: Path, tmp_path: Path, stop: int, settings: dict):
    """Stopped by Ctrl-C between two checkpoints."""
    train(text, tmp_path / "uninterrupted", **settings)

    def interrupt(record: dict) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="everything is saved"):
        train(text, tmp_path / "resumed", interrupt, **settings)
    train(text, tmp_path / "resumed", **settings)
    expected, evidence = read_evidence(tmp_path / "uninterrupted"), read_evidence(tmp_path / "resumed")
    assert {name for name in expected if expected[name] != evidence[name]} == set()
    state = json.loads(expected["last/state.json"])
    assert ("scaler" in state) == (settings.get("dtype") == "float16")


@pytest.mark.slow
def test_killed_again_and_again_equals_uninterrupted(text: Path, tmp_path: Path):
    """SIGKILL a random moment after a new checkpoint: the next process continues, and takes over the lock."""

    settings = {"save_every": 2, "steps": 40}
    started_at = time.monotonic()
    train(text, tmp_path / "uninterrupted", **settings)
    seconds = time.monotonic() - started_at
    folder, rng, latest, kills = tmp_path / "killed" / "checkpoints", random.Random(0), None, 0
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                train(text, tmp_path / "killed", **settings)
            finally:
                os._exit(0)
        while checkpoints.find_latest(folder) == latest and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)  # until it has continued from the last checkpoint to the next
        latest = checkpoints.find_latest(folder)
        time.sleep(rng.uniform(0, seconds / 40))  # about a step: while it trains, samples or saves
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        kills += 1
    assert kills >= 2, "it was finished before it could be killed"
    train(text, tmp_path / "killed", **settings)
    expected, evidence = read_evidence(tmp_path / "uninterrupted"), read_evidence(tmp_path / "killed")
    assert {name for name in expected if expected[name] != evidence[name]} == set()


def test_one_process_at_a_time(text: Path, tmp_path: Path):
    """Another live process is refused, with a line that names the one that trains; a dead one's lock is taken over."""
    train(text, tmp_path / "run", steps=4)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with RunDirectory(tmp_path / "run").lock():
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    resume = ("train", "language", "--out", tmp_path / "run", "--resume", "--steps", 8)
    assert_refused(call(*resume), f"run is being trained by process {child} on host {socket.gethostname()}")
    with pytest.raises(InputError, match=f"process {child}"), RunDirectory(tmp_path / "run").lock():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / ".lock").exists(), "the dead process left its lock behind"
    call(*resume).ok()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_file_that_cannot_be_removed_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on Windows, where an open file is not removed."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "it is open")

    def fail() -> None:
        monkeypatch.setattr(Path, "unlink", refuse)
        raise KeyError

    with pytest.raises(KeyError), RunDirectory(tmp_path / "run").lock():
        fail()


def test_what_a_kill_left_is_removed(text: Path, tmp_path: Path):
    train(text, tmp_path / "run", steps=4)
    partial = tmp_path / "run" / "checkpoints" / ".step-12.99999"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    train(text, tmp_path / "run", steps=8)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert not partial.exists()


def test_best_and_last_are_kept(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.0])  # the fifth is the final validation
    monkeypatch.setattr(language, "evaluate", lambda model, batches: {"loss": next(losses)})
    model = train(text, tmp_path / "run", eval_every=3, average=1)
    names = [path.name for path in checkpoints.list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step-6", "step-12"] and model.step == 6
    assert api.load(tmp_path / "run" / "checkpoints" / "step-12").step == 12


def test_logs_describe_the_run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    records: list[dict] = []
    model = anyformer.train("language", "tiny", data=str(text), train=SETTINGS, on_record=records.append)
    run = tmp_path / "runs" / "language-text-1"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [record["step"] for record in records] == list(range(1, 13))
    assert lines[-1]["tokens"] == 12 * 8 * 32
    assert [line["step"] for line in lines if "val_loss" in line] == [6, 12]
    assert [step for step, _ in read_samples(run / "samples.txt")] == [6, 12]
    stored = json.loads((run / "config.json").read_text())
    assert stored["recipe"] == "language" and stored["versions"].keys() == {"python", "anyformer", "torch", "numpy"}
    assert "<svg" in (run / "report.html").read_text()
    loaded = anyformer.load("runs/language-text-1")
    assert loaded.evaluate() == model.evaluate()
    assert loaded.generate("the", tokens=5, temperature=0) == model.generate("the", tokens=5, temperature=0)


def test_a_new_run_in_a_used_directory_is_refused_before_its_size_is_chosen(text: Path, tmp_path: Path):
    """With --minutes the message was that of another model."""
    train(text, tmp_path / "run")
    command = ("train", "language", "--data", text, "--out", tmp_path / "run", "--minutes", 1, "--yes")
    assert_refused(call(*command), "run already holds a run: continue it with --resume, or choose another --out")


@pytest.mark.slow
def test_a_best_checkpoint_that_is_removed_while_training_is_said(text: Path, tmp_path: Path, capsys: Any):
    run = tmp_path / "run"

    def remove(record: dict[str, Any]) -> None:
        best = run / "checkpoints" / "step-1"
        best.rename(tmp_path / "elsewhere") if best.is_dir() else None

    train(text, run, remove, steps=6, eval_every=1, save_every=1, lr=10.0)
    assert "the best checkpoint, " in capsys.readouterr().err
