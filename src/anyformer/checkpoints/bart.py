"""BART (1910.13461) and Marian (1804.00344): the `bart` and `marian` families, the Transformer of 1706.03762 for pairs.

Post-norm, one embedding for both sides and the head, and a bias of the logits. BART norms its embeddings, and its
learned positions are numbered from 2; those of Marian are sinusoids, which newer files do not store.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..model.positions import SinusoidalPosition
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields, Settings, require_settings
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor

SETTINGS: Settings = {
    "position": ("learned", "sinusoidal"),
    "norm_place": ("post",),
    "norm_eps": (1e-5,),
    "bias": (True,),
    **LAYERNORM,
}
STACKS = ("encoder", "decoder")
FIELDS = {
    stack: {
        "d_model": ("dim", 1024),
        f"{stack}_layers": ("n_layer", 12),
        f"{stack}_attention_heads": ("n_head", 16),
        f"{stack}_ffn_dim": ("mlp_dim", 4096),
        "max_position_embeddings": ("context", 1024),
        "activation_function": ("activation", "gelu", ACTIVATIONS | {"silu": "silu", "swish": "silu"}),
        "dropout": ("dropout", 0.0),
    }
    for stack in STACKS
}
PAIRS: Settings = {
    "shared": (True,),
    "tied": (True,),
    "copy": (False,),
    "scaled": (False,),
    "logit_bias": (True, False),
}
# Of old files, whose code also served other shapes.
OLD_FLAGS = {"normalize_before": False, "add_final_layer_norm": False, "add_bias_logits": False}
EQUAL_IN_BOTH_STACKS = ("dim", "context", "activation", "dropout", "embedding_scale")
COPIES = ("encoder.embed_tokens", "decoder.embed_tokens")  # of the shared embedding, in old files
MAPS = {"attn.query": "q_proj", "attn.key": "k_proj", "attn.value": "v_proj", "attn.output": "out_proj"}


class BART(Family):
    """Base class of both.

    Attributes:
        first_position: rows of the positions before the first one that is used.
    """

    model_type, recipes, architecture = "bart", ("translation",), "BartForConditionalGeneration"
    stacks = {stack: (FIELDS[stack], {**SETTINGS, "position": ("learned",)}) for stack in STACKS}
    fields = {"vocab_size": ("padded_vocab", 50265)}
    settings = PAIRS | {"embedding_norm": (True,)}
    embedding, own = "source.token.weight", ("embedding_scale", "embedding_norm", "logit_bias", "source_start")
    old_flags: ClassVar = OLD_FLAGS | {"normalize_embedding": True, "static_position_embeddings": False}
    first_position, start, end, source_start = 2, 2, 2, 0

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`."""
        if name.startswith(("lm_head.", "final_logits_bias")):
            return name
        return f"model.{name.removeprefix('model.')}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(tie_word_embeddings=True, is_decoder=False, extra_pos_embeddings=2, **self.old_flags)
        values = super().read_config(c, weights)
        c.require(num_hidden_layers=values["encoder"]["n_layer"])
        vocab_size = values["padded_vocab"]
        for stack in STACKS:
            dim = values[stack]["dim"]
            values[stack]["embedding_scale"] = math.sqrt(dim) if c.get_flag("scale_embedding", False) else 1.0
        return values | {
            "start": c.get_token_id("decoder_start_token_id", self.start, vocab_size),
            "end": c.get_token_id("eos_token_id", self.end, vocab_size),
            "source_start": self.read_source_start(c, vocab_size),
        }

    def read_source_start(self, c: ConfigFields, vocab_size: int) -> int | None:
        return c.get_token_id("bos_token_id", self.source_start, vocab_size)

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        equal = {name: (values["encoder"][name],) for name in EQUAL_IN_BOTH_STACKS}
        require_settings(values["decoder"], equal, "decoder.")
        dim = values["encoder"]["dim"]
        require_settings(values["encoder"], {"embedding_scale": (1.0, math.sqrt(dim))}, "encoder.")
        if None in (values["start"], values["end"]):
            raise InputError("start and end, the ids that begin and end a target, must be set")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors) | get_token_ids(values) | {"is_encoder_decoder": True}
        config |= {"scale_embedding": values["encoder"]["embedding_scale"] != 1.0, "tie_word_embeddings": True}
        return config | {"num_hidden_layers": values["encoder"]["n_layer"]}

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        return {"generation_config.json": get_token_ids(values)}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        shared = "source.token.weight"
        copies = [map_tensor(shared, f"model.{name}.weight", duplicate=True) for name in COPIES]
        table = [
            map_tensor(shared, "model.shared.weight"),
            map_tensor(shared, "lm_head.weight", duplicate=True),
            *copies,
        ]
        table.append(map_tensor("head.project.bias", "final_logits_bias", leading_axis=True))
        for stack, embedding in zip(STACKS, ("source", "target")):
            public = f"model.{stack}."
            position, rows = f"{public}embed_positions.weight", self.first_position
            table.append(map_tensor(f"{embedding}.position.weight", position, unused_rows=rows))
            if values["embedding_norm"]:
                table += map_affine({f"{embedding}.norm": "layernorm_embedding"}, public=public)
            table += map_layers(values[stack]["n_layer"], map_block(stack))
        return table

    def add_fixed_tensors(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Add what a local model computes, and files store: no bias of the logits, and fixed positions."""
        fixed: dict[str, Tensor] = {}
        if "head.project.bias" not in tensors:
            fixed["head.project.bias"] = torch.zeros(len(tensors["source.token.weight"]))
        for stack, embedding in zip(STACKS, ("source", "target")):
            if f"{embedding}.position.weight" not in tensors:
                with torch.device("cpu"):
                    table = SinusoidalPosition(values[stack]["dim"])(torch.arange(values[stack]["context"]))
                fixed[f"{embedding}.position.weight"] = table
        return {**tensors, **fixed}


class Marian(BART):
    model_type, architecture = "marian", "MarianMTModel"
    stacks = {stack: (FIELDS[stack], SETTINGS) for stack in STACKS}
    fields = {"vocab_size": ("padded_vocab", 58101)}
    settings = PAIRS | {"embedding_norm": (False,), "source_start": (None,)}
    old_flags: ClassVar = OLD_FLAGS | {"normalize_embedding": False, "static_position_embeddings": True}
    first_position, start, end, source_start = 0, 58100, 0, None

    def wrap_weights(self, weights: WeightSource) -> WeightSource:
        return FixedPositions(weights)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        if isinstance(weights, FixedPositions):
            weights.add_positions(values["encoder"]["context"], values["encoder"]["dim"])
        c.require(share_encoder_decoder_embeddings=True, decoder_vocab_size=values["padded_vocab"])
        return values

    def read_source_start(self, c: ConfigFields, vocab_size: int) -> int | None:
        return None


class FixedPositions(WeightSource):
    """The tensors of a file of Marian, with the positions that it does not store."""

    def __init__(self, weights: WeightSource):
        self.weights, self.where, self.shapes = weights, weights.where, dict(weights.shapes)
        self.positions = torch.zeros(0)

    def add_positions(self, context: int, dim: int) -> None:
        longest = max((n for shape in self.weights.shapes.values() for n in shape), default=0)
        if dim > longest:
            raise InputError(f"{self.where}: d_model is {dim}, but no tensor is longer than {longest}")
        if context > MAX_POSITIONS:
            raise InputError(f"{self.where}: max_position_embeddings is {context}; at most {MAX_POSITIONS} are read")
        self.positions = make_positions(context, dim)
        for stack in STACKS:
            self.shapes.setdefault(f"model.{stack}.embed_positions.weight", (context, dim))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.weights.read_rows(name, start, stop) if name in self.weights.shapes else self.positions[start:stop]


MAX_POSITIONS = 1 << 16


def make_positions(context: int, dim: int) -> Tensor:
    """Return Marian's positions, (context, C): wavelengths from 2 pi to 10000 * 2 pi, sines first, in float64."""
    channels = torch.arange(dim, dtype=torch.float64, device="cpu")
    angle = torch.arange(context, dtype=torch.float64, device="cpu")[:, None]
    angle = angle / 10_000 ** (2 * (channels // 2) / dim)
    return torch.cat([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).float()


def get_token_ids(values: ConfigDict) -> ConfigDict:
    """Return the ids that begin and end a text. Where the target begins with another id than it ends with, it pads."""
    start, end = values["start"], values["end"]
    pad = start if start != end else 1
    return {
        "decoder_start_token_id": start,
        "bos_token_id": values["source_start"],
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "pad_token_id": pad,
    }


def map_block(stack: str) -> TensorMap:
    """Map one layer; the decoder's also has cross-attention."""
    maps = {"mlp_norm": "final_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2"}
    for local, public in [("attn", "self_attn")] + ([("cross", "encoder_attn")] if stack == "decoder" else []):
        maps |= {f"{local}_norm": f"{public}_layer_norm"}
        maps |= {name.replace("attn", local): f"{public}.{projection}" for name, projection in MAPS.items()}
    return map_affine(maps, f"{stack}.blocks.{{i}}.", f"model.{stack}.layers.{{i}}.")
