"""What must hold on a GPU (`pytest -m gpu`), and the same checks on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anyformer.recipes import language
from anyformer.training import loop
from anyformer.training.device import resolve_device
from gpu_checks import TEXT, Check, Target, list_checks

ROOT = Path(__file__).parent.parent.parent

CHECKS = list_checks()
N_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
QUICK = {"test_on_the_cpu": {"captured generation", "a large vocabulary", "Muon on several matrices"}}
needs_gpu = pytest.mark.skipif(N_GPUS == 0, reason="there is no NVIDIA GPU here")
pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:Dynamo detected a call to a `functools"
)


@pytest.fixture(autouse=True)
def reset_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_on_a_gpu(check: Check, tmp_path: Path):
    check(Target(resolve_device("cuda"), tmp_path))


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_on_the_cpu(check: Check, tmp_path: Path):
    check(Target(torch.device("cpu"), tmp_path))


def train_with_two(device: str, shard: int, folder: Path) -> list[float]:
    """Return the losses of a training in two processes."""
    text, run = folder / "text.txt", folder / "run"
    text.write_text(TEXT)
    command = [sys.executable, "-m", "anyformer", "train", "language", "--preset", "tiny", "--data", str(text)]
    command += ["--out", str(run), "--steps", "4", "--processes", "2", "--train.accumulate", "2"]
    command += ["--train.shard", str(shard), "--device", device, "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert process.returncode == 0, process.stderr
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_alone(device: str, folder: Path) -> list[float]:
    config = Target(torch.device(device), folder).configure(steps=4, accumulate=2, eval_every=4)
    return [record["loss"] for record in loop.train(language, config)]


def check_two(device: str, shard: int, folder: Path) -> None:
    assert train_with_two(device, shard, folder) == pytest.approx(train_alone(device, folder), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(N_GPUS < 2, reason="there are no two NVIDIA GPUs here")
@pytest.mark.parametrize("shard", [1, 2])
def test_two_gpus_train_what_one_does(shard: int, tmp_path: Path):
    """DistributedDataParallel and FSDP2 over NCCL."""
    check_two("cuda", shard, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_two_processes_train_what_one_does(shard: int, tmp_path: Path):
    check_two("cpu", shard, tmp_path)
