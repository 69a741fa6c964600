"""Change the code in one place at a time and see whether a test notices: `make mutation`.

python tests/release/mutate.py --seed 1 --count 40                              a sample of model/ and inference/
python tests/release/mutate.py --only model/edges.py --count 10 --page build/mutation.md

A change swaps an operator, a comparison, a number or a condition. For each, the tests of the module run in a process of
their own, those named after it first; a change that no test notices is a survivor and is listed. The file itself is
never touched: the changed source is compiled in its place while the tests import it. Exits with 0: survivors are to be
read, since some changes alter nothing that can be observed.
"""

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "anyformer"
FOLDERS = ("model", "inference")
SECONDS = 300  # a change that lets the tests run for longer is noticed
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
RUN = """
import importlib.abc, importlib.machinery, sys

class Changed(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        return compile(open({changed!r}, encoding="utf-8").read(), self.path, "exec")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == {module!r}:
            return importlib.machinery.ModuleSpec(
                fullname, Changed(fullname, {path!r}), origin={path!r}, is_package={package!r}
            )

sys.meta_path.insert(0, Finder())
import pytest
code = pytest.main([*{tests!r}, "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser"])
sys.exit(3 if {module!r} not in sys.modules else code)
"""


@dataclass(frozen=True)
class Mutant:
    """One change: the place of the node among those of the file, and what it says."""

    path: Path
    place: int
    line: int
    before: str
    after: str


def list_mutants(path: Path) -> Iterator[Mutant]:
    """Yield every change that is known for a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    decorators = [part for node in ast.walk(tree) for part in getattr(node, "decorator_list", ())]
    hidden = {node for decorator in decorators for node in ast.walk(decorator)}  # frozen=True: tests notice nothing
    for place, node in enumerate(ast.walk(tree)):
        if node in hidden:
            continue
        changed = change(node)
        if changed is not None:
            yield Mutant(path, place, node.lineno, ast.unparse(node), ast.unparse(changed))  # type: ignore[attr-defined]


def change(node: ast.AST) -> ast.AST | None:
    """Return a changed copy of a node, or None where nothing is changed."""
    new: ast.AST = copy.copy(node)
    if isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in OPERATORS and not is_type(new):
        new.op = OPERATORS[type(new.op)]()  # type: ignore[assignment]
    elif isinstance(new, ast.Compare) and type(new.ops[0]) in OPERATORS:
        new.ops = [OPERATORS[type(new.ops[0])](), *new.ops[1:]]  # type: ignore[list-item]
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.Not):
        return new.operand
    elif isinstance(new, ast.Constant) and type(new.value) is int and new.value < 1000:
        new.value += 1
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
        new.value = not new.value
    elif isinstance(new, ast.IfExp):
        new.body, new.orelse = new.orelse, new.body
    else:
        return None
    return new


def is_type(node: ast.AST) -> bool:
    """Whether an operation writes a type, such as `Tensor | None`: no test can notice its change."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.BitOr):
        return False
    parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant | ast.Name)]
    return any(isinstance(part, ast.Constant) and part.value is None for part in parts) or all(
        isinstance(part, ast.Name) and (part.id[:1].isupper() or part.id in ("int", "str", "float", "list", "tuple"))
        for part in parts
    )


def write_mutant(mutant: Mutant, path: Path) -> None:
    """Write the source of a file with one change."""
    tree = ast.parse(mutant.path.read_text(encoding="utf-8"))
    target = next(node for place, node in enumerate(ast.walk(tree)) if place == mutant.place)
    changed = change(target)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, changed)
            elif isinstance(value, list) and any(item is target for item in value):
                setattr(parent, name, [changed if item is target else item for item in value])
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")


def list_tests(path: Path) -> list[str]:
    """Return the tests of a module: those named after it, then those that import it, of its own folder."""
    module = name_module(path)
    folder = ROOT / "tests" / path.relative_to(PACKAGE).parts[0]
    words, named, importing = f"{module.removeprefix('anyformer.')}", [], []
    for test in sorted(folder.rglob("test_*.py")):
        text = test.read_text(encoding="utf-8")
        if path.stem in test.stem:
            named.append(str(test))
        elif module in text or f"import {path.stem}" in text or words in text:
            importing.append(str(test))
    return [*named, *importing] or [str(folder)]


def name_module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def try_mutant(mutant: Mutant, folder: Path) -> str:
    """Run the tests on a change. Returns killed, survived or not imported."""
    changed = folder / "changed.py"
    write_mutant(mutant, changed)
    code = RUN.format(
        changed=str(changed),
        module=name_module(mutant.path),
        path=str(mutant.path),
        package=mutant.path.name == "__init__.py",
        tests=list_tests(mutant.path),
    )
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT, env=environment, timeout=SECONDS, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "killed"
    return {0: "survived", 3: "not imported", 5: "not imported"}.get(process.returncode, "killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--count", type=int, default=40, help="how many changes are tried")
    parser.add_argument("--only", action="append", help="a file or folder below src/anyformer; may be repeated")
    parser.add_argument("--page", type=Path, default=ROOT / "build" / "mutation.md", help="where the result is written")
    options = parser.parse_args()
    places = [PACKAGE / name for name in options.only or FOLDERS]
    paths = sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py")))
    mutants = [mutant for path in paths for mutant in list_mutants(path)]
    sample = random.Random(options.seed).sample(mutants, min(options.count, len(mutants)))
    options.page.parent.mkdir(parents=True, exist_ok=True)
    rows, counts = [], dict.fromkeys(("killed", "survived", "not imported"), 0)
    for mutant in sample:
        outcome = try_mutant(mutant, options.page.parent)
        counts[outcome] += 1
        row = f"| {mutant.path.relative_to(PACKAGE)}:{mutant.line} | `{mutant.before}` | `{mutant.after}` | {outcome} |"
        print(row, flush=True)
        rows += [row.replace("`|", "`\\|")] if outcome != "killed" else []
        tried = ", ".join(f"{count} {name}" for name, count in counts.items())
        head = (
            f"# Mutations\n\nSeed {options.seed}: {sum(counts.values())} of {len(mutants):,} changes tried, {tried}.\n"
        )
        table = ["| place | code | changed to | |", "|---|---|---|---|", *rows] if rows else []
        options.page.write_text("\n".join([head, *table, ""]), encoding="utf-8")
    print(f"{tried}; {options.page}")


if __name__ == "__main__":
    main()
