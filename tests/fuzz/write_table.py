"""Write the numbers of `make fuzz` into the table of a document.

python tests/fuzz/write_table.py build/fuzz.json docs/reliability.md --commit 1234abc --date 2026-11-27
"""

import argparse
import json
from collections import Counter
from pathlib import Path

START, END = "<!-- fuzz: begin -->\n", "<!-- fuzz: end -->\n"


def format_table(numbers: dict[str, dict[str, int]], commit: str, date: str) -> str:
    """Return a table in Markdown: a row for each kind of attack, its results and their sum."""
    rows = {kind: Counter(results) for kind, results in sorted(numbers.items())}
    lines = ["| attack | tried | succeeded | one line | broken |", "|---|--:|--:|--:|--:|"]
    for kind, results in (rows | {"**all**": sum(rows.values(), Counter())}).items():
        refused, broken, tried = results["refused"], results["broken"], results.total()
        counts = (tried, tried - refused - broken, refused, broken)
        lines.append("| " + " | ".join([kind, *(f"{count:,}" for count in counts)]) + " |")
    return f"On commit `{commit}`, {date}:\n\n" + "\n".join(lines) + "\n"


def replace_table(document: str, table: str) -> str:
    """Return a document with another table between its markers."""
    before, _, others = document.partition(START)
    _, _, after = others.partition(END)
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("report", type=Path)
    parser.add_argument("document", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--date", required=True)
    options = parser.parse_args()
    table = format_table(json.loads(options.report.read_text()), options.commit, options.date)
    options.document.write_text(replace_table(options.document.read_text(), table))


if __name__ == "__main__":
    main()
