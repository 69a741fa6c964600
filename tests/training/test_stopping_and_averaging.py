"""How a training ends: in time, when it is no use any more, and with the mean of its last checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.loading import find_checkpoint
from anyformer.training import checkpoints as checkpoint
from cli_kit import call, refused, train

TEXT = b"to be or not to be, that is the question\n" * 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


def steps_of(run: Path) -> int:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}


def test_it_stops_when_it_is_no_use_any_more(data: Path, tmp_path: Path):
    """A learning rate that only does harm: the first validation stays the best."""
    harm = ("--steps", 400, "--train.patience", 3, "--train.lr", 1e-9, "--train.warmup", 0, "--train.eval-every", 2)
    train(data, tmp_path / "run", *harm, "--train.clip", 0)
    found = losses(tmp_path / "run")
    best = min(found, key=lambda step: found[step])
    assert steps_of(tmp_path / "run") == best + 3 * 2 < 400
    assert checkpoint.find_latest(tmp_path / "run" / "checkpoints").name == f"step-{best + 6}"
    assert api.load(tmp_path / "run", "cpu").step == best


def test_a_run_that_has_ended_stays_ended(data: Path, tmp_path: Path):
    few = ("--steps", 400, "--train.patience", 2, "--train.lr", 1e-9, "--train.eval-every", 2)
    train(data, tmp_path / "run", *few)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    call("train", "language", "--out", tmp_path / "run", "--resume").well()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    ended = steps_of(tmp_path / "run")
    call("train", "language", "--out", tmp_path / "run", "--resume", "--train.patience", 4).well()
    assert steps_of(tmp_path / "run") > ended, "with more patience it goes on"


def test_the_mean_of_the_last_checkpoints(data: Path, tmp_path: Path):
    few = ("--steps", 20, "--train.save-every", 5, "--train.eval-every", 5, "--train.average", 3)
    train(data, tmp_path / "run", *few)
    folder = tmp_path / "run" / "checkpoints"
    kept = [path.name for path in checkpoint.list_checkpoints(folder)]
    assert kept[-3:] == ["step-10", "step-15", "step-20"]
    parts = [load_file(folder / name / "model.safetensors") for name in kept[-3:]]
    mean = load_file(folder / "mean" / "model.safetensors")
    for name, tensor in mean.items():
        want = sum(part[name].double() for part in parts) / 3
        torch.testing.assert_close(tensor, want.float(), atol=1e-7, rtol=1e-6)


def test_the_mean_is_taken_only_where_it_is_better(data: Path, tmp_path: Path):
    for lr, better in ((3e-2, True), (1e-4, False)):  # noisy steps average out; slow ones only look back
        run = tmp_path / f"run-{lr}"
        few = ("--steps", 40, "--train.save-every", 4, "--train.eval-every", 4, "--train.average", 5)
        train(data, run, *few, "--train.lr", lr, "--train.min-lr", 1, "--train.warmup", 0)
        said = checkpoint.read_state(run / "checkpoints" / "mean")["best"]["val_loss"]
        chosen = find_checkpoint(run).name
        assert (chosen == "mean") == (said < min(losses(run).values()))
        assert better or chosen != "mean"


def test_a_mean_of_before_is_not_taken_for_that_of_now(data: Path, tmp_path: Path):
    few = ("--steps", 8, "--train.save-every", 2, "--train.eval-every", 2, "--train.average", 3)
    train(data, tmp_path / "run", *few)
    call("train", "language", "--out", tmp_path / "run", "--resume", "--steps", 16, "--train.average", 1).well()
    assert find_checkpoint(tmp_path / "run").name != "mean"


def test_stopped_and_resumed_the_mean_is_the_same(data: Path, tmp_path: Path):
    few = ("--steps", 12, "--train.save-every", 3, "--train.eval-every", 3, "--train.average", 3)
    train(data, tmp_path / "whole", *few)
    heard = []

    def stop(record: dict) -> None:
        heard.append(record)
        if len(heard) == 7:
            raise KeyboardInterrupt

    values = {"steps": 12, "save_every": 3, "eval_every": 3, "average": 3, "device": "cpu", "dtype": "float32"}
    with pytest.raises(KeyboardInterrupt):
        api.train("language", "tiny", data=str(data), out=tmp_path / "broken", train=values, on_record=stop)
    call("train", "language", "--out", tmp_path / "broken", "--resume").well()
    one, other = (
        load_file(tmp_path / name / "checkpoints" / "mean" / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_numbers_that_make_no_sense(data: Path, tmp_path: Path):
    few = ("train", "language", "--preset", "tiny", "--data", data, "--out", tmp_path / "run")
    refused(call(*few, "--train.average", 0), "average is 0; it must be at least 1")
    refused(call(*few, "--train.patience", -1), "patience is -1; it must be 0 or more")
