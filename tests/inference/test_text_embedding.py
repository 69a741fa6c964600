"""anyformer embed: texts to vectors, on stdout or in a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import api
from cli_kit import assert_refused, call, nothing_changes, train

TEXTS = ["the cat", "a dog sat", "on the mat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    (folder / "text.txt").write_text("the cat sat on the mat. a dog sat on the log.\n" * 50)
    flags = ("--preset", "tiny", "--steps", 2, "--device", "cpu", "--dtype", "float32")
    call("train", "masked", *flags, "--data", folder / "text.txt", "--out", folder / "run").ok()
    return folder / "run"


def test_every_input_and_output_gives_the_same_vectors(run: Path, tmp_path: Path):
    expected = api.load(run, "cpu").predict({"embed": TEXTS})["vectors"]
    assert [json.loads(line) for line in call("embed", run, *TEXTS).ok().out.splitlines()] == expected
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    answer = call("embed", run, "--file", tmp_path / "texts.txt", "--json").ok().json
    assert answer["vectors"] == expected and (answer["texts"], answer["channels"]) == (3, 32)
    out = tmp_path / "vectors.npy"
    assert call("embed", run, *TEXTS, "--out", out, "--json").ok().json["out"] == str(out)
    array = np.load(out, allow_pickle=False)
    assert array.dtype == np.float32 and np.array_equal(array, np.array(expected, np.float32))
    assert np.allclose(np.linalg.norm(array, axis=1), 1, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "no partial file is left"


def test_mistakes_get_one_line(run: Path, tmp_path: Path):
    with nothing_changes(tmp_path):
        assert_refused(call("embed", run), "nothing to embed", "--file FILE")
        assert_refused(call("embed", run, "a", "--out", tmp_path / "vectors.csv"), "vectors.csv", ".npy")
        assert_refused(call("embed", run, "a", "--out", tmp_path / "no" / "v.npy"), "no folder", "no")
        assert_refused(call("embed", run, "a" * 99), "99 tokens")
        assert_refused(call("embed", run, "--file", tmp_path / "none.txt"), "none.txt")
    assert call("embed", run, "the cat " * 30, "--cut").ok().out.startswith("[")


def test_a_model_without_embeddings_is_refused(tmp_path: Path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 50)
    train(tmp_path / "text.txt", tmp_path / "run")
    assert_refused(call("embed", tmp_path / "run", "x"), "language", "masked")
