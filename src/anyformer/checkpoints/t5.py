"""T5 (1910.10683), as the `t5` family of public checkpoints has it: v1.0 and v1.1.

No biases, scores that are not divided by the root of a head's channels, positions as buckets of distances that all
layers of a stack share. v1.0 ties the head to the embedding and scales what it reads; v1.1 (2002.05202) does neither,
and its MLP is gated. Older files say both by `tie_word_embeddings`; newer ones always say that they tie, and tell the
scale apart: there, a head in the file is an own one.
"""

import json
from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import Fields
from .safetensors_files import Weights
from .tensor_map import Row, Values, layers, row

RECIPE = "translation"
ARCHITECTURE = "T5ForConditionalGeneration"
PRESETS = ("t5", "t5-v1.1")
FEED_FORWARD = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}  # theirs -> ours
DENSE = {"gated-gelu": "gelu_new", "gated-silu": "silu"}  # what newer files call the activation inside
ALIKE = ("dim", "n_head", "n_kv_head", "head_dim", "mlp_dim", "norm_eps", "activation", "dropout")
LONGEST = 4096  # nodes: nothing in the maths limits a context, but the memory that generation takes does
PARTS = {"query": "q", "key": "k", "value": "v", "output": "o"}


def spelling(name: str) -> str | None:
    """Old files hold the shared embedding once for each stack too, and positions of cross-attention nobody reads."""
    if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        return None
    return None if name.endswith("EncDecAttention.relative_attention_bias.weight") else name


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the translation recipe's."""
    c.must(relative_attention_num_buckets=32, relative_attention_max_distance=128, is_decoder=False)
    proj = c.value("feed_forward_proj", "relu")
    shape = {
        "dim": c.size("d_model", 512),
        "n_head": c.size("num_heads", 8),
        "head_dim": c.size("d_kv", 64),
        "mlp_dim": c.size("d_ff", 2048),
        "context": min(c.size("n_positions", 512), LONGEST),
        "position": "relative",
        "norm": "rmsnorm",
        "norm_eps": c.number("layer_norm_epsilon", 1e-6),
        "activation": c.choice("feed_forward_proj", FEED_FORWARD, "relu"),
        "bias": False,
        "scale": 1.0,
        "dropout": c.dropout("dropout_rate"),
    }
    c.must(dense_act_fn=DENSE.get(proj, proj), is_gated_act=proj in DENSE)
    most = len(weights.shapes)
    n_layer = c.size("num_layers", 6, most=most)
    vocab = c.size("vocab_size", 32128)
    says = c.flag("tie_word_embeddings", True)
    tied = "lm_head.weight" not in weights.shapes if "scale_decoder_outputs" in c.values else says
    if isinstance(c.values, dict):
        c.values["tie_word_embeddings"] = tied  # what `rows` goes by
    return {
        "encoder": shape | {"n_layer": n_layer},
        "decoder": shape | {"n_layer": c.size("num_decoder_layers", n_layer, most=most)},
        "shared": True,
        "tied": tied,
        "scaled": c.flag("scale_decoder_outputs", says),
        "padded_vocab": vocab,
        "start": token(c, "decoder_start_token_id", token(c, "pad_token_id", 0, vocab), vocab),
        "end": token(c, "eos_token_id", 1, vocab),
    }


def token(c: Fields, name: str, default: int, vocab: int) -> int:
    found = c.value(name, default)
    if type(found) is not int or not 0 <= found < vocab:
        raise InputError(f"{c.where}: {name} is {found!r}; it must be an id from 0 to {vocab - 1}")
    return found


def write(values: Values, own: Mapping[str, Tensor]) -> Values:
    """The translation recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m, encoder = values["decoder"], values["encoder"]
    wanted = {
        "position": "relative",
        "norm": "rmsnorm",
        "norm_place": "pre",
        "qk_norm": False,
        "bias": False,
        "scale": 1,
    }
    for stack in ("encoder", "decoder"):
        for name, right in wanted.items():
            if values[stack][name] != right:
                raise InputError(f"{stack}.{name} is {values[stack][name]}, not {right}")
    for name in ALIKE:
        if m[name] != encoder[name]:
            raise InputError(f"{name} is {encoder[name]} in the encoder and {m[name]} in the decoder")
    if m["n_kv_head"] not in (None, m["n_head"]):
        raise InputError("heads of keys are fewer")
    if not values["shared"] or values["tied"] != values["scaled"]:
        raise InputError("source and target must share an embedding, and a tied head be scaled, an own one not")
    if values["start"] is None or values["end"] is None:
        raise InputError("the ids that begin and end a target must be given: start and end")
    known = {ours: theirs for theirs, ours in FEED_FORWARD.items()}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    return {
        "model_type": "t5",
        "vocab_size": own["source.token.weight"].shape[0],
        "d_model": m["dim"],
        "d_kv": m["head_dim"] or m["dim"] // m["n_head"],
        "d_ff": m["mlp_dim"] or 4 * m["dim"],
        "num_layers": encoder["n_layer"],
        "num_decoder_layers": m["n_layer"],
        "num_heads": m["n_head"],
        "n_positions": max(m["context"], encoder["context"]),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": known[m["activation"]],
        "layer_norm_epsilon": m["norm_eps"],
        "dropout_rate": m["dropout"],
        "tie_word_embeddings": values["tied"],
        "is_encoder_decoder": True,
        **ids(values),
    }


def ids(values: Values) -> Values:
    """Their names for the ids that begin and end a target; what a target begins with also pads."""
    return {
        "decoder_start_token_id": values["start"],
        "pad_token_id": values["start"],
        "bos_token_id": None,
        "eos_token_id": values["end"],
    }


def beside(values: Values, texts: Mapping[str, str]) -> dict[str, str]:
    """Their generation does not start without knowing where a target begins."""
    return {"generation_config.json": texts.get("generation_config.json", json.dumps(ids(values), indent=2))}


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    tied, encoder = c.get("tie_word_embeddings", True), c.get("num_layers", 6)
    decoder = c.get("num_decoder_layers") or encoder
    own_head = row("head.project.weight", "lm_head.weight")
    return [
        row("source.token.weight", "shared.weight"),
        *stack("encoder", encoder, c),
        *stack("decoder", decoder, c),
        row("source.token.weight", "lm_head.weight", again=True) if tied else own_head,
    ]


def stack(name: str, n: int, c: Values) -> list[Row]:
    """The rows of the encoder or the decoder, whose blocks listen too."""
    ours, theirs = f"{name}.blocks.{{i}}", f"{name}.block.{{i}}.layer"
    last = 2 if name == "decoder" else 1
    gated = str(c.get("feed_forward_proj", "relu")).startswith("gated")
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    block = attend(f"{ours}.attn", f"{theirs}.0", "SelfAttention")
    block += attend(f"{ours}.cross", f"{theirs}.1", "EncDecAttention") if last == 2 else []
    block += [row(f"{ours}.mlp.{a}.weight", f"{theirs}.{last}.DenseReluDense.{b}.weight") for a, b in mlp.items()]
    block += [row(f"{ours}.mlp_norm.weight", f"{theirs}.{last}.layer_norm.weight")]
    return [
        *layers(n, block),
        row(f"{name}.bias.weight", f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        row(f"{name}.norm.weight", f"{name}.final_layer_norm.weight"),
    ]


def attend(ours: str, theirs: str, kind: str) -> list[Row]:
    """Attention, and the norm before it."""
    maps = [row(f"{ours}.{a}.weight", f"{theirs}.{kind}.{b}.weight") for a, b in PARTS.items()]
    return [*maps, row(f"{ours}_norm.weight", f"{theirs}.layer_norm.weight")]
