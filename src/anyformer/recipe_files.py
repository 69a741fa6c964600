"""Import recipes from files and packages outside of anyformer."""

import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .data.io.cache import cache_by_files
from .errors import InputError


@contextmanager
def report_import_errors(where: str, *folders: Path) -> Generator[None]:
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
        raise InputError(f"cannot import the recipe {where}: {type(error).__name__}: {error} (line {line})") from error
    finally:
        for path in paths:
            with suppress(ValueError):
                sys.path.remove(path)


def import_file(path: Path) -> types.ModuleType:
    """Import a file, or a folder with an __init__.py. A file that has not changed is imported once."""
    file = Path(os.path.realpath(path / "__init__.py" if path.is_dir() else path))  # resolve() fails in a loop of links
    if not file.is_file():
        raise InputError(f"there is no recipe at {path}: expected a Python file")
    with report_import_errors(str(path), file.parent):
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
