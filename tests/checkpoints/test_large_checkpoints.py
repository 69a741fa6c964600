"""What importing a large checkpoint takes in memory; a real one in a GGUF file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyformer import api

CHILD = r"""
import re, sys
from pathlib import Path
from anyformer import api
import anyformer.recipes.language
def kept(name):  # of this process alone: what resource tells may be the parent's
    return int(re.search(name + r':\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
before = kept('VmRSS')
api.bring_in(Path(sys.argv[1]), Path(sys.argv[2]))
print(kept('VmHWM') - before)
"""
CONFIG = '{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}'


def gpt2_small() -> dict[str, torch.Tensor]:
    """Tensors of GPT-2's shapes, with random numbers."""
    d = 768
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, d), "wpe.weight": (1024, d)}
    block = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    norms = [f"h.{i}.{name}" for i in range(12) for name in ("ln_1", "ln_2")] + ["ln_f"]
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    for i in range(12):
        for name, shape in block.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
    return {f"transformer.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which this system has not")
def test_importing_500_mb_takes_at_most_a_fifth_more(tmp_path: Path):
    (tmp_path / "gpt2").mkdir()
    save_file(gpt2_small(), tmp_path / "gpt2" / "model.safetensors", {"format": "pt"})
    (tmp_path / "gpt2" / "config.json").write_text(CONFIG)
    size = (tmp_path / "gpt2" / "model.safetensors").stat().st_size
    assert size > 490e6
    command = [sys.executable, "-c", CHILD, tmp_path / "gpt2", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{int(done.stdout) / 1e6:.0f} MB more at the peak for a file of {size / 1e6:.0f} MB")
    assert int(done.stdout) <= 1.2 * size


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path: Path):
    """Q4_1, Q8_0 and F32 in one file, llama's order of channels, a tokenizer and a chat template: llama.cpp itself says
    the same words."""
    from llama_cpp_kit import Served

    folder = Path(os.environ.get("ANYFORMER_WEIGHTS") or "none") / "smollm2"
    if not folder.is_dir():
        pytest.skip("$ANYFORMER_WEIGHTS/smollm2 is not there: make weights")
    path = next(folder.glob("*.gguf"))
    ours = api.bring_in(path, tmp_path / "run")
    said = ours.generate("The capital of France is", tokens=20, temperature=0)["samples"][0]
    assert said["text"].startswith(" Paris.")
    assert Served(path).goes_on("The capital of France is", 20)[0] == said["tokens"]
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    told = ours.generate(messages=asked, tokens=20, temperature=0)["samples"][0]
    assert (told["text"], told["finish_reason"]) == ("The capital of France is Paris.", "stop")
