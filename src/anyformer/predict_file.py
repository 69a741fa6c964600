"""Answer a file of inputs: the rows of a file go in, the same rows with predictions come out, in bounded memory."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from .data.io.regular_file import check_regular
from .data.tables.read import find_media, is_missing
from .data.tables.stream import OUTPUT_SUFFIXES, RowOrError, RowReader, RowWriter
from .errors import InputError, suggest
from .events import report_progress
from .parsing import show_value
from .recipe import FileInput, Recipe, SupportsBatchPredict, SupportsFileInput, SupportsTablePredict
from .training.config import MAX_BATCH
from .training.run_directory import atomic_file, report_write_errors

WINDOW_BATCHES = 16  # read ahead, so that inputs of similar length share a batch
ECHOES = ("input", "prompt", "truth")  # parts of an answer that the row holds already

Row = dict[str, Any]
Answer = Row | InputError


def predict_file(
    recipe: Recipe,
    model: Any,
    config: Any,
    file: Path,
    out: Path,
    batch: int = 64,
    skip_broken: bool = False,
    settings: Row | None = None,
) -> Row:
    """Write the rows of a file, each with what the model predicts for it, to another file; of a recipe that answers a
    file as a whole (SupportsTablePredict), the rows that it predicts.

    Args:
        file: A csv, tsv, jsonl or parquet table with the columns that the recipe reads, or a text file with one input
            per line.
        out: A .csv, .tsv or .jsonl file, complete or not there. csv and tsv get the single values of an answer (label
            and probability, number, text; JSON where there are only lists), jsonl the full answer. A csv for a csv has
            its delimiter and decimal commas. A name that the rows have already gets "predicted_" in front.
        batch: Inputs that are answered together.
        skip_broken: Leave out rows that cannot be read or answered, instead of stopping at the first.
        settings: More of the request of every row: {"beam": 1}.

    Returns {"rows", "skipped"} and, where rows were left out, "first_skipped", why the first was.

    Raises:
        InputError: If a file or a row cannot be used.
    """
    settings = settings or {}
    check_arguments(file, out, batch, settings)
    if isinstance(recipe, SupportsTablePredict):
        predicted = recipe.predict_table(model, config, file, batch, settings)
        rows = ((place, {}, answer) for place, answer in predicted)
        return write_rows(rows, RowReader(file, ()).peek(), out, skip_broken)
    source = recipe.file_input(model, config) if isinstance(recipe, SupportsFileInput) else FileInput()
    reader = RowReader(file, source.columns, source.tsv_quotes)
    predict = select_predict(recipe, model, {**source.settings, **settings})
    size = batch if isinstance(recipe, SupportsBatchPredict) else 1
    rows = answer_rows(reader.rows(), lambda row: read_input(source, row, file.parent), predict, size)
    return write_rows(report_rows(rows, reader), reader, out, skip_broken)


def report_rows(rows: Iterator[tuple[str, Row, Answer]], reader: RowReader) -> Iterator[tuple[str, Row, Answer]]:
    for row in rows:
        report_progress("predicting", reader.done, reader.total)
        yield row


def write_rows(rows: Iterator[tuple[str, Row, Answer]], reader: RowReader, out: Path, skip_broken: bool) -> Row:
    """Write (place, row, answer) to a file and count them. Raises InputError, also if there are none."""
    result: Row = {"rows": 0, "skipped": 0}
    with report_write_errors(str(out)), atomic_file(out) as stream:
        writer = RowWriter(stream, out.suffix.lower(), reader)
        for place, row, answer in rows:
            if isinstance(answer, InputError):
                if not skip_broken:
                    raise answer
                result = {"first_skipped": str(answer)} | result | {"skipped": result["skipped"] + 1}
                continue
            check_finite(answer, place)
            writer.write(place, row, select_values(row, answer, is_flat=writer.delimiter is not None))
            result["rows"] += 1
        if not result["rows"]:
            first = result.get("first_skipped")
            file = reader.path
            raise InputError(f"no row of {file} can be used; the first: {first}" if first else f"{file}: holds no rows")
    return result


def check_arguments(file: Path, out: Path, batch: int, settings: Row) -> None:
    """Raise InputError for files that cannot be read or written, and for values that make no sense."""
    if not (isinstance(batch, int) and 1 <= batch <= MAX_BATCH):
        raise InputError(f"batch is {show_value(batch)}; it must be at least 1 and at most {MAX_BATCH:,}")
    if "input" in settings:
        raise InputError("request: the inputs are the rows of the file: leave 'input' out")
    check_regular(file)
    if out.suffix.lower() not in OUTPUT_SUFFIXES or out.is_dir():
        raise InputError(f"predictions go to a {', '.join(OUTPUT_SUFFIXES)} file, not {out}")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")
    if out.exists() and out.samefile(file):
        raise InputError(f"{out} is the file of the inputs, which is never overwritten: name another")


def read_input(source: FileInput, row: Row, folder: Path) -> Any:
    """Return the input that a row holds. Raises InputError where there is none."""
    name = source.columns[0]
    if not any(column in row for column in source.columns):
        raise InputError(f"there is no '{name}': {suggest(name, row)}")
    if source.read_row is not None:
        return source.read_row(row, folder)
    if is_missing(row[name]):
        raise InputError(f"{name} is empty")
    return find_media(folder, str(row[name])) if source.is_path else row[name]


# --- answers ---


def check_finite(value: Any, where: str) -> None:
    """Raise InputError if a number in an answer is nan or inf; `where` says whose answer it is."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}: its training diverged, or the input is too large to compute with")
    if not isinstance(value, dict | list | tuple):
        return
    parts = {k: x for k, x in value.items() if k not in ECHOES} if isinstance(value, dict) else dict(enumerate(value))
    with suppress(TypeError, OverflowError):  # there are others than numbers
        if math.isfinite(sum(parts.values())):  # much faster than one by one: a vector, probabilities
            return
    for name, part in parts.items():
        check_finite(part, f"{where}: {name}" if isinstance(value, dict) else where)


def select_predict(recipe: Recipe, model: Any, settings: Row) -> Callable[[list[Any]], list[Row]]:
    """Return what answers several inputs: the recipe's `predict_batch`, or `predict` for one after the other."""
    if isinstance(recipe, SupportsBatchPredict):
        return lambda inputs: recipe.predict_batch(model, inputs, settings)
    return lambda inputs: [select_result(recipe.predict(model, settings | {"input": value})) for value in inputs]


def select_result(answer: Row) -> Row:
    """Return the result for the only input of a request."""
    results = answer.get("results") or answer.get("samples") or [answer]
    return results[0] | ({"results": results} if len(results) > 1 else {})


def answer_rows(
    rows: Iterator[tuple[str, RowOrError]],
    read: Callable[[Row], Any],
    predict: Callable[[list[Any]], list[Row]],
    batch: int,
) -> Iterator[tuple[str, Row, Answer]]:
    """Yield (place, row, answer) in order; of a row that cannot be used, the error, which names the place."""
    while window := list(islice(rows, WINDOW_BATCHES * batch)):
        inputs: dict[int, Any] = {}
        answers: dict[int, Answer] = {}
        for i, (place, row) in enumerate(window):
            try:
                if isinstance(row, InputError):
                    answers[i] = row
                else:
                    inputs[i] = read(row)
            except InputError as error:
                answers[i] = InputError(f"{place}: {error}")
        order = sorted(inputs, key=lambda i: measure_length(inputs[i]))
        for start in range(0, len(order), batch):
            indices = order[start : start + batch]
            results = answer_batch(predict, [inputs[i] for i in indices])
            answers |= {i: locate(window[i][0], result) for i, result in zip(indices, results, strict=True)}
        for i, (place, row) in enumerate(window):
            yield place, {} if isinstance(row, InputError) else row, answers[i]


def measure_length(value: Any) -> int:
    """Return the length of a text, or of the longest list in a row."""
    if isinstance(value, dict):
        return max((len(part) for part in value.values() if isinstance(part, list)), default=0)
    return len(value) if isinstance(value, str) else 0


def answer_batch(predict: Callable[[list[Any]], list[Row]], inputs: list[Any]) -> list[Answer]:
    """Answer inputs together; a batch with one that cannot be answered is halved until that one is alone."""
    try:
        return [*predict(inputs)]
    except InputError as error:
        if len(inputs) == 1:
            return [error]
    middle = len(inputs) // 2
    return answer_batch(predict, inputs[:middle]) + answer_batch(predict, inputs[middle:])


def locate(place: str, answer: Answer) -> Answer:
    """Put the place in front of an error, in which a recipe calls the only input of a request "input 0"."""
    if isinstance(answer, InputError):
        return InputError(f"{place}: " + re.sub(r"^input 0\b[,:]? ?", "", str(answer)))
    return answer


def select_values(row: Row, answer: Row, is_flat: bool) -> Row:
    """Return what an answer adds to its row; a name that the row has already gets "predicted_" in front.

    `is_flat`: only single values; of an answer that holds one for each of several targets, those as TARGET_NAME.
    """
    values: Row = {}
    for name, value in answer.items():
        if is_flat and isinstance(value, dict) and is_nested(answer):
            values |= {f"{name}_{key}": v for key, v in value.items() if key not in ECHOES}
        elif name not in ECHOES:
            values[name] = value
    if is_flat:  # lists and objects, as JSON, only where there is nothing else
        values = {name: value for name, value in values.items() if not isinstance(value, list | dict)} or values
    return {f"predicted_{name}" if name in row else name: value for name, value in values.items()}


def is_nested(answer: Row) -> bool:
    """Whether an answer holds one for each of several targets, by name."""
    return all(isinstance(value, dict) for value in answer.values())
