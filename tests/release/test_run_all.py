"""`make test-all`: what it runs, and what its page says."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
run_all = runpy.run_path(str(ROOT / "tests" / "release" / "run_all.py"))


def test_every_target_that_checks_something_is_a_step():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    checks = {name for name in targets if name.startswith("test")} | {
        "check",
        "fuzz-short",
        "docs",
        "dist",
        "weights",
        "first-hour",
    }
    assert checks - {"test-all"} == set(run_all["STEPS"])


def test_all_steps_run_whatever_fails_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "== 3 passed, 1 skipped =="; echo "$2 said"; test "$2" != check\n')
    make.chmod(0o755)
    monkeypatch.setenv("MAKE", str(make))
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["run_all", str(page), "docs", "check"])
    assert run_all["main"]() == 1
    text = page.read_text()
    assert re.search(r"\| `check` \|.*\| \*\*failed\*\* \(exit 1\) \| 0\.0 \| 3 passed, 1 skipped \|", text)
    assert re.search(r"\| `docs` \|.*\| passed \|", text) and text.count("not run") == len(run_all["STEPS"]) - 2
    assert (tmp_path / "page" / "check.txt").read_text().endswith("check said\n")


def test_a_step_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["run_all", str(tmp_path / "page.md"), "tests"])
    with pytest.raises(SystemExit, match="2"):
        run_all["main"]()
