"""A trained model, `Model`, loaded from a run or a public checkpoint."""

import html
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from . import recipe_loading
from .checkpoints import hf_folder
from .checkpoints.hub_model import fetch_model
from .data.io.hub import parse_reference
from .data.io.remote import fetch_data
from .drafting import attach_drafter
from .errors import InputError, suggest
from .examples import predict_examples
from .forms import DEFAULT_FORM, Form, add_examples, describe_form
from .indexing import attach_store, build_store, leave_out_store
from .inference.datastore import Datastore
from .model.compact_cache import CacheFormat, set_cache_format
from .model.inspection import attention_weights
from .model.intervention import Rule, ablate, patch
from .model.quantization.quantize import WeightFormat, quantize
from .model.trace import Trace, record
from .model.transformer import Transformer
from .parsing import check_arguments, parse_dataclass
from .predict_file import check_finite, predict_file
from .recipe import Recipe, StreamState, SupportsEmbedding, SupportsForm, SupportsScore, SupportsStream, SupportsTasks
from .recipe_loading import resolve_paths
from .rewards import choose_best
from .training import checkpoints, loop, lora
from .training.building import SkipInit
from .training.checksums import verify_files
from .training.config import LoRAConfig
from .training.device import resolve_device
from .training.job import InitWeights, TrainingJob
from .training.run_directory import RunDirectory

if TYPE_CHECKING:
    from .report.notebook import Run


class Model:
    """A trained model: `module`, an `nn.Module` in evaluation mode, with its `recipe`, its `config`, and the `path` of
    the checkpoint that it was loaded from."""

    def __init__(self, recipe: Recipe, config: Any, module: nn.Module, state: dict[str, Any], path: Path):
        self.recipe, self.name = recipe, recipe_loading.recipe_name(recipe)
        self.config, self.module, self.path = config, module.eval(), path
        self.n_parameters = sum(parameter.numel() for parameter in module.parameters())  # quantized or not
        self.step: int = state["step"]
        self.stream_state: StreamState = state.get("stream_state") or {}  # the position in the training data
        self.missing_keys: list[str] = state.get("missing_keys") or []  # of a public checkpoint: random until trained
        self._best: dict[str, Any] = state.get("best") or {}
        self.store: Datastore | None = None
        self.task = ""  # of a model of several tasks, which of them this is

    @property
    def tasks(self) -> dict[str, "Model"]:
        """The models that a model of several tasks consists of, by their names; they share their weights."""
        if not isinstance(self.recipe, SupportsTasks):
            return {}
        parts = self.recipe.split_tasks(self.module, self.config, self.stream_state).items()
        models = {}
        for name, (recipe, config, module, stream_state) in parts:
            models[name] = Model(recipe, config, module, {"step": self.step, "stream_state": stream_state}, self.path)
            models[name].task = name
        return models

    @property
    def task_hint(self) -> str:
        """How to name a task, for messages; empty for a model of one."""
        names = ", ".join(f"{self.run_path}:{name}" for name in self.tasks)
        return f"name one of its tasks, {names}" if names else ""

    def predict(self, request: Any = None, **settings: Any) -> dict[str, Any]:
        """Answer a request; plain values in and out. Raises InputError if the recipe cannot answer it.

        A request that is not a dict is its "input", and `settings` are more of its values: model.predict(rows, beam=4).
        Without any, the model of a run answers examples of its validation split.
        """
        if request is not None and not isinstance(request, dict):
            request = {"input": request}
        request = (request or {}) | settings
        with torch.no_grad():
            if request:
                answer = self.recipe.predict(self.module, request)
            else:
                answer = predict_examples(self.recipe, self.module, RunDirectory(self.run_path).read_examples())
        check_finite(answer, str(self.path))
        return answer

    def form(self) -> Form:
        """Return what the model can be asked, with examples of the validation split of its run."""
        if not isinstance(self.recipe, SupportsForm):
            return DEFAULT_FORM
        examples = RunDirectory(self.run_path).read_examples()
        return add_examples(self.recipe.form(self.module, self.config), examples.request)

    def describe_request(self) -> dict[str, Any]:
        """Return the JSON schema of the requests that `predict` answers, see `forms.describe_form`."""
        first_line = (self.recipe.__doc__ or "").partition("\n")[0]
        return describe_form(self.form(), self.name, first_line.partition(": ")[2] or first_line)

    @check_arguments
    def predict_file(
        self, file: str | Path, out: str | Path, batch: int = 64, skip_broken: bool = False, **settings: Any
    ) -> dict[str, Any]:
        """Write the rows of a file with the model's predictions to a csv, tsv or jsonl file, in bounded memory.

        `settings` are more of the request of every row; see `anyformer.predict_file` for the arguments and the result.
        """
        with torch.no_grad():
            arguments = (Path(file), Path(out), batch, skip_broken, settings)
            return predict_file(self.recipe, self.module, self.config, *arguments)

    @check_arguments
    def generate(self, prompt: str | list[str] | None = None, **settings: Any) -> dict[str, Any]:
        """Continue a prompt (without one: a new line), or several in one batch.

        Settings: tokens, samples, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, keep, messages; and
        what an answer may be: json_schema, regex, grammar or choices, and exact. With best_of, the best of so many, by
        a reward (`rewards.choose_best`).

        Returns {"samples": [{"prompt", "text", "tokens", "finish_reason"}, ...]}.
        """
        request = settings if prompt is None else {"prompt": prompt} | settings
        return choose_best(self, request) if "best_of" in request else self.predict(request)

    def stream(self, prompt: str | None = None, **settings: Any) -> Iterator[str]:
        """Yield a completion piece by piece, as it is generated. Settings as for `generate`, for one sample."""
        if not isinstance(self.recipe, SupportsStream):
            raise InputError(f"the recipe '{self.name}' generates no text to stream")
        request = settings if prompt is None else {"prompt": prompt} | settings
        if isinstance(request.get("prompt", ""), list) or request.get("samples", 1) != 1:
            raise InputError("stream yields one sample of one prompt: use generate for several")
        rounds = self.recipe.stream(self.module, request)
        while True:
            with torch.no_grad():
                completions = next(rounds, None)
            if completions is None:
                return
            yield completions[0].new_text()

    @check_arguments
    def embed(self, texts: list[str], cut: bool = False) -> list[list[float]]:
        """Return a vector of length 1 for each text. `cut`: shorten texts that exceed the context."""
        if not isinstance(self.recipe, SupportsEmbedding):
            names = recipe_loading.recipes_with(SupportsEmbedding)
            raise InputError(f"{self.path} is a run of '{self.name}', not of {names}: it embeds no texts")
        with torch.no_grad():
            return self.recipe.embed(self.module, texts, cut)

    @check_arguments
    def evaluate(self, data: Any = None, every: int = 1) -> dict[str, float]:
        """Return metrics of one fixed pass over the validation split, or over all of other `data` (as for `train`); of
        one batch in `every`. Of a model with a store also its loss without it."""
        if every < 1:
            raise InputError(f"every is {every}; it must be at least 1")
        config, split = select_eval_data(self, data)

        def compute() -> dict[str, float]:
            batches = (batch for batch, _ in islice(self.recipe.batches(config, split, None), 0, None, every))
            return loop.evaluate(self.recipe, self.module, batches, self.config.train.dtype)

        metrics = compute()
        check_finite(metrics, str(self.path))
        if self.store is not None:
            with leave_out_store(self.recipe, self.module):
                alone = compute()
            metrics |= {f"{name}_without_store": alone[name] for name in ("loss", "bits_per_byte") if name in alone}
        return metrics

    @check_arguments
    def score(self, data: str | None = None, **request: Any) -> dict[str, Any]:
        """Return the metrics that need the model's answers, over the same split as `evaluate`. Raises InputError if
        the recipe has none."""
        if not isinstance(self.recipe, SupportsScore):
            raise InputError(f"the recipe '{self.name}' has no metrics besides those of its evaluation")
        config, split = select_eval_data(self, data)
        with torch.inference_mode():
            return self.recipe.score(self.module, config, split, **request)

    @check_arguments
    def index(self, data: Any, out: str | Path, neighbors: int = 256, probes: int = 8) -> dict[str, Any]:
        """Write a store of a text, with which `load(..., store=out)` predicts it better, without training.

        Args:
            data: As for `train`, None for the run's own; its validation split is left out.
            out: A new folder.
            neighbors: How many of the nearest states are looked up.
            probes: Groups of states, of the nearest centroids, in which they are sought.

        Returns what `anyformer.indexing.build_store` does. Raises InputError.
        """
        if data is None and not self.config.data:
            raise InputError(f"{self.path} came without data: name a text to store (--data)")
        config = self.config if data is None else resolve_paths(replace(self.config, data=fetch_data(data)))
        return build_store(self.recipe, self.module, config, self.path, Path(out), neighbors, probes)

    def attention(self, request: Any = None, **settings: Any) -> Tensor:
        """Return the attention weights of the model's first Transformer while it reads a request, (layers, B, H, Q, K).

        Settings as for `predict`. Raises InputError if the model has no Transformer.
        """
        stack = next((module for module in self.module.modules() if isinstance(module, Transformer)), None)
        if stack is None:
            raise InputError(f"the model of '{self.name}' has no Transformer: there are no attention weights")
        return attention_weights(stack, lambda: self.predict(request, **settings), first_pass=True)

    def record(self, max_calls: int | None = 1) -> AbstractContextManager[Trace]:
        """Record every sublayer's input, output, queries, keys, values and weights, by name: `model.trace.record`."""
        return record(self.module, max_calls)

    def ablate(
        self,
        *names: str,
        heads: Sequence[int] | None = None,
        edges: Rule | None = None,
        memory_edges: Rule | None = None,
    ) -> AbstractContextManager[None]:
        """Leave out heads, sublayers, blocks or edges inside a `with`: `model.intervention.ablate`."""
        return ablate(self.module, *names, heads=heads, edges=edges, memory_edges=memory_edges)

    def patch(
        self,
        trace: Trace,
        *names: str,
        nodes: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        side: Literal["input", "output"] = "output",
    ) -> AbstractContextManager[None]:
        """Put activations of a recorded run in the place of others inside a `with`: `model.intervention.patch`."""
        return patch(self.module, trace, *names, nodes=nodes, heads=heads, side=side)

    @check_arguments
    def plot_attention(
        self, request: Any = None, layer: int = -1, head: int | None = None, labels: Sequence[str] = (), **settings: Any
    ) -> Any:
        """Plot the attention weights of a layer as a heat map, a row for each query, and return the matplotlib Figure.

        Args:
            request: As for `attention`; the first of several inputs is drawn.
            head: One head; None: their mean.
            labels: Names of the nodes.
        """
        from .report.plots import plot_matrix

        try:
            weights = self.attention(request, **settings)[layer, 0].float()
            weights = weights.mean(0) if head is None else weights[head]
        except IndexError:
            raise InputError(f"the model has no layer {layer}, or no head {head} in it") from None
        title = f"attention of layer {layer}, " + ("mean of the heads" if head is None else f"head {head}")
        return plot_matrix(weights.tolist(), labels, labels, title)

    @property
    def run(self) -> "Run":
        """The run that the model comes from: its curves and figures. Raises InputError for a public checkpoint."""
        from .report.notebook import Run  # here, to load models faster

        return Run(self.run_path)

    def plot_history(self, *metrics: str, axes: Any = None) -> Any:
        """Plot the loss of the model's training, or other metrics, and return the matplotlib Figure."""
        return self.run.plot(*metrics, axes=axes)

    @property
    def run_path(self) -> Path:
        """The run directory, if the model comes from one; else the checkpoint."""
        run = self.path.parent.parent
        return run if self.path.parent.name == "checkpoints" and RunDirectory(run).exists else self.path

    def describe(self) -> dict[str, Any]:
        """Return what the model is: recipe, parameters, data, step, and the validation loss of its run."""
        facts = {"recipe": self.name, "parameters": self.n_parameters, "data": self.config.data, "step": self.step}
        result: dict[str, Any] = {}
        with suppress(InputError):
            result = checkpoints.read_json(self.run_path / "result.json")
        for source, step in ((result, "best_step"), (self._best, "step")):
            if source.get(step) == self.step and not self.task:
                return facts | {"val_loss": source.get("val_loss")}
        return facts

    def __repr__(self) -> str:
        facts = self.describe()
        loss = f", validation loss {facts['val_loss']:.4f}" if facts.get("val_loss") is not None else ""
        data = f" on {facts['data']}" if facts["data"] else ""
        return f"<Model {self.name}{data}: {facts['parameters']:,} parameters, step {self.step:,}{loss}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks, with the loss curve of the run and a link to its report."""
        rows = ""
        for name, value in self.describe().items():
            text = (
                f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
            )
            rows += f"<tr><th>{name.replace('_', ' ')}</th><td>{html.escape(text)}</td></tr>"
        report = html.escape(str(self.run_path / "report.html"))
        link = f'<a href="{report}">{report}</a>' if (self.run_path / "report.html").is_file() else ""
        chart = self.run.draw_loss() if RunDirectory(self.run_path).exists else ""
        return f"<table>{rows}</table>{chart}{link}"


def select_eval_data(model: Model, data: Any = None) -> tuple[Any, str]:
    """Return the config and the split that the model was not trained on; `data` replaces the model's own. Raises
    InputError if there are no data, or the model's own have changed."""
    if data is None and not model.config.data:
        raise InputError(f"{model.path} came without data: name some to evaluate it on (--data)")
    config = model.config if data is None else resolve_paths(replace(model.config, data=fetch_data(data)))
    recipe_loading.check_mixture(model.recipe, config.data)
    _, state = next(model.recipe.batches(config, "val" if data is None else "all", None))  # a split may be empty
    hashes, own_hashes = ({values.get("data"), *values.get("sources", ())} for values in (state, model.stream_state))
    own_hashes |= set() if model.store is None else {model.store.info.sha256}  # its training split is in the store
    if model.stream_state.get("data") in (None, state.get("data")) or (data is not None and hashes & own_hashes):
        return config, "val"
    if data is None:
        raise InputError(f"the data '{config.data}' has changed since this run began: restore it, or name data")
    return config, "all"


# --- load ---


@check_arguments
def load(
    path: str | Path,
    device: str = "auto",
    merged: bool = True,
    weights: WeightFormat | None = None,
    recipe: Any = None,
    store: str | Path | None = None,
    draft: str | Path | None = None,
    cache_dtype: CacheFormat = "float32",
) -> Model:
    """Load a model.

    Args:
        path: A run directory (its best checkpoint), a checkpoint, or a public checkpoint: a folder, a GGUF file, or
            owner/name of a model on the Hugging Face hub. RUN:TASK is one of the tasks of a run.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        merged: Merge LoRA adapters into the weights that they were trained on.
        weights: Number format of the linear layers for inference: "float32" gives the same answers as the trained
            model, "bfloat16" and "int8" are faster and nearly as exact, "int4" (on a CPU) takes the least memory and
            can cost much quality: evaluate it first. None: as trained, to train further.
        recipe: The recipe of a run that was trained with one from outside the package: a module, a file or a Python
            path, as for `train`.
        store: A store that `index` has written for this model, to predict with.
        draft: What proposes tokens that the model checks several at a time, where it continues a single text: "prompt"
            (what came before in it), "counts" (of the text of its training), a text file, or a run of a smaller model.
            The answers are the same.
        cache_dtype: Number format of the keys and values that are kept while text is written: "bfloat16" takes half of
            the memory, "int8" about a quarter, and neither is faster.

    Raises:
        InputError: If there is no such model, or it is damaged.
    """
    path, task = split_task(path)
    path = find_model(path)
    is_public = path.is_file() or hf_folder.is_hf_folder(path)
    model = load_public(path, device) if is_public else load_run(path, device, merged, recipe)
    model = select_task(model, task) if task else model
    try:
        set_cache_format(model.module, cache_dtype)
        if weights is not None:
            quantize(model.module, weights)
    except ValueError as error:  # this device or build of torch has no kernel
        raise InputError(str(error)) from None
    if draft is not None:
        attach_drafter(model, draft, lambda source: load(source, device, weights=weights))
    if store is not None:
        model.store = attach_store(model.recipe, model.module, model.path, Path(store))
    return model


def split_task(path: str | Path) -> tuple[str | Path, str]:
    """RUN:TASK -> (RUN, task), if there is a RUN; any other path is one."""
    run, _, task = str(path).rpartition(":")
    return (run, task) if run and Path(run).exists() and not Path(path).exists() else (path, "")


def select_task(model: Model, name: str) -> Model:
    """Return the model of a task. Raises InputError with the nearest name."""
    tasks = model.tasks
    if not tasks:
        raise InputError(f"{model.path} is of one task, so it has no '{name}': leave out :{name}")
    if name not in tasks:
        raise InputError(f"{model.path} has no task '{name}': {suggest(name, tasks)}")
    return tasks[name]


def find_model(path: str | Path) -> Path:
    """Return the local path of a model: a path as it is, a model of the Hugging Face hub downloaded once."""
    reference = parse_reference(str(path), "model")
    return Path(path) if reference is None else fetch_model(reference)


def load_run(path: Path, device: str, merged: bool, recipe: Any) -> Model:
    """Load a model from a run or a checkpoint, with its weights as they were trained."""
    folder = find_checkpoint(path)
    where = str(folder / "config.json")
    stored = checkpoints.read_json(folder / "config.json")
    for name in ("recipe", "config"):
        if name not in stored:
            raise InputError(f"{where} names no {name}: it is not a checkpoint of anyformer")
    module = recipe_loading.load_stored_recipe(stored["recipe"], recipe, path)
    config = recipe_loading.bind_checkpoint_files(recipe_loading.parse_config(module, stored["config"], where), folder)
    verify_files(folder, but="optimizer.safetensors")
    settings = parse_dataclass(LoRAConfig, stored.get("lora") or {}, where)
    source = load_source(Path(stored["init"]["path"]), module, stored["init"]["sha256"]) if settings.rank else None

    def build() -> nn.Module:
        model = module.build(config)
        if source is not None:
            checkpoints.initialize_from(model, source.module, str(source.path), settings)
        return model

    checkpoints.check_model(folder, build)
    with SkipInit() if source is None else nullcontext():
        model = build()
    return fill_model(module, config, model.to(resolve_device(device)), folder, merged)


def fill_model(recipe: Recipe, config: Any, model: nn.Module, folder: Path, merged: bool = True) -> Model:
    """Read the weights of a checkpoint into a model."""
    checkpoints.load_weights(folder, model)
    if merged:
        lora.merge_lora(model)
    return Model(recipe, config, model, checkpoints.read_state(folder), folder)


def from_training(job: TrainingJob, state: loop.TrainState) -> Model:
    """Return the best model of a finished training; its checkpoint is read into the model that was trained."""
    folder = find_checkpoint(job.run.path)
    verify_files(folder, but="optimizer.safetensors")
    state.model.zero_grad(set_to_none=True)
    return fill_model(job.recipe, recipe_loading.bind_checkpoint_files(job.config, folder), state.model, folder)


def load_source(path: Path, recipe: Recipe, sha256: str | None = None) -> InitWeights:
    """Load a model that `recipe` starts from: a public checkpoint, or a run of this or another recipe of the package.
    Raises InputError if adapters were trained on it already, and its weights are not those of `sha256`."""
    path, stored = find_model(path), {}
    if path.is_dir() and not hf_folder.is_hf_folder(path):
        stored = checkpoints.read_json(find_checkpoint(path) / "config.json")
    is_same = stored.get("recipe") == recipe_loading.recipe_name(recipe)
    source = load(path, "cpu", recipe=recipe if is_same else None)
    digest = checkpoints.hash_weights(source.path)
    if sha256 not in (None, digest):
        raise InputError(f"{path} has changed since adapters were trained on it: restore the old weights")
    return InitWeights(source.module, source.recipe, source.config, path.resolve(), digest)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, or the best one of a run. Raises InputError."""
    if not path.exists():
        raise InputError(f"there is no run at {path}")
    if (path / "model.safetensors").is_file():
        return path
    best = checkpoints.find_best(path / "checkpoints")
    if best is None:
        raise InputError(f"{path} has no checkpoint: expected {path / 'checkpoints' / 'step-N' / 'model.safetensors'}")
    return best


# --- public checkpoints ---


def load_public(path: Path, device: str = "auto") -> Model:
    """Load a public checkpoint where it lies; names and shapes are checked before memory is allocated."""
    source = hf_folder.open_checkpoint(path)
    recipe = recipe_loading.load_recipe(source.recipe)
    config = recipe_loading.parse_config(recipe, source.values, str(path))
    with torch.device("meta"), SkipInit():
        missing_keys = source.check(recipe.build(config))
    with nullcontext() if missing_keys else SkipInit():
        model = recipe.build(config)
    source.load_weights(model)
    checkpoints.check_loaded(model, path)
    stream_state = {"data": "", "tokens": 0}  # unknown training data: other data are evaluated as a whole
    state = {"step": 0, "stream_state": stream_state, "missing_keys": missing_keys}
    return Model(recipe, config, model.to(resolve_device(device)), state, path)
