"""Train each recipe for some steps, so that its page can show what the report of a run looks like: `make docs`.

python docs/site/reports.py build/docs-reports

Writes reports/NAME.html in that folder. The runs are those of the preset `tiny` and take a minute or two of one core;
the data come with the repository and its packages. A report that is newer than the code and the data is kept.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyformer
from anyformer import recipe_loading

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "tests" / "data_files"
PROSE = ROOT / "docs" / "tour.md"  # a text, where the recipe's own takes seconds to read
STEPS = 120
DATA = {
    "chat": FILES / "chats.jsonl",
    "preference": FILES / "pairs.jsonl",
    "grpo": FILES / "prompts.jsonl",
    "music": FILES / "tunes.abc",
    "classify": FILES / "moods.csv",
    "msa": FILES / "family.a3m",
    **dict.fromkeys(("language", "recall", "masked", "mlp", "spans", "diffusion"), PROSE),
}
SLOWER = {"grpo": 30, "generalist": 60, "rnnsearch": 60}  # steps of those that take longer


def describe_run(name: str) -> tuple[str, dict[str, Any]]:
    """Return the command of the run behind a report, and what `anyformer.train` is called with."""
    steps, source = SLOWER.get(name, STEPS), DATA.get(name)
    settings: dict[str, Any] = {"preset": "tiny", "steps": steps}
    command = f"anyformer train {name} --preset tiny --steps {steps}"
    if source is None:
        return command, settings
    data = source.relative_to(ROOT).as_posix()
    return f"{command} --data {data}", settings | {"data": data}


def main() -> None:
    folder = Path(sys.argv[1]).resolve() / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    newest = max(
        path.stat().st_mtime for part in ("src", "docs/tour.md", "tests/data_files") for path in list_files(ROOT / part)
    )
    for name in recipe_loading.list_recipes():
        report = folder / f"{name}.html"
        if not report.exists() or report.stat().st_mtime < newest:
            start = time.process_time()
            with TemporaryDirectory() as run:
                anyformer.train(name, **describe_run(name)[1], out=f"{run}/{name}", device="cpu", progress=False)
                shutil.copyfile(f"{run}/{name}/report.html", report)
            print(f"{name}: {time.process_time() - start:.1f} CPU seconds", flush=True)


def list_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.suffix != ".pyc"] if path.is_dir() else [path]


if __name__ == "__main__":
    main()
