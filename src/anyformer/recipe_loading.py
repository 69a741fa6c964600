"""Where recipes come from: the package, entry points, Python paths, files; their presets, and stored configs."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import os.path
import pkgutil
import sys
import traceback
import types
import typing
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .data.io.cache import cache_by_files
from .data.io.sources import make_absolute, split_sources
from .errors import InputError, suggest
from .parsing import RENAMED_FIELDS, check_path, parse_dataclass
from .recipe import Recipe, SupportsMixtures

NAMES = ("PRESETS", "build", "batches", "loss", "evaluate", "predict")


def check_mixture(recipe: Recipe, data: str) -> None:
    """Raise InputError if several sources are named and the recipe trains on one only."""
    if len(split_sources(data)) > 1 and not isinstance(recipe, SupportsMixtures):
        names = recipes_with(SupportsMixtures)
        raise InputError(f"data '{data}' are several sources, which {names} mix, not '{recipe_name(recipe)}': name one")


def recipes_with(ability: Any) -> str:
    """Name the package's recipes that support a protocol, for messages."""
    return ", ".join(name for name in list_recipes() if isinstance(load_recipe(name), ability)) or "none"


# --- where recipes come from ---


def list_recipes() -> list[str]:
    """Return the names of the package's own recipes."""
    folder = Path(__file__).with_name("recipes")
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))


def recipe_name(recipe: Recipe) -> str:
    """Return the name that runs record: the last part of the module's name, or the name of its file."""
    return typing.cast(types.ModuleType, recipe).__name__.rpartition(".")[2]


def load_recipe(source: Any) -> Recipe:
    """Load a recipe: by the name of one of the package ("language") or of an entry point of the group
    `anyformer.recipes`, by a Python path ("mypackage.my_recipe"), by a file or a package folder ("./my_recipe.py"), or
    from a module. Raises InputError if there is none, it cannot be imported, or it lacks one of the six names."""
    if isinstance(source, str) and source in list_recipes():
        return typing.cast(Recipe, importlib.import_module(f"{__package__}.recipes.{source}"))
    if isinstance(source, types.ModuleType):
        return check_recipe(source, source.__name__)
    if not isinstance(source, str | Path):
        raise InputError(f"a recipe is a name, a file, a Python path or a module, not {source!r}")
    if isinstance(source, Path) or source.endswith(".py") or "/" in source or "\\" in source:
        return check_recipe(import_file(Path(source)), str(source))
    points = importlib.metadata.entry_points(group="anyformer.recipes")
    if source in points.names:
        with report_import_errors(source):
            return check_recipe(points[source].load(), source)
    if "." in source:
        with report_import_errors(source, Path.cwd()):
            return check_recipe(importlib.import_module(source), source)
    if Path(f"{source}.py").is_file():
        raise InputError(f"there is no recipe '{source}': for the file here, write ./{source}.py")
    raise InputError(f"there is no recipe '{source}': {suggest(source, [*list_recipes(), *sorted(points.names)])}")


def load_stored_recipe(name: str, recipe: Any, where: Path) -> Recipe:
    """Load the recipe that the run `where` was trained with.

    A checkpoint never names code: only a recipe of the package is found by its name. Any other is brought by the
    caller, as `recipe`.
    """
    if recipe is None and name not in list_recipes():
        raise InputError(
            f"{where} was trained with the recipe '{name}', which is not part of anyformer: "
            f"name it with --recipe, for example --recipe ./{name}.py (in Python: load(..., recipe=module))"
        )
    loaded = load_recipe(name if recipe is None else recipe)
    if recipe_name(loaded) != name:
        raise InputError(f"{where} was trained with the recipe '{name}', not '{recipe_name(loaded)}'")
    return loaded


def check_recipe(module: Any, where: str) -> Recipe:
    """Return the module as a recipe. Raises InputError if it does not define what a recipe needs."""
    if missing := [name for name in NAMES if not hasattr(module, name)]:
        raise InputError(f"{where} is not a recipe: it has no `{missing[0]}`; a recipe has {', '.join(NAMES)}")
    presets = module.PRESETS
    if not isinstance(presets, Mapping) or not presets:
        raise InputError(f"{where}: PRESETS must be a mapping from names to configs, the first of them the smallest")
    for name, config in presets.items():
        fields = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
        if lacking := [field for field in ("data", "train") if field not in fields]:
            raise InputError(f"{where}: the preset '{name}' must be a frozen dataclass with a field `{lacking[0]}`")
    name = recipe_name(module)
    if name in list_recipes() and module.__name__ != f"{__package__}.recipes.{name}":
        raise InputError(f"{where}: anyformer has a recipe '{name}' of its own: rename yours")
    return typing.cast(Recipe, module)


# --- presets and stored configs ---


def default_preset(recipe: Recipe) -> str:
    """Return the name of the preset that is trained if none is named: the second, or the only one."""
    return list(recipe.PRESETS)[:2][-1]


def get_preset(recipe: Recipe, name: str | None = None) -> Any:
    """Return a preset's config. Raises InputError with the nearest name."""
    name = default_preset(recipe) if name is None else name
    if name not in recipe.PRESETS:
        raise InputError(f"there is no preset '{name}': {suggest(name, recipe.PRESETS)}")
    return recipe.PRESETS[name]


def parse_config(recipe: Recipe, values: Any, where: str) -> Any:
    """Build a config of a recipe from plain values. Raises InputError."""
    return parse_dataclass(type(get_preset(recipe)), values, where)


def resolve_paths(config: Any) -> Any:
    """Make the values of path fields (`path_field`) absolute if they name existing files, so that the run can be
    resumed from any folder. Several files are separated by commas."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = resolve_paths(value)
        elif field.metadata.get("path") and value:
            if value.startswith("~"):
                check_path(value, field.name)
            if field.name == "data":
                value = changes["data"] = make_absolute(value)
            # os.path.exists is False, and Path.exists an error, for a text that no path can be
            paths = [value] if os.path.exists(value) else value.split(",")
            ends = field.metadata["suffixes"] or ("",)
            if all(os.path.exists(p) and (p.endswith(ends) or len(Path(p).parts) > 1) for p in paths):
                changes[field.name] = ",".join(str(Path(path).resolve()) for path in paths)
    return dataclasses.replace(config, **changes)


def bind_checkpoint_files(config: Any, folder: Path, prefix: str = "") -> Any:
    """Set config fields for which the checkpoint holds a file of the model (tokenizer: tokenizer.json) to its path.
    `prefix`: of the names of these files."""
    names = [field.name for field in dataclasses.fields(config) if isinstance(getattr(config, field.name), str)]
    paths = {}
    for path in folder.glob(f"{prefix}*.json"):
        stem = path.stem.removeprefix(prefix)
        name = stem if stem in names else RENAMED_FIELDS.get(stem)
        if name in names and path.name not in ("config.json", "state.json"):  # these two are of every checkpoint
            paths[name] = str(path)
    return dataclasses.replace(config, **paths)


# --- files and packages outside of anyformer ---


@contextmanager
def report_import_errors(where: str, *folders: Path, what: str = "recipe") -> Generator[None]:
    """Let imports find modules in some folders. Whatever the imported code raises becomes an InputError of one line."""
    paths = [str(folder) for folder in folders]
    sys.path[:0] = paths
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
        raise InputError(f"cannot import the {what} {where}: {type(error).__name__}: {error} (line {line})") from error
    finally:
        for path in paths:
            with suppress(ValueError):
                sys.path.remove(path)


def import_file(path: Path, what: str = "recipe") -> types.ModuleType:
    """Import a file, or a folder with an __init__.py. A file that has not changed is imported once. `what` it is, for
    messages. Raises InputError."""
    file = Path(os.path.realpath(path / "__init__.py" if path.is_dir() else path))  # resolve() fails in a loop of links
    if not file.is_file():
        raise InputError(f"there is no {what} at {path}: expected a Python file")
    with report_import_errors(str(path), file.parent, what=what):
        return execute_file(file)


@cache_by_files(lambda file: [file], maxsize=64)
def execute_file(file: Path) -> types.ModuleType:
    is_package = file.name == "__init__.py"
    name = f"anyformer_recipe_files.{file.parent.stem if is_package else file.stem}"
    folders = [str(file.parent)] if is_package else None
    spec: Any = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
