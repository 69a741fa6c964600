"""Speech: slices of a mel spectrogram in, text out, cross-attention between.

raw    sound files with their text, or a set by name; one clip, or several joined with gaps
nodes  mel frames through two convolutions, with a fixed position; characters or BPE tokens
edges  encoder: all nodes of a sound read each other; decoder: causal, and all of the sound
head   a logit for each token of the vocabulary, tied to the embedding
loss   cross-entropy of the next token

    anyformer train speech --preset digits --minutes 4         on two cores: spoken digits, fewer than 1 in 100 wrong
    anyformer train speech --preset strings --minutes 20       on two cores: two to six in a row, 1 word in 100
    anyformer train speech --data clips.csv                    your own: columns path and text

Whisper (Radford et al. 2022, 2212.04356); SpecAugment (1904.08779).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data.audio.batches import ExampleSpec, build_example, collate, join_clips
from ..data.audio.datasets import COLUMNS, AudioDataset, load_audio, load_tones
from ..data.audio.features import HOP_LENGTH, SAMPLE_RATE
from ..data.audio.read import read_blocks
from ..data.io.cache import cache_by_files, data_files
from ..data.io.manifest import split_columns
from ..data.sampling import count_rows, sample_evenly
from ..data.text.batches import IGNORE_INDEX
from ..data.tokenizers.base import Tokenizer, encode_each
from ..data.tokenizers.build import build_tokenizer
from ..data.unusable import DuplicatePolicy, EmptyPolicy, check_unusable
from ..errors import InputError
from ..forms import Form, Task
from ..inference.transcription import TranscriptSettings, encode_sounds, transcribe_sounds, write_texts
from ..inference.transcription import transcribe_file as transcribe  # noqa: F401
from ..inference.translation import select_sharpest_layer
from ..inference.word_times import read_alignment_heads
from ..metrics import error_rates
from ..model import EncoderDecoder, FrameEmbedding, LMHead, TokenEmbedding, TransformerConfig, initialize
from ..model.edges import Edges, full, within
from ..model.kernels.cross_entropy import cross_entropy
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    DataDefaults,
    Examples,
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
from ._shared.media_lenses import lens_speech as lens  # noqa: F401
from ._shared.presets import MUON, T5, TINY_TRAIN, make_stacks
from ._shared.sizes import Size, offer_sizes
from ._shared.text import MAX_VOCAB_SIZE, N_EXAMPLES, VocabularyConfig, load_config_tokenizer
from ._shared.trivial_baselines import Baselines, average_parts, find_nearest, score_bigrams

MAX_COLUMNS, MAX_LABELS = 48, 6  # of a figure of attention over time
DEFAULT = "digits"  # the preset for the user's data
MAX_NODES, MAX_TOKENS = 1500, 448  # of contexts that are chosen from the data: those of Whisper
CURRICULUM_STEPS = 100  # after each so many steps, examples may be one clip longer


@dataclass(frozen=True, kw_only=True)
class Config(VocabularyConfig):
    """A model of speech, its sounds and its training."""

    data: str = path_field("fsdd")
    """fsdd, tones, a table (csv, tsv, jsonl, json) with columns path and text, optionally split (train, val), or a
    folder of sounds with a text file each, or with lists *.trans.txt."""
    columns: str = COLUMNS
    """Names of a table's columns of the sound file and of its text."""
    max_clips: int = 1
    """Up to so many clips are joined, with gaps and at unequal volume; 1: none. Validation joins at least two."""
    val_fraction: float = 0.1
    """Of the clips, where the data does not say which."""
    skip_broken: bool = False
    """Leave out sound files that cannot be read, instead of stopping at the first."""
    empty: EmptyPolicy = "few"
    """Clips without a text: skip, error, or few: skip where they are at most 1 %."""
    duplicates: DuplicatePolicy = "keep"
    """Clips that repeat a file and its text: keep or skip."""
    too_long: EmptyPolicy = "few"
    """Clips whose sound or text exceeds its context: skip, error, or few: skip where they are at most 1 %."""
    augment: bool = False
    """Hide bands of time and frequency in training (SpecAugment)."""
    prompt: str = ""
    """Ids that each text begins with, as "50258 50259 50359 50363". Empty: the tokenizer's end of a text."""
    end: int | None = None
    """The id that ends a text. None: the tokenizer's."""
    alignment_heads: str = ""
    """Layer and head of cross-attention that time words, as "3:1 4:2". Empty: all of the upper half of the layers."""
    mels: int = 80
    """Bands of the mel spectrogram."""
    pad_to_context: bool = False
    """Pad every sound with silence to the encoder's context, as Whisper does."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context is in nodes of 20 ms."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        split_columns(self.columns, COLUMNS)
        check_range(self, "max_clips", "mels", at_least=1, at_most=1000)
        check_range(self, "val_fraction", above=0, below=1)
        check_range(self, "end", at_least=0, at_most=MAX_VOCAB_SIZE)
        if self.encoder.dim != self.decoder.dim:
            raise InputError(f"encoder.dim {self.encoder.dim} and decoder.dim {self.decoder.dim} must be equal")


def whisper_stacks(*sizes: Any, **fields: Any) -> dict[str, Any]:
    """Build an encoder with fixed positions and a decoder with learned ones."""
    stacks = make_stacks(*sizes, **fields)
    return stacks | {"encoder": replace(stacks["encoder"], position="sinusoidal")}


DIGITS = TrainConfig(steps=1200, weight_decay=0.05, eval_every=200, eval_batches=10, save_every=600)
STRINGS_TRAIN = TrainConfig(
    steps=2000, batch=24, lr=3e-3, warmup=30, clip=0.0, eval_every=500, eval_batches=4, save_every=500, **MUON
)
STRINGS: dict[str, Any] = {"max_clips": 6, "augment": True, "train": STRINGS_TRAIN}
SIZE: tuple[Any, ...] = (128, (3, 2), 4, (600, 48))
LAMDA = T5 | {"activation": "geglu", "bias": True}
LLAMA = dict(
    position="rotary", rotary_base=1e6, norm="rmsnorm", activation="swiglu", n_kv_head=2, mlp_dim=344, bias=False
)

KINDS = {"transcribed sounds": {"columns": "{path},{text}"}}
SIZES = (Size(64, 2, 8, 0), Size(96, 2, 16, 100))  # of --minutes
PRESETS = {
    # seconds, no data needed: for tests
    "tiny": Config(
        data="tones", mels=20, **whisper_stacks(32, 2, 2, (50, 16)), train=replace(TINY_TRAIN, eval_batches=2)
    ),
    # isolated digits
    "digits": Config(augment=True, **whisper_stacks(128, (3, 2), 4, (150, 16), dropout=0.1), train=DIGITS),
    # strings of digits; dropout on attention would cost half of the speed
    "strings": Config(**whisper_stacks(*SIZE), **STRINGS),
    # the same strings with other architectures, to compare
    "vaswani": Config(
        **make_stacks(*SIZE, position="sinusoidal", norm_place="post", activation="relu"), **STRINGS
    ),  # 1706.03762
    "lamda": Config(**make_stacks(*SIZE, **LAMDA), **STRINGS),  # 2201.08239
    "llama": Config(**make_stacks(*SIZE, qk_norm=True, init="zero", **LLAMA), **STRINGS),  # 2407.21783
    # the shape of Whisper base, 72.6 M weights, which `anyformer export` can write: for a GPU and hours of sound
    "whisper": Config(
        data="clips.csv",
        val_fraction=0.01,
        skip_broken=True,
        empty="skip",
        too_long="skip",
        augment=True,
        tokenizer="bpe",
        vocab_size=50257,
        padded_vocab=51865,
        prompt="50258 50259 50359 50363",
        end=50257,
        pad_to_context=True,
        **whisper_stacks(512, 6, 8, (1500, 448)),
        train=TrainConfig(steps=100_000, accumulate=8, warmup=2000, beta2=0.98, eval_every=2000, save_every=5000),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=100)


class SpeechTransformer(EncoderDecoder):
    """mel (B, M, T) and ids (B, L) -> logits (B, L, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        vocab_size = max(tokenizer.vocab_size, config.padded_vocab or 0)
        target = TokenEmbedding(vocab_size, config.decoder)
        head = LMHead(config.decoder.dim, vocab_size, target.token)
        super().__init__(FrameEmbedding(config.mels, config.encoder), config.encoder, target, config.decoder, head)
        self.config, self.tokenizer, self.files = config, tokenizer, {"tokenizer.json": tokenizer.to_json()}
        self.prompt, self.end = prompt_and_end(config, tokenizer)
        self.alignment_heads = read_alignment_heads(config.alignment_heads, config.decoder)

    def sound_edges(self, lengths: Tensor) -> Edges:
        """Return which nodes of the sound may be read: not the padding, unless it is part of the input. lengths (B,)"""
        return full if self.config.pad_to_context else within(lengths)

    def transcribe(self, mel: Tensor, lengths: Tensor) -> list[list[int]]:
        """Return the ids of each text without its end, decoded greedily: mel (B, M, T), nodes of each sound (B,)"""
        return write_texts(self, *encode_sounds(self, mel, lengths), [self.prompt] * len(mel))

    def decode_text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in (IGNORE_INDEX, self.end)])


def prompt_and_end(config: Config, tokenizer: Tokenizer) -> tuple[list[int], int | None]:
    """Return the ids that begin a text, and the one that ends it. Raises InputError."""
    end = tokenizer.end_id if config.end is None else config.end
    if not all(word.isdigit() for word in config.prompt.split()):
        raise InputError(f"the prompt is {config.prompt!r}; expected ids with spaces between")
    prompt = [int(word) for word in config.prompt.split()] or ([] if end is None else [end])
    size = max(tokenizer.vocab_size, config.padded_vocab or 0)
    if not 0 < len(prompt) < config.decoder.context or not all(0 <= i < size for i in [*prompt, end or 0]):
        raise InputError(f"prompt {prompt} and end {end} do not fit a vocabulary of {size} ids")
    return prompt, end


def build(config: Config) -> SpeechTransformer:
    model = SpeechTransformer(config, load_text_tokenizer(config))
    initialize(model, config.encoder), initialize(model.decoder, config.decoder)
    for module in model.source.modules():
        if isinstance(module, nn.Conv1d):  # large enough next to the position
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def load_text_tokenizer(config: Config) -> Tokenizer:
    def train() -> Tokenizer:
        texts = [*load_clips(config).texts, *[" "] * (config.max_clips > 1)]
        return build_tokenizer(config.tokenizer, lambda: iter(texts), config.vocab_size)

    return load_config_tokenizer(config, train)


def load_clips(config: Config) -> AudioDataset:
    return load_audio(
        config.data, config.val_fraction, config.skip_broken, config.empty, config.columns, config.duplicates
    )


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose contexts that hold the sounds and the texts of the user's data, where the user has chosen none."""
    names = ("data", "columns", "val_fraction", "skip_broken", "empty", "duplicates")
    config = replace(PRESETS[DEFAULT], **{name: overrides[name] for name in names if name in overrides})
    chosen = [name for name in ("encoder", "decoder") if "context" in overrides.get(name, {})]
    if not data_files(config.data) or chosen or overrides.get("tokenizer", "char") != "char":
        return None
    dataset = load_clips(config)
    nodes, tokens = -(-np.diff(dataset.starts) // (2 * HOP_LENGTH)), np.array([len(text) + 1 for text in dataset.texts])
    contexts = {"encoder": fit_context(nodes, config.encoder.context, MAX_NODES)}
    contexts["decoder"] = fit_context(tokens, config.decoder.context, MAX_TOKENS)
    seconds = contexts["encoder"] * 2 * HOP_LENGTH / SAMPLE_RATE
    reason = f"data '{config.data}': sounds of up to {seconds:g} s, texts of up to {contexts['decoder']} characters"
    fields = {name: {"context": context} for name, context in contexts.items()}
    return DataDefaults(DEFAULT, fields, f"{reason} (flags: --encoder.context --decoder.context)")


def fit_context(sizes: np.ndarray, at_least: int, at_most: int) -> int:
    """Return a context for sizes, (N,), in steps of 16. It holds all of them if they are at most `at_most`."""
    return min(at_most, max(at_least, -(-int(sizes.max()) // 16) * 16))


@cache_by_files(lambda config: [path for name in (config.data, config.tokenizer) for path in data_files(name)])
def find_too_long(config: Config) -> np.ndarray:
    """Return the indices of the clips that are left out because they exceed a context. Raises InputError where more
    do than the config allows."""
    dataset, tokenizer = load_clips(config), load_text_tokenizer(config)
    spec = example_spec(config, tokenizer, None)
    nodes = -(-np.diff(dataset.starts) // (2 * HOP_LENGTH))
    places = map(str, dataset.places)
    tokens = np.array([len(ids) for ids in encode_each(tokenizer, dataset.texts, places)]) + len(spec.prompt)
    rows = np.flatnonzero((nodes > spec.max_nodes) | (tokens > spec.max_tokens))
    if len(rows):
        longest, limit = (n * 2 * HOP_LENGTH / SAMPLE_RATE for n in (int(nodes.max()), spec.max_nodes))
        limits = f"{limit:g} s or {spec.max_tokens} tokens; up to {longest:.1f} s, {tokens.max()} tokens"
        problem = f"clips are longer than the context: {limits} (the first: {dataset.places[rows[0]]})"
        needs = (("encoder", nodes.max(), spec.max_nodes), ("decoder", tokens.max(), spec.max_tokens))
        flags = [f"--{stack}.context {needed}" for stack, needed, context in needs if needed > context]
        hint = f"--too-long skip, or {' '.join(flags)}"
        check_unusable(len(rows), len(nodes), config.too_long, "--too-long", problem, hint)
    return rows


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches: mel (B, M, T), lengths (B,) in nodes, ids and labels (B, L).

    "train" never ends and draws random clips, joined where the config says so. "val" and "all" yield as many examples
    as there are clips, each beginning with another clip.
    """
    c, dataset, tokenizer = config.train, load_clips(config), load_text_tokenizer(config)
    n_left_out, indices = len(find_too_long(config)), select_clips(config, split)
    n_rows = count_rows(split, partial(select_clips, config))
    state = init_stream(state, config.data, dataset.sha256, skipped=dataset.skipped + n_left_out, rows=n_rows)
    is_train = split == "train"
    for step in count(state["step"], state.get("stride", 1)) if is_train else range(-(-len(indices) // c.batch)):
        rows = range(c.batch) if is_train else range(step * c.batch, min((step + 1) * c.batch, len(indices)))
        spec = example_spec(config, tokenizer, step if is_train else None)
        examples = []
        for row in rows:  # drawn from (seed, step, row) in training, and from the row alone in validation
            rng = np.random.Philox(key=c.seed, counter=(0, row, step, 1)) if is_train else eval_rng(row)
            first = None if is_train else row
            examples.append(build_example(spec, dataset, indices, tokenizer, rng, first))
        batch = {name: torch.from_numpy(value) for name, value in collate(spec, examples).items()}
        if is_train:
            nodes = int(batch["lengths"].sum() + (batch["labels"] != IGNORE_INDEX).sum())
            state = advance_stream(state, nodes)
        yield batch, state


def select_clips(config: Config, split: str) -> np.ndarray:
    """Return the indices of the clips of a split that are used. Raises InputError where there are none."""
    indices = np.setdiff1d(load_clips(config).split(split), find_too_long(config))
    if not len(indices):
        raise InputError(f"data '{config.data}': no clip is short enough for {split}: a larger --encoder.context")
    if split == "val":  # always the same order: the first few batches are of all speakers and words
        indices = np.random.Generator(np.random.Philox(key=0)).permutation(indices)
    return indices


def example_spec(config: Config, tokenizer: Tokenizer, step: int | None) -> ExampleSpec:
    """Return what an example holds. In training (at a step) short examples come first: alignment is learned on them."""
    c, (prompt, end) = config, prompt_and_end(config, tokenizer)
    return ExampleSpec(
        mels=c.mels,
        max_nodes=c.encoder.context,
        max_tokens=c.decoder.context,
        min_clips=min(2, c.max_clips) if step is None else 1,
        max_clips=c.max_clips if step is None else min(c.max_clips, 1 + step // CURRICULUM_STEPS),
        with_gaps=c.max_clips > 1,
        pad_to_context=c.pad_to_context,
        augment=c.augment and step is not None,
        prompt=tuple(prompt),
        end=end,
    )


def loss(model: SpeechTransformer, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    memory_mask = model.sound_edges(batch["lengths"])
    nodes = model.decode(batch["ids"], model.encode(batch["mel"], memory_mask), memory_mask)
    return cross_entropy(model.head, nodes, batch["labels"], reduction=reduction)


def evaluate(model: SpeechTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean nats per token and, where jiwer is installed (pip install 'anyformer[scores]'), the word and
    character error rate of transcripts decoded greedily."""
    nats, tokens, references, texts = 0.0, 0, [], []
    for batch in batches:
        labels = batch["labels"].flatten()
        nats += loss(model, batch, "sum").item()
        tokens += int((labels != IGNORE_INDEX).sum())
        references += map(model.decode_text, batch["labels"].tolist())
        texts += map(model.decode_text, model.transcribe(batch["mel"], batch["lengths"]))
    return {"loss": nats / max(1, tokens), **error_rates(references, texts), "tokens": tokens}


def baselines(config: Config) -> Baselines:
    """Score models of the texts alone and, where jiwer is installed, the text of the most similar training sound."""
    tokenizer, spec = load_text_tokenizer(config), example_spec(config, load_text_tokenizer(config), None)
    rows = {split: collect_examples(config, split, seconds) for split, seconds in (("train", 400), ("val", 200))}
    ends = [] if spec.end is None else [spec.end]
    ids = ([np.array([spec.prompt[-1], *row, *ends]) for _, row in part] for part in rows.values())
    vocab_size = max(tokenizer.vocab_size, config.padded_vocab or 0)
    texts, references = ([tokenizer.decode(row.tolist()) for _, row in part] for part in rows.values())
    nearest = find_nearest(*(np.stack([sound for sound, _ in part]) for part in rows.values()))
    answers = {"the most frequent text": [Counter(texts).most_common(1)[0][0]] * len(references)}
    answers["the most similar sound"] = [texts[i] for i in nearest]
    rates = {name: error_rates(references, answer).get("wer") for name, answer in answers.items()}
    scores = {"loss": score_bigrams(*ids, vocab_size)}
    return scores | ({"wer": cast(dict[str, float], rates)} if None not in rates.values() else {})


def collect_examples(config: Config, split: str, seconds: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean frames of the parts of a sound, and the ids of its text, of examples of a split that are made as
    those of the validation split are: of at least one, and of so many seconds together."""
    clips, dataset, tokenizer = select_clips(config, split), load_clips(config), load_text_tokenizer(config)
    spec = replace(example_spec(config, tokenizer, None), pad_to_context=False)
    order = np.random.Generator(np.random.Philox(key=1)).permutation(len(clips)).tolist()
    examples, n_frames = [], 0
    while order and n_frames * HOP_LENGTH < seconds * SAMPLE_RATE:
        row = order.pop()
        mel, ids = build_example(spec, dataset, clips, tokenizer, eval_rng(row), row)
        examples.append((average_parts(mel), ids))
        n_frames += mel.shape[1]
    return examples


def eval_rng(row: int) -> np.random.Philox:
    return np.random.Philox(key=0, counter=(0, row, 0, 2))


def export_graph(model: SpeechTransformer) -> Graph:
    c = model.config
    frames = str(2 * c.encoder.context) if c.pad_to_context else "frames"
    inputs = {"mel": GraphInput(f"batch {c.mels} {frames}"), "lengths": GraphInput("batch", is_length=True)}
    inputs["ids"] = GraphInput("batch length", model.target.token.num_embeddings)
    longest = {"frames": 2 * c.encoder.context, "length": c.decoder.context}
    return Graph(lambda mel, lengths, ids: model(mel, ids, model.sound_edges(lengths)), inputs, ("logits",), longest)


@torch.inference_mode()
def figures(model: SpeechTransformer, config: Config) -> list[Figure]:
    """Draw the weights of cross-attention on the first sound of the validation split."""
    batch, _ = next(batches(config, "val"))
    nodes, device = int(batch["lengths"][0]), next(model.parameters()).device
    mel = batch["mel"][:1, :, : 2 * nodes].to(device)
    labels = [i for i in batch["labels"][0].tolist() if i != IGNORE_INDEX]
    ids = torch.tensor([[*model.prompt, *labels[:-1]]], device=device)
    weights = model.alignment(mel, ids, model.sound_edges(torch.tensor([nodes], device=device)))[:, :, 0]
    rows = ["·" if i == model.end else model.tokenizer.decode([i]) for i in labels]
    mean = select_sharpest_layer(weights[:, :, -len(rows) :].float().cpu())  # (rows, nodes)
    width = -(-nodes // MAX_COLUMNS)
    bins = mean.split(width, dim=1)
    label_every, seconds = max(1, len(bins) // MAX_LABELS), 2 * width * HOP_LENGTH / SAMPLE_RATE
    columns = [f"{i * seconds:.1f}" if i % label_every == 0 else "" for i in range(len(bins))]
    values = [[round(part[row].sum().item(), 4) for part in bins] for row in range(len(mean))]
    note = "a row for each token as it is written, a column for each moment (in seconds): darker for more attention"
    figure = {"kind": "matrix", "title": model.decode_text(labels), "note": note, "rows": rows}
    return [figure | {"values": values, "columns": columns}]


def examples(config: Config) -> Examples:
    """Take files of the validation split. Generated sounds are in no files."""
    dataset = load_clips(config)
    if not dataset.paths:
        return Examples()
    rows = sample_evenly(select_clips(config, "val"), N_EXAMPLES)
    return Examples({"input": [str(dataset.paths[i]) for i in rows]}, [dataset.texts[i] for i in rows])


@dataclass(frozen=True)
class Request(TranscriptSettings):
    """Sounds to transcribe."""

    input: str | Path | list[str | Path] | None = None
    """The path of a sound file, or several; None: three keys of a telephone."""


def predict(model: SpeechTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """Transcribe sound files: {"input": "a.wav"}, or several. Long ones are split into windows at pauses.

    Returns {"results": [{"input", "text", "seconds"}, ...]}, of a model that knows several languages also "language",
    and with {"words": true} [{"word", "start", "end"}, ...] with times in seconds.
    """
    settings = parse_dataclass(Request, request, "request")
    paths = settings.input
    if paths is None:
        sound, text = join_clips(load_tones(), np.array([3, 1, 4]), np.random.Philox(key=0))
        return {"results": transcribe_sounds(model, [f"tones: {text}"], iter([iter([sound])]), settings)}
    paths = paths if isinstance(paths, list) else [paths]
    sounds = (read_blocks(Path(path).expanduser()) for path in paths)
    return {"results": transcribe_sounds(model, list(map(str, paths)), sounds, settings)}


def file_input(model: SpeechTransformer, config: Config) -> FileInput:
    return FileInput(split_columns(config.columns, COLUMNS)[:1], is_path=True)


def form(model: SpeechTransformer, config: Config) -> Form:
    return Form((Task("Transcribe speech", "sound", Request, "transcripts"),))


def predict_batch(model: SpeechTransformer, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]
