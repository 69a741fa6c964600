"""Answers of `predict` as text for a person, in whatever form a recipe gives them."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

TABLE_ROWS = 6  # of an answer that is a table
MAX_INPUT_CHARS = 200


def format_prediction(answer: Mapping[str, Any]) -> list[str]:
    """Format an answer of `predict` for a person: samples as they are, with their notes; results one per line."""
    if answer.get("samples"):
        return [format_sample(sample) for sample in answer["samples"]]
    if answer.get("results") == []:  # there was nothing to ask
        return []
    return ["\n".join(format_result(result) for result in answer.get("results") or [answer])]


def format_sample(sample: Mapping[str, Any]) -> str:
    """Format a text as it is, with its notes; where it should be another one, after its prompt and with the truth."""
    text = format_result({**sample, "input": sample["prompt"]}) if "truth" in sample else sample["text"]
    return "\n".join([text, *(f"note: {note}" for note in sample.get("notes", ()))])


def format_result(result: Any) -> str:
    """Format a result: "input → label, probability 0.93 (truth: label)"; of several targets each by its name;
    lists of the same length as the columns of a table; pictures and sounds by their size; anything else as JSON."""
    if not isinstance(result, dict) or not result:
        return json.dumps(result, ensure_ascii=False)
    if "png" in result:
        return f"{shorten(result['input'] or 'a picture')} → PNG, {len(result['png']):,} characters of base64"
    if "wav" in result:
        return f"{shorten(result['input'])} → WAV, {result['seconds']:.2f} s"
    answer = result.get("text", result.get("label", result.get("value")))
    if isinstance(answer, str | int | float):
        text = format_value(answer)
        text += f", probability {result['probability']:.2f}" if "probability" in result else ""
        text += f" (truth: {format_value(result['truth'])})" if "truth" in result else ""
        return f"{shorten(result['input'])} → {text}" if isinstance(result.get("input"), str) else text
    if columns := select_columns(result):
        facts = [f"{name} {value}" for name, value in result.items() if isinstance(value, str | int | float)]
        return ", ".join([*facts, f"{max(map(len, columns.values()))} values"]) + "\n" + format_table(columns)
    if all(isinstance(value, dict) for value in result.values()):
        return "; ".join(f"{name}: {format_result(value)}" for name, value in result.items())
    return json.dumps(result, ensure_ascii=False)


def format_value(value: Any) -> str:
    """Format a number with four digits, and no exponent where it is usual to have none; anything else as it is."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_INPUT_CHARS else f"{text[:MAX_INPUT_CHARS]}…"


def select_columns(result: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Return the lists of an answer that belong together, by name; of lists by name (quantiles) the first and the last.
    None if there are no two of them, or if they hold more than single values."""
    columns: dict[str, Sequence[Any]] = {}
    for name, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
            ends = dict.fromkeys([next(iter(value)), next(reversed(value))])
            columns |= {f"{name} {key}": value[key] for key in ends}
        elif isinstance(value, list):
            columns[name] = value
    lengths = [len(column) for column in columns.values()]
    is_flat = not any(isinstance(cell, list | dict) for column in columns.values() for cell in column)
    return columns if len(columns) > 1 and lengths[:1] * 2 == lengths[:2] and max(lengths) > 1 and is_flat else {}


def format_table(columns: Mapping[str, Sequence[Any]]) -> str:
    """Format columns below their names, of long ones the first rows."""
    length = max(map(len, columns.values()))
    rows = [*zip_longest(*columns.values())][:TABLE_ROWS]
    cells = [[*columns], *([format_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([*lines, *([f"... {length - len(rows)} more"] if length > len(rows) else [])])


def format_cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)
