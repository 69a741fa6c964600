"""Read and write models in GGUF files (llama.cpp) of the architectures gpt2, llama, qwen2 and qwen3.

Each is a family like those of Hugging Face, with the names of GGUF. Linear maps are stored as they are here, but for
Llama's query and key: the channels that a rotary position pairs lie next to each other there, half a head apart here.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data.io.gguf_file import GGUFFile
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.gguf_vocabulary import convert_to_gguf
from ..errors import InputError, suggest
from ..model.config import RopeScaling
from ..model.rope_scaling import SCALE
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory, collect_tensors
from . import gpt2, llama
from .config_fields import REQUIRED, ConfigFields, require_settings
from .family import Family, select_family
from .tensor_map import (
    ConfigDict,
    TensorMap,
    WeightSource,
    are_equal,
    are_zero,
    export_tensors,
    has_biases,
    map_affine,
    map_layers,
    map_lm_head,
    map_weight,
)

SIZES = {
    "block_count": ("n_layer", REQUIRED),
    "context_length": ("context", 2048),
    "embedding_length": ("dim", REQUIRED),
    "feed_forward_length": ("mlp_dim", REQUIRED),
    "attention.head_count": ("n_head", REQUIRED),
}
GPT2_FIELDS = {
    **SIZES,
    "context_length": ("context", 1024),
    "feed_forward_length": ("mlp_dim", None),
    "attention.layer_norm_epsilon": ("norm_eps", 1e-5),
}
LLAMA_FIELDS = {
    **SIZES,
    "attention.head_count_kv": ("n_kv_head", None),
    "attention.layer_norm_rms_epsilon": ("norm_eps", 1e-6),
    **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), ("head_dim", None)),
    "rope.freq_base": ("rotary_base", 10_000.0),
}
LLAMA_SETTINGS = {**llama.SETTINGS, "activation": ("swiglu",)}  # the activations that llama.cpp computes
NORMS = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
HEAD_NORMS = {"attn.query_norm": "attn_q_norm", "attn.key_norm": "attn_k_norm"}
ATTENTION = {"attn.query": "attn_q", "attn.key": "attn_k", "attn.value": "attn_v", "attn.output": "attn_output"}
MLP = {"mlp.up": "ffn_up", "mlp.down": "ffn_down"}
GPT2_ATTENTION = {("attn.query", "attn.key", "attn.value"): "attn_qkv", "attn.output": "attn_output"}
BLOCK = ("body.blocks.{i}.", "blk.{i}.")
QKV = {name: ATTENTION[name] for name in ("attn.query", "attn.key", "attn.value")}
ROPE_FREQS = "rope_freqs.weight"  # Llama 3: what the frequency of each pair of channels is divided by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192  # of the training; files do not mention it
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
Quantization = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Storage types of matrices that the gguf package writes."""
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}  # flag -> tensor that a file then has
INTERLEAVED = r"blk\.\d+\.attn_([qk])\.(?:weight|bias)"
# Methods of gguf.GGUFWriter by the type of the value.
WRITERS: dict[type, str] = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}


class GPT2(Family):
    model_type, recipes, architecture = "gpt2", ("language", "chat", "preference", "grpo"), "GPT2LMHeadModel"
    stacks = {"model": (GPT2_FIELDS, {**gpt2.SETTINGS, "activation": ("gelu_tanh",)})}  # noqa: RUF012
    fields, settings, embedding = {"vocab_size": ("padded_vocab", None)}, {"window": (None,)}, "nodes.token.weight"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        n_rows = weights.shapes["token_embd.weight"][0]
        c.require(**{"vocab_size": n_rows, "attention.causal": True, "expert_count": 0})
        values = super().read_config(c, weights)
        values["model"]["bias"] = has_biases(weights)
        has_own_head = "output.weight" in weights.shapes
        is_tied = not has_own_head or are_equal(weights, "token_embd.weight", "output.weight")
        return values | {"padded_vocab": n_rows, "tied": is_tied}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return [
            *map_weight({"nodes.token": "token_embd", "nodes.position": "position_embd"}),
            *map_layers(values["model"]["n_layer"], map_affine(NORMS | GPT2_ATTENTION | MLP, *BLOCK)),
            *map_affine({"body.norm": "output_norm"}),
            map_lm_head(values["tied"], public="output"),
        ]


class Llama(GPT2):
    model_type, architecture = "llama", "LlamaForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS)}  # noqa: RUF012
    own = ("rope_scaling",)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        """Partially rotated heads are not supported."""
        n_head, dim = c.get_size("attention.head_count"), c.get_size("embedding_length")
        channels = c.get_size("attention.key_length", dim // n_head)
        c.require(**{"attention.value_length": channels, "rope.dimension_count": channels})
        values = super().read_config(c, weights)
        values["model"]["rope_scaling"] = read_rope_scaling(c, values["model"], channels)
        bias = c.get_flag("attention_bias", False) | c.get_flag("mlp_bias", False)
        values["model"] |= {"head_dim": channels, "n_kv_head": values["model"]["n_kv_head"] or n_head, "bias": bias}
        return values

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        write_rope_scaling(values["model"])

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors) | write_rope_scaling(values["model"])
        return config | {f"{name}_bias": not are_zero(tensors, pattern) for name, pattern in llama.BIASES.items()}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        attention, mlp = (map_affine if config[name] else map_weight for name in BIASES)
        block = [
            *map_weight(NORMS | (HEAD_NORMS if values["model"]["qk_norm"] else {}), *BLOCK),
            *attention(ATTENTION, *BLOCK),
            *mlp(MLP | {"mlp.gate": "ffn_gate"}, *BLOCK),
        ]
        return [
            *map_weight({"nodes.token": "token_embd", "body.norm": "output_norm"}),
            *map_layers(values["model"]["n_layer"], block),
            map_lm_head(values["tied"], public="output"),
        ]


class Qwen2(Llama):
    model_type, architecture = "qwen2", "Qwen2ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"bias": (True,)})}  # noqa: RUF012

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        values["model"]["bias"] = True
        return values

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        maps = NORMS | {"attn.output": ATTENTION["attn.output"]} | MLP | {"mlp.gate": "ffn_gate"}
        block = map_affine(QKV, *BLOCK) + map_weight(maps, *BLOCK)
        return [
            *map_weight({"nodes.token": "token_embd", "body.norm": "output_norm"}),
            *map_layers(values["model"]["n_layer"], block),
            map_lm_head(values["tied"], public="output"),
        ]


class Qwen3(Llama):
    model_type, architecture = "qwen3", "Qwen3ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"qk_norm": (True,), "bias": (False,)})}  # noqa: RUF012


ARCHITECTURES = {"gpt2": GPT2(), "llama": Llama(), "qwen3": Qwen3(), "qwen2": Qwen2()}


def read_rope_scaling(c: ConfigFields, model: ConfigDict, channels: int) -> ConfigDict | None:
    """Return the fields of a `RopeScaling` for the metadata and for what ROPE_FREQS holds."""
    c.require(**{"rope.scale_linear": 1.0, "rope.scaling.yarn_log_multiplier": 0.1, "rope.scaling.attn_factor": 1.0})
    c.get("rope.scaling.finetuned", None)  # whether the model was trained with it
    kind = c.get_choice("rope.scaling.type", {"none": None, "linear": "linear", "yarn": "yarn"}, "none")
    divisors = c.get("rope_freqs", None)
    if kind is None:
        c.require(**{"rope.scaling.factor": 1.0})
        if divisors is None:
            c.get("rope.scaling.original_context_length", None)  # only YaRN reads it
            return None
        original = c.get_size("rope.scaling.original_context_length", LLAMA3_CONTEXT)
        return find_llama3_scaling(divisors, model["rotary_base"], channels, original, c.where)
    if divisors is not None:
        raise InputError(f"{c.where}: {ROPE_FREQS} besides rope.scaling.type {kind!r} is not supported")
    original = c.get_size("rope.scaling.original_context_length", model["context"])
    factor = c.get_number("rope.scaling.factor", REQUIRED)
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def find_llama3_scaling(divisors: list[float], base: float, channels: int, original: int, where: str) -> ConfigDict:
    """Return the scaling of Llama 3 that divides the frequencies so. Raises InputError if there is none."""
    scaling = {"rope_type": "llama3", "factor": max(divisors), "original_max_position_embeddings": original, **LLAMA3}
    is_finite = all(math.isfinite(divisor) and 1 <= divisor <= 1e6 for divisor in divisors)
    if not is_finite or len(divisors) != channels // 2 or base <= 1:
        raise InputError(f"{where}: {ROPE_FREQS} should have {channels // 2} numbers of at least 1")
    expected = make_llama3_divisors(scaling, base, channels)
    if not torch.allclose(torch.tensor(divisors), expected, rtol=1e-4):
        raise InputError(f"{where}: {ROPE_FREQS} are not the divisors of Llama 3, and others are not supported")
    return scaling


def make_llama3_divisors(scaling: ConfigDict, base: float, channels: int) -> Tensor:
    """Return what the frequency of each pair of channels is divided by: (channels / 2,)"""
    fast = 1.0 / base ** (torch.arange(0, channels, 2).float() / channels)
    config = RopeScaling(**scaling)
    return fast / SCALE["llama3"](fast, fast / config.factor, base, config)


def write_rope_scaling(model: ConfigDict) -> ConfigDict:
    """Return the metadata of a `RopeScaling`; that of Llama 3 is also a tensor. Raises InputError for other kinds."""
    scaling = model["rope_scaling"]
    if scaling is None:
        return {}
    kind = scaling["rope_type"]
    expected = {"linear": {}, "yarn": YARN, "llama3": LLAMA3}
    require_settings(scaling, {"rope_type": tuple(expected)}, "model.rope_scaling.")
    valid = {name: (value,) for name, value in expected[kind].items()}
    require_settings(scaling, valid, "model.rope_scaling.")
    original = {"rope.scaling.original_context_length": scaling["original_max_position_embeddings"]}
    types = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    return original if kind == "llama3" else original | types


def read(path: Path) -> tuple[Family, ConfigDict, WeightSource, str, str]:
    """Open a GGUF file: return what `PublicCheckpoint` takes.

    Raises:
        InputError: the file is damaged or of another architecture.
    """
    file = GGUFFile(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"{path}: general.architecture {name!r} is not supported; {suggest(str(name), ARCHITECTURES)}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise InputError(f"{path} is one of {file.metadata['split.count']} parts: join them with gguf-split --merge")
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{path} lacks token_embd.weight: it is not a complete model")
    config = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    if name != "gpt2":
        config |= {flag: tensor in file.tensors for flag, tensor in BIASES.items()}
    n_head = config.get("attention.head_count")
    if (freqs := file.tensors.get(ROPE_FREQS)) is not None:
        config["rope_freqs"] = file.read(ROPE_FREQS, slice(0, min(freqs.shape[0], 1 << 16))).flatten().tolist()
    heads = {"q": n_head, "k": config.get("attention.head_count_kv") or n_head} if name == "llama" else {}
    tokenizer = "ids" if file.metadata.get("tokenizer.ggml.model", "none") == "none" else str(path.resolve())
    return ARCHITECTURES[name], config, GGUFTensors(file, heads), f"{path}: {name}", tokenizer


class GGUFTensors(WeightSource):
    """The tensors of a GGUF file; `heads`: how many the interleaved queries (q) and keys (k) have, if they are that."""

    def __init__(self, file: GGUFFile, heads: Mapping[str, Any]):
        self.file, self.heads, self.where = file, heads, str(file.path)
        self.shapes = {name: info.shape for name, info in file.tensors.items() if name != ROPE_FREQS}

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        if self.heads and (match := re.fullmatch(INTERLEAVED, name)):
            rows = find_interleaved_rows(self.shapes[name][0], self.heads[match[1]])[start:stop]
            first = int(rows.min())
            return torch.from_numpy(self.file.read(name, slice(first, int(rows.max()) + 1))[rows - first])
        return torch.from_numpy(self.file.read(name, slice(start, stop)))


def find_interleaved_rows(n: int, n_head: Any) -> np.ndarray:
    """Return (n,), at which row of the GGUF tensor each row of the local one lies.

    A head's rows are (2, D/2) here and (D/2, 2) in GGUF.
    """
    if type(n_head) is not int or n_head < 1 or n % (2 * n_head):
        raise InputError(f"{n} rows of a query or key are not {n_head!r} heads of an even width")
    return np.arange(n).reshape(n_head, n // n_head // 2, 2).swapaxes(1, 2).reshape(n)


# --- local -> GGUF ---


def select_architecture(recipe: Recipe, values: ConfigDict) -> Family:
    """Find the family of GGUF that can express a model of this recipe and config. Raises InputError."""
    return select_family(recipe, values, ARCHITECTURES.values(), "GGUF architecture")


def write(
    folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module, quantize: Quantization | None = None
) -> None:
    """Write folder/model.gguf.

    Args:
        values: the recipe's config, as JSON values.
        quantize: storage type of the matrices; None: float32. Vectors, and matrices whose rows do not fill its blocks,
            are in float32.

    Raises:
        InputError: GGUF has no architecture for the model, or no name for how its tokenizer splits words.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf: pip install 'anyformer[gguf]'") from None
    family, tensors = select_architecture(recipe, values), collect_tensors(model)
    name, config = family.model_type, family.write_config(values, tensors)
    tokenizer = convert_to_gguf(cast(Tokenizer, model.tokenizer), config["vocab_size"])
    metadata = {f"{name}.{key}": value for key, value in config.items() if key not in BIASES}
    file_type = gguf.LlamaFileType["ALL_F32" if quantize is None else f"MOSTLY_{quantize.upper()}"]
    metadata |= {"general.file_type": int(file_type)} | (tokenizer or {"tokenizer.ggml.model": "none"})
    exported = dict(export_tensors(family.build_tensor_map(values, config), tensors))
    if name == "gpt2":
        exported.setdefault("output.weight", exported["token_embd.weight"])  # its readers expect an own head
    if (values["model"]["rope_scaling"] or {}).get("rope_type") == "llama3":
        channels = config["rope.dimension_count"]
        exported[ROPE_FREQS] = make_llama3_divisors(values["model"]["rope_scaling"], config["rope.freq_base"], channels)
    heads = {"q": config["attention.head_count"], "k": config.get("attention.head_count_kv")}
    with atomic_directory(folder) as temporary:
        writer = gguf.GGUFWriter(temporary / "model.gguf", name)
        for key, value in metadata.items():
            if value != []:  # GGUF has no empty arrays
                getattr(writer, f"add_{WRITERS[type(value)]}")(key, value)
        for stored, tensor in exported.items():
            if name == "llama" and (match := re.fullmatch(INTERLEAVED, stored)):
                tensor = tensor[torch.from_numpy(np.argsort(find_interleaved_rows(len(tensor), heads[match[1]])))]
            content, kind = encode(tensor, quantize)
            writer.add_tensor(stored, content, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def encode(tensor: Tensor, quantize: Quantization | None) -> tuple[np.ndarray, Any]:
    """Return the bytes of a tensor and their type, as `gguf.GGUFWriter.add_tensor` takes them."""
    import gguf

    values = tensor.float().contiguous().numpy()
    kind = gguf.GGMLQuantizationType[(quantize or "f32").upper()]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if values.ndim == 1 or values.shape[-1] % block or quantize is None:
        return values, None
    return gguf.quants.quantize(values, kind), kind
