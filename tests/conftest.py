"""What all tests share: one thread, a cache of their own, and the real data where there is some."""

import gc
import os
from pathlib import Path

import pytest

from cli_kit import train

FUZZ_EXAMPLES = int(os.environ.get("ANYFORMER_FUZZ", "1000"))  # of each property, with HYPOTHESIS_PROFILE=fuzz


def pytest_configure(config: pytest.Config) -> None:
    """One thread, as the tests run side by side, one a core. What only hands out tests (xdist) need not load torch."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too
    import torch
    from hypothesis import settings

    settings.register_profile("steady", derandomize=True, deadline=None, max_examples=20)
    settings.register_profile("fuzz", deadline=None, max_examples=FUZZ_EXAMPLES, print_blob=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
    torch.set_num_threads(1)
    gc.disable()  # while a million objects that stay are made; it would look at all of them again and again


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module's QUICK says with which parameters (their ids) a test is run each time; with all others it is slow. The
    files of the longest tests come first: at the end, no process waits long for the other."""
    items.sort(key=lambda item: item.path.parent.name != "training")
    for item in items:
        quick = getattr(getattr(item, "module", None), "QUICK", {}).get(getattr(item, "originalname", ""))
        if quick is not None and item.callspec.id not in quick:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prepared data of this run of the tests: one for all processes, so that each set is read once."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"


@pytest.fixture(autouse=True)
def cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on what a person has cached, or waits for a disk: no test has to survive a power cut."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(cache_folder))
    monkeypatch.setattr(os, "fsync", lambda handle: None)


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
def run_once(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, made once: tests copy it and leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("the cat sat on the mat. the dog sat on the log.\n" * 60, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(cache_folder))
        train(folder / "text.txt", folder / "run")
    return folder / "run"
