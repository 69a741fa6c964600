"""Transcribe sounds of any length: windows that are split at pauses, in batches.

A model has a `config` (mels, encoder.context, pad_to_context), a `tokenizer`, a `prompt`, an `end`, `decode_text(ids)`
and the methods of an `EncoderDecoder`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.audio.batches import pad_mels
from ..data.audio.features import HOP_LENGTH, SAMPLE_RATE, log_mel
from ..data.audio.read import read_blocks, split_at_pauses
from ..model.edges import Edges
from ..model.trace import record
from ..parsing import parse_dataclass
from .decode import generate
from .sampling import SamplingParams
from .speech_prompt import SpeechPrompt, build_prompt, detect_languages
from .word_times import Word, find_first_nodes, find_words

BATCH_SIZE = 16  # windows that are transcribed together
NODE_SECONDS = 2 * HOP_LENGTH / SAMPLE_RATE


@dataclass(frozen=True)
class TranscriptSettings:
    """What is asked of a transcript."""

    words: bool = False
    """Also say when each word begins and ends."""
    language: str | None = None
    """Of a model that knows several: the code of the language, such as fr, or auto to detect it. None: the language of
    the model's config."""
    task: Literal["transcribe", "translate"] | None = None
    """Of a model that was trained on both: translate writes English. None: the task of the model's config."""


@dataclass(frozen=True)
class Window:
    """A part of a sound, of at most a context, and what was said in it.

    Attributes:
        index: of the sound.
        start, end: in seconds.
    """

    index: int
    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None


def transcribe_file(model: Any, path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Transcribe a sound file; its segments are the windows that it is split into (`SupportsTranscription`)."""
    parsed = parse_dataclass(TranscriptSettings, settings, "request")
    windows = list(transcribe_windows(model, iter([read_blocks(path)]), parsed))
    segments = [{"start": window.start, "end": window.end, "text": window.text} for window in windows]
    words = {"words": [word for window in windows for word in window.words]} if parsed.words else {}
    return join_windows(windows) | {"segments": segments} | words


def transcribe_sounds(
    model: Any,
    names: Sequence[str],
    sounds: Iterator[Iterator[np.ndarray]],
    settings: TranscriptSettings,
) -> list[dict[str, Any]]:
    """Transcribe sounds, given as blocks of samples."""
    windows: list[list[Window]] = [[] for _ in names]
    for window in transcribe_windows(model, sounds, settings):
        windows[window.index].append(window)
    results = [{"input": name, **join_windows(parts)} for name, parts in zip(names, windows)]
    for result, parts in zip(results, windows) if settings.words else ():
        result["words"] = [word.to_json() for window in parts for word in window.words]
    return results


def join_windows(windows: Sequence[Window]) -> dict[str, Any]:
    text = " ".join(filter(None, (window.text for window in windows)))
    language = {"language": windows[0].language} if windows and windows[0].language else {}
    return {"text": text, "seconds": windows[-1].end if windows else 0.0} | language


def transcribe_windows(
    model: Any, sounds: Iterator[Iterator[np.ndarray]], settings: TranscriptSettings
) -> Iterator[Window]:
    """Yield the windows of all sounds in order, computed in batches. A language is detected in the first of a sound."""
    c, device = model.config, next(model.parameters()).device
    prompt = build_prompt(model, settings.language, settings.task)
    size = 2 * c.encoder.context * HOP_LENGTH
    windows = ((i, piece) for i, sound in enumerate(sounds) for piece in split_at_pauses(sound, size))
    prompts: dict[int, SpeechPrompt] = {}
    ends: dict[int, int] = {}  # samples of each sound that are transcribed
    while batch := list(islice(windows, BATCH_SIZE)):
        mels = [log_mel(piece, c.mels, 2 * c.encoder.context if c.pad_to_context else None) for _, piece in batch]
        mel, lengths = (torch.from_numpy(array).to(device) for array in pad_mels(mels))
        memory, edges = encode_sounds(model, mel, lengths)
        if prompt.is_detected:
            for (i, _), detected in zip(batch, detect_languages(model, prompt, memory, edges)):
                prompts.setdefault(i, detected)
        rows = [prompts.get(i, prompt) for i, _ in batch]
        texts = write_texts(model, memory, edges, [row.ids for row in rows])
        for row, ((i, piece), ids) in enumerate(zip(batch, texts, strict=True)):
            start, ends[i] = ends.get(i, 0) / SAMPLE_RATE, ends.get(i, 0) + len(piece)
            words: tuple[Word, ...] = ()
            if settings.words and ids:
                nodes = -(-len(piece) // (2 * HOP_LENGTH))
                source = memory[row : row + 1], model.sound_edges(lengths[row : row + 1])
                words = tuple(time_words(model, *source, nodes, rows[row], ids, start))
            text, end = model.decode_text(ids).strip(), ends[i] / SAMPLE_RATE
            yield Window(i, start, end, text, words, rows[row].language)


@torch.inference_mode()
def encode_sounds(model: Any, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Edges]:
    """Return the nodes of the sounds, (B, S, C), and which of them may be read. mel (B, M, T), lengths (B,)"""
    edges = model.sound_edges(lengths)
    return model.encode(mel, edges), edges


@torch.inference_mode()
def write_texts(model: Any, memory: Tensor, memory_mask: Edges, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the ids of each text without its prompt and its end, decoded greedily. Prompts have the same length."""
    steps = generate(
        model.condition(memory, memory_mask),
        prompts,
        tokens=model.config.decoder.context - len(prompts[0]) + 1,  # the last token need not be read
        sampling=SamplingParams(temperature=0),
        seeds=[0] * len(prompts),
        stop=lambda row, token: token == model.end,
    )
    return [[i for i in row if i not in (None, model.end)] for row in zip(*steps)]


def time_words(
    model: Any, memory: Tensor, memory_mask: Edges, nodes: int, prompt: SpeechPrompt, ids: Sequence[int], start: float
) -> Iterator[Word]:
    """Yield the words of one window of so many nodes, with times from the start of the sound. memory (1, S, C)"""
    # The token before reads where the next one is said: the last of the prompt for the first, and so on.
    all_ids = [*prompt.ids, *ids][: model.config.decoder.context]
    weights = read_weights(model, memory, memory_mask, all_ids)[:, len(prompt.ids) - 1 :, :nodes]
    times = [*(start + find_first_nodes(weights) * NODE_SECONDS).tolist(), start + nodes * NODE_SECONDS]
    yield from find_words(ids, times[: len(ids) + 1], model.tokenizer.decode, prompt.language)


@torch.inference_mode()
def read_weights(model: Any, memory: Tensor, memory_mask: Edges, ids: Sequence[int]) -> Tensor:
    """Return the weights of the alignment heads, of each token over the nodes of one sound: (heads, T, S)."""
    heads = model.alignment_heads
    names = {layer: f"blocks.{layer}.cross" for layer, _ in heads}
    with record(model.decoder, 1, names.values()) as trace:
        model.decode(torch.tensor([ids], device=memory.device), memory, memory_mask)
    weights = {layer: trace[name].weights[0].float() for layer, name in names.items()}  # (H, T, S) each
    return torch.stack([weights[layer][head] for layer, head in heads])
