"""The contract of a recipe.

A recipe is a module with six names: PRESETS, build, batches, loss, evaluate, predict. There is no base class, no
decorator and no registry. Everything else that a recipe may offer is one of the `Supports...` protocols below; a recipe
offers it by defining the function, and callers ask with `isinstance(recipe, SupportsStream)`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .errors import InputError
from .forms import Form
from .lens_view import LensNodes as LensNodes
from .lens_view import LensView as LensView
from .search_space import SearchSpace

StreamState = dict[str, Any]
"""The position of a stream of batches, as JSON; passed back to `batches`, the stream continues exactly there.
"step": batches so far; "tokens": nodes so far; "data": a hash of the data's content.
Maybe "rows": how many are for training and for validation; "skipped", "cut": how many were left out and cut."""

BatchStream = Iterator[tuple[dict[str, Any], StreamState]]
"""What `batches` yields: each batch, and the state to continue from after it."""

Figure = dict[str, Any]
"""A figure for the report of a run, as plain values: {"kind", "title", "note"} and, by its kind,
"matrix": "values" [[number]], "rows" and "columns" [text], "top", the value of the darkest cell (None: the largest);
"lines": "x_label", "lines" [{"name", "x" [number], "y" [number], or of a filled band "low" and "high" instead of "y"}],
"zero", whether the y axis starts at 0; "images": "images" [{"png" (base64), "caption"}];
"drafts": "drafts" [text], as it becomes what the last one is."""


# --- the six names ---


@runtime_checkable
class Recipe(Protocol):
    """What every recipe defines.

    Batches map names to tensors; what is predicted is `labels`, `IGNORE_INDEX` where nothing is. A model may have an
    attribute `files`, texts by file name that are stored next to its weights ("tokenizer.json"); once a model is
    loaded, the config field of the same name ("tokenizer") is the path of that file. Its attribute `extended_tensors`
    names those that may have more rows than in a model that it starts from, as for new tokens of a vocabulary; each of
    `optional_parts` begins the names of tensors that such a model may lack.
    """

    PRESETS: Mapping[str, Any]
    """Name -> frozen config with fields `data: str` and `train: TrainConfig`. "tiny" is first, the default second."""

    def build(self, config: Any) -> Any:
        """Build the model, an initialized `nn.Module`."""

    def batches(self, config: Any, split: str, state: StreamState | None = None) -> BatchStream:
        """Yield batches, each with the state that continues after it: endless for "train", one pass for "val" and
        "all"."""

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        """Return the mean loss over the predictions in a batch, a scalar tensor."""

    def evaluate(self, model: Any, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Return metrics over all batches, among them "loss" (lower is better)."""

    def predict(self, model: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request; plain values in and out. An empty request returns an example."""


def init_stream(state: StreamState | None, data: str, sha256: str, **extra: Any) -> StreamState:
    """Return the state that a stream of batches starts or continues from (`state`), with `extra` values of a new one.
    Raises InputError if the data, whose content has the hash `sha256`, are not those that `state` belongs to."""
    stream: StreamState = {"step": 0, "tokens": 0, "data": sha256} | extra | (state or {})
    if stream["data"] != sha256:
        raise InputError(f"the data '{data}' has changed since this run began: restore it, or start a new run")
    return stream


def advance_stream(state: StreamState, tokens: int) -> StreamState:
    """Return the state after a batch of so many tokens. A stream that is one of several processes' passes over the
    batches of the others: its state has a "stride"."""
    return state | {"step": state["step"] + state.get("stride", 1), "tokens": state["tokens"] + tokens}


# --- what a recipe may offer besides ---


@dataclasses.dataclass(frozen=True)
class GraphInput:
    """A tensor that an exported graph reads."""

    axes: str
    """Names of the axes, or their sizes where they are fixed: "batch 3 224 224"."""
    upper_bound: int | None = None
    """The tensor holds integers from 0 to below this; None: any numbers."""
    is_length: bool = False
    """The tensor holds the number of real (not padding) elements of each row."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model as a function of tensors, to be exported to other runtimes."""

    call: Callable[..., Any]
    """Takes the inputs in their order and returns the outputs in theirs."""
    inputs: Mapping[str, GraphInput]
    outputs: tuple[str, ...]
    max_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The longest size of an axis, where it is bounded."""


@dataclasses.dataclass(frozen=True)
class SizeOption:
    """A config that `--minutes` may choose."""

    config: Any
    expected_loss: Callable[[float], tuple[float, float]] | None = None
    """Maps training tokens to (low, high) validation loss."""
    steps: int = 0
    """Without that: the updates that this size needs to be better than a smaller one."""
    advise: Callable[[float], str | None] = lambda tokens: None
    """Maps training tokens to what a person should know of this choice."""


@dataclasses.dataclass(frozen=True)
class DataDefaults:
    """What the user's data suggest where the user has chosen nothing."""

    preset: str
    overrides: dict[str, Any]
    """Config fields that differ from the preset, nested."""
    reason: str
    """One line for the person: what was chosen, and why."""


@runtime_checkable
class SupportsDataDefaults(Protocol):
    """The defaults depend on the data that the user brings, unless a preset is named. `overrides` holds the config
    fields that the user has set, "data" among them; None: the default preset as it is."""

    def data_defaults(self, overrides: dict[str, Any]) -> DataDefaults | None: ...


@dataclasses.dataclass(frozen=True)
class FileInput:
    """How a row of a file becomes the "input" of a request."""

    columns: tuple[str, ...] = ("input",)
    """Columns that a table must have. If there is one, its value is the input, and so is a line of a text file."""
    is_path: bool = False
    """The value of the only column is a path, relative to the folder of the file."""
    read_row: Callable[[dict[str, Any], Path], Any] | None = None
    """Takes a row and the folder of its file and returns the input. None: the value of the only column."""
    tsv_quotes: bool = True
    """Quotation marks in a tsv file mean what they mean in csv."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of every request, where the person gives no others: texts are cut as in training."""


@runtime_checkable
class SupportsFileInput(Protocol):
    """Which columns of a file are read by `anyformer predict --file`; of a recipe without it, the column "input"."""

    def file_input(self, model: Any, config: Any) -> FileInput: ...


@runtime_checkable
class SupportsForm(Protocol):
    """What a person can ask of a model, and what it answers: `Model.describe_request`, the page of the server. A recipe
    without it is asked with a text or JSON."""

    def form(self, model: Any, config: Any) -> Form: ...


@runtime_checkable
class SupportsBatchPredict(Protocol):
    """Several inputs are answered together, sooner than one by one and with the same answers."""

    def predict_batch(self, model: Any, inputs: list[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
        """Return for each input the only result of `predict(model, {"input": input} | settings)`."""


@runtime_checkable
class SupportsTablePredict(Protocol):
    """A file is answered as a whole, because its rows have no predictions of their own: `anyformer predict --file`."""

    def predict_table(
        self, model: Any, config: Any, file: Path, batch: int, settings: dict[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
        """Yield the rows to write, each with the place that it belongs to; of what cannot be answered, the error."""


@runtime_checkable
class SupportsArray(Protocol):
    """What a model has learned of its data as a whole is an array: `anyformer predict RUN --out FILE.npy`."""

    def predict_array(self, model: Any, request: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """Return a numpy array, and what a person should know of it, a line each."""


@runtime_checkable
class SupportsExport(Protocol):
    """The model can be exported as a graph (ONNX)."""

    def export_graph(self, model: Any) -> Graph: ...


@runtime_checkable
class SupportsCachedExport(Protocol):
    """The model can be exported as a graph that takes and returns keys and values (ONNX), to run token by token."""

    def export_cached_graph(self, model: Any) -> Graph: ...


@runtime_checkable
class SupportsFigures(Protocol):
    """The report of a run shows figures of the trained model."""

    def figures(self, model: Any, config: Any) -> list[Figure]: ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of the validation split that show what a model does, as plain values."""

    request: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For `predict`. Empty: the recipe's own example."""
    truths: list[Any] = dataclasses.field(default_factory=list)
    """What each result should be."""


MaskedExample = list[tuple[str, bool]]
"""The tokens of an example, and whether each is trained."""


@runtime_checkable
class SupportsLossMask(Protocol):
    """Only a part of each example is trained, which can be shown: `anyformer train --show-mask`."""

    def mask_examples(self, config: Any) -> list[MaskedExample]: ...


@runtime_checkable
class SupportsExamples(Protocol):
    """The samples of a training, and `predict` without an input, are of the user's data. The examples are stored in the
    run directory and never in a checkpoint."""

    def examples(self, config: Any) -> Examples: ...


@runtime_checkable
class SupportsBaselines(Protocol):
    """The result of a training is compared with predictions that need no Transformer: metric of `evaluate` -> name of
    the baseline -> its value on the validation split, learned from the training split alone."""

    def baselines(self, config: Any) -> dict[str, dict[str, float]]: ...


@runtime_checkable
class SupportsReference(Protocol):
    """What the model says before training is needed during it. Called before the first step, with the weights that
    training begins with; the model keeps what it needs in its `files`, and is then called no more."""

    def store_reference(self, model: Any, config: Any) -> None: ...


@runtime_checkable
class SupportsRollouts(Protocol):
    """The model is trained on its own answers to prompts, by the config's `reward`. `roll_out` adds them to the batches
    of an update, and returns figures. `keep_reference` is called with the model as it is before training."""

    def roll_out(self, model: Any, batches: list[Any], step: int) -> tuple[list[Any], dict[str, float]]: ...

    def needs_reference(self, config: Any) -> bool: ...

    def keep_reference(self, model: Any, config: Any) -> None: ...


@runtime_checkable
class SupportsFinish(Protocol):
    """The best model is corrected after training, on the validation split, for example its bands. Its weights and
    `files` then hold what was fitted, and its checkpoint is written again."""

    def finish_model(self, model: Any, config: Any) -> None: ...


@runtime_checkable
class SupportsPeers(Protocol):
    """Other kinds of models can be trained beside, on the same splits: `--compare`. Like `baselines`, with the metric
    that decides first. Raises InputError where a library is missing or the data have nothing that they could read."""

    def train_peers(self, config: Any) -> dict[str, dict[str, float]]: ...


@runtime_checkable
class SupportsFolds(Protocol):
    """The rows can be split into parts, each of which is once for validation: `--folds`."""

    def fold_overrides(self, config: Any, fold: int, folds: int) -> dict[str, Any]:
        """Return the config fields, nested, that select one of the parts, from 1. Raises InputError if the data say
        themselves what is for validation."""


@runtime_checkable
class SupportsScore(Protocol):
    """Metrics that need the model's answers to a split (BLEU, returns of episodes): `anyformer eval --scores`."""

    def score(self, model: Any, config: Any, split: str = "val", **request: Any) -> dict[str, Any]: ...


@runtime_checkable
class SupportsSizes(Protocol):
    """Several model sizes, from small to large, of which `--minutes` chooses one: the one with the lowest expected
    loss, or the largest for which there are enough steps. All options predict a loss, or none does."""

    def sizes(self, config: Any) -> Iterator[SizeOption]: ...


@runtime_checkable
class SupportsSearch(Protocol):
    """Fields that `anyformer sweep` tries, besides those of the training and the Transformer that every recipe has."""

    def search_space(self, config: Any) -> SearchSpace: ...


@runtime_checkable
class SupportsTestSplit(Protocol):
    """`batches` has another split that is neither trained nor validated on: its name."""

    TEST_SPLIT: str


@runtime_checkable
class SupportsStream(Protocol):
    """Answers grow token by token, `anyformer sample`: the unfinished completions after every token."""

    def stream(self, model: Any, request: dict[str, Any]) -> Iterator[list[Any]]: ...


@runtime_checkable
class SupportsDrawing(Protocol):
    """Answers are pictures: `anyformer sample RUN --prompt CAPTION --out picture.png`."""

    def draw_sheet(self, model: Any, request: dict[str, Any]) -> bytes:
        """Return one PNG with all pictures of a request of `predict`. Raises InputError."""


@runtime_checkable
class SupportsSpeaking(Protocol):
    """Answers are sounds: `anyformer sample RUN --prompt TEXT --out sound.wav`, `anyformer predict RUN TEXT --out
    sound.wav`."""

    def record(self, model: Any, request: dict[str, Any]) -> bytes:
        """Return one WAV file with all sounds of a request of `predict`. Raises InputError."""


@runtime_checkable
class SupportsSampleFiles(Protocol):
    """A text that is written can be kept as what it stands for, such as a sound: `anyformer sample --out`."""

    SAMPLE_FORMATS: tuple[str, ...]
    """The endings of such files, with their dots."""

    def write_sample(self, model: Any, text: str, path: Path) -> None:
        """Write a prompt and its continuation to a file with one of these endings. Raises InputError."""


@runtime_checkable
class SupportsCompletion(Protocol):
    """Texts are continued by a causal model, so that many requests can share one batch: `anyformer serve`."""

    def decoder(self, model: Any) -> Any:
        """Return a `Decoder` with an attribute `tokenizer`."""


@runtime_checkable
class SupportsPrompts(SupportsCompletion, Protocol):
    """The "input" of a request is not a prompt as it is."""

    def prepare_request(self, model: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Return the request with a prompt or messages in place of its "input". Raises InputError."""


@runtime_checkable
class SupportsKinds(Protocol):
    """The kinds of data that this recipe trains on, of `data.tables.readings.KINDS`: the preset and config fields for
    each, `anyformer train PATH`. "{target}" stands for what was recognized; else the field keeps its default."""

    KINDS: Mapping[str, Mapping[str, str]]


@runtime_checkable
class SupportsSchema(Protocol):
    """The data are tables with a schema (`to_toml()` is its text), which is inferred unless the user gave one."""

    def read_schema(self, config: Any) -> Any: ...

    def infer_schema(self, config: Any) -> Any | None: ...


@runtime_checkable
class SupportsAblation(Protocol):
    """The inputs are named fields that can be left out or shuffled: `anyformer worth`."""

    def field_names(self, config: Any) -> list[str]: ...

    def ablate_fields(
        self, config: Any, split: str, kept: Sequence[str], shuffle: str = "", seed: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield one pass with these fields only, the values of one of them taken from other rows."""


@runtime_checkable
class SupportsEmbedding(Protocol):
    """Texts can be turned into vectors of length 1, `anyformer embed`. `cut`: shorten texts that exceed the context."""

    def embed(self, model: Any, texts: list[str], cut: bool = False) -> list[list[float]]: ...


@runtime_checkable
class SupportsTokenCount(Protocol):
    """The tokens of texts can be counted as `embed` reads them, for the usage that a server reports."""

    def count_tokens(self, model: Any, texts: list[str], cut: bool = False) -> int: ...


@runtime_checkable
class SupportsTranscription(Protocol):
    """Sounds are turned into text: `anyformer serve`, /v1/audio/transcriptions."""

    def transcribe(self, model: Any, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Return {"text", "seconds", "segments": [{"start", "end", "text"}, ...]} of a sound file, of a model that
        knows several languages also "language". `settings`: {"words": true} adds "words", a list of
        `inference.word_times.Word`; "language" and "task" are those of the recipe's request. Raises InputError."""


@runtime_checkable
class SupportsMixtures(Protocol):
    """`data` may name several sources with weights, "a.jsonl:3 b.parquet:1" (`data.io.sources`), which are trained on
    together. `evaluate` then returns NAME_loss for each source."""

    def describe_sources(self, config: Any, n_batches: int) -> dict[str, dict[str, Any]]:
        """Return what each source of a mixture gives in so many training batches, by its short name: {"data", "weight",
        "tokens" of its training split, "share" of the rows, "epochs"}; nothing of a single source."""


@runtime_checkable
class SupportsPolicy(Protocol):
    """The model can act in an environment: `anyformer rollout`."""

    def make_policy(
        self, model: Any, config: Any, env: str, target_return: float | None, temperature: float, seeds: Sequence[int]
    ) -> tuple[Any, int]:
        """Return a policy with one episode per seed, and the most steps of an episode."""


@runtime_checkable
class SupportsLossWeight(Protocol):
    """`loss` is the mean of this many predictions, which are not the labels other than IGNORE_INDEX."""

    def loss_weight(self, batch: dict[str, Any]) -> Any: ...


@runtime_checkable
class SupportsLossTerms(SupportsLossWeight, Protocol):
    """`loss` is the sum of terms, (k,), each the mean over its own number of predictions: `loss_weight` is (k,) too."""

    def loss_terms(self, model: Any, batch: dict[str, Any]) -> Any: ...


@runtime_checkable
class SupportsTasks(Protocol):
    """The model is of several tasks, each of which answers as a model of another recipe would: RUN:TASK."""

    def split_tasks(self, model: Any, config: Any, state: StreamState) -> Mapping[str, tuple[Recipe, Any, Any, Any]]:
        """Return the recipe, the config, the module and the stream state of each task, by its name."""


# --- the lens: what a model does with one request ---


@runtime_checkable
class SupportsLens(Protocol):
    """The nodes of a request can be shown, and the head read after every layer: `anyformer lens`."""

    def lens(self, model: Any, request: dict[str, Any]) -> LensView: ...
