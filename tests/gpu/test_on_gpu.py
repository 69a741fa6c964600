"""What must hold on a GPU (`pytest -m gpu`), and the same checks on the CPU."""

from pathlib import Path

import pytest
import torch

from gpu_checks import Check, Target, list_checks

CHECKS = list_checks()
N_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
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
    check(Target(torch.device("cuda"), tmp_path))


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_on_the_cpu(check: Check, tmp_path: Path):
    check(Target(torch.device("cpu"), tmp_path))
