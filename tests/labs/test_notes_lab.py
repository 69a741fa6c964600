"""anyformer lab notes: the simulator, what is hidden where, sums and their working, and the report."""

import random
from pathlib import Path

import pytest

from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.inference.notes import keep_newest
from anyformer.labs import facts, notes, sums
from anyformer.labs.facts import PLACES, World
from cli_kit import call

TOKENIZER = Characters(sorted(set("".join(map(chr, range(32, 127))) + "\n")))
HAYSTACK = [f"This is sentence {i} of a novel." for i in range(50)]


def replay(sentences: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The rooms of people and the rooms that things have been in, from the sentences alone."""
    rooms: dict[str, str] = {}
    holders: dict[str, str] = {}
    paths: dict[str, list[str]] = {}
    for sentence in sentences:
        words = sentence.strip(".").split()
        person, last = words[0], words[-1]
        if last in PLACES:
            rooms[person] = last
            for thing, holder in holders.items():
                if holder == person:
                    paths[thing].append(last)
        elif " ".join(words[1:-2]) in facts.DROPS:
            del holders[last]
        else:
            holders[last] = person
            paths.setdefault(last, [rooms[person]])
    return rooms, paths


@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_from_the_sentences(seed: int):
    world = World(random.Random(seed))
    rooms, paths = replay([world.step().sentence for _ in range(60)])
    questions = {question.text: question for question in world.list_questions()}
    assert {q.n_facts for q in questions.values()} == {1, 2, 3}
    for person, room in rooms.items():
        assert questions[f"Where is {person}?"].answer == room
    for thing, path in paths.items():
        assert questions[f"Where is the {thing}?"].answer == path[-1]
        if len(path) > 1:
            assert questions[f"Where was the {thing} before the {path[-1]}?"].answer == path[-2]


def test_the_last_notes_hold_all_answers():
    world = World(random.Random(7))
    values: dict[str, str] = {}
    for _ in range(50):
        for note in world.step().notes:
            assert note in facts.list_notes()
            key, _, value = note.partition("=")
            values[key] = value
    for question in world.list_questions():
        assert question.answer == values[question.keyword + " was" * (question.n_facts == 3)]


def test_facts_are_hidden_at_random_places():
    text = facts.hide_facts(random.Random(1), HAYSTACK, TOKENIZER, 20_000, 12)
    assert abs(len(text.ids) - 20_000) < 100 and TOKENIZER.decode(text.ids) == "".join(f"{x}\n" for x in text.lines)
    places = [i for i, line in enumerate(text.lines) if line not in HAYSTACK]
    assert len(places) == 12 and max(places) - min(places) > len(text.lines) // 2
    again = facts.hide_facts(random.Random(1), HAYSTACK, TOKENIZER, 20_000, 12)
    assert again == text


def test_windows_to_train_on_are_those_of_reading():
    lines = [f"line {i}\n" for i in range(20)]
    windows = list(facts.cut_windows(iter(lines), TOKENIZER, keep_newest, 30, 1000))
    assert windows[0] == "".join(lines)[:30] and windows[-1].endswith("line 19\n")
    assert all(windows[i + 1].startswith(windows[i][-14:]) for i in range(len(windows) - 1)), "one more token, and half"


def test_few_windows_in_which_nothing_is_told_are_trained_on():
    rng = random.Random(0)
    fact, silent = "A novel.\nMary went to the office.\n", "A novel.\nMary went to the opera house.\n"
    chosen = facts.choose_windows(rng, [fact, silent] * 1000)
    assert 550 < chosen.count(fact) < 650 and 30 < chosen.count(silent) < 90
    assert facts.choose_windows(random.Random(1), ["So it was.\nWhere is Mary? office\n"] * 20)


def test_the_texts_of_a_stage_hold_what_it_says():
    rng = random.Random(0)
    for stage in facts.STAGES.values():
        lines = [x for _ in range(60) for x in facts.write_stories(rng, HAYSTACK, True, stage)]
        assert any(map(facts.FACT_OR_QUESTION.match, lines)) and any(line.startswith("Where ") for line in lines)
        assert any(line.startswith("Now ") for line in lines) == (stage.recite > 0)
        assert any(line.strip() in HAYSTACK for line in lines) == (stage.gap > 0 or min(stage.densities) < 1)


def test_lines_with_the_word_of_a_question():
    lines = ["Mary went home.", "The milk is here.", "Maryland is far.", "I saw Mary."]
    ids = facts.list_keyword_lines(lines, "Mary", TOKENIZER, 100)
    assert TOKENIZER.decode(ids) == "Mary went home.\nI saw Mary.\n"
    assert TOKENIZER.decode(facts.list_keyword_lines(lines, "Mary", TOKENIZER, 15)) == "I saw Mary.\n"


def test_the_sentences_of_a_single_file_are_split(tmp_path: Path):
    (tmp_path / "a.txt").write_text(" ".join(f"This is [sentence] number {i:02}." for i in range(16)))
    train, test = facts.read_haystack(str(tmp_path / "a.txt"))
    assert len(train) == 14 and test == ["This is sentence number 14.", "This is sentence number 15."]
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(InputError, match="it needs sentences, to train on and to test on"):
        facts.read_haystack(str(tmp_path / "a.txt"))


def test_the_working_of_a_sum_leads_to_it():
    assert sums.write_sum(47, 5, 0) == ("a7b4+A5=", "a7A5 0=2 1;b4 1=5 0;.")
    for question, working, total in sums.write_examples(0, 300, range(1, 17), has_working=True):
        assert sums.read_answer(working) == total and len(question + working) < 256
    assert [sums.read_answer(text) for text in ("", "a7A5 0=2;.", "nothing")] == ["", "", ""]


@pytest.mark.slow
def test_the_lab_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notes, "TEST_SUMS", 2)
    monkeypatch.setattr(notes, "SUM_LENGTHS", (2, 16))
    (tmp_path / "novel.txt").write_text(" ".join(HAYSTACK * 20))
    flags = (
        "--short-steps",
        2,
        "--dense-steps",
        2,
        "--steps",
        16,
        "--sum-steps",
        2,
        "--lengths",
        300,
        600,
        "--streams",
        1,
        "--facts",
        4,
    )
    result = call("lab", "notes", "--haystack", tmp_path / "novel.txt", *flags, "--out", tmp_path / "out").ok()
    assert "Questions with 1 supporting fact, 600 tokens: notes " in result.out and "Sums of 16 digits" in result.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(
        text in page for text in ("full attention", "chance is 17%", "<svg", "What was written in the last text")
    )
    again = call("lab", "notes", "--trained", tmp_path / "out", "--part", "sums", "--out", tmp_path / "again").ok()
    assert again.out.splitlines()[-1] == result.out.splitlines()[-1]
