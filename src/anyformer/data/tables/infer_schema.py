"""Infer a schema from the rows of a table, for the user to check and correct.

Columns of which nothing can be learned are left out, each with the reason: constants, identifiers (a different value in
every row), names that hardly repeat, and columns that give the target away.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_notice
from ..audio.read import AUDIO_EXTENSIONS
from ..images.measure import choose_format
from ..images.read import IMAGE_EXTENSIONS, ImageSource, read_image
from ..sampling import IS_VALIDATION
from .columns import INDEX_NAMES, SPLIT_NAMES, TIME_NAMES, plain_name
from .dates import find_format, find_parts, is_order_open, parse_date
from .read import Table
from .relations import describe_leak
from .schema import FIELD_OPTIONS, Field, Schema, Target
from .summary import MAX_WORDS, ColumnSummary, TableSummary, summarize
from .validation_hints import report_groups, report_order

MAX_CATEGORIES = 32  # a column of texts with at most this many values is a category
MAX_INTEGER_CLASSES = 10  # a target of at most this many integers is a class
MIN_COUNT = 5  # rows of a category of its own, in a column of more categories
MAX_WORD_SHARE = 0.2  # of a column of numbers or dates: words, which are read as missing
MIN_DISTINCT_NUMBERS = 10  # in such a column: fewer, and a word among them, are categories such as 1, 2, 3+
MAX_DIGIT_WORDS = 2  # such as 12a in a column of numbers; more are codes
UNIQUE = 0.95  # different values per value of an identifier
MAX_CATEGORY_WORDS = 4.0  # in the mean; longer ones are texts
MIN_NAME_ROWS = 200  # that the words of names can be learned from
MIN_JUDGED_ROWS = 10  # of a target, below which its classes are taken as they are
MAX_RARE_CLASSES = 0.01  # of the rows that may be left out because their class has no second one
ID_NAME = re.compile(r"(?:^|[^A-Za-z])(?:id|ID|Id)$|[a-z](?:Id|ID)$|(?i:^(?:uuid|guid|pid|rownames?)$)")
ID_WORDS = frozenset((*INDEX_NAMES, "case", "obs", "observation", "subject", "patient", "record", "key"))
FIRST_WITHOUT_NAME = "1"  # a first column that has no name, as R writes the names of rows
CODE_NAME = re.compile(r"zip(_?code)?|postal(_?code)?|post_?code|plz|fips|(area|country|product|item)_?code")


def infer_schema(table: Table, targets: Sequence[str], group: str = "", order: str = "") -> Schema:
    """Infer a schema of the rows, with these columns as targets; `group` and `order` as in `Schema`. Raises
    InputError, also for a target that cannot be learned."""
    summary = summarize(table)
    if not targets:
        raise InputError(f"no target column: --target NAME, one of {', '.join(list(summary.columns)[:12])}")
    for name, purpose in (*((name, "predict") for name in targets), (group, "group by"), (order, "order by")):
        if name and name not in summary.columns:
            raise InputError(f"the data have no column '{name}' to {purpose}: {suggest(name, summary.columns)}")
    inferred_targets = tuple(infer_target(summary.columns[name], summary.rows) for name in targets)
    split = find_split_column(summary, targets)
    fields, left_out = infer_fields(summary, inferred_targets, {group: "the group", split: "the split"})
    if not fields:
        reasons = describe_left_out(left_out) if left_out else ""
        problem = f"the data have no usable column besides {', '.join(targets)}: nothing to predict from"
        raise InputError(f"{problem} (left out: {reasons})" if reasons else problem)
    fields = [fit_image(field, summary, table.folder) if field.kind == "image" else field for field in fields]
    report_reading(summary, (*fields, *inferred_targets), left_out)
    if not (group or order or split):
        names = [*(field.name for field in fields if field.kind != "date"), *left_out]
        report_groups(summary, names, [name for name in names if names_identifier(name)])
        report_order(summary, fields)
    return Schema(tuple(fields), inferred_targets, group, order, "" if group or order else split, left_out)


def infer_fields(
    summary: TableSummary, targets: Sequence[Target], roles: dict[str, str]
) -> tuple[list[Field], dict[str, str]]:
    """Return the fields, and why the other columns are left out: `roles` says what some of them are."""
    fields, left_out = [], {}
    for name, column in summary.columns.items():
        if name in (target.name for target in targets):
            continue
        leaks = (describe_leak(summary, name, target.name, target.kind == "number") for target in targets)
        inferred = infer_field(column, summary.rows)
        if name in roles:
            left_out[name] = roles[name]
        elif isinstance(inferred, Field) and (leak := next(filter(None, leaks), "")):
            left_out[name] = leak
        elif isinstance(inferred, Field):
            fields.append(inferred)
        else:
            left_out[name] = inferred
    counting = [name for name in left_out if is_numeric(column := summary.columns[name]) and column.distinct > 1]
    if not fields and (name := next(iter(sorted(counting, key=str.isdigit)), "")):  # all that there is to predict from
        fields = [make_field(name, "scalar")]
        del left_out[name]
    return fields, left_out


def make_field(name: str, kind: str, **options: Any) -> Field:
    return Field(name, kind, **FIELD_OPTIONS[kind] | options)


def fit_image(field: Field, summary: TableSummary, folder: Path) -> Field:
    """Return a field of images with the size and the color of its files."""
    paths = [folder / name for name in summary.columns[field.name].counts]
    labels = np.zeros(len(paths), np.int64)
    form = choose_format(ImageSource(lambda i: read_image(paths[i]), labels, ("",), None, *paths))
    sizes = {} if form is None else {name: getattr(form, name) for name in ("height", "width", "channels", "patch")}
    return replace(field, **sizes)


def find_split_column(summary: TableSummary, targets: Sequence[str]) -> str:
    """Return the column that says which rows are for validation; "" where there is none."""
    for name, column in summary.columns.items():
        values = {value.lower() for value in column.counts}
        is_named = plain_name(name) in SPLIT_NAMES and name not in targets and column.count == summary.rows
        if is_named and values <= IS_VALIDATION.keys() and len({IS_VALIDATION[value] for value in values}) == 2:
            return name
    return ""


# --- fields ---


def infer_field(column: ColumnSummary, rows: int) -> Field | str:
    """Return the most likely field of a column, or why it is left out."""
    if not column.count:
        return "empty"
    if column.lists:
        return infer_list(column)
    if column.distinct == 1 and column.count == rows:
        return "constant"
    if column.names_files(IMAGE_EXTENSIONS):
        return make_field(column.name, "image")
    if column.names_files(AUDIO_EXTENSIONS):
        return make_field(column.name, "audio", seconds=1.0, cut=True)
    if column.distinct == 1:  # it is there or missing
        return make_field(column.name, "category")
    return infer_date(column) or infer_number(column) or infer_words(column)


def infer_list(column: ColumnSummary) -> Field | str:
    longest = max(column.lengths)
    if not column.is_list:
        raise InputError(f"the column '{column.name}' holds lists and other values: give it a list in every row")
    if not longest:
        return "empty"
    if not column.item_shape and len(column.lengths) == 1:
        return make_field(column.name, "vector", size=longest)
    channels = column.item_shape[0] if column.item_shape else 1
    return make_field(column.name, "series", channels=channels, rate=1.0, seconds=float(longest))


def infer_date(column: ColumnSummary) -> Field | None:
    """Return the field of a column of dates or times; None for other columns."""
    texts = [name for name in column.counts if not is_plain_number(column, name)]
    pattern = find_format(texts, plain_name(column.name) in TIME_NAMES) if texts else None
    if pattern is None:
        return None
    seconds = {text: parse_date(text, pattern) for text in texts}
    words = tuple(text for text, value in seconds.items() if value is None)
    moments = np.array([value for value in seconds.values() if value is not None])
    numbers = [name for name in column.counts if name not in seconds]
    is_mixed = len(words) > MAX_WORDS or column.count_texts(words) > MAX_WORD_SHARE * column.count
    if numbers or is_mixed or len(moments) < 2:
        return None
    if is_order_open([text for text in texts if text not in words], pattern):
        order = "month, day" if pattern.startswith("%m") else "day, month"
        report_notice(f"{column.name}: {texts[0]} is read as {order}, year: otherwise, change format in the schema")
    return make_field(column.name, "date", format=pattern, parts=find_parts(moments), missing=words)


COMPACT_DATE = re.compile(r"(1[89]|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")  # 20240131
UNIX_TIME = re.compile(r"\d{10}")


def is_plain_number(column: ColumnSummary, text: str) -> bool:
    """Whether a text is a number and no compact date or, in a column of this name, seconds since 1970."""
    if text not in column.numbers or COMPACT_DATE.fullmatch(text):
        return False
    return not (plain_name(column.name) in TIME_NAMES and UNIX_TIME.fullmatch(text))


def infer_number(column: ColumnSummary) -> Field | str | None:
    """Return the field of a column of numbers, or why it is left out; None for other columns, such as codes."""
    if not is_numeric(column):
        return None
    is_id_name = names_identifier(column.name)
    if column.words and (is_id_name or sum(any(map(str.isdigit, word)) for word in column.words) > MAX_DIGIT_WORDS):
        return None  # codes, most of which happen to be digits only
    if column.is_integer and plain_name(column.name) not in TIME_NAMES:
        is_unique = column.share_of_distinct > UNIQUE
        is_index = is_counting(column) or (is_unique and (is_id_name or column.name == FIRST_WITHOUT_NAME))
        if is_index and column.distinct > 2:
            return describe_unique(column)
        if not is_unique and (is_id_name or CODE_NAME.fullmatch(plain_name(column.name))):
            return None
    return make_field(column.name, "scalar", decimal=column.decimal, missing=tuple(column.words))


def names_identifier(name: str) -> bool:
    return bool(ID_NAME.search(name)) or plain_name(name) in ID_WORDS


def is_numeric(column: ColumnSummary) -> bool:
    """Whether the values are numbers, but for a few words that mean a missing one."""
    if not column.words:
        return bool(column.numbers)
    is_few = len(column.words) <= MAX_WORDS and column.count_texts(column.words) <= MAX_WORD_SHARE * column.count
    return is_few and len(column.numbers) >= MIN_DISTINCT_NUMBERS


def is_counting(column: ColumnSummary) -> bool:
    """Whether the values count the rows, from 0 or 1."""
    if column.share_of_distinct < 1 or column.distinct < 3:
        return False
    numbers = list(column.numbers.values())  # in the order of the rows
    return numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all())


def infer_words(column: ColumnSummary) -> Field | str:
    """Return the field of a column of words: a category or a text, or why it is left out."""
    name, longest = column.name, max(column.lengths, default=1)
    is_long = column.words_per_text >= MAX_CATEGORY_WORDS or longest > 60
    if not is_long or column.distinct <= MAX_CATEGORIES:
        rows_of_each = MIN_COUNT if names_identifier(name) else 2
        if column.distinct <= min(MAX_CATEGORIES, max(2, column.count // rows_of_each)):
            return make_field(name, "category")
        if column.share_of_frequent(MIN_COUNT) >= 0.5 and not column.count_when_full:
            return make_field(name, "category", min_count=MIN_COUNT)
    shares_words = column.count >= MIN_NAME_ROWS and share_of_shared_words(column) >= 0.25
    if is_long or (shares_words and not names_identifier(name)):
        return make_field(name, "text", tokens=min(128, max(8, longest // 2)), cut=True)
    return describe_unique(column)


def share_of_shared_words(column: ColumnSummary) -> float:
    """Return which part of the words of names occur in several of them: at least 5, and 1 % of them."""
    words = Counter(word for name in column.counts for word in set(name.split()))
    threshold = max(MIN_COUNT, 0.01 * column.distinct)
    return sum(n for n in words.values() if n >= threshold) / max(1, sum(words.values()))


def describe_unique(column: ColumnSummary) -> str:
    if column.share_of_distinct == 1:
        return "a different value in every row"
    if column.share_of_distinct > 0.9:
        return "a different value in almost every row"
    return f"{column.distinct:,} values in {column.count:,} rows, too few rows of each"


# --- targets ---


def infer_target(column: ColumnSummary, rows: int) -> Target:
    """Return the target in a column. Raises InputError for one that cannot be learned."""
    name = column.name
    if not column.count:
        raise InputError(f"the target '{name}' is missing in all {rows:,} rows: nothing to learn; choose another")
    if column.lists:
        raise InputError(f"the target '{name}' holds lists: a class or a number in each row is expected")
    if column.distinct == 1:
        (only,) = column.counts
        raise InputError(f"the target '{name}' has one value ({only}) in every row: nothing to learn; choose another")
    is_class = column.is_integer and column.distinct <= MAX_INTEGER_CLASSES
    if column.distinct > 2 and (min(column.counts.values()) == 1 or column.count < MIN_COUNT * column.distinct):
        is_class = False  # too few rows of each number for classes
    if is_numeric(column) and not is_class:
        return Target(name, "number", decimal=column.decimal, missing=tuple(column.words))
    return Target(name, "class", missing=find_rare_classes(column))


def find_rare_classes(column: ColumnSummary) -> tuple[str, ...]:
    """Return the classes of a single row, which can be in training or in validation only. Raises InputError where they
    are more than a few."""
    rare = tuple(name for name, n in column.counts.items() if n == 1)
    if not rare or column.count < MIN_JUDGED_ROWS:
        return ()
    names = ", ".join(name[:40] for name in rare[:3]) + (", ..." if len(rare) > 3 else "")
    classes = f"the target '{column.name}' has {column.distinct:,} classes in {column.count:,} rows"
    if column.distinct > 0.5 * column.count or column.count_when_full:
        raise InputError(f"{classes}: too many to learn; choose a target with several rows of each class")
    if len(rare) > MAX_RARE_CLASSES * column.count:
        hint = 'merge them, take these rows out, or list them in a schema as missing = ["..."]'
        raise InputError(f"{classes}, {len(rare)} of them with a single row ({names}): {hint}")
    report_notice(f"{column.name}: classes with a single row are left out ({names}): {len(rare)} of {column.distinct}")
    return rare


# --- what is said ---


def report_reading(summary: TableSummary, columns: Sequence[Field | Target], left_out: dict[str, str]) -> None:
    """Say which columns are left out, and which values are read as missing."""
    if left_out:
        report_notice(f"left out: {describe_left_out(left_out)}; a schema can name them (--print-schema)")
    for column in columns:
        if column.missing and column.kind in ("scalar", "date", "number"):
            values, what = summary.columns[column.name], "date" if column.kind == "date" else "number"
            words = ", ".join(map(repr, column.missing[:3])) + (", ..." if len(column.missing) > 3 else "")
            count = f"{values.count_texts(column.missing):,} of {values.count:,} values"
            report_notice(f"{column.name}: {count} are no {what} ({words}): read as missing")


def describe_left_out(left_out: dict[str, str]) -> str:
    """List columns by the reason why they are left out: "a, b (constant), id (a different value in every row)"."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return ", ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
