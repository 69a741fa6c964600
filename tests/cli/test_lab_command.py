"""anyformer lab: labs by name, their flags, and what they write."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anyformer.cli import lab
from anyformer.labs.lab import LabResult, LabSettings, LabTable, Log
from anyformer.parsing import check_range
from cli_kit import assert_refused, call


@dataclass(frozen=True, kw_only=True)
class Settings(LabSettings):
    """Count to a number."""

    numbers: int = 3
    """How far to count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "numbers", at_least=1, at_most=100)


def count(settings: Settings, log: Log) -> LabResult:
    for number in range(settings.numbers):
        log({"number": number, "share": number / settings.numbers})
    table = LabTable("All <numbers>", ["", "value"], [["last", str(settings.numbers)]], "as counted")
    line = {"name": "count", "x": [0, 1, 2], "y": [0, 1, 4]}
    figure: dict[str, Any] = {"kind": "lines", "title": "A line", "note": "", "x_label": "x", "lines": [line]}
    facts = {"last": settings.numbers}
    return LabResult("Counting", ["It counts & ends."], [table], [figure], [("An example", "1 < 2")], facts)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("anyformer.labs.counting")
    module.Settings, module.run = Settings, count
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(lab.LABS, "counting", "numbers, one after the other")


def test_labs_are_listed_and_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "  counting numbers, one after the other\n" in call("lab").ok().out
    assert "  counting numbers, one after the other\n" in call("lab", "--help").ok().out
    text = call("lab", "counting", "--help").ok().out
    assert text.startswith("usage: anyformer lab counting [flags]\n\nCount to a number.")
    assert "--numbers INT           How far to count. (default: 3)" in text and "--seed INT" in text


@pytest.mark.parametrize("name", sorted(lab.LABS))
def test_help_of_every_lab(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = call("lab", name, "--help").ok().out
    assert text.startswith(f"usage: anyformer lab {name}") and all(len(line) <= 80 for line in text.splitlines())


def test_a_lab_writes_metrics_facts_and_one_page(tmp_path: Path):
    out = tmp_path / "a" / "b"
    result = call("lab", "counting", "--numbers", 2, "--out", out).ok()
    assert result.out == "It counts & ends.\n" and "number 1  share 0.5\n" in result.err
    assert sorted(path.name for path in out.iterdir()) == ["lab.json", "metrics.jsonl", "report.html"]
    assert (out / "metrics.jsonl").read_text() == '{"number": 0, "share": 0.0}\n{"number": 1, "share": 0.5}\n'
    page = (out / "report.html").read_text()
    texts = ("It counts &amp; ends.", "All &lt;numbers&gt;", "<td>2</td>", "<svg", "1 &lt; 2", "numbers 2")
    assert all(text in page for text in texts) and "http" not in page.replace("http://www.w3.org", "")
    assert call("lab", "counting", "--json", "--out", tmp_path / "c").ok().json["last"] == 3


def test_what_makes_no_sense_is_refused(tmp_path: Path):
    assert_refused(call("lab", "countin"), "there is no lab 'countin': did you mean 'counting'?")
    assert_refused(call("lab", "counting", "--numbers", 0), "--numbers is 0; it must be at least 1")
    assert_refused(call("lab", "counting", "--number", 1), "anyformer lab counting has no flag --number")
    (tmp_path / "file").write_text("x")
    assert_refused(call("lab", "counting", "--out", tmp_path), "exists and is not empty: choose another --out")
