"""Entire trainings in several processes: run directories, adapters, stops, kills, and what a person sees."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyformer import api
from anyformer.errors import InputError, Stopped
from cli_kit import call
from process_kit import run_processes

QUICK = {
    "test_a_run_of_two_processes_is_like_that_of_one": set(),
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


SETTINGS = {"steps": 4, "batch": 4, "accumulate": 2, "eval_every": 2, "eval_batches": 1, "save_every": 2}
MACHINE = {"device": "cpu", "dtype": "float32", "progress": False}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (path := tmp_path / "text.txt").write_text(
        "".join(f"line {i} of {i * 7 % 13} words, and {i}\n" for i in range(400))
    )
    return path


def train(text: Path, out: Path, **fields: Any) -> float:
    """Train as a script does that torchrun starts. Returns the loss of the model that each process gets."""
    train = SETTINGS | {key: fields.pop(key) for key in ("shard", "average", "optimizer") if key in fields}
    model = api.train("language", "tiny", data=str(text), out=out, train=train, **MACHINE, **fields)
    return model.evaluate()["loss"]


def read_run(out: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"losses": [record["loss"] for record in records], "result": json.loads((out / "result.json").read_text())}


def compare(out: Path, reference: Path) -> None:
    run, expected = read_run(out), read_run(reference)
    assert run["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert run["result"]["val_loss"] == pytest.approx(expected["result"]["val_loss"], rel=1e-3)
    names = {path.name for path in reference.iterdir()}
    assert {path.name for path in out.iterdir()} == names


@pytest.mark.parametrize("shard", [1, 2])
def test_a_run_of_two_processes_is_like_that_of_one(text: Path, tmp_path: Path, shard: int):
    """Samples, report, result and average of checkpoints are those of one process, and each process gets the model."""
    fields = {"average": 2, "optimizer": "muon"}
    train(text, tmp_path / "one", **fields)
    out = tmp_path / "two"
    losses = run_processes(2, lambda: train(text, out, shard=shard, **fields), has_joined=False)
    compare(out, tmp_path / "one")
    assert losses[0] == losses[1] == pytest.approx(read_run(out)["result"]["val_loss"])
    assert (out / "samples.txt").read_text().startswith("--- step 2 ---")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_adapters_are_trained_in_several_processes(text: Path, tmp_path: Path, shard: int):
    train(text, tmp_path / "base")
    fields = {"init": tmp_path / "base", "lora": {"rank": 2}}
    train(text, tmp_path / "one", **fields)
    run_processes(2, lambda: train(text, tmp_path / "two", shard=shard, **fields), has_joined=False)
    compare(tmp_path / "two", tmp_path / "one")


def test_a_run_of_one_process_goes_on_in_two(text: Path, tmp_path: Path):
    train(text, tmp_path / "one")

    def go_on() -> None:
        train(text, tmp_path / "two", resume=True)

    api.train("language", "tiny", data=str(text), out=tmp_path / "two", train=SETTINGS | {"steps": 2}, **MACHINE)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["config"]["train"]["steps"] == 2
    run_processes(2, go_on, has_joined=False)
    assert read_run(tmp_path / "two")["losses"][2:] != []
    assert read_run(tmp_path / "two")["result"]["step"] == 4


def catch(function: Callable[[], Any]) -> str:
    try:
        function()
    except (InputError, Stopped) as error:
        return str(error)
    return "no error"


def test_what_one_process_notices_all_say(text: Path, tmp_path: Path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.doc").touch()
    for out, fields, message in (
        (tmp_path / "used", {}, "is not empty and holds no run"),
        (tmp_path / "a", {"minutes": 1}, "--minutes ends a training of one process by its clock"),
        (None, {}, "several processes need a run directory that all know: --out DIR"),
    ):
        errors = run_processes(
            2, lambda out=out, fields=fields: catch(lambda: train(text, out, **fields)), has_joined=False
        )
        assert all(message in error for error in errors), errors
    assert {path.name for path in tmp_path.iterdir()} == {"used", "text.txt"}


def test_all_stop_at_one_step(text: Path, tmp_path: Path):
    """A signal to one of them, in the middle of a step."""

    def work() -> str:
        def on_record(record: dict[str, Any]) -> None:
            if record["step"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        fields = {"steps": 50, "accumulate": 2, "batch": 2}
        out = tmp_path / "run"
        return catch(
            lambda: api.train("language", "tiny", data=str(text), out=out, train=fields, on_record=on_record, **MACHINE)
        )

    assert set(run_processes(2, work, has_joined=False)) == {"stopped at step 2 of 50; everything is saved"}
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--processes 2 --train.accumulate 3 --out r", "--train.accumulate 3: an update of so many batches cannot be"),
        ("--processes 3 --train.accumulate 3 --train.shard 2 --out r", "--train.shard 2 does not divide"),
        ("--processes 2 --minutes 1 --out r", "--minutes ends a training of one process by its clock"),
        ("--processes 2 --train.accumulate 2", "--processes needs a run directory that all know: --out DIR"),
        ("--processes 2 --seeds 2 --out r", "--processes trains one run in several processes: leave --seeds"),
        ("--processes 0 --out r", "--processes is 0; it must be at least 1"),
    ],
)
def test_wrong_flags_are_said_before_anything_is_started(text: Path, flags: str, message: str):
    result = call("train", "language", "--preset", "tiny", "--data", text, *flags.split())
    assert result.code == 2 and message in result.err


# --- killed ---


def list_workers(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def start(text: Path, out: Path, steps: int, processes: int = 4) -> subprocess.Popen:
    flags = [
        "--preset",
        "tiny",
        "--data",
        text,
        "--steps",
        steps,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--out",
        out,
    ]
    flags += [
        "--train.accumulate",
        4,
        "--train.batch",
        2,
        "--train.save-every",
        5,
        "--processes",
        processes,
        "--dtype",
        "float32",
    ]
    command = [sys.executable, "-m", "anyformer", "train", "language", *map(str, flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def read_weights(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("checkpoints/*/*.safetensors"), out / "metrics.jsonl", out / "samples.txt"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_killed_processes_start_again_by_themselves(text: Path, tmp_path: Path):
    """SIGKILL to any of four, 20 times at random moments: the run ends with the bits of an undisturbed one."""
    assert start(text, tmp_path / "calm", 600).wait() == 0
    chance, kills = random.Random(0), 0
    process = start(text, tmp_path / "killed", 600)
    while process.poll() is None and kills < 20:
        time.sleep(chance.uniform(2, 12))
        if workers := list_workers(process.pid):
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills += 1
    assert process.wait() == 0, process.stderr.read()
    print(f"{kills} kills")
    assert kills >= 5
    assert read_weights(tmp_path / "killed") == read_weights(tmp_path / "calm")


@pytest.mark.slow
def test_what_the_processes_notice_is_one_line(text: Path, tmp_path: Path):
    (tmp_path / "thesis.doc").touch()
    process = start(text, tmp_path, 5, processes=2)
    assert process.wait() == 2
    assert process.stderr.read() == f"anyformer: {tmp_path} is not empty and holds no run: choose another --out\n"


@pytest.mark.slow
def test_a_signal_to_the_agent_stops_all_and_everything_is_saved(text: Path, tmp_path: Path):
    process = start(text, out := tmp_path / "run", 100_000, processes=2)
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size < 1000:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    last = process.stderr.read().splitlines()[-1]
    assert last.startswith("stopped at step ") and "everything is saved" in last and "--resume" in last
    assert call("train", "language", "--out", out, "--resume", "--steps", 1).code in (0, 2)


def test_what_was_left_half_written_is_removed(text: Path, tmp_path: Path):
    train(text, out := tmp_path / "run")
    (out / ".figures.json.123").write_text("{")
    train(text, out, resume=True)
    assert not (out / ".figures.json.123").exists()
