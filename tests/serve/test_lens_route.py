"""The lens over HTTP: a document of its own, that can do nothing but show itself."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from anyformer.serve.lenses import LensPages
from serve_kit import RunningServer, assert_error, build_model, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("lens")
    model = build_model("tagging", folder)
    model.config = replace(model.config, data="/home/somebody/names")
    with serve({"tagger": model, "old": build_model("mlp", folder)}, api_key="sesame") as running:
        running.client.headers["authorization"] = "Bearer sesame"
        yield running


def test_the_lens_is_a_page_without_an_origin(server: RunningServer):
    response = server.post("/v1/lens", {"model": "tagger", "input": "buy milk"})
    assert response.status_code == 201 and response.headers["content-type"].startswith("text/html")
    assert response.text.startswith("<!doctype html>") and "somebody" not in response.text
    assert response.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    del server.client.headers["authorization"]  # its address is the key
    again = server.client.get("/" + response.headers["location"])
    assert (again.status_code, again.text) == (200, response.text)
    server.client.headers["authorization"] = "Bearer sesame"
    assert server.client.get("/page/lens/other").status_code == 404


def test_what_has_no_lens_says_so(server: RunningServer):
    assert_error(server.post("/v1/lens", {"model": "old", "input": "a"}), 400, "'mlp' has no Transformer")
    assert_error(server.post("/v1/lens", {"model": "tagger"}), 400, "the request is empty")
    describe = {
        name: server.client.get("/v1/describe", params={"model": name}).json()["lens"] for name in ("tagger", "old")
    }
    assert describe == {"tagger": True, "old": False}


def test_old_pages_make_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.serve.lenses.MAX_KEPT_BYTES", 25)
    pages = LensPages()
    names = [pages.add(bytes(10)) for _ in range(4)]
    assert [pages.get(name) is not None for name in names] == [False, False, True, True]
    assert len(set(names)) == 4 and all(re.fullmatch(r"[\w-]{32}", name) for name in names)
    large = pages.add(bytes(100))
    assert pages.get(large) is not None and pages.get(names[3]) is None
