"""Decision Transformer: predicted actions, states and returns equal those of transformers, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer
from anyformer import recipe_loading
from anyformer.errors import InputError
from anyformer.parsing import to_json
from anyformer.trained_model import Model
from checkpoint_kit import (
    Exchange,
    assert_close,
    assert_same_tensors,
    build_reference,
    edit_config,
    export,
    open_reference,
    randomize,
    save,
    transformers,
)

SIZES: dict[str, Any] = {
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
    "no tanh, one layer, one head": {"action_tanh": False, "n_layer": 1, "n_head": 1, "state_dim": 1, "act_dim": 1},
    "gelu_new, narrow MLP, another eps": {
        "activation_function": "gelu_new", "n_inner": 17, "n_positions": 31, "layer_norm_epsilon": 1e-2
    },
}  # fmt: skip
KIND = transformers.DecisionTransformerModel
Episode = dict[str, torch.Tensor]


def build(case: str) -> Any:
    config = transformers.DecisionTransformerConfig(**SIZES | CASES[case])
    return build_reference("DecisionTransformerModel", config)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def random_episodes(config: Any, steps: int) -> Episode:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(config.max_ep_len - steps + 1, (3, 1), generator=generator)
    return {
        "return_to_go": torch.randn(3, steps, 1, generator=generator),
        "state": torch.randn(3, steps, config.state_dim, generator=generator),
        "action": torch.randn(3, steps, config.act_dim, generator=generator),
        "timestep": start + torch.arange(steps),
    }


def assert_same_predictions(module: Any, reference: Any, episode: Episode) -> None:
    with torch.no_grad():
        for actual, expected in zip(module(*episode.values()), predict_reference(reference, episode), strict=True):
            assert_close(actual, expected)


@torch.no_grad()
def predict_reference(model: Any, episode: Episode, **options: torch.Tensor) -> list[torch.Tensor]:
    names = {"states": "state", "actions": "action", "returns_to_go": "return_to_go", "timesteps": "timestep"}
    output = model(**{theirs: episode[ours] for theirs, ours in names.items()}, **options)
    return [output.action_preds, output.state_preds, output.return_preds]


@pytest.mark.parametrize("steps", [1, 10])
def test_predictions_equal_those_of_transformers(steps: int, case: Exchange):
    assert_same_predictions(case.module, case.reference, random_episodes(case.reference.config, steps))


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    reference = case.open_exported()
    assert_same_predictions(case.module, reference, random_episodes(reference.config, 7))
    case.load_exported()


def test_left_padding_there_equals_right_padding_here(tmp_path: Path):
    reference = build("plain")
    model, episode = anyformer.load(save(reference, tmp_path), "cpu"), random_episodes(reference.config, 4)
    left = {name: torch.cat([torch.zeros_like(part[:, :3]), part], 1) for name, part in episode.items()}
    right = {name: torch.cat([part, torch.zeros_like(part[:, :3])], 1) for name, part in episode.items()}
    mask = torch.tensor([[0] * 3 + [1] * 4] * 3)
    with torch.no_grad():
        pairs = zip(model.module(*right.values()), predict_reference(reference, left, attention_mask=mask), strict=True)
        for actual, expected in pairs:
            assert_close(actual[:, :4], expected[:, 3:])


# --- models of anyformer's own presets ---


def build_preset(preset: str, **fields: Any) -> Model:
    recipe = recipe_loading.load_recipe("control")
    values = to_json(recipe.PRESETS[preset]) | {"data": ""} | fields
    config = recipe_loading.parse_config(recipe, values, "test")
    torch.manual_seed(0)
    return Model(recipe, config, randomize(recipe.build(config)), {"step": 0}, Path("unsaved"))


@pytest.mark.parametrize("preset", ["tiny", "pendulum"])
def test_an_exported_model_keeps_its_normalization_and_scale(preset: str, tmp_path: Path):
    space = {"states": 2, "actions": 2, "discrete": preset == "tiny", "mean": [0.5, 1], "std": [1, 2]}
    model = build_preset(preset, space=json.dumps(space))
    folder = export(model, tmp_path / "out")
    reference, again = open_reference(KIND, folder), anyformer.load(folder, "cpu")
    assert_same_tensors(model.module, again.module)
    config = model.config
    assert again.module.files == model.module.files
    assert (again.config.env, again.config.return_scale) == (config.env, config.return_scale)
    episode = random_episodes(reference.config, 4)
    expected = predict_reference(reference, episode | {"return_to_go": episode["return_to_go"] / config.return_scale})
    with torch.no_grad():
        assert_close(model.module(*episode.values())[0], expected[0])
    request = {"input": {"states": [[1, 2]], "wanted": 3}}
    assert again.predict(request) == model.predict(request)


def test_folders_with_the_field_names_of_version_0_1_are_read(tmp_path: Path):
    model = build_preset("tiny", space=json.dumps({"states": 2, "actions": 2, "discrete": True}))
    folder = export(model, tmp_path / "out")
    own = json.loads((folder / "config.json").read_text())["anyformer"]
    old_names = {"target_return": "wanted", "return_scale": "scale", "aux_loss_weight": "foresee"}
    edit_config(folder, anyformer={old_names.get(name, name): value for name, value in own.items()})
    again = anyformer.load(folder, "cpu").config
    assert all(getattr(again, name) == getattr(model.config, name) for name in old_names)


def test_behavior_cloning_has_no_public_family(tmp_path: Path):
    with pytest.raises(InputError, match=r"conditioned is False, not True.*--preset tiny or small"):
        export(build_preset("tiny", conditioned=False, data="line"), tmp_path / "out")


# --- files ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_inner": 19}, "c_fc"),
        ({"state_dim": 6}, r"embed_state.weight has shape \[24, 5\].*\[24, 6\]"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"activation_function": "mish"}, "activation_function is 'mish'"),
        ({"anyformer": {"scales": 3}}, "anyformer is"),
        ({"n_positions": 2}, "context is 2 nodes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields: dict[str, Any], message: str, tmp_path: Path):
    edit_config(save(build("plain"), tmp_path), **fields)
    with pytest.raises(InputError, match=message):
        anyformer.load(tmp_path, "cpu")


def test_a_file_without_positions_is_refused(tmp_path: Path):
    save(build("plain"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.wpe.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks encoder\.wpe\.weight"):
        anyformer.load(tmp_path, "cpu")
