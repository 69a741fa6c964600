"""Read and write models in GGUF files (llama.cpp) of the architectures gpt2, llama and qwen3.

GGUF's names are translated to those of the Hugging Face family, whose own table does the rest. GPT-2's linear maps are
stored transposed with respect to the folder; Llama's query and key have the channels that a rotary position pairs next
to each other, where the folder has them half a head apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data.io.gguf_file import GGUFFile
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.gguf_vocabulary import convert_to_gguf
from ..errors import InputError, suggest
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory, collect_tensors
from .config_fields import ConfigFields, require_settings
from .family import Family, select_family
from .tensor_map import ConfigDict, WeightSource, export_tensors


@dataclass(frozen=True)
class Architecture:
    """Names of GGUF and what they are in the Hugging Face family of the same name."""

    tensors: Mapping[str, str]  # GGUF name -> name in the folder, both without .weight and .bias
    sizes: Mapping[str, str]  # metadata key -> field of config.json with the same value
    activation: tuple[str, str, str]  # the one that llama.cpp computes: field of config.json, value there, local name
    transposed: str = ""  # pattern of tensors (by their names in the folder) that are stored transposed
    interleaved: str = ""  # pattern of tensors whose rotary channels are interleaved; its group is q or k


LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    **{f"blk.{{i}}.attn_{x}": f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"},
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    **{f"blk.{{i}}.ffn_{x}": f"model.layers.{{i}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
    "output_norm": "model.norm",
    "output": "lm_head",
}
LLAMA_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Methods of gguf.GGUFWriter by the type of the value.
WRITERS: dict[type, str] = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
SWIGLU = ("hidden_act", "silu", "swiglu")
ARCHITECTURES = {
    "gpt2": Architecture(
        tensors={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
            "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
            "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
            "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
            "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
            "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        sizes={
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        activation=("activation_function", "gelu_new", "gelu_tanh"),
        transposed=r"transformer\.h\.\d+\.(attn|mlp)\..*\.weight",
    ),
    "llama": Architecture(
        tensors=LLAMA_TENSORS,
        sizes=LLAMA_SIZES,
        activation=SWIGLU,
        interleaved=r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)",
    ),
    "qwen3": Architecture(
        tensors=LLAMA_TENSORS | {f"blk.{{i}}.attn_{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"},
        sizes=LLAMA_SIZES,
        activation=SWIGLU,
    ),
}


def read(path: Path) -> tuple[ConfigDict, WeightSource, bool]:
    """Open a GGUF file.

    Returns:
        The config and the tensors that a folder with this model would have, and whether the file has a tokenizer.

    Raises:
        InputError: the file is damaged, of another architecture, or has a value that would change the result.
    """
    file = GGUFFile(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        valid = suggest(str(name), ARCHITECTURES)
        raise InputError(f"{path}: general.architecture {name!r} is not supported; {valid}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise InputError(f"{path} is one of {file.metadata['split.count']} parts: join them with gguf-split --merge")
    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    fields, architecture = ConfigFields(own, f"{path}: {name}"), ARCHITECTURES[name]
    values = {field: fields.get(key, None) for key, field in architecture.sizes.items()}
    config: ConfigDict = {"model_type": name} | {field: value for field, value in values.items() if value is not None}
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{path} lacks token_embd.weight: it is not a complete model")
    config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    has_own_head = "output.weight" in file.tensors
    config["tie_word_embeddings"] = not has_own_head or file.are_equal("token_embd.weight", "output.weight")
    fields.require(**{"vocab_size": config["vocab_size"], "attention.causal": True, "expert_count": 0})
    activation_field, config[activation_field], _ = architecture.activation
    if "rope.freq_base" in architecture.sizes:
        config |= read_rotary_fields(fields, file)
    fields.reject_unread()
    has_tokenizer = file.metadata.get("tokenizer.ggml.model", "none") != "none"
    return config, GGUFTensors(file, architecture, config), has_tokenizer


def read_rotary_fields(fields: ConfigFields, file: GGUFFile) -> ConfigDict:
    """Read what Llama's kind has besides sizes. Scaled angles and partially rotated heads are not supported."""
    n_head = fields.get_size("attention.head_count")
    channels = fields.get_size("attention.key_length", fields.get_size("embedding_length") // n_head)
    fields.require(**{"attention.value_length": channels, "rope.dimension_count": channels})
    fields.require(**{"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0})
    fields.get_number("rope.freq_base", 10_000.0)
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {"head_dim": channels} | {field: name in file.tensors for field, name in biases.items()}


class GGUFTensors(WeightSource):
    """The tensors of a GGUF file, by the names and in the order of the folder."""

    def __init__(self, file: GGUFFile, architecture: Architecture, config: ConfigDict):
        self.file, self.architecture, self.config, self.where = file, architecture, config, str(file.path)
        self.names = {translate(name, architecture.tensors): name for name in file.tensors}
        if config["tie_word_embeddings"]:
            self.names.pop("lm_head.weight", None)
        shapes = {name: file.tensors[stored].shape for name, stored in self.names.items()}
        self.shapes = {
            name: s[::-1] if re.fullmatch(architecture.transposed, name) else s for name, s in shapes.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        stored, shape = self.names[name], self.shapes[name]
        if re.fullmatch(self.architecture.transposed, name):
            return torch.from_numpy(self.file.read(stored, slice(0, shape[1]), slice(start, stop)).T)
        if match := re.fullmatch(self.architecture.interleaved, name):
            rows = find_interleaved_rows(shape[0], self.config, match[1])[start:stop]
            first = int(rows.min())
            return torch.from_numpy(self.file.read(stored, slice(first, int(rows.max()) + 1))[rows - first])
        return torch.from_numpy(self.file.read(stored, slice(start, stop)))


def find_interleaved_rows(n: int, config: ConfigDict, kind: str) -> np.ndarray:
    """Return (n,), at which row of the GGUF tensor of queries (q) or keys (k) each row of the folder's lies.

    A head's rows are (2, D/2) in the folder and (D/2, 2) in GGUF.
    """
    n_head = config.get("num_attention_heads")
    n_head = config.get("num_key_value_heads") or n_head if kind == "k" else n_head
    if type(n_head) is not int or n_head < 1 or n % (2 * n_head):
        raise InputError(f"{n} rows of a query or key are not {n_head!r} heads of an even width")
    return np.arange(n).reshape(n_head, n // n_head // 2, 2).swapaxes(1, 2).reshape(n)


def translate(name: str, table: Mapping[str, str]) -> str:
    """Translate a tensor's name by a table; return names that it lacks unchanged."""
    stem, _, suffix = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", stem)
    key = stem.replace(layer[0], ".{i}.", 1) if layer else stem
    if suffix not in ("weight", "bias") or key not in table:
        return name
    return f"{table[key]}.{suffix}".replace("{i}", layer[1] if layer else "")


# --- local -> GGUF ---


def select_architecture(recipe: Recipe, values: ConfigDict) -> Family:
    """Find the family of GGUF that can express a model of this recipe and config. Raises InputError."""
    return select_family(recipe, values, check_config, ARCHITECTURES, "GGUF architecture")


def check_config(family: Family, values: ConfigDict) -> None:
    """Raise InputError naming a setting that llama.cpp does not compute."""
    family.check_config(values)
    require_settings(values["model"], {"activation": ARCHITECTURES[family.model_type].activation[2:]})
    require_settings(values, {"window": (None,)})


def write(folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module) -> None:
    """Write folder/model.gguf in float32.

    Args:
        values: the recipe's config, as JSON values.

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
    exported = dict(export_tensors(family.build_tensor_map(values, config), tensors))
    metadata = make_model_metadata(name, config) | {"general.file_type": int(gguf.LlamaFileType.ALL_F32)}
    with atomic_directory(folder) as temporary:
        writer = gguf.GGUFWriter(temporary / "model.gguf", name)
        for key, value in (metadata | (tokenizer or {"tokenizer.ggml.model": "none"})).items():
            if value != []:  # GGUF has no empty arrays
                getattr(writer, f"add_{WRITERS[type(value)]}")(key, value)
        for stored, array in convert_tensors(ARCHITECTURES[name], config, exported).items():
            writer.add_tensor(stored, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def make_model_metadata(name: str, config: ConfigDict) -> ConfigDict:
    fields = {**ARCHITECTURES[name].sizes, "vocab_size": "vocab_size"}
    fields |= {"attention.value_length": "head_dim", "rope.dimension_count": "head_dim"}
    return {f"{name}.{key}": config[field] for key, field in fields.items() if field in config}


def convert_tensors(
    architecture: Architecture, config: ConfigDict, tensors: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Return a folder's tensors by GGUF's names and in its layout."""
    gguf_names = {public: name for name, public in architecture.tensors.items()}
    converted = {}
    for name, tensor in tensors.items():
        if re.fullmatch(architecture.transposed, name):
            tensor = tensor.T
        if match := re.fullmatch(architecture.interleaved, name):
            tensor = tensor[torch.from_numpy(np.argsort(find_interleaved_rows(len(tensor), config, match[1])))]
        converted[translate(name, gguf_names)] = tensor.float().contiguous().numpy()
    if architecture is ARCHITECTURES["gpt2"] and config["tie_word_embeddings"]:
        converted["output.weight"] = converted["token_embd.weight"]  # readers of GPT-2 expect an own head
    return converted
