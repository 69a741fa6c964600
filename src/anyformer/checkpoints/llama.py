"""Llama (2302.13971 and after), as the `llama` family of public checkpoints has it.

Rotary positions turn channel i with channel i + D/2, as ours do. Biases are there for attention, for the MLP, for both
or for neither; ours has them everywhere or nowhere, and those that a file lacks are zero.
"""

from typing import Any

from ..errors import InputError
from .config_fields import Fields
from .safetensors_files import Weights
from .tensor_map import Row, Values, affine, layers, lm_head, row, unbiased, zero

RECIPE = "language"
ARCHITECTURE = "LlamaForCausalLM"
PRESETS = ("llama",)
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
ATTENTION, MLP = ("query", "key", "value", "output"), ("up", "gate", "down")


def spelling(name: str) -> str | None:
    """With or without `model.`; old files carry the frequencies of the rotary position."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the language recipe's."""
    c.must(pretraining_tp=1)
    heads = c.size("num_attention_heads")
    model = {
        "dim": c.size("hidden_size"),
        "n_layer": c.size("num_hidden_layers", most=len(weights.shapes)),
        "n_head": heads,
        "n_kv_head": c.size("num_key_value_heads", heads),
        "head_dim": c.size("head_dim", None),
        "mlp_dim": c.size("intermediate_size"),
        "context": c.size("max_position_embeddings", 2048),
        "position": "rotary",
        "rotary_base": rotary_base(c),
        "norm": "rmsnorm",
        "norm_eps": c.number("rms_norm_eps", 1e-6),
        "activation": c.choice("hidden_act", ACTIVATIONS, "silu"),
        "bias": c.flag("attention_bias", False) | c.flag("mlp_bias", False),
        "dropout": c.dropout("attention_dropout"),
    }
    return {"model": model, "tied": c.flag("tie_word_embeddings", False), "padded_vocab": c.size("vocab_size")}


def rotary_base(c: Fields) -> float:
    """Version 5 of the library nests it, version 4 does not. A scaling of the angles is one we do not have."""
    nested = Fields(c.value("rope_parameters", {}), f"{c.where}: rope_parameters")
    scaling = Fields(c.value("rope_scaling", {}), f"{c.where}: rope_scaling")
    for kind in (nested, scaling):
        kind.choice("rope_type", {"default": True}, "default")
        kind.choice("type", {"default": True}, "default")
        kind.must(partial_rotary_factor=1.0)
    outer = c.number("rope_theta", nested.number("rope_theta", 10_000.0))
    base = nested.number("rope_theta", outer)
    if base != outer:
        raise InputError(f"{c.where}: rope_theta is {outer:g}, and in rope_parameters {base:g}: which one is meant?")
    c.must(partial_rotary_factor=1.0)
    scaling.value("rope_theta", None)
    nested.done(), scaling.done()
    return base


def write(values: Values, own: Any) -> Values:
    """The language recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m = values["model"]
    wanted = {"position": "rotary", "norm": "rmsnorm", "norm_place": "pre", "qk_norm": False, "scale": None}
    for name, right in wanted.items():
        if m[name] != right:
            raise InputError(f"{name} is {m[name]}, not {right}")
    if values["window"] is not None:
        raise InputError("some layers are local")
    known = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    blocks = [f"body.blocks.{i}" for i in range(m["n_layer"])]
    return {
        "model_type": "llama",
        "vocab_size": own["nodes.token.weight"].shape[0],
        "hidden_size": m["dim"],
        "num_hidden_layers": m["n_layer"],
        "num_attention_heads": m["n_head"],
        "num_key_value_heads": m["n_kv_head"] or m["n_head"],
        "head_dim": m["head_dim"] or m["dim"] // m["n_head"],
        "intermediate_size": m["mlp_dim"] or 4 * m["dim"],
        "max_position_embeddings": m["context"],
        "rope_theta": m["rotary_base"],
        "rope_parameters": {"rope_type": "default", "rope_theta": m["rotary_base"]},
        "rms_norm_eps": m["norm_eps"],
        "hidden_act": known[m["activation"]],
        "attention_bias": not zero(own, *(f"{block}.attn.{name}.bias" for block in blocks for name in ATTENTION)),
        "mlp_bias": not zero(own, *(f"{block}.mlp.{name}.bias" for block in blocks for name in MLP)),
        "attention_dropout": m["dropout"],
        "tie_word_embeddings": values["tied"],
    }


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    ours, theirs = "body.blocks.{i}", "model.layers.{i}"
    attend = affine if c.get("attention_bias") else unbiased
    think = affine if c.get("mlp_bias") else unbiased
    short = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    block = [
        row(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight"),
        *(r for name in ATTENTION for r in attend(f"{ours}.attn.{name}", f"{theirs}.self_attn.{short[name]}")),
        row(f"{ours}.mlp_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
        *(r for name in MLP for r in think(f"{ours}.mlp.{name}", f"{theirs}.mlp.{name}_proj")),
    ]
    return [
        row("nodes.token.weight", "model.embed_tokens.weight"),
        *layers(c["num_hidden_layers"], block),
        row("body.norm.weight", "model.norm.weight"),
        lm_head(c.get("tie_word_embeddings", False)),
    ]
