"""OpenAI's own client: what it gets equals what Python gets from the model alone."""

import asyncio
import io
import itertools
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.trained_model import Model
from serve_kit import RunningServer, build_chat_model, build_model, serve

openai = pytest.importorskip("openai")
TALK: list[Any] = [{"role": "user", "content": "Now is the winter"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "glorious", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    others = {name: build_model(name, folder) for name in ("classify", "speech")}
    return {"chat": build_chat_model(folder)} | others


@pytest.fixture(scope="module")
def running(models: dict[str, Model]) -> Iterator[RunningServer]:
    with serve(models) as server:
        yield server


@pytest.fixture
def client(running: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def generate(models: dict[str, Model], **request: Any) -> list[dict[str, Any]]:
    return models["chat"].predict(request)["samples"]


def test_models_are_listed(client: Any):
    assert [model.id for model in client.models.list()] == ["chat", "classify", "speech"]
    assert client.models.retrieve("speech").owned_by == "anyformer"
    with pytest.raises(openai.NotFoundError, match="did you mean 'speech'"):
        client.models.retrieve("speach")


def test_completions_equal_those_of_the_model_alone(client: Any, models: dict[str, Model]):
    prompts = ["Now is", "the winter of our"]
    answer = client.completions.create(
        model="chat", prompt=prompts, n=2, max_tokens=9, seed=5, temperature=0.9, top_p=0.8, stop=["zz"],
        presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": 2}, extra_body={"top_k": 50},
    )  # fmt: skip
    request = {"prompt": prompts, "samples": 2, "tokens": 9, "seed": 5, "temperature": 0.9, "top_p": 0.8, "top_k": 50}
    request |= {"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": 2}, "stop": ["zz"]}
    expected = generate(models, **request)
    assert [choice.text for choice in answer.choices] == [sample["text"] for sample in expected]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 4
    tokenizer = models["chat"].module.tokenizer
    n_prompt = sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    n_new = sum(len(sample["tokens"]) for sample in expected)
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


def test_token_ids_are_prompts_too(client: Any, models: dict[str, Model]):
    ids = models["chat"].module.tokenizer.encode("Now is").tolist()
    answers = [
        client.completions.create(model="chat", prompt=prompt, max_tokens=5, temperature=0, echo=True)
        for prompt in ("Now is", ids, [ids])
    ]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert answers[0].choices[0].text.startswith("Now is")
    with pytest.raises(openai.BadRequestError, match="ids that the vocabulary lacks"):
        client.completions.create(model="chat", prompt=[10**6], max_tokens=5)


def test_log_probabilities_equal_those_of_the_model_alone(client: Any, models: dict[str, Model]):
    request = {"prompt": "Now is the", "logprobs": 3, "echo": True, "temperature": 0.0}
    answer = client.completions.create(model="chat", max_tokens=4, **request).choices[0]
    (expected,) = generate(models, tokens=4, **request)
    entries = [*expected["prompt_logprobs"], *expected["logprobs"]]
    logprobs = answer.logprobs
    assert logprobs.token_logprobs == pytest.approx([None, *(entry["logprob"] for entry in entries)])
    n_prompt = len(expected["prompt_logprobs"]) + 1
    assert "".join(logprobs.tokens[:n_prompt]) == "Now is the" and answer.text.startswith("Now is the")
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])] and logprobs.top_logprobs[0] is None
    for entry, top in zip(entries, logprobs.top_logprobs[1:], strict=True):
        assert max(top.values()) == pytest.approx(entry["top"][0][1]) and 3 <= len(top) <= 4


@pytest.mark.parametrize("settings", [{}, {"echo": True, "logprobs": 2}, {"n": 2, "stop": ["e"]}], ids=str)
def test_a_stream_equals_the_whole(client: Any, settings: dict[str, Any]):
    request = {"model": "chat", "prompt": ["Now is", "été 🌞"], "max_tokens": 24, "seed": 3} | settings
    expected = client.completions.create(**request)
    texts, reasons, logprobs = {}, {}, {}
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason
        logprobs.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs if choice.logprobs else [])
    assert texts == {choice.index: choice.text for choice in expected.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in expected.choices}
    if "logprobs" in settings:
        assert logprobs == {choice.index: choice.logprobs.token_logprobs for choice in expected.choices}
    assert chunks[-1].choices == [] and chunks[-1].usage == expected.usage and chunks[0].usage is None


def test_chats_equal_those_of_the_model_alone(client: Any, models: dict[str, Model]):
    request = {"messages": TALK, "seed": 4, "temperature": 0.7}
    answer = client.chat.completions.create(
        model="chat", max_tokens=9, logprobs=True, top_logprobs=2, user="x", metadata={"a": "b"}, store=False, **request
    )
    (expected,) = generate(models, tokens=9, logprobs=2, **request)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected["text"])
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 9
    content = choice.logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx([entry["logprob"] for entry in expected["logprobs"]])
    assert [len(entry.top_logprobs) for entry in content] == [2] * 9
    plain = [entry for entry in content if entry.bytes]
    assert plain and all(bytes(entry.bytes).decode() == entry.token for entry in plain)


def test_a_streamed_chat_equals_the_whole(client: Any):
    request = {"model": "chat", "messages": TALK, "seed": 4, "max_completion_tokens": 12, "n": 2}
    expected = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant"] * 2
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in expected.choices]


def test_tools_and_their_results_are_for_the_template(client: Any, models: dict[str, Model]):
    call = {"id": "1", "type": "function", "function": {"name": "glorious", "arguments": "{}"}}
    talk = [*TALK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    talk.append({"role": "tool", "content": "summer", "tool_call_id": "1"})
    request = {"model": "chat", "messages": talk, "seed": 1, "max_tokens": 5}
    answer = client.chat.completions.create(**request, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False)
    (expected,) = generate(models, messages=talk, tools=TOOLS, seed=1, tokens=5, temperature=1.0)
    assert answer.choices[0].message.content == expected["text"]
    without = client.chat.completions.create(**request)
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens
    unused = client.chat.completions.create(**request, tools=TOOLS, tool_choice="none")
    assert unused.usage.prompt_tokens == without.usage.prompt_tokens


def test_parts_of_text_are_joined(client: Any):
    parts = [{"type": "text", "text": "Now is "}, {"type": "text", "text": "the winter"}]
    answers = [
        client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": content}], seed=1, max_tokens=5
        )
        for content in ("Now is the winter", parts)
    ]
    assert answers[0].choices == answers[1].choices
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="read texts"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": image}])


def test_many_async_clients_get_their_own_answers(running: RunningServer, models: dict[str, Model]):
    async def ask(client: Any, i: int) -> str:
        request = {"model": "chat", "prompt": "Now is the winter"[: i + 1], "max_tokens": 3 + i, "seed": i}
        if i % 2:
            return (await client.completions.create(**request)).choices[0].text
        stream = await client.completions.create(**request, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, i) for i in range(16)))

    expected = [
        generate(models, prompt="Now is the winter"[: i + 1], tokens=3 + i, seed=i, temperature=1.0)[0]["text"]
        for i in range(16)
    ]
    assert asyncio.run(ask_all()) == expected


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_equal_those_of_the_model(client: Any, models: dict[str, Model], encoding: str | None):
    texts = ["a good film", "bad"]
    settings: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="classify", input=texts, **settings)
    vectors = [item.embedding for item in answer.data]
    if encoding == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    np.testing.assert_allclose(np.array(vectors), models["classify"].embed(texts), rtol=0, atol=1e-6)
    tokenizer, context = models["classify"].module.masked_tokenizer, models["classify"].module.context
    assert answer.usage.prompt_tokens == sum(map(len, tokenizer.encode_batch(texts, context, False))) > 0
    assert client.embeddings.create(model="classify", input="bad").data[0].index == 0


def make_wav(seconds: float = 0.5) -> bytes:
    samples = (8000 * np.sin(np.arange(round(16000 * seconds)) * 0.3)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def test_transcripts_equal_those_of_the_model(client: Any, models: dict[str, Model], tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(make_wav(3.0))
    (expected,) = models["speech"].predict(str(path))["results"]
    answers = {
        form: client.audio.transcriptions.create(model="speech", file=path, response_format=form)
        for form in ("json", "text", "verbose_json")
    }
    assert answers["json"].text == expected["text"] == answers["text"].rstrip("\n") == answers["verbose_json"].text
    segments = answers["verbose_json"].segments
    assert " ".join(filter(None, (s.text for s in segments))) == expected["text"] and len(segments) > 1
    assert segments[-1].end == answers["verbose_json"].duration == pytest.approx(3.0)
    assert all(a.end == b.start for a, b in itertools.pairwise(segments))
    with pytest.raises(openai.BadRequestError, match="language is 'en', but this model was trained on one language"):
        client.audio.transcriptions.create(model="speech", file=path, language="en")
    with pytest.raises(openai.BadRequestError, match="task is 'translate', but this model was trained on one task"):
        client.audio.translations.create(model="speech", file=path)
    with pytest.raises(openai.BadRequestError, match=r"text\.txt: cannot be read as sound"):
        client.audio.transcriptions.create(model="speech", file=("text.txt", b"no sound"))


def test_words_have_times_and_become_subtitles(client: Any, models: dict[str, Model], tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(make_wav(3.0))
    (expected,) = models["speech"].predict({"input": str(path), "words": True})["results"]
    create: Any = client.audio.transcriptions.create
    options: dict[str, Any] = {"model": "speech", "file": path, "response_format": "verbose_json"}
    answer = create(**options, timestamp_granularities=["word"])
    assert [word.model_dump() for word in answer.words] == expected["words"]
    assert " ".join(word["word"] for word in expected["words"]) == expected["text"] and expected["text"]
    assert answer.segments is None
    both = create(**options, timestamp_granularities=["word", "segment"])
    assert (both.words, len(both.segments) > 1) == (answer.words, True)
    for form, mark in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")):
        text = create(**options | {"response_format": form})
        assert text.startswith(mark) and expected["words"][0]["word"] in text
    with pytest.raises(openai.BadRequestError, match="timestamp_granularities needs response_format: verbose_json"):
        create(**options | {"response_format": "json"}, timestamp_granularities=["word"])
    with pytest.raises(openai.BadRequestError, match="timestamp_granularities"):
        create(**options, timestamp_granularities=["letter"])


def test_what_a_model_cannot_do_is_one_clear_error(client: Any):
    create: Any = client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="do not reason apart") as caught:
        create(model="chat", messages=TALK, reasoning_effort="low")
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "reasoning_effort")
    with pytest.raises(openai.BadRequestError, match="completes no texts: use /v1/predict"):
        client.completions.create(model="classify", prompt="a")
    with pytest.raises(openai.BadRequestError, match="embeds no texts"):
        client.embeddings.create(model="chat", input="a")
    with pytest.raises(openai.BadRequestError, match="transcribes no sounds"):
        client.audio.transcriptions.create(model="chat", file=("a.wav", make_wav()))
    with pytest.raises(openai.BadRequestError, match="cannot force a model"):
        create(model="chat", messages=TALK, tools=TOOLS, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match='let it be cut: "truncate": true'):
        client.embeddings.create(model="classify", input="good " * 99)
    cut = client.embeddings.create(model="classify", input="good " * 99, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 32, "the context"
    with pytest.raises(openai.BadRequestError, match="dimensions is 7; the vectors of this model have"):
        client.embeddings.create(model="classify", input="a", dimensions=7)
