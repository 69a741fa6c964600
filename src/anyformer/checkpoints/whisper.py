"""Whisper (2212.04356), as the `whisper` family of public checkpoints has it.

A key has no bias there: it would shift all scores of a query alike, and the softmax takes that back. Ours is zero after
import and left out on export. The encoder's position is stored although it is fixed; where it is the one we compute,
ours stores none.
"""

import json
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..model.positions import Sinusoidal
from .config_fields import Fields, activations
from .safetensors_files import Weights
from .tensor_map import Row, Values, affine, layers, row, unbiased

RECIPE = "speech"
ARCHITECTURE = "WhisperForConditionalGeneration"
PRESETS = ("whisper",)
STACKS = ("encoder", "decoder")
AT = "model.encoder.embed_positions.weight"
# What begins an English transcript, by the size of the vocabulary: English only, many languages, one more of them.
PROMPTS = {
    51864: (50257, 50362),
    51865: (50258, 50259, 50359, 50363),
    51866: (50258, 50259, 50360, 50364),
}


def spelling(name: str) -> str | None:
    """With or without `model.`; the tied head says nothing new."""
    return None if name == "proj_out.weight" else f"model.{name.removeprefix('model.')}"


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the speech recipe's."""
    c.must(scale_embedding=False, tie_word_embeddings=True)
    dim, vocab = c.size("d_model", 384), c.size("vocab_size", 51865)
    activation = c.choice("activation_function", activations(), "gelu")
    stacks, most = {}, len(weights.shapes)
    for stack, context in zip(STACKS, (c.size("max_source_positions", 1500), c.size("max_target_positions", 448))):
        stacks[stack] = {
            "dim": dim,
            "n_layer": c.size(f"{stack}_layers", 4, most=most),
            "n_head": c.size(f"{stack}_attention_heads", 6),
            "mlp_dim": c.size(f"{stack}_ffn_dim", 1536),
            "context": context,
            "activation": activation,
            "dropout": c.dropout("dropout"),
        }
    c.must(num_hidden_layers=stacks["encoder"]["n_layer"])
    end = c.value("eos_token_id", 50257 if vocab > 50257 else None)
    stacks["encoder"]["position"] = "sinusoidal" if fixed(stacks["encoder"], weights) else "learned"
    return {
        **stacks,
        "mels": c.size("num_mel_bins", 80),
        "whole": True,
        "padded_vocab": vocab,
        "prompt": " ".join(map(str, prompt(c, vocab))),
        "end": None if end is None else token(end, vocab, f"{c.where}: eos_token_id"),
    }


def fixed(encoder: Values, weights: Weights) -> bool:
    """Whether the position in the file is the one we compute."""
    shape = (encoder["context"], encoder["dim"])
    if weights.shapes.get(AT) != shape:
        return False  # `check` says what is wrong
    return bool((weights.rows(AT, 0, shape[0]) - waves(*shape)).abs().max() <= 1e-6)


def waves(context: int, dim: int) -> Tensor:
    """Our fixed position of all nodes: (context, C)"""
    with torch.device("cpu"):
        return Sinusoidal(dim)(torch.arange(context))


def prompt(c: Fields, vocab: int) -> list[int]:
    """What begins a transcript: what is usual for a vocabulary of this size, else what the file forces."""
    start = token(c.value("decoder_start_token_id", 50257), vocab, f"{c.where}: decoder_start_token_id")
    forced = c.value("forced_decoder_ids", [])
    if not isinstance(forced, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in forced):
        raise InputError(f"{c.where}: forced_decoder_ids is {forced!r}; expected pairs of a place and an id")
    if usual := PROMPTS.get(vocab):
        return list(usual) if start in (usual[0], 50257) else [start]
    ids = {place: token(found, vocab, f"{c.where}: forced_decoder_ids") for place, found in forced if found is not None}
    return [start, *(ids[place] for place in sorted(ids))]


def token(found: object, vocab: int, where: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < vocab:
        raise InputError(f"{where} is {found!r}; it must be an id from 0 to {vocab - 1}")
    return found


def write(values: Values, own: Mapping[str, Tensor]) -> Values:
    """The speech recipe's config -> theirs. Raises InputError for what this family cannot say."""
    e, d = values["encoder"], values["decoder"]
    if not values["whole"]:
        raise InputError("whole is False: sounds are not filled up to the encoder's context")
    check(e, "encoder", {"position": ("sinusoidal", "learned")})
    check(d, "decoder", {"position": ("learned",), "activation": (e["activation"],)})
    known = {ours: theirs for theirs, ours in reversed(activations().items())}
    if e["activation"] not in known:
        raise InputError(f"the activation is {e['activation']}")
    start, *rest = map(int, values["prompt"].split() or [values["end"]])
    vocab = own["target.token.weight"].shape[0]
    forced = [] if PROMPTS.get(vocab) == (start, *rest) else [[i, found] for i, found in enumerate(rest, start=1)]
    sizes = {
        f"{stack}_{theirs}": made
        for stack, m in (("encoder", e), ("decoder", d))
        for theirs, made in (
            ("layers", m["n_layer"]),
            ("attention_heads", m["n_head"]),
            ("ffn_dim", m["mlp_dim"] or 4 * m["dim"]),
        )
    }
    return {
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "vocab_size": vocab,
        "d_model": e["dim"],
        **sizes,
        "num_hidden_layers": e["n_layer"],
        "num_mel_bins": values["mels"],
        "max_source_positions": e["context"],
        "max_target_positions": d["context"],
        "activation_function": known[e["activation"]],
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dropout": e["dropout"],
        **{name: found for name, found in {"forced_decoder_ids": forced}.items() if found},
        **ids(values),
    }


def check(m: Values, stack: str, more: Mapping[str, tuple]) -> None:
    heads, channels = (None, m["n_head"]), (None, m["dim"] // m["n_head"])
    wanted: dict[str, tuple] = {
        "norm": ("layernorm",),
        "norm_eps": (1e-5,),
        "norm_place": ("pre",),
        "qk_norm": (False,),
    }
    wanted |= {"scale": (None,), "bias": (True,), "n_kv_head": heads, "head_dim": channels, **more}
    for name, right in wanted.items():
        if m[name] not in right:
            raise InputError(f"{stack}.{name} is {m[name]}, not {' or '.join(map(str, right))}")


def ids(values: Values) -> Values:
    """Which tokens begin and end a text."""
    end = values["end"]
    start = int((values["prompt"].split() or [end])[0])
    return {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def beside(values: Values, texts: Mapping[str, str]) -> dict[str, str]:
    """How sound becomes mel frames, and how text is generated, for the library."""
    from ..data.audio.features import HOP, RATE, WINDOW

    samples = values["encoder"]["context"] * 2 * HOP
    sound = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": values["mels"],
        "sampling_rate": RATE,
        "n_fft": WINDOW,
        "hop_length": HOP,
        "chunk_length": samples // RATE,
        "n_samples": samples,
        "nb_max_frames": samples // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "dither": 0.0,
    }
    generation = ids(values) | {"max_length": values["decoder"]["context"], "return_timestamps": False}
    made = {"preprocessor_config.json": sound, "generation_config.json": generation}
    return {name: json.dumps(content, indent=2) for name, content in made.items()}


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    place = partial(waves, c.get("max_source_positions", 1500), c.get("d_model", 384))
    return [
        *affine("source.conv1", "model.encoder.conv1"),
        *affine("source.conv2", "model.encoder.conv2"),
        row("source.position.weight", AT, made=place),
        *layers(c.get("encoder_layers", 4), block("encoder")),
        *affine("encoder.norm", "model.encoder.layer_norm"),
        row("target.token.weight", "model.decoder.embed_tokens.weight"),
        row("target.position.weight", "model.decoder.embed_positions.weight"),
        *layers(c.get("decoder_layers", 4), block("decoder")),
        *affine("decoder.norm", "model.decoder.layer_norm"),
    ]


def block(stack: str) -> list[Row]:
    """One layer; the decoder's reads the encoder too."""
    ours, theirs = f"{stack}.blocks.{{i}}", f"model.{stack}.layers.{{i}}"
    attend = {"attn": "self_attn"} | ({"cross": "encoder_attn"} if stack == "decoder" else {})
    made: list[Row] = []
    for one, other in attend.items():
        made += affine(f"{ours}.{one}_norm", f"{theirs}.{other}_layer_norm")
        made += affine(f"{ours}.{one}.query", f"{theirs}.{other}.q_proj")
        made += unbiased(f"{ours}.{one}.key", f"{theirs}.{other}.k_proj", idle=True)
        made += affine(f"{ours}.{one}.value", f"{theirs}.{other}.v_proj")
        made += affine(f"{ours}.{one}.output", f"{theirs}.{other}.out_proj")
    return [
        *made,
        *affine(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm"),
        *affine(f"{ours}.mlp.up", f"{theirs}.fc1"),
        *affine(f"{ours}.mlp.down", f"{theirs}.fc2"),
    ]
