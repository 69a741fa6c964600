"""Speech: slices of a mel spectrogram in, text out, cross-attention between.

raw    sound files with their text, or a set by name; one clip, or several joined with gaps
nodes  mel frames through two convolutions, with a fixed position; characters or BPE tokens
edges  encoder: all of a sound's nodes read each other; decoder: causal, and all of the sound
head   a logit for each token of the vocabulary, tied to the embedding
loss   cross-entropy of the next token

    anyformer train speech --preset digits --minutes 4         on two cores: spoken digits, fewer than 1 in 100 wrong
    anyformer train speech --preset strings --minutes 20       on two cores: two to six in a row, 1 word in 100
    anyformer train speech --data clips.csv                    your own: columns path and text

Whisper (Radford et al. 2022, 2212.04356); SpecAugment (1904.08779).
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.audio import features as audio
from ...data.audio import read as clips
from ...data.audio.batches import Draw, Shape, collate, example
from ...data.text.batches import NOTHING
from ...data.tokenizers.build import Subwords, Tokenizer, make
from ...data.tokenizers.json_layout import of_ids
from ...errors import InputError, nearest
from ...events import progress
from ...inference.transcription import error_rates, greedy, looks
from ...model.edges import Edges, full, within
from ...model.embeddings import Frames, Tokens
from ...model.encoder_decoder import EncoderDecoder
from ...model.heads import LMHead
from ...model.init import initialise
from ...recipe import Figure, Graph, Input, Place, begin
from .config import GROW, PRESETS, Config

__all__ = [
    "PRESETS",
    "Config",
    "Listener",
    "batches",
    "build",
    "evaluate",
    "figures",
    "graph",
    "loss",
    "predict",
]


class Listener(EncoderDecoder):
    """mel (B, M, T) and ids (B, L) -> logits (B, L, vocab_size)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        vocab = max(tokenizer.vocab_size, config.padded_vocab or 0)
        target = Tokens(vocab, config.decoder)
        head = LMHead(config.decoder.dim, vocab, target.token)
        super().__init__(Frames(config.mels, config.encoder), config.encoder, target, config.decoder, head)
        self.config, self.tokenizer, self.files = config, tokenizer, {"tokenizer.json": tokenizer.json()}
        self.prompt, self.end = marks(config, tokenizer)

    def seen(self, lengths: Tensor) -> Edges:
        """Which nodes may be read; a model that always hears its whole context reads the silence too. lengths: (B,)"""
        return full if self.config.whole else within(lengths)

    @torch.inference_mode()
    def transcribe(self, mel: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest tokens, one after the other: (B, M, T), nodes of each (B,) -> ids of each."""
        seen = self.seen(lengths)
        return greedy(self.given(self.encode(mel, seen), seen), len(mel), self.prompt, self.end)


def marks(config: Config, tokenizer: Tokenizer) -> tuple[list[int], int | None]:
    """The ids that begin a text, and the one that ends it. Raises InputError."""
    end = tokenizer.end if config.end is None else config.end
    if not all(word.isdigit() for word in config.prompt.split()):
        raise InputError(f"the prompt is {config.prompt!r}; expected ids with spaces between")
    prompt = [int(word) for word in config.prompt.split()] or ([] if end is None else [end])
    size = max(tokenizer.vocab_size, config.padded_vocab or 0)
    if not 0 < len(prompt) < config.decoder.context or not all(0 <= i < size for i in [*prompt, end or 0]):
        raise InputError(f"prompt {prompt} and end {end} do not fit a vocabulary of {size} ids")
    return prompt, end


def build(config: Config) -> Listener:
    if config.encoder.dim != config.decoder.dim:
        raise InputError(f"encoder.dim {config.encoder.dim} and decoder.dim {config.decoder.dim} must be equal")
    model = Listener(config, tokenizer_of(config))
    initialise(model, config.encoder), initialise(model.decoder, config.decoder)
    for module in model.source.modules():
        if isinstance(module, nn.Conv1d):  # loud enough to be heard beside the position
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def tokenizer_of(config: Config) -> Tokenizer:
    """Once trained, the tokenizer is a file of the checkpoint and the data is not needed."""
    if config.tokenizer == "ids":
        return Subwords(of_ids(config.padded_vocab or config.vocab_size))
    texts = [] if Path(config.tokenizer).exists() else [*sounds(config).texts, *[" "] * (config.joined > 1)]
    return make(config.tokenizer, lambda: iter(texts), config.vocab_size)


def sounds(config: Config) -> clips.Clips:
    """The clips of the config's data, decoded once; a table that has changed since is read again."""
    path = Path(config.data)
    stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else ()
    return decoded(config.data, config.val_fraction, config.skip_broken, stamp)


@lru_cache(maxsize=4)
def decoded(data: str, val_fraction: float, skip: bool, stamp: tuple) -> clips.Clips:
    return clips.read(data, val_fraction, skip, progress)


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": random clips (or some in a row) for ever. "val" and "all": each once, or as many rows as clips."""
    c, heard, tokenizer = config.train, sounds(config), tokenizer_of(config)
    place = begin(place, config.data, heard.sha256, skipped=heard.skipped)
    part = heard.part(split)
    if split == "val":  # always the same order: the first few batches are of all speakers and words
        part = np.random.Generator(np.random.Philox(key=0)).permutation(part)
    for step in count(place["step"]) if split == "train" else range(-(-len(part) // c.batch)):
        rows = range(c.batch) if split == "train" else range(step * c.batch, min((step + 1) * c.batch, len(part)))
        shape = shape_of(config, tokenizer, step if split == "train" else None)
        draws = [drawn(config, split, step, row) for row in rows]
        found = collate(shape, [example(shape, heard, part, tokenizer, draw) for draw in draws])
        if split == "train":
            nodes = int(found["lengths"].sum() + (found["next"] != NOTHING).sum())
            place = place | {"step": step + 1, "tokens": place["tokens"] + nodes}
        yield {name: torch.from_numpy(value) for name, value in found.items()}, place


def shape_of(config: Config, tokenizer: Tokenizer, step: int | None) -> Shape:
    """What a row holds. In training (where there is a step) short ones come first: where to listen is learned there."""
    train, (prompt, end) = step is not None, marks(config, tokenizer)
    fewest = 1 if train else min(2, config.joined)
    most = min(config.joined, 1 + step // GROW) if step is not None else config.joined
    sizes = (config.mels, config.encoder.context, config.decoder.context, fewest, most, config.joined > 1)
    return Shape(*sizes, config.whole, train and config.augment, tuple(prompt), end)


def drawn(config: Config, split: str, step: int, row: int) -> Draw:
    """What is random in a row: of (seed, step, row) in training, of the row alone in validation."""
    if split == "train":
        return Draw(np.random.Philox(key=config.train.seed, counter=(0, row, step, 1)))
    return Draw(np.random.Philox(key=0, counter=(0, row, 0, 2)), first=row)


def logits(model: Listener, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["mel"], batch["ids"], model.seen(batch["lengths"])).flatten(0, 1).float()


def loss(model: Listener, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits(model, batch), batch["next"].flatten())


def evaluate(model: Listener, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Mean nats a token; and of what it writes down by itself the word and character error rate, where jiwer is
    installed (pip install 'anyformer[scores]')."""
    nats, tokens, said, heard = 0.0, 0, [], []
    for batch in batches:
        nexts = batch["next"].flatten()
        nats += F.cross_entropy(logits(model, batch), nexts, reduction="sum").item()
        tokens += int((nexts != NOTHING).sum())
        real = [[i for i in row if i not in (NOTHING, model.end)] for row in batch["next"].tolist()]
        said += [model.tokenizer.decode(row) for row in real]
        heard += [model.tokenizer.decode(row) for row in model.transcribe(batch["mel"], batch["lengths"])]
    return {"loss": nats / max(1, tokens), **error_rates(said, heard), "tokens": tokens}


def graph(model: Listener) -> Graph:
    c = model.config
    frames = str(2 * c.encoder.context) if c.whole else "frames"
    inputs = {"mel": Input(f"batch {c.mels} {frames}"), "lengths": Input("batch", counts=True)}
    inputs["ids"] = Input("batch length", model.target.token.num_embeddings)
    longest = {"frames": 2 * c.encoder.context, "length": c.decoder.context}
    return Graph(lambda mel, lengths, ids: model(mel, ids, model.seen(lengths)), inputs, ("logits",), longest)


@torch.inference_mode()
def figures(model: Listener, config: Config) -> list[Figure]:
    """Where it listens while it writes: the weights of cross-attention on the first sound of the validation part."""
    batch, _ = next(batches(config, "val"))
    nodes, where = int(batch["lengths"][0]), next(model.parameters()).device
    mel, nexts = batch["mel"][:1, :, : 2 * nodes].to(where), [i for i in batch["next"][0].tolist() if i != NOTHING]
    ids = torch.tensor([[*model.prompt, *nexts[:-1]]], device=where)
    weights = model.alignment(mel, ids, model.seen(torch.tensor([nodes], device=where)))[:, :, 0]
    rows = ["·" if i == model.end else model.tokenizer.decode([i]) for i in nexts]
    made = looks(weights[:, :, -len(rows) :], 2 * audio.HOP / audio.RATE)
    said = model.tokenizer.decode([i for i in nexts if i != model.end])
    note = "a row for each token as it is written, a column for each moment (in seconds): darker where it listens"
    return [{"kind": "matrix", "title": said, "note": note, "rows": rows} | made]


def predict(model: Listener, request: dict[str, Any]) -> dict[str, Any]:
    """Write down what is said in sound files: {"input": "a.wav"} or several. Long ones are heard in windows. Returns
    {"results": [{"input", "text", "seconds"}, ...]}; without input, of three keys of a telephone."""
    for name in request.keys() - {"input"}:
        raise InputError(f"a request has no '{name}': {nearest(str(name), ['input'])}")
    given = request.get("input", [])
    paths = given if isinstance(given, list | tuple) else [given]
    if not all(isinstance(path, str | Path) for path in paths):
        raise InputError(f"input is {given!r}; expected the path of a sound file, or a list of such")
    if "input" not in request:
        dialled = clips.tones()
        sound, text = clips.joined(dialled, np.array([3, 1, 4]), np.random.Philox(key=0))
        return {"results": [transcript(model, f"tones: {text}", iter([sound]))]}
    return {"results": [transcript(model, str(path), audio.blocks(Path(path).expanduser())) for path in paths]}


def transcript(model: Listener, name: str, sound: Iterator[np.ndarray]) -> dict[str, Any]:
    c, where = model.config, next(model.parameters()).device
    texts, samples = [], 0
    for piece in audio.windows(sound, 2 * c.encoder.context * audio.HOP):
        samples += len(piece)
        mel = audio.log_mel(piece, c.mels, 2 * c.encoder.context if c.whole else None)
        lengths = torch.tensor([mel.shape[1] // 2], device=where)
        texts.append(model.tokenizer.decode(model.transcribe(torch.from_numpy(mel)[None].to(where), lengths)[0]))
    return {"input": name, "text": " ".join(filter(None, map(str.strip, texts))), "seconds": samples / audio.RATE}
