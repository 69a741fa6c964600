"""Documentation: code blocks run and print what they say, links resolve, commands exist.

In a ```python block, the output of a statement may follow it as a comment, or as comment lines right below it:

    print(1 + 1)  # 2

It is then checked. `...` matches anything, and decimals may differ by one in their last digit, since machines round
differently. A block that starts with ```python skip is not run, and one that starts with ```python matplotlib only
where that is installed, together with the others of its page.
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
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from anyformer import recipe_loading
from anyformer.cli import VERBS, verb_module
from anyformer.cli.flags import parse_arguments
from anyformer.cli.lab import load_lab
from anyformer.cli.predict import split_settings
from anyformer.cli.sweep import SweepCommand
from anyformer.cli.train import TrainCommand, is_data
from anyformer.errors import InputError
from anyformer.inference.speaking import SpeakingRequest
from anyformer.inference.transcription import TranscriptSettings
from anyformer.recipes._shared.tower_requests import TowerRequest

ROOT = Path(__file__).parent.parent
NAMED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [page for page in [*NAMED, *sorted((ROOT / "docs").rglob("*.md"))] if page.is_file()]
PAGES = [page for page in PAGES if page.parent.name != "site"]  # which is the pages' index, for Sphinx alone
LONG_PAGES = {
    "chat",
    "drafts",
    "evaluation",
    "generalist",
    "notes",
    "own-loop",
    "page",
    "pictures",
    "recipes",
    "series",
    "structure",
    "tour",
    "tts",
}  # whose code takes one to ten seconds each
all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


# --- code runs and prints what the page says ---


def blocks(page: str, kind: str) -> Iterator[tuple[int, str]]:
    """Yield (number of lines above the code, code) of every code block of a kind."""
    for match in re.finditer(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S):
        yield page[: match.start(1)].count("\n"), match[1]


def read_output_comment(statement: ast.stmt, lines: list[str]) -> str | None:
    """Return the output that the comment behind or below a statement promises, or None."""
    if not any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(statement)):
        return None
    last_line = lines[statement.end_lineno - 1]
    behind = last_line.encode()[statement.end_col_offset :].decode().strip()
    if behind.startswith("#"):
        return behind[1:].strip()
    below = []
    for line in lines[statement.end_lineno :]:
        if not line.startswith("# "):
            break
        below.append(line[2:])
    return "\n".join(below) or None


def output_matches(expected: str, printed: str) -> bool:

    def round_last_digit(decimal: re.Match) -> str:
        """Replace a decimal that differs in its last digit only by the one that was printed."""
        other = next(decimals, "")
        is_close = len(decimal[0]) == len(other) and abs(float(decimal[0]) - float(other)) < 1.5 * 10.0 ** -len(
            decimal[1]
        )
        return other if is_close else decimal[0]

    decimals = iter(re.findall(r"-?\d+\.\d+", printed))
    expected = re.sub(r"-?\d+\.(\d+)", round_last_digit, expected)
    return doctest.OutputChecker().check_output(expected + "\n", printed.rstrip() + "\n", doctest.ELLIPSIS)


def run_blocks(page: str, name: str = "page", kind: str = "python") -> int:
    """Run the blocks of a page in one namespace and check their output. Returns the number of checks."""
    namespace: dict[str, Any] = {"__name__": "page"}
    count = 0
    for above, code in blocks(page, kind):
        for statement in ast.parse(code).body:
            expected = read_output_comment(statement, code.splitlines())
            tree = ast.increment_lineno(ast.Module([statement], []), above)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(tree, name, "exec"), namespace)
            if expected is not None:
                text = printed.getvalue()
                assert output_matches(expected, text), f"{name}, line {statement.lineno} printed {text}"
                count += 1
    return count


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG_PAGES else []) for page in PAGES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_code_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANYFORMER_DATA", raising=False)
    text = page.read_text(encoding="utf-8")
    checks = run_blocks(text, page.name)
    assert checks or not any("print(" in code for _, code in blocks(text, "python"))


def test_plots_of_the_pages_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks that need matplotlib, together with the others of their page."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'anyformer[plot]'")
    monkeypatch.chdir(tmp_path)
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    texts = {name: text for name, text in texts.items() if any(blocks(text, "python matplotlib"))}
    assert texts and all(run_blocks(text, name, "python(?: matplotlib)?") for name, text in texts.items())


def as_page(code: str) -> str:
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
def test_right_output_passes(code: str):
    assert run_blocks(as_page(code)) == ("remark" not in code)


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
def test_wrong_output_fails(code: str):
    with pytest.raises(AssertionError, match="line 4 printed"):
        run_blocks(as_page(code))


# --- links and pictures ---


@all_pages
def test_links_resolve(page: Path):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href|srcset)="([^"]+)"', prose)
    for target in (target for target in targets if not re.match(r"[a-z]+:", target)):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in list_anchors(path.read_text(encoding="utf-8")), target


def list_anchors(page: str) -> set[str]:
    """Return the names that headings can be linked to by."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["edges", "graph"])
def test_pictures_of_edge_rules_are_up_to_date(name: str):
    picture = runpy.run_path(str(ROOT / "docs" / "draw.py"))[f"draw_{name}"]()
    assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == picture, f"run: python docs/draw.py {name}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_valid_and_have_a_title(picture: Path):
    tree = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    title = tree.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text


# --- commands ---


def commands(page: str) -> list[list[str]]:
    """Return every command of the ```sh blocks, and every `anyformer ...` and `make ...` in the prose, as words."""
    lines = [line for _, code in blocks(page, "sh") for line in code.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"`((?:anyformer|make)\s[^`]+)`", prose)]
    lines = [part for line in lines for part in re.split(r"&&|;", line)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = {"train": TrainCommand, "sweep": SweepCommand}  # whose flags are those of a recipe
# Data that the pages take for granted, and the recipe that trains on them.
DATA_OF = {"my_data": "language", "photos": "vision", "pairs.tsv": "translation", "reviews.csv": "classify"}
REQUEST_FIELDS = {field.name for kind in (SpeakingRequest, TranscriptSettings, TowerRequest) for field in fields(kind)}
DATA_OF |= dict.fromkeys(("my.csv", "labels.csv"), "multimodal")


def check_command(words: list[str]) -> None:
    """Raise InputError or AssertionError for a verb, flag, value or target that does not exist."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    if program != "anyformer" or any(word.strip(".").isupper() for word in arguments[:2]):  # VERB, RECIPE, RUN
        return
    assert arguments[:1] == ["--help"] or arguments[0] in VERBS, words
    if "--help" in arguments:
        return
    if arguments[0] == "lab" and len(arguments) > 1:
        parse_arguments(load_lab(arguments[1]).Settings, arguments[2:], "anyformer lab")
    elif arguments[0] not in COMMANDS:
        module = importlib.import_module(f"anyformer.cli.{verb_module(arguments[0])}")
        own, settings = split_settings(arguments[1:]) if arguments[0] == "predict" else (arguments[1:], {})
        assert settings.keys() <= REQUEST_FIELDS, words
        parse_arguments(module.Command, own, f"anyformer {arguments[0]}")
    elif arguments[1:]:
        name = arguments[1]
        source = ROOT / "docs" / "examples" / name if name.endswith(".py") else name
        source = DATA_OF.get(name) or ("language" if is_data(name) else source)  # with the flags of every training
        COMMANDS[arguments[0]](recipe_loading.load_recipe(source), arguments[2:], f"anyformer {arguments[0]}").read()


@all_pages
def test_commands_exist(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        check_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "make fly",
        "anyformer fly",
        ".venv/bin/anyformer train language --fly 1",
        "anyformer train language --steps x",
        "anyformer sample runs/a --flies",
        "anyformer train speach",
        "anyformer sweep language --flies",
        "anyformer train language --preset tinny",
    ],
)
def test_commands_that_do_not_exist_are_found(line: str):
    [words] = commands(f"```sh\n{line}   # a remark\n```\n")
    with pytest.raises((AssertionError, InputError)):
        check_command(words)
    [words] = commands(f"Prose with `{line}` in it.\n") if line[0] != "." else [words]
    with pytest.raises((AssertionError, InputError)):
        check_command(words)
