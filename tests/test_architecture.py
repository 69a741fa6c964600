"""The house keeps its own rules: who may import whom, how long things may grow, no knob unused, nothing at import."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from anyformer import recipe as recipes

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "src" / "anyformer"
FILES = sorted(HOUSE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", FILES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_300_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", FILES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_longer_than_50_lines(path: Path):
    assert {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno - f.lineno + 1 > 50} == {}


def test_folders_are_at_most_two_deep():
    """A recipe that grows becomes a folder with the same six names: recipes/NAME/."""
    assert {path for path in FILES if len(path.relative_to(HOUSE).parent.parts) > 2} == set()


def test_complexity_is_bounded_by_the_linter():
    settings = (ROOT / "pyproject.toml").read_text()
    assert "max-complexity = 10" in settings and '"C90"' in settings


def test_the_rooms_import_only_downwards():
    """The same contracts as `make check`: a newcomer who only runs the tests learns of them too."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_model_is_pure_pytorch():
    allowed = {"torch", "math", "dataclasses", "typing", "collections", "functools"}
    for path in (HOUSE / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, path
            if isinstance(node, ast.ImportFrom):
                assert node.level >= 1 or (node.module or "").split(".")[0] in allowed, path


# Not of the model or its recipe: they belong to the machine and its time, and the names of classes to the data.
OPERATION = {"seed", "device", "dtype", "compile", "final_every", "labels"}


def values(config: object) -> dict[str, set]:
    """Each field of a config and of the configs in it, by the name of its class, with its value."""
    found: dict[str, set] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        owner = next(c for c in type(config).__mro__ if field.name in vars(c).get("__annotations__", {}))
        kind = owner.__module__.removeprefix("anyformer.")
        inner = values(value) if dataclasses.is_dataclass(value) else {f"{kind}.{field.name}": {value}}
        for name, more in inner.items():
            found.setdefault(name, set()).update(more)
    return found


def test_no_knob_that_no_preset_turns():
    """A field that has the same value in every preset of every recipe is a constant, and should be one."""
    seen: dict[str, set] = {}
    for name in recipes.list_recipes():
        for config in recipes.load_recipe(name).PRESETS.values():
            for field, value in values(config).items():
                seen.setdefault(field, set()).update(value)
    assert "recipes.vision.config.patch" in seen and "model.config.qk_norm" in seen
    assert {f for f, found in seen.items() if len(found) == 1 and f.split(".")[-1] not in OPERATION} == set()


def test_the_transformer_has_at_most_18_knobs():
    from anyformer.model.config import TransformerConfig

    assert len(dataclasses.fields(TransformerConfig)) <= 18


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_importing_a_module_does_nothing(path: Path):
    """At the top of a module stand only definitions, constants and imports; no loops, calls or writes of their own."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr):
            main = path.name == "__main__.py"
            assert isinstance(node.value, ast.Constant) or main, f"line {node.lineno}: {ast.unparse(node)}"
        assert not isinstance(node, ast.For | ast.While | ast.With), f"line {node.lineno}"


@pytest.mark.parametrize("command", [["-c", "import anyformer"], ["-m", "anyformer", "--help"]], ids=["import", "help"])
def test_the_door_opens_quickly(command: list[str]):
    """`import anyformer` and `anyformer --help` load no torch; bench/startup.py measures the time."""
    code = "import runpy, sys; sys.argv = ['anyformer', '--help']\n"
    code += "try: runpy.run_module('anyformer', run_name='__main__')\n"
    code += "except SystemExit: pass\n" if command[0] == "-m" else ""
    code = code if command[0] == "-m" else "import anyformer, sys\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)), file=sys.stderr)"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr


def test_nothing_executes_what_it_reads():
    """No pickle, no eval, no exec, no torch.load."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "marshal.loads"}, path


def test_the_project_ships_what_it_says():
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/tour.md", "Makefile", ".ci/run"):
        assert (ROOT / name).is_file(), name
