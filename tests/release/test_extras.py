"""Extras: what needs a package that is not there names the extra that brings it, in one line, where it is needed."""

import re
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from anyformer import metrics
from anyformer.checkpoints import gguf, onnx
from anyformer.cli import serve
from anyformer.data.audio.read import read_blocks
from anyformer.data.images.read import import_pillow
from anyformer.data.io.file_store import FileStore
from anyformer.data.io.hub import Reference, explain_errors
from anyformer.data.io.parquet import open_parquet
from anyformer.data.music.midi import read_midi
from anyformer.data.sequences.structure import read_chains
from anyformer.data.trajectories.environments import import_gymnasium
from anyformer.errors import InputError
from anyformer.evaluation.harness import run_tasks
from anyformer.inference.structure import import_llguidance
from anyformer.recipes._shared.table_baselines import train_gradient_boosting
from anyformer.report.plots import import_pyplot
from anyformer.sweep.sampler import import_optuna
from anyformer.training.trackers import TRACKERS, import_tracker

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEVELOPMENT = {"all", "test", "browser", "bench", "check", "docs", "notebook"}  # what nobody meets who uses the package
ANYTHING: Any = None


class Need(NamedTuple):
    """A package of an extra, and a call that needs it."""

    module: str
    call: Callable[[], Any]


NEEDS = {
    "parquet": Need("pyarrow", lambda: open_parquet(Path("a.parquet")).__enter__()),
    "gguf": Need("gguf", lambda: gguf.write(Path("out"), ANYTHING, {}, ANYTHING)),
    "onnx": Need("onnxscript", lambda: onnx.write(Path("out"), ANYTHING, {}, ANYTHING)),
    "audio": Need("soundfile", lambda: next(read_blocks(Path("a.wav")))),
    "vision": Need("PIL.Image", import_pillow),
    "control": Need("gymnasium", lambda: import_gymnasium("CartPole-v1")),
    "hub": Need("huggingface_hub", lambda: explain_errors(Reference("a/b", "a/b"), "dataset").__enter__()),
    "s3": Need("fsspec.core", lambda: FileStore("s3://bucket/corpus").read("index.json", 10)),
    "gs": Need("fsspec.core", lambda: FileStore("gs://bucket/corpus").read("index.json", 10)),
    "serve": Need("starlette", lambda: serve.run(ANYTHING)),
    "structure": Need("llguidance", import_llguidance),
    "evaluation": Need("lm_eval", lambda: run_tasks(ANYTHING, [], None, None)),
    "compare": Need("sklearn.ensemble", lambda: train_gradient_boosting(*[ANYTHING] * 4)),
    "scores": Need("sacrebleu.metrics.bleu", lambda: metrics.score_translations([], [])),
    "sweep": Need("optuna", import_optuna),
    "music": Need("mido", lambda: read_midi(Path("a.mid"))),
    "proteins": Need("gemmi", lambda: read_chains(Path("a.pdb"))),
    "plot": Need("matplotlib.pyplot", import_pyplot),
} | {name: Need(name, lambda name=name: import_tracker(name)) for name in TRACKERS}


@pytest.mark.parametrize("extra", sorted({*PROJECT["optional-dependencies"]} - DEVELOPMENT))
def test_a_missing_extra_is_named_in_one_line(extra: str, monkeypatch: pytest.MonkeyPatch):
    """A new extra fails here until a call that needs it is listed above."""
    monkeypatch.setitem(sys.modules, NEEDS[extra].module, None)
    monkeypatch.setattr(serve, "read_key", lambda options: Namespace())
    with pytest.raises(InputError) as error:
        NEEDS[extra].call()
    assert f"pip install 'anyformer[{extra}]'" in str(error.value) and "\n" not in str(error.value)


def test_messages_and_documents_name_extras_that_exist():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    names = {
        name
        for page in pages
        for names in re.findall(r"anyformer\[([\w,]+)\]", page.read_text())
        for name in names.split(",")
    }
    assert names - {*PROJECT["optional-dependencies"]} == set()
    assert names >= set(NEEDS) - set(TRACKERS)  # whose names are written with a variable


def test_all_has_no_package_of_its_own():
    [everything] = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) <= set(NEEDS)
