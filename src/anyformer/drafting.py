"""Drafts for a language model: what proposes tokens that it checks, by the name of `--draft`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from .data.io.files import suffix
from .data.text.batches import IGNORE_INDEX
from .data.text.ngrams import MAX_CODE_BITS, NGramCounts, count_ngrams
from .data.text.read import decode_piece, read_pieces
from .errors import InputError
from .inference.speculative import CountsDrafter, ModelDrafter, PromptLookup
from .recipe import Recipe, SupportsCompletion

MAX_ORDER = 8  # tokens of a context
MAX_COUNTED = 4_000_000  # tokens of a text, the first ones


def attach_drafter(model: Any, draft: str | Path, load: Any) -> None:
    """Let a model (`Model`) generate single completions with drafts.

    Args:
        draft: "prompt", "counts" of the text that the model was trained on, a text file, or a run of a smaller model.
        load: Loads a model by its path.

    Raises:
        InputError: There are no such drafts, or they belong to another vocabulary.
    """
    if not isinstance(model.recipe, SupportsCompletion):
        raise InputError(f"draft: {model.path} is a run of the recipe '{model.name}', which continues no texts")
    decoder = model.recipe.decoder(model.module)
    if draft == "prompt":
        decoder.new_drafter = PromptLookup
        return
    path = Path(draft)
    if draft != "counts" and not path.exists():
        raise InputError(f"draft '{draft}': expected prompt, counts, a text file, or a run of a smaller model")
    if draft != "counts" and (path.is_dir() or suffix(path) in (".gguf", ".safetensors")):
        decoder.new_drafter = build_model_drafter(model, decoder, load(path))
        return
    ids = read_training_text(model.recipe, model.config, str(model.path)) if draft == "counts" else None
    if ids is None:
        text = "".join(map(decode_piece, read_pieces([path])))
        ids = np.asarray(decoder.tokenizer.encode(text))[:MAX_COUNTED]
    counts = count_text(ids, decoder.tokenizer.vocab_size, str(draft))
    decoder.new_drafter = lambda: CountsDrafter(counts)


def build_model_drafter(model: Any, decoder: Any, small: Any) -> Any:
    if not isinstance(small.recipe, SupportsCompletion):
        raise InputError(f"draft: {small.path} is a run of the recipe '{small.name}', which continues no texts")
    other = small.recipe.decoder(small.module)
    if other.tokenizer.to_json() != decoder.tokenizer.to_json():
        raise InputError(f"draft: {small.path} has another vocabulary than {model.path}")
    cost = small.n_parameters / model.n_parameters
    return lambda: ModelDrafter(other, cost)


def read_training_text(recipe: Recipe, config: Any, where: str) -> np.ndarray:
    """Return the first ids of the text that a model was trained on, without its validation split. Raises InputError."""
    if not config.data:
        raise InputError(f"draft: {where} came without its text: name one, --draft FILE")
    n_val = sum(len(labels) for labels in read_labels(recipe, config, "val"))
    parts, n_ids = [], 0
    for labels in read_labels(recipe, config, "all"):
        parts.append(labels)
        n_ids += len(labels)
        if n_ids >= MAX_COUNTED + n_val:
            break
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return ids[: max(0, len(ids) - n_val)]


def read_labels(recipe: Recipe, config: Any, split: str) -> Any:
    """Yield the tokens that a model is to predict, in order."""
    for batch, _ in recipe.batches(config, split, None):
        labels = batch["labels"].numpy().reshape(-1)
        yield labels[labels != IGNORE_INDEX]


def count_text(ids: np.ndarray, vocab_size: int, where: str) -> NGramCounts:
    order = min(MAX_ORDER, int(MAX_CODE_BITS // math.log2(max(2, vocab_size))) - 1)
    if len(ids) <= order:
        raise InputError(f"draft '{where}': {len(ids)} tokens are too few to count")
    return count_ngrams(ids.astype(np.int64), order, vocab_size)
