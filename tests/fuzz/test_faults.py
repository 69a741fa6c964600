"""Faults of the machine, for the tiny preset of every recipe: kills, full and read-only disks, removed folders, jumps
of the clocks, several processes at once, damaged checkpoints.

Whatever happens, the command ends well, or with one line; and the same command, given again, ends with the same files
as one that was never disturbed.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from anyformer.recipe_loading import list_recipes
from cli_kit import call
from data_kit import SMALL_DATA
from fault_kit import (
    DISK_ERRORS,
    TRIES,
    Child,
    let_clocks_jump,
    make_rng,
    refuse_writes,
    remove_while_writing,
    report_faults,
)

RECIPES = list_recipes() if TRIES else ["vision"]  # the fastest
SETTINGS = {"batch": 2, "eval-every": 2, "eval-batches": 1, "final-every": 1000, "save-every": 2, "average": 1}
FLAGS = [part for name, value in SETTINGS.items() for part in (f"--train.{name}", value)]
LOST_BEST = "is gone: the last one takes its place"
UNSEALED = ("timings.jsonl", "report.html", "result.json")  # they hold times


@dataclass(frozen=True)
class Bench:
    """Runs of one recipe, below a folder of their own."""

    recipe: str
    folder: Path

    def train(self, out: Path, fault: Callable[[], None] = lambda: None, steps: int = 5) -> Child:
        """Begin or continue a run in a child process, which tells its exit code and what it wrote to stderr."""
        data = ["--data", SMALL_DATA[self.recipe]] if self.recipe in SMALL_DATA else []
        machine = ["--preset", "tiny", "--device", "cpu", "--dtype", "float32"]

        def run() -> str:
            os.chdir(out.parent)
            fault()
            command = ["train", self.recipe, *machine, *data, *FLAGS, "--steps", steps, "--resume", "--out", out.name]
            result = call(*command)
            return f"{result.code}\n{result.err}"

        return Child(run)

    @property
    def reference(self) -> tuple[dict[str, bytes], float]:
        """The files of an undisturbed run, and its seconds."""
        return make_reference(self)

    def new(self, name: str) -> Path:
        out = self.folder / name / "run"
        out.parent.mkdir()
        return out

    def judge_end(self, out: Path, lost_best: bool = False) -> str:
        """Give the command again, and return what differs from the undisturbed run, of which the checkpoints and the
        figures of the best one may do so once it is lost."""
        if not (text := self.train(out).wait()).startswith("0\n"):
            return f"given again: {text[-300:]}"
        files, expected = read_run(out), self.reference[0]
        if lost_best:
            files, expected = (
                {n: c for n, c in x.items() if "step-" not in n and n != "figures.json"} for x in (files, expected)
            )
        return ", ".join(f"{name} differs" for name in {**files, **expected} if files.get(name) != expected.get(name))


@cache
def make_reference(bench: Bench) -> tuple[dict[str, bytes], float]:
    bench.train(out := bench.new("first")).wait()  # its data are in the cache then
    started_at = time.monotonic()
    text = bench.train(out := bench.new("reference")).wait()
    seconds = time.monotonic() - started_at
    assert text.startswith("0\n"), text
    return read_run(out), seconds


def read_run(out: Path) -> dict[str, bytes]:
    paths = [path for path in out.rglob("*") if path.is_file() and path.name not in UNSEALED]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def judge(text: str) -> str:
    """Return what is wrong with the end of a command: nothing if it did its work, or gave one line of an error."""
    code, _, err = text.partition("\n")
    lines = [line for line in err.splitlines() if line.startswith(("anyformer: ", "stopped at step "))]
    if code == "0" and not lines:
        return ""
    is_one_line = code in ("1", "2") and len(lines) == 1 and err.rstrip("\n").endswith(lines[0])
    return "" if is_one_line and "Traceback" not in err else text[-300:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:

    return tmp_path_factory.mktemp("faults")


@pytest.fixture(params=RECIPES, scope="module")
def bench(folder: Path, request: pytest.FixtureRequest) -> Bench:
    (folder / request.param).mkdir()
    return Bench(request.param, folder / request.param)


@pytest.mark.slow
def test_signals(bench: Bench):
    """SIGKILL, SIGTERM and SIGINT at random moments, again and again, in a run that is continued each time."""
    rng, failures, tried = make_rng(f"signals {bench.recipe}"), [], 0
    seconds, out, tries = bench.reference[1], bench.new("signals"), TRIES or 3
    for i in range(tries):
        number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        child = bench.train(out)
        child.kill(number, rng.uniform(0, seconds))
        text, tried = child.wait(), tried + 1
        if judge(text) and text != f"ended with {-number}":  # before the command handles signals, one ends it
            failures.append(f"{number.name}: {text[-300:]}")
        if i % 4 == 3 or i == tries - 1:
            failures += filter(None, [bench.judge_end(out)])
            shutil.rmtree(out)
    report_faults("SIGKILL, SIGTERM, SIGINT", failures, tried)


@pytest.mark.slow
def test_disks_that_refuse(bench: Bench):
    """From a random operation on, every one that creates or changes something fails: full, over quota, read-only ..."""
    rng, failures = make_rng(f"disks {bench.recipe}"), []
    for i in range(tries := TRIES or 3):
        out, number, code = bench.new(f"disk-{i}"), rng.randrange(110), rng.choice(DISK_ERRORS)
        text = bench.train(out, lambda out=out, n=number, code=code: refuse_writes(out, n, code)).wait()
        problem = judge(text) or bench.judge_end(out)
        failures += [f"{os.strerror(code)} at operation {number}: {problem}"] * bool(problem)
    report_faults("disk full, over quota or read-only", failures, tries)


@pytest.mark.slow
def test_small_disks(bench: Bench):
    """A file system of a few pages, so that it is a write in the middle of a file that fails."""
    rng, failures, tried = make_rng(f"tmpfs {bench.recipe}"), [], 0
    n_bytes = sum(map(len, bench.reference[0].values()))
    for i in range(TRIES or 3):
        disk = bench.folder / f"tmpfs-{i}"
        disk.mkdir()
        size = 4096 * rng.randrange(1, max(2, int(1.5 * n_bytes) // 4096))
        if not mount(disk, size):
            pytest.skip("this process may not mount a file system")
        try:
            text, tried = bench.train(disk / "run").wait(), tried + 1
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            problem = judge(text) or bench.judge_end(disk / "run")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        failures += [f"{size} bytes: {problem}"] * bool(problem)
    report_faults("small file system", failures, tried)


def mount(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_removed_folders(bench: Bench):
    """The run or its checkpoints are removed before a random operation: one line, or all is saved again. Without its
    best checkpoint a run goes on, says so, and is the same but for that."""
    rng, failures = make_rng(f"removed {bench.recipe}"), []
    for i in range(tries := TRIES or 2):
        out, number = bench.new(f"removed-{i}"), rng.randrange(80)
        doomed = out if i % 2 else out / "checkpoints"
        fault = lambda out=out, n=number, doomed=doomed: remove_while_writing(out, n, doomed)  # noqa: E731
        text = bench.train(out, fault).wait()
        is_half = out.exists() and not (out / "config.json").exists()
        problem = judge(text) or "the folder was made again" * is_half or bench.judge_end(out, LOST_BEST in text)
        failures += [f"{doomed.name} before operation {number}: {problem}"] * bool(problem)
    report_faults("removed folder", failures, tries)


@pytest.mark.slow
def test_clocks(bench: Bench):
    """The clocks jump, and the run ends as if they had not."""
    failures = []
    for i in range(tries := max(1, TRIES // 5)):
        out, rng = bench.new(f"clocks-{i}"), make_rng(f"clocks {bench.recipe} {i}")
        problem = judge(bench.train(out, lambda rng=rng: let_clocks_jump(rng)).wait()) or bench.judge_end(out)
        failures += [problem] * bool(problem)
    report_faults("jumping clocks", failures, tries)


@pytest.mark.slow
def test_several_processes(bench: Bench):
    """Three commands at once on one run; one of them is killed."""
    rng, failures = make_rng(f"several {bench.recipe}"), []
    for i in range(tries := max(1, TRIES // 5)):
        out = bench.new(f"several-{i}")
        children = [bench.train(out) for _ in range(3)]
        children[0].kill(signal.SIGKILL, rng.uniform(0, bench.reference[1]))
        texts = [child.wait() for child in children]
        problem = next(filter(None, map(judge, texts[1:])), "") or bench.judge_end(out)
        failures += [problem] * bool(problem)
    report_faults("several processes at once", failures, tries)


@pytest.mark.slow
def test_damaged_checkpoints(bench: Bench):
    """A random file of the last checkpoint is changed, cut or removed: the run continues from the one before, or the
    command says what is damaged."""
    rng, failures = make_rng(f"damaged {bench.recipe}"), []
    bench.train(start := bench.new("start"), steps=4).wait()
    for i in range(tries := TRIES or 3):
        out = bench.new(f"damaged-{i}")
        shutil.copytree(start, out)
        last = max((out / "checkpoints").glob("step-*"))
        path = rng.choice(sorted(last.glob("[!S]*")))
        content = bytearray(path.read_bytes())
        if i % 3 == 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content[: rng.randrange(len(content))] if i % 3 == 1 else content)
        if i % 3 == 2:
            path.unlink()
        text = bench.train(out).wait()
        is_said = f"{last.name}/{path.name}" in text
        problem = judge(text) or "damage was accepted" * (not is_said)
        if not problem and text.startswith("0\n"):  # the file of the run's config differs: its steps were changed
            name = "checkpoints/step-5/model.safetensors"
            problem = "other weights" * (read_run(out)[name] != bench.reference[0][name])
        failures += [f"{path.name}: {problem}"] * bool(problem)
    report_faults("damaged checkpoint", failures, tries)
