"""The pictures of a run: right numbers, one safe file, charts that keep what matters."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from anyformer.report.chart import Mark, Series, line_chart, log_ticks, nice_ticks, tick_labels
from anyformer.report.curves import Curve, elapsed, families, read_curves, read_lines
from anyformer.report.heatmap import heatmap
from anyformer.report.html import amount, duration, write_report
from anyformer.report.run_files import read_samples


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "my plays"
    (folder / "checkpoints" / "step-50").mkdir(parents=True)
    (folder / "checkpoints" / "step-100").mkdir()
    (folder / "checkpoints" / "step-50" / "model.safetensors").write_bytes(bytes(4000))
    state = {"best": {"step": 50, "val_loss": 1.5}}
    (folder / "checkpoints" / "step-100" / "state.json").write_text(json.dumps(state))
    config = {
        "recipe": "language",
        "preset": "tiny",
        "config": {"data": "plays", "tokenizer": "char", "model": {"dim": 16}},
        "model": {"parameters": 12345, "vocab_size": 65},
        "versions": {"torch": "2.13"},
        "seed": 7,
        "command": "anyformer train language --note '<b>bold</b>'",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 101):
            record = {"step": step, "loss": 4 - step / 40, "lr": 1e-3, "tokens": step * 640}
            file.write(json.dumps(record) + "\n")
            if step % 50 == 0:
                file.write(json.dumps({"step": step, "val_loss": 1.4 + step / 500, "val_accuracy": 0.5}) + "\n")
        file.write('{"step": 101, "loss": 99')  # a kill in the middle of a line
    with (folder / "timings.jsonl").open("w") as file:
        for step in range(1, 101):
            file.write(json.dumps({"step": step, "seconds": step * 1.92, "tokens_per_second": 5000.0}) + "\n")
    samples = (
        "--- step 50 · temperature 0.8 ---\nfirst words\n--- step 100 ---\n<script>alert('x')</script>\n\nlast  line\n"
    )
    (folder / "samples.txt").write_text(samples)
    return folder


def test_the_report_tells_the_numbers_of_the_run(run: Path):
    page = write_report(run).read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "1.5000 " in words and "step 50; at the end 1.6000" in words
    assert f"{math.exp(1.5):.4g} " in words and "per character" in words
    assert "12,345" in words and "64 k" in words and "3 min 12 s" in words and "tokens per second 333" in words
    assert "best 1.5000 · step 50" in words and "ln 65 = 4.174" in words
    assert re.search(r"step-50 best 4 kB", words) and not re.search(r"step-100 best", words)
    assert "anyformer sample &#39;" in words and "my plays&#39;" in words  # the path is quoted for a shell
    assert "anyformer train language --out" in words and "config.model" in words and "accuracy" in words
    assert "training: from 3.975 to 1.5;" in page, "the half-written last line is not a measurement"


def test_the_report_is_one_file_that_asks_for_nothing(run: Path):
    path = write_report(run)
    page = path.read_text()
    assert path == run / "report.html"
    assert not re.search(r"https?:|//[a-z]|\bsrc=|<link|@import|url\(", page)
    assert [file.name for file in run.glob("*.html*")] == ["report.html"], "no temporary file stays"
    assert not list(run.glob(".report*"))


def test_the_report_trusts_nothing_in_the_run(run: Path):
    page = write_report(run).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(" in page
    assert "<b>bold" not in page
    assert page.index("&lt;script&gt;alert(") < page.index("first words"), "the newest sample comes first"
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": 1, "<img onerror=x>": 2.0, "loss": 1.0}\n{"step": 2, "loss": NaN}\n')
    page = write_report(run).read_text()
    assert "<img" not in page and "&lt;img" in page
    assert "loss was not finite at step 2" in page


@pytest.mark.parametrize(
    "lost", [["config.json"], ["metrics.jsonl"], ["samples.txt", "timings.jsonl"], ["config.json", "metrics.jsonl"]]
)
def test_the_report_does_without_what_is_missing(run: Path, lost: list[str]):
    for name in lost:
        (run / name).unlink()
    page = write_report(run).read_text()
    assert ("best validation loss" in page) == ("metrics.jsonl" not in lost)
    assert ("first words" in page) == ("samples.txt" not in lost)
    assert "How to go on" in page


def test_the_report_finds_the_size_of_the_model_and_the_final_result(run: Path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model": None}))
    last = run / "checkpoints" / "step-100"
    header = json.dumps({"__metadata__": {}, "a": {"shape": [30, 20]}, "b": {"shape": [7]}}).encode()
    (last / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (last / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}))
    result = {"step": 100, "best_step": 50, "val_loss": 1.4321, "val_accuracy": 0.625}
    (run / "result.json").write_text(json.dumps(result))
    page = write_report(run).read_text()
    assert ">607<" in page and "ln 3 = 1.099" in page
    assert ">1.4321<" in page and ">0.625<" in page and "over the whole split, at step 50" in page
    (run / "result.json").write_text(json.dumps(result | {"step": 60}))
    assert "1.4321" not in write_report(run).read_text(), "a result from before the run went on is no result"


def test_an_empty_run_and_odd_values_make_a_page_and_no_run_is_an_error(tmp_path: Path):
    assert "Nothing has been measured yet" in write_report(tmp_path).read_text()
    (tmp_path / "config.json").write_text('{"model": 3, "config": ["odd"], "versions": null, "seed": null}')
    odd = '[1]\nnull\n{"loss": "high"}\n{"step": "two", "loss": 2.5, "done": true}\n{"val_loss": null}\n'
    (tmp_path / "metrics.jsonl").write_text(odd)
    assert "2.5000" in write_report(tmp_path).read_text()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_thinning_keeps_a_spike_and_the_mean_in_bounded_memory():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, 50.0 if step == 61_803 else math.sin(step))
    xs, ys = curve.points()
    assert len(xs) <= 1500 and len(xs) == len(ys) and xs == sorted(xs)
    assert (61_803, 50.0) in zip(xs, ys, strict=True)
    assert max(abs(y) for x, y in zip(*curve.smooth(), strict=True) if abs(x - 61_803) > 5000) < 0.05
    assert len(curve.buckets) <= curve.most and sum(b[0] for b in curve.buckets) == 100_000
    assert curve.lowest()[1] < -0.999999


def test_steps_that_were_run_twice_after_a_resume_count_once():
    steps = [*range(1, 41), *range(31, 61)]
    curve = read_curves({"step": s, "loss": float(i)} for i, s in enumerate(steps))["loss"]
    xs, ys = curve.points()
    assert xs == list(range(1, 61))
    assert ys[29:31] == [29.0, 40.0]  # step 30 from the first go, step 31 from the second


def test_a_whole_line_after_half_a_line_is_still_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3}\n{"step": 2, "lo\xff\n{"step": 3, "loss": 2}\n')
    assert [record["step"] for record in read_lines(path)] == [1, 3]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_metrics_that_end_alike_share_a_chart():
    found = families(["loss", "val_loss", "policy_loss", "grad_norm", "lr", "val_accuracy", "test_accuracy"])
    assert found["loss"] == ["loss", "val_loss", "policy_loss"]
    assert found["accuracy"] == ["val_accuracy", "test_accuracy"]
    assert set(found) == {"loss", "grad_norm", "lr", "accuracy"}


def test_elapsed_reads_a_clock_a_resumed_clock_and_single_steps():
    def curve(values):
        made = Curve()
        for step, value in enumerate(values):
            made.add(step, value)
        return made

    assert elapsed(curve([1, 2, 3, 4])) == 4
    assert elapsed(curve([*range(1, 31), *range(1, 21)])) == 50
    assert elapsed(curve([0.5, 0.4, 0.6, 0.5])) == pytest.approx(2.0)


def test_samples_come_newest_first_and_old_ones_are_thinned(tmp_path: Path):
    path = tmp_path / "samples.txt"
    path.write_text("".join(f"--- step {n} ---\ntext {n}\n\n" for n in range(1, 201)))
    samples = read_samples(path)
    assert samples[0] == ("step 200", "text 200")
    assert 10 < len(samples) <= 31


@pytest.mark.parametrize(("lo", "hi"), [(0, 2000), (1.43, 4.17), (-3e-5, 6e-4), (0, 1), (58_000, 63_000), (0, 6e11)])
def test_ticks_are_few_round_and_inside(lo: float, hi: float):
    ticks = nice_ticks(lo, hi)
    assert 3 <= len(ticks) <= 7 and lo <= ticks[0] and ticks[-1] <= hi * (1 + 1e-9)
    gaps = {float(f"{b - a:.4e}") for a, b in pairwise(ticks)}
    assert len(gaps) == 1 and f"{gaps.pop():.6e}"[0] in "125"
    assert len(set(tick_labels(ticks))) == len(ticks), "labels tell the ticks apart"


def test_tick_labels_are_written_alike():
    assert tick_labels([0, 500, 1000]) == ["0", "500", "1,000"]
    assert tick_labels([1.5, 2, 2.5]) == ["1.5", "2.0", "2.5"]
    assert tick_labels([0, 2e-4, 4e-4]) == ["0", "2e-4", "4e-4"]
    assert tick_labels([0, 20_000, 40_000]) == ["0", "20k", "40k"]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]


def test_a_line_chart_puts_points_where_they_belong():
    svg = line_chart([Series("a<b", [0, 50, 100], [0.0, 1.0, 4.0])], title="x & y", mark=Mark(50, 1.0, "here"))
    assert svg == line_chart([Series("a<b", [0, 50, 100], [0.0, 1.0, 4.0])], title="x & y", mark=Mark(50, 1.0, "here"))
    left, top, right, bottom = map(float, re.search(r'data-plot="([^"]+)"', svg)[1].split())
    y0, y1 = map(float, re.search(r'data-y="([^"]+)"', svg)[1].split())
    path = re.search(r'data-name="a&lt;b"[^>]* d="M([^"]+)"', svg)[1]
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert [x for x, _ in points] == pytest.approx([left, (left + right) / 2, right], abs=0.01)
    assert points[1][1] == pytest.approx(bottom - (1 - y0) / (y1 - y0) * (bottom - top), abs=0.01)
    assert 'role="img"' in svg and "x &amp; y" in svg and "here" in svg and "a<b" not in svg
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([], title="none")


def test_a_logarithmic_chart_spaces_decades_evenly():
    svg = line_chart([Series("a", [0, 1, 2], [1.0, 10.0, 100.0])], title="a", log=True)
    ys = [float(p.split()[1]) for p in re.search(r'data-name="a"[^>]* d="M([^"]+)"', svg)[1].split("L")]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)


def test_a_heatmap_has_rows_of_queries_and_columns_of_keys():
    svg = heatmap([[1, 0, 0], [0.5, 0.5, math.nan]], title="edges", rows=["q0", "q1"], columns=["a", "b", "<c>"])
    inks = [float(ink) for ink in re.findall(r"fill-opacity:([\d.]+)", svg)]
    assert inks == [1, 0, 0, 0.5, 0.5, 0]
    assert "2 queries by 3 keys" in svg and "&lt;c&gt;" in svg
    with pytest.raises(ValueError, match="one length"):
        heatmap([[1, 2], [1]], title="ragged")


def test_numbers_are_written_for_people():
    assert [amount(v).strip() for v in (812, 999_700, 803_392, 1.5e9)] == ["812", "1 M", "803 k", "1.5 B"]
    assert [duration(s) for s in (42, 192, 18_420)] == ["42 s", "3 min 12 s", "5 h 07 min"]
