"""A training job: everything that decides a training, resolved once, and the function that runs it.

`api.resolve_job` builds a `TrainingJob` from a recipe, a preset, overrides, paths, a budget and the weights to start
from. From there the job is handed down unchanged: `run_job` -> `open_run` -> `restore_or_init` -> `run_training` ->
`loop.train`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..recipe import Recipe
from .budget import Budget
from .config import LoRAConfig
from .run_directory import RunDirectory


@dataclass(frozen=True)
class InitWeights:
    """A trained model to start from, loaded once.

    Its module is emptied (moved to the meta device) as soon as its weights have been copied.
    """

    module: nn.Module
    path: Path
    """What the user named, resolved: stored in config.json and loaded again when adapters are resumed."""
    sha256: str
    """Of its weight files."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that decides a training."""

    recipe: Recipe
    recipe_name: str
    """How the recipe is named in config.json and on the command line."""
    preset: str
    config: Any
    """The recipe's frozen config: preset, stored values and overrides merged, paths absolute."""
    run: RunDirectory
    is_resumed: bool = False
    """The run directory holds a run, and training continues it."""
    init: InitWeights | None = None
    """For a resumed run: only where its checkpoints need the base model (LoRA)."""
    lora: LoRAConfig = LoRAConfig()
    budget: Budget | None = None
    """A time limit that decides the number of steps, and possibly the size of the model. Never with `is_resumed`."""
    plan: dict[str, Any] = field(default_factory=dict)
    """How a budget chose the config; part of config.json."""
    command: str = ""
    """The command line or call that started it."""


StartCallback = Callable[[TrainingJob, Any], None]
"""on_start(job, state: TrainState), called once before the first step."""
RecordCallback = Callable[[dict[str, Any]], None]
"""on_record(record), called after each step."""
