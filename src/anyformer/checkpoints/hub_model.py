"""Models of the Hugging Face hub: the files of a public checkpoint, and nothing else of a repository."""

import fnmatch
import re
from pathlib import Path

from ..data.io.hub import Listing, Reference, describe_by_hand, fetch_files, list_repository
from ..errors import InputError
from .hf_folder import PICKLES, TOKENIZER_FILES
from .sentence_encoder import MODULES, PROMPTS

INDEX = "model.safetensors.index.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    *TOKENIZER_FILES,
    MODULES,
    PROMPTS,
)
POOLING = re.compile(r"\d+_Pooling/config\.json")  # of a sentence encoder


def fetch_model(reference: Reference) -> Path:
    """Return a local folder with a model of the hub, or its GGUF file, downloaded once. Raises InputError."""
    listing = list_repository(reference, "model")
    names = select_model_files(reference, listing)
    folder = fetch_files(reference, "model", listing, names)
    return folder / names[0] if names[0].endswith(".gguf") else folder


def select_model_files(reference: Reference, listing: Listing) -> list[str]:
    """Return what `open_checkpoint` reads: config, tokenizer and safetensors; or a GGUF file. Raises InputError."""
    names = [name for name in listing.sizes if "/" not in name]
    if reference.path:
        if reference.path in listing.sizes and reference.path.endswith(".gguf"):
            return [reference.path]
        raise InputError(
            f"{reference.text}: of a model only a GGUF file can be named: expected {reference.repo}/NAME.gguf"
        )
    shards = [name for name in names if fnmatch.fnmatch(name, "model-*-of-*.safetensors")]
    weights = ["model.safetensors"] if "model.safetensors" in names else [INDEX, *shards] if INDEX in names else []
    if weights and "config.json" in names:
        small = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in SMALL_FILES)]
        return sorted(small) + sorted(filter(POOLING.fullmatch, listing.sizes)) + weights
    files = [name for name in names if name.endswith(".gguf")]
    if len(files) == 1:
        return files
    if files:
        choices = ", ".join(f"{reference.repo}/{name}" for name in files[:12])
        raise InputError(f"{reference.address} holds several models: name one: {choices}")
    pickles = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in PICKLES)]
    if pickles:
        by_hand = describe_by_hand(reference, "model")
        raise InputError(
            f"{reference.address} has only pickles ({pickles[0]}), which can execute code, and no model.safetensors: "
            f"nothing is taken; where you trust it, {by_hand}: importing that says how to convert it"
        )
    raise InputError(f"{reference.address} has no config.json with model.safetensors, and no GGUF file")
