"""What a run survives: commands that would change or overwrite it, damaged files, a full disk, Ctrl-C."""

import contextlib
import json
import os
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from anyformer.data.tokenizers.build import Bytes
from anyformer.report import progress
from anyformer.training import job
from anyformer.training.checksums import write_checksums
from cli_kit import TINY, CommandResult, assert_refused, call, nothing_changes, read_folder, train, write

TEXT = "the cat sat on the mat. the dog sat on the log.\n" * 60


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(write(folder / "text.txt", TEXT.encode()), folder / "run")
    return folder / "run"


@pytest.fixture
def run(base_run: Path, tmp_path: Path) -> Path:
    """A copy of a run of four steps."""
    return Path(shutil.copytree(base_run, tmp_path / "run"))


@pytest.fixture
def last(run: Path) -> Path:
    return run / "checkpoints" / "step-4"


def resume(run: Path, *flags: object) -> CommandResult:
    return call("train", "language", "--out", run, "--resume", "--steps", 9, *flags)


# --- commands that would change or overwrite something ---


def test_nothing_is_overwritten(run: Path, text: Path, tmp_path: Path):
    write(tmp_path / "photos.jpg", b"jpeg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.jpg").rename(tmp_path / "photos" / "cat.jpg")
    with nothing_changes(tmp_path):
        assert_refused(call(*TINY, "--data", text, "--out", run), f"{run} already holds a run", "--resume", "--out")
        for flags in ((), ("--resume",)):
            result = call(*TINY, "--data", text, "--out", tmp_path / "photos", *flags)
            assert_refused(result, "photos is not empty and holds no run", "another --out")
            result = call(*TINY, "--data", text, "--out", text, *flags)
            assert_refused(result, "cannot write a run to", "File exists")
        assert_refused(call("eval", tmp_path / "photos"), "photos has no checkpoint", "step-N/model.safetensors")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.n-layer", 3), "begun with model.n_layer 2, not 3"),
        (("--tokenizer", "byte"), "begun with tokenizer char, not byte"),
        (("--data", "plays"), "begun with data "),
        (("--preset", "small"), "began with preset 'tiny', not 'small'"),
        (("--train.optimizer", "muon"), "belongs to another model or optimizer"),
    ],
)
def test_a_run_cannot_change_model_or_data(run: Path, flags: tuple, message: str):
    with nothing_changes(run):
        assert_refused(resume(run, *flags), message)


def test_data_that_changed(text: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(text, run)
    write(text, TEXT.replace("cat", "dog").encode())
    with nothing_changes(run):
        for result in (resume(run), call("eval", run)):
            assert_refused(result, "has changed since this run began: restore it")


def test_a_run_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(call("eval", "nowhere"), "there is no run at nowhere")
    assert_refused(call("sample", "nowhere"), "there is no run at nowhere")
    assert_refused(call("train", "language", "--resume"), "--resume needs --out RUN")


# --- damaged files ---

GIANT = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", Bytes().to_json().encode(), "model.safetensors: nodes.token.weight has shape [16, 32], the"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer.json"),
        ("model.safetensors", b"", "(0 bytes) is not a complete safetensors file"),
        ("model.safetensors", "half", "is not a complete safetensors file"),
        ("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}", "not a complete safetensors file"),
        ("model.safetensors", struct.pack("<Q", len(GIANT)) + GIANT, "not a complete safetensors file"),
        ("model.safetensors", save({"wte": torch.zeros(3)}), "lacks body.blocks.0"),
        ("model.safetensors", {"nodes.token.weight": torch.zeros(9, 32)}, "has shape [9, 32], the model expects [16, "),
        ("model.safetensors", {"extra": torch.zeros(1)}, "has extra (and 0 more) that this model does not know"),
        ("config.json", b"{}", "names no recipe: it is not a checkpoint"),
        ("config.json", b'{"recipe": "language", "config": {"modle": {}}}', "unknown field 'modle': did you mean 'mod"),
        ("state.json", b"{}", "step is None, not int"),
        ("state.json", b'{"step', ": not JSON (Unterminated"),
        ("state.json", b'{"step": 4, "place": {}, "best": []}', "best is [], not dict"),
    ],
)
def test_a_checkpoint_with_lies(run: Path, last: Path, name: str, content: bytes | str | dict, message: str):
    """Its checksums are right; what it says is not."""
    path = last / name
    if isinstance(content, dict):
        save_file(load_file(path) | content, path)
    else:
        write(path, path.read_bytes()[:5000] if content == "half" else content)
    write_checksums(last)
    with nothing_changes(run):
        assert_refused(call("eval", run), str(last), message)
        if name != "config.json":  # a run has its own
            assert_refused(resume(run), str(last), message)


def test_the_state_of_another_optimizer(run: Path, last: Path):
    for tensors in ({}, {"a": torch.zeros(3)}, {"0.0.exp_avg": torch.zeros(3)}, {"0.999.exp_avg": torch.zeros(3)}):
        save_file(tensors, last / "optimizer.safetensors")
        write_checksums(last)
        with nothing_changes(run):
            assert_refused(resume(run), "optimizer.safetensors belongs to another model or optimizer")


def test_damaged_files_of_the_run(run: Path):
    for name, damaged, message in (
        ("config.json", b"{}", "has no 'recipe': it is not the config of a run"),
        ("config.json", b"{", "config.json: not JSON"),
        ("metrics.jsonl", b"what is this\n", "metrics.jsonl, line 1: 'what is this' is not a record of a step"),
    ):
        content = (run / name).read_bytes()
        write(run / name, damaged)
        with nothing_changes(run):
            assert_refused(resume(run), message)
        write(run / name, content)
    resume(run).ok()


# --- a full disk, Ctrl-C ---


def call_with_small_disk(limit: int, *arguments: object) -> CommandResult:
    """Run a command in a child process that can write no file larger than `limit` bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            result = call(*arguments)
            os.write(writer, json.dumps([result.code, result.out, result.err]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = CommandResult(*json.loads(file.read() or '[-1, "", "the child died"]'))
    os.waitpid(child, 0)
    return result


@pytest.mark.parametrize("limit", [60_000, 150_000], ids=["model", "optimizer"])
def test_a_full_disk_leaves_the_last_good_checkpoint(run: Path, last: Path, limit: int):
    """The limit is below the size of the model's file, or only of the optimizer's."""
    sizes = [(last / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors")]
    assert 60_000 < sizes[0] < 150_000 < sizes[1]
    command = ("train", "language", "--out", run, "--resume", "--steps", 8)
    with nothing_changes(last):
        result = call_with_small_disk(limit, *command)
    line = result.err.splitlines()[-1]
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err, result.err
    assert line.startswith("anyformer: could not save ") and "step-6: " in line
    assert f"the last good checkpoint is {last}: free some space and continue with --resume" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-4"]
    assert not [name for name in read_folder(run) if "/." in f"/{name}"]
    assert call(*command, "--json").ok().json["step"] == 8


@pytest.mark.parametrize("limit", [100, 60_000])
def test_a_disk_that_is_full_from_the_start(base_run: Path, tmp_path: Path, limit: int):
    text = base_run.with_name("text.txt")  # its tokens are in the cache
    with nothing_changes(tmp_path):
        result = call_with_small_disk(limit, *TINY, "--data", text, "--out", tmp_path / "new")
    assert result.code == 2 and "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("anyformer: c") and "File too large" in result.err


def test_a_full_disk_while_data_are_prepared(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    result = call_with_small_disk(100, *TINY, "--data", text, "--out", tmp_path / "new")
    assert_refused(result, "File too large", "$ANYFORMER_CACHE")
    assert not (tmp_path / "new").exists() and not any((tmp_path / "cache" / "tokens").iterdir())


def test_ctrl_c(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before training starts, and twice in a row while it goes on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, nothing_changes(tmp_path):
        patch.setattr(job, "check_inputs", interrupt)
        assert_refused(call(*TINY, "--data", text, "--out", tmp_path / "new"), "interrupted", code=1)
    monkeypatch.setattr(progress.Progress, "update", interrupt)
    result = call(*TINY, "--data", text, "--out", tmp_path / "new")
    assert result.code == 1 and result.err.endswith("anyformer: interrupted\n")
