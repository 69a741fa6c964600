"""What a release consists of besides the code: one version, and files that say what is true."""

import re
import tomllib
from pathlib import Path

import anyformer

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
