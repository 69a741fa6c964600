"""Checkpoints: folders `step-N` with `model.safetensors`, `optimizer.safetensors`, `config.json`, `state.json`, the
model's own files (`tokenizer.json`) and `SHA256SUMS`.

They are written under a temporary name, flushed to disk and renamed, so that a kill, a full disk or a power cut leaves
the previous checkpoint intact. They are validated when read, their sizes before memory is allocated; nothing is ever
unpickled.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.io.checks import read_json, sha256_file
from ..data.io.seal import sync_to_disk
from ..errors import InputError
from ..events import report_notice
from ..parsing import parse_dataclass, to_json
from .building import SkipInit, limit_parameters
from .checksums import verify_files, write_checksums
from .config import LoRAConfig
from .distributed import collect, fill, get_rank
from .gradients import find_not_finite
from .hardware import first_line
from .loop import TrainState
from .lora import add_lora
from .timer import TimerState

AVERAGE_DIR = "mean"  # folder of the average of the last checkpoints
DAMAGED = ".damaged"  # ends the name of a checkpoint that was set aside

RENAMED_TENSORS = {
    r"^nodes\.first$": "nodes.cls_token",
    r"^wanted\.": "return_to_go.",
    r"^nodes\.wanted\.": "nodes.return_to_go.",
    r"^nodes\.step\.": "nodes.timestep.",
    r"^head\.think\.": "head.dense.",
    r"^opens\.": "initial.",
    r"^asks\.": "query.",
    r"^has\.": "key.",
    r"^fits\.": "score.",
    r"^speak\.": "maxout.",
    r"^answer\.": "output.",
}
"""Pattern of a tensor's name in checkpoints of earlier versions -> replacement. Applied to names that a model lacks."""

RENAMED_STATE = {"place": "stream_state", "fresh": "missing_keys"}
"""Keys of state.json in checkpoints of earlier versions -> today's."""


# --- writing ---


def collect_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to save, by name. Tied weights appear once, under their first name; of a model with adapters,
    frozen weights are left out: they belong to the base model's checkpoint."""
    parameters = dict(model.named_parameters())
    if any(".lora_" in name for name in parameters):
        return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    persistent = model.state_dict().keys()
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def save_checkpoint(folder: Path, state: TrainState, config: dict[str, Any]) -> Path:
    """Write `folder/step-N`, with `config` as its config.json. Raises InputError; nothing half-written remains. Of
    several processes all must call this, and the first writes."""
    final, latest = folder / f"step-{state.step}", find_latest(folder)
    optimizer, weights = state.optimizer.state_dict(), collect(collect_tensors(state.model))
    if get_rank() > 0:
        return final
    previous = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
    advice = f"{previous}: free some space and continue with --resume"
    with atomic_directory(final, advice, make_parents=False) as temporary:
        save_file(detach(optimizer), temporary / "optimizer.safetensors", {"format": "pt"})
        values: dict[str, Any] = {"step": state.step, "stream_state": state.stream_state, "best": state.best}
        if state.scaler.is_enabled():
            values["scaler"] = state.scaler.state_dict()
        if state.timer is not None:
            values["timer"] = to_json(state.timer.get_state())
        write_model(temporary, state.model, config, values, weights)
    return final


def write_model(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    state: dict[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that using a model needs: weights (of a model that processes share, those that were collected),
    configs and the model's own files, and their checksums."""
    files = {"config.json": json.dumps(config, indent=2), "state.json": json.dumps(state, indent=2)}
    tensors = collect_tensors(model) if weights is None else weights
    save_file(detach(tensors), folder / "model.safetensors", {"format": "pt"})
    for name, text in (getattr(model, "files", {}) | files).items():
        (folder / name).write_bytes(text.encode())
    write_checksums(folder)


def rewrite_model(folder: Path, model: nn.Module) -> None:
    """Write a checkpoint again with the weights and files that its model has now. Raises InputError; the old one
    remains then."""
    with atomic_directory(folder) as temporary:
        for path in folder.iterdir():
            shutil.copyfile(path, temporary / path.name)
        state = read_json(folder / "state.json")
        state.pop("files", None)  # checksums of an earlier version
        write_model(temporary, model, read_json(folder / "config.json"), state)


def detach(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@contextmanager
def atomic_directory(
    final: Path, advice: str = "free some space and try again", make_parents: bool = True
) -> Generator[Path]:
    """Yield a temporary folder that becomes `final` if the block succeeds, and is removed if it fails. Without
    `make_parents`, at most the folder that holds it is made: a run that was removed is not made again."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        final.parent.mkdir(parents=make_parents, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        remove_directory(final)
        os.replace(temporary, final)
        sync_to_disk(final.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"could not save {final}: {error}; {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(folder: Path) -> None:
    """Rename, then delete: a kill during the deletion must not leave half a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.lstrip('.')}.{os.getpid()}.old")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# --- choosing ---


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; damaged ones too."""
    paths = [path for path in folder.glob("step-*") if re.fullmatch(r"step-[0-9]{1,18}", path.name) and path.is_dir()]
    return sorted(paths, key=lambda path: int(path.name[5:]))


def find_latest(folder: Path) -> Path | None:
    return next(reversed(list_checkpoints(folder)), None)


def find_best(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss (as the latest records it), or the average of the last ones
    if that is lower; the latest if none has been validated."""
    latest = find_latest(folder)
    if latest is None:
        return None
    state, average = read_state(latest), folder / AVERAGE_DIR
    if (average / "state.json").is_file():
        averaged, val_loss = read_state(average), state["best"].get("val_loss", math.inf)
        if averaged["step"] == state["step"] and averaged["best"]["val_loss"] < val_loss:
            return average
    best = folder / f"step-{state['best'].get('step')}"
    return best if best.is_dir() else latest


def prune_checkpoints(folder: Path, keep_last: int = 1) -> None:
    """Keep the best and the last checkpoints; remove the others and what a kill left half-written."""
    for path in list_superfluous(folder, keep_last):
        remove_directory(path)


def list_superfluous(folder: Path, keep_last: int = 1) -> list[Path]:
    """Return what `prune_checkpoints` removes; of the average of the last checkpoints nothing, of damaged ones those
    whose step has been saved again."""
    paths = list_checkpoints(folder)
    best = read_state(paths[-1])["best"].get("step") if paths else None
    damaged = [path for path in folder.glob(f"step-*{DAMAGED}") if path.with_suffix("").is_dir()]
    old = [path for path in paths[:-keep_last] if path.name != f"step-{best}"]
    return old + sorted(damaged) + sorted(folder.glob(".step-*"))


def set_aside_damaged(folder: Path) -> None:
    """Rename damaged checkpoints if an intact one remains, and say from which one a training continues. Raises
    InputError if none is intact: a run that has been trained never starts again at step 0 in silence."""
    paths, errors = list_checkpoints(folder), {}
    for path in paths:
        try:
            verify_checkpoint(path)
        except InputError as error:
            errors[path] = error
    if not errors:
        return
    intact = [path for path in paths if path not in errors]
    if not intact:
        path, error = errors.popitem()
        raise InputError(f"{error}; the run has no other checkpoint: remove {path} to begin again at step 0")
    for path, error in errors.items():
        report_notice(f"a damaged checkpoint is set aside as {path.name}{DAMAGED}, going on from {intact[-1]}: {error}")
        remove_directory(damaged := path.with_name(path.name + DAMAGED))
        os.replace(path, damaged)


def verify_checkpoint(folder: Path) -> None:
    """Check everything in a checkpoint that can be checked without its model. Raises InputError."""
    read_state(folder)
    verify_files(folder)
    for name in ("model.safetensors", "optimizer.safetensors"):
        with open_safetensors(folder / name):
            pass


# --- reading ---


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json, under today's names. Raises InputError."""
    path = folder / "state.json"
    state = {RENAMED_STATE.get(name, name): value for name, value in read_json(path).items()}
    for name, kind in {"step": int, "stream_state": dict, "best": dict}.items():
        if not isinstance(state.get(name), kind):
            raise InputError(f"{path}: {name} is {state.get(name)!r}, not {kind.__name__}")
    return state


@contextmanager
def open_safetensors(path: Path) -> Generator[Any]:
    """Open a safetensors file; its header is checked against its size before any tensor is read. Raises InputError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: a checkpoint needs it") from None
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise InputError(f"{path} ({size:,} bytes) is not a complete safetensors file: {error}") from None


def match_names(stored: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Map the names that a model expects to the names in a file, which may be those of an earlier version."""
    expected, matched = set(expected), {}
    for name in stored:
        today = name
        if name not in expected:
            for pattern, replacement in RENAMED_TENSORS.items():
                today = re.sub(pattern, replacement, today)
        matched[today] = name
    return matched


def check_model(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Compare the model that a config describes with a checkpoint's tensors before memory is allocated: `build` is
    called on the meta device, and may register little more than as many parameters as there are. Raises InputError."""
    path = folder / "model.safetensors"
    with open_safetensors(path) as file:
        most = 4 * len(file.keys()) + 64  # frozen weights that adapters leave out, and tied ones
        try:
            with torch.device("meta"), SkipInit(), limit_parameters(most):
                model = build()
        except (RuntimeError, TypeError, OverflowError) as error:
            if "meta" in str(error):  # a recipe that computes with its weights: it is checked when they are loaded
                return
            reason = f"{first_line(error)}; {path.name} has {len(file.keys()):,} tensors"
            raise InputError(f"{folder / 'config.json'}: no model can be built from it ({reason})") from error
        match_tensors(path, file, collect_tensors(model))


def match_tensors(path: Path, file: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in an open file of each tensor. Raises InputError naming the first that does not match."""
    names = match_names(file.keys(), tensors)
    if missing := sorted(tensors.keys() - names.keys()):
        raise InputError(f"{path} lacks {missing[0]} (and {len(missing) - 1} more): it belongs to another model")
    if extra := sorted(names.keys() - tensors.keys()):
        raise InputError(f"{path} has {extra[0]} (and {len(extra) - 1} more) that this model does not know")
    for name, tensor in tensors.items():
        shape = file.get_slice(names[name]).get_shape()
        if list(shape) != list(tensor.shape):
            raise InputError(f"{path}: {name} has shape {shape}, the model expects {list(tensor.shape)}")
    return names


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fill a model from `folder/model.safetensors`. Raises InputError naming the first tensor that does not match or
    is not finite."""
    path, tensors = folder / "model.safetensors", collect_tensors(model)
    with open_safetensors(path) as file, torch.no_grad():
        names = match_tensors(path, file, tensors)
        for name, tensor in tensors.items():
            fill(tensor, file.get_tensor(names[name]))
    check_loaded(model, path)


def check_loaded(model: nn.Module, path: Path) -> None:
    """Raise InputError if weights that were read from `path` are not finite."""
    if name := find_not_finite(model):
        advice = "that training diverged: use an earlier checkpoint, or train again with a lower --train.lr"
        raise InputError(f"{path}: {name} holds nan or inf; {advice}")


def load_average(folders: Sequence[Path], model: nn.Module) -> None:
    """Fill a model with the average of several of its checkpoints, one tensor at a time. Raises InputError."""
    for folder in folders:
        verify_files(folder, but="optimizer.safetensors")
    load_weights(folders[0], model)
    with ExitStack() as stack, torch.no_grad():
        files = [stack.enter_context(open_safetensors(folder / "model.safetensors")) for folder in folders]
        tensors = collect_tensors(model)
        names = [match_names(file.keys(), tensors) for file in files]
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                total = sum(file.get_tensor(stored[name]).double() for file, stored in zip(files, names))
                tensor.copy_(total / len(files))


def read_timer(folder: Path | None) -> TimerState | None:
    """Return what a checkpoint stores of the timer; None if training did not follow the clock. Raises InputError."""
    values = None if folder is None else read_state(folder).get("timer")
    return None if values is None else parse_dataclass(TimerState, values, f"{folder}/state.json: timer")


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restore everything from a checkpoint that was verified. Raises InputError."""
    load_weights(folder, state.model)
    path = folder / "optimizer.safetensors"
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        state.optimizer.load_state_dict(tensors)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} belongs to another model or optimizer, which a run cannot change: {error}") from None
    values = read_state(folder)
    state.step, state.stream_state, state.best = values["step"], values["stream_state"], values["best"]
    if not (folder.parent / f"step-{state.best.get('step')}").is_dir():  # it was damaged and set aside
        state.best = {}
    if state.scaler.is_enabled() and "scaler" in values:
        try:
            state.scaler.load_state_dict(values["scaler"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{folder / 'state.json'}: scaler is not the state of a GradScaler: {error}") from None


# --- starting from another model ---


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of the weights in a checkpoint: a file, or the `model*.safetensors` of a folder."""
    return sha256_file(*([path] if path.is_file() else sorted(path.glob("model*.safetensors"))))


@torch.no_grad()
def initialize_from(model: nn.Module, source: nn.Module, where: str, lora: LoRAConfig) -> None:
    """Start from another model's weights, with adapters on them if `lora` has a rank.

    A head that another task needs anew keeps its fresh values and is trained; so do `optional_parts` that the source
    lacks whole, and further rows of `extended_tensors`, around the mean of the others. Raises InputError naming the
    first other tensor that does not match; `where` says where the source comes from.
    """
    tensors, stored = collect_tensors(model), collect_tensors(source)
    missing_keys = [name for name in tensors if name not in stored or stored[name].shape != tensors[name].shape]
    new_parts = [part for part in getattr(model, "optional_parts", ()) if not any(n.startswith(part) for n in stored)]
    for name in missing_keys:
        if name in getattr(model, "extended_tensors", ()) and is_longer(tensors[name], stored.get(name)):
            n_rows = len(stored[name])
            tensors[name][:n_rows] = stored[name]
            tensors[name][n_rows:] += stored[name].mean(0)  # unlike each other, and likely like any token
        elif not name.startswith(("head", *new_parts)):
            shape = list(stored[name].shape) if name in stored else "no such tensor"
            here = f"{name} has shape {list(tensors[name].shape)} here"
            raise InputError(f"{where} does not match: {here}, there {shape}")
    for name in tensors.keys() - set(missing_keys):
        tensors[name].copy_(stored[name])
    if lora.rank:
        add_lora(model, lora, missing_keys)


def is_longer(tensor: Tensor, stored: Tensor | None) -> bool:
    return stored is not None and tensor.shape[1:] == stored.shape[1:] and len(tensor) > len(stored)
