"""The GPU benchmark runs on tiny shapes without a GPU, so that no part of it breaks unnoticed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import gpu

ROOT = Path(__file__).parent.parent.parent
PEER = """
import torch
from dataclasses import dataclass

@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def forward(self, ids, labels):
        logits = self.embedding(ids) @ self.embedding.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
"""  # what nanoGPT's model.py has


def run_benchmark(*flags: object) -> subprocess.CompletedProcess[str]:
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def dry_run(*flags: object) -> dict[str, Any]:
    process = run_benchmark("--dry", "--json", "--patience", "0", "--rounds", "1", *flags)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def find_problems(rows: list[dict[str, Any]], ignored: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [row for row in rows if "problem" in row and not any(word in row["what"] for word in ignored)]


@pytest.mark.slow
def test_a_part_runs_in_a_process_and_one_without_time_is_skipped(tmp_path: Path):
    out = tmp_path / "gpu.json"
    result = dry_run("--only", "window", "cifar10", "--minutes", 2, "--out", out, "--lengths", 64)
    device, *rows = result["window"]
    assert device["name"] == "cpu" and result["dry"] and find_problems(rows) == []
    assert [row["forward_ms"] > 0 for row in rows] == [True] * 4
    assert [row["skipped"].endswith("of --minutes 2 left") for row in result["cifar10"]] == [True]
    assert json.loads(out.read_text())["window"] == result["window"]
    reasons = {row["what"]: row.get("reason") for row in result["summary"]}
    assert "of --minutes 2 left" in reasons["CIFAR-10, accuracy"]


def test_a_part_that_crashes_or_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import sys, time; open(sys.argv[4], 'w').write('{\"what\": \"first\"}\\n'); "
    for end, limit, problem in (
        ("sys.exit(9)", 60, "crashed (exit status 9)"),
        ("time.sleep(60)", 0.5, "ended after its 0 s"),
    ):
        monkeypatch.setattr(gpu, "GRACE", 0)
        monkeypatch.setattr(gpu.sys, "executable", str(tmp_path / "python"))
        (tmp_path / "python").write_text(f"#!{sys.orig_argv[0]}\n{code}{end}\n")
        (tmp_path / "python").chmod(0o755)
        assert gpu.run_part("window", [], limit, True)[-1] == {"what": "window", "problem": problem}
    monkeypatch.setattr(gpu, "run_limited", lambda *_: gpu.NO_GPU)
    with pytest.raises(SystemExit, match="there is no NVIDIA GPU here"):
        gpu.run_part("window", [], 1, True)


def test_checks_are_shared_out_while_the_compiler_prepares_the_timings(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Any, ...]] = []

    def run_part(name: str, words: list[str], limit: float, as_json: bool, stdout: Any = None) -> list[dict[str, Any]]:
        calls.append((name, *words[1:]))
        return [{"what": "device"}, {"what": f"{name} {words[-1]}"}]

    monkeypatch.setattr(gpu, "run_part", run_part)
    options = gpu.build_parser().parse_args(["--workers", "2", "--only", "checks", "window", "training"])
    rows = gpu.run_checks(options, ["w"], 9)
    assert [row["what"] for row in rows] == ["device", "checks 0/2", "checks 1/2"]
    quick = ("--patience", "0", "--rounds", "1")
    training = [("training", *quick, "--contenders", name) for name in ("anyformer", "nanoGPT")]
    shares = [("checks", "--share", f"{i}/2") for i in range(2)]
    assert sorted(calls) == sorted([*shares, ("window", *quick), *training])
    options.dry = True
    calls.clear()
    gpu.run_checks(options, ["w"], 9)
    assert sorted(calls) == shares


def test_the_summary_compares_with_the_targets():
    generation = [
        {"what": f"{name}, bfloat16", "batch": batch, "tokens_per_second": speed}
        for name, batch, speed in (("anyformer", 1, 900.0), ("transformers", 1, 200.0), ("anyformer", 32, 300.0))
    ]
    training = [
        {"what": "device", "name": "H100"},
        {"what": "training, anyformer", "tokens_per_second": 130.0, "mfu": 0.4},
        {"what": "training, nanoGPT", "problem": "SystemExit: there is no --nanogpt"},
        {"what": "training, anyformer by block", "tokens_per_second": 150.0, "mfu": 0.6},
    ]
    window = [{"what": "window(256), 16,384", "nodes": 16384, "training_ms": 2.0}]
    window += [{"what": "all of the past, 16,384", "nodes": 16384, "training_ms": 9.0}]
    shakespeare = [{"what": "a", "reached": False, "seconds": 3.0}, {"what": "b", "reached": True, "seconds": 25.0}]
    parts = {"generation": generation, "training": training, "window": window, "shakespeare": shakespeare}
    rows = {row["what"]: row for row in gpu.summarize(parts)}
    met = {name: row["is_met"] for name, row in rows.items() if "is_met" in row}
    assert met == {
        "124M, MFU": True,
        "tiny Shakespeare to 1.4697, seconds": False,
        "generation, batch 1, times transformers'": True,
        "16k nodes, window(256), times as fast as dense": True,
    }
    assert rows["124M, tokens/s, times nanoGPT's"]["reason"] == "SystemExit: there is no --nanogpt"
    assert rows["generation, batch 1, times transformers'"]["value"] == 4.5
    text = gpu.format_summary(list(rows.values()))
    assert "missed" in text and "not run" in text and "there is no --nanogpt" in text


@pytest.mark.slow
def test_every_part_runs_and_a_failing_one_does_not_stop_the_others(tmp_path: Path):
    (tmp_path / "model.py").write_text(PEER)
    result = dry_run("--shakespeare", tmp_path / "missing.txt", "--minutes", 30, "--nanogpt", tmp_path)
    assert find_problems(result["shakespeare"]) != [] == find_problems(result["window"])
    assert find_problems(result["generation"], ("transformers",)) == []
    assert result["generation"][1]["same"] is True
    assert find_problems(result["training"]) == [] and len(result["training"]) == 5
    assert (
        find_problems(result["checks"]) == find_problems(result["cifar10"]) == find_problems(result["multi30k"]) == []
    )
    rows = dry_run("--only", "shakespeare")["shakespeare"][1:]
    assert find_problems(rows) == [] and all(row["reached"] for row in rows) and len(rows) == 6
