"""Music: write tunes in a metre and a key, or go on from first bars.

raw    tunes in ABC notation or as MIDI files; or the set tunes
nodes  characters of a tune in normal form: metre, key, then its melody bar by bar
edges  causal, within a tune: several share a row
head   a logit for each character
loss   cross-entropy of the next character

    anyformer train music                                         a minute and a half of CPU: 2,600 fiddle tunes
    anyformer train music --data tunes.abc                        one's own: a file, or a folder of .abc and .mid
    anyformer sample RUN --prompt 'M:6/8\\nK:G\\n' --out jig.wav    also .abc and .mid
    anyformer predict RUN --metre 3/4 --key Am

ABC notation as text: folk-rnn (1604.08723), there with LSTMs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.io.cache import cache_by_files, data_files
from ..data.music.abc import ALPHABET, normalize_beginning, read_header
from ..data.music.bars import BarRule
from ..data.music.midi import write_midi
from ..data.music.score import count_complete, list_sounds
from ..data.music.synthesis import synthesize, write_wav
from ..data.music.tunes import Tunes, find_copy, format_tune, read_tunes
from ..data.sampling import sample_evenly
from ..data.text.documents import DocumentRows
from ..data.text.mixtures import Source
from ..data.text.ngrams import count_ngrams
from ..data.text.prepare import Corpus
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.build import Characters, build_tokenizer
from ..data.unusable import EmptyPolicy
from ..errors import InputError
from ..forms import Form, Task
from ..inference.completion import Completion, CompletionRequest, generate_text
from ..inference.token_filter import RuleFilter
from ..model import initialize
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import BatchStream, Examples, Figure, FileInput, SizeOption, StreamState, advance_stream, init_stream
from ._shared.language import DecoderConfig, LanguageModel, evaluate, export_graph, loss, make_batch  # noqa: F401
from ._shared.presets import MINUTE_TRAIN, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import N_EXAMPLES, USUAL_SAMPLING, load_config_tokenizer
from ._shared.text_lenses import lens_language as lens  # noqa: F401
from ._shared.trivial_baselines import Baselines, score_token_frequencies

KINDS = {"tunes": {}}
COUNT_ORDER = 8  # characters of the contexts of n-gram counts
MAX_TOKENS, MAX_SAMPLES = 4000, 1000  # of a request
N_SCORED = 100  # tunes that are written to be measured
ROLL_SECONDS, ROLL_COLUMNS = 12, 8  # of a figure, and its columns a second
SAMPLE_FORMATS = (".abc", ".wav", ".mid")


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """A language model, its tunes and its training."""

    data: str = path_field("tunes")
    """The name of a set, a file of tunes (.abc, also .gz, or .mid) or a folder of such."""
    empty: EmptyPolicy = "skip"
    """Tunes that cannot be read, as of several voices: skip, error, or few: skip where they are at most 1 %."""
    val_fraction: float = 0.1
    """Share of the tunes that is kept for validation; tunes that begin with the same notes stay together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", above=0, below=1)


SIZES = (Size(64, 2, 12, 0),)  # of --minutes
SMALL = Config(
    model=make_modern_config(96, 3, 3, 320),
    train=replace(MINUTE_TRAIN, steps=230, batch=12, lr=5e-3, eval_every=115, save_every=115),
)
PRESETS = {
    # seconds: for tests
    "tiny": Config(model=make_model_config(32, 2, 2, 64), train=TINY_TRAIN),
    # a minute and a half of CPU
    "small": SMALL,
    # the smaller collection alone, of which hardly any is held back: --data tunes-oneill tests it
    "ryan": replace(SMALL, data="tunes-ryan", val_fraction=0.05),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=200)


def build(config: Config) -> LanguageModel:
    model = LanguageModel(config, load_tokenizer(config))
    initialize(model, config.model)
    return model


# --- data ---


@cache_by_files(lambda config: data_files(config.data))
def load_tunes(config: Config) -> Tunes:
    return read_tunes(config.data, config.val_fraction, config.empty)


def load_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer that the config names; that of characters has all that a tune in normal form can hold."""

    def train() -> Tokenizer:
        if config.tokenizer == "char":
            return Characters(ALPHABET)
        return build_tokenizer(config.tokenizer, lambda: iter(load_tunes(config).split("train")), config.vocab_size)

    return load_config_tokenizer(config, train)


@cache_by_files(lambda config, split: data_files(config.data))
def load_text(config: Config, split: str) -> DocumentRows:
    """Return the tunes as a text: for "all" those of both splits as one, else those to train on, and then those of the
    validation split."""
    tunes, tokenizer = load_tunes(config), load_tokenizer(config)
    if tokenizer.end_id is None:
        raise InputError(f"tokenizer '{config.tokenizer}' has no end-of-text token, which parts tunes: use char")
    train, val = ([], tunes.texts) if split == "all" else (tunes.split("train"), tunes.split("val"))
    rows = [np.append(tokenizer.encode(tune), tokenizer.end_id) for tune in (*train, *val)]
    tokens: Any = np.concatenate(rows)[:-1]
    meta = {"sha256": tunes.sha256, "n_documents": len(rows)}
    corpus = Corpus(tokens, tokenizer, sum(map(len, rows[: len(train)])), tunes.sha256, meta)
    return DocumentRows((Source(corpus),))


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield rows of tunes, each of which begins with one: ids and labels, (B, T) each, the labels one token ahead; and
    the tune of each token, and its position in it. "train" never ends; "val" and "all" have a row for each tune."""
    c, tunes, context = config.train, load_tunes(config), config.model.context
    counts = [len(tunes.split(name)) for name in ("train", "val")] if split == "train" else []
    state = init_stream(state, config.data, tunes.sha256, rows=counts)
    text = load_text(config, split)
    if split != "train":
        for _, ids, labels in text.eval_windows(split, context, c.batch):
            yield make_batch(ids, labels, text.separator), state
    while split == "train":
        ids, labels = text.train_windows(context, c.batch, c.seed, state["step"], c.accumulate)
        state = advance_stream(state, ids.size)
        yield make_batch(ids, labels, text.separator), state


def baselines(config: Config) -> Baselines:
    """Return the loss of character frequencies, and of n-gram counts."""
    text = load_text(config, "train")
    losses = score_token_frequencies(text)["loss"]
    return {
        "loss": losses
        | {f"counts of {COUNT_ORDER + 1} characters": score_counts(text, text, "val", config.model.context)}
    }


def score_counts(train: DocumentRows, text: DocumentRows, split: str, context: int) -> float:
    """Return the nats per token of n-gram counts of the training split of `train`, with Kneser-Ney smoothing, on the
    first `context` tokens of each tune of a split of a text."""
    ids = np.asarray(train.sources[0].corpus.split("train"), np.int64)
    counts = count_ngrams(ids, min(COUNT_ORDER, len(ids) - 1), train.tokenizer.vocab_size)
    tokens, nats, n_tokens = np.asarray(text.sources[0].corpus.split(split), np.int64), 0.0, 0
    for row in np.split(tokens, np.flatnonzero(tokens == text.separator) + 1):
        row = row[: context + 1]  # as `DocumentRows.eval_windows` has them: the first token is read and not predicted
        n_tokens += max(0, len(row) - 1)
        chosen = counts.probabilities(row[None, :-1])[0][np.arange(len(row) - 1), row[1:]]
        nats -= float(np.log(np.maximum(chosen, 1e-9)).sum())
    return nats / max(1, n_tokens)


def examples(config: Config) -> Examples:
    """Take the metre and the key of tunes of the validation split."""
    tunes = sample_evenly(np.array(load_tunes(config).split("val")), N_EXAMPLES).tolist()
    return Examples({"input": [str(read_header(tune)[0]) for tune in tunes]}, tunes)


# --- answers ---


@dataclass(frozen=True, kw_only=True)
class Request(CompletionRequest):
    """A tune to write, and how."""

    prompt: str | Sequence[str] = ""
    """The beginning of a tune, or of several: lines M:6/8 and K:G, and maybe first bars. Empty: as the model likes."""
    metre: str = ""
    """Of a prompt without a line M: 6/8, 4/4, 2/2, 3/4 ..."""
    key: str = ""
    """Of a prompt without a line K: G, Am, Dmix, Ador ..."""
    tokens: int = 500
    keep_metre: bool = True
    """Bars last as long as the metre says, and tunes end with a bar line: characters that would break it are not
    written. Without effect on a request with a structure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tokens", at_least=1, at_most=MAX_TOKENS)
        check_range(self, "samples", at_least=1, at_most=MAX_SAMPLES)


def parse_request(request: dict[str, Any]) -> Request:
    """Return a request whose prompts are in normal form; "input" is the prompt by another name. Raises InputError."""
    request = {"prompt" if name == "input" else name: value for name, value in request.items()}
    wishes = parse_dataclass(Request, {name: value for name, value in request.items() if value is not None}, "request")
    prompts = [normalize_beginning(prompt, wishes.metre, wishes.key) for prompt in wishes.prompts]
    return replace(wishes, prompt=prompts)


def stream(model: LanguageModel, request: dict[str, Any]) -> Iterator[list[Completion]]:
    """As `predict`, token by token: yield all completions after every token."""
    wishes = parse_request(request)

    def start_filter(beginning: str) -> RuleFilter:
        return RuleFilter(BarRule(beginning), model.tokenizer)

    return generate_text(model, model.tokenizer, wishes, start_filter if wishes.keep_metre else None)


def predict(model: LanguageModel, request: dict[str, Any]) -> dict[str, Any]:
    """Write tunes: {"metre": "6/8", "key": "G"} or {"prompt": "M:6/8\\nK:G\\nGBB BAG|"}, and the other fields of
    `Request`. Returns {"samples": [{"prompt", "text", "tokens", "finish_reason", "tune", "bars", "complete", "sounds"},
    ...]}: the whole tune in ABC notation, how many of its inner bars last as long as the metre says, and its notes as
    [start, seconds, pitch]."""
    return {"samples": [describe_tune(completion.result()) for completion in list(stream(model, request))[-1]]}


def predict_batch(model: LanguageModel, inputs: Sequence[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings.get("samples", 1) != 1:
        raise InputError("samples: one tune for each row of a file")
    return predict(model, settings | {"prompt": list(inputs)})["samples"]


def file_input(model: LanguageModel, config: Config) -> FileInput:
    return FileInput(("beginning",), tsv_quotes=False)


def describe_tune(result: dict[str, Any]) -> dict[str, Any]:
    """Add the tune and its notes to a completion, as far as it can be read."""
    tune, facts = result["prompt"] + result["text"], {"tune": "", "bars": 0, "complete": 0, "sounds": []}
    with suppress(InputError):
        complete, bars = count_complete(tune)
        sounds = [[round(number, 4) for number in sound] for sound in list_sounds(tune)[1]]
        facts = {"tune": format_tune(tune), "bars": bars, "complete": complete, "sounds": sounds}
    return result | facts


def write_sample(model: LanguageModel, text: str, path: Path) -> None:
    """Write a tune in normal form as ABC, sound or MIDI. Raises InputError."""
    try:
        if path.suffix == ".mid":
            write_midi(text, path)
        elif path.suffix == ".wav":
            write_wav(synthesize(list_sounds(text)[1]), path)
        else:
            path.write_text(format_tune(text), "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def form(model: LanguageModel, config: Config) -> Form:
    shown = {"prompt", "metre", "key", "tokens", "samples", "temperature", "top_p", "seed"}
    others = tuple(field.name for field in fields(Request) if field.name not in shown)
    usual = USUAL_SAMPLING | {"samples": (1, 4)}
    examples = ("M:6/8\nK:G\n", "M:2/2\nK:D\n", "M:3/4\nK:Am\n", "M:9/8\nK:D\n")
    task = Task("Write a tune", "text", Request, "tunes", "prompt", omit=others, usual=usual, examples=examples)
    return Form((task,))


# --- measures ---


def score(model: LanguageModel, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Write tunes in the metres and keys of a split, and compare them with its own; see `compare_tunes`."""
    tunes = load_tunes(config)
    own = sample_evenly(np.array(tunes.split(split)), N_SCORED).tolist()
    return compare_tunes(model, own, [] if split == "all" else tunes.split("train"), request)


def compare_tunes(
    model: LanguageModel, own: Sequence[str], training: Sequence[str], request: dict[str, Any]
) -> dict[str, Any]:
    """Write a tune in the metre and key of each of some tunes, and compare both: the share of inner bars that last as
    long as the metre says, and the longest run of characters that is also in the tunes of the training, where these are
    known, of the median tune and at most."""
    results = write_tunes(model, [str(read_header(tune)[0]) for tune in own], request)
    written = [result["prompt"] + result["text"] for result in results if result["tune"]]
    ends = sum(result["finish_reason"] == "stop" for result in results)
    facts: dict[str, Any] = {"tunes": len(results), "readable": len(written) / len(results), "end": ends / len(results)}
    text = "\0".join(training)
    for name, tunes in (("", written), ("own_", own)):
        complete, bars = np.array([count_complete(tune) for tune in tunes]).reshape(-1, 2).sum(0).tolist()
        facts[f"{name}complete"] = complete / max(1, bars)
        if text and tunes:
            copies = [len(find_copy(tune, text)) for tune in tunes]
            facts |= {f"{name}median_copy": float(np.median(copies)), f"{name}longest_copy": max(copies)}
    return facts


def write_tunes(model: LanguageModel, headers: Sequence[str], request: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a tune for each header. Those of the same header, which would draw alike, have seeds of their own."""
    seen: Counter[str] = Counter()
    rounds: defaultdict[int, list[str]] = defaultdict(list)
    for header in headers:
        rounds[seen[header]].append(header)
        seen[header] += 1
    seed, results = request.get("seed", 0), []
    for number, prompts in rounds.items():
        results += predict(model, request | {"prompt": prompts, "samples": 1, "seed": seed + number})["samples"]
    return results


def figures(model: LanguageModel, config: Config) -> list[Figure]:
    """Show a tune of the model, and the one of the validation split whose metre and key it was wishes for."""
    tune = load_tunes(config).split("val")[0]
    request = {"prompt": str(read_header(tune)[0]), "tokens": min(Request.tokens, config.model.context)}
    (result,) = predict(model, request)["samples"]
    drawn = (("written by the model", result["prompt"] + result["text"]), ("of the validation split", tune))
    return [figure for about, text in drawn for figure in draw_roll(about, text)]


def draw_roll(about: str, tune: str) -> list[Figure]:
    """Draw the first seconds of a tune, a row for each pitch; no figure of a tune that cannot be read."""
    try:
        sounds = list_sounds(tune)[1]
    except InputError:
        return []
    columns = np.arange(ROLL_SECONDS * ROLL_COLUMNS) / ROLL_COLUMNS
    pitches = range(max((s.pitch for s in sounds), default=0), min((s.pitch for s in sounds), default=1) - 1, -1)
    rows = [[(s.start <= columns) & (columns < s.start + s.seconds) for s in sounds if s.pitch == p] for p in pitches]
    values = [np.any([np.zeros(len(columns), bool), *row], axis=0).astype(int).tolist() for row in rows]
    note = f"{tune.splitlines()[0]}, the first {ROLL_SECONDS} seconds, a row for each pitch (MIDI)"
    names = {"rows": [str(pitch) for pitch in pitches], "columns": [""] * len(columns)}
    return [{"kind": "matrix", "title": f"A tune {about}", "note": note, "top": 1, "values": values, **names}]
