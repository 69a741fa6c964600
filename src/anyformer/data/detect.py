"""Recognize what a file or a folder holds, from its first bytes, names, columns and values.

`detect` returns the possible readings, the most likely first. A reading names a kind of data; the recipe that trains on
this kind declares it (`recipe.find_recipe`). Nothing but the first rows of a few files is read.
"""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError
from .audio.read import AUDIO_EXTENSIONS
from .images.read import IMAGE_EXTENSIONS
from .io.archives import unpack_archive
from .io.class_folders import find_classes
from .io.file_store import FileStore
from .io.files import is_documentation, is_text, open_data, suffix
from .io.manifest import FURTHER_EXTENSIONS, TABLE_EXTENSIONS, is_json_lines, is_table, read_json_rows
from .io.parquet import read_parquet_rows
from .io.resolve import CODE_EXTENSIONS as SOURCE_EXTENSIONS
from .io.separated import (
    MIN_SHARE,
    SPACES,
    guess_delimiter,
    guess_quoting,
    name_columns,
    sample_rows,
    score_widths,
    split_rows,
)
from .sequences.read import ALIGNMENT_EXTENSIONS, ALIGNMENT_STARTS
from .sequences.read import FASTA_EXTENSIONS as SEQUENCE_EXTENSIONS
from .tables.columns import (
    Rows,
    is_smiles,
    plain_name,
)
from .tables.readings import Reading, read_rows
from .text.labeled import has_leading_labels
from .text.pairs import LANGUAGES, SOURCE_SIDES, TARGET_SIDES, find_parallel, split_side
from .text.shards import holds_shards, read_index
from .text.tagged import CONLL_EXTENSIONS, NAMED_EXTENSIONS, find_split_files, is_tagged
from .trajectories.read import is_trajectory

MAX_FILES = 20_000  # of a folder that are listed
MAX_ROWS = 300  # of a table that are looked at
MAX_SAMPLE_BYTES = 1 << 20  # of a file that are read

TEXT_EXTENSIONS = (".txt", ".md", ".rst", ".tex", ".html", ".log")
FASTA_EXTENSIONS = (*SEQUENCE_EXTENSIONS, *ALIGNMENT_EXTENSIONS)
CODE_EXTENSIONS = tuple(
    {*SOURCE_EXTENSIONS, ".m", ".lua", ".ex", ".erl", ".clj", ".scss", ".vue", ".ipynb"} - {*TEXT_EXTENSIONS}
)
TABLE_NAMES = (*TABLE_EXTENSIONS, *FURTHER_EXTENSIONS)
SIGNATURES = {
    "one image": re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL),
    "one sound": re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfb]", re.DOTALL),
    "a video": re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL),
    "HDF5": re.compile(rb"\x89HDF"),
    "a MATLAB file": re.compile(rb"MATLAB"),
    "one NumPy array": re.compile(rb"\x93NUMPY"),
    "the weights of a model": re.compile(rb"GGUF|.{8}\{\"", re.DOTALL),
    "a Python pickle, which could run code": re.compile(rb"\x80[\x02-\x05]"),
    "a program": re.compile(rb"\x7fELF|MZ"),
}  # of what is not taken
TAKEN = (
    "taken are texts (.txt, .md, a folder), tables (.csv, .tsv, .jsonl, .parquet), folders of images or sounds with "
    "class folders or a table, trajectories (.npz), FASTA, SMILES (.smi), ABC, and archives of these"
)
JSON_VALUE = r"(\"[^\"]*\"|[\w.+-]+)"  # of a text, a number, true, false or null
JSON_LIST = re.compile(rf"\s*(\{{\s*(\"[^\"]*\"\s*:\s*{JSON_VALUE}\s*,\s*)*\"[^\"]*\"\s*:\s*)?\[")  # maybe in an object
MAX_CLASS_FOLDERS = 0.5  # for each image or sound in them
MIN_TEXTS_PER_MEDIA = 2  # of a folder that is read as one of texts, in spite of images or sounds in it
MIN_TABLE_ROWS = 5  # of a file that is not named a table


def detect(data: str | Path) -> list[Reading]:
    """Return the readings of a file or a folder, or of a URL of shards, the most likely first. Raises InputError if
    there are none.

    Archives are unpacked, once, below the cache directory.
    """
    if holds_shards(str(data)):
        index, _ = read_index(FileStore(str(data)))
        return [Reading("documents", 1.0, f"{index.n_tokens:,} tokens in {len(index.shards):,} shards")]
    path = unpack_archive(Path(data))
    readings = list(_read_folder(path) if path.is_dir() else _read_file(path))
    if not readings:
        raise InputError(f"{path}: {_describe_unknown(path)}; {TAKEN}")
    return sorted(readings, key=lambda reading: -reading.score)


# --- files ---


def _read_file(path: Path, files: Mapping[str, str] | None = None) -> Iterator[Reading]:
    """Yield the readings of a file; `files` are those beside it, as `Rows` takes them."""
    extension = suffix(path)
    head = _read_head(path)
    if extension == ".parquet":
        yield from read_rows(Rows(_parquet_rows(path), files=files))
    elif extension == ".npz":
        yield from _read_npz(path)
    elif "idx" in path.name and "ubyte" in path.name:
        yield Reading("labeled images", 0.9, "an IDX file, as of MNIST")
    elif extension in AUDIO_EXTENSIONS or extension in IMAGE_EXTENSIONS:
        return
    elif b"\0" not in head:
        yield from _read_text_file(path, head.decode("utf-8-sig", "replace"), files)


def _read_head(path: Path) -> bytes:
    """The first bytes of a file, decompressed. Raises InputError for what cannot be opened."""
    with open_data(path) as file:
        return file.read(MAX_SAMPLE_BYTES)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in islice(read_parquet_rows(path), MAX_ROWS)]


def _read_npz(path: Path) -> Iterator[Reading]:
    names = set(_list_arrays(path))
    if is_trajectory(names):
        yield Reading("trajectories", 0.95, f"arrays {', '.join(sorted(names)[:5])}")
    elif names & {"images", "x_train"} or names >= {"data", "offsets"} or {"x", "y"} <= {n.lower() for n in names}:
        yield Reading("labeled images", 0.8, f"arrays {', '.join(sorted(names)[:4])}")


def _list_arrays(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as file:
            return sorted(name.removesuffix(".npy") for name in file.namelist())
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a .npz ({error})") from None


def _read_text_file(path: Path, text: str, files: Mapping[str, str] | None = None) -> Iterator[Reading]:
    extension = suffix(path)
    lines = [line for line in text.split("\n")[:-1] or [text] if line.strip()]  # the last line may be cut
    if not lines:
        raise InputError(f"{path}: is empty: expected data")
    if extension in (".jsonl", ".ndjson", ".json"):
        yield from read_rows(Rows(_json_rows(path, text), files=files))
        return
    if extension in NAMED_EXTENSIONS or (extension in CONLL_EXTENSIONS and is_tagged(text)):
        yield Reading("tagged text", 0.95, "a word and its tag on each line")
        return
    if special := _read_special(extension, lines):
        yield special
        return
    table = _split_table(path, lines, files)
    if table is not None:
        yield from read_rows(table)
    if extension in CODE_EXTENSIONS:
        yield Reading("code", 0.9, f"a {extension} file")
    elif extension not in TABLE_NAMES:
        yield Reading("text", 0.3 if table else 0.8, f"{len(lines):,} lines of text")


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """The first objects of a jsonl file, or of a JSON list, which may be cut."""
    is_object = text.lstrip().startswith("{")
    start = JSON_LIST.match(text)
    if suffix(path) == ".json" and not start and is_object and not is_json_lines(text):
        raise InputError(f"{path}: one JSON object: expected a list of objects, or an object in each line; {TAKEN}")
    if not start or (is_object and "\n" in text and is_json_lines(text)):
        return [row for _, row in islice(read_json_rows("\n".join(text.split("\n")[:MAX_ROWS]), path), MAX_ROWS)]
    decoder, position, rows = json.JSONDecoder(), start.end(), []
    while len(rows) < MAX_ROWS:
        match = re.compile(r"[\s,]*").match(text, position)
        try:
            value, position = decoder.raw_decode(text, match.end() if match else position)
        except (ValueError, RecursionError):
            break
        rows.append(value)
    return [row for row in rows if isinstance(row, dict)]


def _read_special(extension: str, lines: Sequence[str]) -> Reading | None:
    """Formats that are recognized by their lines: FASTA, Stockholm, ABC, SMILES, classes before texts."""
    if lines[0].startswith(ALIGNMENT_STARTS):
        return Reading("alignment", 0.95, "a Stockholm or Clustal alignment")
    if lines[0].startswith(">") and len(lines) > 1:
        return _read_fasta(extension, lines)
    if any(line.startswith("X:") for line in lines[:50]) and any(line.startswith("K:") for line in lines[:80]):
        return Reading("tunes", 0.95, "tunes in ABC notation (X:, K:)")
    if all(line.startswith("__label__") for line in lines[:20]):
        return Reading("labeled text", 0.9, "lines that start with __label__")
    if extension not in TABLE_NAMES and has_leading_labels("\n".join([*lines, ""])):
        return Reading("labeled text", 0.85, "a class before the text of each line")
    words = [line.split()[0] for line in lines[:MAX_ROWS]]
    if all(map(is_smiles, words)) and (
        extension == ".smi" or sum(bool(re.search(r"[=()#\d]", w)) for w in words) > len(words) / 2
    ):
        return Reading("molecules", 0.95, "a SMILES in each line")
    return None


def _read_fasta(extension: str, lines: Sequence[str]) -> Reading:
    sequences: list[str] = []
    for line in lines:
        if line.startswith(">"):
            sequences.append("")
        else:
            sequences[-1] += line.strip()
    sequences = sequences[:-1] or sequences  # the last one may be cut
    columns = {len(re.sub(r"[a-z.]", "", sequence)) for sequence in sequences}
    gaps = any("-" in sequence for sequence in sequences)
    if len(columns) == 1 and len(sequences) > 2 and gaps:
        return Reading("alignment", 0.95, f"{len(sequences)} or more aligned sequences of {columns.pop()} columns")
    return Reading("sequences", 0.95, "sequences in FASTA")


def _split_table(path: Path, lines: Sequence[str], files: Mapping[str, str] | None) -> Rows | None:
    """The first rows of a delimited file, cut and named as its reader does; None for lines that are no such rows."""
    is_table, sample = suffix(path) in TABLE_NAMES, "\n".join(lines[:MAX_ROWS])
    delimiter = "\t" if suffix(path) in (".tsv", ".tab") else guess_delimiter(sample)
    quoting = guess_quoting(sample, delimiter)
    if not is_table:
        rows = sample_rows(sample, delimiter, quoting)
        min_share = 1.0 if delimiter in (",", SPACES) else MIN_SHARE
        if len(rows) < MIN_TABLE_ROWS or score_widths(rows) < min_share:
            return None
    rows = [cells for _, cells in split_rows(sample, delimiter, quoting, path)]
    names, has_header = name_columns(rows)
    return Rows([dict(zip(names, row)) for row in rows[has_header:]], has_header, files)


# --- folders ---


def _list_files(folder: Path) -> list[Path]:
    """The visible files of a folder and of its folders, at most MAX_FILES."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    visible = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return list(islice(visible, MAX_FILES))


def _read_folder(folder: Path) -> Iterator[Reading]:
    files = _list_files(folder)
    if not files:
        raise InputError(f"{folder}: holds no files")
    data_files = [path for path in files if not is_documentation(path)]
    if len(data_files) == 1:
        for reading in _read_file(data_files[0]):
            yield replace(reading, options={"data": str(data_files[0])} | reading.options)
        return
    yield from _read_tagged_folder(folder, data_files)
    groups: dict[str, list[Path]] = {}
    for path in data_files or files:
        groups.setdefault(_group(path), []).append(path)
    media = [name for name in ("image", "sound") if len(groups.get(name, ())) > 1]
    written = len(groups.get("text", ())) + len(groups.get("code", ()))
    is_written = written > MIN_TEXTS_PER_MEDIA * sum(len(groups[name]) for name in media)
    yield from _read_table_folder(folder, groups, media)
    for name in media:
        for reading in _read_media_folder(folder, name, groups):
            yield replace(reading, score=reading.score / 2) if is_written else reading
    for name in ("fasta", "tunes", "array"):
        if members := groups.get(name):
            yield from _read_file(members[0])
    if is_written:
        yield from _read_text_folder(folder, groups)


def _tell_unread(groups: dict[str, list[Path]], *used: str) -> str:
    """Say what else a folder holds than groups that are used; "" for nothing."""
    counts = Counter(suffix(path) or path.name for name, paths in groups.items() if name not in used for path in paths)
    return "; not read: " * bool(counts) + ", ".join(f"{n:,} {ending}" for ending, n in counts.most_common(3))


def _read_table_folder(folder: Path, groups: dict[str, list[Path]], media: Sequence[str]) -> Iterator[Reading]:
    """Yield the readings of a table in a folder; beside images or sounds, of one that names them, else unsure ones."""
    files = {name: kind for kind in media for name in _list_names(groups[kind])}
    tables = groups.get("table") or [path for path in groups.get("text", []) if media and is_table(path)]
    for path in _select_tables(tables):
        with suppress(InputError) if media else nullcontext():
            readings = list(_read_file(path, files))
            naming = [reading for reading in readings if names_files(reading)]
            if media and not naming:
                readings = readings if path in groups.get("table", ()) else []  # it is a text
                why = f"; {path.name} names no {' and no '.join(media)}"
                readings = [replace(reading, score=reading.score / 2, why=reading.why + why) for reading in readings]
            others = ", ".join(table.name for table in tables[:4] if table != path)
            for reading in naming or readings:
                is_folder = suffix(path) == ".parquet" and reading.kind == "labeled images"  # maybe of several parts
                why = reading.why + (f"; not read: {others}" if others and not is_folder else "")
                yield replace(reading, why=why, options=reading.options | {"data": str(folder if is_folder else path)})


def names_files(reading: Reading) -> bool:
    """Whether a table is read as one of files."""
    return reading.kind.endswith(("images", "sounds")) or "combine files" in reading.why


def _read_tagged_folder(folder: Path, files: Sequence[Path]) -> Iterator[Reading]:
    train = find_split_files(path for path in files if path.parent == folder).get("train")
    if train and suffix(train) in (*CONLL_EXTENSIONS, ".jsonl"):
        yield from (reading for reading in _read_file(train) if reading.kind == "tagged text")


def _list_names(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield path.name
        yield path.stem


def _select_tables(tables: Sequence[Path]) -> list[Path]:
    """The table to look at: the one for training, else the largest."""
    starts = ("train", "metadata", "labels", "data")
    order = sorted(tables, key=lambda path: (not path.stem.lower().startswith(starts), -path.stat().st_size))
    return order[:1]


def _group(path: Path) -> str:
    extension = suffix(path)
    for name, extensions in {
        "image": IMAGE_EXTENSIONS,
        "sound": AUDIO_EXTENSIONS,
        "table": TABLE_NAMES,
        "fasta": FASTA_EXTENSIONS,
        "tunes": (".abc",),
        "array": (".npz",),
        "code": CODE_EXTENSIONS,
    }.items():
        if extension in extensions:
            return name
    if path.name.removesuffix(".gz").endswith("-ubyte"):
        return "array"
    return "text" if extension in TEXT_EXTENSIONS or is_text(path) else "other"


def _read_media_folder(folder: Path, name: str, groups: dict[str, list[Path]]) -> Iterator[Reading]:
    files, texts = groups[name], groups.get("text", [])
    stems = {path.stem for path in texts}
    share = sum(path.stem in stems for path in files) / max(len(files), len(texts) / MIN_TEXTS_PER_MEDIA)
    is_transcribed = share > 0.8 or any(path.name.endswith(".trans.txt") for path in texts)
    classes = {file.label for file in find_classes(folder, files)}
    is_by_folder = len({file.label for file in find_classes(folder, files, by_name=False)}) > 1
    if is_transcribed:
        kind = "transcribed sounds" if name == "sound" else "captioned images"
        unread = _tell_unread(groups, name, "text")
        yield Reading(kind, 0.85, f"{len(files):,} {name}s with a text file each{unread}")
    unread = _tell_unread(groups, name)
    if len(classes) > 1 and "" not in classes:
        why = f"{len(files):,} {name}s in {len(classes)} classes: {', '.join(sorted(classes)[:4])}{unread}"
        score = 0.9 if is_by_folder else 0.8  # less than a table that names the files
        score = 0.5 if is_transcribed or len(classes) > MAX_CLASS_FOLDERS * len(files) else score
        yield Reading(f"labeled {name}s", score, why, {"label": "label"} if name == "sound" else {})
    elif name == "image":
        yield Reading("images", 0.4 if is_transcribed else 0.7, f"{len(files):,} images in one folder{unread}")


def _read_text_folder(folder: Path, groups: dict[str, list[Path]]) -> Iterator[Reading]:
    texts, code = groups.get("text", []), groups.get("code", [])
    if len(code) > len(texts) / 2 and len(code) > 1:
        kinds = Counter(suffix(path) for path in code).most_common(3)
        names = ", ".join(kind for kind, _ in kinds)
        unread = _tell_unread(groups, "code", "text")
        yield Reading("code", 0.85, f"{len(code):,} files of source code ({names}){unread}")
        return
    if not texts:
        return
    is_one_name = len({(path.parent, path.stem) for path in texts}) == 1
    if len(texts) > 1 and is_one_name:
        names = [path.suffix.removeprefix(".") for path in texts]
        if not LANGUAGES & {plain_name(name) for name in names}:
            yield Reading("labeled text", 0.8, f"a file for each class: {', '.join(names[:4])}")
    if parallel := _find_parallel(texts):
        why = f"{parallel[0].name} and {parallel[1].name} have the same number of lines"
        is_train = parallel[0].parent == folder and split_side(parallel[0].name)[0] == "train"
        yield Reading("pairs", 0.85, why, {"data": str(folder) if is_train else ",".join(map(str, parallel))})
    classes = Counter(file.label for file in find_classes(folder, texts, by_name=False))
    is_class = len(classes) > 1 and "" not in classes and min(classes.values()) >= 3 and len(classes) <= 200
    if is_class:
        why = f"{len(texts):,} texts in {len(classes)} folders: {', '.join(sorted(classes)[:4])}"
        yield Reading("labeled text", 0.8, why)
    yield Reading(
        "documents" if len(texts) > 1 else "text", 0.6, f"{len(texts):,} text files{_tell_unread(groups, 'text')}"
    )


def _find_parallel(texts: Sequence[Path]) -> list[Path] | None:
    """Two files of equal names but for the language, or for source and target, with the same number of lines; those
    for training first."""
    by_folder: dict[Path, list[Path]] = {}
    for path in texts:
        by_folder.setdefault(path.parent, []).append(path)
    for members in by_folder.values():
        pairs = find_parallel(members)
        for stem in sorted(pairs, key=lambda stem: stem != "train"):
            first, second = (split_side(path.name)[1] for path in pairs[stem])
            is_language = {first, second} <= LANGUAGES or (first in SOURCE_SIDES and second in TARGET_SIDES)
            if is_language and len({_count_lines(path) for path in pairs[stem]}) == 1:
                return pairs[stem]
    return None


def _count_lines(path: Path) -> int:
    with open_data(path) as file:
        return sum(1 for _ in file)


def _describe_unknown(path: Path) -> str:
    if path.is_dir():
        kinds = Counter(suffix(file) or "no extension" for file in _list_files(path)).most_common(4)
        return "the folder holds " + ", ".join(f"{n:,} {kind}" for kind, n in kinds)
    if suffix(path) == ".npz":
        return (
            f"a .npz with arrays {', '.join(_list_arrays(path)[:6])}: expected images and labels, or states and actions"
        )
    head = _read_head(path)
    kind = next((kind for kind, magic in SIGNATURES.items() if magic.match(head)), "")
    kind = kind or ("binary data" if b"\0" in head else "text without rows, a header or sentences")
    return f"looks like {kind}, a {suffix(path) or 'file'} of {path.stat().st_size:,} bytes"
