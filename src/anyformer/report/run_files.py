"""What lies in a run directory besides its metrics, read without trust: what is missing or broken is left out."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE = re.compile(r"---\s*(.+?)\s*---\s*")  # --- step 250 · temperature 0.8 ---
OLD_SAMPLES = 30  # of the older samples, this many are kept on the page, spread over the run


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} when there is none or it is not whole."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def find(tree: Mapping[str, Any], key: str) -> Any:
    """The first value under `key` anywhere in nested dicts, or None."""
    if key in tree:
        return tree[key]
    inner = (find(branch, key) for branch in tree.values() if isinstance(branch, dict))
    return next((value for value in inner if value is not None), None)


def read_samples(path: Path) -> list[tuple[str, str]]:
    """(heading, text) of what the model said during training, newest first, old ones thinned evenly."""
    if not path.is_file():
        return []
    found: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        heading = SAMPLE.fullmatch(line)
        if heading:
            found.append((heading[1], []))
        elif found or line.strip():
            found = found or [("", [])]
            found[-1][1].append(line)
    samples = [(heading, "\n".join(lines).strip("\n")) for heading, lines in reversed(found)]
    stride = math.ceil(max(len(samples) - 1, 1) / OLD_SAMPLES)
    return samples[:1] + samples[1::stride]


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """The kept checkpoints in the order of their steps: name, step, bytes, and whether it is the best."""
    found: list[dict[str, Any]] = []
    best: Any = None
    for folder in (run / "checkpoints").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if folder.is_dir() and number.isdecimal():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            found.append({"name": folder.name, "step": int(number), "size": size})
    found.sort(key=lambda checkpoint: checkpoint["step"])
    for one in found:
        best = mapping(read_json(run / "checkpoints" / one["name"] / "state.json").get("best")).get("step", best)
    return [{**one, "best": one["step"] == best} for one in found]


def built(run: Path, setup: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(parameters, size of the vocabulary) of the model as it was built: noted in config.json, else in a checkpoint.

    The configuration does not say: a vocabulary may come from the data, and the parameters follow from both.
    """
    noted = mapping(setup.get("model"))
    parameters, vocabulary = noted.get("parameters"), noted.get("vocab_size")
    last = next((run / "checkpoints" / one["name"] for one in reversed(checkpoints(run))), run)
    if vocabulary is None:
        words = find(mapping(read_json(last / "tokenizer.json").get("model")), "vocab")
        vocabulary = len(words) if isinstance(words, dict | list) else None
    return _count(parameters) or _weights(last / "model.safetensors"), _count(vocabulary)


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 1 else None


def _weights(path: Path) -> int | None:
    """The numbers in a safetensors file, by its header: 8 bytes of length, then the shape of every tensor as JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return None
            header = json.loads(file.read(length))
        return _count(sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
