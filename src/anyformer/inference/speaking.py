"""Speaking: texts as sounds, frame after frame of a codebook, maybe in the voice of a recording.

Shapes: B sounds, T frames, M mel bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.audio.read import read_audio
from ..data.audio.utterances import GAP_FRAMES, PromptIds
from ..data.audio.vocoder import FLOOR, compute_frames, invert_frames
from ..errors import InputError
from ..model.cache import KVCache
from ..model.transformer import Transformer
from ..parsing import check_range, check_types, parse_dataclass
from .completion import sample_seed
from .decode import Decoder, generate
from .guidance import GuidedDecoder
from .sampling import SamplingParams

MAX_SOUNDS, BATCH_SIZE = 1000, 64  # of a request, and spoken together
MAX_VOICE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class SpeakingRequest:
    """What to say, and how. Raises InputError on values that make no sense."""

    input: str | list[str] | None = None
    """A text, or several. None: texts that are kept with the model."""
    speaker: str = ""
    """Whose voice; empty: anyone's."""
    voice: str | None = None
    """The path of a recording that is continued in its voice, for models that were trained on several clips in a row;
    what it says is `voice_text`."""
    voice_text: str = ""
    samples: int = 1
    """Sounds of each text."""
    guidance: float = 1.5
    """How much a sound follows its text: 1 as the model has learned it, 0 not at all."""
    temperature: float = 0.8
    """Divides the logits that frames are drawn by; 0 takes the likeliest."""
    top_k: int | None = None
    """Only the k likeliest frames."""
    top_p: float | None = None
    """Only the likeliest frames that together reach probability p."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "samples", at_least=1, at_most=MAX_SOUNDS)
        check_range(self, "guidance", at_least=0, at_most=100)
        check_range(self, "seed", at_least=0, below=1 << 40)
        SamplingParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if len(self.texts) * self.samples > MAX_SOUNDS:
            raise InputError(f"request: {len(self.texts)} texts with {self.samples} sounds each are too many")
        if "" in self.texts:
            raise InputError("request: a text is empty: there is nothing to say")
        if (self.voice is None) != (not self.voice_text):
            raise InputError("request: voice and voice_text: a recording and what it says, or neither")

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input or []


class SpeakingModel(Protocol):
    """A causal model of frames behind a speaker and a text."""

    ids: PromptIds
    codebook: Tensor
    body: Transformer
    head: Any

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor: ...

    def drop_text(self, ids: Tensor, start: int) -> Tensor: ...

    def encode(self, frames: Tensor) -> Tensor: ...


def parse_speaking(model: SpeakingModel, request: dict[str, Any]) -> SpeakingRequest:
    """Return a request; one without a text gets those that are kept with the model."""
    fields = parse_dataclass(SpeakingRequest, request, "request")
    return fields if fields.texts else replace(fields, input=list(model.ids.voices.examples))


def synthesize(model: SpeakingModel, request: SpeakingRequest) -> list[np.ndarray]:
    """Return the samples of the sounds of a request, at 16 kHz, those of a text one after the other."""
    return [invert_frames(frames) for frames in generate_frames(model, request)]


def generate_frames(model: SpeakingModel, request: SpeakingRequest) -> list[np.ndarray]:
    """Return the frames of the sounds of a request, (T, M) each. Raises InputError."""
    texts = [text for text in request.texts for _ in range(request.samples)]
    seeds = [sample_seed(request.seed, i % request.samples) for i in range(len(texts))]
    start = [] if request.voice is None else read_voice(model, request.voice)
    if start:
        texts = [f"{request.voice_text} {text}" for text in texts]
    prompts = [[*model.ids.encode(text, request.speaker), *start] for text in texts]
    codes: list[list[int]] = []
    for i in range(0, len(prompts), BATCH_SIZE):
        codes += continue_codes(model, prompts[i : i + BATCH_SIZE], seeds[i : i + BATCH_SIZE], request)
    codebook = model.codebook.cpu().numpy()
    return [codebook[row or [0]] for row in codes]


@torch.inference_mode()
def continue_codes(
    model: SpeakingModel, prompts: Sequence[list[int]], seeds: Sequence[int], request: SpeakingRequest
) -> list[list[int]]:
    """Return the frames that follow prompts, as numbers of the codebook, up to the end of the sound or the context."""
    limits = [model.body.config.context + 1 - len(prompt) for prompt in prompts]
    if min(limits) < 1:
        raise InputError(f"text and voice fill the context of {model.body.config.context} nodes: shorten them")
    decoder: Decoder = model
    if request.guidance != 1:
        decoder = GuidedDecoder(decoder, model.drop_text, request.guidance)
    sampling = SamplingParams(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
    steps = generate(
        decoder,
        prompts,
        tokens=max(limits),
        sampling=sampling,
        seeds=seeds,
        stop=lambda _, token: token == model.ids.end,
    )
    rows = [row[:limit] for row, limit in zip(zip(*steps, strict=True), limits, strict=True)]
    return [[int(code) for code in takewhile(lambda code: code not in (None, model.ids.end), row)] for row in rows]


def read_voice(model: SpeakingModel, voice: str) -> list[int]:
    """Return the frames of a recording and a pause after it, as numbers of the codebook. Raises InputError."""
    frames = compute_frames(read_audio(Path(voice).expanduser(), MAX_VOICE_SECONDS), model.codebook.shape[1])
    pause = np.full((GAP_FRAMES[0], frames.shape[1]), FLOOR, np.float32)
    device = model.codebook.device
    return model.encode(torch.from_numpy(np.concatenate([frames, pause])).to(device)).tolist()
