"""The page of the lens in a real browser: it draws without an error or a request, and counts what Python counts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import recipe_loading
from anyformer.model.edges import hops
from anyformer.report.lens import build_lens, write_lens
from anyformer.trained_model import Model

pytestmark = pytest.mark.browser


def build(name: str, **fields: Any) -> Model:
    recipe: Any = recipe_loading.load_recipe(name)
    config = dataclasses.replace(recipe.PRESETS["tiny"], **fields)
    torch.manual_seed(0)
    return Model(recipe, config, recipe.build(config).eval(), {"step": 0}, Path("nowhere"))


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open what the lens shows of a request; at the end, nothing has failed and nothing was fetched."""
    problems: list[str] = []
    requests: list[str] = []

    def open_lens(model: Model, request: Any, width: int = 1000, **arguments: Any) -> Any:
        page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        path = write_lens(tmp_path / f"lens{len(requests)}.html", build_lens(model, request, **arguments))
        page.goto(f"file://{path}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_lens
    assert problems == [] and all(url.startswith("file://") for url in requests)


def test_hops_and_weights_equal_those_of_python(open_page: Any):
    """Of a model whose first layer is local."""
    model = build("language", window=3, global_every=3)
    page = open_page(model, "To be, or not")
    expected = hops(model.module.edges, 13)
    assert page.evaluate("Array.from({length: 13}, (_, q) => hopsTo(q))") == expected.tolist()
    with torch.no_grad(), model.record() as trace:
        model.module(torch.from_numpy(model.module.tokenizer.encode("To be, or not").astype("int64"))[None])
    weights = trace["body.blocks.1.attn"].weights[0]
    for head, row in ((0, weights[0]), (1, weights[1]), (-1, weights.mean(0))):
        values = page.evaluate(f"choose({{layer: 1, head: {head}}}), [...weightMatrix()]")
        assert torch.allclose(torch.tensor(values).view(13, 13), row, atol=3e-3)
    page.check("input[value=hops]")
    assert "is reached by 5 of 13 nodes" in page.inner_text("#readout")
    page.check("input[value=rule]")
    assert "may read 3 of 13 nodes" in page.inner_text("#readout")


def test_two_stacks_are_drawn_and_the_keyboard_moves(open_page: Any):
    page = open_page(build("translation"), "31415", width=360, against="31425")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#part option").all_inner_texts() == [
        "encoder reads itself", "decoder reads itself", "decoder reads encoder"
    ]  # fmt: skip
    assert page.evaluate("state.part") == 2 and page.locator("#inputs .input").count() == 2
    assert page.evaluate("hopsTo(2)") == [1] * 6, "the decoder reads the whole source in one hop"
    page.focus("#rails")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("state.node") == 1 and page.inner_text("#readout").startswith("1 ")
    page.select_option("#part", "0")
    assert page.locator("#inputs .input").count() == 1
    page.locator("#heads button").first.click()
    assert page.evaluate("[state.layer, state.head]") == [0, 0]
    page.locator("#readings button").first.click()
    assert page.locator("#cell tr").count() == 5
    page.focus("#readings button")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.cell") == "1 1"
    assert page.is_visible("#patching canvas >> nth=0")


def test_an_image_is_drawn_with_its_patches(open_page: Any):
    page = open_page(build("vision", data="digits"), None)
    assert page.locator("#inputs canvas").count() == 1 and page.locator("#inputs .tokens span").all_inner_texts() == [
        "class"
    ]
    box = page.locator("#inputs canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    assert page.evaluate("state.node") == 2, "the second patch, after the class node"
    assert not page.is_visible("#patching-section")
