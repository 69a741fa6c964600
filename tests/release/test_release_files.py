"""What a release consists of besides the code: one version, and files that say what is true."""

import re
import tomllib
from pathlib import Path

import pytest

import anyformer
from anyformer import recipe_loading

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "anyformer.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", anyformer.__version__)
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.M)
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased" and all(heading.count(".") == 2 for heading in headings[1:])


def test_hooks_before_a_commit_are_those_of_make_check():
    """The hooks run what .venv has, so that there is no second list of versions."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    [check] = re.findall(r"^check:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    for tool in re.findall(r"\$\(BIN\)/([\w-]+)", check):
        assert f".venv/bin/{tool} " in hooks, tool
    assert "rev:" not in hooks


def test_the_image_takes_extras_and_files_that_exist():
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^ARG EXTRAS=(\w+)", dockerfile, re.M)[0] in PROJECT["project"]["optional-dependencies"]
    sources = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("COPY")]
    assert sources and all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", "runs"} <= set(ignored) and "src" not in ignored


def test_every_make_target_is_described():
    """A target says what it is for behind `##`, and CONTRIBUTING.md names those for people who change something."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    described = set(re.findall(r"^([a-z][\w-]*):.*##", makefile, re.M))
    assert targets - described <= {"format", "install", "clean"}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in described - {"train", "bench"}:
        assert f"make {target}" in contributing, target


def test_every_recipe_is_in_the_readme_and_in_the_table_of_recipes():
    """The table of docs/kinds.md names all presets but `tiny`, and the default one first."""
    readme, table = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/kinds.md"))
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    rows = {name: line[-1] for line in lines for name in re.findall(r"`(\w+)`", line[0])}
    for name in recipe_loading.list_recipes():
        assert f"`{name}`" in readme and name in rows, name
        written, [_, default, *others] = (
            re.findall(r"`([\w.-]+)`", rows[name]),
            recipe_loading.load_recipe(name).PRESETS,
        )
        assert written[0] == default and sorted(written[1:]) == sorted(others), name


def test_the_readme_takes_two_minutes_and_its_picture_moves():
    """200 words a minute, and what is no prose besides: code, tables, links."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$|^\|.*?$|^#.*?$|\]\(.*?\)", "", readme, flags=re.M | re.S)
    assert len(prose.split()) <= 450 and len(readme.splitlines()) <= 120
    picture = ROOT / re.findall(r"!\[[^\]]*\]\(([^)]*\.webp)\)", readme)[0]
    image = pytest.importorskip("PIL.Image", reason="pillow: pip install 'anyformer[vision]'").open(picture)
    assert picture.stat().st_size <= 1_500_000 and image.n_frames > 20
