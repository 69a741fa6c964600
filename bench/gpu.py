"""Benchmarks on one NVIDIA GPU, the most telling first: tests, training, time to a loss, generation, long windows.

    python -m bench.gpu --minutes 8 --out gpu.json --nanogpt ../nanoGPT --shakespeare input.txt
    python -m bench.gpu --minutes 30                     CIFAR-10 and Multi30k too
    python -m bench.gpu --only window training --json
    python -m bench.gpu --dry                            tiny shapes on any machine: checks that every part runs

checks        what must hold on a GPU (`pytest -m gpu`; pytest is not needed here)
training      GPT-2's 124M shape, context 1024, bfloat16: tokens/s and MFU of ours and nanoGPT's model, compiled
shakespeare   seconds until the loss over the validation split of tiny Shakespeare is 1.4697, which nanoGPT reports
generation    GPT-2's 124M shape, a prompt of 32 tokens, 128 new tokens, batch 1 and 32: ours and transformers
window        one layer of causal & window(256) through FlexAttention, and full causal attention through SDPA
cifar10       accuracy of the vision preset `cifar10-gpu` after some minutes
multi30k      BLEU of the translation preset `multi30k` after some minutes

Nothing is downloaded; torch, numpy, safetensors, tokenizers and rich are enough. Each part is a process of its own with
a time limit: a crash, or a kernel that never ends, costs its part alone, and what was measured before is kept. A part
for which no time is left is skipped. --out is written after each part. The checks run in several processes, and beside
them all that will be timed is compiled once, so that the timings find it in the compiler's cache.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True)
class Part:
    """Seconds that a part takes at most on a GPU, and those without which it is not worth starting."""

    at_most: float
    at_least: float = 25


CONTENDERS = ("anyformer", "nanoGPT", "anyformer, not compiled")  # of training
PARTS = {
    "checks": Part(120),
    "training": Part(100),
    "shakespeare": Part(90),
    "generation": Part(80),
    "window": Part(40),
    "cifar10": Part(600, 120),
    "multi30k": Part(600, 120),
}
COMPILED: dict[str, list[list[str]]] = {
    "training": [["--contenders", name] for name in CONTENDERS[:2]],
    "generation": [[]],
    "window": [[]],
}
"""What the compiler prepares: part -> the flags of each process."""
NO_GPU = 3  # exit status of a part
GRACE = 10  # seconds after its limit in which a part may end by itself


# --- running a part ---


def run_part(name: str, words: Sequence[str], limit: float, as_json: bool, stdout: Any = None) -> Rows:
    """Measure a part in a process of its own. Returns its rows, the last of which has the problem if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "bench._gpu_parts", name, str(file), f"{limit:.0f}", *words]
        status = run_limited(command, limit + GRACE, stdout or (sys.stderr if as_json else None))
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if status == NO_GPU:
        sys.exit("there is no NVIDIA GPU here: --dry runs the script without one")
    if status != 0:
        why = f"ended after its {limit:.0f} s" if status is None else f"crashed (exit status {status})"
        rows.append({"what": name, "problem": why})
        print(f"{name} {why}", file=sys.stderr, flush=True)
    return rows


def run_checks(options: argparse.Namespace, words: Sequence[str], limit: float) -> Rows:
    """Run the checks in several processes and, beside them, what compiles for the timings, whose figures do not count.
    Returns the rows of the checks."""
    parts = [name for name in COMPILED if name in options.only and not options.dry]
    quick = [*words, "--patience", "0", "--rounds", "1"]
    compiled = [(name, [*quick, *flags]) for name in parts for flags in COMPILED[name]]
    with ThreadPoolExecutor(options.workers + len(compiled)) as pool:
        shares = [[*words, "--share", f"{i}/{options.workers}"] for i in range(options.workers)]
        checks = [pool.submit(run_part, "checks", share, limit, options.json) for share in shares]
        others = [pool.submit(run_part, name, flags, limit, True, subprocess.DEVNULL) for name, flags in compiled]
        rows = [row for share in checks for row in share.result()]
        _ = [other.result() for other in others]
    return [row for row in rows if row["what"] != "device" or row is rows[0]]


def run_limited(command: Sequence[str], seconds: float, stdout: Any = None) -> int | None:
    """Run a process and all that it starts. Returns its exit status, None if it was ended after so many seconds."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    process = subprocess.Popen(command, cwd=Path.cwd(), env=environment, stdout=stdout, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # workers of the compiler too
        process.wait()


# --- the summary ---


def find_row(rows: Rows, start: str, key: str, **values: Any) -> Any:
    """Return a value of the first row whose name starts so and that has these values; None if there is none."""
    fitting = (row for row in rows if row["what"].startswith(start) and values.items() <= row.items())
    return next((row[key] for row in fitting if row.get(key) is not None), None)


def best_row(rows: Rows, start: str, key: str, **values: Any) -> Any:
    fitting = [row for row in rows if row["what"].startswith(start) and values.items() <= row.items()]
    return max((row[key] for row in fitting if row.get(key) is not None), default=None)


def divide(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def count_checks(rows: Rows) -> float | None:
    return sum("problem" not in row for row in rows) / len(rows) if rows else None


def compare_generation(rows: Rows, batch: int) -> float | None:
    peer = find_row(rows, "transformers", "tokens_per_second", batch=batch)
    return divide(best_row(rows, "anyformer", "tokens_per_second", batch=batch), peer)


def compare_windows(rows: Rows) -> float | None:
    dense, window = (find_row(rows, start, "training_ms", nodes=16384) for start in ("all of the past", "window"))
    return divide(dense, window)


def find_seconds(rows: Rows) -> float | None:
    return min((row["seconds"] for row in rows if row.get("reached")), default=None)


TARGETS: dict[str, tuple[str, Callable[[Rows], float | None], str, float]] = {
    "share of the checks that hold": ("checks", count_checks, ">=", 1.0),
    "124M, MFU": ("training", lambda rows: best_row(rows, "training, anyformer", "mfu"), ">=", 0.55),
    "124M, tokens/s, times nanoGPT's": (
        "training",
        lambda rows: divide(
            best_row(rows, "training, anyformer", "tokens_per_second"),
            find_row(rows, "training, nanoGPT", "tokens_per_second"),
        ),
        ">=",
        1.3,
    ),
    "tiny Shakespeare to 1.4697, seconds": ("shakespeare", find_seconds, "<=", 20.0),
    "generation, batch 1, times transformers'": ("generation", lambda rows: compare_generation(rows, 1), ">=", 3.0),
    "generation, batch 32, times transformers'": ("generation", lambda rows: compare_generation(rows, 32), ">=", 2.0),
    "16k nodes, window(256), times as fast as dense": ("window", compare_windows, ">=", 1.0),
    "CIFAR-10, accuracy": ("cifar10", lambda rows: best_row(rows, "cifar10", "accuracy"), ">=", 0.88),
    "Multi30k, BLEU": ("multi30k", lambda rows: best_row(rows, "multi30k", "bleu"), ">=", 36.5),
}
"""What is compared -> its part, its value, and the target."""


def summarize(results: dict[str, Any]) -> list[Row]:
    """Compare what was measured with the targets. A value that is missing has a reason instead."""
    summary = []
    for name, (part, measure, sign, target) in TARGETS.items():
        rows = results.get(part)
        value = measure(rows) if rows else None
        row: Row = {"what": name, "value": value, "target": f"{sign} {target:g}"}
        if value is not None and results.get("dry"):
            row["reason"] = "a dry run: tiny shapes"
        elif value is not None:
            row["is_met"] = value >= target if sign == ">=" else value <= target
        elif rows is not None:
            row["reason"] = next((r[key] for r in rows for key in ("problem", "skipped") if key in r), "not measured")
        summary.append(row)
    return summary


def format_summary(summary: Rows) -> str:
    lines = [f"{'':<48}{'value':>10}{'target':>10}"]
    for row in summary:
        value = "-" if row["value"] is None else f"{row['value']:,.3g}"
        verdict = {True: "met", False: "missed", None: row.get("reason", "not run")[:60]}[row.get("is_met")]
        lines.append(f"{row['what']:<48}{value:>10}{row['target']:>10}  {verdict}")
    return "\n".join(lines)


# --- all parts ---


def main(options: argparse.Namespace, words: Sequence[str]) -> None:
    started_at, results = time.monotonic(), {"parts": options.only, "minutes": options.minutes, "dry": options.dry}
    log = sys.stderr if options.json else sys.stdout
    for name in options.only:
        part, left = PARTS[name], 60 * options.minutes - (time.monotonic() - started_at) - GRACE
        if left < part.at_least:
            results[name] = [{"what": name, "skipped": f"{max(0, left):.0f} s of --minutes {options.minutes:g} left"}]
            print(f"{name} skipped: {results[name][0]['skipped']}", file=log, flush=True)
        else:
            print(f"--- {name}, at most {min(left, part.at_most):.0f} s", file=log, flush=True)
            limit, is_check = min(left, part.at_most), name == "checks"
            measure = partial(run_checks, options) if is_check else partial(run_part, name, as_json=options.json)
            results[name] = measure(words, limit=limit)
        results |= {"summary": summarize(results), "seconds": round(time.monotonic() - started_at, 1)}
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))
    print(format_summary(results["summary"]), file=log)
    if options.json:
        print(json.dumps(results))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each part")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, nothing compiled, on a CPU too")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--peak", type=float, help="dense bfloat16 TFLOP/s of this GPU; by default from a table")
    parser.add_argument("--workers", type=int, default=4, help="processes of the checks")
    parser.add_argument("--share", default="0/1", help="of the checks: the part I of N")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="of training; 32 rows of 1,024 tokens take 23 GB")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds of measuring each contender in training")
    parser.add_argument("--shakespeare", type=Path, help="input.txt; by default the set by name")
    parser.add_argument("--presets", nargs="+", default=["modern", "nanogpt-gpu"], help="of language, for shakespeare")
    parser.add_argument("--target", type=float, default=1.4697, help="loss over the whole validation split")
    parser.add_argument("--every", type=int, default=100, help="steps between validations")
    parser.add_argument("--steps", type=int, default=1000, help="of the preset modern")
    parser.add_argument("--lr", type=float, default=2e-3, help="of the preset modern")
    parser.add_argument("--rounds", type=int, default=3, help="of generation")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 1024, 4096, 65536])
    parser.add_argument("--width", type=int, default=256, help="of the window")
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args(), sys.argv[1:])
