"""Rewards, and the best of several samples by one of them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer.errors import InputError
from anyformer.recipe_loading import load_recipe
from anyformer.rewards import FUNCTIONS, Sample, admit_reward, bound_divergence, load_reward
from anyformer.training.checkpoints import save_checkpoint
from anyformer.training.loop import init_state
from anyformer.training.run_directory import describe_run
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA, refuses

TRAIN: dict[str, Any] = {
    "steps": 3,
    "batch": 4,
    "eval_batches": 1,
    "eval_every": 3,
    "device": "cpu",
    "final_every": 1000,
}
REQUEST: dict[str, Any] = {"tokens": 8, "temperature": 1.0, "seed": 3}


def sample(completion: str, **row: Any) -> Sample:
    return Sample("Hi", completion, row, "p.jsonl, line 3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, and a classifier, both as they are before training."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "a.txt").write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    data: dict[str, dict[str, Any]] = {"language": {"data": str(folder / "a.txt"), "tokenizer": "byte"}}
    data["classify"] = {"data": str(SMALL_DATA["classify"])}
    for name, fields in data.items():
        recipe = load_recipe(name)
        config = dataclasses.replace(recipe.PRESETS["tiny"], **fields)
        state = init_state(recipe, config)
        state.stream_state = {"step": 0}
        save_checkpoint(folder, state, describe_run(name, "tiny", config, "")).rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> api.Model:
    return api.load(folder / "language", "cpu")


# --- rewards ---


def test_exact_and_regex():
    exact = load_reward("exact")
    samples = [sample(" 19\n", answer="19"), sample("19.", answer="19"), sample("b", answer=["a", "b"])]
    assert exact([*samples, sample("7", answer=7)]) == [1, 0, 1, 1]
    assert load_reward("regex:^[0-9]+$")([sample("12"), sample("12a")]) == [1, 0]
    for row in ({}, {"answer": ""}, {"answer": []}, {"answer": None}, {"answer": {"a": 1}}):
        with refuses('p.jsonl, line 3: there is no "answer"'):
            exact([sample("a", **row)])


def test_a_function_returns_a_finite_number(tmp_path: Path):
    numbers = [3, 0.5, True, np.float32(2), torch.tensor(1.5)]
    values = iter([*numbers, math.inf, "3", None, torch.ones(2)])
    score = load_reward(admit_reward(lambda prompt, completion, row: next(values)))
    assert [score([sample("a")])[0] for _ in numbers] == [3, 0.5, 1, 2, 1.5]
    for text in ("inf", "'3'", "None", "tensor"):
        with refuses("p.jsonl, line 3: the reward", "returns", text, "'a'; expected a finite number"):
            score([sample("a")])
    (tmp_path / "my.py").write_text("def score(prompt, completion, row):\n    return row['missing']\n")
    name = admit_reward(f"{tmp_path}/my.py:score")
    with refuses("line 3: the reward", "my.py:score fails for the answer 'a': KeyError: 'missing'"):
        load_reward(name)([sample("a")])
    with refuses("my.py has no function 'other(prompt, completion, row)'"):
        admit_reward(f"{tmp_path}/my.py:other")
    (tmp_path / "bad.py").write_text("import nothing_of_the_kind\n")
    with refuses("cannot import the reward", "ModuleNotFoundError"):
        admit_reward(f"{tmp_path}/bad.py:score")
    names = [admit_reward(lambda prompt, completion, row, value=value: value) for value in (1, 2)]
    assert [load_reward(name)([sample("a")]) for name in names] == [[1], [2]], "two lambdas are two rewards"
    with refuses("reward is 3; expected a function, or a text"):
        admit_reward(3)


def test_code_runs_only_if_it_was_named_here(tmp_path: Path):
    (tmp_path / "my.py").write_text("raise RuntimeError('this code was run')")
    for name in (f"{tmp_path}/my.py:score", "function:mine.score"):
        with refuses("is code, which a run only names: name it again"):
            load_reward(name)


def test_a_classifier_gives_the_probability_of_a_label(folder: Path):
    judge = api.load(folder / "classify", "cpu")
    expected = judge.predict(["what a day", "so bad"])["results"]
    label = expected[0]["label"]
    name = admit_reward(f"classifier:{folder}/classify:{label}")
    values = load_reward(name)([sample("what a day"), sample("so bad"), sample("")])
    assert values[:2] == pytest.approx([r["probabilities"][label] for r in expected], abs=1e-6) and 0 < values[2] < 1
    with refuses("classify:none: "):
        admit_reward(f"classifier:{folder}/classify:none")
    with refuses("is a run of 'language', which has no labels"):
        admit_reward(f"classifier:{folder}/language:a")


# --- the best of several samples ---


def test_the_best_is_among_the_samples(model: api.Model):
    """Sample j of n is the best of those n times j and after, whatever else is in the batch."""

    def count(prompt: str, completion: str, row: Any) -> float:
        return completion.count("t") + completion.count("e") / 10

    every = model.generate("the ", samples=12, **REQUEST)["samples"]
    best = model.generate("the ", samples=3, best_of=4, reward=count, **REQUEST)
    for i, chosen in enumerate(best["samples"]):
        group = every[4 * i : 4 * i + 4]
        values = [count("", s["text"], {}) for s in group]
        assert chosen["reward"] == max(values) and chosen["tokens"] == group[values.index(max(values))]["tokens"]
    assert best["best_of"] == 4 and best["kl_at_most"] == pytest.approx(math.log(4) - 3 / 4)
    again = model.generate(["a dog ", "the "], samples=3, best_of=4, reward=count, **REQUEST)["samples"]
    assert [s["text"] for s in again[3:]] == [s["text"] for s in best["samples"]]
    assert model.generate("the ", best_of=1, **REQUEST)["samples"][0]["text"] == every[0]["text"]


def test_without_a_reward_the_likeliest_is_best(model: api.Model):
    every = model.generate("the ", samples=6, logprobs=0, **REQUEST)["samples"]
    means = [sum(row["logprob"] for row in s["logprobs"]) / len(s["logprobs"]) for s in every]
    chosen = model.generate("the ", best_of=6, **REQUEST)["samples"][0]
    assert chosen["reward"] == pytest.approx(max(means)) and "logprobs" not in chosen
    assert chosen["tokens"] == every[means.index(max(means))]["tokens"]


def test_the_bound_is_that_of_the_distribution_of_the_best():
    """Of many different samples, the best of n diverges by exactly this much."""
    n, n_texts = 8, 20_000
    ranks = torch.arange(n_texts + 1, dtype=torch.float64) / n_texts
    probabilities = (ranks**n).diff()
    divergence = (probabilities * (probabilities * n_texts).log().nan_to_num(0)).sum().item()
    assert divergence == pytest.approx(bound_divergence(n), abs=1e-3) and divergence <= bound_divergence(n)


def test_the_command_keeps_the_best(folder: Path, tmp_path: Path):
    (tmp_path / "my.py").write_text("def score(prompt, completion, row):\n    return completion.count('t')\n")
    command = ("sample", folder / "language", "--prompt", "the ", "--tokens", 8, "--best-of", 4, "--device", "cpu")
    shown = call(*command, "--reward", f"{tmp_path}/my.py:score").ok()
    assert shown.out.startswith("the ") and "the best of 4; at most 0.64 nats from the model's own" in shown.err
    answer = json.loads(call(*command, "--json").ok().out)
    assert answer["best_of"] == 4 and answer["samples"][0]["reward"] < 0
    FUNCTIONS.clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--reward", "regex:a"), "--reward says which of several samples is the best: give their number"),
        (("--best-of", 0), "best_of is 0 and samples 1; their product can be 1 to 10,000"),
        (("--best-of", 4, "--temperature", 0), "at temperature 0 all samples are the same"),
        (("--best-of", 4, "--reward", "exact", "--tokens", 2), 'sample 1: there is no "answer"'),
        (("--best-of", 4, "--reward", "regex:["), "is no regular expression"),
    ],
)
def test_the_command_says_what_is_wrong(folder: Path, flags: tuple[Any, ...], message: str):
    assert_refused(call("sample", folder / "language", "--device", "cpu", *flags), message)


def test_a_request_names_no_reward(model: api.Model):
    """What a server passes on is a request of `predict`, which knows neither."""
    for name in ("best_of", "reward"):
        with pytest.raises(InputError, match=f"unknown field.*{name}"):
            model.predict({"prompt": "the ", name: "my.py:score"})
