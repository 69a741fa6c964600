"""A training job: everything that decides a training, resolved once by `api.resolve_job`; and how it is run:
`run_job` -> `restore_or_init` -> `run_training` -> `loop.train`."""

import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..answer_text import format_prediction
from ..errors import InputError, Stopped, TrainingError
from ..events import report_notice
from ..examples import find_examples, predict_examples
from ..parsing import flatten_values, to_json
from ..processes import is_restarted
from ..recipe import (
    Examples,
    Recipe,
    StreamState,
    SupportsBaselines,
    SupportsFrozenReference,
    SupportsPeers,
    SupportsReference,
    SupportsRollouts,
)
from ..recipe_loading import bind_checkpoint_files, recipe_name
from . import budget as budgets
from . import checkpoints, distributed
from .config import LoRAConfig
from .device import resolve_device, resolve_dtype
from .estimate import estimate
from .gradients import check_weights
from .loop import TrainState, evaluate, init_state, is_finished, train
from .lora import add_lora
from .run_directory import ReadOnlyRun, RemovedError, RunDirectory, describe_run, describe_versions, find_lock_holder
from .step_clock import summarize_ranks
from .timer import Timer, TimerState
from .updates import count_own

RANKS_EVERY = 10  # steps between two figures of all processes


@dataclass(frozen=True)
class InitWeights:
    """A trained model to start from, loaded once. Its module is emptied as soon as its weights have been copied."""

    module: nn.Module
    recipe: Recipe
    config: Any
    path: Path
    """What the user named, resolved: stored in config.json and loaded again when adapters are resumed."""
    sha256: str
    """Of its weight files (`checkpoints.hash_weights`)."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that decides a training."""

    recipe: Recipe
    preset: str
    config: Any
    """The recipe's frozen config: preset, stored values and overrides merged, paths absolute."""
    run: RunDirectory
    is_resumed: bool = False
    """The run directory holds a run, and training continues it."""
    init: InitWeights | None = None
    """For a resumed run only if it is needed: for adapters, a frozen reference, or where there is no checkpoint yet."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    budget: budgets.Budget | None = None
    """The time that training takes, and that possibly decides the size of the model; of a resumed run, from now on."""
    timer: TimerState | None = None
    """How the time is divided."""
    keeps_timer: bool = False
    """The timer is the one that the run's checkpoint stores, if there is one: no number of steps was named."""
    baselines: dict[str, dict[str, float]] | None = None
    """Of SupportsBaselines, if they were computed before training, so that their time is known."""
    compare: bool = False
    """Train the models of SupportsPeers too, before this one, so that their time is known."""
    peers: dict[str, dict[str, float]] = field(default_factory=dict)
    """What they reached."""
    plan: dict[str, Any] = field(default_factory=dict)
    """How a budget chose the size of the model; stored in config.json."""
    command: str = ""
    """The command line or call that started it."""
    trackers: tuple[str, ...] = ()
    """Names of `trackers.TRACKERS` that get the records too."""

    @property
    def recipe_name(self) -> str:
        return recipe_name(self.recipe)


StartCallback = Callable[[TrainingJob, TrainState], None]
"""on_start(job, state), called once before the first step."""
RecordCallback = Callable[[dict[str, Any]], None]
"""on_record(record), called after each step."""
CheckpointCallback = Callable[[Path], None]
"""on_checkpoint(folder), called after each checkpoint is written."""


def ignore(*_: Any) -> None:
    """Do nothing: the default of callbacks."""


def run_job(
    job: TrainingJob,
    on_start: StartCallback = ignore,
    on_record: RecordCallback = ignore,
    on_checkpoint: CheckpointCallback = ignore,
) -> tuple[TrainingJob, TrainState]:
    """Train in the job's run directory, up to the last checkpoint; a run that fails before its first one is removed.
    Of several processes, the first alone writes to it and calls back.

    Returns:
        The job with the config that was trained (a budget decides part of it), and the final state.

    Raises:
        InputError: If the input cannot be used, or another process trains in the directory.
        TrainingError: If the loss is not finite.
        Stopped: After Ctrl-C or SIGTERM; everything is saved.
    """
    with ExitStack() as stack:
        stack.enter_context(distributed.join_processes(job.config.train.device))
        is_first = distributed.get_rank() == 0
        if not is_first:
            job = replace(job, run=ReadOnlyRun(job.run.path))
            on_start = on_record = on_checkpoint = ignore
        job, state = begin_job(job, stack)
        on_start(job, state)
        for record in run_training(job, state, on_checkpoint):
            on_record(record)
        state.model = distributed.get_full_model(state.model, lambda: rebuild(job))
        state.wrapped = state.model  # DDP must be gone before its group is: its destructor can wait for ever
    if is_first:
        average_checkpoints(job, state)
        job = fit_end(job, state)
    return job, state


def begin_job(job: TrainingJob, stack: ExitStack) -> tuple[TrainingJob, TrainState]:
    """Check the input, reserve the run directory until the stack is closed, and return the state to begin with. What
    fails on one of several processes fails on all."""
    is_first, stream_state = distributed.get_rank() == 0, None
    if is_restarted():
        report_notice("a process has ended: all start again from the last checkpoint")
    with distributed.fail_together():
        if job.is_resumed and is_first:
            stack.enter_context(job.run.lock())
            job = find_start(job)
        check_processes(job, distributed.get_size())
    for is_turn in distributed.take_turns():  # the first process of a machine prepares the data for the others
        with distributed.fail_together():
            stream_state = check_inputs(job) if is_turn else stream_state  # before anything is written
    distributed.check_agreement(describe_inputs(job, stream_state or {}))
    with distributed.fail_together():
        if job.compare and isinstance(job.recipe, SupportsPeers):
            job = replace(job, peers=job.recipe.train_peers(job.config))
        job = apply_budget(job)
        if not job.is_resumed:
            stack.enter_context(job.run.lock())
            job.run.create(describe_job(job))
        stack.enter_context(remove_stub(job))
        stack.enter_context(job.run.report_removal())
        stack.enter_context(name_last_checkpoint(job))
        job.run.write_examples(find_examples(job.recipe, job.config) if is_first else Examples())
        if is_first:
            checkpoints.prune_checkpoints(job.run.checkpoints, job.config.train.average)
    state = restore_or_init(job)
    if job.is_resumed:
        job.run.write_config(job.run.read_config() | {"config": to_json(job.config)})
    return job, state


def check_processes(job: TrainingJob, size: int) -> None:
    """Raise InputError for what so many processes cannot do."""
    c = job.config.train
    if size > 1 and (job.budget is not None or job.timer is not None):
        raise InputError("--minutes ends a training of one process by its clock: say --steps to several")
    distributed.check_shard(c.shard, size)
    count_own(c.accumulate, size)
    if size > 1 and job.compare:
        raise InputError("--compare trains other models in one process: leave it out, or train in one process")
    if c.shard > 1 and isinstance(job.recipe, SupportsRollouts):
        raise InputError("--train.shard: samples are drawn from whole models: leave it out")
    if c.shard > 1 and resolve_dtype(c.dtype, resolve_device(c.device)) == torch.float16:
        raise InputError("float16 has a loss scale for each process: with --train.shard, give --dtype bfloat16")


def describe_inputs(job: TrainingJob, stream_state: StreamState) -> dict[str, Any]:
    """Return what several processes must have in common."""
    versions = {f"the version of {name}": text for name, text in describe_versions().items()}
    facts = {"the hash of the data": stream_state.get("data"), f"whether {job.run.path} is continued": job.is_resumed}
    return versions | dict(flatten_values(to_json(job.config))) | facts


def find_start(job: TrainingJob) -> TrainingJob:
    """Set damaged checkpoints of a resumed run aside, so that the latest is intact. Returns the job with its timer.
    Raises InputError if all are damaged."""
    checkpoints.set_aside_damaged(job.run.checkpoints)
    latest = checkpoints.find_latest(job.run.checkpoints)
    if latest is None:
        report_notice(f"{job.run.path} has no checkpoint: training begins at step 0")
    return replace(job, timer=checkpoints.read_timer(latest)) if job.keeps_timer else job


def check_inputs(job: TrainingJob) -> StreamState:
    """Open the device, read a batch of both splits, and look at the run directory: a new run needs an unused one, a
    resumed one a checkpoint of the same model. Returns the state after the first training batch. Raises InputError."""
    resolve_device(job.config.train.device)
    latest = checkpoints.find_latest(job.run.checkpoints) if job.is_resumed else None
    if not job.is_resumed and find_lock_holder(job.run.path / ".lock") is None:  # else its lock names the process
        job.run.require_unused()
    if latest is not None:
        config = bind_checkpoint_files(job.config, latest)
        checkpoints.check_model(latest, lambda: initialize(job, job.recipe.build(config)))
    stream_state = None if latest is None else checkpoints.read_state(latest)["stream_state"]
    _, after_first = next(job.recipe.batches(job.config, "train", stream_state))
    next(job.recipe.batches(job.config, "val", None))
    return after_first


def apply_budget(job: TrainingJob) -> TrainingJob:
    """Return the job with its time divided, and possibly another model size. Raises InputError if it is too short."""
    if job.budget is None:
        return job
    baselines = job.baselines
    if baselines is None and isinstance(job.recipe, SupportsBaselines):
        baselines = job.recipe.baselines(job.config)
    if job.budget.choose_size:
        (config, timer), reasons = budgets.choose_size(job.recipe, job.config, job.budget)
        plan = {"minutes": job.budget.minutes} | reasons
        return replace(job, config=config, timer=timer, plan=plan, baselines=baselines)
    latest = checkpoints.find_latest(job.run.checkpoints) if job.is_resumed else None
    step = 0 if latest is None else checkpoints.read_state(latest)["step"]
    config, timer = budgets.plan_steps(job.recipe, job.config, job.budget, step)
    return replace(job, config=config, timer=timer, baselines=baselines)


def describe_job(job: TrainingJob) -> dict[str, Any]:
    """Return the content of the run's config.json."""
    init = {} if job.init is None else {"path": str(job.init.path), "sha256": job.init.sha256}
    optional = {"init": init, "lora": to_json(job.lora) if job.lora.rank else {}, "plan": job.plan}
    content = describe_run(job.recipe_name, job.preset, job.config, job.command)
    return content | {name: value for name, value in optional.items() if value}


@contextmanager
def remove_stub(job: TrainingJob) -> Generator[None]:
    """Remove a new run that fails before its first checkpoint, unless its logs show why (TrainingError)."""
    try:
        yield
    except BaseException as error:  # also Ctrl-C while the model is built
        is_worth_keeping = job.is_resumed or isinstance(error, TrainingError | Stopped | RemovedError)
        if not is_worth_keeping and checkpoints.find_latest(job.run.checkpoints) is None:
            job.run.remove()
        raise


@contextmanager
def name_last_checkpoint(job: TrainingJob) -> Generator[None]:
    """Say from where a training that could not continue can be resumed."""
    try:
        yield
    except TrainingError as error:
        if (latest := checkpoints.find_latest(job.run.checkpoints)) is None:
            raise
        raise type(error)(f"{error}; --resume goes on from {latest}") from error


def initialize(job: TrainingJob, model: nn.Module) -> nn.Module:
    """Start a new model from the weights of `job.init`, if there are some. Returns it."""
    if job.init is not None:
        checkpoints.initialize_from(model, job.init.module, str(job.init.path), job.lora)
    return model


def rebuild(job: TrainingJob) -> nn.Module:
    """Build a model like the one of a training, whose weights are filled in afterwards."""
    latest = checkpoints.find_latest(job.run.checkpoints)
    model = job.recipe.build(job.config if latest is None else bind_checkpoint_files(job.config, latest))
    return add_lora(model, job.lora) if job.lora.rank else model


def restore_or_init(job: TrainingJob) -> TrainState:
    """Return the state of the run's last checkpoint, its logs cut there; or a new state if it has none."""
    latest = distributed.agree(checkpoints.find_latest(job.run.checkpoints))
    config = job.config if latest is None else bind_checkpoint_files(job.config, latest)

    def prepare(model: nn.Module) -> None:
        initialize(job, model)
        if isinstance(job.recipe, SupportsFrozenReference) and job.recipe.needs_reference(config):
            job.recipe.keep_reference(model.to(resolve_device(config.train.device)), config)
        if latest is None and isinstance(job.recipe, SupportsReference):  # before processes share the model
            job.recipe.store_reference(model.to(resolve_device(config.train.device)), config)

    state = init_state(job.recipe, config, prepare)
    if job.init is not None:
        job.init.module.to("meta")  # frees its memory
    if latest is not None:
        checkpoints.load_checkpoint(latest, state)
    if job.timer is not None:
        budget = job.budget
        timer = job.timer if budget is None else replace(job.timer, seconds_left=budget.remaining_seconds)
        state.timer = Timer(timer, time.monotonic if budget is None else budget.clock)
    job.run.rewind(state.step)
    return state


def run_training(
    job: TrainingJob, state: TrainState, on_checkpoint: CheckpointCallback = ignore
) -> Iterator[dict[str, Any]]:
    """Train, log, sample and save; yield each record with "seconds" and "tokens_per_second". Raises Stopped."""
    config, run = job.config.train, job.run
    content, examples = run.read_config(), distributed.agree(run.read_examples())
    tokens = (state.stream_state or {}).get("tokens", 0)
    started_at = last = time.monotonic()
    start_clock(job, state)
    with distributed.name_hanging(), catch_stop_signals() as stop, run.open_logs() as log:
        for record in train(job.recipe, job.config, state, stop.is_set):
            now, n_tokens = time.monotonic(), record["tokens"] - tokens
            seconds, speed, tokens = now - started_at, n_tokens / max(now - last, 1e-9), record["tokens"]
            figures = read_figures(state, n_tokens)
            log("metrics.jsonl", json.dumps(record))
            if "val_loss" in record:
                for text in format_prediction(predict_sample(job.recipe, state, examples)):
                    log("samples.txt", f"--- step {state.step} ---\n{text}")
            else:  # a step that validates says nothing about the speed of training
                timings = {"step": state.step, "seconds": round(seconds, 3), "tokens_per_second": round(speed)}
                log("timings.jsonl", json.dumps(timings | figures))
            is_due = state.step % config.save_every == 0 or is_finished(state, config)
            is_stopping = state.is_stopping or (stop.is_set() and distributed.get_size() == 1)
            if is_due or is_stopping or state.best.get("step") == state.step:
                check_weights(state.model, state.step, record["lr"])
                on_checkpoint(save(run, state, content, config.average))
            last = time.monotonic()  # the time of saving and of the caller is not counted
            state.clock.restart()
            left = {} if state.timer is None else {"seconds_left": state.timer.seconds_left}
            yield record | {"seconds": seconds, "tokens_per_second": speed} | figures | left
            if is_stopping:
                end = f", {left['seconds_left']:.0f} s before the end" if left else f" of {config.steps}"
                raise Stopped(f"stopped at step {state.step}{end}; everything is saved")


def start_clock(job: TrainingJob, state: TrainState) -> None:
    """Prepare to measure what each step needs."""
    if state.clock.peak is not None:
        facts = estimate(job.recipe, job.config)
        state.clock.flops_per_token = facts["flops_per_step"] / max(1, facts["tokens_per_step"])
    if distributed.get_size() > 1:
        state.clock.watch_gradients(state.model)


def read_figures(state: TrainState, tokens: int) -> dict[str, float]:
    """Return where the time of the last step went, and now and then of several processes in which of them."""
    size = distributed.get_size()
    figures = state.clock.end_step(tokens / size)
    is_due = size > 1 and state.step % RANKS_EVERY == 0
    combined = summarize_ranks(distributed.gather(figures)) if is_due else figures
    return {name: value for name, value in combined.items() if name != "tokens_per_second"}


def save(run: RunDirectory, state: TrainState, content: dict[str, Any], keep_last: int) -> Path:
    """Write a checkpoint, and remove superfluous ones. Of several processes all must call this."""
    distributed.report_place(state.step, "checkpoint")
    with distributed.fail_together():
        if not run.exists:
            raise RemovedError(run.path)
        checkpoint = checkpoints.save_checkpoint(run.checkpoints, state, content)
        if distributed.get_rank() == 0:
            report_lost_best(run.checkpoints, state)
            checkpoints.prune_checkpoints(run.checkpoints, keep_last)
    return checkpoint


def report_lost_best(folder: Path, state: TrainState) -> None:
    """Say so if the best checkpoint is no longer there: training goes on, without it."""
    step = state.best.get("step", state.step)
    if step != state.step and not (folder / f"step-{step}").is_dir():
        report_notice(f"the best checkpoint, {folder}/step-{step}, is gone: the last one takes its place")


def fit_end(job: TrainingJob, state: TrainState) -> TrainingJob:
    """Return the job as the clock ended it: with the number of steps that were done, and a final evaluation that fits
    into the time that is left. config.json is rewritten."""
    if state.timer is None or (job.timer is not None and job.timer.share >= 1):  # the clock had ended it before
        return job
    every = state.timer.fit_final_every(job.config.train.final_every)
    job = replace(job, config=replace(job.config, train=replace(job.config.train, steps=state.step, final_every=every)))
    job.run.write_config(job.run.read_config() | {"config": to_json(job.config)})
    return job


@torch.no_grad()
def predict_sample(recipe: Recipe, state: TrainState, examples: Examples) -> dict[str, Any]:
    """Answer the examples; the model stays in training mode. A model that processes share answers on all of them; of
    copies, that of the first process does."""
    if distributed.get_rank() > 0 and not distributed.is_shared(state.model):
        return {}
    try:
        with distributed.gather_parameters(recipe, state.model, state.wrapped) as predictor:
            return predict_examples(predictor, state.model.eval(), examples)
    finally:
        state.model.train()


def average_checkpoints(job: TrainingJob, state: TrainState) -> None:
    """Average the last checkpoints of a finished run (1706.03762, section 6.1) and store the result with its
    validation loss: it is the best checkpoint if that is the lowest. The model in `state` becomes it."""
    folder, config = job.run.checkpoints, job.config.train
    latest = checkpoints.list_checkpoints(folder)[-config.average :]
    if len(latest) < 2:
        return
    checkpoints.load_average(latest, state.model)
    batches = (batch for batch, _ in islice(job.recipe.batches(job.config, "val", None), config.eval_batches))
    best = {"step": state.step, "val_loss": evaluate(job.recipe, state.model, batches, config.dtype)["loss"]}
    values = {"step": state.step, "stream_state": state.stream_state, "best": best}
    with checkpoints.atomic_directory(folder / checkpoints.AVERAGE_DIR, make_parents=False) as temporary:
        checkpoints.write_model(temporary, state.model, job.run.read_config(), values)


@contextmanager
def catch_stop_signals() -> Generator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a stop between two steps; a second Ctrl-C interrupts at once."""
    is_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield is_requested
        return

    def request_stop(signum: int, frame: Any) -> None:
        if is_requested.is_set() and distributed.get_size() == 1:
            raise KeyboardInterrupt
        is_requested.set()

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
