"""The benchmark for a GPU runs without one, on tiny shapes: no part of it has died since a GPU last saw it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CUDA = ("captured",)  # what only a GPU can do


def gpu(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), *flags]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | hidden)


def dry(*flags: str) -> dict[str, Any]:
    done = gpu("--dry", "--json", "--patience", "0", "--rounds", "1", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def problems(rows: list[dict[str, Any]], but: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [row for row in rows if "problem" in row and not any(word in row["what"] for word in but)]


def test_windows_are_measured_and_without_a_gpu_it_says_so():
    found = dry("--only", "window")
    assert found["device"] == "cpu" and found["dry"] and problems(found["window"]) == []
    assert [row["forward_ms"] > 0 for row in found["window"]] == [True] * 4
    refused = gpu("--only", "window")
    assert refused.returncode == 1 and refused.stderr.strip().startswith("there is no NVIDIA GPU here")


@pytest.mark.slow
def test_every_part_runs_and_one_that_fails_leaves_the_others_alone(tmp_path: Path):
    found = dry("--shakespeare", str(tmp_path / "nothing.txt"))
    assert [row["problem"] for row in found["shakespeare"]] != [] == problems(found["window"])
    assert problems(found["generation"], (*CUDA, "transformers")) == []
    assert found["generation"][0] == {"what": "a cache of one size says the same, float32", "same": True}
    assert "--nanogpt" in problems(found["training"])[0]["problem"] and len(problems(found["training"])) == 1
    learned = dry("--only", "shakespeare")["shakespeare"]
    assert problems(learned) == [] and all(row["reached"] for row in learned) and len(learned) == 4
