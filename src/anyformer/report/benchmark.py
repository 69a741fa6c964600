"""The result of `anyformer bench` for a terminal: tables, and one line of advice."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .doctor import add_title, format_flops

MIN_SPEEDUP = 1.15  # a smaller one is not worth another format

Row = dict[str, Any]


def describe(facts: dict[str, Any]) -> Group:
    """Format the result of `labs.benchmark.measure`."""
    name = " · ".join(filter(None, [facts["device"], facts["name"], f"torch {facts['torch']}"]))
    threads = f" · {facts['threads']} threads" if facts["device"] == "cpu" else ""
    titles = {
        "Ceilings": format_ceilings(facts["ceilings"]),
        "Training: presets of language, and their share of the products": format_training(facts["training"]),
        "Answering: GPT-2's shape, at most as fast as its weights are read": format_generation(facts["generation"]),
        "Tokenizing": format_tokenizing(facts["tokenizing"]),
    }
    return Group(
        Text(f"{name}{threads} · measured in {facts['seconds']:.0f} s\n", style="dim"),
        *(add_title(title, table) for title, table in titles.items()),
        Text.assemble(("→ ", "bold green"), (advise(facts), "bold")),
    )


def build_table(rows: list[Row], *columns: str) -> Table:
    """Return a table whose first column is text and the others numbers, and one for problems if there are any."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    if any(row["problem"] for row in rows):
        table.add_column("")
    return table


def format_ceilings(rows: list[Row]) -> Table:
    table = build_table(rows, "", "")
    for row in rows:
        speed = f"{row['gb_per_s']:,.1f} GB/s" if "gb_per_s" in row else format_flops(row.get("gflops"))
        table.add_row(row["what"], speed, *format_problem(row))
    return table


def format_training(rows: list[Row]) -> Table:
    table = build_table(rows, "preset", "parameters", "batch", "dtype", "tokens/s", "", "share")
    for row in rows:
        if row["problem"]:
            table.add_row(row["what"], *["–"] * 6, *format_problem(row))
            continue
        size, batch = f"{row['parameters'] / 1e6:.2f} M", f"{row['batch']} × {row['context']}"
        speeds = (f"{row['tokens_per_second']:,.0f}", format_flops(row["gflops"]), format_share(row["share"]))
        table.add_row(row["preset"], size, batch, row["dtype"], *speeds)
    return table


def format_generation(rows: list[Row]) -> Table:
    table = build_table(rows, "weights", "read a step", "batch", "tokens/s", "at most", "share")
    for row in rows:
        if row["problem"]:
            table.add_row(row["what"], *["–"] * 5, *format_problem(row))
            continue
        limit = "–" if row["at_most"] is None else f"{row['at_most']:,.1f}"
        speeds = (f"{row['tokens_per_second']:,.1f}", limit, format_share(row["share"]))
        table.add_row(row["weights"], f"{row['bytes_a_step'] / 1e6:,.0f} MB", str(row["batch"]), *speeds)
    return table


def format_tokenizing(rows: list[Row]) -> Table:
    table = build_table(rows, "", "")
    for row in rows:
        name = row["what"] if row["problem"] else f"{row['what']}, {row['text']}"
        table.add_row(name, "–" if row["problem"] else f"{row['mb_per_s']:,.1f} MB/s", *format_problem(row))
    return table


def format_problem(row: Row) -> list[Text]:
    return [Text(row["problem"], style="red")] if row["problem"] else []


def format_share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def advise(facts: dict[str, Any]) -> str:
    """Say in one line in which formats to train and to generate here."""
    advice = [*advise_training(facts), *advise_generation(facts)]
    return "; ".join(advice) or "nothing could be measured: see anyformer doctor"


def advise_training(facts: dict[str, Any]) -> Iterator[str]:
    speeds = {row["dtype"]: row["gflops"] for row in facts["ceilings"] if row.get("gflops")}
    default = next((row["dtype"] for row in facts["training"] if not row["problem"]), None)
    if default not in speeds:
        return
    best = max(speeds, key=lambda dtype: speeds[dtype])
    ratio = speeds[best] / speeds[default]
    if ratio < MIN_SPEEDUP:
        yield f"train as it is: --dtype auto takes {default}"
    else:
        yield f"train with --dtype {best}: matrices multiply {ratio:.1f} × as fast as in {default}, which auto takes"


def advise_generation(facts: dict[str, Any]) -> Iterator[str]:
    speeds = {row["weights"]: row["tokens_per_second"] for row in facts["generation"] if row.get("batch") == 1}
    if "float32" not in speeds:
        return
    best = max(speeds, key=lambda weights: speeds[weights])
    ratio = speeds[best] / speeds["float32"]
    if ratio < MIN_SPEEDUP:
        yield "answer with float32 weights: fewer bits are no faster here"
    else:
        yield f"answer with --weights {best}: {ratio:.1f} × as many tokens a second as float32"
