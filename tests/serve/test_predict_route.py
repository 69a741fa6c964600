"""/v1/predict: every recipe answers over HTTP as in Python, and reads no files but those that came with the request."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.confinement import check_confined, confine_files
from anyformer.data.series.datasets import generate_shops
from anyformer.errors import InputError
from anyformer.recipe_loading import list_recipes
from anyformer.trained_model import Model
from serve_kit import RunningServer, assert_error, build_model, serve, wait_for

REFUSED = "files and data sets of the server cannot be named here"
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"input": ["to be", "or not"], "tokens": 5, "temperature": 0},
    "preference": {"input": ["Spell", "or not"], "tokens": 5, "temperature": 0},
    "grpo": {"input": ["Add 3", "or 4"], "tokens": 5, "temperature": 0},
    "language": {"prompt": ["to be", "or not"], "tokens": 5, "seed": 2, "samples": 2, "logprobs": 1, "echo": True},
    "recall": {"input": "to be", "tokens": 5, "temperature": 0},
    "music": {"metre": "6/8", "key": "G", "tokens": 9, "seed": 3, "samples": 2},
    "mlp": {"prompt": "to be", "tokens": 5, "temperature": 0},
    "classify": {"input": ["good", "bad"]},
    "tagging": {"input": "a b"},
    "generalist": {"task": "sensors", "input": {"device": "a", "power": 1.5}},
    "control": {"rollout": {"episodes": 2, "seed": 1}},
    "forecast": {
        "input": [row | ({"sales": None} if i >= 74 else {}) for i, (_, row) in enumerate(generate_shops(1, 80))]
    },
    "multimodal": {"input": [{"device": "a", "power": 1.5}, {"device": "b"}]},
    "translation": {"input": "312", "beam": 2},
    "mask_predict": {"input": "312", "passes": 2},
    "diffusion": {"input": "to __ or", "drafts": True},
    "contrastive": {"embed": ["3", "4"]},
    "text2image": {"input": ["3", "a 4"], "samples": 2, "seed": 1},
    "tts": {"input": ["three", "four"], "samples": 2, "seed": 1},
    "msa": {"pairs": 3},
    "seq2seq": {"input": "312"},
    "rnnsearch": {"input": "312"},
}
SPECIAL = {"vision", "speech", "masked", "spans"}  # files, or an input that depends on the vocabulary


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {name: build_model(name, folder) for name in list_recipes()}


@pytest.fixture(scope="module")
def server(models: dict[str, Model]) -> Iterator[RunningServer]:
    with serve(models) as running:
        yield running


def make_image(shade: int = 0) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(((np.arange(28 * 28).reshape(28, 28) + shade) % 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def find_request(name: str, model: Model) -> dict[str, Any]:
    if name == "masked":
        return {"input": "to [MASK] or", "top": 2}
    return {"input": "to be or ___ to be", "beam": 1} if name == "spans" else REQUESTS[name]


@pytest.mark.parametrize("name", [name for name in list_recipes() if name not in ("vision", "speech")])
def test_the_answer_is_that_of_python(server: RunningServer, models: dict[str, Model], name: str):
    request = find_request(name, models[name])
    response = server.post("/v1/predict", {"model": name} | request)
    assert response.status_code == 200, response.text
    expected = json.loads(json.dumps(models[name].predict(request)))
    assert_equal(response.json(), expected)


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal values; numbers to 1e-5, as a batch may be computed in another order."""
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        for name in actual:
            assert_equal(actual[name], expected[name])
    elif isinstance(actual, list):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected):
            assert_equal(*pair)
    else:
        assert (
            actual == pytest.approx(expected, rel=1e-5, abs=1e-6) if isinstance(actual, float) else actual == expected
        )


def test_images_come_as_parts_of_a_form_or_in_json(server: RunningServer, models: dict[str, Model], tmp_path: Path):
    path = tmp_path / "cat.png"
    path.write_bytes(make_image())
    (expected,) = models["vision"].predict({"input": str(path), "top": 2})["results"]
    text = base64.b64encode(make_image()).decode()
    answers = [
        server.post("/v1/predict", data={"model": "vision", "top": "2"}, files={"file": ("cat.png", make_image())}),
        server.post("/v1/predict", data={"request": '{"model": "vision", "top": 2}'}, files={"input": make_image()}),
        server.post("/v1/predict", {"model": "vision", "top": 2, "input": f"data:image/png;base64,{text}"}),
        server.post("/v1/predict", {"model": "vision", "top": 2, "input": {"base64": text, "name": "cat.png"}}),
    ]
    for answer, name in zip(answers, ("cat.png", "upload", "file.png", "cat.png")):
        assert_equal(answer.json(), {"results": [expected | {"input": name}]})
    files = [("file", (name, make_image(shade))) for shade, name in ((0, "a.png"), (40, "b.png"))]
    several = server.post("/v1/predict", data={"model": "vision"}, files=files)
    assert [result["input"] for result in several.json()["results"]] == ["a.png", "b.png"]
    same = [("file", ("a.png", make_image()))] * 2
    assert_error(server.post("/v1/predict", data={"model": "vision"}, files=same), 400, "two files have the name a.png")


def test_an_image_whose_part_is_painted_anew_comes_with_the_request(
    server: RunningServer, models: dict[str, Model], tmp_path: Path
):
    path = tmp_path / "old.png"
    path.write_bytes(make_image())
    expected = models["text2image"].predict({"image": str(path), "part": "top", "seed": 1})
    form = {"model": "text2image", "part": "top", "seed": "1"}
    answer = server.post("/v1/predict", data=form, files={"image": ("old.png", make_image())})
    assert answer.json() == expected and expected["results"][0]["input"] is None
    assert_error(server.post("/v1/predict", {"model": "text2image", "image": str(path)}), 400, REFUSED)


def test_rows_and_tables_hold_files(server: RunningServer, models: dict[str, Model], tmp_path: Path):
    path, table = tmp_path / "a.png", tmp_path / "rows.csv"
    path.write_bytes(make_image())
    expected = models["multimodal"].predict({"input": [{"device": "a", "picture": str(path)}]})
    form = {"model": "multimodal", "input": '{"device": "a"}'}
    assert_equal(server.post("/v1/predict", data=form, files={"input.picture": make_image()}).json(), expected)
    url = f"data:image/png;base64,{base64.b64encode(make_image()).decode()}"
    body = {"model": "multimodal", "input": [{"device": "a", "picture": url}]}
    assert_equal(server.post("/v1/predict", body).json(), expected)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["device", "power", "picture"], ["a", "1.5", "a.png"], ["b", "2", ""]])
    rows = models["multimodal"].predict({"input": str(table)})
    uploads = [("file", ("rows.csv", table.read_bytes())), ("beside", ("a.png", make_image()))]
    response = server.post("/v1/predict", data={"model": "multimodal"}, files=uploads)
    assert_equal(response.json(), rows)
    missing = server.post("/v1/predict", data={"model": "multimodal"}, files=uploads[:1])
    assert_error(missing, 400, "rows.csv, line 2, picture: a.png: there is no such file")


def test_models_of_texts_take_no_files(server: RunningServer):
    response = server.post("/v1/predict", data={"model": "classify"}, files={"file": b"a"})
    assert_error(response, 400, "'classify' (classify) takes no files")


@pytest.mark.parametrize("name", ["vision", "contrastive", "speech", "multimodal", "forecast"])
@pytest.mark.parametrize("kind", ["file", "missing", "folder", "user", "link", "set", "zero"])
def test_no_file_of_the_server_is_read(server: RunningServer, name: str, kind: str, tmp_path: Path):
    """The answer does not even say whether there is one."""
    secret = tmp_path / "secret.csv"
    secret.write_bytes(make_image() if name in ("vision", "contrastive") else b"device,power\na,1\n")
    paths = {"file": str(secret), "missing": str(tmp_path / "none.csv"), "folder": "/", "user": "~nobody", "zero": "\0"}
    paths |= {"link": f"{tmp_path}/../{tmp_path.name}/secret.csv", "set": "shops" if name == "forecast" else "sensors"}
    for value in (paths[kind], [paths[kind]]):
        assert_error(server.post("/v1/predict", {"model": name, "input": value}), 400, REFUSED)
        if name == "contrastive":
            request = {"model": name, "search": "3", "images": value}
            assert_error(server.post("/v1/predict", request), 400, REFUSED)


def test_no_file_of_the_server_is_read_by_a_row(server: RunningServer, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(make_image())
    (tmp_path / "a.npy").write_bytes(b"")
    for row in ({"picture": str(tmp_path / "a.png")}, {"hum": "/etc/passwd"}, {"axes": str(tmp_path / "a.npy")}):
        assert_error(server.post("/v1/predict", {"model": "multimodal", "input": row}), 400, REFUSED)
    table = f"device,picture\na,{tmp_path / 'a.png'}\n".encode()
    response = server.post("/v1/predict", data={"model": "multimodal"}, files={"file": ("rows.csv", table)})
    assert_error(response, 400, REFUSED)


def test_an_upload_leaves_nothing_behind(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for content in (make_image(), b"no image"):
        server.post("/v1/predict", data={"model": "vision"}, files={"file": ("../../a.png", content)})
    wait_for(lambda: not list(tmp_path.iterdir()), "the folder is removed")


def test_confined_reading(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    with confine_files(tmp_path / "in"):
        check_confined(tmp_path / "in" / "a")
        for path in (tmp_path / "a", tmp_path / "in", tmp_path / "in" / "out" / "a", tmp_path / "inner", "a", "\0"):
            with pytest.raises(InputError, match="cannot be named here"):
                check_confined(path)
    check_confined(tmp_path / "a")


def test_models_describe_themselves(server: RunningServer):
    facts = server.client.get("/v1/describe", params={"model": "vision"}).json()
    assert facts["model"] == facts["recipe"] == "vision"
    assert "data" not in facts, "it may be a path of the server"
    assert_error(server.client.get("/v1/describe", params={"model": "visio"}), 404)
