"""What importing a large checkpoint takes in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

CHILD = """
import resource, sys
from pathlib import Path
from anyformer import api
import anyformer.recipes.language
def now(): return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
before = now()
api.bring_in(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
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
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which this system has not")
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
