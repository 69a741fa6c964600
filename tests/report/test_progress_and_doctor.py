"""Progress is cheap and never on stdout; doctor reports what it measures."""

import io
import json
import math
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from anyformer import events
from anyformer.cli import terminal
from anyformer.data.io.cache import build_directory
from anyformer.report import doctor
from anyformer.report.progress import Progress, format_clock, format_speed
from anyformer.training import hardware

ROOT = Path(__file__).parent.parent.parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_off_a_terminal_is_plain_lines(capsys):
    stream = io.StringIO()
    with Progress(200, "language", stream=stream) as progress:
        for step in range(1, 201):
            progress.update({"step": step, "loss": 2.0, "tokens_per_second": 61_000.0})
            if step == 100:
                progress.update({"step": 100, "val_loss": 1.25, "val_f1": 0.5, "val_rows": 60})
                progress.note("a note [with] brackets")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "language" and "a note [with] brackets" in lines
    assert lines[1].startswith("step   1/200 · loss 2.000 · 61k tok/s")
    assert any(
        line.startswith("step 100/200 · loss 2.000 · val 1.250 · val_f1 0.500 · 61k tok/s · 0:00 left")
        for line in lines
    )
    assert lines[-1].startswith("step 200/200")
    assert len(lines) == 5, "the title, the first line, validation, the note and the last line"
    assert capsys.readouterr().out == ""


def test_progress_on_a_terminal_leaves_stdout_alone(capsys):
    stream = Terminal()
    with Progress(100, "a [title]", stream=stream) as progress:
        for step in range(1, 101):
            progress.update({"step": step, "loss": math.nan if step == 3 else 1.5})
        print("for the pipe")
    assert "step 100/100" in stream.getvalue() and "a [title]" in stream.getvalue() and "1.500" in stream.getvalue()
    assert "for the pipe" not in stream.getvalue()
    assert capsys.readouterr().out == "for the pipe\n"


def test_a_narrow_terminal_keeps_loss_speed_and_time(monkeypatch: pytest.MonkeyPatch):
    """What follows from the loss goes first; the bar and the time left are always there."""
    monkeypatch.setenv("COLUMNS", "80")
    record = {"step": 7, "loss": 2.382, "val_loss": 2.431, "val_perplexity": 11.369, "val_bits_per_byte": 3.507}
    stream = Terminal()
    with Progress(None, stream=stream) as progress:
        progress.update(record | {"tokens_per_second": 2100.0, "seconds": 60.0, "seconds_left": 60.0})
    text = stream.getvalue()
    assert "step 7 · loss 2.382 · val 2.431 · 2.1k tok/s · 1:00 left" in text and "━━━━" in text and "…" not in text
    assert "val_bits_per_byte 3.507" in progress.line()


def test_a_notice_does_not_go_on_with_a_bar(monkeypatch: pytest.MonkeyPatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    stream.write("trying sizes ━━━ 12%")
    events.report_notice("a notice that only this test gives")
    assert stream.getvalue().endswith(f"\r{'':<61}\ra notice that only this test gives\n")


def test_progress_writes_to_stderr_by_default_and_nothing_when_disabled(capsys):
    with Progress(None) as progress:
        progress.update({"step": 3, "loss": 1.0})
    with Progress(10, "quiet", enabled=False) as progress:
        progress.update({"step": 1, "loss": 1.0})
        progress.note("nothing")
    out, err = capsys.readouterr()
    assert out == "" and err == "step 3 · loss 1.000\n"


def test_speeds_and_times_are_formatted():
    assert [format_speed(v) for v in (812, 6_130, 61_234, 1_234_567)] == ["812", "6.1k", "61k", "1.2M"]
    assert [format_clock(s) for s in (42, 187, 3787)] == ["0:42", "3:07", "1:03:07"]


def test_doctor_measures_this_machine(monkeypatch):
    monkeypatch.setattr(hardware, "COPY_BYTES", 16 * 2**20)
    facts = json.loads(json.dumps(doctor.examine()))
    cpu = facts["devices"][0]
    assert cpu["device"] == "cpu" and cpu["problem"] is None
    assert min(cpu["matmul_gflops"].values()) > 0 and cpu["copy_gb_per_s"] > 0
    assert facts["processor"]["cores"] >= 1 and facts["torch"]["threads"] >= 1 and facts["disk"]["free_bytes"] > 0
    assert isinstance(facts["compile"]["cpu"], bool)
    names = {package["name"] for package in facts["optional"]}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    features = {name: packages for name, packages in extras.items() if name not in ("all", "test", "bench", "check")}
    assert names <= {re.split(r"[>=<\[ ]", package)[0] for packages in features.values() for package in packages}
    assert not names & {"starlette", "uvicorn"} and {"pyarrow", "gguf", "pillow"} <= names
    screen = io.StringIO()
    Console(file=screen, width=120).print(doctor.describe(facts))
    assert "GFLOP/s" in screen.getvalue() and doctor.advise(facts) in screen.getvalue()


def test_doctor_removes_what_is_damaged_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    for name in "ab":
        with build_directory(tmp_path / "sets" / name) as folder:
            (folder / "x.bin").write_bytes(b"content")
    damaged = tmp_path / "sets" / "b"
    status = (damaged / "x.bin").stat()
    (damaged / "x.bin").write_bytes(b"c0ntent")
    os.utime(damaged / "x.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    facts = doctor.examine_cache()
    assert facts["checked"] == 2 and facts["removed"] == {str(damaged): "x.bin has changed"}
    assert not damaged.exists() and (tmp_path / "sets" / "a" / "x.bin").exists()


def test_the_advice_of_doctor_follows_the_speeds():
    def make_facts(**speeds):
        return {"devices": [{"device": "cpu", "matmul_gflops": speeds}]}

    assert "--dtype bfloat16: matrices multiply 1.9 ×" in doctor.advise(make_facts(float32=100.0, bfloat16=190.0))
    assert "--dtype float32: bfloat16 measured 0.4 ×" in doctor.advise(make_facts(float32=100.0, bfloat16=40.0))
    assert "reinstall torch" in doctor.advise(make_facts())


def test_preparing_small_data_shows_no_progress(monkeypatch, capsys):
    """A task is shown after a second, whenever the task before it was."""
    now = iter([100.0, 100.1, 160.0, 160.5, 162.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    with terminal.show_progress():
        for done in (5, 10, 5, 10):
            events.report_progress("checking", done * 10**6, 10**7)
        assert capsys.readouterr().err == ""
        events.report_progress("checking", 12 * 10**6, 2 * 10**7)
    assert capsys.readouterr().err == "checking 60%\n"
