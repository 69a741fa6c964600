"""Families of language models: logits and greedy generation equal those of transformers, in both directions."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer
from anyformer import recipe_loading
from anyformer.checkpoints import exports, hf_folder
from anyformer.conversion import export_checkpoint
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

QUICK = {
    "test_greedy_generation_equals_that_of_transformers": {
        "GPT2",
        "Llama, one layer, one key",
        "Qwen3, local layers",
        "Llama, llama3 scaling",
        "Llama, yarn",
        "Mistral",
        "Olmo2",
        "SmolLM3",
        "Phi3, longrope",
        "Gemma3",
    },
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 96},
    "Llama": {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4},
}
SIZES["Llama"] |= {"num_key_value_heads": 2, "max_position_embeddings": 96}
SIZES["Qwen3"] = SIZES["Llama"] | {"head_dim": 6}
SIZES |= dict.fromkeys(("Mistral", "Qwen2", "Olmo2", "SmolLM3", "Phi3"), SIZES["Llama"])
SIZES |= dict.fromkeys(("Gemma2", "Gemma3"), SIZES["Qwen3"] | {"num_hidden_layers": 5, "query_pre_attn_scalar": 10})
CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # others are named after their family
HEADS = {"GPT2": "GPT2LMHeadModel"}
SCALED = {"rope_theta": 500.0, "factor": 4.0}
YARN = SCALED | {"rope_type": "yarn", "original_max_position_embeddings": 24}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= SCALED | {"original_max_position_embeddings": 24}
LONGROPE = {"rope_type": "longrope", "rope_theta": 500.0, "original_max_position_embeddings": 64}
LONGROPE |= {"short_factor": [1.0, 1.1, 1.5], "long_factor": [1.2, 2.5, 7.0]}
LONG = {"max_position_embeddings": 160, "original_max_position_embeddings": 64}
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
    "Llama, linear scaling": {"rope_parameters": SCALED | {"rope_type": "linear"}},
    "Llama, dynamic scaling": {"rope_parameters": SCALED | {"rope_type": "dynamic"}, "max_position_embeddings": 24},
    "Llama, yarn": {"rope_parameters": YARN | {"beta_fast": 8.0, "attention_factor": 1.2}},
    "Llama, llama3 scaling": {"rope_parameters": LLAMA3},
    "Mistral": {"sliding_window": 7},
    "Mistral, global": {"sliding_window": None, "head_dim": 10},
    "Qwen2": {},
    "Qwen2, local layers, yarn": {
        "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "layer_types": LAYER_TYPES,
        "rope_parameters": YARN, "tie_word_embeddings": True,
    },
    "Olmo2": {"rms_norm_eps": 1e-3},
    "Olmo2, attention biases": {"attention_bias": True},
    "SmolLM3": {"num_hidden_layers": 5},
    "SmolLM3, other layers": {"num_hidden_layers": 3, "no_rope_layers": [0, 1, 1], "rope_parameters": YARN},
    "Phi3": {"sliding_window": 7},
    "Phi3, global": {"sliding_window": None, "tie_word_embeddings": True},
    "Phi3, longrope": {"rope_parameters": LONGROPE, "sliding_window": None, **LONG},
    "Phi3, longrope, another factor": {
        "rope_parameters": LONGROPE | {"attention_factor": 1.3}, "sliding_window": None, **LONG
    },
    "Gemma2": {"sliding_window": 7, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
    "Gemma2, no caps, untied": {
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False
    },
    "Gemma3": {"sliding_window": 7, "num_hidden_layers": 7},
    "Gemma3, scaled, capped logits": {
        "sliding_window": 5, "layer_types": LAYER_TYPES, "num_hidden_layers": 3, "final_logit_softcapping": 2.0,
        "rope_parameters": {
            "full_attention": SCALED | {"rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10.0, "rope_type": "default"},
        },
    },
}  # fmt: skip

HAS_5 = transformers.__version__ >= "5"
needs_5 = pytest.mark.skipif(not HAS_5, reason="names of version 5 of transformers")
if not HAS_5:
    WITH_4 = [case for case in CASES if case.startswith(("GPT2", "Llama", "Qwen3"))]
    CASES = {case: CASES[case] for case in WITH_4 if "yarn" not in case and "scaling" not in case}


def build(case: str) -> Any:
    family = case.split(",")[0]
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": 53}
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**SIZES[family] | ends | CASES[case])
    return build_reference(HEADS.get(family, f"{family}ForCausalLM"), config)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(53, shape, generator=torch.Generator().manual_seed(0))


def test_logits_equal_those_of_transformers(case: Exchange):
    with torch.no_grad():
        assert_close(case.module(random_ids(3, 41)), case.reference(random_ids(3, 41)).logits)
        if case.model.config.model.position == "rotary":  # it reaches beyond the context
            assert_close(case.module(random_ids(1, 131)), case.reference(random_ids(1, 131)).logits)


def test_greedy_generation_equals_that_of_transformers(case: Exchange):
    prompt = [7, 1, 30]
    expected = case.reference.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0, 3:].tolist()
    answer = case.model.generate(" ".join(map(str, prompt)), tokens=48, temperature=0)
    assert answer["samples"][0]["tokens"] == expected


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    with torch.no_grad():
        assert_close(case.module(random_ids(2, 41)), case.open_exported()(random_ids(2, 41)).logits)
    case.load_exported()


@needs_5
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gemma2", "Gemma3", "SmolLM3", "Olmo2", "Phi3"])
def test_a_graph_runs_in_onnxruntime(name: str, tmp_path: Path):
    """The export compares the graph with the model."""
    pytest.importorskip("onnxruntime", reason="the oracle of this test")
    for cached in (False, True):
        export_checkpoint(save(build(name), tmp_path / "source"), "onnx", tmp_path / f"out-{cached}", cached=cached)


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
    """Language and chat models are Qwen3, spans T5, control a decision transformer; the others say why not."""
    reasons = {}
    for name in recipe_loading.list_recipes():
        recipe = recipe_loading.load_recipe(name)
        reasons[name] = exports(recipe, recipe.PRESETS[recipe_loading.default_preset(recipe)])
    assert {name for name, formats in reasons.items() if formats["hf"] is None} == {
        "chat",
        "language",
        "preference",
        "grpo",
        "spans",
        "control",
    }
    assert "local_layers is 3" in reasons["vision"]["hf"] and "--preset tiny or vit-base" in reasons["vision"]["hf"]
    assert "qwen3: activation is relu2, not swiglu" in reasons["language"]["gguf"]
    assert "no Hugging Face family has models of the recipe 'mlp'" in reasons["mlp"]["hf"]
    assert {name for name, formats in reasons.items() if formats["onnx"]} == WITHOUT_GRAPH


# --- configs that cannot be read ---


@needs_5
@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        ("Llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope', which is not supported"),
        ("Llama", {"rope_parameters": LLAMA3 | {"factor": 0.5}}, "factor is 0.5; it must be a number from 1"),
        ("Llama", {"rope_parameters": SCALED | {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        (
            "Llama",
            {"rope_parameters": SCALED | {"rope_type": "linear", "factor": [2]}},
            "factor is .2.; it must",
        ),
        ("Llama", {"rope_parameters": SCALED | {"rope_type": "dynamic", "factor": 1e300}}, "context is"),
        ("Llama", {"rope_parameters": YARN | {"truncate": False}}, "truncate is False"),
        ("Llama", {"rope_parameters": YARN | {"mscale": 2.0}}, "the field mscale = 2.0 is unknown"),
        ("Llama", {"rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("Mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("Mistral", {"attention_bias": True}, "attention_bias is True"),
        ("Qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types must be a list of 2 names"),
        ("Olmo2", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is unknown"),
        ("SmolLM3", {"no_rope_layers": [1, 2, 0, 0, 1]}, "no_rope_layers must be a list of 5 numbers"),
        ("SmolLM3", {"use_sliding_window": True}, "use_sliding_window is True"),
        (
            "Phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}},
            "short_factor must be a",
        ),
        (
            "Phi3",
            {"rope_scaling": YARN | {"rope_theta": 1e4}, "rope_parameters": None},
            "original_max_position_embeddings is 24",
        ),
        ("Phi3, longrope", {"rope_parameters": LONGROPE | {"long_factor": [0.0] * 3}}, "long_factor must be a list"),
        ("Phi3, longrope", {"rope_parameters": LONGROPE | {"mscale": 2.0}}, "the field mscale = 2.0 is unknown"),
        ("Phi3, longrope", {"original_max_position_embeddings": 32}, "original_max_position_embeddings is "),
        ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("Gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1; it must be above 0"),
        ("Gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; it must be above 0"),
        (
            "Gemma2",
            {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3},
            "all layers local but every k-th",
        ),
        ("Gemma3", {"rope_local_base_freq": 3.0}, "rope_local_base_freq is 3.0"),
        ("Gemma3", {"rope_parameters": {"sliding_attention": YARN}}, "the rope_type of sliding_attention must be"),
        ("Gemma3", {"rope_parameters": {"full_attention": SCALED | {"rope_type": "dynamic"}}}, "'dynamic'"),
    ],
)
def test_a_config_with_another_result_is_refused(case: str, fields: dict[str, Any], message: str, tmp_path: Path):
    edit_config(save(build(case), tmp_path), **fields)
    with pytest.raises(InputError, match=message) as error:
        anyformer.load(tmp_path, "cpu")
    assert "\n" not in str(error.value)


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
