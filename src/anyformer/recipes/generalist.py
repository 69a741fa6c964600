"""Generalist: one Transformer for several tasks, each with the nodes, edges and head of a recipe of its own.

raw    what the recipes of the tasks read: text, images, sounds, rows of tables, episodes
nodes  those of each task's recipe, with an embedding of its own
edges  those of each task's recipe: causal for text, full for images ...
head   one for each task
loss   the sum of the tasks' losses, each times its weight; every step has a batch of each task

    anyformer train generalist                       thirty minutes on two cores: text, images, sounds, a pole, biopsies
    anyformer train generalist --data tasks.toml     tasks of your own: docs/generalist.md
    anyformer predict RUN:images photo.png           each task answers as a run of its recipe would
    anyformer serve RUN                              so does the server, one model for each task

All blocks are shared, nothing else is: what a recipe with a single stack trains on can be a task. One set of weights
for many tasks: Gato (2205.06175), One Model To Learn Them All (1706.05137).
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import recipe_loading
from ..data.io.checks import load_json, read_text
from ..errors import InputError, suggest
from ..forms import Form
from ..forms import Task as FormTask
from ..model import Transformer, TransformerConfig
from ..model.config import find_stacks
from ..parsing import check_types, path_field, show_value, to_json
from ..recipe import (
    BatchStream,
    Figure,
    FileInput,
    Recipe,
    SizeOption,
    StreamState,
    SupportsBaselines,
    SupportsFigures,
    SupportsFinish,
    SupportsLossTerms,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ..training.updates import count_predictions
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines

TASKS_FILE = "tasks.json"
MAX_TASKS, MAX_TASK_BYTES = 100, 1 << 20
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
OWN_SHAPE = ("context", "position")  # of the model of a task; the rest is shared
TASK_SETS: dict[str, dict[str, Any]] = {
    "two-tasks": {
        "line": {"recipe": "control", "preset": "tiny"},
        "sensors": {"recipe": "multimodal", "preset": "tiny"},
    },
    "five-tasks": {
        "text": {"recipe": "language", "data": "plays", "rows": 0.5, "model": {"context": 128}},
        "images": {"recipe": "vision", "data": "fashion-mnist"},
        "sounds": {"recipe": "multimodal", "preset": "spoken-digits", "data": "spoken-words"},
        "pole": {"recipe": "control", "data": "cartpole"},
        "biopsies": {"recipe": "multimodal", "preset": "table", "rows": 0.5, "weight": 0.2},
    },
}
"""Named sets of tasks, as a tasks.toml holds them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A Transformer, its tasks and its training."""

    data: str = path_field("five-tasks")
    """five-tasks (text, images, sounds, a pole to balance, biopsies), or a .toml with a table for each task: its
    recipe, maybe a preset, and fields of their config, such as data."""
    tasks: str = path_field("own", [".json"])
    """The tasks of a trained model: own (those of the data), or a tasks.json."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """What all tasks share; context and position are those of each task."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its batch is the rows of each task in a step, times the task's `rows`."""

    def __post_init__(self) -> None:
        check_types(self)


SIZES = (Size(64, 2, 16, 0), Size(96, 4, 32, 300))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(data="two-tasks", model=make_model_config(32, 2, 2, 64), train=TINY_TRAIN),
    # thirty minutes on two cores
    "small": Config(
        model=make_modern_config(128, 6, 4, 128, init="zero"),
        train=TrainConfig(steps=1000, batch=32, lr=3e-3, weight_decay=0.01, eval_batches=20, **MUON),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=800)


# --- the tasks ---


@cache
def find_recipe(name: str) -> Recipe:
    """Return a recipe of the package: every step asks for that of every task."""
    return recipe_loading.load_recipe(name)


@dataclass(frozen=True)
class Task:
    """A recipe and its config, whose Transformer is shared with other tasks."""

    name: str
    recipe_name: str
    config: Any
    weight: float
    """Of its loss. 0: it is only evaluated."""
    rows: float
    """Of a step, as a multiple of the batch."""
    unbound: Any = None
    """The config as it was given, where `config` names files of a checkpoint, which will be removed; else None."""

    @property
    def recipe(self) -> Recipe:
        return find_recipe(self.recipe_name)  # a module cannot be pickled with a model

    @property
    def prefix(self) -> str:
        """Of the keys of its batches."""
        return f"{self.name}@{self.recipe_name}"

    def to_json(self) -> dict[str, Any]:
        """Return the task as `parse_task` reads it."""
        config = self.unbound or self.config
        fields = to_json(config) | {"model": {name: getattr(config.model, name) for name in OWN_SHAPE}}
        del fields["train"]
        own = {"recipe": self.recipe_name, "weight": self.weight, "rows": self.rows}
        return own | fields


def load_tasks(config: Config) -> list[Task]:
    """Load the tasks of the data or of a trained model. Raises InputError."""
    if config.tasks != "own":
        values = load_json(config.tasks, "tasks", MAX_TASK_BYTES)
        tasks = [parse_task(config, name, value, "tasks") for name, value in values.items()]
        folder, bind = Path(config.tasks).parent, recipe_loading.bind_checkpoint_files
        return [replace(task, config=bind(task.config, folder, f"{task.name}."), unbound=task.config) for task in tasks]
    if config.data in TASK_SETS:
        return [parse_task(config, name, value, config.data) for name, value in TASK_SETS[config.data].items()]
    path = Path(config.data).expanduser()
    if path.suffix != ".toml" or not path.is_file():
        valid = suggest(config.data, [*TASK_SETS]) if not path.suffix else "expected a .toml with a table for each task"
        raise InputError(f"data '{config.data}': no such file or set of tasks: {valid}")
    try:
        values = tomllib.loads(read_text(path, MAX_TASK_BYTES))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"data '{path}': {error}") from None
    if not 0 < len(values) <= MAX_TASKS:
        raise InputError(f"data '{path}' has {len(values)} tables; expected one for each task, at most {MAX_TASKS}")
    return [parse_task(config, name, value, str(path)) for name, value in values.items()]


def parse_task(config: Config, name: str, values: Any, where: str) -> Task:
    """Build a task from its plain values. Raises InputError."""
    where = f"{where}, task {name}"
    if not NAME.fullmatch(name) or not isinstance(values, dict):
        raise InputError(f"{where}: expected a table with a name of small letters, digits, - and _")
    values = dict(values)
    own = {key: values.pop(key, default) for key, default in (("recipe", ""), ("preset", None))}
    factors = {key: values.pop(key, 1.0) for key in ("weight", "rows")}
    for key, value in factors.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (key == "rows") * 1e-3 <= value <= 1e3:
            raise InputError(f"{where}: {key} is {show_value(value)}; it must be a number up to 1000")
    recipes = [other for other in recipe_loading.list_recipes() if other != "generalist"]
    if own["recipe"] not in recipes:
        raise InputError(f"{where}: recipe is {show_value(own['recipe'])}: {suggest(str(own['recipe']), recipes)}")
    recipe = recipe_loading.load_recipe(own["recipe"])
    preset = recipe_loading.get_preset(recipe, own["preset"])
    if [*find_stacks(preset)] != ["model"]:
        raise InputError(f"{where}: recipe '{own['recipe']}' has not one stack, as a task must")
    shape, train = values.pop("model", {}), values.pop("train", None)
    if train is not None or not isinstance(shape, dict) or not set(shape) <= set(OWN_SHAPE):
        raise InputError(f"{where}: a task has its own {' and '.join(OWN_SHAPE)}; model and train are those of all")
    shape = {key: getattr(preset.model, key) for key in OWN_SHAPE} | shape
    batch = max(1, round(config.train.batch * factors["rows"]))
    fields = {"model": to_json(config.model) | shape, "train": to_json(config.train) | {"batch": batch}}
    parsed = recipe_loading.parse_config(recipe, to_json(preset) | values | fields, where)
    return Task(name, own["recipe"], recipe_loading.resolve_paths(parsed), **factors)


# --- the model ---


class Generalist(nn.Module):
    """The models of several tasks; the blocks of the first one are the blocks of all."""

    def __init__(self, tasks: list[Task], modules: list[nn.Module]):
        super().__init__()
        bodies = [module.get_submodule("body") for module in modules]
        self.body = bodies[0]
        for body in bodies:
            body.blocks, body.norm = self.body.blocks, self.body.norm
        self.specs = {task.name: task for task in tasks}
        self.optional_parts = [f"tasks.{task.name}." for task in tasks]
        self.tasks = nn.ModuleDict({task.name: module for task, module in zip(tasks, modules)})

    def select(self, prefix: str) -> tuple[Task, nn.Module]:
        """Return the task of a prefix, and its model."""
        name = prefix.partition("@")[0]
        return self.specs[name], self.tasks[name]

    @property
    def files(self) -> dict[str, str]:
        """The tasks, and the files of each task's model behind its name."""
        own = {name: task.to_json() for name, task in self.specs.items()}
        files = {TASKS_FILE: json.dumps(own, indent=1)}
        for name, module in self.tasks.items():
            files |= {f"{name}.{file}": text for file, text in getattr(module, "files", {}).items()}
        return files


def build(config: Config) -> Generalist:
    tasks, modules = load_tasks(config), []
    for task in tasks:
        modules.append(task.recipe.build(task.config))
        if not isinstance(getattr(modules[-1], "body", None), Transformer):
            raise InputError(f"task {task.name}: the model of its recipe has no Transformer `body` to share")
    return Generalist(tasks, modules)


def split_tasks(
    model: Generalist, config: Config, state: StreamState
) -> dict[str, tuple[Recipe, Any, nn.Module, StreamState]]:
    streams = state.get("streams", {})
    tasks = load_tasks(config)  # not the model's own: after a resumption these name files that are removed
    return {t.name: (t.recipe, t.config, model.tasks[t.name], streams.get(t.prefix, {})) for t in tasks}


# --- batches ---


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches whose keys are TASK@RECIPE/KEY, with the keys of the recipe's batches.

    "train" never ends; each batch holds one of every task that has a weight. "val" and "all" hold one of every task
    that has any left.
    """
    state, every = state or {}, load_tasks(config)
    place = {key: state[key] for key in ("step", "stride") if key in state}
    trained, streams = {task.prefix for task in every if task.weight}, {}
    if not trained:
        raise InputError(f"data '{config.data}': every task has weight 0: nothing is trained")
    for task in every:
        if split != "train" or task.weight:
            stored = state.get("streams", {}).get(task.prefix)
            streams[task.prefix] = task.recipe.batches(task.config, split, stored and stored | place)
    if split != "train":
        yield from read_rounds(config, trained, streams)
    while split == "train":
        parts = {prefix: next(stream) for prefix, stream in streams.items()}
        before, states = state.get("streams", {}), {prefix: own for prefix, (_, own) in parts.items()}
        n_tokens = sum(own["tokens"] - before.get(p, {"tokens": 0})["tokens"] for p, own in states.items())
        start = init_stream({k: v for k, v in state.items() if k != "streams"}, config.data, hash_data(states))
        state = advance_stream(start, n_tokens)
        state["streams"] = {p: {k: v for k, v in own.items() if k != "stride"} for p, own in states.items()}
        yield join_batches({prefix: batch for prefix, (batch, _) in parts.items()}), state


def read_rounds(config: Config, trained: Container[str], streams: Mapping[str, BatchStream]) -> BatchStream:
    """Yield a batch of every stream that has not ended, until all have."""
    items = {prefix: next(stream, None) for prefix, stream in streams.items()}
    states = {prefix: item[1] for prefix, item in items.items() if item is not None and prefix in trained}
    state = init_stream(None, config.data, hash_data(states))
    while left := {prefix: item for prefix, item in items.items() if item is not None}:
        yield join_batches({prefix: batch for prefix, (batch, _) in left.items()}), state
        items = {prefix: next(streams[prefix], None) for prefix in left}


def hash_data(states: Mapping[str, StreamState]) -> str:
    lines = (f"{prefix} {state['data']}\n" for prefix, state in states.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def join_batches(batches: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}/{key}": value for prefix, batch in batches.items() for key, value in batch.items()}


def split_batch(batch: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the batch of each task, by its prefix."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in batch.items():
        prefix, _, own = key.partition("/")
        parts.setdefault(prefix, {})[own] = value
    return parts


# --- loss and evaluation ---


def loss(model: Generalist, batch: dict[str, Tensor]) -> Tensor:
    losses = []
    for prefix, part in split_batch(batch).items():
        task, module = model.select(prefix)
        losses.append(task.weight * task.recipe.loss(module, part))
    return torch.stack(losses).sum()


def loss_terms(model: Generalist, batch: dict[str, Tensor]) -> Tensor:
    """Return the terms that `loss` is the sum of: one for each task, or more where its own loss has several."""
    terms = []
    for prefix, part in split_batch(batch).items():
        task, module = model.select(prefix)
        function = task.recipe.loss_terms if isinstance(task.recipe, SupportsLossTerms) else task.recipe.loss
        terms.append(task.weight * function(module, part).reshape(-1))
    return torch.cat(terms)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """Return the number of predictions of each term."""
    counts = []
    for prefix, part in split_batch(batch).items():
        counts.append(count_predictions(find_recipe(prefix.partition("@")[2]), part).reshape(-1))
    return torch.cat(counts)


def evaluate(model: Generalist, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the metrics of each task with its name in front, and the loss: their sum, each times its weight."""
    parts: dict[str, list[dict[str, Tensor]]] = {}
    for batch in batches:
        for prefix, part in split_batch(batch).items():
            parts.setdefault(prefix, []).append(part)
    metrics: dict[str, float] = {"loss": 0.0}
    for prefix, own in parts.items():
        task, module = model.select(prefix)
        values = task.recipe.evaluate(module, iter(own))
        metrics["loss"] += task.weight * values.get("loss", 0.0)
        metrics |= {f"{task.name}_{metric}": value for metric, value in values.items()}
    return metrics


def baselines(config: Config) -> Baselines:
    scores: Baselines = {}
    for task in load_tasks(config):
        if isinstance(task.recipe, SupportsBaselines):
            scores |= {f"{task.name}_{metric}": v for metric, v in task.recipe.baselines(task.config).items()}
    return scores


def finish_model(model: Generalist, config: Config) -> None:
    for task in load_tasks(config):
        if isinstance(task.recipe, SupportsFinish):
            task.recipe.finish_model(model.tasks[task.name], task.config)


def figures(model: Generalist, config: Config) -> list[Figure]:
    drawn: list[Figure] = []
    for task in load_tasks(config):
        if isinstance(task.recipe, SupportsFigures):
            figures = task.recipe.figures(model.tasks[task.name], task.config)
            drawn += [figure | {"title": f"{task.name}: {figure['title']}"} for figure in figures]
    return drawn


# --- answers ---


@dataclass(frozen=True)
class Request:
    """A request for one of the tasks; further fields are those of its recipe."""

    task: str | None = None
    """The name of the task. None: the first one."""
    input: Any = None
    """What the recipe of the task reads."""


def predict(model: Generalist, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request for one of the tasks: {"task": name} and what its recipe reads. Without anything to read, an
    example of the recipe is answered."""
    name = request.get("task") or next(iter(model.specs))
    if name not in model.specs:
        raise InputError(f"request: there is no task {show_value(name)}: {suggest(str(name), model.specs)}")
    own = {key: value for key, value in request.items() if key != "task"}
    return model.specs[name].recipe.predict(model.tasks[name], own)


def form(model: Generalist, config: Config) -> Form:
    example = {"task": next(iter(model.specs))}
    return Form((FormTask("Ask one of the tasks", "json", Request, "json", settings=example, examples=(None,)),))


def file_input(model: Generalist, config: Config) -> FileInput:
    return FileInput()
