"""Whisper (2212.04356): the `whisper` family.

Keys have no bias there: it would shift all scores of a query equally, which the softmax cancels. The local one is zero
after import and dropped on export. The encoder's position is stored although it is fixed; where it equals the computed
one, the local model stores none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.audio.features import HOP_LENGTH, N_FFT, SAMPLE_RATE
from ..data.io.checks import read_json
from ..errors import InputError
from ..inference.speech_prompt import LANGUAGE_NAME, TASKS
from ..inference.word_times import MEDIAN_WIDTH
from ..model.positions import SinusoidalPosition
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields, require_settings
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor, map_weight

POSITION, LOCAL_POSITION = "model.encoder.embed_positions.weight", "source.position.weight"
# The ids that begin an English transcript, by vocabulary size: English only, multilingual, one more language.
PROMPTS = {
    51864: (50257, 50362),
    51865: (50258, 50259, 50359, 50363),
    51866: (50258, 50259, 50360, 50364),
}


MAX_HEADS = 4096  # that a file may name


SETTINGS = {"norm_place": ("pre",), "norm_eps": (1e-5,), "bias": (True,), **LAYERNORM}
FIELDS = {
    stack: {
        "d_model": ("dim", 384),
        f"{stack}_layers": ("n_layer", 4),
        f"{stack}_attention_heads": ("n_head", 6),
        f"{stack}_ffn_dim": ("mlp_dim", 1536),
        f"max_{side}_positions": ("context", context),
        "activation_function": ("activation", "gelu", ACTIVATIONS),
        "dropout": ("dropout", 0.0),
    }
    for stack, side, context in (("encoder", "source", 1500), ("decoder", "target", 448))
}


class Whisper(Family):
    model_type, recipes, architecture = "whisper", ("speech",), "WhisperForConditionalGeneration"
    stacks = {
        "encoder": (FIELDS["encoder"], {"position": ("sinusoidal", "learned"), **SETTINGS}),
        "decoder": (FIELDS["decoder"], {"position": ("learned",), **SETTINGS}),
    }
    fields = {"vocab_size": ("padded_vocab", 51865), "num_mel_bins": ("mels", 80)}
    settings, embedding = {"pad_to_context": (True,)}, "target.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`; the tied head is ignored."""
        return None if name == "proj_out.weight" else f"model.{name.removeprefix('model.')}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(scale_embedding=False, tie_word_embeddings=True)
        values = super().read_config(c, weights)
        encoder, vocab_size = values["encoder"], values["padded_vocab"]
        c.require(num_hidden_layers=encoder["n_layer"])
        encoder["position"] = "sinusoidal" if is_sinusoidal(encoder, weights) else "learned"
        prompt = " ".join(map(str, read_prompt(c, vocab_size)))
        end = c.get_token_id("eos_token_id", 50257 if vocab_size > 50257 else None, vocab_size)
        c.require(median_filter_width=MEDIAN_WIDTH)
        return values | {"prompt": prompt, "end": end, "alignment_heads": read_alignment_heads(c, values["decoder"])}

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        require_settings(values["decoder"], {"activation": (values["encoder"]["activation"],)}, "decoder.")
        if not values["prompt"] and values["end"] is None:
            raise InputError("prompt and end, the ids that begin and end a transcript, are not set")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors)
        start, *forced = map(int, values["prompt"].split() or [values["end"]])
        if forced and PROMPTS.get(config["vocab_size"]) != (start, *forced):
            config["forced_decoder_ids"] = [[i, token] for i, token in enumerate(forced, start=1)]
        config |= {"num_hidden_layers": values["encoder"]["n_layer"], "is_encoder_decoder": True}
        return config | {"scale_embedding": False, "tie_word_embeddings": True} | get_token_ids(values)

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
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
        generation |= list_special_tokens(values, json.loads(files.get("tokenizer.json", "{}")))
        if values["alignment_heads"]:
            heads = (word.split(":") for word in values["alignment_heads"].split())
            generation["alignment_heads"] = [[int(layer), int(head)] for layer, head in heads]
        return {"preprocessor_config.json": features, "generation_config.json": generation}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        outer = {"source.conv1": "encoder.conv1", "source.conv2": "encoder.conv2"}
        outer |= {f"{stack}.norm": f"{stack}.layer_norm" for stack in self.stacks}
        embeddings = {"target.token": "embed_tokens", "target.position": "embed_positions"}
        blocks = [m for stack in self.stacks for m in map_layers(values[stack]["n_layer"], map_block(stack))]
        return [
            map_tensor(LOCAL_POSITION, POSITION),
            *map_affine(outer, public="model."),
            *map_weight(embeddings, public="model.decoder."),
            *blocks,
        ]

    def add_fixed_tensors(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Add the encoder's computed position, which a file stores."""
        if LOCAL_POSITION in tensors:
            return tensors
        return {
            **tensors,
            LOCAL_POSITION: make_sinusoidal_table(values["encoder"]["context"], values["encoder"]["dim"]),
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


def read_alignment_heads(c: ConfigFields, decoder: ConfigDict) -> str:
    """Return the heads by which words are timed, as "3:1 4:2": generation_config.json names them."""
    path = Path(c.where).with_name("generation_config.json")
    heads = (read_json(path) if path.is_file() else {}).get("alignment_heads")
    if heads is None:
        return ""
    sizes = decoder["n_layer"], decoder["n_head"]
    if not isinstance(heads, list) or len(heads) > MAX_HEADS or not all(is_head(pair, sizes) for pair in heads):
        expected = f"pairs of a layer below {sizes[0]} and a head below {sizes[1]}"
        raise InputError(f"{path}: alignment_heads is {str(heads)[:80]}; it must be {expected}")
    return " ".join(f"{layer}:{head}" for layer, head in heads)


def is_head(pair: Any, sizes: tuple[int, int]) -> bool:
    is_pair = isinstance(pair, list) and len(pair) == 2
    return is_pair and all(type(n) is int and 0 <= n < size for n, size in zip(pair, sizes))


def list_special_tokens(values: ConfigDict, tokenizer: ConfigDict) -> ConfigDict:
    """Return what transformers needs for its settings of language and task, of a vocabulary that has these tokens."""
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    prompt = set(map(int, values["prompt"].split()))
    languages = {name: token for name, token in ids.items() if LANGUAGE_NAME.fullmatch(name)}
    tasks = {name: ids[f"<|{name}|>"] for name in TASKS if f"<|{name}|>" in ids}
    fields: ConfigDict = {}
    if "<|notimestamps|>" in ids:
        fields = {"no_timestamps_token_id": ids["<|notimestamps|>"], "is_multilingual": False}
    if prompt & set(languages.values()) and prompt & set(tasks.values()):
        fields |= {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks}
    return fields


def get_token_ids(values: ConfigDict) -> ConfigDict:
    """Return the ids that begin and end a transcript."""
    end = values["end"]
    start = int((values["prompt"].split() or [end])[0])
    return {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def map_block(stack: str) -> TensorMap:
    """Map one layer; the decoder's also has cross-attention. The key's bias of a model has no effect."""
    maps, keys = {"mlp_norm": "final_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2"}, {}
    for local, public in [("attn", "self_attn")] + ([("cross", "encoder_attn")] if stack == "decoder" else []):
        maps |= {f"{local}_norm": f"{public}_layer_norm", f"{local}.output": f"{public}.out_proj"}
        maps |= {f"{local}.query": f"{public}.q_proj", f"{local}.value": f"{public}.v_proj"}
        keys |= {f"{local}.key": f"{public}.k_proj"}
    prefixes = f"{stack}.blocks.{{i}}.", f"model.{stack}.layers.{{i}}."
    return map_affine(maps, *prefixes) + map_weight(keys, *prefixes, ignorable=True)
