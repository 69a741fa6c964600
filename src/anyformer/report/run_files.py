"""Files of a run directory, besides its metrics. None is trusted: what is missing or malformed is left out."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE_HEADING = re.compile(r"---\s*(.+?)\s*---\s*")  # --- step 250 · temperature 0.8 ---
MAX_OLD_SAMPLES = 30


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is none."""
    try:
        return as_mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def as_mapping(value: object) -> dict[str, Any]:
    """Return the value if it is a dict, else {}."""
    return value if isinstance(value, dict) else {}


def find_key(tree: Mapping[str, Any], key: str) -> Any:
    """Return the first value under `key` in nested dicts, or None."""
    if key in tree:
        return tree[key]
    branches = (find_key(branch, key) for branch in tree.values() if isinstance(branch, dict))
    return next((value for value in branches if value is not None), None)


def read_samples(path: Path) -> list[tuple[str, str]]:
    """Return (heading, text) of the samples of a training, newest first; of old ones an even selection."""
    if not path.is_file():
        return []
    sections: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        heading = SAMPLE_HEADING.fullmatch(line)
        if heading:
            sections.append((heading[1], []))
        elif sections or line.strip():
            sections = sections or [("", [])]
            sections[-1][1].append(line)
    samples = [(heading, "\n".join(lines).strip("\n")) for heading, lines in reversed(sections)]
    stride = math.ceil(max(len(samples) - 1, 1) / MAX_OLD_SAMPLES)
    return samples[:1] + samples[1::stride]


def list_checkpoints(run: Path) -> list[dict[str, Any]]:
    """Return {"name", "step", "size" in bytes, "best"} of each checkpoint, by step."""
    checkpoints: list[dict[str, Any]] = []
    for folder in (run / "checkpoints").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if folder.is_dir() and number.isdecimal():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            checkpoints.append({"name": folder.name, "step": int(number), "size": size})
    checkpoints.sort(key=lambda checkpoint: checkpoint["step"])
    best: Any = None
    for checkpoint in checkpoints:
        state = read_mapping(run / "checkpoints" / checkpoint["name"] / "state.json")
        best = as_mapping(state.get("best")).get("step", best)
    return [checkpoint | {"best": checkpoint["step"] == best} for checkpoint in checkpoints]


def last_checkpoint(run: Path) -> Path:
    """Return the folder of the last checkpoint; the run itself if there is none."""
    return next((run / "checkpoints" / c["name"] for c in reversed(list_checkpoints(run))), run)


def read_model_size(run: Path, setup: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the number of parameters and the size of the vocabulary: from config.json, else from a checkpoint."""
    model = as_mapping(setup.get("model"))
    parameters, vocab_size = model.get("parameters"), model.get("vocab_size")
    checkpoint = last_checkpoint(run)
    if vocab_size is None:
        vocab = find_key(as_mapping(read_mapping(checkpoint / "tokenizer.json").get("model")), "vocab")
        vocab_size = len(vocab) if isinstance(vocab, dict | list) else None
    return _as_count(parameters) or _count_weights(checkpoint / "model.safetensors"), _as_count(vocab_size)


def _as_count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 1 else None


def _count_weights(path: Path) -> int | None:
    """Count the numbers in a safetensors file by its header: 8 bytes of length, then the shape of every tensor."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return None
            header = json.loads(file.read(length))
        return _as_count(sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


# --- tables of a report ---


def read_schema(checkpoint: Path) -> list[list[str]]:
    """Return the columns of a table model, fields and then targets: [name, role, kind, details]."""
    schema, rows = read_mapping(checkpoint / "schema.json"), []
    for role, table in (("reads", "fields"), ("predicts", "targets")):
        for name, options in as_mapping(schema.get(table)).items():
            rows.append([str(name), role, str(as_mapping(options).get("kind", "")), _describe_column(options)])
    return rows


def _describe_column(options: Any) -> str:
    """Describe a column: its values, its mean and deviation, its other options."""
    options = {name: value for name, value in as_mapping(options).items() if name not in ("kind", "words")}
    values, mean, std = (options.pop(name, None) for name in ("values", "mean", "std"))
    parts = [f"{name} {value}" for name, value in options.items() if isinstance(value, int | float | str) and value]
    if isinstance(values, list):
        parts.append(", ".join(map(str, values[:6])) + (f" and {len(values) - 6} others" if len(values) > 6 else ""))
    for name, numbers in (("mean", mean), ("deviation", std)):
        if isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], int | float):
            parts.append(f"{name} {numbers[0]:.4g}")
    return "; ".join(parts)


def read_plan(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the size was chosen: {"minutes", "low", "high", "rows": [[size, batch, speed, loss, chosen]]}."""
    plan, shape = as_mapping(setup.get("plan")), as_mapping(as_mapping(setup.get("config")).get("model"))
    rows = []
    for size in plan.get("sizes") or ():
        try:
            is_chosen = all(size[name] == shape.get(name) for name in ("dim", "n_layer", "context"))
            cells = [f"{size['n_layer']} layers of {size['dim']}, context {size['context']}", f"{size['batch']}"]
            cells += [f"{size['tokens_per_second']:,.0f}", "{:.2f} to {:.2f}".format(*size["expects"])]
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        rows.append([*cells, "chosen" if is_chosen else ""])
    band = plan.get("expects")
    low, high = band if isinstance(band, list) and len(band) == 2 else ("?", "?")
    return {"minutes": plan.get("minutes"), "low": low, "high": high, "rows": rows} if rows else {}
