"""The documents are true: their code runs and prints what they say, their links lead somewhere, their commands exist.

In a ```python block, what a statement prints may stand in a comment behind it, or in comment lines right below it:

    print(1 + 1)  # 2

Where it does, it is checked. `...` stands for anything, and decimals may differ by one in their last digit, since
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
from typing import Any
from xml.etree import ElementTree

import pytest

from anyformer import recipe as recipes
from anyformer.cli import VERBS, module_of
from anyformer.cli import train as train_command
from anyformer.cli.parse import parse
from anyformer.errors import InputError

ROOT = Path(__file__).parent.parent
NAMED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [page for page in [*NAMED, *sorted((ROOT / "docs").glob("*.md"))] if page.is_file()]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- code: it runs, and prints what the page says ---


def blocks(page: str, kind: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a kind: how many lines stand above the code, and the code."""
    for found in re.finditer(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S):
        yield page[: found.start(1)].count("\n"), found[1]


def promise(statement: ast.stmt, lines: list[str]) -> str | None:
    """What a statement prints, by the comment behind it or the comment lines below it; None if they say nothing."""
    if not any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(statement)):
        return None
    last = lines[statement.end_lineno - 1]
    behind = last.encode()[statement.end_col_offset :].decode().strip()
    if behind.startswith("#"):
        return behind[1:].strip()
    below = []
    for line in lines[statement.end_lineno :]:
        if not line.startswith("# "):
            break
        below.append(line[2:])
    return "\n".join(below) or None


def kept(promised: str, printed: str) -> bool:
    """Whether what was printed is what was promised."""

    def settle(said: re.Match) -> str:
        """A decimal that is right but for its last digit becomes the one that was printed."""
        found = next(decimals, "")
        close = len(said[0]) == len(found) and abs(float(said[0]) - float(found)) < 1.5 * 10.0 ** -len(said[1])
        return found if close else said[0]

    decimals = iter(re.findall(r"-?\d+\.\d+", printed))
    promised = re.sub(r"-?\d+\.(\d+)", settle, promised)
    return doctest.OutputChecker().check_output(promised + "\n", printed.rstrip() + "\n", doctest.ELLIPSIS)


def run(page: str, name: str = "page") -> int:
    """Run the blocks of a page in one namespace; returns how many promises it kept. Fails at the first broken one."""
    namespace: dict[str, Any] = {"__name__": "page"}
    count = 0
    for above, code in blocks(page, "python"):
        for statement in ast.parse(code).body:
            promised = promise(statement, code.splitlines())
            tree = ast.increment_lineno(ast.Module([statement], []), above)
            with contextlib.redirect_stdout(io.StringIO()) as heard:
                exec(compile(tree, name, "exec"), namespace)
            if promised is not None:
                assert kept(promised, heard.getvalue()), f"{name}, line {statement.lineno} printed {heard.getvalue()}"
                count += 1
    return count


@each_page
def test_the_code_of_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANYFORMER_DATA", raising=False)
    text = page.read_text(encoding="utf-8")
    promises = run(text, page.name)
    assert promises or not any("print(" in code for _, code in blocks(text, "python"))


def fenced(code: str) -> str:
    return f"words\n\n```python\n{code}\n```\n"


@pytest.mark.parametrize(
    "code",
    [
        "print(2)  # 2",
        "print('a')\nprint('b')\n# b",
        "for i in (1, 2):\n    print(i)\n# 1\n# 2",
        "print(0.12)  # 0.13",
        "print('step 3')  # step ...",
        "x = 1  # a remark",
        "print(1)\n\n# a remark",
    ],
)
def test_true_pages_pass(code: str):
    assert run(fenced(code)) == ("remark" not in code)


@pytest.mark.parametrize(
    "code",
    [
        "print(2)  # 3",
        "print('a')\n# a\n# b",
        "print('a\\nb')\n# a",
        "print(0.12)  # 0.14",
        "print(12)  # 1.2",
        "if True:\n    print(1)  # 2",
        "print('0.10 0.30')  # 0.10 0.20",
        "print(0.123)  # 0.12",
        "print()  # 1",
    ],
)
def test_untrue_pages_do_not(code: str):
    with pytest.raises(AssertionError, match="line 4 printed"):
        run(fenced(code))


# --- links and pictures ---


@each_page
def test_links_lead_somewhere(page: Path):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href|srcset)="([^"]+)"', prose)
    inside = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in inside if target and not (page.parent / target).exists()] == []


def test_the_picture_of_the_edges_is_what_the_rules_say():
    drawn = runpy.run_path(str(ROOT / "docs" / "draw.py"))["picture"]()
    assert (ROOT / "docs" / "edges.svg").read_text(encoding="utf-8") == drawn, "run: python docs/draw.py"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_and_can_be_read_aloud(picture: Path):
    tree = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    title = tree.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text


# --- commands ---


def commands(page: str) -> list[list[str]]:
    """Every command line of the ```sh blocks, and of `anyformer ...` and `make ...` in the prose, as words."""
    lines = [line for _, code in blocks(page, "sh") for line in code.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"`((?:anyformer|make)\s[^`]+)`", prose)]
    lines = [part for line in lines for part in re.split(r"&&|;", line)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check(words: list[str]) -> None:
    """Raises InputError or AssertionError for a verb, flag, value or target that does not exist."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets), words
    if program != "anyformer" or any(word.strip(".").isupper() for word in rest[:2]):  # VERB, RECIPE, RUN
        return
    assert rest[:1] == ["--help"] or rest[0] in VERBS, words
    if "--help" in rest:
        return
    if rest[0] == "train":
        if not rest[1:]:  # the verb by its name
            return
        recipe = recipes.load(rest[1])
        preset = train_command.glance(rest[2:]).preset or recipes.default_preset(recipe)
        parse(train_command.questions(recipe, preset, recipes.preset(recipe, preset)), rest[2:], train_command.PROG)
    else:
        parse(importlib.import_module(f"anyformer.cli.{module_of(rest[0])}").Command, rest[1:], f"anyformer {rest[0]}")


@each_page
def test_commands_exist(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "make fly",
        "anyformer fly",
        ".venv/bin/anyformer train language --fly 1",
        "anyformer train language --steps x",
        "anyformer sample runs/a --flies",
        "anyformer train speach",
        "anyformer train language --preset tinny",
    ],
)
def test_commands_that_do_not_exist_are_found(line: str):
    [words] = commands(f"```sh\n{line}   # a remark\n```\n")
    with pytest.raises((AssertionError, InputError)):
        check(words)
    [words] = commands(f"Prose with `{line}` in it.\n") if line[0] != "." else [words]
    with pytest.raises((AssertionError, InputError)):
        check(words)
