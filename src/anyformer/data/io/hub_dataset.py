"""Data sets of the Hugging Face hub, as one file (or a folder of texts) that is read like any other.

Of the csv, tsv, json, jsonl, parquet and text files of a repository those of the training split are taken, parquet
before the others. Shards become one file; numbers that stand for named classes become the names.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import InputError, suggest
from .files import import_optional, open_data, suffix
from .hub import Listing, Reference, describe_by_hand, fetch_files, link_file, list_repository, parse_reference
from .manifest import read_rows

TABLES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")  # of equal number the first
TEXTS = (".txt", ".md")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
NOT_DATA = re.compile(r"(readme|licen[sc]e|dataset_infos?|config|requirements|\.)", re.IGNORECASE)
COMMON_FOLDERS = {"data", "default", "plain_text", "main"}
MAX_NAMES = 12  # in a message


def fetch_dataset(text: str) -> Path:
    """Return the local file (or folder of texts) with the training split of a data set. Raises InputError."""
    reference = parse_reference(text, "dataset")
    if reference is None:
        raise InputError(
            f"'{text}' is no data set of the hub: expected owner/name, owner/name@revision or owner/name/path"
        )
    listing = list_repository(reference, "dataset")
    names = select_files(reference, listing)
    stem, ending = reference.repo.partition("/")[2], suffix(Path(names[0]))
    if ending in TEXTS and len(names) > 1:
        return fetch_files(reference, "dataset", listing, names)
    prepare = partial(write_table, stem=Path(stem).name, ending=ending)
    folder = fetch_files(reference, "dataset", listing, names, prepare)
    return next(path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))


# --- which files ---


def select_files(reference: Reference, listing: Listing) -> list[str]:
    """Return the files of the training split, in order. Raises InputError where it is not clear which these are."""
    inside = [name for name in listing.sizes if is_inside(name, reference.path)]
    if reference.path and not inside:
        folders = dict.fromkeys(str(PurePosixPath(name).parent) for name in listing.sizes)
        nearest = suggest(reference.path, [*folders, *listing.sizes][:200])
        raise InputError(f"{reference.address} has no {reference.path}: {nearest}")
    names = [name for name in inside if is_data(name)] if reference.path not in listing.sizes else inside
    if not names:
        kinds = Counter(suffix(Path(name)) or "without ending" for name in inside).most_common(4)
        count = ", ".join(f"{n:,} {kind}" for kind, n in kinds) or "nothing"
        expected = ", ".join((*TABLES, *TEXTS))
        by_hand = describe_by_hand(reference, "dataset")
        raise InputError(f"{reference.address} holds {count}, and none of {expected}: {by_hand}")
    counts = Counter(suffix(Path(name)) for name in names)
    endings = [ending for ending in TABLES if counts[ending]] or [ending for ending in TEXTS if counts[ending]]
    kind = ".parquet" if counts[".parquet"] else max(endings, key=lambda ending: counts[ending])
    return select_folder(reference, select_split(reference, [name for name in names if suffix(Path(name)) == kind]))


def is_inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}/")


def is_data(name: str) -> bool:
    file = PurePosixPath(name)
    is_visible = not any(part.startswith(".") for part in file.parts)
    return is_visible and suffix(Path(name)) in (*TABLES, *TEXTS) and not NOT_DATA.match(file.name)


def find_split(name: str) -> str:
    """Return the split that a path names, "" for none."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, spellings in SPLITS.items() if words & set(spellings)), "")


def select_split(reference: Reference, names: Sequence[str]) -> list[str]:
    splits = {name: find_split(name.removeprefix(reference.path)) for name in names}
    for split in ("train", ""):
        if selected := sorted(name for name in names if splits[name] == split):
            return selected
    if len(names) == 1:
        return list(names)
    held = ", ".join(sorted(set(splits.values())))
    raise InputError(
        f"{reference.address} has no split to train on, only {held}: name a file, {reference.repo}/{names[0]}"
    )


def select_folder(reference: Reference, names: Sequence[str]) -> list[str]:
    """Return the files of one set, where a repository holds several in folders of their own."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(find_folder(name.removeprefix(reference.path)), []).append(name)
    if len(folders) == 1 or suffix(Path(names[0])) in TEXTS:
        return list(names)
    if "" in folders:
        return folders[""]
    examples = [f"{reference.repo}{'/' + reference.path if reference.path else ''}/{folder}" for folder in folders]
    hidden = f" and {len(examples) - MAX_NAMES} more" if len(examples) > MAX_NAMES else ""
    raise InputError(f"{reference.address} holds several sets: name one: {', '.join(examples[:MAX_NAMES])}{hidden}")


def find_folder(name: str) -> str:
    """Return the folder of a file without the names of splits and of folders that say nothing."""
    parts = PurePosixPath(name.lstrip("/")).parts[:-1]
    return "/".join(part for part in parts if part.lower() not in COMMON_FOLDERS and not find_split(part))


# --- one file ---


def write_table(files: Sequence[Path], folder: Path, stem: str, ending: str) -> None:
    """Write files of one kind as one file into an empty folder."""
    target = folder / f"{stem}{'.jsonl' if ending == '.json' else ending}"
    if ending == ".parquet":
        write_parquet(files, target)
    elif ending == ".json":
        write_json_lines(files, target)
    elif len(files) == 1:
        link_file(files[0], target.with_name(target.name + compression_suffix(files[0])))
    else:
        concatenate(files, target, has_header=ending in (".csv", ".tsv"))


def compression_suffix(path: Path) -> str:
    return "" if path.suffix.lower() == suffix(path) else path.suffix.lower()


def concatenate(files: Sequence[Path], target: Path, has_header: bool) -> None:
    """Write files one after the other; of tables the header once. Raises InputError if their headers differ."""
    header = None
    with open(target, "wb") as output:
        for path in files:
            with open_data(path) as file:
                first = file.readline(1 << 20)
                if not has_header or header is None:
                    header = first.strip()
                    output.write(first)
                elif first.strip() != header:
                    raise InputError(f"{path.name} has other columns than {files[0].name}: name one of them")
                end = b""
                while block := file.read(1 << 20):
                    output.write(block)
                    end = block[-1:]
                output.write(b"" if (end or first[-1:]) in (b"\n", b"") else b"\n")


def write_json_lines(files: Sequence[Path], target: Path) -> None:
    """Write lists of objects, or objects in lines, as objects in lines."""
    with open(target, "w", encoding="utf-8") as output:
        for path in files:
            for _, row in read_rows(path):
                output.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(files: Sequence[Path], target: Path) -> None:
    """Write parquet files as one, in bounded memory, with the names of classes instead of their numbers."""
    message = f"{target.name}: a .parquet file needs pyarrow: pip install 'anyformer[parquet]'"
    pyarrow, parquet = (import_optional(module, message) for module in ("pyarrow", "pyarrow.parquet"))
    try:
        with parquet.ParquetFile(files[0]) as file:
            classes = read_class_names(file.schema_arrow)
        if len(files) == 1 and not classes:
            link_file(files[0], target)
            return
        writer = None
        try:
            for path in files:
                with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
                    for batch in file.iter_batches(1024):
                        table = name_classes(pyarrow, batch, classes)
                        writer = writer or parquet.ParquetWriter(target, table.schema)
                        writer.write_table(table.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{files[0].name}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
    if writer is None:
        raise InputError(f"{files[0].name}: holds no rows")


def read_class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes by column, as the library `datasets` stores them in a file's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in named.items()
        if name in schema.names and isinstance(names, list) and all(isinstance(text, str) for text in names)
    }


def name_classes(pyarrow: Any, batch: Any, classes: dict[str, list[str]]) -> Any:
    """Return a batch as a table without metadata, the numbers of classes as their names; no class (-1) is missing."""
    table = pyarrow.Table.from_batches([batch]).replace_schema_metadata(None)
    for column, names in classes.items():
        numbers = table.column(column).to_pylist()
        values = [names[n] if isinstance(n, int) and 0 <= n < len(names) else None for n in numbers]
        table = table.set_column(table.schema.get_field_index(column), column, pyarrow.array(values, pyarrow.string()))
    return table
