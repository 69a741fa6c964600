"""Files in, files out: rows per second one by one and in batches, for texts and for a table.

    python -m bench.inference.file_prediction
    python -m bench.inference.file_prediction --rows 2000 --seconds 5

"one by one" calls `predict` for each row, without a file; "batched" is `predict_file`, from file to file. The models
are those of the presets, after a single step: what they have learned does not change how long they take.
"""

import csv
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer.data.text.labeled import read_labeled
from anyformer.recipes import classify, multimodal
from bench._common import make_parser, train_to_end


def read_rows(name: str, config: Any, model: Any, count: int) -> list[dict[str, Any]]:
    """Return `count` rows of the data of a preset, repeated if there are fewer."""
    if name == "classify":
        rows: list[dict[str, Any]] = [{"text": text} for text in read_labeled(config.data).texts[:count]]
    else:
        fields = [field.name for field in model.module.schema.fields]
        table = multimodal.prepare.open_table(config.data)
        rows = [{field: row[field] for field in fields} for _, row in table.rows()]
    return (rows * -(-count // len(rows)))[:count]


def measure(name: str, recipe: Any, preset: str, count: int, batch: int, seconds: float) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        model = train_to_end(name, preset, Path(folder) / "run", 1, 1)
        rows, file = read_rows(name, recipe.PRESETS[preset], model, count), Path(folder) / "in.csv"
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        inputs = [row["text"] for row in rows] if name == "classify" else rows
        model.predict({"input": inputs[0]})  # prepares what is prepared once
        start, singles = time.perf_counter(), 0
        while singles < count and time.perf_counter() - start < seconds:
            model.predict({"input": inputs[singles]})
            singles += 1
        one_by_one = singles / (time.perf_counter() - start)
        start = time.perf_counter()
        model.predict_file(file, Path(folder) / "out.csv", batch)
        batched = count / (time.perf_counter() - start)
    return {"rows": count, "one_by_one": one_by_one, "batched": batched, "times": batched / one_by_one}


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10, help="the longest measurement of one by one")
    options = parser.parse_args()
    jobs = {"classify": (classify, "small"), "multimodal": (multimodal, "table")}
    results = {
        name: measure(name, recipe, preset, options.rows, options.batch, options.seconds)
        for name, (recipe, preset) in jobs.items()
    }
    if options.json:
        print(json.dumps(results))
    for name, result in results.items():
        speeds = f"one by one {result['one_by_one']:,.0f}, batched {result['batched']:,.0f} rows per second"
        print(f"{name:<12} {speeds}: {result['times']:.1f} times")
