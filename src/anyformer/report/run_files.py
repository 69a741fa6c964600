"""Files of a run directory, besides its metrics. None is trusted: what is missing or malformed is left out."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.io.checks import read_json
from ..errors import InputError
from ..training.checkpoints import open_safetensors

MAX_OLD_SAMPLES = 30


def read_content(path: Path, kind: type = dict) -> Any:
    """Return the object or list in a JSON file; an empty one if it cannot be read."""
    try:
        return read_json(path, kind=kind)
    except InputError:
        return kind()


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
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    # --- step 250 · temperature 0.8 ---
    first, *parts = re.split(r"^---[ \t]*(.+?)[ \t]*---[ \t]*$", text, flags=re.MULTILINE)
    samples = [("", first)] if first.strip() else []
    samples += zip(parts[::2], parts[1::2], strict=True)
    samples = [(heading, text.strip("\n")) for heading, text in reversed(samples)]
    stride = math.ceil(max(len(samples) - 1, 1) / MAX_OLD_SAMPLES)
    return samples[:1] + samples[1::stride]


def read_model_size(checkpoint: Path) -> tuple[int | None, int | None]:
    """Return the number of parameters and the size of the vocabulary."""
    vocab = find_key(as_mapping(read_content(checkpoint / "tokenizer.json").get("model")), "vocab")
    vocab_size = len(vocab) if isinstance(vocab, dict | list) else None
    try:
        with open_safetensors(checkpoint / "model.safetensors") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not iterable)
    except InputError:
        return None, vocab_size
    return sum(map(math.prod, shapes)), vocab_size


def read_schema(checkpoint: Path) -> list[list[str]]:
    """Return the columns of a table model, fields and then targets: [name, role, kind, details]."""
    schema = read_content(checkpoint / "schema.json")
    columns = [
        (name, role, as_mapping(options))
        for role, table in (("reads", "fields"), ("predicts", "targets"))
        for name, options in as_mapping(schema.get(table)).items()
    ]
    return [[name, role, str(options.get("kind", "")), _describe_column(options)] for name, role, options in columns]


def _describe_column(options: Mapping[str, Any]) -> str:
    """Describe a column: its values, its mean and deviation, its other options."""
    hidden = ("kind", "words", "values", "mean", "std")
    values, scalars = options.get("values"), {name: x for name, x in options.items() if name not in hidden}
    parts = [f"{name} {value}" for name, value in scalars.items() if isinstance(value, int | float | str) and value]
    if isinstance(values, list):
        parts.append(", ".join(map(str, values[:6])) + (f" and {len(values) - 6} others" if len(values) > 6 else ""))
    for name, numbers in (("mean", options.get("mean")), ("deviation", options.get("std"))):
        if isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], int | float):
            parts.append(f"{name} {numbers[0]:.4g}")
    return "; ".join(parts)


def read_plan(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the size was chosen: {"minutes", "low", "high", "expectation": "predicted loss" or "steps", "rows":
    [[size, batch, speed, expectation, chosen]]}; low and high are "" where no loss is predicted."""
    plan, config = as_mapping(setup.get("plan")), as_mapping(setup.get("config"))
    shape = as_mapping(config.get("model") or config.get("decoder"))
    rows = []
    for size in plan.get("sizes") or ():
        try:
            is_chosen = all(size[name] == shape.get(name) for name in ("dim", "n_layer", "context"))
            cells = [f"{size['n_layer']} layers of {size['dim']}, context {size['context']}", f"{size['batch']}"]
            cells += [f"{size['tokens_per_second']:,.0f}"]
            cells += ["{:.2f} to {:.2f}".format(*size["expects"]) if "expects" in size else f"{size['steps']:,}"]
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        rows.append([*cells, "chosen" if is_chosen else ""])
    band = plan.get("expects")
    low, high = band if isinstance(band, list) and len(band) == 2 else ("", "")
    if not rows:
        return {}
    expectation = "steps" if low == "" else "predicted loss"
    return {"minutes": plan.get("minutes"), "low": low, "high": high, "expectation": expectation, "rows": rows}
