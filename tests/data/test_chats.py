"""Conversations: every layout says the same, what cannot be used is one line, and the mask is that of the template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.chat_batches import (
    TrainedTokens,
    collate_conversations,
    encode_conversations,
    fit_context,
    list_answers,
    pack_rows,
)
from anyformer.data.text.chats import Conversation, Conversations, read_conversations
from anyformer.data.text.instructions import TASKS, load_instructions
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.base import Bytes, Characters, Tokenizer
from anyformer.data.tokenizers.chat_template import Chat
from anyformer.data.tokenizers.chat_tokens import END_OF_MESSAGE, add_chat_template
from data_kit import SAMPLE, refuses, write

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of earlier answers, only what follows the last thought is kept, as Qwen3 does.
FORGETFUL = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('=')[-1] }}")
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.\nYou?"},
    {"role": "user", "content": "Fine"},
    {"role": "assistant", "content": "Good."},
]


def build_subwords(template: str) -> Tokenizer:
    """Return a BPE with the special tokens of ChatML."""
    fields = json.loads(tok.train_bpe([SAMPLE, "assistant\n\nuser\n" * 50], 300).to_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ["<|im_start|>", "<|im_end|>"]
    fields["added_tokens"] += [{"id": 400 + i, "content": name} | flags for i, name in enumerate(names)]
    return tok.Subwords(json.dumps(fields), {"tokenizer_config.json": json.dumps({"chat_template": template})})


def read(path: Path, *rows: Any, empty: Any = "few") -> Conversations:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return read_conversations(str(path), 0.5, empty)


def talk(*messages: dict[str, Any], tools: Any = ()) -> Conversation:
    return Conversation(list(messages), list(tools), "here")


# --- reading ---


def test_every_layout_is_recognized_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    user, answer = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello")))
    other = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Go"}]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, answer]
    layouts = {
        "messages": [{"messages": [user, answer]}, {"messages": parts}, {"messages": json.dumps([user, answer])}],
        "ShareGPT": [{"conversations": turns, "id": 3}],
        "prompt and completion": [{"prompt": "Hi", "completion": "Hello"}, {"prompt": [user], "completion": [answer]}],
        "Alpaca": [{"instruction": "Hi", "input": "", "output": "Hello"}],
        "instruction and response": [{"instruction": "Hi", "response": "Hello"}],
    }
    for name, rows in layouts.items():
        for i, row in enumerate(rows):
            data = read(tmp_path / f"{name}-{i}.jsonl", row, {"messages": other})
            messages = [conversation.messages for conversation in data.split("all")]
            assert [user, answer] in messages and other in messages and len(messages) == 2
            assert f"1 conversations as {name}" in capsys.readouterr().err or name == "messages"


def test_the_parts_of_a_row_are_used(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "time"}}]
    calls = [{"function": {"name": "time", "arguments": {}}}]
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "9:30"},
        {"role": "assistant", "content": "Half past nine."},
    ]
    rows = [
        {"messages": messages, "tools": json.dumps(tools), "system": "Be exact."},
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
    ]
    data = read(tmp_path / "a.jsonl", *rows)
    first, second = sorted(data.split("all"), key=lambda conversation: conversation.where)
    assert first.tools == tools and first.messages[0] == {"role": "system", "content": "Be exact."}
    assert first.messages[2] == {"role": "assistant", "content": "", "tool_calls": calls} and first.answers == [2, 4]
    assert second.messages[0]["content"] == "Add\n\n1 and 2" and second.prompt == second.messages[:1]
    text = add_chat_template(Bytes()).render_chats([Chat(first.messages, first.tools)])[0]
    assert all(part in text for part in first.texts)


def test_a_question_is_in_one_split_only(tmp_path: Path):
    rows = [{"prompt": f"question {i % 20}", "completion": str(i)} for i in range(60)]
    data = read(tmp_path / "a.jsonl", *rows)
    train, val = ({c.messages[0]["content"] for c in data.split(name)} for name in ("train", "val"))
    assert len(train) == len(val) == 10 and not train & val
    folder = tmp_path / "data"
    for name, part in (("train", rows[:5]), ("val", rows[5:7])):
        write(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    data = read_conversations(str(folder), 0.5, "few")
    assert [len(data.split(name)) for name in ("train", "val", "all")] == [5, 2, 7]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            ["1 of 3 conversations", "line 3: no assistant turn", "--empty skip"],
        ),
        ({"prompt": "Hi", "completion": " "}, ["1 of 3", "no assistant turn"]),
        ({"messages": [TALK[2], TALK[1]]}, ["roles out of order: message 1, of assistant, is the first"]),
        ({"messages": [TALK[1], TALK[1], TALK[2]]}, ["roles out of order: message 2, of user, follows one of user"]),
        ({"messages": [*TALK, TALK[0]]}, ["message 6, of system, follows one of assistant"]),
        ({"messages": []}, ["no assistant turn"]),
        ({"text": "Hi"}, ["line 3: has 'text': expected messages; conversations; prompt and completion"]),
        ({"messages": "no"}, ["line 3: messages: not JSON"]),
        ({"messages": ["no"]}, ['messages, message 1 is \'no\'; expected {"role": ..., "content": ...}']),
        ({"messages": [{"role": "usr", "content": ""}]}, ["message 1: role is 'usr': did you mean 'user'?"]),
        ({"messages": [{"role": "user", "content": 3}]}, ["message 1: the content is 3; expected a text"]),
        ({"messages": TALK, "tools": "{}"}, ["line 3: tools: should hold a JSON list, found dict"]),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, row: Any, parts: list[str]):
    with refuses(*parts):
        read(tmp_path / "a.jsonl", {"messages": TALK}, {"prompt": "a", "completion": "b"}, row)


def test_unusable_conversations_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": str(i), "completion": "a"} for i in range(9)]
    data = read(tmp_path / "a.jsonl", *rows, {"messages": [TALK[1]]}, empty="skip")
    assert data.n_skipped == 1 and len(data.split("all")) == 9
    assert "1 of 10 conversations cannot be used" in capsys.readouterr().err
    with refuses("nothing.jsonl", "no such file"):
        read_conversations(str(tmp_path / "nothing.jsonl"), 0.5, "few")
    with refuses("did you mean 'instructions'"):
        read_conversations("instruction", 0.5, "few")


def test_instructions_have_the_answers_that_they_ask_for():
    splits = load_instructions()
    assert splits == load_instructions() and len(splits["val"]) % len(TASKS) == 0
    answers = dict(splits["train"])
    word = next(text for text in answers if text.startswith("Spell ")).split()[1].rstrip(".")
    assert answers[f"Reverse the word {word}."] == word[::-1] and answers[f"Spell {word}."] == "-".join(word)
    assert not {text for text, _ in splits["val"]} & answers.keys(), "the words of the splits differ"


# --- the mask ---


def decode_trained(tokenizer: Tokenizer, conversation: Conversation, loss_on: Any = "answers") -> list[str]:
    """Return the text of each run of trained tokens, special tokens by their names."""
    (row,) = encode_conversations([conversation], tokenizer, loss_on)
    names = [tokenizer.decode([i]) or tokenizer.special_name(i) for i in row.ids.tolist()]
    text = "".join(name if trained else "\0" for name, trained in zip(names, row.is_trained))
    return [part for part in text.split("\0") if part]


def test_answers_are_trained_with_their_end():
    chatml = build_subwords(CHATML)
    assert decode_trained(chatml, talk(*TALK)) == ["Hello.\nYou?<|im_end|>\n", "Good.<|im_end|>\n"]
    assert decode_trained(chatml, talk(*TALK), "last") == ["Good.<|im_end|>\n"]
    plain = add_chat_template(Bytes())
    assert decode_trained(plain, talk(*TALK)) == ["Hello.\nYou?<|end|>", "Good.<|end|>"]
    (everything,) = decode_trained(plain, talk(*TALK), "all")
    assert everything.startswith("<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello.")
    assert decode_trained(plain, talk(*TALK[:4])) == ["Hello.\nYou?<|end|>"], "what follows is read only"


def test_a_prompt_is_encoded_as_it_will_be_when_the_model_is_asked():
    for tokenizer in (build_subwords(CHATML), add_chat_template(Bytes())):
        conversation = talk(*TALK)
        (row,) = encode_conversations([conversation], tokenizer, "last")
        prompt = tokenizer.encode_parsing_special(tokenizer.apply_chat_template(conversation.prompt)).tolist()
        assert row.ids[: np.argmax(row.is_trained)].tolist() == prompt


def test_an_ambiguous_mask_is_refused():
    thought = {"role": "assistant", "content": "1+1=2"}
    conversation = talk(TALK[1], thought, TALK[3], thought)
    with refuses("here: it is ambiguous which part of answer 1 is trained", "--loss-on last"):
        encode_conversations([conversation], build_subwords(FORGETFUL), "answers")
    assert decode_trained(build_subwords(FORGETFUL), conversation, "last") == ["1+1=2<|im_end|>\n"]
    with refuses("answer 1", "a token holds its start and what is before", "strip"):
        encode_conversations(
            [talk(TALK[1], {"role": "assistant", "content": "\n\nHi"})], build_subwords(CHATML), "last"
        )


def test_a_template_that_fails_names_the_conversation():
    template = "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{{ m.content }}{% endfor %}"
    others = [Conversation(TALK[1:3], [], f"line {i}") for i in range(40)]
    with refuses("line 9: the chat template cannot render these messages: no"):
        conversations = [*others, Conversation(TALK, [], "line 9"), *others]
        encode_conversations(conversations, build_subwords(template), "answers")
    with refuses("here: '<|user|>H", "holds what the vocabulary of 8 tokens lacks"):
        encode_conversations([talk(*TALK[1:3])], add_chat_template(Characters("ab")), "answers")


def test_a_template_is_added_to_any_vocabulary():
    for tokenizer in (Characters("abc"), Bytes(), tok.train_bpe([SAMPLE], 300)):
        extended = add_chat_template(tokenizer)
        text = extended.apply_chat_template([{"role": "user", "content": "abc"}])
        ids = extended.encode_parsing_special(text).tolist()
        start, end, answer = (extended.token_to_id(name) for name in ("<|user|>", END_OF_MESSAGE, "<|assistant|>"))
        assert ids == [start, *tokenizer.encode("abc").tolist(), end, answer]
        assert extended.vocab_size == tokenizer.vocab_size + 5 and extended.end_ids == (end, tokenizer.end_id)
        assert extended.decode(ids) == "abc" and extended.special_name(end) == END_OF_MESSAGE
        again = tok.tokenizer_from_files({**extended.extra_files, "tokenizer.json": extended.to_json()})
        assert add_chat_template(again) is again and again.end_ids == extended.end_ids
        assert again.encode_parsing_special(text).tolist() == ids


# --- rows ---


def row(length: int, n_trained: int = 1, first: int = 10) -> TrainedTokens:
    """A conversation of so many nodes, which are one fewer than its tokens, trained at its end."""
    return TrainedTokens(np.arange(first, first + length + 1, dtype=np.uint16), np.arange(length, -1, -1) < n_trained)


def test_conversations_that_are_too_long_are_counted(capsys: pytest.CaptureFixture[str]):
    rows, places = [row(4), row(9, 8), row(9, 1)], ["a", "b", "c"]
    with refuses("2 of 3 conversations are longer than the context of 6 tokens (the first: b): --too-long cut"):
        fit_context(rows, places, 6, "few")
    fits, n_cut = fit_context(rows, places, 6, "cut")
    assert fits[0] is not None and fits[1] is not None and fits[2] is None and n_cut == 1, "of the last nothing is left"
    assert fits[1].ids.tolist() == rows[1].ids[:7].tolist() and fits[1].is_trained.sum() == 5
    fits, n_cut = fit_context(rows, places, 6, "skip")
    assert [fit is None for fit in fits] == [False, True, True] and n_cut == 0
    assert "cut (--too-long error refuses them)" in capsys.readouterr().err


def test_answers_are_listed_with_the_token_before():
    trained = np.array([False, True, True, False, False, True])
    tokens = TrainedTokens(np.arange(6, dtype=np.uint16), trained)
    assert [answer.tolist() for answer in list_answers(tokens)] == [[0, 1, 2], [4, 5]]


def test_packing_loses_nothing_and_wastes_little():
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    packed = pack_rows(lengths, 64)
    assert sorted(i for numbers in packed for i in numbers) == list(range(500))
    assert all(sum(lengths[i] for i in numbers) <= 64 for numbers in packed)
    assert sum(lengths) > 0.95 * 64 * len(packed)


def test_a_batch_keeps_conversations_apart():
    batch = collate_conversations([[row(3, 2), row(2, 1, 50)], [row(4, 4)]], 6)
    ignored = IGNORE_INDEX
    assert batch["ids"].tolist() == [[10, 11, 12, 50, 51, 0], [10, 11, 12, 13, 0, 0]]
    assert batch["labels"].tolist() == [[ignored, 12, 13, ignored, 52, ignored], [11, 12, 13, 14, ignored, ignored]]
    assert batch["document"].tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert "document" not in collate_conversations([[row(3)], [row(2)]], 3), "attention is causal and no more"
