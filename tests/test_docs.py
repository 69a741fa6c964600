"""The documents are true: their code runs and prints what they say, their links lead somewhere, their commands exist.

In a ```python block, what a statement prints may stand in a comment behind it, or in comment lines right below it:

    print(1 + 1)  # 2

Where it does, it is checked; `...` stands for anything, and decimals may differ by one in their last digit, since
machines round differently. A block that starts with ```python skip is not run.
"""

import ast
import contextlib
import doctest
import importlib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyformer import recipe as recipes
from anyformer.cli import VERBS
from anyformer.cli.parse import parse
from anyformer.recipes import language

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES = [page for page in PAGES if page.is_file()]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
DECIMAL = re.compile(r"-?\d+\.\d+")


def blocks(page: str, kind: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a kind: the line of the page above the code, and the code."""
    for found in re.finditer(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S):
        yield page[: found.start(1)].count("\n"), found[1]


def promise(statement: ast.stmt, lines: list[str]) -> str | None:
    """What the comment behind a statement that prints, or the comment lines below it, say that it prints."""
    source = lines[statement.lineno - 1 : statement.end_lineno]
    if not any(isinstance(n, ast.Name) and n.id == "print" for n in ast.walk(statement)):
        return None
    behind = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip()
    if source[-1].strip().startswith("print(") and behind.startswith("#"):
        return behind[1:].strip()
    below = []
    for line in lines[statement.end_lineno :]:
        if not line.startswith("# "):
            break
        below.append(line[2:])
    return "\n".join(below) or None


def kept(promised: str, printed: str) -> bool:
    """Whether what was printed is what was promised."""
    numbers = [list(map(str, DECIMAL.findall(text))) for text in (promised, printed)]
    if len(numbers[0]) == len(numbers[1]) and "..." not in promised:
        for said, found in zip(*numbers):
            last = 10.0 ** -len(said.partition(".")[2])
            if len(said.partition(".")[2]) != len(found.partition(".")[2]) or abs(float(said) - float(found)) > 1.5 * last:
                return False
        promised, printed = DECIMAL.sub("0.0", promised), DECIMAL.sub("0.0", printed)
    return doctest.OutputChecker().check_output(promised + "\n", printed.rstrip() + "\n", doctest.ELLIPSIS)


def run(page: str, name: str = "page") -> int:
    """Run a page's blocks in one namespace; returns how many promises were kept. Fails on the first broken one."""
    namespace, count = {"__name__": "page"}, 0
    for above, code in blocks(page, "python"):
        lines = code.splitlines()
        for statement in ast.parse(code).body:
            tree = ast.increment_lineno(ast.Module([statement], []), 0)
            promised = promise(statement, lines)
            ast.increment_lineno(tree, above)
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                exec(compile(tree, name, "exec"), namespace)
            if promised is not None:
                assert kept(promised, heard.getvalue()), f"{name}, line {statement.lineno}: {heard.getvalue()}"
                count += 1
    return count
