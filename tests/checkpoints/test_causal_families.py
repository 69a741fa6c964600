"""GPT-2, Llama and Qwen3: logits and greedy generation equal those of transformers, in both directions."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer
from anyformer import recipe_loading
from anyformer.checkpoints import exports, hf_folder
from anyformer.errors import InputError
from anyformer.parsing import to_json
from anyformer.trained_model import Model
from checkpoint_kit import (
    Exchange,
    assert_close,
    build_reference,
    edit_config,
    export,
    open_reference,
    save,
    transformers,
)

SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 96},
    "Llama": {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4},
}
SIZES["Llama"] |= {"num_key_value_heads": 2, "max_position_embeddings": 96}
SIZES["Qwen3"] = SIZES["Llama"] | {"head_dim": 6}
ROTARY_500 = {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
CASES: dict[str, dict[str, Any]] = {
    "GPT2": {},
    "GPT2, one layer, narrow relu": {"n_layer": 1, "n_head": 1, "n_inner": 17, "activation_function": "relu"},
    "GPT2, exact gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "GPT2, untied": {"tie_word_embeddings": False},
    "Llama": {},
    "Llama, one layer, one key": {"num_hidden_layers": 1, "num_key_value_heads": 1},
    "Llama, all keys, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "Llama, biases": {"attention_bias": True, "mlp_bias": True},
    "Llama, attention biases": {"attention_bias": True},
    "Llama, MLP biases": {"mlp_bias": True, "rms_norm_eps": 1e-3},
    "Llama, wide heads": {"head_dim": 10, **ROTARY_500},
    "Qwen3": {},
    "Qwen3, tied, wide heads": {"tie_word_embeddings": True, "head_dim": 10, **ROTARY_500},
    "Qwen3, local layers": {
        "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "layer_types": LAYER_TYPES
    },
}  # fmt: skip


def build(case: str) -> Any:
    family = case.split(",")[0]
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": 53}
    config = getattr(transformers, f"{family}Config")(**SIZES[family] | ends | CASES[case])
    return build_reference("GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM", config)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(53, shape, generator=torch.Generator().manual_seed(0))


def test_logits_equal_those_of_transformers(case: Exchange):
    with torch.no_grad():
        assert_close(case.module(random_ids(3, 41)), case.reference(random_ids(3, 41)).logits)


def test_greedy_generation_equals_that_of_transformers(case: Exchange):
    prompt = [7, 1, 30]
    expected = case.reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, 3:].tolist()
    answer = case.model.generate(" ".join(map(str, prompt)), tokens=48, temperature=0)
    assert answer["samples"][0]["tokens"] == expected


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    with torch.no_grad():
        assert_close(case.module(random_ids(2, 41)), case.open_exported()(random_ids(2, 41)).logits)
    case.load_exported()


# --- models of anyformer's own presets ---


def build_preset(preset: str) -> Model:
    """Build a language model of a preset's architecture with small sizes."""
    recipe = recipe_loading.load_recipe("language")
    config = recipe.PRESETS[preset]
    sizes = {"dim": 24, "n_layer": 4, "n_head": 4, "context": 64, "head_dim": None, "mlp_dim": 40}
    sizes |= {"n_kv_head": 2 if config.model.n_kv_head else None}
    window = None if config.window is None else 7
    model = dataclasses.replace(config.model, **sizes)
    config = dataclasses.replace(config, model=model, window=window, tokenizer="ids", vocab_size=53, padded_vocab=None)
    torch.manual_seed(0)
    module = recipe.build(config)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return Model(recipe, config, module, {"step": 0}, Path("unsaved"))


@pytest.mark.parametrize("preset", recipe_loading.load_recipe("language").PRESETS)
def test_exports_says_before_training_what_can_be_written(preset: str, tmp_path: Path):
    """Presets with rotary positions, QK norm and squared ReLU (the default among them) are written as Qwen3."""
    model = build_preset(preset)
    reason = exports(model.recipe, model.config)["hf"]
    if reason is not None:
        with pytest.raises(InputError) as error:
            export(model, tmp_path / "out")
        assert str(error.value) == reason
        assert not (tmp_path / "out").exists()
        return
    folder = export(model, tmp_path / "out")
    reference = open_reference(transformers.AutoModelForCausalLM, folder)
    again = anyformer.load(folder, "cpu")
    with torch.no_grad():
        logits = model.module(random_ids(2, 41))
        assert_close(logits, reference(random_ids(2, 41)).logits)
        assert torch.equal(logits, again.module(random_ids(2, 41)))
    kept = ("activation", "position", "qk_norm", "norm")
    assert [getattr(again.config.model, name) for name in kept] == [getattr(model.config.model, name) for name in kept]
    assert again.config.window == model.config.window


WITHOUT_GRAPH = {"generalist", "mask_predict", "recall", "rnnsearch", "seq2seq"}


def test_default_presets_with_a_public_family():
    """Language, chat and preference are Qwen3, spans T5, control a decision transformer; the others say why not."""
    reasons = {}
    for name in recipe_loading.list_recipes():
        recipe = recipe_loading.load_recipe(name)
        reasons[name] = exports(recipe, recipe.PRESETS[recipe_loading.default_preset(recipe)])
    assert {name for name, formats in reasons.items() if formats["hf"] is None} == {
        "chat",
        "language",
        "preference",
        "spans",
        "control",
    }
    assert "local_layers is 3" in reasons["vision"]["hf"] and "--preset tiny or vit-base" in reasons["vision"]["hf"]
    assert "qwen3: activation is relu2, not swiglu" in reasons["language"]["gguf"]
    assert "no Hugging Face family has models of the recipe 'mlp'" in reasons["mlp"]["hf"]
    assert {name for name, formats in reasons.items() if formats["onnx"]} == WITHOUT_GRAPH


# --- Qwen3 configs that cannot be read ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is supported only where .*gate_proj.weight equals"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"max_window_layers": [1]}, r"max_window_layers is \[1\]; it must be a number"),
        ({"layer_types": ["full_attention"]}, "layer_types must be a list of 2 names"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
            "supported: all layers local but every k-th",
        ),
    ],
)
def test_a_qwen3_config_with_another_result_is_refused(fields: dict[str, Any], message: str, tmp_path: Path):
    edit_config(save(build("Qwen3"), tmp_path), **fields)
    with pytest.raises(InputError, match=message):
        hf_folder.open_checkpoint(tmp_path)


def test_what_a_family_cannot_express_is_not_dropped(tmp_path: Path):
    """A parameter that the family's table does not mention stops the export."""
    model = build_preset("llama")
    model.module.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(InputError, match="this family has no tensor for extra"):
        hf_folder.write(tmp_path / "out", model.recipe, to_json(model.config), model.module)
    assert not (tmp_path / "out").exists()
