"""Install a built wheel into an empty environment, and do there what the README promises a newcomer.

python tests/release/try_wheel.py dist/anyformer-0.1.0-py3-none-any.whl build/clean

Needs nothing but Python and a registry; nothing of the repository is on the path of the commands. Prints a line for
each command, and at the end the seconds and megabytes of the installation. Exits with 1 at the first that fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the cat sat on the mat. the dog sat on the log.\n" * 200
TABLE = "size,color,label\n" + "".join(
    f"{i % 7},{'red' if i % 2 else 'blue'},{'a' if i % 2 else 'b'}\n" for i in range(80)
)

COMMANDS = """\
anyformer --help
anyformer --version
anyformer doctor
anyformer list
anyformer detect my.txt
anyformer train language --preset tiny --data my.txt --steps 20 --out runs/mine
anyformer sample runs/mine --prompt the --tokens 20
anyformer predict runs/mine "the cat"
anyformer eval runs/mine
anyformer export runs/mine --to hf exported
anyformer import exported --out runs/again
anyformer lens runs/mine --input "the cat sat" --out lens.html
anyformer train multimodal --preset table --data my.csv --target label --steps 20 --out runs/table
anyformer predict runs/table '{"size": 3, "color": "red"}'
anyformer runs
"""

WITHOUT_EXTRAS = """\
anyformer serve runs/mine
anyformer export runs/mine --to onnx onnx
anyformer export runs/mine --to gguf gguf
anyformer sample runs/mine --regex a+
anyformer train language --preset tiny --data my.txt --steps 1 --track wandb
"""


class TrialError(Exception):
    """A command did not do what it should."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="of the environment and of what the commands write; is made anew")
    options = parser.parse_args()
    wheel, folder = options.wheel.resolve(), options.folder.resolve()
    try:
        seconds, megabytes = install(wheel, folder)
        try_commands(folder)
    except TrialError as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    print(f"ok      {wheel.name}: installed in {seconds:.0f} s, {megabytes:,.0f} MB with what it needs")
    return 0


def install(wheel: Path | str, folder: Path) -> tuple[float, float]:
    """Make an environment with the wheel alone, or with the extras in brackets behind it. Returns the seconds of the
    installation and its megabytes."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "venv", with_pip=True)
    start, size_before = time.monotonic(), measure_megabytes(folder)
    run(folder, f"python -m pip install --quiet --disable-pip-version-check -c '{ROOT}/constraints.txt' '{wheel}'")
    return time.monotonic() - start, measure_megabytes(folder) - size_before


def try_commands(folder: Path) -> None:
    """Run the commands of a first hour, what is refused for want of an extra, and the code of the README."""
    (folder / "my.txt").write_text(TEXT)
    (folder / "my.csv").write_text(TABLE)
    for command in COMMANDS.splitlines():
        run(folder, command)
    for command in WITHOUT_EXTRAS.splitlines():
        message = run(folder, command, code=2).stderr.strip()
        if "\n" in message or not re.search(r"pip install 'anyformer\[\w+\]'", message):
            raise TrialError(f"{command}: the extra is not named in one line: {message}")
    (folder / "readme").mkdir(exist_ok=True)
    code = read_code((ROOT / "README.md").read_text(encoding="utf-8"))
    (folder / "readme" / "run_blocks.py").write_text("\n".join(code), encoding="utf-8")
    run(folder, "cd readme && python run_blocks.py")
    where = run(folder, "python -c 'import anyformer; print(anyformer.__file__)'").stdout.strip()
    if not Path(where).is_relative_to(folder):
        raise TrialError(f"{where} was imported, which is not in {folder}")


def run(folder: Path, command: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run a command of the environment in its folder. Raises TrialError unless it exits with `code`."""
    start = time.monotonic()
    environment = {
        "PATH": f"{folder}/venv/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "ANYFORMER_CACHE": f"{folder}/cache",
    }
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    kept = ("PIP_", "SSL_", "HTTP", "http", "REQUESTS_")  # how the registry is reached
    environment |= {name: value for name, value in os.environ.items() if name.startswith(kept)}
    process = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode != code:
        raise TrialError(
            f"{command}: exit {process.returncode}, not {code}\n{process.stdout[-2000:]}{process.stderr[-2000:]}"
        )
    print(f"{time.monotonic() - start:5.1f} s  {command}", flush=True)
    return process


def read_code(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)


def measure_megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
