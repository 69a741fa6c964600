"""Run everything that this project claims about itself, and write a page with the result: `make test-all`.

python tests/release/run_all.py build/test-all.md                     hours
python tests/release/run_all.py build/test-all.md check docs dist     some of it; the page says what was left out

Each step is a target of the Makefile. All are run, whatever fails; the output of each is in a file beside the page.
Exits with 1 if a step failed.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = {
    "check": "format, lint, types, who may import whom",
    "test": "what shows in seconds: exactness, recipes, files, command line, documents",
    "weights": "real checkpoints from packages, for the slow tests",
    "test-slow": "what takes minutes: real data, real checkpoints, trainings that must reach a score",
    "test-browser": "the page of the server, in chromium",
    "test-hf4": "public checkpoints by version 4 of transformers",
    "test-trackers": "TensorBoard, Weights & Biases, MLflow, trackio, read back",
    "test-random": "the tests in another order",
    "fuzz-short": "damaged files, odd requests and faults, a few examples of each",
    "docs": "the documentation builds, and its links lead somewhere",
    "dist": "wheel and sdist, installed into an empty environment and tried there",
    "first-hour": "a newcomer's first hour with seven kinds of their own data, with a stopwatch",
}


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: str
    code: int
    seconds: float
    summary: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"all by default: {', '.join(STEPS)}")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"there is no step '{min(unknown)}'; steps: {', '.join(STEPS)}")
    logs = options.page.with_suffix("")
    logs.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for step in (step for step in STEPS if step in (options.steps or STEPS)):
        results.append(run_step(step, logs))
        print(format_row(results[-1]), flush=True)
        options.page.write_text(format_page(results), encoding="utf-8")
    return int(any(result.code for result in results))


def run_step(step: str, logs: Path) -> Result:
    start, log = time.monotonic(), logs / f"{step}.txt"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.run(
            [os.environ.get("MAKE", "make"), "--no-print-directory", step],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Result(step, process.returncode, time.monotonic() - start, summarize(log.read_text("utf-8", "replace")))


def summarize(output: str) -> str:
    """Return the line of an output that says most: that of pytest, or the last one."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" =") for line in output.splitlines() if line.strip()]
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    return (counts or lines or ["no output"])[-1][:160].replace("|", "¦")


def format_page(results: list[Result]) -> str:
    """Return the page: each step with its result, and the machine that it ran on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    missing = [step for step in STEPS if step not in {result.step for result in results}]
    lines = [
        "# The last check of everything",
        "",
        f"`make test-all`, {when}, commit {commit.stdout.strip()}, {machine}.",
        "",
    ]
    lines += ["| step | what it shows | result | minutes | last line |", "|---|---|---|--:|---|"]
    lines += [format_row(result) for result in results]
    lines += [f"| `{step}` | {STEPS[step]} | not run | | |" for step in missing]
    return "\n".join([*lines, ""])


def format_row(result: Result) -> str:
    verdict = f"**failed** (exit {result.code})" if result.code else "passed"
    return f"| `{result.step}` | {STEPS[result.step]} | {verdict} | {result.seconds / 60:.1f} | {result.summary} |"


if __name__ == "__main__":
    sys.exit(main())
