"""Memory that importing a large checkpoint takes; a real quantized GGUF file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyformer.conversion import import_checkpoint

# Memory is read for this process alone: the resource module may report the parent's.
CHILD = r"""
import re, sys
from pathlib import Path
from anyformer.conversion import import_checkpoint
import anyformer.recipes.language
def read_status(name):
    return int(re.search(name + r':\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
before = read_status('VmRSS')
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
print(read_status('VmHWM') - before)
"""
CONFIG = '{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}'


def build_gpt2_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of GPT-2's shapes, with random values."""
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
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which this system does not have")
def test_importing_500_mb_takes_at_most_20_percent_more_memory(tmp_path: Path):
    (tmp_path / "gpt2").mkdir()
    save_file(build_gpt2_tensors(), tmp_path / "gpt2" / "model.safetensors", {"format": "pt"})
    (tmp_path / "gpt2" / "config.json").write_text(CONFIG)
    size = (tmp_path / "gpt2" / "model.safetensors").stat().st_size
    assert size > 490e6
    command = [sys.executable, "-c", CHILD, tmp_path / "gpt2", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print(f"{int(result.stdout) / 1e6:.0f} MB more at the peak for a file of {size / 1e6:.0f} MB")
    assert int(result.stdout) <= 1.2 * size


@pytest.mark.slow
def test_smollm2_answers_as_llama_cpp_does(tmp_path: Path):
    """Q4_1, Q8_0 and F32 in one file, interleaved rotary channels, a tokenizer and a chat template."""
    from llama_cpp_kit import LlamaCpp

    folder = Path(os.environ.get("ANYFORMER_WEIGHTS") or "none") / "smollm2"
    if not folder.is_dir():
        pytest.skip("$ANYFORMER_WEIGHTS/smollm2 does not exist: make weights")
    path = next(folder.glob("*.gguf"))
    model = import_checkpoint(path, tmp_path / "run")
    sample = model.generate("The capital of France is", tokens=20, temperature=0)["samples"][0]
    assert sample["text"].startswith(" Paris.")
    assert LlamaCpp(path).generate_greedily("The capital of France is", 20)[0] == sample["tokens"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = model.generate(messages=messages, tokens=20, temperature=0)["samples"][0]
    assert (answer["text"], answer["finish_reason"]) == ("The capital of France is Paris.", "stop")
