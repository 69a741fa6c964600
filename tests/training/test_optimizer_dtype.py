"""Optimizer states in bfloat16: half the memory, updates in float32, resumed bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.recipes import language
from anyformer.training import checkpoints, loop
from anyformer.training.config import TrainConfig


def configure(text: Path, optimizer: str = "adamw", dtype: str = "bfloat16") -> Any:
    tiny = language.PRESETS["tiny"]
    settings = {"steps": 6, "eval_every": 100, "batch": 4, "device": "cpu", "dtype": "float32", "lr": 1e-2}
    settings |= {"optimizer": optimizer, "optimizer_dtype": dtype, "warmup": 0}
    return replace(tiny, data=str(text), train=replace(tiny.train, **settings))


def run(config: Any, steps: int, state: loop.TrainState | None = None) -> loop.TrainState:
    state = state or loop.init_state(language, config)
    for _ in loop.train(language, config, state):
        if state.step == steps:
            break
    return state


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_states_take_half_the_memory_and_updates_start_the_same(text: Path, optimizer: str):
    states = {dtype: run(configure(text, optimizer, dtype), 1) for dtype in ("float32", "bfloat16")}
    exact, rounded = (states[dtype].optimizer.state_dict() for dtype in ("float32", "bfloat16"))
    assert exact.keys() == rounded.keys()
    for name, value in rounded.items():
        if name.endswith(".step"):
            assert torch.equal(value, exact[name])
        else:
            assert value.dtype == torch.bfloat16 and torch.equal(value, exact[name].bfloat16())
    for a, b in zip(states["float32"].model.parameters(), states["bfloat16"].model.parameters(), strict=True):
        assert torch.equal(a, b), "the first update uses no stored state"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_bit_for_bit(text: Path, optimizer: str, tmp_path: Path):
    config = configure(text, optimizer)
    uninterrupted = run(config, 4)
    folder = checkpoints.save_checkpoint(tmp_path, run(config, 2), {})
    state = loop.init_state(language, config)
    checkpoints.load_checkpoint(folder, state)
    assert any(value.dtype == torch.bfloat16 for value in state.optimizer.state_dict().values())
    resumed = run(config, 4, state)
    for a, b in zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_states_of_another_dtype_are_converted(text: Path, tmp_path: Path):
    folder = checkpoints.save_checkpoint(tmp_path, run(configure(text, dtype="float32"), 2), {})
    for dtype in ("bfloat16", "float32"):
        state = loop.init_state(language, configure(text, dtype=dtype))
        checkpoints.load_checkpoint(folder, state)
        dtypes = {value.dtype for name, value in state.optimizer.state_dict().items() if not name.endswith(".step")}
        assert dtypes == {getattr(torch, dtype)}


def test_an_average_that_could_not_follow_is_refused():
    with pytest.raises(ValueError, match=r"beta2 is 0.999; with optimizer_dtype bfloat16 it must be at most 0.995"):
        TrainConfig(beta2=0.999, optimizer_dtype="bfloat16")
    average = torch.full((1000,), 1.0).uniform_(1, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert (average * 0.995 < average).all() and not (average * 0.999 < average).any()
