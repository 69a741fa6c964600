"""GGUF files (llama.cpp's) of GPT-2's and Llama's kind, in and out.

Their names are other names for those of the public library's two families, so the tables here lead from one to the
other and the families' own tables lead on. GPT-2's linear maps lie the other way round in them, and Llama's query and
key have the channels that rotary positions turn together side by side, where the library has them half a head apart.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data.io.gguf import File
from ..data.tokenizers.characters import Tokenizer
from ..data.tokenizers.gguf_write import to_gguf
from ..errors import InputError, nearest
from ..training.checkpoints import tensors, whole
from .config_fields import Fields
from .hf_folder import fitting
from .safetensors_files import Weights
from .tensor_map import Values, give

# Their names of tensors -> the families', without .weight and .bias.
GPT2 = {
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
}
LLAMA = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    **{f"blk.{{i}}.attn_{x}": f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"},
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    **{f"blk.{{i}}.ffn_{x}": f"model.layers.{{i}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
    "output_norm": "model.norm",
    "output": "lm_head",
}
NAMES = {"gpt2": GPT2, "llama": LLAMA}
# Their names of sizes -> the families', where both have the value itself.
SIZES = {
    "gpt2": {
        "block_count": "n_layer",
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "llama": {
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
}
ACTIVATIONS = {"gpt2": "gelu_new", "llama": "silu"}
FLIPPED = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\..*\.weight")
TURNED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)")


def read(path: Path) -> tuple[Values, Weights, bool]:
    """The config that the library's folder would have, the tensors by the names they have there, and whether the file
    holds a tokenizer. Raises InputError: not a whole GGUF file, another kind of model, or a value that would change the
    maths."""
    file = File(path)
    kind = file.values.get("general.architecture")
    if kind not in NAMES:
        raise InputError(f"{path}: general.architecture is {kind!r}: {nearest(str(kind), NAMES)}")
    if file.values.get("split.count", 1) not in (0, 1):
        raise InputError(f"{path} is one of {file.values['split.count']} parts: join them first (gguf-split --merge)")
    given = {name.removeprefix(f"{kind}."): v for name, v in file.values.items() if name.startswith(f"{kind}.")}
    fields = Fields(given, f"{path}: {kind}")
    config: Values = {"model_type": kind}
    for theirs, name in SIZES[kind].items():
        if (found := fields.value(theirs, None)) is not None:
            config[name] = found
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{path} lacks token_embd.weight: it is not a whole model")
    config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.tensors or file.same(
        "token_embd.weight", "output.weight"
    )
    fields.must(**{"vocab_size": config["vocab_size"], "attention.causal": True, "expert_count": 0})
    config |= gpt2(fields) if kind == "gpt2" else llama(fields, file.tensors, config)
    fields.done()
    return config, Tensors(file, kind, config), file.values.get("tokenizer.ggml.model", "none") != "none"


def gpt2(fields: Fields) -> Values:
    return {"activation_function": ACTIVATIONS["gpt2"]}


def llama(fields: Fields, stored: Mapping[str, Any], config: Values) -> Values:
    """What is said twice must agree; angles that are scaled, and turns of a part of a head, we do not have."""
    heads = fields.size("attention.head_count")
    width = fields.size("attention.key_length", fields.size("embedding_length") // heads)
    fields.must(**{"attention.value_length": width, "rope.dimension_count": width})
    fields.must(**{"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0})
    fields.number("rope.freq_base", 10_000.0)
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    found: Values = {name: theirs in stored for name, theirs in biases.items()}
    return found | {"head_dim": width, "hidden_act": ACTIVATIONS["llama"]}


class Tensors:
    """The tensors of a file by the names and in the order that the library's folder would have them."""

    def __init__(self, file: File, kind: str, config: Values):
        self.file, self.where = file, str(file.path)
        self.heads = {"q": config.get("num_attention_heads"), "k": config.get("num_key_value_heads")}
        self.heads["k"] = self.heads["k"] or self.heads["q"]
        names = {renamed(name, NAMES[kind]): name for name in file.tensors}
        self.names = {ours: theirs for ours, theirs in names.items() if not self._again(ours, config)}
        self.shapes = {ours: self._shape(ours, theirs) for ours, theirs in self.names.items()}

    def _again(self, name: str, config: Values) -> bool:
        return name == "lm_head.weight" and config["tie_word_embeddings"]

    def _shape(self, ours: str, theirs: str) -> tuple[int, ...]:
        shape = self.file.tensors[theirs].shape
        return shape[::-1] if FLIPPED.fullmatch(ours) else shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        stored, shape = self.names[name], self.shapes[name]
        if FLIPPED.fullmatch(name):
            return torch.from_numpy(self.file.part(stored, slice(0, shape[1]), slice(start, stop)).T)
        if found := TURNED.fullmatch(name):
            at = turned(shape[0], self.heads[found[1]])[start:stop]
            first = int(at.min())
            return torch.from_numpy(self.file.part(stored, slice(first, int(at.max()) + 1))[at - first])
        return torch.from_numpy(self.file.part(stored, slice(start, stop)))


def turned(n: int, heads: Any) -> np.ndarray:
    """(n,) at which row of theirs each row of the library's lies: of a head, (2, d/2) there and (d/2, 2) here."""
    if not isinstance(heads, int) or heads < 1 or n % (2 * heads):
        raise InputError(f"{n} rows of a query or key are not {heads!r} heads of an even width")
    return np.arange(n).reshape(heads, n // heads // 2, 2).swapaxes(1, 2).reshape(n)


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A tensor's name by the table, or as it is where the table does not know it."""
    found = re.fullmatch(r"(.*)\.(weight|bias)", name)
    if found is None:
        return name
    number = re.search(r"\.(\d+)\.", name)
    bare = found[1] if number is None else found[1].replace(number[0], ".{i}.", 1)
    known = table.get(bare)
    return name if known is None else f"{known}.{found[2]}".replace("{i}", number[1] if number else "")


# --- ours -> theirs ---


def write(folder: Path, name: str, values: Values, module: nn.Module) -> None:
    """Write folder/model.gguf in float32. Raises InputError for a model that GGUF has no kind for."""
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf: pip install 'anyformer[gguf]'") from None
    if name != "language":
        raise InputError(f"GGUF files are written for the recipe language, not {name}: use --to hf or onnx")
    own = tensors(module)
    family, config = fitting(name, values, own)
    kind = config["model_type"]
    acting = config.get("activation_function", config.get("hidden_act"))
    if acting not in (ACTIVATIONS[kind], "gelu_pytorch_tanh" if kind == "gpt2" else "silu"):
        raise InputError(f"the activation is {acting}, and GGUF has {kind} with {ACTIVATIONS[kind]} only")
    vocabulary = to_gguf(cast(Tokenizer, module.tokenizer), config["vocab_size"])
    with whole(folder) as temporary:
        writer = gguf.GGUFWriter(temporary / "model.gguf", kind)
        for key, value in described(kind, config).items():
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        speak(writer, vocabulary)
        for theirs, numbers in named(kind, config, dict(give(family.rows(config), own))).items():
            writer.add_tensor(theirs, numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def described(kind: str, config: Values) -> Values:
    """The sizes, by their names."""
    found = {f"{kind}.{theirs}": config[name] for theirs, name in SIZES[kind].items() if name in config}
    found[f"{kind}.vocab_size"] = config["vocab_size"]
    if kind == "llama":
        found |= dict.fromkeys(("llama.attention.value_length", "llama.rope.dimension_count"), config["head_dim"])
    return found


def speak(writer: Any, vocabulary: Mapping[str, Any]) -> None:
    """The tokenizer, or that there is none."""
    if not vocabulary:
        writer.add_tokenizer_model("none")
    for key, value in vocabulary.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:  # the format has no empty lists
            writer.add_array(key, value)


def named(kind: str, config: Values, numbers: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors by their names, as they lie there."""
    back = {theirs: name for name, theirs in NAMES[kind].items()}
    found = {}
    for theirs, tensor in numbers.items():
        if FLIPPED.fullmatch(theirs):
            tensor = tensor.T
        if turn := TURNED.fullmatch(theirs):
            heads = config["num_attention_heads" if turn[1] == "q" else "num_key_value_heads"]
            tensor = tensor[torch.from_numpy(np.argsort(turned(len(tensor), heads)))]
        found[renamed(theirs, back)] = tensor.float().contiguous().numpy()
    if kind == "gpt2" and config["tie_word_embeddings"]:
        found["output.weight"] = found["token_embd.weight"]  # readers of GPT-2 expect a head of its own
    return found
