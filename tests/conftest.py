"""What all tests share: one thread, a cache of their own, and the real data where there is some."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from cli_kit import train

settings.register_profile("steady", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("steady")
torch.set_num_threads(1)  # the tests run side by side, one a core


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared tokens go to a folder of this test session, so that nothing depends on what a person has cached."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; skips, with the reason, where there is none."""
    folder = os.environ.get("ANYFORMER_DATA")
    if not folder:
        pytest.skip("$ANYFORMER_DATA is not set: it names the folder with shakespeare.txt and the other data sets")
    return Path(folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text with something to learn."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60, encoding="utf-8")
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path) -> Path:
    """A finished run of four steps."""
    train(text, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, made once: tests copy it and leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("the cat sat on the mat. the dog sat on the log.\n" * 60, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        train(folder / "text.txt", folder / "run")
    return folder / "run"
