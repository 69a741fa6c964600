"""Names: local variables say what they hold, functions are verbs in the imperative, old names do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("src", "tests", "bench", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]

# Words that name nothing: a reader has to look up what such a variable holds.
BANNED = set("found known given asked made said told heard wanted whole rest more one each at".split())
IRREGULAR = set("made told said found given drawn held kept taken written shown chosen begun swept heard known".split())
VERBS = set(
    "embed feed need seed speed exceed proceed succeed bleed shed wed".split()
)  # they only look like participles

# Classes and functions that were renamed: one name for one thing.
OLD = set(
    "Wires Asked Blocked Plain Told Given Voice Listener Beside Quick Wrapped Album Looks Hiding Diary Recall Memo "
    "Several Scaled Slices Place NOTHING told_by emits anchored at_home bring_in give_out adopt seal speak".split()
)


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of every variable, parameter, attribute that is assigned, function and class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def is_participle(name: str) -> bool:
    first = name.strip("_").split("_")[0]
    return first in IRREGULAR or (re.fullmatch(r"[a-z]{2,}ed", first) is not None and first not in VERBS)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_no_banned_name(trees: dict[Path, ast.Module]):
    bad = BANNED | OLD
    assert [f"{path}:{line}: {n}" for path, tree in trees.items() for n, line in names(tree) if n in bad] == []


def test_functions_are_verbs_in_the_imperative(trees: dict[Path, ast.Module]):
    """A function that is named by a participle (`made`, `opened`) does not say whether it does or has done."""
    functions = [(path, n) for path, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert [f"{path}:{f.lineno}: {f.name}" for path, f in functions if is_participle(f.name)] == []


def test_the_rules_find_what_they_forbid():
    tree = ast.parse("def made(at): found = 1\nclass Wires: pass\nself.rest = 2")
    assert {name for name, _ in names(tree)} >= {"made", "at", "found", "Wires", "rest"}
    assert is_participle("opened") and is_participle("_made") and not is_participle("embed_texts")
