"""Slow: the real command line under SIGKILL, the result of the first command, memory on large data."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def start_command(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "anyformer", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_command(*arguments: object) -> dict:
    process = start_command(*arguments)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return json.loads(stdout)


def test_a_run_killed_twenty_times_ends_bit_identical(text: Path, tmp_path: Path):
    """SIGKILL to the whole process at random moments, then the same command again."""
    common = ["train", "language", "--preset", "tiny", "--data", text, "--steps", 400, "--train.save-every", 5]
    common += ["--train.eval-every", 50, "--dtype", "float32", "--device", "cpu", "--resume", "--json", "--out"]
    start = time.monotonic()
    run_command(*common, tmp_path / "uninterrupted")
    duration, rng, kills = time.monotonic() - start, random.Random(0), 0
    while kills < 20:
        process = start_command(*common, tmp_path / "killed")
        time.sleep(rng.uniform(1, duration))
        process.kill()
        kills += process.wait() != 0
    assert run_command(*common, tmp_path / "killed")["step"] == 400
    for name in ("metrics.jsonl", "samples.txt", "checkpoints/step-400/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes(), name


def test_the_first_command_reaches_its_loss(tmp_path: Path):
    """`make train`: the plays of Shakespeare, about a minute on two cores; a uniform guess is 4.4 nats."""
    assert run_command("train", "language", "--out", tmp_path / "run", "--json")["val_loss"] < 1.6


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_preparing_a_large_text_needs_little_memory(tokenizer: str, tmp_path: Path, text: Path):
    """400 MB of text in a process that peaks below 300 MB; bench/data/text_to_tokens.py measures 2 GB."""
    large = tmp_path / "large.txt"
    with open(large, "w") as file:
        for _ in range(400):
            file.write(text.read_text() * (1_000_000 // text.stat().st_size))
    code = (
        "import sys; from anyformer.data.text.prepare import prepare_corpus; prepare_corpus(sys.argv[1], sys.argv[2]);"
        "import re, pathlib; status = pathlib.Path('/proc/self/status').read_text();"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    command = [sys.executable, "-c", code, large, tokenizer]
    environment = os.environ | {"ANYFORMER_CACHE": str(tmp_path / "cache")}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert int(process.stdout) < 300, process.stdout + process.stderr
