"""Small sets in the forms that people bring, for tests: each builder writes one below a folder."""

import json
from collections.abc import Callable
from pathlib import Path

WORDS = """the quick brown fox jumps over a lazy dog while seven wizards brew strange potions in an old tower""".split()  # noqa: SIM905
Build = Callable[[Path], Path | None]


def sentence(i: int, n: int = 9) -> str:
    return " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(n)).capitalize() + "."


def table(name: str, header: str, row: Callable[[int], str], rows: int = 60) -> Build:
    def build(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in ([header] if header else []) + [row(i) for i in range(rows)]))
        return path

    return build


def files(*names: str, content: Callable[[int], str] = sentence) -> Build:
    def build(folder: Path) -> None:
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content(i))

    return build


def jsonl(name: str, row: Callable[[int], dict]) -> Build:
    return table(name, "", lambda i: json.dumps(row(i)))


def both(*builds: Build) -> Build:
    def build(folder: Path) -> None:
        for part in builds:
            part(folder)

    return build
