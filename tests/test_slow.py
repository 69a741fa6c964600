"""What takes minutes: the real command line killed for real, the first command's promise, memory on large data."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def anyformer(*arguments: object, wait: bool = True) -> subprocess.Popen:
    command = [sys.executable, "-m", "anyformer", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        process.wait()
    return process


def test_the_command_killed_twenty_times(text: Path, tmp_path: Path):
    """As a cluster would do it: SIGKILL to the whole process at random moments, then the same command again."""
    common = ["train", "language", "--preset", "tiny", "--data", text, "--steps", 400, "--train.save-every", 5]
    common += ["--train.eval-every", 50, "--dtype", "float32", "--device", "cpu", "--resume", "--json", "--out"]
    began = time.monotonic()
    assert anyformer(*common, tmp_path / "whole").returncode == 0
    full, rng, kills = time.monotonic() - began, random.Random(0), 0
    while kills < 20:
        process = anyformer(*common, tmp_path / "killed", wait=False)
        time.sleep(rng.uniform(1, full))
        process.kill()
        kills += process.wait() != 0
    last = anyformer(*common, tmp_path / "killed")
    assert json.loads(last.stdout.read())["step"] == 400
    for name in ("metrics.jsonl", "samples.txt", "checkpoints/step-400/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_first_command_keeps_its_promise(tmp_path: Path):
    """`make train`: the plays of Shakespeare, about a minute on two cores; knowing nothing is 4.4 nats."""
    done = anyformer("train", "language", "--out", tmp_path / "run", "--json")
    result = json.loads(done.stdout.read())
    assert done.returncode == 0 and result["val_loss"] < 1.6


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_preparing_a_large_text_takes_little_memory(tokenizer: str, tmp_path: Path, text: Path):
    """400 MB of text in a process that peaks below 300 MB; bench/data/text_to_tokens.py does 2 GB."""
    large = tmp_path / "large.txt"
    with open(large, "w") as file:
        for _ in range(400):
            file.write(text.read_text() * (1_000_000 // text.stat().st_size))
    code = (
        "import sys; from anyformer.data.text.prepare import prepare; prepare(sys.argv[1], sys.argv[2]);"
        "import re, pathlib; status = pathlib.Path('/proc/self/status').read_text();"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    env = os.environ | {"ANYFORMER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code, large, tokenizer], capture_output=True, text=True, env=env)
    assert int(done.stdout) < 300, done.stdout + done.stderr
