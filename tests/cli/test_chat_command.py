"""`anyformer chat`: a conversation whose answers are those of the model, with the history before each."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from anyformer import api
from anyformer.cli import chat
from anyformer.errors import InputError
from anyformer.trained_model import Model
from cli_kit import CommandResult, assert_refused, call
from serve_kit import build_chat_model, build_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build_chat_model(tmp_path_factory.mktemp("chat"), context=256)


def talk(monkeypatch: pytest.MonkeyPatch, model: Model | None, text: str, *flags: object) -> CommandResult:
    """Run `anyformer chat` with lines through a pipe."""
    if model is not None:
        monkeypatch.setattr(api, "load", lambda *arguments, **settings: model)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
    return call("chat", "RUN" if model is not None else flags[0], *flags[model is None :])


def test_answers_continue_the_conversation(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    lines = "Now is\n\nthe winter\n/save talk.jsonl\n/reset\nNow is\n/quit\nnever\n"
    result = talk(monkeypatch, model, lines, "--tokens", 9, "--temperature", 0, "--system", "Be kind.")
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be kind."}]
    answers = []
    for text in ("Now is", "the winter"):
        messages.append({"role": "user", "content": text})
        answer = model.predict(messages=messages, tokens=9, temperature=0)["samples"][0]["text"].strip()
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
    assert [line.strip() for line in result.ok().out.split("\n")[:-1]] == [*answers, answers[0]]
    assert json.loads((tmp_path / "talk.jsonl").read_text()) == {"messages": messages}


def test_a_model_without_a_template_continues_a_dialogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    plain = build_chat_model(tmp_path, context=256, template="")
    result = talk(monkeypatch, plain, "to be\nor not\n", "--tokens", 8, "--seed", 1)
    first = plain.predict(prompt="User: to be\nAssistant:", stop=["\nUser:"], tokens=8, seed=1000)["samples"][0]["text"]
    prompt = f"User: to be\nAssistant: {first.strip()}\nUser: or not\nAssistant:"
    second = plain.predict(prompt=prompt, stop=["\nUser:"], tokens=8, seed=1001)["samples"][0]["text"]
    assert result.ok().out == f"{first.lstrip()}\n{second.lstrip()}\n"


def test_a_message_that_the_vocabulary_lacks(run_once: Path, monkeypatch: pytest.MonkeyPatch):
    assert_refused(talk(monkeypatch, None, "hello?\n", run_once), "the vocabulary of", "'U'")


def test_old_messages_are_left_out(model: Model, monkeypatch: pytest.MonkeyPatch):
    result = talk(monkeypatch, model, "Now is the winter of our discontent\n" * 9, "--tokens", 20, "--temperature", 0)
    assert result.ok().out.count("\n") >= 9 and "the oldest messages no longer fit" in result.err


def test_ctrl_c_stops_an_answer_and_keeps_it(model: Model, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    conversation = chat.Conversation(model.recipe.decoder(model.module), chat.Command(run=Path("RUN"), tokens=50))
    pieces = conversation.answer("Now is")

    def interrupt() -> Any:
        yield next(pieces)
        yield "x"
        pieces.close()
        raise KeyboardInterrupt

    chat.print_answer(interrupt())
    assert capsys.readouterr().out.endswith("x ...\n")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    with pytest.raises(InputError, match="surrogate"):
        list(conversation.answer("\ud800"))
    assert len(conversation.messages) == 2, "what cannot be asked is forgotten"
    conversation.batcher.close()


def test_what_was_said_is_not_read_again(model: Model):
    """As far as the answer is encoded as it was written, which noise is not."""
    conversation = chat.Conversation(model.recipe.decoder(model.module), chat.Command(run=Path("RUN"), tokens=30))
    for text in ("Now is the winter of our discontent made glorious", "summer", "by this"):
        list(conversation.answer(text))
    conversation.batcher.close()
    assert conversation.batcher.n_hits == 2 and conversation.batcher.n_cached >= 2 * 32


def test_commands(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert "/save FILE" in talk(monkeypatch, model, "/help\n").ok().err
    (tmp_path / "a").write_text("mine")
    for line, parts in {
        "/rest": ["no command '/rest'", "did you mean '/reset'?"],
        "/save": ["needs the name"],
        f"/save {tmp_path}/a": ["exists: name another"],
        f"/save {tmp_path}/no/a": ["cannot be written"],
        "/save \0": ["cannot be written"],
    }.items():
        assert_refused(talk(monkeypatch, model, f"{line}\n"), *parts)
    assert_refused(talk(monkeypatch, model, "\udcff\n"), "stdin is not UTF-8")
    assert_refused(talk(monkeypatch, model, "a\n", "--temperature", "-1"), "temperature is -1")


def test_models_that_generate_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert_refused(talk(monkeypatch, build_model("control", tmp_path), ""), "generates no text", "anyformer predict")
