"""Helpers of the tests of public checkpoints: random transformers models, saved, loaded by anyformer, compared."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyformer
from anyformer.checkpoints import hf_folder
from anyformer.parsing import to_json

transformers = pytest.importorskip("transformers", reason="the oracle of these tests: pip install transformers")


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise to every parameter, norms and biases too: initial zeros and ones would hide a mistaken name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build_reference(kind: str, config: Any, seed: int = 0) -> Any:
    """Build a randomized model of transformers: `kind` is the name of its class."""
    torch.manual_seed(seed)
    return randomize(getattr(transformers, kind)(config), seed)


def save(model: Any, folder: Path) -> Path:
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    return folder


def open_reference(kind: Any, folder: Path) -> nn.Module:
    """Load a model with transformers; its loading report must be empty."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert {name: keys for name, keys in report.items() if keys} == {}, report
    return model.eval()


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of config.json; ... (Ellipsis) removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to 1e-5 of the largest value, both in float32."""
    assert actual.dtype == expected.dtype == torch.float32
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"relative error {error:.1e}"


def assert_same_tensors(first: nn.Module, second: nn.Module) -> None:
    """Equal bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def export(model: Any, folder: Path) -> Path:
    """Write an `anyformer.Model` as a folder of transformers."""
    hf_folder.write(folder, model.recipe, to_json(model.config), model.module)
    return folder


class Exchange:
    """A model of transformers, the same model loaded by anyformer, and the folder that anyformer exports it to."""

    def __init__(self, reference: Any, folder: Path):
        self.reference, self.kind = reference, type(reference)
        self.source = save(reference, folder / "reference")
        self.model = anyformer.load(self.source, "cpu")
        self.module = self.model.module
        self.exported = export(self.model, folder / "exported")

    def open_exported(self) -> Any:
        """Open the exported folder with transformers."""
        return open_reference(self.kind, self.exported)

    def load_exported(self) -> Any:
        """Load the exported folder with anyformer: weights and config must be those that were exported."""
        again = anyformer.load(self.exported, "cpu")
        assert_same_tensors(self.module, again.module)
        configs = [to_json(model.config) for model in (self.model, again)]
        assert configs[0] | {"tokenizer": ""} == configs[1] | {"tokenizer": ""}  # written there, perhaps not read here
        return again
