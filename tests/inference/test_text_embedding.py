"""anyformer embed: texts become vectors, on stdout or in a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import api
from cli_kit import call, nothing_changes, refused, train

TEXTS = ["the cat", "a dog sat", "on the mat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    (folder / "some.txt").write_text("the cat sat on the mat. a dog sat on the log.\n" * 50)
    few = ("--preset", "tiny", "--steps", 2, "--device", "cpu", "--dtype", "float32")
    call("train", "masked", *few, "--data", folder / "some.txt", "--out", folder / "run").well()
    return folder / "run"


def test_every_way_in_and_out_gives_the_same_vectors(run: Path, tmp_path: Path):
    wanted = api.load(run, "cpu").predict({"embed": TEXTS})["vectors"]
    assert [json.loads(line) for line in call("embed", run, *TEXTS).well().out.splitlines()] == wanted
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    told = call("embed", run, "--file", tmp_path / "texts.txt", "--json").well().json
    assert told["vectors"] == wanted and (told["texts"], told["channels"]) == (3, 32)
    out = tmp_path / "vectors.npy"
    assert call("embed", run, *TEXTS, "--out", out, "--json").well().json["out"] == str(out)
    array = np.load(out, allow_pickle=False)
    assert array.dtype == np.float32 and np.array_equal(array, np.array(wanted, np.float32))
    assert np.allclose(np.linalg.norm(array, axis=1), 1, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "no half of a file stays"


def test_mistakes_are_one_line(run: Path, tmp_path: Path):
    with nothing_changes(tmp_path):
        refused(call("embed", run), "nothing to embed", "--file FILE")
        refused(call("embed", run, "a", "--out", tmp_path / "vectors.csv"), "vectors.csv", ".npy")
        refused(call("embed", run, "a", "--out", tmp_path / "no" / "v.npy"), "no folder", "no")
        refused(call("embed", run, "a" * 99), "99 tokens, the context holds 32")
        refused(call("embed", run, "--file", tmp_path / "none.txt"), "cannot read", "none.txt")
    assert call("embed", run, "the cat " * 30, "--cut").well().out.startswith("[")


def test_a_model_that_is_no_encoder_says_so(tmp_path: Path):
    (tmp_path / "some.txt").write_text("the cat sat on the mat.\n" * 50)
    train(tmp_path / "some.txt", tmp_path / "run")
    refused(call("embed", tmp_path / "run", "x"), "language", "masked, classify")
