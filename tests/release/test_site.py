"""The documentation as pages: what `make docs` collects, and what it refuses."""

import re
import sys
from pathlib import Path

import pytest

from anyformer import recipe_loading

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import check_pages  # noqa: E402
import reports  # noqa: E402
import stage  # noqa: E402

QUICK = {
    "test_a_recipe_shows_the_report_of_a_run_that_can_be_made": {"language", "vision", "forecast", "generalist"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


def test_every_page_is_in_the_index_once():
    names = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    names = {name for name in names if not name.startswith("site/")}
    index = (ROOT / "docs" / "site" / "index.md").read_text(encoding="utf-8")
    listed = stage.list_remaining(index, sorted(names | {"index", "new-page"}))
    entries = re.findall(r"^[\w/-]+$", listed, re.M)
    assert names | {"new-page"} <= set(entries) and len(entries) == len(set(entries))
    assert "\nscale\n" in listed and stage.REMAINING not in listed and "index" not in entries


def test_the_index_lists_every_notebook_by_the_page_that_is_made_of_it():
    index = (ROOT / "docs" / "site" / "index.md").read_text()
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"^notebooks/\w+$", index, re.M)) and ".ipynb" not in index


def test_links_lead_to_pages_of_the_site():
    sources: set[Path] = set()
    text = (
        "[a](../src/anyformer/recipes/language/__init__.py), [b](../src/anyformer/model/edges.py), [c](tour.md#x), "
        "[d](../README.md#what-it-does), [e](https://a.b/c), [f](../CONTRIBUTING.md), ![g](edges.svg)"
    )
    links = re.findall(r"\]\((.*?)\)", stage.rewrite_links("guide/a.md", text, ROOT / "docs", sources))
    assert links == [
        "../recipes/language.md", "../source/src/anyformer/model/edges.py.md", "../tour.md#x",
        "../recipes/index.md", "https://a.b/c", "../contributing.md", "edges.svg",
    ]  # fmt: skip
    assert sources == {ROOT / "src/anyformer/model/edges.py"}
    assert dict(stage.build_source_pages(sources))["source/src/anyformer/model/edges.py.md"].count("````python") == 1


def test_a_recipe_says_what_its_docstring_says():
    page = stage.describe("control")
    assert [f"| **{part}** |" in page for part in ("raw", "nodes", "edges", "head", "loss")] == [True] * 5
    assert "\nanyformer train control" in page and "(default)" in page and "| `tiny` |" in page
    assert re.search(r"\[\d{4}\.\d{5}\]\(https://arxiv.org/abs/", page)


@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_a_recipe_shows_the_report_of_a_run_that_can_be_made(name: str):
    command, settings = reports.describe_run(name)
    assert f"`{command}`" in stage.describe(name) and f'src="../reports/{name}.html"' in stage.describe(name)
    assert (ROOT / settings.get("data", ".")).exists() and settings["preset"] in recipe_loading.load_recipe(
        name
    ).PRESETS


def test_pages_that_load_something_from_elsewhere_or_lead_nowhere_are_refused(tmp_path: Path):
    (tmp_path / "b.html").write_text('<p id="here">x</p><a href="a.html#there">a</a><a href="https://x.y">x</a>')
    (tmp_path / "c.css").write_text("@import 'https://x.y/c.css'; a { background: url(data:x) url('//x.y/d.png') }")
    loads = '<script src="https://x.y/z.js"></script><link rel="stylesheet" href="c.css"><link rel="canonical" href="https://x.y">'
    (tmp_path / "a.html").write_text(
        f'{loads}<img src="data:,x"><img src="no.png" srcset="//x.y/e.png 2x"><a href="b.html#here">b</a>'
    )
    problems = "\n".join(check_pages.check_folder(tmp_path))
    assert re.findall(r"loads (\S+)", problems) == [
        "https://x.y/z.js",
        "//x.y/e.png",
        "//x.y/d.png",
        "https://x.y/c.css",
    ]
    assert re.findall(r"links to (\S+):", problems) == ["no.png", "a.html#there"]
