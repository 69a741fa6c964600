"""Architecture: budgets of size, names, import layers, no unused settings, nothing runs at import or is executed."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from anyformer import recipe_loading
from naming import BANNED, OLD, is_participle, list_names

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "anyformer"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = [path for folder in ("bench", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]

all_files = pytest.mark.parametrize(
    "files",
    [pytest.param(FILES, id="package"), pytest.param(TESTS + OTHERS, id="tests", marks=pytest.mark.slow)],
)  # the others take ten seconds to parse

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
MAX_READING_PATH_LINES = 1500

# What a newcomer reads to understand the whole: the model, its training and its decoding.
READING_PATH = (
    "model/transformer.py",
    "model/edges.py",
    "model/embeddings.py",
    "model/positions.py",
    "model/heads.py",
    "model/cache.py",
    "training/loop.py",
    "inference/decode.py",
    "recipes/language/__init__.py",
    "recipes/_shared/language.py",
)


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def parse(path: Path) -> list[ast.AST]:
    """Return the nodes of a file's syntax tree, the module first. Faster than ast.walk, and once for all tests."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in nodes:  # grows on the way
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                nodes.append(value)
            elif isinstance(value, list):
                nodes += [part for part in value if isinstance(part, ast.AST)]
    return nodes


def parse_all(files: Iterable[Path] = FILES) -> Iterator[tuple[Path, list[ast.AST]]]:
    """Yield files, those of the package if nothing else is said, with their nodes."""
    return ((path, parse(path)) for path in files)


def find_functions(files: Iterable[Path]) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return ((path, node) for path, nodes in parse_all(files) for node in nodes if isinstance(node, kinds))


# --- budgets ---


def test_files_stay_below_500_lines():
    assert {str(path): n for path in FILES + TESTS if (n := count_lines(path)) > MAX_FILE_LINES} == {}


@all_files
def test_functions_stay_below_50_lines(files: list[Path]):
    lengths = {f"{path}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for path, f in find_functions(files)}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_folders_are_at_most_two_deep():
    """A recipe that grows becomes a folder with the same six names: recipes/NAME/."""
    assert {path for path in FILES if len(path.relative_to(PACKAGE).parent.parts) > 2} == set()


def test_the_transformer_fits_on_one_page():
    assert count_lines(PACKAGE / "model" / "transformer.py") <= 300


def test_the_reading_path_fits_into_one_sitting():
    lengths = {name: count_lines(PACKAGE / name) for name in READING_PATH}
    assert sum(lengths.values()) <= MAX_READING_PATH_LINES, lengths


def test_complexity_is_bounded_by_the_linter():
    settings = (ROOT / "pyproject.toml").read_text()
    assert "max-complexity = 10" in settings and '"C90"' in settings


# --- names ---


@all_files
def test_no_banned_name(files: list[Path]):
    bad = BANNED | OLD
    names = ((path, line, name) for path, nodes in parse_all(files) for name, line in list_names(nodes))
    assert [f"{path}:{line}: {name}" for path, line, name in names if name in bad] == []


@all_files
def test_functions_are_verbs_in_the_imperative(files: list[Path]):
    """A function that is named by a participle (`made`, `opened`) does not say whether it does or has done."""
    functions = find_functions(files)
    assert [f"{path}:{f.lineno}: {f.name}" for path, f in functions if is_participle(f.name)] == []


def test_the_rules_find_what_they_forbid():
    nodes = ast.walk(ast.parse("def made(at): found = 1\nclass Wires: pass\nself.rest = 2"))
    assert {name for name, _ in list_names(nodes)} >= {"made", "at", "found", "Wires", "rest"}
    assert is_participle("opened") and is_participle("_made") and not is_participle("embed_texts")


# --- layers ---


def test_modules_import_lower_layers_only():
    """The contracts of `make check`, for whoever only runs the tests."""
    linter = Path(sys.executable).parent / "lint-imports"
    process = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def test_the_model_is_pure_pytorch():
    allowed = {"torch", "math", "dataclasses", "typing", "collections", "contextlib", "functools", "difflib"}
    allowed |= {"operator", "warnings"}
    for path in (PACKAGE / "model").rglob("*.py"):
        for node in parse(path):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, path
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in allowed, path


def test_recipes_do_not_import_each_other():
    names = {path.stem for path in (PACKAGE / "recipes").iterdir() if not path.stem.startswith("_")}
    for path in (PACKAGE / "recipes").rglob("*.py"):
        own = path.relative_to(PACKAGE / "recipes").parts[0].removesuffix(".py")
        for node in parse(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                from_recipes = len(path.relative_to(PACKAGE).parts) - node.level == 1
                imported = {(node.module or a.name).split(".")[0] for a in node.names if from_recipes}
                assert not imported & (names - {own}), f"{path}, line {node.lineno}"


def test_abilities_of_recipes_are_protocols():
    """`recipe.py` lists what a recipe may offer; nothing else is looked up by name."""
    for path, nodes in parse_all():
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"hasattr", "getattr"}:
                subject = ast.unparse(node.args[0]) if node.args else ""
                assert subject.split(".")[-1] not in {"recipe", "recipes"}, f"{path}, line {node.lineno}"


@pytest.mark.parametrize("folder", ["cli", "checkpoints", "inference", "training"])
def test_no_recipe_is_named_outside_recipes(folder: str):
    """Code that knows a recipe by its name cannot serve one from outside. A family of checkpoints names its own."""
    names = set(recipe_loading.list_recipes())
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in parse(path):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & names, f"{path}, line {node.lineno}"


# --- settings ---

# Fields that describe the machine, its time or the data's labels, and not the model or its recipe.
OPERATIONAL = {"seed", "shard", "device", "dtype", "compile", "final_every", "labels", "words", "voices", "tasks"}
OPERATIONAL |= {"activation_checkpointing", "optimizer_dtype"}  # what fits into memory
OPERATIONAL |= {"rope_scaling", "sinks"}  # what a trained model is given: `anyformer import RUN --context 1024`
OPERATIONAL |= {
    "alignment",
    "structure",
    "max_gaps",
    "columns",
    "empty",
    "duplicates",
    "too_long",
    "group",
    "order",
    "reference",
    "rollouts",
    "documents",
    "note_start",
    "note_end",
    "note_tokens",
    "skip_unreadable",
}  # how a user's files are read


def collect_values(config: object) -> dict[str, set]:
    """Each field of a config and of the configs in it, by the class that declares it, with its value."""
    values: dict[str, set] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        owner = next(c for c in type(config).__mro__ if field.name in inspect.get_annotations(c))
        name = f"{owner.__module__.removeprefix('anyformer.')}.{field.name}"
        for key, inner in (collect_values(value) if dataclasses.is_dataclass(value) else {name: {value}}).items():
            values.setdefault(key, set()).update(inner)
    return values


# What models of public families have (`checkpoints`), and no preset.
PUBLIC = {f"model.config.{name}" for name in ("embedding_scale", "rotary_cycle", "softcap", "qk_norm_joint")}
PUBLIC |= {f"recipes._shared.encoder.{name}" for name in ("first_norm", "window", "global_every", "embed_pool")}
PUBLIC |= {"recipes._shared.language.logit_softcap", "recipes._shared.text.family", "recipes.speech.alignment_heads"}
PUBLIC |= {"recipes.vision.extra_tokens"}
PUBLIC |= {f"recipes._shared.pairs.{name}" for name in ("embedding_norm", "logit_bias", "source_start")}


def test_every_setting_is_used_by_some_preset():
    """A field with the same value in every preset of every recipe is a constant, and should be one."""
    values: dict[str, set] = {}
    for name in recipe_loading.list_recipes():
        for config in recipe_loading.load_recipe(name).PRESETS.values():
            for field, value in collect_values(config).items():
                values.setdefault(field, set()).update(value)
    assert "recipes.vision.patch" in values and "model.config.qk_norm" in values
    constant = {f for f, v in values.items() if len(v) == 1 and f.split(".")[-1] not in OPERATIONAL}
    assert constant == PUBLIC


def test_the_transformer_has_at_most_23_settings():
    from anyformer.model.config import TransformerConfig

    assert len(dataclasses.fields(TransformerConfig)) <= 23


# --- imports and safety ---


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_importing_a_module_has_no_effect(path: Path):
    """The top level of a module holds definitions, constants and imports; no loops, calls or writes."""
    for node in parse(path)[0].body:
        if isinstance(node, ast.Expr):
            is_main = path.name == "__main__.py"
            assert isinstance(node.value, ast.Constant) or is_main, f"line {node.lineno}: {ast.unparse(node)}"
        assert not isinstance(node, ast.For | ast.While | ast.With), f"line {node.lineno}"


@pytest.mark.parametrize("command", [["-c", "import anyformer"], ["-m", "anyformer", "--help"]], ids=["import", "help"])
def test_import_and_help_load_no_torch(command: list[str]):
    """`python -m bench.startup` measures the time."""
    code = "import runpy, sys; sys.argv = ['anyformer', '--help']\n"
    code += "try: runpy.run_module('anyformer', run_name='__main__')\n"
    code += "except SystemExit: pass\n" if command[0] == "-m" else ""
    code = code if command[0] == "-m" else "import anyformer, sys; dir(anyformer)\n"
    process = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and process.stderr.strip() == "[]", process.stderr


def test_no_file_content_is_executed():
    """No pickle, no eval, no exec, no torch.load."""
    forbidden = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "marshal.loads"}
    for path, nodes in parse_all():
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not calls & forbidden, path


def test_the_files_of_a_release_exist():
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/tour.md", "Makefile", ".ci/run"):
        assert (ROOT / name).is_file(), name
