"""Llama (2302.13971 and later): the `llama` family.

Rotary positions rotate channel i with channel i + D/2, as anyformer's do. A file has biases in attention, in the MLP,
in both or in neither; a local model has them everywhere or nowhere, and those that a file lacks are zero.
"""

from collections.abc import Mapping

from torch import Tensor

from .config_fields import REQUIRED, ConfigFields
from .family import Family
from .rotary import check_rotary, read_rotary, write_rotary
from .tensor_map import ConfigDict, TensorMap, WeightSource, are_zero, map_affine, map_layers, map_lm_head, map_weight

ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
FIELDS = {
    "hidden_size": ("dim", REQUIRED),
    "num_hidden_layers": ("n_layer", REQUIRED),
    "num_attention_heads": ("n_head", REQUIRED),
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("mlp_dim", REQUIRED),
    "max_position_embeddings": ("context", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "hidden_act": ("activation", "silu", ACTIVATIONS),
    "attention_dropout": ("dropout", 0.0),
}
SETTINGS = {
    "position": ("rotary",),
    "norm": ("rmsnorm",),
    "norm_place": ("pre",),
    "scale": (None,),
    "qk_norm": (False,),
}
VOCABULARY = {"vocab_size": ("padded_vocab", REQUIRED), "tie_word_embeddings": ("tied", False)}
HEAD_NORMS = {"attn.query_norm": "self_attn.q_norm", "attn.key_norm": "self_attn.k_norm"}
ATTENTION = {f"attn.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "output")}
MLP = {f"mlp.{name}": f"mlp.{name}_proj" for name in ("up", "down", "gate")}
BIASES = {"attention": r".*\.attn\..*\.bias", "mlp": r".*\.mlp\..*\.bias"}  # patterns of local names


class Llama(Family):
    """Base class of the families that have Llama's names.

    Attributes:
        norms: the norms of a block, local name -> public name.
        biases: the parts whose maps have biases where config.json says so.
    """

    model_type, recipes, architecture = "llama", ("language", "chat", "preference", "grpo"), "LlamaForCausalLM"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings, embedding = {"window": (None,)}, "nodes.token.weight"
    own = ("rope_scaling",)
    norms = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    biases: tuple[str, ...] = ("attention", "mlp")

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`; old files also store the rotary frequencies."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(pretraining_tp=1, **{f"{part}_bias": False for part in BIASES if part not in self.biases})
        values = super().read_config(c, weights)
        model, flags = values["model"], [c.get_flag(f"{part}_bias", False) for part in self.biases]
        model["n_kv_head"] = model["n_kv_head"] or model["n_head"]
        if model["head_dim"] is None and model["dim"] % model["n_head"] == 0:
            model["head_dim"] = model["dim"] // model["n_head"]
        model |= {"bias": any(flags) or model.get("bias", False)} | self.read_positions(c, model)
        return values

    def read_positions(self, c: ConfigFields, model: ConfigDict) -> ConfigDict:
        return read_rotary(c, model["context"])

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        check_rotary(values["model"])

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        flags = {f"{part}_bias": not are_zero(tensors, BIASES[part]) for part in self.biases}
        padding = {"pad_token_id": None}  # transformers would assume an id, perhaps beyond the vocabulary
        return super().write_config(values, tensors) | self.write_positions(values) | flags | padding

    def write_positions(self, values: ConfigDict) -> ConfigDict:
        return write_rotary(values["model"])

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        model, local, public = values["model"], "body.blocks.{i}.", "model.layers.{i}."
        block = [
            *map_weight(self.norms | (HEAD_NORMS if model["qk_norm"] else {}), local, public),
            *self.map_sublayers(model, config, local, public),
        ]
        return [
            *map_weight({"nodes.token": "model.embed_tokens", "body.norm": "model.norm"}),
            *map_layers(model["n_layer"], block),
            map_lm_head(values["tied"]),
        ]

    def map_sublayers(self, model: ConfigDict, config: ConfigDict, local: str, public: str) -> TensorMap:
        """Map attention and MLP of a block."""
        attention = map_affine if config.get("attention_bias") else map_weight
        mlp = map_affine if config.get("mlp_bias") else map_weight
        gate = "mlp.up" if model["activation"] == "relu2" else "mlp.gate"
        maps = {local_name: name for local_name, name in MLP.items() if local_name != "mlp.gate"}
        return [
            *attention(ATTENTION, local, public),
            *mlp(maps, local, public),
            *mlp({gate: MLP["mlp.gate"]}, local, public),
        ]
