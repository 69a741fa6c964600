"""anyformer bench: figures that were measured, shares that follow from them, and reasons where one is missing."""

import io
import math
from typing import Any

import pytest
import torch
from rich.console import Console

from anyformer.labs import benchmark as bench
from anyformer.model.quantization.quantize import Int8Linear
from anyformer.recipes import language
from anyformer.report import benchmark as view
from anyformer.training import hardware as ceilings
from cli_kit import assert_refused, call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures of small things."""
    monkeypatch.setattr(bench, "TRAINED", ("tiny",))
    monkeypatch.setattr(bench, "ANSWERING", "tiny")
    monkeypatch.setattr(bench, "BPE", 300)
    monkeypatch.setattr(bench, "SECONDS", 0.04)
    monkeypatch.setattr(bench, "documentation", lambda: "the cat sat on the mat. " * 500)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "MIN_MATMUL_SECONDS", 1e-3)


def screen(found: dict[str, Any], width: int = 80) -> str:
    told = io.StringIO()
    Console(file=told, width=width).print(view.describe(found))
    return told.getvalue()


def test_the_command_measures_and_answers_with_one_json_object(small: None):
    said = call("bench", "--quick", "--device", "cpu", "--json").ok()
    found = said.json
    assert "measuring" in said.err and found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
    assert found.keys() >= {"ceilings", "training", "generation", "tokenizing", "seconds", "torch", "name"}
    rows = [row for section in ("ceilings", "training", "generation", "tokenizing") for row in found[section]]
    assert [row["problem"] for row in rows] == [None] * 11
    [trained] = found["training"]
    config = language.PRESETS["tiny"]
    assert (trained["batch"], trained["context"]) == (config.train.batch, config.model.context)
    assert {(row["weights"], row["batch"]) for row in found["generation"]} == {
        (weights, batch) for weights in ("float32", "bfloat16", "int8") for batch in (1, 8)
    }
    products = {row["dtype"]: row["gflops"] for row in found["ceilings"] if "dtype" in row}
    assert trained["share"] == pytest.approx(trained["gflops"] / products[trained["dtype"]], abs=1e-3)
    for row in found["generation"]:
        assert row["share"] == pytest.approx(row["tokens_per_second"] / row["at_most"], abs=1e-3)
        assert math.isfinite(row["tokens_per_second"]) and row["tokens_per_second"] > 0
    assert found["tokenizing"][0]["mb_per_s"] > 0


def test_a_person_sees_it_all_in_eighty_columns(small: None):
    said = call("bench", "--quick", "--device", "cpu").ok()
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in said.out
    for word in ("matrix products, bfloat16", "reading memory", "tiny", "int8", "BPE of 300", "GB/s", "MB/s"):
        assert word in said.out, word
    assert "→ " in said.out


def row(**more: Any) -> dict[str, Any]:
    return {"what": "x", "problem": None} | more


def made(float32: float = 100.0, bfloat16: float = 200.0, used: str = "bfloat16", int8: float = 90.0) -> dict[str, Any]:
    """What would be found of the largest figures that a line has to hold."""
    answers = [row(weights="float32", batch=1, tokens_per_second=30.0, bytes_a_step=498_000_000)]
    answers += [row(weights="int8", batch=1, tokens_per_second=int8, bytes_a_step=124_000_000)]
    trained = row(preset="nanogpt-gpu", parameters=10_750_000, batch=64, context=256, dtype=used)
    rows = {
        "ceilings": [row(dtype="float32", gflops=float32), row(dtype="bfloat16", gflops=bfloat16), row(gb_per_s=20.0)],
        "training": [trained | {"tokens_per_second": 1_234_567.0, "gflops": 50.0}],
        "generation": answers,
        "tokenizing": [row(what="BPE of 4,096", text="Python's own documentation", mb_per_s=12.0)],
    }
    about = {"device": "cpu", "name": "a processor", "torch": "2", "threads": 2, "seconds": 30.0}
    return about | bench.shared(rows)


def test_shares_are_of_what_was_measured():
    found = made()
    assert found["training"][0]["share"] == 0.25
    assert [one["at_most"] for one in found["generation"]] == [40.2, 161.3]
    assert found["generation"][0]["share"] == pytest.approx(0.746)
    told = screen(found)
    assert "1,234,567" in told and "25%" in told and "75%" in told and "…" not in told


def test_the_advice_follows_the_figures():
    assert view.advice(made()) == (
        "train as it is: --dtype auto takes bfloat16; "
        "answer with --weights int8: 3.0 × as many tokens a second as float32"
    )
    assert "--dtype bfloat16: matrices multiply 2.0 × as fast as in float32" in view.advice(made(used="float32"))
    assert "answer with float32 weights" in view.advice(made(int8=31.0))
    nothing = [{"what": "x", "problem": "no"}]
    assert "could be measured" in view.advice(dict.fromkeys(("ceilings", "training", "generation"), nothing))


def test_what_cannot_be_measured_says_why_and_the_rest_goes_on(small: None, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> float:
        raise RuntimeError("no such product\nand many lines more")

    def missing() -> str:
        raise ModuleNotFoundError("No module named 'pydoc_data'")

    monkeypatch.setattr(ceilings, "measure_matmul_gflops", refuse)
    monkeypatch.setattr(bench, "documentation", missing)
    found = bench.measure("cpu", 0.01)
    assert [one["problem"] for one in found["ceilings"]] == ["no such product"] * 2 + [None]
    assert found["training"][0]["share"] is None and found["training"][0]["tokens_per_second"] > 0
    assert found["tokenizing"] == [{"what": "BPE of 300", "problem": "No module named 'pydoc_data'"}]
    told = screen(found)
    assert "no such product" in told and "many lines" not in told and "pydoc_data" in told


def test_the_batch_is_the_presets_own_but_for_what_a_cpu_does_not_stand():
    for where, batches in (("cpu", [12, 8]), ("cuda", [12, 64])):
        assert [bench.brief(name, torch.device(where)).train.batch for name in bench.TRAINED] == batches


def test_the_weights_come_back_as_they_were():
    model = language.build(bench.brief("tiny", torch.device("cpu")))
    before, size = list(model.modules()), bench.bytes_a_step(model)
    with bench.narrowed(model, "int8") as made:
        assert any(isinstance(module, Int8Linear) for module in made.modules())
        assert bench.bytes_a_step(made) == size / 4
    assert all(one is other for one, other in zip(before, model.modules(), strict=True))


def test_mistakes_are_one_line():
    assert_refused(call("bench", "--quik"), "no flag --quik", "--quick?")
    assert_refused(call("bench", "--device", "gpu"), "--device gpu is not on this machine", "valid: auto, cpu")
