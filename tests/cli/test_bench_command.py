"""anyformer bench: measured figures, shares that follow from them, and a reason where a figure is missing."""

import io
import math
from typing import Any

import pytest
import torch
from rich.console import Console

from anyformer.labs import benchmark
from anyformer.model.quantization.quantize import Int8Linear, quantize
from anyformer.recipes import language
from anyformer.training import hardware
from cli_kit import assert_refused, call

SECTIONS = ("ceilings", "training", "generation", "tokenizing")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the same figures on small shapes."""
    monkeypatch.setattr(benchmark, "TRAINING_PRESETS", ("tiny",))
    monkeypatch.setattr(benchmark, "GENERATION_PRESET", "tiny")
    monkeypatch.setattr(benchmark, "BPE_VOCAB_SIZE", 300)
    monkeypatch.setattr(benchmark, "SECONDS", 0.04)
    monkeypatch.setattr(benchmark, "load_documentation", lambda: "the cat sat on the mat. " * 500)
    monkeypatch.setattr(hardware, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(hardware, "MIN_MATMUL_SECONDS", 1e-3)


def render(facts: dict[str, Any], width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(benchmark.describe(facts))
    return screen.getvalue()


@pytest.mark.slow
def test_the_command_prints_one_json_object(small: None):
    output = call("bench", "--quick", "--device", "cpu", "--json").ok()
    facts = output.json
    assert "measuring" in output.err and facts["device"] == "cpu" and facts["threads"] == torch.get_num_threads()
    assert facts.keys() >= {*SECTIONS, "seconds", "torch", "name"}
    assert [row["problem"] for section in SECTIONS for row in facts[section]] == [None] * 13
    [training] = facts["training"]
    config = language.PRESETS["tiny"]
    assert (training["batch"], training["context"]) == (config.train.batch, config.model.context)
    assert {(row["weights"], row["batch"]) for row in facts["generation"]} == {
        (weights, batch) for weights in ("float32", "bfloat16", "int8", "int4") for batch in (1, 8)
    }
    products = {row["dtype"]: row["gflops"] for row in facts["ceilings"] if "dtype" in row}
    assert training["share"] == pytest.approx(training["gflops"] / products[training["dtype"]], abs=1e-3)
    for row in facts["generation"]:
        assert row["share"] == pytest.approx(row["tokens_per_second"] / row["at_most"], abs=1e-3)
        assert math.isfinite(row["tokens_per_second"]) and row["tokens_per_second"] > 0
    assert facts["tokenizing"][0]["mb_per_s"] > 0


def test_the_tables_fit_into_eighty_columns(small: None):
    output = call("bench", "--quick", "--device", "cpu").ok().out
    assert max(map(len, output.splitlines())) <= 80 and "…" not in output
    for word in ("matrix products, bfloat16", "reading memory", "tiny", "int8", "BPE of 300", "GB/s", "MB/s", "→ "):
        assert word in output, word


def make_row(**values: Any) -> dict[str, Any]:
    return {"what": "x", "problem": None} | values


def make_facts(used: str = "bfloat16", int8: float = 90.0) -> dict[str, Any]:
    """The result of a measurement, with numbers as wide as they can be."""
    generation = [make_row(weights="float32", batch=1, tokens_per_second=30.0, bytes_a_step=498_000_000)]
    generation += [make_row(weights="int8", batch=1, tokens_per_second=int8, bytes_a_step=124_000_000)]
    training = make_row(preset="nanogpt-gpu", parameters=10_750_000, batch=64, context=256, dtype=used)
    speeds = {"float32": 100.0, "bfloat16": 200.0}
    ceilings = [make_row(dtype=dtype, gflops=gflops) for dtype, gflops in speeds.items()]
    rows = {
        "ceilings": [*ceilings, make_row(gb_per_s=20.0)],
        "training": [training | {"tokens_per_second": 1_234_567.0, "gflops": 50.0}],
        "generation": generation,
        "tokenizing": [make_row(what="BPE of 4,096", text="Python's own documentation", mb_per_s=12.0)],
    }
    machine = {"device": "cpu", "name": "a processor", "torch": "2", "threads": 2, "seconds": 30.0}
    return machine | benchmark.add_shares(rows)


def test_shares_are_of_what_was_measured():
    facts = make_facts()
    assert facts["training"][0]["share"] == 0.25
    assert [row["at_most"] for row in facts["generation"]] == [40.2, 161.3]
    assert facts["generation"][0]["share"] == pytest.approx(0.746)
    text = render(facts)
    assert "1,234,567" in text and "25%" in text and "75%" in text and "…" not in text


def test_the_advice_follows_the_figures():
    assert benchmark.advise(make_facts()) == (
        "train as it is: --dtype auto takes bfloat16; "
        "answer with --weights int8: 3.0 × as many tokens a second as float32"
    )
    slow = make_facts(used="float32", int8=31.0)
    assert "--dtype bfloat16: matrices multiply 2.0 × as fast as in float32" in benchmark.advise(slow)
    assert "answer with float32 weights" in benchmark.advise(slow)
    nothing = [{"what": "x", "problem": "no"}]
    assert "could be measured" in benchmark.advise(dict.fromkeys(SECTIONS, nothing))


def test_a_figure_that_fails_has_a_reason_and_the_others_are_measured(small: None, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> float:
        raise RuntimeError("no such product\nand many lines more")

    def missing() -> str:
        raise ModuleNotFoundError("No module named 'pydoc_data'")

    def only_wide(model: Any, weights: Any) -> None:
        if weights == "int4":
            raise ValueError("int4 weights are for a CPU")
        quantize(model, weights)

    monkeypatch.setattr(benchmark, "quantize", only_wide)
    monkeypatch.setattr(hardware, "measure_matmul_gflops", refuse)
    monkeypatch.setattr(benchmark, "load_documentation", missing)
    facts = benchmark.measure("cpu", 0.01)
    assert [row["problem"] for row in facts["ceilings"]] == ["no such product"] * 2 + [None]
    assert facts["training"][0]["share"] is None and facts["training"][0]["tokens_per_second"] > 0
    assert facts["generation"][-1]["problem"] == "int4 weights are for a CPU" and len(facts["generation"]) == 7
    assert facts["tokenizing"] == [{"what": "BPE of 300", "problem": "No module named 'pydoc_data'"}]
    text = render(facts)
    assert "no such product" in text and "many lines" not in text and "pydoc_data" in text


def test_the_batch_is_that_of_the_preset_and_limited_on_a_cpu():
    for device, batches in (("cpu", [12, 8]), ("cuda", [12, 64])):
        configs = [benchmark.make_config(name, torch.device(device)) for name in benchmark.TRAINING_PRESETS]
        assert [config.train.batch for config in configs] == batches


def test_the_weights_are_restored():
    model = language.build(benchmark.make_config("tiny", torch.device("cpu")))
    before, size = list(model.modules()), benchmark.count_linear_bytes(model)
    with benchmark.use_weight_format(model, "int8") as quantized:
        assert any(isinstance(module, Int8Linear) for module in quantized.modules())
        assert benchmark.count_linear_bytes(quantized) == size / 4
    assert all(old is new for old, new in zip(before, model.modules(), strict=True))


def test_mistakes_are_one_line():
    assert_refused(call("bench", "--quik"), "no flag --quik", "--quick?")
    assert_refused(call("bench", "--device", "gpu"), "--device gpu is not available on this machine", "auto, cpu")
