"""Files that hold something else than anybody expects: one line says what, where, and what would be right."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.checkpoints import gguf
from anyformer.data.images.read import number_classes, open_images
from anyformer.data.io.seal import SEAL_NAME, find_damage, write_seal
from anyformer.data.tables.readings import is_pixel
from anyformer.data.tables.schema import load_schema
from anyformer.data.tables.splits import parse_fold
from anyformer.data.trajectories.read import read_trajectories
from anyformer.errors import InputError
from cli_kit import assert_refused, call
from data_kit import refuses, write

PIXELS, LABELS = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
IMAGE_FILES = {"data": np.zeros(10, np.uint8), "offsets": np.array([0, 1, 2]), "labels": np.arange(2)}
EPISODE = {"states": np.zeros((4, 2)), "actions": np.zeros(4, int), "rewards": np.zeros(4), "ends": np.array([4])}
MANY_DIGITS = "9" * 5001  # more than Python converts to an integer


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (IMAGE_FILES | {"offsets": np.array(["a", "b", "c"])}, "offsets is <U1 of shape (3,)"),
        (IMAGE_FILES | {"offsets": np.array(3)}, "offsets is int64 of shape ()"),
        (IMAGE_FILES | {"offsets": np.array([-2, 1, 2])}, "offsets do not divide data"),
        (IMAGE_FILES | {"data": np.zeros((5, 2), np.uint8)}, "data is uint8 of shape (5, 2)"),
        (IMAGE_FILES | {"labels": np.array([2**40, 1]), "classes": np.array(["a", "b"])}, "integers from 0 to 1"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.array("x")}, "classes is <U1 of shape ()"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.zeros((2, 2))}, "classes is float64 of shape (2, 2)"),
        ({"images": PIXELS, "labels": LABELS, "is_test": np.array("x")}, "is_test is <U1 of shape ()"),
        ({"images": PIXELS, "labels": LABELS, "is_test": np.array(["x"] * 4)}, "is_test is <U1 of shape (4,)"),
        ({"images": PIXELS, "labels": LABELS, "is_test": np.zeros((4, 1), bool)}, "is_test is bool of shape (4, 1)"),
        ({"images": PIXELS, "labels": LABELS.astype("M8[s]")}, "labels is datetime64[s] of shape (4,)"),
        (
            {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:, :4], "y_test": LABELS},
            "the images of x_train and x_test differ in shape",
        ),
        ({"x_train": np.array(1), "y_train": LABELS}, "x_train is int64 of shape ()"),
    ],
)
def test_arrays_of_images(arrays: dict[str, Any], message: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays)
    with refuses("a.npz", message):
        open_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(("action", "message"), [(2**60, "is too large"), (65_536, "up to 65,536"), (-3, "below 0")])
def test_an_action_is_bounded_before_an_embedding_of_it_is_built(action: int, message: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", **EPISODE | {"actions": np.array([0, 1, 99, action])})
    with refuses("a.npz", f"action {action} at step 3", message):
        read_trajectories(tmp_path / "a.npz")


def test_numbers_of_many_digits(tmp_path: Path):
    assert number_classes(["2", MANY_DIGITS, "1"])[1] == ("1", "2", MANY_DIGITS)
    assert not is_pixel(MANY_DIGITS)
    with refuses("fold is"):
        parse_fold(f"1/{MANY_DIGITS}")
    with refuses("is not TOML"):
        load_schema(str(write(tmp_path / "s.toml", f"a = {MANY_DIGITS}")))


def test_what_is_no_file_is_refused_wherever_a_command_names_one(run_once: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    text = write(tmp_path / "a.txt", "a text. " * 99)
    table = write(tmp_path / "a.csv", "a,b\n" + "1,2\n" * 50)
    for path in (tmp_path / "fifo", tmp_path / "loop", tmp_path / "zeros", tmp_path / ("x" * 300)):
        commands: list[list[object]] = [
            ["train", path],
            ["detect", path],
            ["import", path],
            ["predict", path],
            ["train", "language", "--data", path],
            ["train", "language", "--data", text, "--tokenizer", path],
            ["train", "language", "--data", text, "--init", path],
            ["train", "multimodal", "--data", table, "--schema", path],
            ["sample", run_once, "--prompt-file", path],
            ["predict", run_once, "--file", path],
        ]
        for command in commands:
            result = call(*command)
            assert_refused(refuse_last(result))


def refuse_last(result: Any) -> Any:
    """Return a result with the last line of its errors only: notices may come before."""
    return type(result)(result.code, result.out, result.err.splitlines()[-1] + "\n")


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", "samples.txt", "result.json", ".lock"])
def test_a_run_with_a_fifo_or_a_folder_in_it(name: str, run_once: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(run_once, run)
    for make in (os.mkfifo, os.mkdir):
        (run / name).unlink(missing_ok=True)
        make(run / name)
        assert call("runs", tmp_path).code == 0
        assert call("compare", run, run_once).code in (0, 2)
        if name != "result.json":
            assert_refused(refuse_last(call("train", "language", "--out", run, "--resume", "--steps", 9)), name)
        shutil.rmtree(run / name) if make is os.mkdir else (run / name).unlink()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "\xff\xfe\0", MANY_DIGITS, '{"step": ' + MANY_DIGITS + "}", '"\\ud800"']
)
def test_a_run_with_nonsense_in_its_files(content: str, run_once: Path, tmp_path: Path):
    shutil.copytree(run_once, run := tmp_path / "run")
    for name in ("result.json", "samples.txt", "timings.jsonl", "figures.json", "metrics.jsonl"):
        (run / name).write_bytes(content.encode("latin-1") + b"\n")
    assert call("runs", tmp_path).code == 0
    assert call("compare", run, run_once).code in (0, 2)
    assert_refused(
        refuse_last(call("train", "language", "--out", run, "--resume", "--steps", 9)), "metrics.jsonl, line 1"
    )
    (run / "checkpoints" / "step-²").mkdir()
    call("predict", run).ok()
    state = next(run.glob("checkpoints/step-4/state.json"))
    state.write_bytes(content.encode("latin-1"))
    assert call("predict", run).code in (0, 2)
    (run / "config.json").write_bytes(content.encode("latin-1"))
    assert call("predict", run).code == 2 and call("runs", tmp_path).code == 0


def test_lone_surrogates(tmp_path: Path):
    rows = [json.dumps({"text": f"a text {i} \ud800 of some words", "label": "ab"[i % 2]}) for i in range(60)]
    data = write(tmp_path / "a.jsonl", "\n".join(rows))
    for words in (
        ["train", data],
        ["train", "language", "--data", data],
        ["train", "multimodal", "--data", data, "--target", "label"],
    ):
        result = call(*words, "--dry-run")
        assert result.code in (0, 2) and "Traceback" not in result.err, result


@pytest.mark.parametrize("kind", ["array", "number"])
def test_an_architecture_that_is_no_text(kind: str, tmp_path: Path):
    value = b"\x09\0\0\0\x08\0\0\0" + bytes(8) if kind == "array" else b"\x04\0\0\0" + bytes(4)
    key = b"general.architecture"
    path = write(
        tmp_path / "a.gguf",
        b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + len(key).to_bytes(8, "little") + key + value,
    )
    with refuses("general.architecture"):
        gguf.read(path)


def test_a_model_type_that_is_no_text(tmp_path: Path):
    write(tmp_path / "config.json", '{"model_type": ["gpt2"]}')
    write(tmp_path / "model.safetensors", (2).to_bytes(8, "little") + b"{}")
    assert_refused(call("import", tmp_path, "--out", tmp_path / "run"), "model_type", "is not supported")


def test_a_seal_with_a_time_that_no_file_can_have(tmp_path: Path):
    write(tmp_path / "a.bin", "content")
    write_seal(tmp_path)
    path = tmp_path / SEAL_NAME
    facts = json.loads(path.read_text())
    facts["a.bin"][1] = 10**30
    path.write_text(json.dumps(facts))
    assert "cannot be checked" in find_damage(tmp_path)


def test_a_cell_of_deeply_nested_json_stays_text():
    from anyformer.data.trajectories.read import parse_cell

    assert parse_cell("[" * 100_000) == "[" * 100_000


def test_a_list_of_rows_that_goes_too_deep_is_recognized_as_far_as_it_can_be_read(tmp_path: Path):
    (path := tmp_path / "a.json").write_text('[{"a": 1}, ' + "[" * 100_000)
    result = call("detect", path)
    assert result.code in (0, 2) and "Traceback" not in result.err


def test_a_message_is_one_line_though_it_repeats_what_was_given():
    assert str(InputError("data 'a\nb\r\nc': no such file")) == "data 'a b c': no such file"
