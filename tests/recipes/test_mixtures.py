"""Training on several sources with weights: every recipe of a token stream, exactly resumable, validated by source."""

import dataclasses
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer import api, recipe_loading
from anyformer import recipe as recipes
from anyformer.cli.sweep import SweepCommand
from anyformer.cli.train import TrainCommand
from anyformer.data.text.mixtures import find_place
from anyformer.recipes import language, masked
from anyformer.recipes._shared import scaling
from anyformer.recipes._shared.trivial_baselines import score_token_frequencies
from anyformer.training.evaluation import evaluate
from cli_kit import assert_refused, call

QUICK = {
    "test_a_mixture_is_trained_and_validated_by_source": {"language", "spans"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

MIXING = [
    name
    for name in recipe_loading.list_recipes()
    if isinstance(recipe_loading.load_recipe(name), recipes.SupportsMixtures)
]
FLAGS = ("--preset", "tiny", "--device", "cpu", "--dtype", "float32", "--train.batch", 4, "--train.eval-every", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    words = ["sat", "ran", "ate"]
    lines = [json.dumps({"text": f"the cat {words[i % 3]} on the mat number {i}."}) + "\n" for i in range(120)]
    Path("a.jsonl").write_text("".join(lines))
    Path("b.txt").write_text("def f(x):\n    return x + 1\n\n" * 120)
    return tmp_path


def mix(name: str, data: str = "a.jsonl:3 b.txt:1", **train: Any) -> tuple[Any, Any]:
    """Return a recipe, and its tiny preset with a mixture."""
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    train = {"batch": 4, "eval_batches": 4, "device": "cpu", "dtype": "float32"} | train
    return recipe, dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, **train))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_recipes_of_a_token_stream_mix():
    assert MIXING == ["language", "masked", "mlp", "spans"]


# --- from the command to the result ---


@pytest.mark.parametrize("name", MIXING)
def test_a_mixture_is_trained_and_validated_by_source(name: str, folder: Path):
    flags = ("--data", "a.jsonl:3", "--data", "b.txt", *FLAGS, "--steps", 4, "--out", "run")
    result = call("train", name, *flags).ok()
    facts = json.loads(Path("run/result.json").read_text())
    assert facts["val_loss"] == pytest.approx(0.75 * facts["val_a_loss"] + 0.25 * facts["val_b_loss"], rel=1e-6)
    assert "a loss" in result.err and "Sources: a " in result.err
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"val_loss", "val_a_loss", "val_b_loss"} <= records[1].keys() and "val_a_loss" not in records[0]
    report = Path("run/report.html").read_text()
    assert "validation a loss" in report and "Sources: a " in report
    evaluated = call("eval", "run", "--json").ok().json
    assert {key: evaluated[key] for key in ("loss", "a_loss", "b_loss")} == {
        key: facts[f"val_{key}"] for key in ("loss", "a_loss", "b_loss")
    }
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["data"] == f"{folder}/a.jsonl:3 {folder}/b.txt:1"
    shares = {source: round(values["share"] * 16) for source, values in facts["sources"].items()}
    places = [find_place([3, 1], row, seed=config["train"]["seed"])[0] for row in range(16)]
    assert list(shares.values()) == [16 - sum(places), sum(places)]


@pytest.mark.parametrize("name", MIXING)
def test_the_loss_of_a_source_is_that_of_the_source_alone(name: str):
    recipe, config = mix(name)
    torch.manual_seed(0)
    model = recipe.build(config)
    Path("tokenizer.json").write_text(model.files["tokenizer.json"])
    metrics = evaluate(recipe, model, (batch for batch, _ in recipe.batches(config, "val")))
    for source, path in (("a", "a.jsonl"), ("b", "b.txt")):
        alone = dataclasses.replace(config, data=path, tokenizer="tokenizer.json")
        losses = evaluate(recipe, model, (batch for batch, _ in recipe.batches(alone, "val")))
        tolerance = {"rel": 0.05} if name in ("masked", "spans") else {"rel": 1e-5}  # other tokens are hidden
        assert metrics[f"{source}_loss"] == pytest.approx(losses["loss"], **tolerance)


# --- exactness ---


@pytest.mark.parametrize("name", MIXING)
def test_any_process_computes_any_batch(name: str):
    """Rank r of N takes batches r, r + N, ..., each from a position that it has not come to by itself."""
    recipe, config = mix(name)
    stream = list(islice(recipe.batches(config, "train"), 9))
    assert stream[0][1]["sources"] and json.loads(json.dumps(stream[0][1])) == stream[0][1]
    for n_ranks in (2, 3, 4):
        for rank in range(n_ranks):
            dealt = recipe.batches(config, "train", stream[0][1] | {"step": rank, "stride": n_ranks})
            own = list(islice(dealt, len(range(rank, 9, n_ranks))))
            for (batch, state), step in zip(own, range(rank, 9, n_ranks), strict=True):
                assert equal(batch, stream[step][0])
                resumed = next(recipe.batches(config, "train", state))[0]
                assert step + n_ranks >= 9 or equal(resumed, stream[step + n_ranks][0])


@pytest.mark.slow
def test_a_run_killed_at_random_steps_reads_what_an_uninterrupted_one_reads(monkeypatch: pytest.MonkeyPatch):
    ids: dict[int, bytes] = {}

    def record_ids(config: Any, split: str, state: Any = None) -> Any:
        for batch, after in batches(config, split, state):
            if split == "train":
                assert ids.setdefault(after["step"], batch["ids"].numpy().tobytes()) == batch["ids"].numpy().tobytes()
            yield batch, after

    batches = language.batches
    monkeypatch.setattr(language, "batches", record_ids)
    data, options = ["a.jsonl:3", "b.txt"], {"progress": False, "device": "cpu", "steps": 12}
    options["train"] = {"save_every": 1, "eval_every": 6, "batch": 4}
    anyformer.train("language", "tiny", data=data, out="whole", **options)
    assert sorted(ids) == list(range(1, 13))
    rng = random.Random(0)

    class KilledError(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if rng.random() < 0.3:
            raise KilledError

    for _ in range(100):
        try:
            anyformer.train("language", "tiny", data=data, out="parts", resume=True, on_record=kill, **options)
            break
        except KilledError:
            pass
    files = [Path(run, "metrics.jsonl").read_text() for run in ("whole", "parts")]
    assert files[0] == files[1]
    weights = [
        next(Path(run, "checkpoints").glob("step-12/model.safetensors")).read_bytes() for run in ("whole", "parts")
    ]
    assert weights[0] == weights[1]


def test_data_or_weights_that_changed_are_noticed():
    recipe, config = mix("language")
    state = next(recipe.batches(config, "train"))[1]
    for change in ("a.jsonl:2 b.txt:1", "b.txt:1 a.jsonl:3", "a.jsonl"):
        with pytest.raises(anyformer.InputError, match="has changed since this run began"):
            next(recipe.batches(dataclasses.replace(config, data=change), "train", state))
    Path("b.txt").write_text("def g(x):\n    return x + 2\n\n" * 120)
    with pytest.raises(anyformer.InputError, match="has changed since this run began"):
        next(recipe.batches(config, "train", state))


def test_own_sources_are_evaluated_on_what_was_held_out():
    model = anyformer.train(
        "language", "tiny", data="a.jsonl:3 b.txt", steps=2, out="run", progress=False, device="cpu"
    )
    n_tokens = {data: model.evaluate(data)["tokens"] for data in ("b.txt", "b.txt a.jsonl")}
    assert n_tokens == {"b.txt": 335, "b.txt a.jsonl": model.evaluate()["tokens"]}
    Path("c.txt").write_text("the cat sat on x + 1\n" * 30)
    assert model.evaluate("c.txt")["tokens"] == 21 * 30 - 1, "all of what is new"


# --- what else reads the text ---


def test_baselines_and_sizes_of_equal_sources_are_those_of_one():
    Path("c.txt").write_text(Path("b.txt").read_text())
    _, single = mix("language", "b.txt")
    _, double = mix("language", "b.txt:3 c.txt:1")
    texts = [language.load_mixture(config) for config in (single, double)]
    scores = [score_token_frequencies(text)["loss"]["letter frequencies"] for text in texts]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    sizes = [scaling.measure_text(config) for config in (single, double)]
    assert sizes[0].difficulty == pytest.approx(sizes[1].difficulty, abs=0.05)
    assert sizes[1].unique_tokens == round(sizes[0].unique_tokens / (9 / 16 + 1 / 16))


def test_examples_are_of_all_sources():
    truths = masked.examples(mix("masked")[1]).truths
    assert len(truths) == 3 and {"cat" in truth for truth in truths} == {True, False}


def test_a_source_that_is_repeated_too_often_is_said():
    Path("c.txt").write_text("x = 1\n" * 30)
    job = api.resolve_job("language", "tiny", {"data": "b.txt:1 c.txt:3", "train": {"steps": 100, "batch": 32}})
    lines = api.describe_repeats(job)
    assert len(lines) == 1 and lines[0].startswith("source 'c' has 162 tokens to train on, seen about 475 times")
    assert api.describe_repeats(api.resolve_job("language", "tiny", {"data": "c.txt"})) == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("language", "a.jsonl:0 b.txt", "data 'a.jsonl' has the weight 0; it must be a number from 0.000001"),
        ("language", "a.jsonl:-2 b.txt", "has the weight -2"),
        ("language", "a.jsonl:nan b.txt", "has the weight nan"),
        ("language", "a.jsonl ./a.jsonl:2", "'./a.jsonl' is named twice: give it once, with the weight 3"),
        ("language", "a.jsonl c.txt:2", "data 'c.txt': no such file"),
        ("language", "a.jsonl empty.txt", "empty.txt: empty, there is no text to read"),
        ("language", "a.jsonl:2 tiny.txt", "source 'tiny': the train split has 1 tokens"),
        ("classify", "a.jsonl b.txt", "several sources, which language, masked, mlp, spans mix, not 'classify'"),
        ("recall", "a.jsonl b.txt:2", "several sources, which language, masked, mlp, spans mix, not 'recall'"),
        ("masked", "p.fasta b.txt", "p.fasta' are sequences: they mix with sequences only"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(name: str, data: str, message: str):
    Path("empty.txt").write_text("")
    Path("tiny.txt").write_text("hi")
    Path("p.fasta").write_text(">p\nMKV\n")
    sources = [word for source in data.split() for word in ("--data", source)]
    for flags in (sources, ("--data", data)):
        assert_refused(call("train", name, *flags, "--preset", "tiny", "--device", "cpu", "--out", "run"), message)
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", [TrainCommand, SweepCommand])
def test_every_command_joins_the_sources(kind: Any):
    for words, data in [(["a.jsonl"], "a.jsonl"), (["a.jsonl", "b.txt:2"], "a.jsonl:1 b.txt:2")]:
        flags = [flag for word in words for flag in ("--data", word)]
        assert kind(language, flags, "anyformer").read()[1] == {"data": data}


def test_runs_are_named_after_their_sources():
    call("train", "language", "--data", "a.jsonl", "--data", "b.txt", *FLAGS, "--steps", 1).ok()
    assert [path.name for path in Path("runs").iterdir()] == ["language-a-b-1"]
    assert "a.jsonl:1 b.txt:1" in call("runs").ok().out


def test_sequences_mix_with_sequences():
    rng = np.random.default_rng(0)
    for name in ("p", "q"):
        rows = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)) for _ in range(40)]
        Path(f"{name}.fasta").write_text("".join(f">{i}\n{row}\n" for i, row in enumerate(rows)))
    flags = ("--data", "p.fasta:2 q.fasta", "--tokenizer", "residues", *FLAGS, "--steps", 2, "--out", "run")
    call("train", "masked", *flags).ok()
    assert {"val_p_loss", "val_q_loss"} <= json.loads(Path("run/result.json").read_text()).keys()


def test_shards_are_a_source_and_give_the_tokenizer():
    call("shard", "a.jsonl", "--to", "shards", "--tokenizer", "char", "--shard-tokens", 1024).ok()
    Path("b.txt").write_text("the cat sat on the mat. " * 120)
    flags = ("--data", "shards:3", "--data", "b.txt", *FLAGS, "--steps", 4)
    call("train", "language", *flags, "--out", "run").ok()
    assert {"val_shards_loss", "val_b_loss"} <= json.loads(Path("run/result.json").read_text()).keys()
    recipe, config = mix("language", "shards:3 b.txt:1")
    stream = list(islice(recipe.batches(config, "train"), 6))
    assert equal(next(recipe.batches(config, "train", stream[3][1]))[0], stream[4][0])
    text = language.load_mixture(config)
    assert text.tokenizer.to_json() == Path("shards/tokenizer.json").read_text()
    Path("b.txt").write_text("defy" * 99)
    refused = call("train", "language", "--data", "shards b.txt", *FLAGS, "--out", "other")
    assert_refused(refused, "b.txt", "has no 'd', 'f', 'y'")
