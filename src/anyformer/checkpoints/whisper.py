"""Whisper (2212.04356): the `whisper` family.

Keys have no bias there: it would shift all scores of a query equally, which the softmax cancels. The local one is zero
after import and dropped on export. The encoder's position is stored although it is fixed; where it equals the computed
one, the local model stores none.
"""

import json
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..data.audio.features import HOP_LENGTH, N_FFT, SAMPLE_RATE
from ..errors import InputError
from ..model.positions import SinusoidalPosition
from .config_fields import ACTIVATIONS, ConfigFields, get_public_name, require_layernorm, require_settings, write_sizes
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor, map_weight

STACKS = ("encoder", "decoder")
POSITION = "model.encoder.embed_positions.weight"
# The ids that begin an English transcript, by vocabulary size: English only, multilingual, one more language.
PROMPTS = {
    51864: (50257, 50362),
    51865: (50258, 50259, 50359, 50363),
    51866: (50258, 50259, 50360, 50364),
}


class Whisper(Family):
    model_type, recipes, architecture = "whisper", ("speech",), "WhisperForConditionalGeneration"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`; the tied head is ignored."""
        return None if name == "proj_out.weight" else f"model.{name.removeprefix('model.')}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(scale_embedding=False, tie_word_embeddings=True)
        dim, vocab_size = c.get_size("d_model", 384), c.get_size("vocab_size", 51865)
        activation = c.get_choice("activation_function", ACTIVATIONS, "gelu")
        contexts = c.get_size("max_source_positions", 1500), c.get_size("max_target_positions", 448)
        stacks = {
            stack: c.get_sizes(get_stack_sizes(stack), max_layers=len(weights.shapes))
            | {"dim": dim, "context": context, "activation": activation, "dropout": c.get_dropout("dropout")}
            for stack, context in zip(STACKS, contexts)
        }
        c.require(num_hidden_layers=stacks["encoder"]["n_layer"])
        stacks["encoder"]["position"] = "sinusoidal" if is_sinusoidal(stacks["encoder"], weights) else "learned"
        return {
            **stacks,
            "mels": c.get_size("num_mel_bins", 80),
            "pad_to_context": True,
            "padded_vocab": vocab_size,
            "prompt": " ".join(map(str, read_prompt(c, vocab_size))),
            "end": c.get_token_id("eos_token_id", 50257 if vocab_size > 50257 else None, vocab_size),
        }

    def check_config(self, values: ConfigDict) -> None:
        encoder, decoder = values["encoder"], values["decoder"]
        require_settings(values, {"pad_to_context": (True,)})
        settings = {"norm_place": ("pre",), "norm_eps": (1e-5,), "bias": (True,)}
        require_layernorm(encoder, "encoder.", position=("sinusoidal", "learned"), **settings)
        require_layernorm(decoder, "decoder.", position=("learned",), **settings)
        require_settings(decoder, {"activation": (encoder["activation"],)}, "decoder.")
        if not values["prompt"] and values["end"] is None:
            raise InputError("prompt and end, the ids that begin and end a transcript, are not set")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        encoder, decoder = values["encoder"], values["decoder"]
        start, *forced = map(int, values["prompt"].split() or [values["end"]])
        vocab_size = len(tensors["target.token.weight"])
        is_usual = not forced or PROMPTS.get(vocab_size) == (start, *forced)
        return {
            "is_encoder_decoder": True,
            "vocab_size": vocab_size,
            "d_model": encoder["dim"],
            **write_sizes(encoder, get_stack_sizes("encoder")),
            **write_sizes(decoder, get_stack_sizes("decoder")),
            "num_hidden_layers": encoder["n_layer"],
            "num_mel_bins": values["mels"],
            "max_source_positions": encoder["context"],
            "max_target_positions": decoder["context"],
            "activation_function": get_public_name(encoder["activation"], ACTIVATIONS),
            "scale_embedding": False,
            "tie_word_embeddings": True,
            "dropout": encoder["dropout"],
            **({} if is_usual else {"forced_decoder_ids": [[i, token] for i, token in enumerate(forced, start=1)]}),
            **get_token_ids(values),
        }

    def write_extra_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, str]:
        """Return the settings of the feature extractor and of generation."""
        samples = values["encoder"]["context"] * 2 * HOP_LENGTH
        features = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": values["mels"],
            "sampling_rate": SAMPLE_RATE,
            "n_fft": N_FFT,
            "hop_length": HOP_LENGTH,
            "chunk_length": samples // SAMPLE_RATE,
            "n_samples": samples,
            "nb_max_frames": samples // HOP_LENGTH,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "dither": 0.0,
        }
        generation = get_token_ids(values) | {"max_length": values["decoder"]["context"], "return_timestamps": False}
        configs = {"preprocessor_config.json": features, "generation_config.json": generation}
        return {name: json.dumps(config, indent=2) for name, config in configs.items()}

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        position = partial(make_sinusoidal_table, config.get("max_source_positions", 1500), config.get("d_model", 384))
        return [
            *map_affine("source.conv1", "model.encoder.conv1"),
            *map_affine("source.conv2", "model.encoder.conv2"),
            map_tensor("source.position.weight", POSITION, compute=position),
            *map_layers(config.get("encoder_layers", 4), map_block("encoder")),
            *map_affine("encoder.norm", "model.encoder.layer_norm"),
            map_tensor("target.token.weight", "model.decoder.embed_tokens.weight"),
            map_tensor("target.position.weight", "model.decoder.embed_positions.weight"),
            *map_layers(config.get("decoder_layers", 4), map_block("decoder")),
            *map_affine("decoder.norm", "model.decoder.layer_norm"),
        ]


def get_stack_sizes(stack: str) -> dict[str, tuple[str, int]]:
    return {
        f"{stack}_layers": ("n_layer", 4),
        f"{stack}_attention_heads": ("n_head", 6),
        f"{stack}_ffn_dim": ("mlp_dim", 1536),
    }


def is_sinusoidal(encoder: ConfigDict, weights: WeightSource) -> bool:
    """Return whether the encoder's stored position is the computed one."""
    shape = (encoder["context"], encoder["dim"])
    if weights.shapes.get(POSITION) != shape:
        return False  # check_shapes reports it
    return bool((weights.read_rows(POSITION, 0, shape[0]) - make_sinusoidal_table(*shape)).abs().max() <= 1e-6)


def make_sinusoidal_table(context: int, dim: int) -> Tensor:
    """Return the fixed positions of all nodes, (context, C), on the CPU even while a model is built elsewhere."""
    with torch.device("cpu"):
        return SinusoidalPosition(dim)(torch.arange(context))


def read_prompt(c: ConfigFields, vocab_size: int) -> list[int]:
    """Return the ids that begin a transcript: the usual ones for this vocabulary size, else those of config.json."""
    start = c.get_token_id("decoder_start_token_id", 50257, vocab_size)
    pairs = c.get("forced_decoder_ids", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{c.where}: forced_decoder_ids is {pairs!r}; expected pairs of a position and an id")
    if usual := PROMPTS.get(vocab_size):
        return list(usual) if start in (usual[0], 50257) else [start]
    ids = {position: token for position, token in pairs if token is not None}
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids.values()):
        raise InputError(f"{c.where}: forced_decoder_ids is {pairs!r}; ids must be from 0 to {vocab_size - 1}")
    return [start, *(ids[position] for position in sorted(ids))]


def get_token_ids(values: ConfigDict) -> ConfigDict:
    """Return the ids that begin and end a transcript."""
    end = values["end"]
    start = int((values["prompt"].split() or [end])[0])
    return {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def map_block(stack: str) -> TensorMap:
    """Map one layer; the decoder's also has cross-attention."""
    local, public = f"{stack}.blocks.{{i}}", f"model.{stack}.layers.{{i}}"
    attention = {"attn": "self_attn"} | ({"cross": "encoder_attn"} if stack == "decoder" else {})
    block: TensorMap = []
    for a, b in attention.items():
        block += map_affine(f"{local}.{a}_norm", f"{public}.{b}_layer_norm")
        block += map_affine(f"{local}.{a}.query", f"{public}.{b}.q_proj")
        block += map_weight(f"{local}.{a}.key", f"{public}.{b}.k_proj", ignorable=True)
        block += map_affine(f"{local}.{a}.value", f"{public}.{b}.v_proj")
        block += map_affine(f"{local}.{a}.output", f"{public}.{b}.out_proj")
    return [
        *block,
        *map_affine(f"{local}.mlp_norm", f"{public}.final_layer_norm"),
        *map_affine(f"{local}.mlp.up", f"{public}.fc1"),
        *map_affine(f"{local}.mlp.down", f"{public}.fc2"),
    ]


family = Whisper()
