"""The figures of `anyformer bench` for a terminal: tables, and one line of advice."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .doctor import flops, section

WORTH = 1.15  # times as fast; less is not worth a change


def describe(found: dict[str, Any]) -> Group:
    """What `bench.measure` found, for a person."""
    name = " · ".join(filter(None, [found["device"], found["name"], f"torch {found['torch']}"]))
    threads = f" · {found['threads']} threads" if found["device"] == "cpu" else ""
    return Group(
        Text(f"{name}{threads} · measured in {found['seconds']:.0f} s\n", style="dim"),
        section("Ceilings", ceilings(found["ceilings"])),
        section("Training: presets of language, and their share of the products", training(found["training"])),
        section("Answering: GPT-2's shape, at most as fast as its weights are read", generation(found["generation"])),
        section("Tokenizing", tokenizing(found["tokenizing"])),
        Text.assemble(("→ ", "bold green"), (advice(found), "bold")),
    )


def table(rows: list[dict[str, Any]], *columns: str) -> Table:
    """A table whose first column is words and whose others are figures, with room for why one is missing."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    if any(one["problem"] for one in rows):
        made.add_column("")
    return made


def ceilings(rows: list[dict[str, Any]]) -> Table:
    made = table(rows, "", "")
    for one in rows:
        speed = f"{one['gb_per_s']:,.1f} GB/s" if "gb_per_s" in one else flops(one.get("gflops"))
        made.add_row(one["what"], speed, *why(one))
    return made


def training(rows: list[dict[str, Any]]) -> Table:
    made = table(rows, "preset", "parameters", "batch", "dtype", "tokens/s", "", "share")
    for one in rows:
        if one["problem"]:
            made.add_row(one["what"], *["–"] * 6, *why(one))
            continue
        size, batch = f"{one['parameters'] / 1e6:.2f} M", f"{one['batch']} × {one['context']}"
        speeds = (f"{one['tokens_per_second']:,.0f}", flops(one["gflops"]), percent(one["share"]))
        made.add_row(one["preset"], size, batch, one["dtype"], *speeds)
    return made


def generation(rows: list[dict[str, Any]]) -> Table:
    made = table(rows, "weights", "read a step", "batch", "tokens/s", "at most", "share")
    for one in rows:
        if one["problem"]:
            made.add_row(one["what"], *["–"] * 5, *why(one))
            continue
        most = "–" if one["at_most"] is None else f"{one['at_most']:,.1f}"
        speeds = (f"{one['tokens_per_second']:,.1f}", most, percent(one["share"]))
        made.add_row(one["weights"], f"{one['bytes_a_step'] / 1e6:,.0f} MB", str(one["batch"]), *speeds)
    return made


def tokenizing(rows: list[dict[str, Any]]) -> Table:
    made = table(rows, "", "")
    for one in rows:
        what = one["what"] if one["problem"] else f"{one['what']}, {one['text']}"
        made.add_row(what, "–" if one["problem"] else f"{one['mb_per_s']:,.1f} MB/s", *why(one))
    return made


def why(one: dict[str, Any]) -> list[Text]:
    """Why a row has no figure, where it has none."""
    return [Text(one["problem"], style="red")] if one["problem"] else []


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def advice(found: dict[str, Any]) -> str:
    """One line: in which format to train and to answer here, from what was measured."""
    return "; ".join([*to_train(found), *to_answer(found)]) or "nothing could be measured: see anyformer doctor"


def to_train(found: dict[str, Any]) -> Iterator[str]:
    speeds = {one["dtype"]: one["gflops"] for one in found["ceilings"] if one.get("gflops")}
    used = next((one["dtype"] for one in found["training"] if not one["problem"]), None)
    if used not in speeds:
        return
    best = max(speeds, key=lambda dtype: speeds[dtype])
    ratio = speeds[best] / speeds[used]
    if ratio < WORTH:
        yield f"train as it is: --dtype auto takes {used}"
    else:
        yield f"train with --dtype {best}: matrices multiply {ratio:.1f} × as fast as in {used}, which auto takes"


def to_answer(found: dict[str, Any]) -> Iterator[str]:
    alone = {one["weights"]: one["tokens_per_second"] for one in found["generation"] if one.get("batch") == 1}
    if "float32" not in alone:
        return
    best = max(alone, key=lambda weights: alone[weights])
    ratio = alone[best] / alone["float32"]
    if ratio < WORTH:
        yield "answer with float32 weights: fewer bits are no quicker here"
    else:
        yield f"answer with --weights {best}: {ratio:.1f} × as many tokens a second as float32"
