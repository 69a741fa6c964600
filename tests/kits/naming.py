"""What names may not be: variables say what they hold, functions are verbs in the imperative, old names stay away."""

import ast
import re
from collections.abc import Iterable, Iterator

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


def list_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of every variable, parameter, attribute that is assigned, function and class."""
    for node in nodes:
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
