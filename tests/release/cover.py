"""Print how much of each folder of the package the tests run: `make coverage`.

python tests/release/cover.py build/coverage.json     which `pytest --cov=anyformer --cov-report=json:FILE` has written
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def sum_folders(files: dict[str, dict]) -> list[tuple[str, int, int]]:
    """Return (folder or file of the package, statements, of these run), the least covered first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path, file in files.items():
        parts = Path(path).parts[Path(path).parts.index("anyformer") + 1 :]
        sums[parts[0]][0] += file["summary"]["num_statements"]
        sums[parts[0]][1] += file["summary"]["covered_lines"]
    return sorted(((name, *sums[name]) for name in sums if sums[name][0]), key=lambda row: row[2] / row[1])


def format_table(rows: list[tuple[str, int, int]]) -> str:
    total = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))
    lines = [f"| {name} | {count:,} | {covered / count:.1%} |" for name, count, covered in [*rows, total]]
    return "\n".join(["| folder | statements | run by tests |", "|---|--:|--:|", *lines])


if __name__ == "__main__":
    print(format_table(sum_folders(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"])))
