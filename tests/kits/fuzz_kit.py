"""Attacks: files with something wrong in them, commands with limits, and what may come of it.

An attack is a seed, so that each can be repeated: `ANYFORMER_FUZZ=20000 make fuzz` tries so many of each kind. Where
$ANYFORMER_FUZZ_REPORT is set, the numbers are added to that JSON file, of which docs/reliability.md is made.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CPU_SECONDS, WALL_SECONDS = 60, 600
MEMORY_BYTES, FILE_BYTES, OPEN_FILES = 3 << 30, 1 << 30, 256
NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
WORDS: tuple[bytes, ...] = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b"\r", b"\n\n", b"\t", b",", b"[" * 5000,
    b"{" * 99, b"9" * 5001, b"-1", b"NaN", b"Infinity", b"1e999", b"1e-999", b"null", b"true", b"{}", b"[]",
    b"/dev/zero", b"../" * 9, b"/etc/passwd", b"x" * 300, "ß\u202e\u0301\U0001f600".encode(), b"%s%n", b"\x1b[2J",
    b"\\u0000", b"\\ud800", b"#REF!",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**31, 10**20, -(10**400), "", "x", "\ud800", "\0", "9" * 5001, "/dev/zero", "../../x",
    "1e999", float("nan"), float("inf"), [], {}, [[]], [None], {"": None}, ["x"] * 1000,
)  # fmt: skip


class Outcome(NamedTuple):
    """What became of a command."""

    code: int
    """Its exit code; negative: the signal that ended it."""
    errors: str
    """What it wrote to stderr."""


def run_limited(function: Callable[[], int], cpu_seconds: int = CPU_SECONDS) -> Outcome:
    """Call a function that returns an exit code in a child process, with limits on memory, time and files."""
    with tempfile.TemporaryFile("w+b") as errors:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                os.dup2(0, 1)
                os.dup2(errors.fileno(), 2)
                with (
                    open(2, "w", errors="backslashreplace", closefd=False) as stream,
                    contextlib.redirect_stderr(stream),
                ):
                    set_limits(cpu_seconds)
                    code = report_crash(function)
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        errors.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), errors.read().decode("utf-8", "replace"))


def report_crash(function: Callable[[], int]) -> int:
    try:
        return function()
    except BaseException:
        import traceback

        traceback.print_exc()
        return 98


def set_limits(cpu_seconds: int) -> None:
    size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    for limit, value in (
        (resource.RLIMIT_AS, size + MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES + max(map(int, os.listdir("/proc/self/fd")))),  # besides the parent's
    ):
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WALL_SECONDS)


def find_fault(outcome: Outcome, codes: tuple[int, ...] = (2,), is_small: bool = True) -> str:
    """Return what is wrong with an outcome, "" if nothing is: success, or one of these exit codes and one line.
    `is_small`: nothing was asked for that needs memory."""
    lines = outcome.errors.strip().splitlines()
    if outcome.code == 0:
        return ""
    if outcome.code < 0:
        return f"ended by {signal.Signals(-outcome.code).name}"
    if "Traceback (most recent call last)" in outcome.errors:
        return "\n".join(["a traceback", *lines[-12:]])
    if outcome.code not in codes or not lines or not lines[-1].startswith("anyformer: "):
        return "\n".join([f"exit code {outcome.code}", *lines[-5:]])
    return lines[-1] if (is_small and "out of memory" in lines[-1]) or len(lines[-1]) > 2000 else ""


class Tally:
    """How many attacks of a kind were tried, and what broke."""

    def __init__(self, kind: str, codes: tuple[int, ...] = (2,), is_small: bool = True):
        self.kind, self.codes, self.is_small, self.counts, self.broken = kind, codes, is_small, Counter(), []

    def add(self, name: str, outcome: Outcome) -> None:
        self.count(name, find_fault(outcome, self.codes, self.is_small), is_done=outcome.code == 0)

    def count(self, name: str, fault: str, is_done: bool) -> None:
        result = "broken" if fault else "done" if is_done else "refused"
        self.counts[result] += 1
        if fault:
            self.broken.append(f"{name}: {fault}")
        if report := os.environ.get("ANYFORMER_FUZZ_REPORT"):  # at once: hours of attacks may be interrupted
            path = Path(report)
            numbers = json.loads(path.read_text()) if path.exists() else {}
            numbers[self.kind] = dict(Counter(numbers.get(self.kind, {})) + Counter([result]))
            path.write_text(json.dumps(numbers, indent=1))
            if fault:
                with path.with_suffix(".broken.txt").open("a") as file:
                    file.write(f"{self.kind}, {self.broken[-1]}\n")

    def close(self) -> None:
        """Fail if anything broke."""
        assert not self.broken, f"{len(self.broken)} of {self.counts.total()} broke:\n" + "\n".join(self.broken[:20])


IS_FULL = "ANYFORMER_FUZZ" in os.environ  # `make fuzz`, and not the slice of it in `make test`


def count_attacks(slice_of_tests: int) -> range:
    """Return the seeds to try: few in `make test`, $ANYFORMER_FUZZ in `make fuzz`, from $ANYFORMER_FUZZ_SEED on."""
    start = int(os.environ.get("ANYFORMER_FUZZ_SEED", "0"))
    return range(start, start + int(os.environ.get("ANYFORMER_FUZZ", slice_of_tests)))


# --- files with something wrong in them ---


def harm_folder(folder: Path, chance: random.Random, files: Sequence[Path] | None = None) -> str:
    """Do something wrong to one file of a folder. Returns what."""
    path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()) if files is None else files)
    if chance.random() < 0.08:
        return f"{path.name}: {replace_file(path, chance)}"
    content, what = path.read_bytes(), "inside"
    if (inner := harm_inside(content, chance)) is None:
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            content, what = harm(content, chance)
    path.write_bytes(content if inner is None else inner)
    return f"{path.name}: {what}"


def harm_inside(content: bytes, chance: random.Random) -> bytes | None:
    """Return an archive with something wrong in a member of it, whose checksums fit; None for any other content, and
    for half of the archives."""
    if chance.random() < 0.5:
        return None
    if content.startswith(b"\x1f\x8b"):
        return gzip.compress(harm(gzip.decompress(content), chance)[0])
    if not content.startswith(b"PK"):
        return None
    source, buffer = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    members = {name: source.read(name) for name in source.namelist()}
    name = chance.choice(sorted(members))
    is_array = name.endswith(".npy") and chance.random() < 0.7
    members[name] = write_array(chance) if is_array else harm(members[name], chance)[0]
    with zipfile.ZipFile(buffer, "w") as target:
        for member, part in members.items():
            target.writestr(member, part)
    return buffer.getvalue()


def write_array(chance: random.Random) -> bytes:
    """Return an array, as .npy, of another shape and kind than anybody expects."""
    value = chance.choice(
        (0, -1, 1, 255, 2**31, 2**40, 2**60, 0.5, float("nan"), float("inf"), "a", "", True, b"x", 1j)
    )
    shape = chance.choice(((), (0,), (1,), (3,), (20,), (30,), (0, 2), (20, 1), (20, 2), (30, 3), (20, 8, 8), (1,) * 9))
    array = np.full(shape, value)
    kinds = [array.dtype, np.dtype(">i2"), np.dtype("f2"), np.dtype([("a", "i4")]), np.dtype("U3")]
    kinds += [np.dtype("<M8[s]")] * (array.dtype.kind != "S")  # numpy 2 reads beyond the end of bytes
    with contextlib.suppress(ValueError, TypeError, OverflowError), warnings.catch_warnings(action="ignore"):
        array = array.astype(chance.choice(kinds))
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


def replace_file(path: Path, chance: random.Random) -> str:
    """Put something that is no regular file in its place, or another file of the folder."""
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    other = chance.choice(others) if others else path
    content = other.read_bytes()
    path.unlink()
    kind = chance.choice(("gone", "fifo", "device", "folder", "loop", "empty", "other"))
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "empty":
            path.write_bytes(b"")
        case "other":
            path.write_bytes(content)
    return kind


def harm(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return a content with something wrong in it, and what."""
    kinds = [flip, cut, drop, repeat, insert, put_number, put_integer, put_value, put_cells]
    kind = chance.choice(kinds)
    return kind(content, chance), kind.__name__


def find_place(content: bytes, chance: random.Random) -> int:
    """Return an offset, in a half of the cases near the start, where headers are."""
    return chance.randrange(max(1, min(len(content), chance.choice((64, 1024, len(content))))))


def flip(content: bytes, chance: random.Random) -> bytes:
    array = bytearray(content or b"\0")
    for _ in range(chance.choice((1, 1, 8))):
        array[find_place(bytes(array), chance)] ^= 1 << chance.randrange(8)
    return bytes(array)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: find_place(content, chance)]


def drop(content: bytes, chance: random.Random) -> bytes:
    place = find_place(content, chance)
    return content[:place] + content[place + chance.choice((1, 2, 8, 100)) :]


def repeat(content: bytes, chance: random.Random) -> bytes:
    place, size = find_place(content, chance), chance.choice((1, 8, 100, 1000))
    return content[:place] + content[place : place + size] * chance.choice((2, 3, 50)) + content[place + size :]


def insert(content: bytes, chance: random.Random) -> bytes:
    place = find_place(content, chance)
    return content[:place] + chance.choice(WORDS) + content[place:]


def put_number(content: bytes, chance: random.Random) -> bytes:
    """Put a number, as bytes, where headers have sizes and offsets."""
    place, value = find_place(content, chance), chance.choice(NUMBERS)
    size = chance.choice((1, 2, 4, 8))
    packed = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))
    packed = struct.pack("<d", chance.choice((float("nan"), float("inf"), 1e300))) if chance.random() < 0.1 else packed
    return content[:place] + packed + content[place + len(packed) :]


def put_integer(content: bytes, chance: random.Random) -> bytes:
    """Put another number in place of one that is written in digits."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:100_000]))
    if not numbers:
        return insert(content, chance)
    place = chance.choice(numbers)
    value = chance.choice(
        (*(str(number).encode() for number in NUMBERS), b"1e999", b"NaN", b"9" * 5001, b"1.5", b"x", b"")
    )
    return content[: place.start()] + value + content[place.end() :]


def put_value(content: bytes, chance: random.Random) -> bytes:
    """Put another value somewhere into JSON, or into the JSON header of safetensors."""
    is_tensors = len(content) > 10 and content[8:9] == b"{"
    size = int.from_bytes(content[:8], "little") if is_tensors else 0
    try:
        value = json.loads(content[8 : 8 + size] if is_tensors else content)
    except (ValueError, RecursionError):
        return insert(content, chance)
    text = json.dumps(change_value(value, chance)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[8 + size :] if is_tensors else text


def put_cells(content: bytes, chance: random.Random) -> bytes:
    """Put another value into one line of a table or of JSON lines, or into the same column of all."""
    lines, value = content.split(b"\n"), chance.choice(VALUES)
    if b"\0" in content or len(lines) < 3:
        return insert(content, chance)
    if content.startswith(b"{"):
        place = chance.randrange(len(lines) - 1)
        lines[place] = put_value(lines[place], chance)
        return b"\n".join(lines)
    delimiter = max((b",", b"\t", b"|", b" "), key=lines[1].count)
    cell = json.dumps(value)[:600].strip('"').encode() if chance.random() < 0.5 else chance.choice(WORDS)
    column, only = chance.randrange(9), chance.choice((None, chance.randrange(len(lines))))
    for i, line in enumerate(lines):
        cells = line.split(delimiter)
        if line and (only is None or only == i):
            cells[column % len(cells)] = cell
        lines[i] = delimiter.join(cells)
    return b"\n".join(lines)


def change_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one part of it replaced, renamed or taken out."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key, what = chance.choice(list(value)), chance.random()
        if what < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if what < 0.2:
            return value | {chance.choice(("", "x", "\0", key + " ")): value[key]}
        return value | {key: change_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place, what = chance.randrange(len(value)), chance.random()
        part = [] if what < 0.1 else [value[place]] * 2 if what < 0.2 else [change_value(value[place], chance)]
        return [*value[:place], *part, *value[place + 1 :]]
    return chance.choice(VALUES)


@contextlib.contextmanager
def copy_folder(folder: Path) -> Any:
    """Yield a copy of a folder that can be harmed."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy, symlinks=True)
        yield copy
