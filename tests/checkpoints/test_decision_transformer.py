"""Decision Transformer: the library's actions, states and returns, there and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyformer import api
from anyformer import recipe as recipes
from anyformer.checkpoints import hf_folder as directory
from anyformer.errors import InputError
from anyformer.recipe import to_json
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers

DT: dict[str, Any] = {
    "state_dim": 5,
    "act_dim": 3,
    "hidden_size": 24,
    "n_layer": 2,
    "n_head": 3,
    "max_ep_len": 37,
    "n_positions": 30,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no tanh": {"action_tanh": False},
    "one layer, one head": {"n_layer": 1, "n_head": 1, "state_dim": 1, "act_dim": 1},
    "gelu_new, narrow mlp": {"activation_function": "gelu_new", "n_inner": 17, "n_positions": 31},
    "another eps": {"layer_norm_epsilon": 1e-2, "action_tanh": False},
}


def library(case: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.DecisionTransformerConfig(**DT | CASES[case])
    return shaken(transformers.DecisionTransformerModel(config), seed)


def episode(case: str, steps: int, seed: int = 0, rows: int = 3) -> dict[str, torch.Tensor]:
    made, shape = torch.Generator().manual_seed(seed), DT | CASES[case]
    start = torch.randint(shape["max_ep_len"] - steps + 1, (rows, 1), generator=made)
    return {
        "wanted": torch.randn(rows, steps, 1, generator=made),
        "state": torch.randn(rows, steps, shape["state_dim"], generator=made),
        "action": torch.randn(rows, steps, shape["act_dim"], generator=made),
        "at": start + torch.arange(steps),
    }


@torch.no_grad()
def theirs_of(model: Any, seen: dict[str, torch.Tensor], **more: torch.Tensor) -> list[torch.Tensor]:
    found = model(
        states=seen["state"], actions=seen["action"], returns_to_go=seen["wanted"], timesteps=seen["at"], **more
    )
    return [found.action_preds, found.state_preds, found.return_preds]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_predictions_are_the_librarys(case: str, steps: int, seed: int, tmp_path: Path):
    theirs, seen = library(case, seed), episode(case, steps, seed)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    with torch.no_grad():
        for mine, other in zip(ours.module(**seen), theirs_of(theirs, seen), strict=True):
            close(mine, other)


def test_their_padding_in_front_is_ours_behind(tmp_path: Path):
    theirs, seen = library("plain"), episode("plain", 4)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    padded = {name: torch.cat([torch.zeros_like(part[:, :3]), part], 1) for name, part in seen.items()}
    mask = torch.tensor([[0] * 3 + [1] * 4] * 3)
    behind = {name: torch.cat([part, torch.zeros_like(part[:, :3])], 1) for name, part in seen.items()}
    with torch.no_grad():
        for mine, other in zip(ours.module(**behind), theirs_of(theirs, padded, attention_mask=mask), strict=True):
            close(mine[:, :4], other[:, 3:])


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_opens_there_and_comes_back_bit_for_bit(case: str, tmp_path: Path):
    ours = api.load(saved(library(case, 1), tmp_path / "theirs"), "cpu")
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    theirs, seen = opened(transformers.DecisionTransformerModel, tmp_path / "ours"), episode(case, 7)
    with torch.no_grad():
        for mine, other in zip(ours.module(**seen), theirs_of(theirs, seen), strict=True):
            close(mine, other)
    back = api.load(tmp_path / "ours", "cpu")
    same_tensors(ours.module, back.module)
    assert back.config == ours.config


@pytest.mark.parametrize("preset", ["tiny", "pendulum"])
def test_a_model_of_ours_keeps_its_space(preset: str, tmp_path: Path):
    recipe = recipes.load("control")
    space = {"states": 2, "actions": 2, "discrete": preset == "tiny", "mean": [0.5, 1], "std": [1, 2]}
    values = to_json(recipe.PRESETS[preset]) | {"space": json.dumps(space), "data": ""}
    config = recipes.from_json(type(recipe.PRESETS["tiny"]), values, "here")
    torch.manual_seed(0)
    model = shaken(recipe.build(config), 0)
    directory.export(tmp_path / "out", "control", to_json(config), model)
    theirs, back = opened(transformers.DecisionTransformerModel, tmp_path / "out"), api.load(tmp_path / "out", "cpu")
    same_tensors(model, back.module)
    assert back.module.space == model.space and (back.config.env, back.config.scale) == (config.env, config.scale)
    seen = {"wanted": torch.rand(2, 4, 1), "state": torch.rand(2, 4, 2), "action": torch.rand(2, 4, 2)}
    seen["at"] = torch.arange(4).expand(2, 4)
    with torch.no_grad():
        close(model(**seen)[0], theirs_of(theirs, seen | {"wanted": seen["wanted"] / config.scale})[0])
    asked = {"input": {"states": [[1, 2]], "wanted": 3}}
    assert back.predict(asked) == recipe.predict(model, asked)


def test_cloning_has_no_public_family(tmp_path: Path):
    recipe = recipes.load("control")
    config = recipes.from_json(
        type(recipe.PRESETS["tiny"]), to_json(recipe.PRESETS["tiny"]) | {"conditioned": False}, "here"
    )
    with pytest.raises(InputError, match=r"conditioned is false.*--preset small"):
        directory.export(tmp_path / "out", "control", to_json(config), recipe.build(config))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_inner": 19}, "c_fc"),
        ({"state_dim": 6}, r"embed_state.weight has shape \[24, 5\].*\[24, 6\]"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"activation_function": "mish"}, "activation_function is 'mish'"),
        ({"anyformer": {"scales": 3}}, "anyformer is"),
        ({"n_positions": 2}, "context is 2 nodes"),
    ],
)
def test_a_config_that_lies_is_refused(changes: dict[str, Any], says: str, tmp_path: Path):
    saved(library("plain"), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=says):
        api.load(tmp_path, "cpu")


def test_a_file_without_positions_is_refused(tmp_path: Path):
    saved(library("plain"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["encoder.wpe.weight"]
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks encoder\.wpe\.weight"):
        api.load(tmp_path, "cpu")
