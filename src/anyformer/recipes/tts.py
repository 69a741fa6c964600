"""Text to speech: say a text in a speaker's voice, mel frame after mel frame.

raw    sound files with their text and maybe their speaker, or a set by name; one clip, or several of a speaker in a row
nodes  the speaker, the characters of the text, a start, then frames of 10 ms as numbers of a codebook (k-means)
edges  causal
head   a logit for each entry of the codebook, and for the end
loss   cross-entropy of the next frame; a tenth of the rows see no text and no speaker, a tenth no speaker

    anyformer train tts                                    about 8 minutes of CPU: spoken digits of six speakers
    anyformer train tts --data clips.csv                   your own: columns path and text, maybe speaker
    anyformer sample RUN --prompt seven --out seven.wav
    anyformer predict RUN seven --speaker theo --out seven.wav

Sound as tokens behind its text: AudioLM (2209.03143), VALL-E (2301.02111); guidance: 2207.12598; phases: Griffin and
Lim (1984).
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.audio.datasets import COLUMNS, load_audio
from ..data.audio.features import HOP_LENGTH, SAMPLE_RATE
from ..data.audio.utterances import GAP_FRAMES, PromptIds, Utterances, load_voices
from ..data.audio.vocoder import encode_wav
from ..data.codebook import find_nearest
from ..data.io.cache import cache_by_files, data_files
from ..data.io.manifest import split_columns
from ..data.sampling import count_rows, sample_evenly
from ..data.text.batches import IGNORE_INDEX, bucket_by_length
from ..data.tokenizers.base import Tokenizer, encode_each
from ..data.tokenizers.build import build_tokenizer
from ..data.unusable import DuplicatePolicy, EmptyPolicy, check_unusable
from ..errors import InputError
from ..forms import Form, Task
from ..inference.speaking import SpeakingRequest, generate_frames, parse_speaking, synthesize
from ..model import LMHead, Transformer, TransformerConfig, initialize
from ..model.cache import KVCache
from ..model.edges import causal
from ..model.kernels.cross_entropy import cross_entropy
from ..parsing import check_range, path_field
from ..recipe import (
    BatchStream,
    DataDefaults,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ._shared.codebooks import read_codebook
from ._shared.media_lenses import lens_speaking as lens  # noqa: F401
from ._shared.presets import MUON, TINY_TRAIN, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.speaking_figures import draw_figures
from ._shared.text import VocabularyConfig, load_config_tokenizer
from ._shared.trivial_baselines import Baselines, score_bigrams

MAX_NODES = 1 << 14
N_SCORED, N_COUNTED = 100, 1000  # clips of a split
PAUSE_SECONDS = 0.4  # between the sounds of one file


@dataclass(frozen=True, kw_only=True)
class Config(VocabularyConfig):
    """A model that speaks, its sounds and its training."""

    data: str = path_field("fsdd")
    """fsdd, tones, a table (csv, tsv, jsonl, json) with columns path and text, optionally speaker and split (train,
    val), or a folder of sounds with a text file each, or with lists *.trans.txt; in a folder for each speaker."""
    columns: str = COLUMNS
    """Names of a table's columns of the sound file and of its text."""
    voices: str = path_field("", [".json"])
    """A voices.json with the speakers: its path, or its content. Empty: those of the data."""
    val_fraction: float = 0.1
    """Of the clips, where the data does not say which."""
    skip_broken: bool = False
    """Leave out sound files that cannot be read, instead of stopping at the first."""
    empty: EmptyPolicy = "few"
    """Clips without a text: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Clips that repeat a file and its text: keep or skip."""
    too_long: EmptyPolicy = "few"
    """Clips whose text and sound exceed the context: skip, error, or few: skip where they are at most 1 %."""
    max_clips: int = 1
    """Up to so many clips of a speaker are joined in training, as far as they fit: for longer texts than those of the
    data, and for voices that are continued."""
    mels: int = 80
    """Bands of the mel spectrogram."""
    codes: int = 512
    """Entries of the codebook."""
    drop_text: float = 0.1
    """Share of the training rows that see no text and no speaker, for guidance."""
    drop_speaker: float = 0.1
    """Share of the training rows that see no speaker, for a voice of anyone's."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        split_columns(self.columns, COLUMNS)
        check_range(self, "max_clips", "mels", at_least=1, at_most=1000)
        check_range(self, "codes", at_least=2, at_most=1 << 16)
        check_range(self, "drop_text", "drop_speaker", at_least=0, at_most=1)
        check_range(self, "val_fraction", above=0, below=1)


TRAIN = TrainConfig(
    steps=600, batch=32, lr=5e-3, warmup=50, weight_decay=0.01, eval_every=200, eval_batches=10, save_every=200, **MUON
)
SMALL = Config(model=make_modern_config(96, 4, 3, 256, init="zero"), train=TRAIN)
SIZES = (Size(64, 2, 16, 0),)  # of --minutes
PRESETS = {
    # seconds, no data needed: for tests
    "tiny": Config(
        data="tones",
        mels=20,
        codes=32,
        drop_text=0.2,
        drop_speaker=0.2,
        val_fraction=0.2,
        model=make_modern_config(32, 2, 2, 40),
        train=TINY_TRAIN,
    ),
    # about 8 minutes of CPU
    "small": SMALL,
    # up to three words in a row, and recordings whose voice is continued
    "strings": replace(SMALL, max_clips=3),
    # for hours of recordings of many speakers, and a GPU
    "base": Config(
        data="clips.csv",
        val_fraction=0.01,
        skip_broken=True,
        empty="skip",
        too_long="skip",
        max_clips=3,
        codes=2048,
        model=make_modern_config(512, 8, 8, 1024, init="zero"),
        train=replace(TRAIN, steps=50_000, warmup=1000, eval_every=1000, save_every=1000),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=800)


class TextToSpeech(nn.Module):
    """ids (B, T) -> logits (B, T, codes + 1); what the ids are: `PromptIds`."""

    codebook: Tensor

    def __init__(self, config: Config, ids: PromptIds):
        super().__init__()
        self.ids, dim = ids, config.model.dim
        self.files = {"tokenizer.json": ids.tokenizer.to_json(), "voices.json": ids.voices.to_json()}
        self.register_buffer("codebook", torch.zeros(config.codes, config.mels))
        self.token = nn.Embedding(ids.size, dim)
        self.sound = nn.Linear(config.mels, dim)  # similar frames have similar nodes from the start
        self.body = Transformer(config.model)
        self.head = LMHead(dim, config.codes + 1)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the nodes after the last block, (B, T, C). With a cache, ids are the next ones of each row."""
        sounds, is_frame = self.sound(self.codebook / 2 + 1), (ids < self.ids.end)[..., None]
        x = self.token(ids) + is_frame * nn.functional.embedding(ids.clamp(max=self.ids.end - 1), sounds)
        return self.body(x, causal, cache=cache)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))

    def drop_text(self, ids: Tensor, start: int = 0) -> Tensor:
        """Return ids (B, T) with blanks in place of speakers and texts, wherever their row begins."""
        return ids.masked_fill(ids > self.ids.start, self.ids.blank)

    def encode(self, frames: Tensor) -> Tensor:
        """Return the nearest entry of the codebook for each frame: (..., M) -> (...)"""
        return (self.codebook.square().sum(1) - 2 * frames @ self.codebook.T).argmin(-1)


def build_ids(config: Config) -> PromptIds:
    voices = load_voices(config.voices) if config.voices else load_utterances(config).fit_voices()
    return PromptIds(config.codes, load_text_tokenizer(config), voices, config.padded_vocab or 0)


def build(config: Config) -> TextToSpeech:
    model = TextToSpeech(config, build_ids(config))
    initialize(model, config.model)
    codebook = read_codebook(config.voices, (config.codes, config.mels), "frames")
    if codebook is None:
        codebook = torch.from_numpy(load_utterances(config).fit_codebook(config.codes))
    model.codebook.copy_(codebook)
    return model


# --- data ---


@cache_by_files(lambda config: data_files(config.data))
def load_utterances(config: Config) -> Utterances:
    """Load the clips of the config's data; files that have changed are read again."""
    options = (config.val_fraction, config.skip_broken, config.empty, config.columns, config.duplicates)
    return Utterances(load_audio(config.data, *options), config.mels)


def load_text_tokenizer(config: Config) -> Tokenizer:
    def train() -> Tokenizer:
        texts = [*load_utterances(config).clips.texts, *[" "] * (config.max_clips > 1)]
        return build_tokenizer(config.tokenizer, lambda: iter(texts), config.vocab_size)

    return load_config_tokenizer(config, train)


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose a context that holds the texts and sounds of the user's data, where the user has chosen none."""
    names = ("data", "columns", "val_fraction", "skip_broken", "empty", "duplicates")
    config = replace(SMALL, **{name: overrides[name] for name in names if name in overrides})
    is_chosen = "context" in overrides.get("model", {}) or overrides.get("tokenizer", "char") != "char"
    if is_chosen or not data_files(config.data):
        return None
    clips = load_utterances(config).clips
    nodes = max(len(text) + 2 + n for text, n in zip(clips.texts, count_frames(config), strict=True))
    context = min(MAX_NODES, max(config.model.context, -(-nodes // 16) * 16))
    reason = f"data '{config.data}': texts and sounds of up to {nodes:,} nodes (flag: --model.context)"
    return DataDefaults("small", {"model": {"context": context}}, reason)


def count_frames(config: Config) -> list[int]:
    """Return the frames of each clip, which are an even number."""
    return (2 * -(-np.diff(load_utterances(config).clips.starts) // (2 * HOP_LENGTH))).tolist()


@cache_by_files(lambda config: [path for name in (config.data, config.tokenizer) for path in data_files(name)])
def count_nodes(config: Config) -> np.ndarray:
    """Return how many nodes each clip takes, from the speaker to its last frame. Raises InputError where more clips
    exceed the context than the config allows."""
    clips, tokenizer = load_utterances(config).clips, load_text_tokenizer(config)
    tokens = [len(ids) for ids in encode_each(tokenizer, clips.texts, map(str, clips.places))]
    nodes = np.array(tokens) + np.array(count_frames(config)) + 2
    rows = np.flatnonzero(nodes > config.model.context)
    if len(rows):
        sizes = f"{config.model.context:,} nodes; up to {nodes.max():,} of text and frames"
        problem = f"clips are longer than the context: {sizes} (the first: {clips.places[rows[0]]})"
        hint = f"--too-long skip, or --model.context {nodes.max()}"
        check_unusable(len(rows), len(nodes), config.too_long, "--too-long", problem, hint)
    return nodes


def select_clips(config: Config, split: str) -> np.ndarray:
    """Return the indices of the clips of a split that fit the context. Raises InputError where there are none."""
    rows = load_utterances(config).clips.split(split)
    rows = rows[count_nodes(config)[rows] <= config.model.context]
    if not len(rows):
        raise InputError(f"data '{config.data}': no clip is short enough for {split}: a larger --model.context")
    if split == "val":  # always the same order: the first few batches are of all speakers and words
        rows = np.random.Generator(np.random.Philox(key=0)).permutation(rows)
    return rows


def draw_clips(config: Config, first: int, rng: np.random.Generator) -> np.ndarray:
    """Return a clip, and others of its speaker that come after it, as many as fit the context."""
    utterances, nodes = load_utterances(config), count_nodes(config)
    others = utterances.training_rows[utterances.speakers[first]]
    rows = np.array([first, *rng.choice(others, int(rng.integers(config.max_clips)))])
    sizes = nodes[rows] + GAP_FRAMES[1] * (np.arange(len(rows)) > 0)
    return rows[np.cumsum(sizes) <= config.model.context]


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: ids (B, T) of speakers, texts and starts, 0 in place of frames and of the end; frames (B, T, M);
    and is_sound (B, T), where those are. "train" never ends and draws clips, joined where the config says so; "val" and
    "all" yield every clip once."""
    c, utterances, rows, ids = config.train, load_utterances(config), select_clips(config, split), build_ids(config)
    skipped = utterances.clips.skipped + int((count_nodes(config) > config.model.context).sum())
    n_rows = count_rows(split, partial(select_clips, config))
    state = init_stream(state, config.data, utterances.sha256, skipped=skipped, rows=n_rows)
    for start in range(0, len(rows) if split != "train" else 0, c.batch):
        examples = [build_example(utterances, ids, np.array([i])) for i in rows[start : start + c.batch]]
        yield collate(ids, examples), state
    while split == "train":
        rng = np.random.Generator(np.random.Philox(key=c.seed, counter=(0, 0, 4, state["step"])))
        epoch, i = divmod(state["step"], -(-len(rows) // c.batch))
        firsts = bucket_by_length(rows, count_nodes(config)[rows], c.batch, c.seed, epoch)[i]
        drawn = [draw_clips(config, first, rng) for first in firsts]
        hidden = np.searchsorted(np.cumsum([config.drop_text, config.drop_speaker]), rng.random(len(firsts)), "right")
        examples = [
            build_example(utterances, ids, clips, rng, hides) for clips, hides in zip(drawn, hidden, strict=True)
        ]
        batch = collate(ids, examples)
        state = advance_stream(state, sum(len(prompt) + len(frames) for prompt, frames in examples))
        yield batch, state


def build_example(
    utterances: Utterances, ids: PromptIds, clips: np.ndarray, rng: np.random.Generator | None = None, hidden: int = 2
) -> tuple[list[int], np.ndarray]:
    """Return the ids of the prompt of clips, and their frames (T, M). hidden 0: text and speaker, 1: the speaker."""
    frames, text = utterances.join(clips, rng or np.random.default_rng(0))
    speaker = utterances.speakers[clips[0]]
    speaker = speaker if hidden > 1 and speaker in ids.voices.speakers else ""
    return ids.encode(text, speaker, is_hidden=hidden == 0), frames


def collate(ids: PromptIds, examples: list[tuple[list[int], np.ndarray]]) -> dict[str, Tensor]:
    """Pad examples with blanks to a batch. A row is its prompt, its frames and its end."""
    shape = len(examples), 1 + max(len(prompt) + len(frames) for prompt, frames in examples)
    rows, is_sound = np.full(shape, ids.blank), np.zeros(shape, bool)
    sounds = np.zeros((*shape, examples[0][1].shape[1]), np.float32)
    for i, (prompt, frames) in enumerate(examples):
        start, stop = len(prompt), len(prompt) + len(frames)
        rows[i, :start], rows[i, start:stop], rows[i, stop] = prompt, 0, ids.end
        sounds[i, start:stop], is_sound[i, start : stop + 1] = frames, True
    arrays = {"ids": rows, "frames": sounds, "is_sound": is_sound}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def baselines(config: Config) -> Baselines:
    """Return the loss of frequencies of frames, and of pairs of them."""
    utterances, end = load_utterances(config), config.codes
    centers, rows = utterances.fit_codebook(config.codes), {}
    for split in ("train", "val"):
        clips = sample_evenly(select_clips(config, split), N_COUNTED)
        codes = [find_nearest(utterances.read_frames(i), centers) for i in clips]
        rows[split] = [np.array([end, *row, end]) for row in codes]
    return {"loss": score_bigrams(rows["train"], rows["val"], config.codes + 1)}


# --- training ---


def predict_frames(model: TextToSpeech, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of the frames and ends of a batch."""
    is_frame = batch["is_sound"] & (batch["ids"] != model.ids.end)
    ids = torch.where(is_frame, model.encode(batch["frames"]), batch["ids"])
    labels = ids.masked_fill(~batch["is_sound"], IGNORE_INDEX)[:, 1:]
    return cross_entropy(model.head, model.hidden(ids[:, :-1]), labels, reduction=reduction)


def loss(model: TextToSpeech, batch: dict[str, Tensor]) -> Tensor:
    return predict_frames(model, batch)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The frames and ends of the sounds."""
    return batch["is_sound"].sum()


def evaluate(model: TextToSpeech, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats of a frame."""
    nats, n_frames = 0.0, 0
    for batch in batches:
        nats, n_frames = nats + predict_frames(model, batch, "sum").item(), n_frames + int(loss_weight(batch))
    return {"loss": nats / n_frames, "frames": n_frames} if n_frames else {}


def score(model: TextToSpeech, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Say the texts of clips of a split in the voices of their speakers, and return how many ended by themselves, how
    long the median one is and that of the clips, and what the codebook leaves out of frames, in powers of ten."""
    utterances = load_utterances(config)
    rows = sample_evenly(select_clips(config, split), N_SCORED)
    limit, lengths, own = config.model.context, [], [len(utterances.read_frames(i)) for i in rows]
    n_full = 0
    for seed, i in enumerate(rows):
        speaker = utterances.speakers[i] if utterances.speakers[i] in model.ids.voices.speakers else ""
        wishes = {"input": utterances.clips.texts[i], "speaker": speaker, "seed": seed} | request
        lengths += [len(frames) for frames in generate_frames(model, parse_speaking(model, wishes))]
        n_full += lengths[-1] >= limit - len(model.ids.encode(utterances.clips.texts[i]))
    seconds = {
        name: float(np.median(sizes)) * HOP_LENGTH / SAMPLE_RATE for name, sizes in (("", lengths), ("own_", own))
    }
    facts = {f"{name}seconds": value for name, value in seconds.items()}
    error = utterances.measure_codebook(model.codebook.cpu().numpy())
    return {"sounds": len(rows), "end": 1 - n_full / len(rows), **facts, "codebook_error": error}


def export_graph(model: TextToSpeech) -> Graph:
    """The graph reads the speaker, the text and the frames so far."""
    ids = GraphInput("batch length", model.ids.size)
    return Graph(model, {"ids": ids}, ("logits",), {"length": model.body.config.context})


# --- answers ---


def predict(model: TextToSpeech, request: dict[str, Any]) -> dict[str, Any]:
    """Say texts: the fields of `SpeakingRequest`.

    {"input": "seven", "speaker": "theo"} returns {"results": [{"input", "seconds", "wav"}, ...]}, WAV files in base64,
    those of several samples one after the other. Without an input: texts that are kept with the model.
    """
    fields = parse_speaking(model, request)
    texts = [text for text in fields.texts for _ in range(fields.samples)]
    return {
        "results": [
            {"input": text, "seconds": len(sound) / SAMPLE_RATE, "wav": b64encode(encode_wav(sound)).decode()}
            for text, sound in zip(texts, synthesize(model, fields), strict=True)
        ]
    }


def predict_batch(model: TextToSpeech, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings.get("samples", 1) != 1:
        raise InputError("samples: one sound of each row of a file")
    return predict(model, settings | {"input": inputs})["results"]


def file_input(model: TextToSpeech, config: Config) -> FileInput:
    return FileInput((split_columns(config.columns, COLUMNS)[1],))


def record(model: TextToSpeech, request: dict[str, Any]) -> bytes:
    """Return a WAV file of all sounds of a request, with pauses between them."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    sounds = synthesize(model, parse_speaking(model, request))
    return encode_wav(np.concatenate([part for sound in sounds for part in (pause, sound)][1:]))


def form(model: TextToSpeech, config: Config) -> Form:
    voices, usual = model.ids.voices, {"guidance": (0.0, 4.0), "temperature": (0.0, 1.5), "samples": (1, 8)}
    settings = {"speaker": voices.speakers[0]} if voices.speakers else {}
    omit = ("voice", "voice_text", *(() if voices.speakers else ("speaker",)))
    task = Task(
        "Say a text", "text", SpeakingRequest, "sounds", omit=omit, usual=usual, settings=settings,
        examples=voices.examples,
    )  # fmt: skip
    return Form((task,))


def figures(model: TextToSpeech, config: Config) -> list[Figure]:
    return draw_figures(model, load_utterances(config), select_clips(config, "val"))
