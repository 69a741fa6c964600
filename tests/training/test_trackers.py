"""Trackers: what they get, read back from each that is installed; hooks; what is unknown, missing or fails."""

import importlib.util
import json
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import anyformer
from anyformer.errors import InputError
from anyformer.training import trackers
from anyformer.training.trackers import TrackedRun, check_trackers, select_numbers
from cli_kit import SHORT, TINY, assert_refused, call

SETTINGS = {"steps": 4, "eval_every": 2, "save_every": 2, "device": "cpu", "dtype": "float32"}


def train(text: Path, out: Path, **options: Any) -> anyformer.Model:
    settings = SETTINGS | {"steps": options.pop("steps", 4)}
    return anyformer.train("language", "tiny", data=str(text), train=settings, out=out, progress=False, **options)


def read_losses(run: Path) -> dict[str, dict[int, float]]:
    """The losses that the run directory has, by name and step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "val_loss")
    return {name: {record["step"]: record[name] for record in records if name in record} for name in names}


def read_final(run: Path) -> float:
    return json.loads((run / "result.json").read_text())["val_loss"]


def require(name: str) -> Any:
    """The package of a tracker; skips where it is not installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'anyformer[{name}]'")


# --- the protocol ---


class ListTracker:
    """Keeps what it gets."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.values, self.end = run, {}, None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        print("chatter of a tracker")
        self.values[step] = values

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        self.end = (summary, is_complete)


@pytest.fixture
def open_trackers(monkeypatch: pytest.MonkeyPatch) -> list[ListTracker]:
    """The trackers that are opened in place of "tensorboard"."""
    open_trackers: list[ListTracker] = []
    monkeypatch.setitem(
        trackers.TRACKERS, "tensorboard", lambda run: open_trackers.append(ListTracker(run)) or open_trackers[-1]
    )
    monkeypatch.setattr("anyformer.resolve_job.check_trackers", tuple)
    return open_trackers


def test_a_tracker_gets_every_record_and_the_result(text: Path, tmp_path: Path, open_trackers: list[ListTracker]):
    train(text, tmp_path / "run", track=["tensorboard"])
    tracker = open_trackers[0]
    losses = read_losses(tmp_path / "run")
    assert tracker.values.keys() == {1, 2, 3, 4}
    assert {step: values["loss"] for step, values in tracker.values.items()} == losses["loss"]
    assert tracker.values[4]["val_loss"] == losses["val_loss"][4] and "lr" in tracker.values[1]
    assert tracker.end[1] is True and tracker.end[0]["val_loss"] == read_final(tmp_path / "run")
    assert (tracker.run.path, tracker.run.step) == (tmp_path / "run", 0)
    assert tracker.run.config["recipe"] == "language" and tracker.run.config["config"]["train"]["steps"] == 4
    flags = ("--resume", "--steps", 6, "--track", "tensorboard", "--json")
    result = call(*TINY[:2], "--out", tmp_path / "run", *flags).ok()
    assert result.json["step"] == 6 and "chatter" in result.err, "stdout is for the answer"
    assert open_trackers[1].run.step == 4 and open_trackers[1].values.keys() == {5, 6}


def test_a_tracker_that_fails_does_not_end_the_training(
    text: Path, tmp_path: Path, open_trackers: list[ListTracker], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def fail(self: ListTracker, step: int, values: Mapping[str, float]) -> None:
        calls.append(step)
        raise ConnectionError("no network")

    monkeypatch.setattr(ListTracker, "log", fail)
    with pytest.warns(UserWarning, match="tensorboard has ended: Conn.*: no net"):
        model = train(text, tmp_path / "run", track="tensorboard")
    assert model.step > 0 and calls == [1] and open_trackers[0].end == ({}, False)


def test_a_training_that_fails_closes_its_trackers(text: Path, tmp_path: Path, open_trackers: list[ListTracker]):
    def stop(record: dict) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train(text, tmp_path / "run", track="tensorboard", on_record=stop)
    assert open_trackers[0].end == ({}, False) and not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_opened_is_one_line(text: Path, tmp_path: Path, open_trackers: list, monkeypatch: Any):
    def refuse(run: TrackedRun) -> None:
        (run.path / "wandb").mkdir()
        run.get_id("wandb", lambda: "x")
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", refuse)
    command = (*TINY, "--data", text, "--out", tmp_path / "run", *SHORT, "--track", "tensorboard")
    assert_refused(call(*command), "--track tensorboard cannot be opened: ConnectionError: no network")
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_unknown_and_missing_trackers(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, parts in {
        "wand": ("--track wand: there is no tracker 'wand': did you mean 'wandb'?",),
        "wandb": ("--track wandb needs the package wandb: pip install 'anyformer[wandb]'",),
    }.items():
        command = (*TINY, "--data", text, "--out", tmp_path / "run", *SHORT, "--track", name)
        assert_refused(call(*command), *parts)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed")
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="needs the package trackio"):
        check_trackers(["trackio"])


def test_only_finite_numbers_are_sent():
    record = {"step": 3, "loss": 1.5, "tokens": 12, "grad_norm": None, "skipped_update": True, "lr": float("nan")}
    record |= {"val_accuracy": 0.5, "val_rows": 7, "val_matrix": [[1]]}
    assert select_numbers(record) == {"loss": 1.5, "tokens": 12.0, "val_accuracy": 0.5}


def test_hooks(text: Path, tmp_path: Path):
    """on_checkpoint gets each checkpoint when it can be loaded; on_record each step."""
    folders: list[Path] = []
    records: list[dict] = []

    def check(folder: Path) -> None:
        assert (folder / "state.json").is_file()
        folders.append(folder)

    train(text, tmp_path / "run", on_record=records.append, on_checkpoint=check)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert folders == [tmp_path / "run" / "checkpoints" / f"step-{step}" for step in (2, 4)]


# --- read back from the real ones ---


def test_tensorboard(text: Path, tmp_path: Path):
    """Also after a resumed training."""
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(text, tmp_path / "run", track="tensorboard")
    train(text, tmp_path / "run", track="tensorboard", resume=True, steps=6)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name, losses in read_losses(tmp_path / "run").items():
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(losses)
    assert events.Scalars("final/val_loss")[-1].value == pytest.approx(read_final(tmp_path / "run"))


def read_wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format, blocks of 32 KiB behind a header of 7 bytes."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)  # checksum, size, 1: full, 2: first, 4: last
        record = (b"" if kind in (1, 2) else record) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record


def test_wandb(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the offline mode: the file that `wandb sync` would send."""
    wandb = require("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(text, tmp_path / "run", track="wandb")
    wandb.teardown()

    def read_items(items: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    history, summary = {}, {}
    for data in read_wandb_records(next((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            values = read_items(record.history.item)
            history[values["_step"]] = values
        summary |= read_items(record.summary.update)
    losses = read_losses(tmp_path / "run")
    assert {step: values["loss"] for step, values in history.items()} == losses["loss"]
    assert {step: values["val_loss"] for step, values in history.items() if "val_loss" in values} == losses["val_loss"]
    assert summary["final/val_loss"] == read_final(tmp_path / "run")


def test_mlflow(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a database of this test; a resumed training continues the same run."""
    mlflow = require("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    train(text, tmp_path / "run", track="mlflow")
    train(text, tmp_path / "run", track="mlflow", resume=True, steps=6)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("anyformer")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["config.train.seed"] == "1" and run.data.params["recipe"] == "language"
    for name, losses in read_losses(tmp_path / "run").items():
        assert {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)} == losses
    assert run.data.metrics["final_val_loss"] == read_final(tmp_path / "run")


def test_trackio(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder of this test."""
    if importlib.util.find_spec("trackio") is None:
        require("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = require("trackio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        train(text, tmp_path / "run", track="trackio")
    name = json.loads((tmp_path / "run" / "tracking.json").read_text())["trackio"]
    rows = trackio.SQLiteStorage.get_logs("anyformer", name)
    for metric, losses in read_losses(tmp_path / "run").items():
        assert {row["step"]: row[metric] for row in rows if metric in row} == losses
    assert [row["final/val_loss"] for row in rows if "final/val_loss" in row] == [read_final(tmp_path / "run")]
