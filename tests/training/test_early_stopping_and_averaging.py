"""Early stopping (`patience`), and the average of the last checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.trained_model import find_checkpoint
from anyformer.training import checkpoints
from cli_kit import call, train

# too slow to change a weight
STUCK = ("--steps", 400, "--train.lr", 1e-12, "--train.warmup", 0, "--train.eval-every", 2)


def read_records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_val_losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["val_loss"] for record in read_records(run) if "val_loss" in record}


def test_training_stops_without_improvement_and_stays_stopped(text: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(text, run, *STUCK, "--train.patience", 3, "--train.clip", 0)
    losses = read_val_losses(run)
    best = min(losses, key=lambda step: losses[step])
    assert read_records(run)[-1]["step"] == best + 3 * 2 < 400
    assert checkpoints.find_latest(run / "checkpoints").name == f"step-{best + 6}"
    assert api.load(run, "cpu").step == best
    metrics = (run / "metrics.jsonl").read_bytes()
    call("train", "language", "--out", run, "--resume").ok()
    assert (run / "metrics.jsonl").read_bytes() == metrics
    call("train", "language", "--out", run, "--resume", "--train.patience", 4).ok()
    assert read_records(run)[-1]["step"] > best + 6, "with more patience it continues"


def test_average_of_the_last_checkpoints(text: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(text, run, "--steps", 20, "--train.save-every", 5, "--train.eval-every", 5, "--train.average", 3)
    folder = run / "checkpoints"
    names = [path.name for path in checkpoints.list_checkpoints(folder)][-3:]
    assert names == ["step-10", "step-15", "step-20"]
    parts = [load_file(folder / name / "model.safetensors") for name in names]
    for name, tensor in load_file(folder / "mean" / "model.safetensors").items():
        expected = sum(part[name].double() for part in parts) / 3
        torch.testing.assert_close(tensor, expected.float(), atol=1e-7, rtol=1e-6)
    call("train", "language", "--out", run, "--resume", "--steps", 24, "--train.average", 1).ok()
    assert find_checkpoint(run).name != "mean", "the average belongs to step 20"


@pytest.mark.slow
@pytest.mark.parametrize("lr", [6e-2, 1e-4], ids=["noisy", "slow"])  # noise averages out; slow steps only look back
def test_average_is_used_only_where_it_is_better(text: Path, tmp_path: Path, lr: float):
    flags = ("--steps", 40, "--train.save-every", 4, "--train.eval-every", 4, "--train.average", 5)
    train(text, tmp_path / "run", *flags, "--train.lr", lr, "--train.min-lr", 1, "--train.warmup", 0)
    averaged = checkpoints.read_state(tmp_path / "run" / "checkpoints" / "mean")["best"]["val_loss"]
    is_used = find_checkpoint(tmp_path / "run").name == "mean"
    assert is_used == (averaged < min(read_val_losses(tmp_path / "run").values())) == (lr == 6e-2)
