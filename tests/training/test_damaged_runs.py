"""What a run survives: people who would change or overwrite it, damaged files, a full disk, an impatient hand."""

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

from anyformer import api
from anyformer.data.tokenizers.build import Bytes, Characters
from anyformer.report import progress
from cli_kit import TINY, CommandResult, call, read_folder, nothing_changes, assert_refused, train, write


@pytest.fixture
def last(run: Path) -> Path:
    return run / "checkpoints" / "step-4"


# --- a run that is there ---


def test_another_run_is_never_overwritten(run: Path, text: Path):
    with nothing_changes(text.parent):
        assert_refused(call(*TINY, "--data", text, "--out", run), f"{run} holds a run already", "--resume", "another --out")


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_foreign_files_are_never_overwritten(text: Path, tmp_path: Path, resume: tuple):
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos" / "cat.jpg", b"jpeg")
    with nothing_changes(tmp_path):
        said = call(*TINY, "--data", text, "--out", tmp_path / "photos", *resume)
        assert_refused(said, "photos is not empty and holds no run", "another --out")
        assert_refused(call(*TINY, "--data", text, "--out", text, *resume), "cannot write a run to", "File exists")
        assert_refused(call("eval", tmp_path / "photos"), "photos has no checkpoint", "step-N/model.safetensors")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model.n-layer", 3), "begun with model.n_layer 2, not 3"),
        (("--tokenizer", "byte"), "begun with tokenizer char, not byte"),
        (("--data", "plays"), "begun with data "),
        (("--preset", "small"), "began with preset 'tiny', not 'small'"),
        (("--train.optimizer", "muon"), "belongs to another model or optimizer"),
    ],
)
def test_a_run_cannot_change_what_it_is(run: Path, flags: tuple, says: str):
    with nothing_changes(run):
        assert_refused(call("train", "language", "--out", run, "--resume", "--steps", 9, *flags), says)


def test_minutes_plan_a_new_run_only(run: Path):
    said = call("train", "language", "--out", run, "--resume", "--minutes", 1)
    assert_refused(said, "--minutes plans a new run", "change --steps")


def test_data_that_changed_since(run: Path, text: Path):
    write(text, b"the cat sat on the log. the dog sat on the mat.\n" * 60)
    with nothing_changes(run):
        again = ("train", "language", "--out", run, "--resume", "--steps", 9)
        assert_refused(call(*again), "has changed since this run began: bring it back")
        assert_refused(call("eval", run), "has changed since this run began: bring it back")


def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(call("eval", "nowhere"), "there is no run at nowhere")
    assert_refused(call("sample", "nowhere"), "there is no run at nowhere")
    assert_refused(call("train", "language", "--resume"), "--resume needs --out RUN")


# --- files of a checkpoint that are not what they should be ---

GIANT = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", Bytes().to_json().encode(), "not the file that these weights were trained with"),
        ("tokenizer.json", Characters("abcdefghijklmno").to_json().encode(), "not the file that these weights"),
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("model.safetensors", b"", "(0 bytes) is not a complete safetensors file"),
        ("model.safetensors", "half", "is not a complete safetensors file"),
        ("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}", "not a complete safetensors file"),
        ("model.safetensors", struct.pack("<Q", 99_000_000) + b"{}", "not a complete safetensors file"),
        ("model.safetensors", struct.pack("<Q", len(GIANT)) + GIANT, "not a complete safetensors file"),
        ("model.safetensors", save({"wte": torch.zeros(3)}), "lacks body.blocks.0"),
        ("config.json", b"{}", "names no recipe: it is not a checkpoint"),
        (
            "config.json",
            b'{"recipe": "language", "config": {"modle": {}}}',
            "unknown field 'modle': did you mean 'model'?",
        ),
        ("state.json", b"{}", "step is None, not int"),
        ("state.json", b'{"step', "not JSON"),
    ],
)
def test_a_checkpoint_that_is_not_whole(run: Path, last: Path, name: str, content: bytes | str, says: str):
    write(last / name, (last / name).read_bytes()[:5000] if content == "half" else content)
    with nothing_changes(run):
        assert_refused(call("eval", run), f"{last / name}", says)
        assert_refused(call("sample", run, "--prompt", "the"), f"{last / name}", says)
        if name != "config.json":  # a run has its own
            assert_refused(call("train", "language", "--out", run, "--resume", "--steps", 9), f"{last / name}", says)


def test_weights_of_another_shape(run: Path, last: Path):
    named = load_file(last / "model.safetensors")
    save_file(named | {"nodes.token.weight": torch.zeros(9, 32)}, last / "model.safetensors")
    assert_refused(call("eval", run), "nodes.token.weight has shape [9, 32], the model expects [16, 32]")
    save_file(named | {"more": torch.zeros(1)}, last / "model.safetensors")
    assert_refused(call("eval", run), "has more (and 0 more) that this model does not know")


@pytest.mark.parametrize(
    "foreign", [{}, {"a": torch.zeros(3)}, {"0.0.exp_avg": torch.zeros(3)}, {"0.999.exp_avg": torch.zeros(3)}]
)
def test_the_state_of_another_optimizer(run: Path, last: Path, foreign: dict):
    save_file(foreign, last / "optimizer.safetensors")
    with nothing_changes(run):
        said = call("train", "language", "--out", run, "--resume", "--steps", 9)
        assert_refused(said, "optimizer.safetensors belongs to another model or optimizer")


def test_a_run_whose_own_files_are_damaged(run: Path):
    again = ("train", "language", "--out", run, "--resume", "--steps", 9)
    good = {name: (run / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    for name, damaged, says in (
        ("config.json", b"{}", "names no recipe: it is not the config of a run"),
        ("config.json", b"{", "config.json: not JSON"),
        ("metrics.jsonl", b"what is this\n", "metrics.jsonl, line 1: 'what is this' is no record of a step"),
    ):
        write(run / name, damaged)
        with nothing_changes(run):
            assert_refused(call(*again), says)
        write(run / name, good[name])
    call(*again).ok()


# --- the disk is full, the person is impatient ---


def with_a_small_disk(limit: int, *arguments: object) -> CommandResult:
    """The command in a child that can write no file larger than `limit` bytes: what it said comes through a pipe."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            said = call(*arguments)
            os.write(mouth, json.dumps([said.code, said.out, said.err]).encode())
        os._exit(0)
    os.close(mouth)
    with os.fdopen(ear) as file:
        said = CommandResult(*json.loads(file.read() or '[-1, "", "the child died"]'))
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("limit", [60_000, 150_000], ids=["no room for the model", "no room for its optimizer"])
def test_a_full_disk_keeps_the_last_good_checkpoint(run: Path, last: Path, limit: int):
    sizes = [(last / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors")]
    assert 60_000 < sizes[0] < 150_000 < sizes[1]
    again = ("train", "language", "--out", run, "--resume", "--steps", 8)
    with nothing_changes(last):
        said = with_a_small_disk(limit, *again)
    final = said.err.splitlines()[-1]
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err, said.err
    assert final.startswith("anyformer: could not save ") and "step-6: " in final
    assert f"the last good checkpoint is {last}: free some space and go on with --resume" in final
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-4"]
    assert not [name for name in content(run) if "/." in f"/{name}"]
    call("eval", run).ok()
    assert call(*again, "--json").ok().to_json["step"] == 8


@pytest.mark.parametrize("limit", [100, 60_000])
def test_a_disk_that_was_full_from_the_start(text: Path, tmp_path: Path, limit: int):
    train(text, tmp_path / "warm")  # the prepared tokens are there already
    shutil.rmtree(tmp_path / "warm")
    with nothing_changes(tmp_path):
        said = with_a_small_disk(limit, *TINY, "--data", text, "--out", tmp_path / "new")
    assert said.code == 2 and "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith("anyformer: c") and "File too large" in said.err


def test_a_full_disk_while_the_data_is_prepared(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    write(text, text.read_bytes() + b"never seen before")
    said = with_a_small_disk(100, *TINY, "--data", text, "--out", tmp_path / "new")
    assert_refused(said, "the disk refuses (", "File too large", "$ANYFORMER_CACHE")
    assert not (tmp_path / "new").exists() and not any((tmp_path / "cache" / "tokens").iterdir())


def test_an_impatient_person(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C before training began, and twice in a row while it goes on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, nothing_changes(tmp_path):
        patch.setattr(api, "usable", interrupt)
        assert_refused(call(*TINY, "--data", text, "--out", tmp_path / "new"), "interrupted", code=1)
    monkeypatch.setattr(progress.Progress, "update", interrupt)
    said = call(*TINY, "--data", text, "--out", tmp_path / "new")
    assert said.code == 1 and said.err.endswith("anyformer: interrupted\n")
