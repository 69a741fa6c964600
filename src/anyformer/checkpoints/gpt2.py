"""GPT-2 (Radford et al. 2019), as the `gpt2` family of public checkpoints has it.

Linear maps are stored [in, out], query, key and value side by side. Biases are always there; a model of ours without
them is one whose biases are zero, and comes back without them.
"""

from typing import Any

from ..errors import InputError
from .config_fields import Fields, activations
from .safetensors_files import Weights
from .tensor_map import Row, Values, affine, layers, lm_head, row

RECIPE = "language"
ARCHITECTURE = "GPT2LMHeadModel"
PRESETS = ("nanogpt-cpu", "gpt2")  # of the recipe, that can be exported


def spelling(name: str) -> str | None:
    """With or without `transformer.`; the masks that old files carry and the tied head say nothing new."""
    bare = name.removeprefix("transformer.")
    if bare.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return bare if bare == "lm_head.weight" else f"transformer.{bare}"


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the language recipe's."""
    c.must(add_cross_attention=False, scale_attn_weights=True, reorder_and_upcast_attn=False)
    c.must(scale_attn_by_inverse_layer_idx=False)
    dim = c.size("n_embd", 768)
    model = {
        "dim": dim,
        "n_layer": c.size("n_layer", 12, most=len(weights.shapes)),
        "n_head": c.size("n_head", 12),
        "mlp_dim": c.size("n_inner", 4 * dim),
        "context": c.size("n_positions", 1024),
        "activation": c.choice("activation_function", activations(), "gelu_new"),
        "norm_eps": c.number("layer_norm_epsilon", 1e-5),
        "bias": biased(weights),
        "dropout": c.dropout("resid_pdrop"),
    }
    return {"model": model, "tied": c.flag("tie_word_embeddings", True), "padded_vocab": c.size("vocab_size")}


def biased(weights: Weights) -> bool:
    """Whether any bias is not zero."""
    biases = [name for name in weights.shapes if name.endswith(".bias")]
    return any(bool(weights.rows(name, 0, weights.shapes[name][0]).any()) for name in biases)


def write(values: Values, own: Any) -> Values:
    """The language recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m = values["model"]
    wanted = {"position": "learned", "norm": "layernorm", "norm_place": "pre", "qk_norm": False, "scale": None}
    for name, right in wanted.items():
        if m[name] != right:
            raise InputError(f"{name} is {m[name]}, not {right}")
    if values["window"] is not None:
        raise InputError("some layers are local")
    if m["n_kv_head"] not in (None, m["n_head"]) or m["head_dim"] not in (None, m["dim"] // m["n_head"]):
        raise InputError("heads of keys are fewer, or channels of heads are not dim / n_head")
    known = {ours: theirs for theirs, ours in reversed(activations().items())}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    vocab = own["nodes.token.weight"].shape[0]
    return {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": m["context"],
        "n_ctx": m["context"],
        "n_embd": m["dim"],
        "n_layer": m["n_layer"],
        "n_head": m["n_head"],
        "n_inner": m["mlp_dim"] or 4 * m["dim"],
        "activation_function": known[m["activation"]],
        "layer_norm_epsilon": m["norm_eps"],
        "tie_word_embeddings": values["tied"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), m["dropout"]),
    }


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    ours, theirs = "body.blocks.{i}", "transformer.h.{i}"
    told = [f"{ours}.attn.{name}" for name in ("query", "key", "value")]
    block = [
        *affine(f"{ours}.attn_norm", f"{theirs}.ln_1"),
        *affine(told, f"{theirs}.attn.c_attn", flip=True),
        *affine(f"{ours}.attn.output", f"{theirs}.attn.c_proj", flip=True),
        *affine(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        *affine(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", flip=True),
        *affine(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", flip=True),
    ]
    return [
        row("nodes.token.weight", "transformer.wte.weight"),
        row("nodes.position.weight", "transformer.wpe.weight"),
        *layers(c.get("n_layer", 12), block),
        *affine("body.norm", "transformer.ln_f"),
        lm_head(c.get("tie_word_embeddings", True)),
    ]
