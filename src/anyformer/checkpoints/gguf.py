"""Read and write models in GGUF files (llama.cpp); `gguf_families.py` has the architectures.

Linear maps are stored as they are here, but for the query and key of Llama and SmolLM3: the channels that a rotary
position pairs lie next to each other there, half a head apart here. Gemma's norms are stored as 1 + weight.
"""

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
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory, collect_tensors
from .family import Family, select_family
from .gguf_families import (
    ARCHITECTURES,
    BIASES,
    INTERLEAVED_ARCHITECTURES,
    ROPE_FREQS,
    SHIFTED_ARCHITECTURES,
    make_llama3_divisors,
)
from .tensor_map import ConfigDict, WeightSource, export_tensors

Quantization = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Storage types of matrices that the gguf package writes."""
NORM = "norm.weight"
INTERLEAVED = r"blk\.\d+\.attn_([qk])\.(?:weight|bias)"
# Methods of gguf.GGUFWriter by the type of the value.
WRITERS: dict[type, str] = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}


def read(path: Path) -> tuple[Family, ConfigDict, WeightSource, str, ConfigDict]:
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
    heads = {"q": n_head, "k": config.get("attention.head_count_kv") or n_head}
    tensors = GGUFTensors(file, heads if name in INTERLEAVED_ARCHITECTURES else {}, name in SHIFTED_ARCHITECTURES)
    tokenizer = "ids" if file.metadata.get("tokenizer.ggml.model", "none") == "none" else str(path.resolve())
    return ARCHITECTURES[name], config, tensors, f"{path}: {name}", {"tokenizer": tokenizer}


class GGUFTensors(WeightSource):
    """The tensors of a GGUF file.

    Args:
        heads: how many the interleaved queries (q) and keys (k) have, if they are that.
        shifted: norms are stored as 1 + weight.
    """

    def __init__(self, file: GGUFFile, heads: Mapping[str, Any], shifted: bool = False):
        self.file, self.heads, self.shifted, self.where = file, heads, shifted, str(file.path)
        self.shapes = {name: info.shape for name, info in file.tensors.items() if name != ROPE_FREQS}

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        if self.heads and (match := re.fullmatch(INTERLEAVED, name)):
            rows = find_interleaved_rows(self.shapes[name][0], self.heads[match[1]])[start:stop]
            first = int(rows.min())
            return torch.from_numpy(self.file.read(name, slice(first, int(rows.max()) + 1))[rows - first])
        rows = torch.from_numpy(self.file.read(name, slice(start, stop)))
        return rows - 1 if self.shifted and name.endswith(NORM) else rows


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
    if name in ("gpt2", "olmo2"):
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
            if name in SHIFTED_ARCHITECTURES and stored.endswith(NORM):
                tensor = tensor + 1
            if name in INTERLEAVED_ARCHITECTURES and (match := re.fullmatch(INTERLEAVED, stored)):
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
