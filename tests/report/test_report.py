"""The report of a run: correct numbers, one self-contained file, charts that keep what matters."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from anyformer.report.chart import Mark, Series, bar_chart, heatmap, line_chart, log_ticks, nice_ticks, tick_labels
from anyformer.report.curves import Curve, group_metrics, read_curves, read_lines, total_seconds
from anyformer.report.html import describe_baselines, describe_overfitting, format_count, format_duration, write_report
from anyformer.report.run_files import read_samples


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "my plays"
    for step in (50, 100):
        checkpoint = folder / "checkpoints" / f"step-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"best": {"step": 50, "val_loss": 1.5}}))
    (folder / "checkpoints" / "step-50" / "model.safetensors").write_bytes(bytes(4000))
    save_file({"a": np.zeros(12345, np.int8)}, checkpoint / "model.safetensors")
    vocab = {chr(i): i for i in range(65)}
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    config = {
        "recipe": "language",
        "preset": "tiny",
        "config": {"data": "plays", "tokenizer": "char", "model": {"dim": 16}},
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
                file.write(
                    json.dumps({"step": step, "val_loss": 1.4 + step / 500, "val_f1": 0.5, "val_rows": 60}) + "\n"
                )
        file.write('{"step": 101, "loss": 99')  # the process was killed in the middle of a line
    with (folder / "timings.jsonl").open("w") as file:
        for step in range(1, 101):
            file.write(json.dumps({"step": step, "seconds": step * 1.92, "tokens_per_second": 5000.0}) + "\n")
    samples = (
        "--- step 50 · temperature 0.8 ---\nfirst words\n--- step 100 ---\n<script>alert('x')</script>\n\nlast  line\n"
    )
    (folder / "samples.txt").write_text(samples)
    return folder


def test_the_report_shows_the_numbers_of_the_run(run: Path):
    page = write_report(run).read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "1.5000 " in words and "step 50; at the end 1.6000" in words
    assert f"{math.exp(1.5):.4g} " in words and "per character" in words
    assert "12,345" in words and "64 k" in words and "3 min 12 s" in words and "tokens per second 333" in words
    assert "best 1.5000 · step 50" in words and "guessing evenly: 4.174" in words
    assert re.search(r"step-50 best 4.04 kB", words) and not re.search(r"step-100 best", words)
    assert "anyformer sample &#39;" in words and "my plays&#39;" in words  # the path is quoted for a shell
    assert "anyformer train language --out" in words and "config.model" in words and "validation f1" in words
    assert "rows" not in words, "a count of the split is no metric"
    assert "training: from 3.975 to 1.5;" in page, "the incomplete last line is skipped"


def test_the_report_is_one_file_without_external_resources(run: Path):
    path = write_report(run)
    page = path.read_text()
    assert path == run / "report.html"
    assert not re.search(r"https?:|//[a-z]|\bsrc=|<link|@import|url\(", page)
    assert [file.name for file in run.glob("*.html*")] == ["report.html"], "no temporary file is left"
    assert not list(run.glob(".report*"))


def test_text_of_a_run_is_escaped(run: Path):
    page = write_report(run).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(" in page
    assert "<b>bold" not in page
    assert page.index("&lt;script&gt;alert(") < page.index("first words"), "the newest sample comes first"
    metrics = run / "metrics.jsonl"
    metrics.write_text(
        '{"step": 1, "<img onerror=x>": 2.0, "loss": 1.0}\n{"step": 2, "<img onerror=x>": 1.0, "loss": NaN}\n'
    )
    page = write_report(run).read_text()
    assert "<img" not in page and "&lt;img" in page
    assert "loss was not finite at step 2" in page


@pytest.mark.parametrize("missing", [["config.json", "metrics.jsonl"], ["samples.txt", "timings.jsonl"]])
def test_missing_files_are_left_out(run: Path, missing: list[str]):
    for name in missing:
        (run / name).unlink()
    page = write_report(run).read_text()
    assert ("best validation loss" in page) == ("metrics.jsonl" not in missing)
    assert ("first words" in page) == ("samples.txt" not in missing)
    assert "Next commands" in page


def test_the_report_shows_the_size_of_the_model_and_the_final_result(run: Path):
    checkpoint = run / "checkpoints" / "step-100"
    save_file({"a": np.zeros((30, 20)), "b": np.zeros(7)}, checkpoint / "model.safetensors")
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}))
    result = {"step": 100, "best_step": 50, "val_loss": 1.4321, "val_f1": 0.625, "val_rows": 60}
    (run / "result.json").write_text(json.dumps(result))
    page = write_report(run).read_text()
    assert ">607<" in page and "guessing evenly: 1.099" in page
    assert ">1.4321<" in page and ">0.625<" in page and "over the whole split (60 rows), at step 50" in page
    (run / "result.json").write_text(json.dumps(result | {"step": 60}))
    assert "1.4321" not in write_report(run).read_text(), "a result of before the run was resumed does not count"


def test_empty_and_malformed_runs_have_a_report_and_a_missing_run_is_an_error(tmp_path: Path):
    assert "Nothing has been measured yet" in write_report(tmp_path).read_text()
    (tmp_path / "config.json").write_text('{"model": 3, "config": ["odd"], "versions": null, "seed": null}')
    malformed = '[1]\nnull\n{"loss": "high"}\n{"step": "two", "loss": 2.5, "done": true}\n{"val_loss": null}\n'
    (tmp_path / "metrics.jsonl").write_text(malformed)
    assert "2.5000" in write_report(tmp_path).read_text()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_a_curve_keeps_spikes_and_the_mean_in_bounded_memory():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, 50.0 if step == 61_803 else math.sin(step))
    xs, ys = curve.points()
    assert len(xs) <= 1500 and len(xs) == len(ys) and xs == sorted(xs)
    assert (61_803, 50.0) in zip(xs, ys, strict=True)
    assert max(abs(y) for x, y in zip(*curve.smooth(), strict=True) if abs(x - 61_803) > 5000) < 0.05
    assert len(curve.buckets) <= curve.max_buckets and sum(b[0] for b in curve.buckets) == 100_000
    assert curve.lowest()[1] < -0.999999


def test_steps_that_were_logged_twice_count_once():
    steps = [*range(1, 41), *range(31, 61)]
    curve = read_curves({"step": s, "loss": float(i)} for i, s in enumerate(steps))["loss"]
    xs, ys = curve.points()
    assert xs == list(range(1, 61))
    assert ys[29:31] == [29.0, 40.0]  # step 30 of the first process, step 31 of the second


def test_malformed_lines_are_skipped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3}\n{"step": 2, "lo\xff\n{"step": 3, "loss": 2}\n')
    assert [record["step"] for record in read_lines(path)] == [1, 3]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_metrics_with_the_same_ending_share_a_chart():
    groups = group_metrics(["loss", "val_loss", "policy_loss", "grad_norm", "lr", "val_accuracy", "test_accuracy"])
    assert groups["loss"] == ["loss", "val_loss", "policy_loss"]
    assert groups["accuracy"] == ["val_accuracy", "test_accuracy"]
    assert set(groups) == {"loss", "grad_norm", "lr", "accuracy"}


def test_total_seconds_of_a_clock_of_a_restarted_clock_and_of_steps():
    def build_curve(values):
        curve = Curve()
        for step, value in enumerate(values):
            curve.add(step, value)
        return curve

    assert total_seconds(build_curve([1, 2, 3, 4])) == 4
    assert total_seconds(build_curve([*range(1, 31), *range(1, 21)])) == 50
    assert total_seconds(build_curve([0.5, 0.4, 0.6, 0.5])) == pytest.approx(2.0)


def test_samples_come_newest_first_and_old_ones_are_thinned(tmp_path: Path):
    path = tmp_path / "samples.txt"
    path.write_text("".join(f"--- step {n} ---\ntext {n}\n\n" for n in range(1, 201)))
    samples = read_samples(path)
    assert samples[0] == ("step 200", "text 200")
    assert 10 < len(samples) <= 31


@pytest.mark.parametrize(("lo", "hi"), [(0, 2000), (1.43, 4.17), (-3e-5, 6e-4), (58_000, 63_000)])
def test_ticks_are_few_round_and_inside(lo: float, hi: float):
    ticks = nice_ticks(lo, hi)
    assert 3 <= len(ticks) <= 7 and lo <= ticks[0] and ticks[-1] <= hi * (1 + 1e-9)
    gaps = {float(f"{b - a:.4e}") for a, b in pairwise(ticks)}
    assert len(gaps) == 1 and f"{gaps.pop():.6e}"[0] in "125"
    assert len(set(tick_labels(ticks))) == len(ticks), "labels are distinct"


def test_tick_labels_have_the_same_format():
    assert tick_labels([0, 500, 1000]) == ["0", "500", "1,000"]
    assert tick_labels([1.5, 2, 2.5]) == ["1.5", "2.0", "2.5"]
    assert tick_labels([0, 2e-4, 4e-4]) == ["0", "2e-4", "4e-4"]
    assert tick_labels([0, 20_000, 40_000]) == ["0", "20k", "40k"]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]


def test_points_of_a_line_chart_are_to_scale():
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


def test_a_logarithmic_chart_spaces_decades_equally():
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


def test_numbers_are_formatted():
    assert [format_count(v).strip() for v in (812, 999_700, 803_392, 1.5e9)] == ["812", "1 M", "803 k", "1.5 B"]
    assert [format_duration(s) for s in (42, 192, 18_420)] == ["42 s", "3 min 12 s", "5 h 07 min"]


def read_words(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text()))


def test_a_result_is_compared_with_its_baselines(run: Path):
    result = {"step": 100, "val_loss": 1.4921, "val_accuracy": 0.5}
    baselines = {"loss": {"guessing evenly": 4.17, "letter frequencies": 3.31}, "accuracy": {"majority": 0.5}}
    sentences = describe_baselines(result | {"baselines": baselines})
    assert sentences[0] == (
        "Better than guessing evenly and letter frequencies: loss 1.49 (guessing evenly 4.17, letter frequencies 3.31)."
    )
    assert sentences[1] == "Equal to majority: accuracy 0.5 (majority 0.5)."
    (run / "result.json").write_text(json.dumps(result | {"baselines": baselines}))
    assert sentences[0] in read_words(write_report(run))
    for malformed in (3, {"loss": 3}, {"loss": {"x": "y"}}, {"other": {"x": 1.0}}):
        assert describe_baselines(result | {"baselines": malformed}) == []


@pytest.mark.parametrize(("verdict", "others"), [
    ("Equal to a linear model, better than majority: accuracy 1 ", {"majority": 0.6, "a linear model": 1.0}),
    ("Equal to majority and a linear model: accuracy 1 ", {"majority": 1.0, "a linear model": 1.0}),
    ("No better than x or y: accuracy 1 ", {"majority": 0.6, "x": 1.0, "y": 1.5}),
])  # fmt: skip
def test_what_is_equal_is_called_equal(verdict: str, others: dict[str, float]):
    (sentence,) = describe_baselines({"val_accuracy": 1.0, "baselines": {"accuracy": others}})
    assert sentence.startswith(verdict)


def test_a_validation_loss_that_rose_again_is_said(run: Path):
    def describe(best: float, last: float, best_step: int) -> list[str]:
        validations = {"best": best, "last": last}
        result = {"step": 900, "best_step": best_step, "val_loss": best, "validations": validations}
        (run / "result.json").write_text(json.dumps(result))
        return describe_overfitting(result)

    expected = "Overfits: validation loss was best at step 300 (1.2) and 1.41 at step 900."
    assert describe(1.2, 1.41, 300)[0].startswith(expected)
    assert describe(1.2, 1.21, 300) == [] and describe(1.2, 1.2, 900) == [], "noise, and no rise"
    assert describe(-1.2, -1.0, 300) and not describe(-1.2, -1.19, 300), "a log-likelihood per number"
    for malformed in (3, {"best": "x", "last": 2.0}, {"best": 1.0}, None):
        assert describe_overfitting({"step": 9, "best_step": 3, "validations": malformed}) == []


def test_a_result_has_the_best_and_the_last_validation(run_once: Path):
    result, lines = json.loads((run_once / "result.json").read_text()), (run_once / "metrics.jsonl").read_text()
    losses = [record["val_loss"] for record in map(json.loads, lines.splitlines()) if "val_loss" in record]
    assert result["validations"] == {"best": min(losses), "last": losses[-1]} and len(losses) > 1


def test_the_sizes_that_were_tried_are_a_table(run: Path):
    sizes = [
        {"dim": 64, "n_layer": 2, "context": 64, "batch": 32, "tokens_per_second": 11732, "expects": [2.7, 3.1]},
        {"dim": 96, "n_layer": 3, "context": 128, "batch": 16, "tokens_per_second": 6566, "expects": [2.4, 2.8]},
    ]
    config = json.loads((run / "config.json").read_text())
    config["config"]["model"] = {"dim": 96, "n_layer": 3, "context": 128}
    plan = {"minutes": 2, "expects": [2.5, 2.9], "sizes": [*sizes, {"dim": "?"}, 3]}
    (run / "config.json").write_text(json.dumps(config | {"plan": plan}))
    words = read_words(write_report(run))
    assert "3 layers of 96, context 128 16 6,566 2.40 to 2.80 chosen" in words
    assert "2 layers of 64, context 64 32 11,732 2.70 to 3.10 " in words and words.count("chosen") == 2
    assert "expects" not in words and "predicted loss is 2.5 to 2.9" in words


def test_the_schema_and_the_worth_of_a_table_model_are_shown(run: Path):
    fields = {
        "age": {"kind": "scalar", "mean": [41.5], "std": [3.0]},
        "<i>": {"kind": "category", "values": ["x", "y"]},
    }
    schema = {"fields": fields, "targets": {"kind": {"kind": "class", "values": list("abcdefgh")}}}
    (run / "checkpoints" / "step-100" / "schema.json").write_text(json.dumps(schema))
    fields = {"age": {"without": 0.5, "only": 0.9, "shuffled": 0.6, "worth": 0.3}}
    worth = {"score": "accuracy", "all": 0.9, "none": 0.5, "rows": 60, "fields": fields}
    (run / "worth.json").write_text(json.dumps(worth))
    page, words = write_report(run).read_text(), read_words(run / "report.html")
    assert (
        "age reads scalar mean 41.5; deviation 3" in words and "predicts class a, b, c, d, e, f and 2 others" in words
    )
    assert "What each field is worth accuracy over 60 rows" in words and "<i>" not in page
    for malformed in ({"fields": [1]}, {"score": "x", "fields": {"a": 3}}, []):
        (run / "worth.json").write_text(json.dumps(malformed))
        (run / "checkpoints" / "step-100" / "schema.json").write_text(json.dumps(malformed))
        assert "What each field is worth" not in write_report(run).read_text()


def place_texts(svg: str, text: str) -> tuple[float, float]:
    x, y = re.search(rf'<text class="\w+" x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(text)}', svg).groups()
    return float(x), float(y)


def test_labels_do_not_cover_the_curve():
    """A curve that starts at the reference and ends at the mark: both labels move to where there is room."""
    steps = list(range(0, 101))
    for values in (
        [4.2] * 90 + [4.0 - 0.2 * i for i in range(11)],
        [1.0 + 3 * (i % 2) for i in steps[:50]] + [1.2] * 51,
    ):
        mark, reference = Mark(100, values[-1], "best 2.0 at step 100"), (4.2, "guessing evenly: 4.200")
        series = [Series("validation", steps, values)]
        svg = line_chart(series, title="loss", mark=mark, reference=reference, standalone=False)
        path = re.search(r'data-name="validation"[^>]* d="M([^"]+)"', svg)[1]
        points = [tuple(map(float, point.split())) for point in path.split("L")]
        for text in (mark.text, reference[1]):
            x, y = place_texts(svg, text)
            half = 6.4 * len(text) / 2
            assert [p for p in points if abs(p[0] - x) < half and y - 11 < p[1] < y + 3] == [], text


def test_bars_are_drawn_to_scale():
    svg = bar_chart({"a <b>": [1.0, 0.5], "c": [0.25, -0.5]}, ("x", "y"), title="t", marks={"m": 1})
    widths = [float(part.split('width="')[1].split('"')[0]) for part in svg.split("<rect ")[3:]]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1) == pytest.approx(4 * widths[2], abs=0.4)
    assert widths[3] == pytest.approx(widths[1], abs=0.1) and "a &lt;b&gt;" in svg
    with pytest.raises(ValueError, match="each group needs 2 bars"):
        bar_chart({"a": [1.0]}, ("x", "y"), title="t")
