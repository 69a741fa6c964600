"""Checkpoints: safetensors and JSON, written whole or not at all, read with suspicion.

A checkpoint is a folder `step-N` with `model.safetensors`, `config.json`, the model's own files (`tokenizer.json`),
`optimizer.safetensors` and `state.json`. It is written under a temporary name, forced to disk and renamed, so that a
kill, a full disk or a power cut leaves the last good one. No pickle is ever read.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from .loop import TrainState

AVERAGE_DIR = "mean"  # the folder of the mean of the last checkpoints


def collect_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything to save, each once: tied weights share a tensor and appear under their first name. Beside adapters,
    what does not learn is another checkpoint's to keep."""
    own = dict(model.named_parameters(remove_duplicate=True))
    if any(".lora_" in name for name in own):
        return {name: parameter for name, parameter in own.items() if parameter.requires_grad}
    persistent = model.state_dict().keys()
    return own | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def save_checkpoint(folder: Path, state: TrainState, config: dict[str, Any]) -> Path:
    """Write `folder/step-N`. Raises InputError if the disk refuses; nothing half-written stays behind."""
    final = folder / f"step-{state.step}"
    kept = find_latest(folder)
    good = f"the last good checkpoint is {kept}" if kept else "there is no earlier checkpoint"
    with atomic_directory(final, f"{good}: free some space and go on with --resume") as temporary:
        save_file(detached(state.optimizer.state()), temporary / "optimizer.safetensors", {"format": "pt"})
        rest = {"step": state.step, "place": state.stream_state, "best": state.best}
        write_model(temporary, state.model, config, rest)
    return final


def write_model(folder: Path, model: nn.Module, config: dict[str, Any], state: dict[str, Any]) -> None:
    """The weights, what belongs beside them, and the seals of that: all that a checkpoint needs to be used."""
    own = {name: text.encode() for name, text in getattr(model, "files", {}).items()}
    seals = {name: hashlib.sha256(content).hexdigest() for name, content in own.items()}
    save_file(detached(collect_tensors(model)), folder / "model.safetensors", {"format": "pt"})
    for name, values in {"config.json": config, "state.json": state | {"files": seals}}.items():
        own[name] = json.dumps(values, indent=2).encode()
    for name, content in own.items():
        (folder / name).write_bytes(content)


def detached(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in named.items()}


@contextmanager
def atomic_directory(final: Path, advice: str = "free some space and try again") -> Generator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and vanishes when it does not."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
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
    """Out of sight first, in one stroke: a kill in the middle of deleting must not leave half a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.lstrip('.')}.{os.getpid()}.old")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sync_to_disk(path: Path) -> None:
    """Force a file or folder to disk (folders cannot be opened on Windows, nor need they be)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def find_latest(folder: Path) -> Path | None:
    return next(reversed(list_checkpoints(folder)), None)


def find_best(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, as the latest one remembers it, or the mean of the last; else the
    latest."""
    last = find_latest(folder)
    if last is None:
        return None
    state, mean = read_state(last), folder / AVERAGE_DIR
    if (mean / "state.json").is_file():
        found = read_state(mean)
        if found["step"] == state["step"] and found["best"]["val_loss"] < state["best"].get("val_loss", math.inf):
            return mean
    chosen = folder / f"step-{state['best'].get('step')}"
    return chosen if chosen.is_dir() else last


def prune_checkpoints(folder: Path, last: int = 1) -> None:
    """Keep the best and the last (one or more), and nothing that was left half-written by a kill."""
    state = read_state(newest) if (newest := find_latest(folder)) else {"best": {}}
    keep = {folder / f"step-{state['best'].get('step')}", *list_checkpoints(folder)[-last:]}
    for path in list_checkpoints(folder):
        if path not in keep:
            remove_directory(path)
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} should hold a JSON object, found {type(found).__name__}")
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """step, place and best of a checkpoint. Raises InputError."""
    found = read_json(folder / "state.json")
    for name, kind in {"step": int, "place": dict, "best": dict}.items():
        if not isinstance(found.get(name), kind):
            raise InputError(f"{folder / 'state.json'}: {name} is {found.get(name)!r}, not {kind.__name__}")
    return found


@contextmanager
def open_safetensors(path: Path) -> Generator[Any]:
    """A safetensors file, its header checked against its size before anything is read. Raises InputError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: a checkpoint needs it") from None
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise InputError(f"{path} ({size:,} bytes) is not a whole safetensors file: {error}") from None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fill the model from `folder/model.safetensors`. Raises InputError naming the first key or shape that differs."""
    path, wanted = folder / "model.safetensors", collect_tensors(model)
    verify_files(folder)
    with open_safetensors(path) as file:
        found = set(file.keys())
        if missing := sorted(wanted.keys() - found):
            raise InputError(f"{path} lacks {missing[0]} (and {len(missing) - 1} more): it belongs to another model")
        if extra := sorted(found - wanted.keys()):
            raise InputError(f"{path} has {extra[0]} (and {len(extra) - 1} more) that this model does not know")
        for name, tensor in wanted.items():
            shape = file.get_slice(name).get_shape()
            if list(shape) != list(tensor.shape):
                raise InputError(f"{path}: {name} has shape {shape}, the model expects {list(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(file.get_tensor(name))


def load_average(folders: Sequence[Path], model: nn.Module) -> None:
    """Fill the model with the mean of several checkpoints of it, one tensor at a time. Raises InputError."""
    load_weights(folders[0], model)
    with ExitStack() as stack, torch.no_grad():
        files = [stack.enter_context(open_safetensors(folder / "model.safetensors")) for folder in folders]
        for name, tensor in collect_tensors(model).items():
            if tensor.is_floating_point():
                total = torch.zeros(tensor.shape, dtype=torch.float64)
                for file in files:
                    total += file.get_tensor(name)
                tensor.copy_(total / len(files))


def verify_files(folder: Path) -> None:
    """The files beside the weights are those that were saved with them: another vocabulary of the same size would load
    and talk nonsense."""
    for name, seal in read_json(folder / "state.json").get("files", {}).items():
        path = folder / Path(name).name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != seal:
            raise InputError(f"{path} is not the file that these weights were trained with: bring the old one back")


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Put the state back where the checkpoint left it."""
    load_weights(folder, state.model)
    with open_safetensors(folder / "optimizer.safetensors") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        state.optimizer.load(found)
    except (ValueError, IndexError) as error:
        path = folder / "optimizer.safetensors"
        raise InputError(f"{path} belongs to another model or optimizer, which a run cannot change: {error}") from None
    rest = read_state(folder)
    state.step, state.stream_state, state.best = rest["step"], rest["place"], rest["best"]
