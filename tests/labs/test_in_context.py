"""Learning in context: the classical methods are exact, the model sees what comes before, tests are not trained."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyformer.labs.in_context import train_functions
from anyformer.labs.in_context.functions import (
    ALPHABET,
    CHANGES,
    HELD_OUT_PAIRS,
    SHAPES,
    SYMBOLS,
    Example,
    Function,
    Prompt,
    answer_by_copying,
    answer_by_counts,
    answer_by_neighbor,
    draw_function,
    draw_prompt,
    draw_training_function,
    encode_batch,
    encode_text,
    is_held_out,
    write_text,
)
from anyformer.labs.in_context.induction import draw_chains, find_half
from anyformer.labs.in_context.regression import (
    RegressionModel,
    Task,
    predict_descent,
    predict_neighbors,
    predict_ridge,
    probe_layers,
)
from anyformer.labs.in_context.train_functions import KINDS, MAX_PLACES, find_places, read_last_answers
from anyformer.labs.in_context.train_regression import weigh_pairs
from anyformer.labs.in_context.training import Curriculum
from anyformer.model.config import TransformerConfig
from cli_kit import assert_refused, call

CONFIG = TransformerConfig(dim=16, n_layer=2, n_head=2, context=20, position="none", norm="rmsnorm", bias=False)


def draw(d: int, pairs: int, noise: float = 0.0, batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """x, y as it is shown, and without noise."""
    task, generator = Task(d, pairs, noise), torch.Generator().manual_seed(0)
    x, w = task.draw(batch, generator)
    return x, *task.answer(x, w, generator)


def test_answers_have_a_variance_of_one():
    _, y, truth = draw(8, 24, noise=0.5, batch=4000)
    assert float(truth.var()) == pytest.approx(1, abs=0.05) and float((y - truth).std()) == pytest.approx(0.5, abs=0.02)


def test_least_squares_is_that_of_torch_and_exact_from_d_examples_on():
    x, y, _ = draw(3, 8)
    predictions = predict_ridge(x, y, 0.0)
    assert predictions[:, 3:] == pytest.approx(y[:, 3:], abs=1e-3)
    w = torch.linalg.lstsq(x[:, :5], y[:, :5, None]).solution
    assert predictions[:, 5] == pytest.approx((x[:, 5, None] @ w)[:, 0, 0], abs=1e-4)
    x, y, _ = draw(8, 8, batch=4000)
    errors = (predict_ridge(x, y, 0.0) - y).square().mean(0).tolist()
    assert errors == pytest.approx([(8 - k) / 8 for k in range(8)], abs=0.06), "of k examples it knows k directions"


def test_with_noise_the_bayes_penalty_errs_least():
    x, y, truth = draw(4, 12, noise=0.5, batch=8000)
    errors = {p: float((predict_ridge(x, y, p) - truth)[:, 4:].square().mean()) for p in (0.0, 0.25, 1.0, 4.0)}
    assert min(errors, key=lambda p: errors[p]) == 1.0, "variance 0.25 times 4 dimensions"


@pytest.mark.slow
def test_gradient_descent_goes_towards_least_squares():
    x, y, _ = draw(3, 9)
    rates = torch.logspace(-2, 0, 21)
    errors = [float((predict_descent(x, y, steps, rates) - y)[:, 8].square().mean()) for steps in (1, 4, 200)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    w = 0.1 * x[:, :8].mT @ y[:, :8, None] / 8  # one step from 0
    single = predict_descent(x, y, 1, torch.tensor([0.1]))[:, 8]
    assert single == pytest.approx((x[:, 8, None] @ w)[:, 0, 0], abs=1e-5)


def test_neighbours_of_a_repeated_input_answer_as_it_did():
    x, y, _ = draw(3, 7)
    x[:, 4:7] = x[:, 3:4]
    y[:, 4:7] = y[:, 3:4]
    assert predict_neighbors(x, y)[:, 6] == pytest.approx(y[:, 3], abs=1e-6)


def test_a_prediction_depends_on_the_pairs_before_it_alone():
    torch.manual_seed(0)
    model, (x, y, _) = RegressionModel(3, CONFIG).eval(), draw(3, 10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    before = model(x, y)
    changed = y.clone()
    changed[:, 5:] += 1
    after = model(x, changed)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6:], after[:, 6:])


def test_a_probe_finds_what_a_layer_holds():
    torch.manual_seed(0)
    model = RegressionModel(3, CONFIG).eval()
    task, generator = Task(3, 10), torch.Generator().manual_seed(1)
    with torch.no_grad():
        parts = []
        for _ in range(2):
            x, _ = task.draw(500, generator)
            parts.append((x, x @ torch.tensor([1.0, -2.0, 0.5])))  # the same w everywhere: x alone says y
        errors = probe_layers(model, parts[0], parts[1], pair=4)
    assert len(errors) == 3 and errors[0] < 1e-6


def test_pairs_that_can_be_predicted_weigh_more():
    weights = weigh_pairs(Task(4, 8), active=4)
    assert float(weights.mean()) == pytest.approx(1) and weights[0] < weights[3] < weights[4] == weights[7]


@pytest.mark.slow
def test_the_lab_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_functions, "COUNTED", 1)
    monkeypatch.setattr(train_functions, "NUMBERS", (0, 1, 8))
    flags = ["--dim", 2, "--pairs", 6, "--width", 16, "--layers", 2, "--steps", 3, "--tests", 50, "--noise", 0.3]
    flags += ["--function-steps", 2, "--function-tests", 10, "--head-steps", 2]
    result = call("lab", "in-context", *flags, "--json", "--out", tmp_path / "lab", "--device", "cpu").ok()
    facts = json.loads(result.out.splitlines()[-1])
    regression = facts["regression"]
    methods = {"Transformer", "least squares", "ridge (Bayes)", "1 gradient step", "16 gradient steps"}
    assert set(regression["curves"]) >= methods
    assert all(len(errors) == 6 for errors in regression["curves"].values()) and len(regression["layers"]) == 3
    assert set(facts["functions"]["accuracy"]) == {kind.name for kind in KINDS}
    assert [entry["step"] for entry in facts["heads"]["records"]] == [0, 1, 2]
    page = (tmp_path / "lab" / "report.html").read_text()
    for title in (
        "Error over the number of examples",
        "inputs twice as large",
        "Layer by layer",
        "Changes that were",
    ):
        assert title in page
    assert page.count("<svg") == 5 and "Induction heads appear" in page
    assert_refused(call("lab", "in-context", "--pairs", 1), "--pairs is 1")
    assert_refused(call("lab", "in-context", "--part", "function"), "--part is 'function'")
    assert_refused(call("lab", "incontext"), "there is no lab 'incontext': did you mean 'in-context'?")


# --- functions ---


def test_functions_do_what_they_are_called():
    rng = random.Random(0)
    assert [Function(shape, "none", tuple(ALPHABET))("dcab") for shape in SHAPES] == [
        "dcab", "bacd", "abcd", "ddccaabb", "cabd", "cab",
    ]  # fmt: skip
    cipher = draw_function(rng, "reverse", "cipher")
    assert sorted(cipher.images) == list(ALPHABET) and cipher("ab") == cipher("b") + cipher("a")
    without = draw_function(rng, "copy", "remove")
    assert without(ALPHABET) == ALPHABET.replace(ALPHABET[without.images.index("")], "")
    assert draw_function(rng, "copy", "shift", held_out=True)("a") in "dh"


def test_no_training_uses_what_is_held_out():
    rng = random.Random(0)
    functions = [draw_training_function(rng) for _ in range(3000)]
    assert not [f for f in functions if (f.shape, f.change) in HELD_OUT_PAIRS or is_held_out(f.change, f.images)]
    shifts = {ALPHABET.index(f.images[0]) for f in functions if f.change == "shift"}
    removed = {ALPHABET[f.images.index("")] for f in functions if f.change == "remove"}
    assert shifts == {1, 2, 4, 5, 6, 8, 9} and removed == set(ALPHABET) - set("ch")
    pairs = {(shape, change) for shape in SHAPES for change in CHANGES} - HELD_OUT_PAIRS
    assert {(f.shape, f.change) for f in functions} == pairs


def test_a_question_has_no_letter_that_its_examples_lack():
    rng = random.Random(1)
    for n_examples in (1, 2, 8):
        function = draw_function(rng, "copy", "cipher", held_out=True)
        examples, question = draw_prompt(rng, function, n_examples)
        assert set(question.word) <= set("".join(word for word, _ in examples)) and len(examples) == n_examples
        assert question.answer == function(question.word)


def test_answers_are_what_comes_after_the_separator():
    text = write_text([Example("ab", "ba"), Example("c", "")])
    ids, is_answer = encode_text(text)
    assert "".join(SYMBOLS[i] for i in ids) == text == "\nab>ba\nc>\n"
    assert "".join(c for c, mask in zip(text, is_answer) if mask) == "ba\n\n"


def test_an_answer_is_right_if_all_of_its_letters_are_the_likeliest():
    texts = [[Example("ab", "ba"), Example("cd", "dc")], [Example("a", "aa"), Example("b", "b")]]
    ids, is_answer = encode_batch([write_text(lines) for lines in texts])
    scores = torch.nn.functional.one_hot(ids[:, 1:], len(SYMBOLS)).float()
    assert [row.tolist() for row in read_last_answers(scores, ids, is_answer, texts)] == [[True] * 3, [True] * 2]
    scores[0, 3], scores[0, 10] = scores[0, 4].clone(), scores[0, 4].clone()  # of "ba", and the d of "dc"
    assert next(row.tolist() for row in read_last_answers(scores, ids, is_answer, texts)) == [True, False, True]


def test_methods_without_training_answer_what_they_can():
    seen = Prompt([Example("abcd", "dcba"), Example("efgh", "hgfe")], Example("abcd", "dcba"))
    new = Prompt(seen.examples, Example("bcda", "adcb"))
    assert answer_by_neighbor(seen) and not answer_by_neighbor(new)
    assert not answer_by_counts(new) and not answer_by_counts(Prompt([], new.question))
    same = [Example("abcd", "e")] * 3
    assert answer_by_counts(Prompt(same, same[0])) and not answer_by_copying(seen)


def test_a_curriculum_goes_on_when_its_level_is_learned():
    curriculum, levels = Curriculum(3, threshold=0.8, decay=0.5), []
    for score in [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]:
        curriculum.update(score)
        levels.append(curriculum.level)
    assert levels == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


# --- heads ---


def test_what_follows_a_symbol_of_a_chain_its_earlier_occurrences_say():
    ids = draw_chains(64, torch.Generator().manual_seed(0))
    followers: dict[tuple[int, int], list[int]] = {}
    for row, sequence in enumerate(ids.tolist()):
        for symbol, follower in pairwise(sequence):
            followers.setdefault((row, symbol), []).append(follower)
    commonest = [Counter(values).most_common(1)[0][1] / len(values) for values in followers.values() if len(values) > 3]
    assert 0.75 < sum(commonest) / len(commonest) < 0.95


def test_half_of_a_value_is_reached_where_it_bends():
    records = [{"step": 10 * i, "gain": value} for i, value in enumerate([0.0, 0.1, 0.6, 0.9, 1.0])]
    assert find_half(records, "gain") == 20


def test_places_are_counted_from_the_last_mark():
    ids, _ = encode_batch(["\nabc>ba\n"])
    assert find_places(ids)[0].tolist() == [0, 1, 2, 3, MAX_PLACES, MAX_PLACES + 1, MAX_PLACES + 2, 0]
