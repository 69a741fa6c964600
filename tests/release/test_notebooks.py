"""Notebooks of the documentation: they run from the first cell to the last, and hold small outputs of a real run."""

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
execute_py = runpy.run_path(str(FOLDER / "execute.py"))
all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_there_are_notebooks():
    assert execute_py["list_notebooks"]() == NOTEBOOKS and len(NOTEBOOKS) >= 4


@all_notebooks
def test_outputs_are_stored_small_and_without_errors(path: Path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert path.stat().st_size <= execute_py["MAX_BYTES"]
    assert outputs and {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert "/tmp/" not in path.read_text(encoding="utf-8")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.slow
@all_notebooks
def test_every_cell_runs(path: Path):
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'anyformer[notebook]'")
    notebook = execute_py["execute"](path)
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert text.strip() and "Error" not in text
