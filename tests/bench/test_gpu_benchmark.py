"""The GPU benchmark runs on tiny shapes without a GPU, so that no part of it breaks unnoticed."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
CUDA_ONLY = ("captured",)


def run_benchmark(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def dry_run(*flags: str) -> dict[str, Any]:
    process = run_benchmark("--dry", "--json", "--patience", "0", "--rounds", "1", *flags)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def find_problems(rows: list[dict[str, Any]], ignored: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [row for row in rows if "problem" in row and not any(word in row["what"] for word in ignored)]


def test_windows_are_measured_and_a_missing_gpu_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In this process, which has loaded torch."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--dry", "--json", "--rounds", "1", "--only", "window"])
    runpy.run_module("bench.gpu", run_name="__main__")
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cpu" and result["dry"] and find_problems(result["window"]) == []
    assert [row["forward_ms"] > 0 for row in result["window"]] == [True] * 4
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--only", "window"])
    with pytest.raises(SystemExit, match="there is no NVIDIA GPU here"):
        runpy.run_module("bench.gpu", run_name="__main__")


@pytest.mark.slow
def test_every_part_runs_and_a_failing_one_does_not_stop_the_others(tmp_path: Path):
    result = dry_run("--shakespeare", str(tmp_path / "missing.txt"))
    assert [row["problem"] for row in result["shakespeare"]] != [] == find_problems(result["window"])
    assert find_problems(result["generation"], (*CUDA_ONLY, "transformers")) == []
    assert result["generation"][0] == {"what": "static cache equals generate, float32", "same": True}
    assert "--nanogpt" in find_problems(result["training"])[0]["problem"]
    assert len(find_problems(result["training"])) == 1
    rows = dry_run("--only", "shakespeare")["shakespeare"]
    assert find_problems(rows) == [] and all(row["reached"] for row in rows) and len(rows) == 4
