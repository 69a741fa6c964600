"""Run the notebooks of this folder from their first cell to their last, each in an empty folder: `make test-slow`.

python docs/notebooks/execute.py            fails at the first cell that raises
python docs/notebooks/execute.py --write    and stores the outputs
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parent
MAX_BYTES = 60_000  # of a notebook with its outputs


def execute(path: Path) -> Any:
    """Return a notebook with the outputs of this run. Raises CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}, record_timing=False)
        return client.execute()


def list_notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


if __name__ == "__main__":
    import nbformat

    for path in list_notebooks():
        notebook = execute(path)
        print(path.name, "ran")
        if "--write" in sys.argv:
            notebook.metadata = {"language_info": {"name": "python"}}
            nbformat.write(notebook, path)
