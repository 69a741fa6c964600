"""Questions with examples: what the model is asked, how it is scored, and what a wrong file says."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.evaluation.few_shot import FewShotOptions, ask_questions, normalize, summarize
from anyformer.evaluation.questions import Prompts, Question, Template, read_questions
from anyformer.inference import likelihood
from anyformer.inference.likelihood import Pair, encode_pair, score_pairs
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language
from anyformer.trained_model import Model
from cli_kit import assert_refused, call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of sums of one digit, hardly trained."""
    folder = tmp_path_factory.mktemp("sums")
    lines = [f"{a}+{b}={a + b}\n" for a in range(4) for b in range(4)]
    order = torch.randint(len(lines), (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "sums.txt").write_text("".join(lines[i] for i in order))
    settings: dict[str, Any] = {"model": {"position": "rotary", "context": 48}, "train": {"lr": 2e-2, "seed": 1}}
    data = str(folder / "sums.txt")
    return api.train("language", "tiny", data=data, out=folder / "run", steps=20, progress=False, **settings)


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    rows = [
        {"question": f"{a}+{b}", "choices": [str(a + b), str((a + b + 1) % 7), str((a + b + 3) % 7)], "answer": 0}
        for a in range(4)
        for b in range(4)
    ]
    return write_lines(tmp_path / "choices.jsonl", rows)


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TEMPLATE = "{question}={answer}\n"


# --- likelihoods ---


def test_a_continuation_is_scored_as_by_a_loop_over_its_tokens(model: Model):
    decoder = model.recipe.decoder(model.module)
    pairs = [
        encode_pair("1+2=", "3\n", model.module.tokenizer),
        encode_pair("3+3=6\n2+1", "=3", model.module.tokenizer),
    ]
    with torch.inference_mode():
        for pair, score in zip(pairs, score_pairs(decoder, pairs), strict=True):
            total, ids, is_greedy = 0.0, list(pair.context), True
            for token in pair.continuation:
                logits = decoder.head(decoder.hidden(torch.tensor([ids])))[0, -1]
                total += float(logits.log_softmax(-1)[token])
                is_greedy &= int(logits.argmax()) == token
                ids.append(token)
            assert score.logprob == pytest.approx(total, abs=1e-4)
            assert score.is_greedy == is_greedy


def test_batches_do_not_change_scores(model: Model, monkeypatch: pytest.MonkeyPatch):
    decoder, generator = model.recipe.decoder(model.module), torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 30, (20, 2), generator=generator).tolist()
    pairs = [Pair(*(torch.randint(10, (n,), generator=generator).tolist() for n in size)) for size in sizes]
    together = score_pairs(decoder, pairs)
    monkeypatch.setattr(likelihood, "MAX_BATCH_TOKENS", 1)
    for a, b in zip(together, score_pairs(decoder, pairs), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and a.is_greedy == b.is_greedy


@pytest.mark.parametrize("window", [None, 12])
def test_a_context_that_several_continuations_share_is_read_once(window: int | None, monkeypatch: pytest.MonkeyPatch):
    """But not by layers that keep a window: they cannot go back to it."""
    shape = TransformerConfig(dim=16, n_layer=2, n_head=2, context=48, position="rotary")
    torch.manual_seed(0)
    decoder = language.LanguageModel(language.Config(model=shape, window=window), Characters("abcdefghij")).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    generator, sizes, read = torch.Generator().manual_seed(5), [(30, 3), (25, 3), (4, 2), (25, 1), (60, 2)], 0
    ids = torch.randint(10, (2, 200), generator=generator).tolist()
    pairs = [Pair(ids[0][:n], ids[1][i : i + 1 + 3 * i]) for n, choices in sizes for i in range(choices)]
    hidden = decoder.hidden

    def count(ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        nonlocal read
        read += ids.numel()
        return hidden(ids, *arguments)

    monkeypatch.setattr(decoder, "hidden", count)
    together, n_read = score_pairs(decoder, pairs), read
    alone = [score_pairs(decoder, [pair])[0] for pair in pairs]
    for a, b in zip(together, alone, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and a.is_greedy == b.is_greedy
    monkeypatch.setattr(likelihood, "MIN_SHARED", 1000)
    read = 0
    score_pairs(decoder, pairs)
    assert (n_read < 0.7 * read) == (window is None), "fewer tokens, padding included"


def test_the_newest_tokens_of_a_long_context_are_read(model: Model):
    decoder = model.recipe.decoder(model.module)
    ids = torch.randint(10, (100,), generator=torch.Generator().manual_seed(4)).tolist()
    long, short = score_pairs(decoder, [Pair(ids, [1, 2]), Pair(ids[-47:], [1, 2])])
    assert long == short
    with pytest.raises(InputError, match="49 tokens, and the context of the model is 48"):
        score_pairs(decoder, [Pair([1], [1] * 49)])


def test_spaces_before_a_continuation_belong_to_it():
    class Words:
        end_id = None

        def encode(self, text: str) -> Any:
            return torch.tensor([len(word) for word in text.replace(" ", "| ").split("|")])

        encode_prompt = encode

    assert encode_pair("a bc ", "defg", Words()) == ([1, 3], [5])  # type: ignore[arg-type]


# --- prompts ---


def test_more_examples_keep_the_first():
    questions = [Question(f"q{i}", [f"a{i}"], []) for i in range(6)]
    prompts = Prompts(questions, Template(TEMPLATE), None, seed=1)
    texts = [prompts.write(2, shots) for shots in range(6)]
    assert texts[0] == "q2="
    assert all(
        longer.endswith(shorter) and longer.count("\n") == i + 1 for i, (shorter, longer) in enumerate(pairwise(texts))
    )
    assert all("q2=a2" not in text for text in texts), "a question is no example of itself"
    assert Prompts(questions, Template(TEMPLATE), None, seed=2).write(2, 5) != texts[5]


def test_examples_come_from_the_pool():
    questions = [Question("q", ["a"], [])]
    prompts = Prompts(questions, Template("Q {question} A {answer};"), [Question("p", ["b", "c"], [])], seed=0)
    assert prompts.write(0, 1) == "Q p A b;Q q A "
    with pytest.raises(InputError, match="2 examples are asked for, and there are 1"):
        prompts.check_shots(2)


@pytest.mark.parametrize("text", ["", "{question}", "{answer} {question}", "{question}{answer}{answer}"])
def test_a_template_names_question_and_answer(text: str):
    with pytest.raises(InputError, match="it must hold"):
        Template(text)


# --- answers ---


def test_the_likeliest_choice_is_taken(model: Model, choices: Path):
    result = ask_questions(model, choices, True, FewShotOptions(shots=(2,), template=TEMPLATE))
    (point,) = result["curve"]
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    for row, item in zip(rows, result["items"], strict=True):
        best = max(range(3), key=item["logprobs"].__getitem__)
        assert item["answer"] == row["choices"][best] and item["right"] == (best == 0)
    assert point["accuracy"] == sum(item["right"] for item in result["items"]) / 16
    assert point["low"] <= point["accuracy"] <= point["high"] and result["chance"] == pytest.approx(1 / 3)


def test_an_answer_is_written_up_to_the_end_of_its_line(model: Model, tmp_path: Path):
    own = model.generate("1+2=", tokens=64, temperature=0, stop=["\n"])["samples"][0]["text"].strip()
    rows = [{"question": "1+2", "answer": ["x", own]}, {"question": "1+2", "answer": own + "!"}]
    rows.append({"question": "1+2", "answer": "other"})
    questions = write_lines(tmp_path / "q.jsonl", rows)
    result = ask_questions(model, questions, False, FewShotOptions(template=TEMPLATE))
    assert [item["answer"] for item in result["items"]] == [own] * 3
    assert [item["right"] for item in result["items"]] == [True, False, False]
    assert [item["normalized_right"] for item in result["items"]] == [True, True, False]


def test_the_same_command_gives_the_same_answers(model: Model, choices: Path):
    options = FewShotOptions(shots=(1,), template=TEMPLATE, limit=5, seed=3)
    assert ask_questions(model, choices, True, options) == ask_questions(model, choices, True, options)


def test_normalized_answers_ignore_case_articles_and_marks():
    assert normalize("The  Answer, is A fish!") == normalize("answer is fish")


def test_the_interval_is_that_of_the_bootstrap():
    from anyformer.evaluation.few_shot import Answer

    answers = [Answer("", i < 30, False, {}) for i in range(40)]
    values = summarize(answers, seed=0)
    assert (values["accuracy"], values["normalized_accuracy"]) == (0.75, 0.0)
    spread = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert values["low"] == pytest.approx(0.75 - spread, abs=0.03)
    assert values["high"] == pytest.approx(0.75 + spread, abs=0.03)


# --- the command ---


def test_the_command_prints_a_row_for_each_number_of_examples(model: Model, choices: Path, tmp_path: Path):
    words = ["eval", model.run_path, "--choices", choices, "--template", "{question}={answer}\\n"]
    out = ["--out", tmp_path / "out"]
    assert_refused(call(*words, "--shots", 0, 2, 20, *out), "20 examples are asked for, and there are 15")
    shown = call(*words, "--shots", 0, 2, 10, *out)
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["examples", "0", "2", "10"]
    assert "10 examples: 16 prompts exceed the context" in shown.err
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 48 and set(items[0]) >= {"shots", "question", "answer", "right", "logprobs"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "examples before the question" in page
    assert_refused(call(*words, *out), "not empty")
    assert json.loads(call(*words, "--shots", 1, "--json").out)["curve"][0]["shots"] == 1


def test_two_evaluations_at_once_are_refused(model: Model, choices: Path):
    assert_refused(call("eval", model.run_path, "--choices", choices, "--questions", choices), "two evaluations")


BAD = {
    "answer": (
        {"question": "a", "choices": ["x", "y"]},
        'line 1 has no "answer": expected one of its choices, or 0 to 1',
    ),
    "index": ({"question": "a", "choices": ["x", "y"], "answer": 2}, 'no "answer"'),
    "true": ({"question": "a", "choices": ["x", "y"], "answer": True}, 'no "answer"'),
    "choices": ({"question": "a", "answer": "x"}, 'has no "choices"'),
    "one": ({"question": "a", "choices": ["x"], "answer": 0}, "2 to 1,000 different texts, not 1"),
    "twice": ({"question": "a", "choices": ["x", "x"], "answer": 0}, "different texts"),
    "question": ({"choices": ["x", "y"], "answer": 0}, 'has no "question"'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_line_is_named(name: str, tmp_path: Path):
    row, message = BAD[name]
    with pytest.raises(InputError, match="line 1") as error:
        read_questions(write_lines(tmp_path / "x.jsonl", [row]), has_choices=True)
    assert message in str(error.value)


@pytest.mark.parametrize("answer", [None, "", [], [1], 5])
def test_written_answers_need_a_text(answer: Any, tmp_path: Path):
    rows = [{"question": "a", "answer": ["b", "c"]}, {"question": "a", "answer": answer}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(InputError, match='line 2 has no "answer": expected a text'):
        read_questions(path, has_choices=False)


def test_a_file_without_questions_is_refused(tmp_path: Path):
    path = write_lines(tmp_path / "y.jsonl", [])
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(path, has_choices=False)
