"""A browser, and a server of one small model for each recipe."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from anyformer.recipe_loading import list_recipes
from anyformer.trained_model import Model

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
RECORD_FETCH = """
    const ask = window.fetch;
    window.fetch = (path, options) => {
        const body = options?.body;
        if (body) window.sent = body instanceof FormData ? body.get("request") : body;
        return ask(path, options);
    };
"""  # playwright does not show the bodies of forms with files
FAKE_MEDIA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera and a beep


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'anyformer[browser]'")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no chromium: none of {', '.join(CHROMIUM)} is installed, and $CHROMIUM is not set")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS + FAKE_MEDIA)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> dict[str, Model]:
    pytest.importorskip("uvicorn", reason="the server's libraries: pip install 'anyformer[serve]'")
    from serve_kit import build_chat_model, build_model

    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(cache_folder))
        models = {name: build_model(name, folder) for name in list_recipes()}
    return models | {"chat": build_chat_model(folder), "outside": build_outside_model(folder)}


def build_outside_model(folder: Path) -> Model:
    """A model of a recipe that does not describe its requests."""
    recipe: Any = ModuleType("outside", "Outside: say what was asked.")
    recipe.predict = lambda model, request: {"results": [request]}
    return Model(recipe, SimpleNamespace(data=""), torch.nn.Identity(), {"step": 0}, folder)


@pytest.fixture(scope="session")
def server(models: dict[str, Model]) -> Iterator[Any]:
    from serve_kit import serve

    with serve(models) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    """A page of its own; whatever goes wrong in it, or leaves the machine, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, base_url=server.url)
    context.grant_permissions(["clipboard-read", "clipboard-write", "microphone", "camera"])
    context.add_init_script(RECORD_FETCH)
    page, problems = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: problems.extend(find_foreign(request.url, server.url)))
    yield page
    context.close()
    assert [problem for problem in problems if "status of 4" not in problem] == []  # answers that are errors


def find_foreign(url: str, own: str) -> list[str]:
    return [] if url.startswith((own, "blob:", "data:")) else [f"asked {url}"]
