"""BERT (1810.04805), as the `bert` family of public checkpoints has it: with its head for masked tokens, or without.

Post-norm; the embedding is normed too, and tells which of two texts a token is of. What read the first node (pooler) or
guessed the next sentence is passed over.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import Fields, activations
from .safetensors_files import Weights
from .tensor_map import Row, Values, affine, layers, row

RECIPE = "masked"
ARCHITECTURE = "BertForMaskedLM"
PRESETS = ("bert",)
IGNORED = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")


def spelling(name: str) -> str | None:
    """With or without `bert.`; gamma and beta are the weight and bias of a norm."""
    bare = name.removeprefix("bert.")
    if bare.startswith(IGNORED):
        return None
    for old, new in {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}.items():
        bare = bare.replace(old, new)
    return bare if bare.startswith("cls.") else f"bert.{bare}"


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the masked recipe's."""
    c.must(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    dim = c.size("hidden_size", 768)
    model = {
        "dim": dim,
        "n_layer": c.size("num_hidden_layers", 12, most=len(weights.shapes)),
        "n_head": c.size("num_attention_heads", 12),
        "mlp_dim": c.size("intermediate_size", 3072),
        "context": c.size("max_position_embeddings", 512),
        "norm_place": "post",
        "norm_eps": c.number("layer_norm_eps", 1e-12),
        "activation": c.choice("hidden_act", activations(), "gelu"),
        "dropout": c.dropout("hidden_dropout_prob"),
    }
    return {
        "model": model,
        "tied": c.flag("tie_word_embeddings", True),
        "padded_vocab": c.size("vocab_size", 30522),
        "kinds": c.size("type_vocab_size", 2),
        "normed": True,
    }


def write(values: Values, own: Mapping[str, Tensor]) -> Values:
    """The masked recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m = values["model"]
    wanted = {"position": "learned", "norm": "layernorm", "norm_place": "post", "bias": True, "qk_norm": False}
    for name, right in (wanted | {"scale": None}).items():
        if m[name] != right:
            raise InputError(f"{name} is {m[name]}, not {right}")
    if not values["normed"] or not values["kinds"]:
        raise InputError("the nodes are not normed, or tell no kind")
    if m["n_kv_head"] not in (None, m["n_head"]) or m["head_dim"] not in (None, m["dim"] // m["n_head"]):
        raise InputError("heads of keys are fewer, or channels of heads are not dim / n_head")
    known = {ours: theirs for theirs, ours in reversed(activations().items())}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    return {
        "model_type": "bert",
        "vocab_size": own["nodes.token.weight"].shape[0],
        "hidden_size": m["dim"],
        "num_hidden_layers": m["n_layer"],
        "num_attention_heads": m["n_head"],
        "intermediate_size": m["mlp_dim"] or 4 * m["dim"],
        "max_position_embeddings": m["context"],
        "type_vocab_size": values["kinds"],
        "layer_norm_eps": m["norm_eps"],
        "hidden_act": known[m["activation"]],
        "tie_word_embeddings": values["tied"],
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), m["dropout"]),
    }


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    ours, theirs = "body.blocks.{i}", "bert.encoder.layer.{i}"
    block = [
        *(r for n in ("query", "key", "value") for r in affine(f"{ours}.attn.{n}", f"{theirs}.attention.self.{n}")),
        *affine(f"{ours}.attn.output", f"{theirs}.attention.output.dense"),
        *affine(f"{ours}.attn_norm", f"{theirs}.attention.output.LayerNorm"),
        *affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        *affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        *affine(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
    ]
    tied, head = c.get("tie_word_embeddings", True), "cls.predictions.decoder"
    own = ("nodes.token.weight", "head.project.bias") if tied else ("head.project.weight", "head.project.bias")
    again = {"again": True} if tied else {"fresh": True}  # untied, the bias of the matrix is the one that counts
    return [
        row("nodes.token.weight", "bert.embeddings.word_embeddings.weight"),
        row("nodes.position.weight", "bert.embeddings.position_embeddings.weight"),
        row("nodes.kind.weight", "bert.embeddings.token_type_embeddings.weight"),
        *affine("nodes.norm", "bert.embeddings.LayerNorm"),
        *layers(c.get("num_hidden_layers", 12), block),
        *affine("head.think", "cls.predictions.transform.dense", fresh=True),
        *affine("head.norm", "cls.predictions.transform.LayerNorm", fresh=True),
        row("head.project.bias", "cls.predictions.bias", fresh=True),
        row(own[0], f"{head}.weight", **again),
        row(own[1], f"{head}.bias", **again),
    ]
