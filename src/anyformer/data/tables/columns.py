"""What the columns of a table hold, by their names and first values: numbers, dates, categories, texts, files."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..audio.read import AUDIO_EXTENSIONS
from ..images.read import IMAGE_EXTENSIONS
from ..io.embedded import find_extension, read_embedded
from ..io.manifest import plain_name
from .read import is_missing

MAX_NUMBER_CLASSES = 20  # of a column of whole numbers
MAX_CODE_CHARS = 4  # of a code with the letters of a SMILES
MIN_ROWS_IN_ORDER = 200  # which may all be of the first class, where the rows are in order of class
MIN_MEDIA_SHARE = 0.8  # that end as images or sounds do: the others are mistakes, which are named
MIN_FILE_SHARE = 0.95  # of the values of a column that are names of files
MAX_CLASS_SHARE = 0.2  # a column of texts with fewer distinct values per row is a category
LABEL_NAMES = tuple(
    """
    label labels class category target sentiment intent topic polarity tag genre emotion stars rating is_spam spam
    star_rating score
    """.split()  # noqa: SIM905
)
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "message", "document", "title", "comment", "tweet")
TRANSCRIPT_NAMES = ("text", "sentence", "transcript", "transcription", "normalized_text", "utterance")
SPLIT_NAMES = ("split", "is_test", "is_val", "fold", "subset", "set")
SOURCE_NAMES = ("source", "src", "input", "question", "article", "document", "en", "english", "prompt", "original")
TARGET_NAMES = ("target", "tgt", "output", "answer", "summary", "highlights", "response", "completion", "simplified")
TIME_NAMES = (
    *("date", "datetime", "time", "timestamp", "ds"),
    *("month", "year", "week", "day", "quarter", "period", "hour"),
)
TABLE_TARGETS = tuple(
    """
    target label class y outcome depvar dependent_variable response species survived died death quality price default
    churn diagnosis deposit result medv mpg charges saleprice median_house_value strength sales rings type salary score
    rating choice status income
    """.split()  # noqa: SIM905
)
TARGET_ENDINGS = {"target", "label", "class", "outcome", "price", "income", "salary", "score", "rating", "status"}
NO_TARGETS = {
    *("id", "index", "code", "zip", "name", "url", "comment", "comments", "note", "notes", "remarks", "reference"),
    *("lat", "latitude", "lon", "lng", "longitude", *TIME_NAMES),
}


@dataclass
class Column:
    """The values of a column in the first rows, without the missing ones.

    `files`: the names of images and sounds beside the table, with and without their extension -> "image" or "sound".
    """

    name: str
    values: list[Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.texts = [value.strip() if isinstance(value, str) else str(value) for value in self.values]
        self.distinct = len(set(self.texts))
        self.kind = self._find_kind()

    def share(self, test: Callable[[str], Any]) -> float:
        return sum(bool(test(text)) for text in self.texts) / max(1, len(self.texts))

    @property
    def words(self) -> float:
        """The mean number of words."""
        return sum(len(text.split()) for text in self.texts) / max(1, len(self.texts))

    def _find_kind(self) -> str:
        """One of: empty, image, sound, list, number, date, year, smiles, constant, category, text, id."""
        if not self.values:
            return "empty"
        if kind := self._find_media():
            return kind
        name = plain_name(self.name)
        if name in TIME_NAMES and self.share(is_year) > 0.95:
            return "year"
        is_index = name in INDEX_NAMES or name == "1"  # a first column without a name
        if is_index and self.share(str.isdigit) == 1 and self.distinct == len(self.texts):
            return "id"
        for kind, test in TESTS.items():
            least = MIN_MEDIA_SHARE if kind in ("image", "sound") else 0.95
            if self.share(test) > least and (kind != "smiles" or self._holds_molecules()):
                return kind
        if self.distinct == 1:
            return "constant"
        is_repeated = self.distinct <= max(2, MAX_CLASS_SHARE * len(self.texts))
        if is_repeated and self.words < 8:
            return "category"
        if self.words >= 3 or max(map(len, self.texts)) > 60:
            return "text"
        return "id" if self.distinct > 0.9 * len(self.texts) and self.words < 1.5 else "text"

    def _holds_molecules(self) -> bool:
        """Whether texts that may be SMILES are: codes such as C39 are not, unless the name says so."""
        return "smiles" in plain_name(self.name) or self.share(lambda text: len(text) > MAX_CODE_CHARS) > 0.5

    def _find_media(self) -> str:
        """Whether the values are the contents or the names of files: "image", "sound" or ""."""
        if contents := [content for value in self.values if (content := read_embedded(value)) is not None]:
            endings = set(map(find_extension, contents))
            return "image" if endings <= {*IMAGE_EXTENSIONS} else "sound" if endings <= {*AUDIO_EXTENSIONS} else ""
        is_file = self.files and self.share(lambda text: file_name(text) in self.files) > MIN_FILE_SHARE
        if not is_file or 2 * self.distinct < len(self.texts):
            return ""
        return self.files[next(name for name in map(file_name, self.texts) if name in self.files)]


def file_name(text: str) -> str:
    return re.split(r"[/\\\\]", text)[-1]


def is_whole(text: str) -> bool:
    """Whether a text is a whole number, as a class may be."""
    return is_number(text) and float(text.strip("$€£% ").replace(",", "")) % 1 == 0


def is_year(text: str) -> bool:
    """Whether a text is a year, or a year and a part of it, such as 1949.083."""
    return is_number(text) and 1500 < float(text.replace(",", "")) < 2200


def is_number(text: str) -> bool:
    try:
        float(text.strip("$€£% ").replace(",", ""))
    except ValueError:
        return False
    return True


INDEX_NAMES = ("", "id", "index", "unnamed_0", "column_1", "row", "rownames", "no", "nr")
CLOCK = r"([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp][Mm])?)?"
MONTH = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
DATE = re.compile(
    rf"\d{{4}}([-/]\d{{1,2}}([-/]\d{{1,2}})?|\.\d{{1,2}}\.\d{{1,2}}){CLOCK}(Z| ?[+-]\d{{2}}:?\d{{2}})?"  # 2024-01-31
    rf"|\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}{CLOCK}"  # 31.1.2024 12:00
    r"|\d{4}[- ]?[Qq][1-4]"  # 2024Q1
    rf"|(\d{{1,2}}[ -])?{MONTH}[ -](\d{{1,2}},?[ -])?\d{{2,4}}"  # Jan 31, 2024
    r"|(1[89]|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])"  # 20240131
)
SMILES = re.compile(r"(\[[^\]\s]+\]|Br|Cl|[BCNOPSFIbcnops]|\d|%\d\d|[=#$:/\\\-+().~*@])+")


def is_smiles(text: str) -> bool:
    """Whether a text may be a molecule: its letters are atoms, and each open ring is closed (C00012 is none)."""
    rings = Counter(re.findall(r"%\d\d|\d", re.sub(r"\[[^\]]*\]", "", text)))
    return bool(SMILES.fullmatch(text) and re.search(r"[Cc]", text)) and all(n % 2 == 0 for n in rings.values())


TESTS: dict[str, Callable[[str], Any]] = {
    "list": lambda text: text.startswith(("[", "{")) and text.endswith(("]", "}")),
    "image": lambda text: text.lower().endswith(IMAGE_EXTENSIONS),
    "sound": lambda text: text.lower().endswith(AUDIO_EXTENSIONS),
    "date": DATE.fullmatch,
    "number": is_number,
    "smiles": is_smiles,
}


class Rows:
    """The first rows of a table by column, and what its columns are."""

    def __init__(self, rows: Sequence[dict[str, Any]], has_header: bool = True, files: Mapping[str, str] | None = None):
        names = dict.fromkeys(name for row in rows for name in row)
        self.count, self.has_header = len(rows), has_header
        values = {name: [row[name] for row in rows if not is_missing(row.get(name))] for name in names}
        self.columns = {name: Column(name, values[name]) for name in names}
        if files and not (self["image"] or self["sound"]):  # maybe the names are without extensions
            self.columns = {name: Column(name, values[name], files) for name in names}

    def __getitem__(self, kind: str) -> list[str]:
        """The names of the columns of a kind."""
        return [name for name, column in self.columns.items() if column.kind == kind]

    def pick(self, names: Sequence[str], among: Sequence[str]) -> str | None:
        """The first column of `among` that has one of these names, whatever its case and separators."""
        plain = {plain_name(name): name for name in reversed(among)}
        return next((plain[name] for name in names if name in plain), None)

    def only_number(self, exclude: Sequence[str]) -> str | None:
        """The only other column, where it holds few whole numbers: classes, whatever its name."""
        others = [name for name, column in self.columns.items() if name not in exclude and column.kind != "empty"]
        column = self.columns[others[0]] if len(others) == 1 else None
        is_class = column is not None and column.kind == "number" and column.share(is_whole) == 1
        return others[0] if is_class and 2 <= self.columns[others[0]].distinct <= MAX_NUMBER_CLASSES else None

    def label(self, exclude: Sequence[str] = ()) -> str | None:
        """The column of classes: one that is named so, or the only category; without names, whole numbers too."""
        numbers = [name for name in self["number"] if 2 <= self.columns[name].distinct <= MAX_NUMBER_CLASSES]
        numbers = [name for name in numbers if self.columns[name].share(is_whole) == 1]
        among = [name for name in (*self["category"], *numbers, *self["id"]) if name not in exclude]
        categories = [name for name in self["category"] if name not in exclude and plain_name(name) not in SPLIT_NAMES]
        categories += [] if self.has_header or categories else [name for name in numbers if name not in exclude]
        named = [name for name in among if {"label", "class", "category"} & set(plain_name(name).split("_"))]
        only = categories[0] if len(categories) == 1 else None
        constant = [name for name, column in self.columns.items() if column.distinct == 1 and name not in exclude]
        in_order = self.pick(LABEL_NAMES, constant) if self.count >= MIN_ROWS_IN_ORDER else None
        return self.pick(LABEL_NAMES, among) or (named[0] if named else in_order or only)
