"""Conversations are trained as they should be: packed like separate ones, answers alone, from any model; and asked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyformer
from anyformer import api
from anyformer.answer_text import format_prediction
from anyformer.conversion import export_checkpoint
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.chat_batches import encode_conversations
from anyformer.examples import predict_examples
from anyformer.model.kernels import cross_entropy
from anyformer.recipe import Examples
from anyformer.recipes import chat
from anyformer.training import checkpoints, gradients, loop
from anyformer.training.config import LoRAConfig
from anyformer.training.updates import make_update
from checkpoint_kit import open_reference, transformers
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA

DATA = str(SMALL_DATA["chat"])
TRAIN = {"steps": 6, "batch": 4, "eval_every": 3, "eval_batches": 2, "save_every": 3, "device": "cpu"}
TRAIN |= {"dtype": "float32", "final_every": 1000}
SHAPE = {"dim": 32, "n_layer": 2, "n_head": 4, "context": 256}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in the shape of Llama, without a chat template."""
    out = tmp_path_factory.mktemp("base") / "run"
    text = out.with_name("text.txt")
    text.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    shape = SHAPE | {"n_kv_head": 2, "mlp_dim": 48}
    api.train("language", "llama", out=out, data=str(text), model=shape, train=TRAIN, tokenizer="byte", progress=False)
    return out


@pytest.fixture(scope="module")
def chat_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chat_run") / "run"
    api.train("chat", out=out, init=base, data=DATA, train=TRAIN, progress=False)
    return out


def build(**fields: Any) -> tuple[chat.ChatModel, chat.Config]:
    torch.manual_seed(0)
    config = dataclasses.replace(chat.PRESETS["tiny"], data=DATA, loss_on="answers", **fields)
    return chat.build(config), config


def read_rows(config: chat.Config) -> list[Any]:
    return chat.load_rows(config).conversations["train"]


def differentiate(model: Any, *batches: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss over all predictions of several batches, and its gradient."""
    model.zero_grad()
    train = dataclasses.replace(chat.PRESETS["tiny"].train, accumulate=len(batches))
    state = loop.init_state(chat, dataclasses.replace(chat.PRESETS["tiny"], data=DATA, train=train))
    state.model.load_state_dict(model.state_dict())
    loss, _ = gradients.compute_gradient(state, make_update(chat, list(batches)), "float32")
    return loss.item(), {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}


def assert_same(first: tuple[float, dict[str, Tensor]], second: tuple[float, dict[str, Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    for name, grad in first[1].items():
        torch.testing.assert_close(second[1][name], grad, atol=2e-6, rtol=2e-5)


# --- what is trained ---


@pytest.mark.parametrize("position", ["learned", "rotary", "alibi"])
def test_packed_conversations_are_trained_like_separate_ones(position: Any):
    shape = dataclasses.replace(chat.PRESETS["tiny"].model, position=position, context=200)
    model, config = build(model=shape)
    rows = read_rows(config)[:6]
    packed = chat.make_batch([rows[:3], rows[3:]], 200)
    assert int(packed["document"].max()) == 2
    separate = [chat.make_batch([[row]], len(row)) for row in rows]
    counts = [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in separate]
    assert sum(counts) == int((packed["labels"] != IGNORE_INDEX).sum()), "every answer is trained once"
    model.zero_grad()
    sum(chat.loss(model, batch, "sum") for batch in separate).div(sum(counts)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    chat.loss(model, packed).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-6, rtol=2e-5)


def test_a_packed_conversation_reads_no_other():
    model, config = build(model=dataclasses.replace(chat.PRESETS["tiny"].model, context=200))
    first, second, other = read_rows(config)[:3]
    batches = [chat.make_batch([[row, second]], 200) for row in (first, other)]
    states = [model.hidden(batch["ids"], None, batch["document"], batch["positions"]) for batch in batches]
    starts = [len(row) for row in (first, other)]
    parts = [state[0, start : start + len(second)] for state, start in zip(states, starts)]
    torch.testing.assert_close(*parts, atol=1e-5, rtol=1e-5)


def test_accumulated_batches_are_one_batch():
    """Each token counts the same, however many tokens its micro-batch trains, none included."""
    model, config = build()
    rows = read_rows(config)[:7]
    width = max(map(len, rows))
    full = chat.make_batch([[row] for row in rows], width)
    masked = chat.make_batch([[rows[0]], [rows[1]]], width)
    masked["labels"] = torch.full_like(masked["labels"], IGNORE_INDEX)
    parts = [chat.make_batch([[row] for row in part], width) for part in (rows[:1], rows[1:3], rows[3:])]
    expected = differentiate(model, full)
    assert_same(expected, differentiate(model, *parts))
    assert_same(expected, differentiate(model, parts[0], masked, *parts[1:]))


@pytest.mark.parametrize("limit", [1 << 24, 1 << 8], ids=["whole", "in chunks"])
def test_a_batch_that_trains_nothing_is_no_nan(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "MAX_CPU_LOGITS", limit)
    model, config = build()
    batch = chat.make_batch([read_rows(config)[:1]], 192)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    loss, gradient = differentiate(model, batch)
    assert loss == 0 and all(not grad.any() for grad in gradient.values())
    assert chat.evaluate(model, iter([batch]))["loss"] == 0


def test_the_loss_is_that_of_the_answers_alone():
    """A slow oracle: one conversation, token by token."""
    model, config = build()
    (row,) = encode_conversations(chat.load_conversations(config).split("train")[:1], model.tokenizer, "answers")
    with torch.no_grad():
        logs = model(torch.from_numpy(row.ids.astype("int64"))[None])[0].log_softmax(-1)
        nats = [-logs[i - 1, row.ids[i]].item() for i in range(1, len(row.ids)) if row.is_trained[i]]
        assert chat.loss(model, chat.make_batch([[row]], len(row))).item() == pytest.approx(sum(nats) / len(nats))
    assert 0 < len(nats) < len(row.ids)


# --- from any model ---


def test_special_tokens_are_added_to_the_vocabulary(base: Path, chat_run: Path):
    source, model = api.load(base, "cpu"), api.load(chat_run, "cpu")
    n_base, n_tuned = (m.module.nodes.token.num_embeddings for m in (source, model))
    assert (n_base, n_tuned, model.module.head.project.out_features) == (257, 262, 262)
    assert model.module.tokenizer.has_chat_template and not source.module.tokenizer.has_chat_template
    torch.manual_seed(0)
    fresh = chat.build(dataclasses.replace(model.config, tokenizer=source.config.tokenizer))
    checkpoints.initialize_from(fresh, source.module, "base", LoRAConfig())
    for name in chat.ChatModel.extended_tensors:
        first, second = fresh.state_dict()[name], source.module.state_dict()[name]
        assert torch.equal(first[:257], second)
        assert (first[257:] - second.mean(0)).abs().max() < 0.2 and not torch.equal(first[257], first[258])


def test_it_is_trained_from_its_own_run_and_resumed(chat_run: Path, tmp_path: Path):
    again = api.train("chat", out=tmp_path / "again", init=chat_run, data=DATA, train=TRAIN, progress=False)
    assert again.module.nodes.token.num_embeddings == 262, "the template is there already"
    longer = api.train("chat", out=tmp_path / "again", resume=True, train={"steps": 8}, progress=False)
    assert longer.path.name in ("step-3", "step-6", "step-8")


def test_adapters_train_the_new_tokens_too(base: Path, tmp_path: Path):
    tune = TRAIN | {"lr": 1e-2}
    model = api.train("chat", out=tmp_path / "run", init=base, data=DATA, lora={"rank": 2}, train=tune, progress=False)
    trained = {
        name for name, p in api.load(tmp_path / "run", "cpu", merged=False).module.named_parameters() if p.requires_grad
    }
    assert {"nodes.token.weight", "head.project.weight"} == {name for name in trained if ".lora_" not in name}
    loaded = api.load(tmp_path / "run", "cpu")
    assert loaded.predict("Hi", tokens=4, temperature=0) == model.predict("Hi", tokens=4, temperature=0)


def test_an_exported_model_is_asked_by_transformers(chat_run: Path, tmp_path: Path):
    export_checkpoint(chat_run, "hf", tmp_path / "hf")
    reference = open_reference(transformers.AutoModelForCausalLM, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "Spell fox"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = reference.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    model = api.load(chat_run, "cpu")
    answer = model.predict(messages=messages, tokens=8, temperature=0)["samples"][0]
    end_ids = model.module.tokenizer.end_ids
    assert answer["tokens"] == [i for i in output.tolist() if i not in end_ids]
    assert list(end_ids) == reference.generation_config.eos_token_id
    again = api.load(tmp_path / "hf", "cpu")
    assert again.predict(messages=messages, tokens=8, temperature=0)["samples"][0]["tokens"] == answer["tokens"]


# --- asked ---


def test_answers(chat_run: Path):
    model = api.load(chat_run, "cpu")
    settings: dict[str, Any] = {"tokens": 5, "temperature": 0}
    first, second = model.predict(["Hi", "Bye"], **settings)["samples"]
    assert (first["prompt"], second["prompt"]) == ("Hi", "Bye")
    messages = [{"role": "user", "content": "Hi"}]
    talk = model.predict(messages=messages, **settings)["samples"][0]
    assert first["text"] == talk["text"] == "".join(model.stream(messages=messages, **settings))
    prompt = model.module.tokenizer.encode_parsing_special("<|user|>Hi<|end|><|assistant|>").tolist()
    assert model.predict(prompt=[prompt], **settings)["samples"][0]["tokens"] == first["tokens"]
    assert len(model.predict("Hi", samples=3, tokens=5)["samples"]) == 3
    shown = predict_examples(chat, model.module, Examples({"input": ["Hi"]} | settings, ["Hello."]))
    assert format_prediction(shown) == [f"Hi → {first['text']} (truth: Hello.)"]


def test_exact_answers_are_counted(chat_run: Path, monkeypatch: pytest.MonkeyPatch):
    model = api.load(chat_run, "cpu")
    truths = [c.messages[c.answers[-1]]["content"] for c in chat.load_conversations(model.config).split("val")]

    def answer(*_: Any) -> Any:
        yield [type("Answer", (), {"text": f" {text if i else 'no'}"}) for i, text in enumerate(truths)]

    monkeypatch.setattr(chat, "generate_text", answer)
    metrics = model.score()
    assert metrics == {"exact": pytest.approx(1 - 1 / len(truths)), "conversations": len(truths)}


def test_the_examples_are_first_questions():
    shown = chat.examples(build()[1])
    questions = [c.messages[0]["content"] for c in chat.load_conversations(build()[1]).split("val")]
    assert shown.request["input"] and set(shown.request["input"]) <= set(questions)
    assert len(shown.truths) == len(shown.request["input"])


# --- the command line ---


def test_the_mask_is_shown_and_nothing_is_trained(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "a.jsonl"
    rows = [{"prompt": "Hi [there]", "completion": "Hello."}] * 3 + [{"prompt": "Bye", "completion": "Go."}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", data, "--init", base, "--val-fraction", 0.5, "--show-mask")
    lines = call("train", "chat", *flags).ok().out.splitlines()
    shown = {
        "<|user|>Hi [there]<|end|><|assistant|>⟦Hello.<|end|>⟧": "(7 of 20 tokens are trained)",
        "<|user|>Bye<|end|><|assistant|>⟦Go.<|end|>⟧": "(4 of 10 tokens are trained)",
    }
    assert shown[lines[0]] == lines[1] and not (tmp_path / "runs").exists()
    everything = call("train", "chat", *flags, "--loss-on", "all").ok().out
    assert everything.startswith("⟦<|user|>")
    assert_refused(call("train", "language", "--data", data, "--show-mask"), "--show-mask is for the recipes chat")


def test_in_a_terminal_the_mask_is_in_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from anyformer.cli.terminal import print_masked

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    print_masked([[("a", False), ("b", True)]])
    shown = capsys.readouterr().out
    assert "\x1b[30;42mb\x1b[0m" in shown and "⟦" not in shown


def test_conversations_longer_than_the_context(tmp_path: Path):
    data = tmp_path / "a.jsonl"
    rows = [{"prompt": str(i), "completion": "a" * (99 if i == 3 else 5)} for i in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--preset", "tiny", "--model.context", 64, "--data", data, "--steps", 1, "--device", "cpu")
    out = ("--out", tmp_path / "run")
    refused = call("train", "chat", *flags, *out)
    line = refused.err.splitlines()[-1]
    assert refused.code == 2 and "1 of 9 conversations are longer than the context of 64 tokens (the first" in line
    assert "line 4): --too-long cut or skip, or a larger --model.context" in line
    call("train", "chat", *flags, *out, "--too-long", "cut").ok()
    _, state = next(chat.batches(anyformer.load(tmp_path / "run", "cpu").config, "train"))
    assert (state["cut"], state["skipped"]) == (1, 0)


def test_without_an_answer_nothing_is_trained(tmp_path: Path):
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    command = ("train", "chat", "--preset", "tiny", "--data", data, "--out", tmp_path / "run")
    refused = call(*command)
    assert_refused(refused, "1 of 1 conversations cannot be used", "line 1: no assistant turn")
    assert not (tmp_path / "run").exists()


# --- beside TRL ---


def test_masks_and_loss_are_those_of_trl(chat_run: Path, tmp_path: Path):
    """Of messages, whose template marks answers for TRL, and of prompt and completion, which it takes as they are."""
    trl = pytest.importorskip("trl", reason="the oracle of this test: pip install trl datasets")
    export_checkpoint(chat_run, "hf", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.pad_token = tokenizer.eos_token
    head, tail = "{{ message['content'] or '' }}", "<|end|>{% endfor %}"
    role = "{% if message['role'] == 'assistant' %}{% generation %}"
    marked = f"{role}{head}<|end|>{{% endgeneration %}}{{% else %}}{head}<|end|>{{% endif %}}{{% endfor %}}"
    middle = tokenizer.chat_template[tokenizer.chat_template.index(head) :].partition(tail)[0] + tail
    template = tokenizer.chat_template.replace(middle, marked)
    assert template.count("generation %}") == 2
    model = api.load(chat_run, "cpu")
    conversations = [c for c in chat.load_conversations(model.config).split("all") if not c.tools][:8]
    pairs = [{"prompt": c.prompt, "completion": c.messages[len(c.prompt) :]} for c in conversations]
    for loss_on, rows, only_answers in (
        ("answers", [{"messages": c.messages} for c in conversations], True),
        ("last", pairs, False),
    ):
        tokenizer.chat_template = template
        trainer = build_trl_trainer(trl, tmp_path, tokenizer, rows, only_answers)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        own = encode_conversations(conversations, model.module.tokenizer, loss_on)
        for row, ids, labels in zip(own, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            assert row.ids.tolist() == ids[: len(row.ids)]
            assert np.where(row.is_trained, row.ids.astype(int), IGNORE_INDEX).tolist() == labels[: len(row.ids)]
            assert set(labels[len(row.ids) :]) <= {IGNORE_INDEX}
        with torch.no_grad():
            loss = chat.loss(model.module, chat.make_batch([own[:3], own[3:]], 500))
            expected = trainer.compute_loss(trainer.model.eval(), batch)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def build_trl_trainer(trl: Any, folder: Path, tokenizer: Any, rows: list[Any], only_answers: bool) -> Any:
    datasets = pytest.importorskip("datasets", reason="the oracle of this test: pip install datasets")
    arguments = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        assistant_only_loss=only_answers,
        max_length=None,
        use_cpu=True,
        report_to="none",
        bf16=False,
        disable_tqdm=True,
    )
    model = open_reference(transformers.AutoModelForCausalLM, folder / "hf")
    data = datasets.Dataset.from_list(rows)
    return trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
