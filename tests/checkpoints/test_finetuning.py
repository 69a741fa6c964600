"""After an import: every family is asked, measured and trained further as a run of our own."""

import json
from typing import Any

import pytest
import torch

from anyformer import api
from cli_kit import Said, call, content, refused

SMALL = ("--model.dim", 32, "--model.n-layer", 2, "--model.n-head", 2, "--model.mlp-dim", 48)
PAIR = tuple(
    flag
    for side in ("encoder", "decoder")
    for flag in (f"--{side}.dim", 32, f"--{side}.n-layer", 1, f"--{side}.mlp-dim", 48, f"--{side}.n-head", 2)
)
FEW = ("--steps", 2, "--train.batch", 4, "--train.accumulate", 1, "--train.eval-every", 1, "--train.save-every", 1)
FEW = (*FEW, "--train.eval-batches", 4, "--device", "cpu", "--dtype", "float32")
STILL = ("--train.lr", 1e-12, "--train.warmup", 0, "--train.weight-decay", 0)
TEXT = "the cat sat on the mat, and the dog sat on the cat\nthen the rat ran at the bat\n" * 30

# Family -> recipe, the flags of a model of its kind, the flags of data (TEXT: a file of them), a question.
FAMILIES: dict[str, tuple[str, tuple, str, str]] = {
    "gpt2": (
        "language",
        ("--preset", "nanogpt-cpu", "--tokenizer", "char", "--model.context", 32, *SMALL),
        "TEXT",
        "the cat",
    ),
    "llama": (
        "language",
        ("--preset", "llama", "--tokenizer", "bpe", "--vocab-size", 280, "--model.context", 32, *SMALL),
        "TEXT",
        "the cat",
    ),
    "bert": (
        "masked",
        (
            "--preset",
            "bert",
            "--tokenizer",
            "char",
            "--val-fraction",
            0.2,
            "--padded-vocab",
            48,
            "--model.context",
            32,
            *SMALL,
        ),
        "TEXT",
        "the c[MASK]t",
    ),
    "t5": (
        "translation",
        ("--preset", "t5", "--tokenizer", "char", "--start", 10, "--end", 10, *PAIR),
        "reverse",
        "314",
    ),
    "vit": ("vision", ("--preset", "tiny"), "digits", ""),
    "whisper": (
        "speech",
        ("--preset", "tiny", "--prompt", "3 1", "--whole", "--encoder.context", 100, *PAIR),
        "tones",
        "",
    ),
    "decision_transformer": ("control", ("--preset", "tiny"), "line", ""),
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A public checkpoint of each family (written by us: the other tests show that it is theirs), and its import."""
    recipe, flags, data, question = FAMILIES[request.param]
    home = tmp_path_factory.mktemp(request.param)
    (home / "text.txt").write_text(TEXT)
    data = home / "text.txt" if data == "TEXT" else data
    call("train", recipe, *flags, "--data", data, *FEW, "--out", home / "first").well()
    call("export", home / "first", "--to", "hf", home / "public").well()
    call("import", home / "public", "--out", home / "run").well()
    assert json.loads((home / "public" / "config.json").read_text())["model_type"] == request.param
    return {"recipe": recipe, "home": home, "data": data, "question": question, "run": home / "run"}


def tuned(case: dict[str, Any], name: str, *more: object) -> Said:
    asked = ("--init", case["run"], "--data", case["data"], *FEW, *STILL, *more)
    return call("train", case["recipe"], *asked, "--out", case["home"] / name)


def test_it_is_asked_as_a_run_of_ours(case: dict[str, Any]):
    inputs = [case["question"]] if case["question"] else []
    said = [
        call("predict", case[where] if where == "run" else case["home"] / where, *inputs, "--json", "--device", "cpu")
        for where in ("run", "public", "first")
    ]
    answers = [{name: value for name, value in one.well().json.items() if name not in ("run", "step")} for one in said]
    assert answers[0] == answers[1], "loaded where it lies it is the same as imported"
    if case["question"]:  # a show-piece without a question may come from the data of the run
        assert answers[0] == answers[2]


def test_it_is_measured_on_data_that_are_named(case: dict[str, Any]):
    refused(call("eval", case["run"]), "came without data", "--data")
    said = call("eval", case["run"], "--data", case["data"], "--json").well().json
    assert said["loss"] > 0
    public = call("eval", case["home"] / "public", "--data", case["data"], "--json").well().json
    assert public["loss"] == said["loss"]


def test_training_goes_on_from_its_weights(case: dict[str, Any]):
    tuned(case, "tuned").well()
    before, after = (
        api.load(case["run"], "cpu").module.state_dict(),
        api.load(case["home"] / "tuned", "cpu").module.state_dict(),
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


def test_adapters_leave_the_import_alone(case: dict[str, Any]):
    before = content(case["run"])
    tuned(case, "adapted", "--lora.rank", 2, "--train.lr", 1e-2).well()
    assert content(case["run"]) == before
    merged = api.load(case["home"] / "adapted", "cpu").module.state_dict()
    first = api.load(case["run"], "cpu").module.state_dict()
    assert merged.keys() == first.keys()
    assert any(not torch.equal(merged[name], tensor) for name, tensor in first.items())
    call(
        "predict", case["home"] / "adapted", *([case["question"]] if case["question"] else []), "--device", "cpu"
    ).well()


def test_a_causal_model_writes_on(case: dict[str, Any]):
    said = call("sample", case["run"], "--prompt", "the cat", "--tokens", 5, "--temperature", 0)
    if case["recipe"] == "language":
        assert said.well().out.startswith("the cat")
    else:
        refused(said, "writes no text")
