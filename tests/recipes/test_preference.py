"""Preferences: the loss is that of DPO, against a model that is stored, and pairs are read in public layouts."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.conversion import export_checkpoint
from anyformer.data.text.preferences import parse_pair, read_pairs
from anyformer.errors import InputError
from anyformer.recipes import preference
from checkpoint_kit import open_reference, transformers
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA

DATA = str(SMALL_DATA["preference"])
TRAIN = {"steps": 6, "batch": 4, "eval_every": 3, "eval_batches": 2, "save_every": 3, "device": "cpu"}
TRAIN |= {"dtype": "float32", "final_every": 1000, "lr": 1e-2, "warmup": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model in the shape of Llama."""
    out = tmp_path_factory.mktemp("base") / "run"
    shape: dict[str, Any] = {"dim": 32, "n_layer": 2, "n_head": 4, "context": 128, "position": "rotary", "bias": False}
    shape |= {"norm": "rmsnorm", "activation": "swiglu"}
    data = str(SMALL_DATA["chat"])
    settings: dict[str, Any] = {"model": shape, "train": TRAIN, "tokenizer": "byte", "too_long": "skip"}
    api.train("chat", "tiny", out=out, data=data, progress=False, **settings)
    return out


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    api.train("preference", out=out, init=base, data=DATA, train=TRAIN, progress=False)
    return out


def build(**fields: Any) -> tuple[preference.PreferenceModel, preference.Config]:
    torch.manual_seed(0)
    config = dataclasses.replace(preference.PRESETS["tiny"], data=DATA, **fields)
    return preference.build(config), config


def read_val(config: preference.Config) -> list[dict[str, torch.Tensor]]:
    return [batch for batch, _ in preference.batches(config, "val")]


# --- the loss ---


@pytest.mark.parametrize("kind", ["dpo", "dpo_normalized"])
def test_the_loss_is_that_of_the_formula(kind: Any):
    model, config = build(loss=kind, beta=0.3)
    preference.store_reference(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (batch,) = read_val(config)
    rows = preference.load_rows(config).split("val")
    assert model.reference is not None
    total = 0.0
    for number, *pair in rows:
        rewards = []
        for column, tokens in enumerate(pair):
            ids = torch.from_numpy(tokens.ids.astype(int))
            logprobs = model(ids[None, :-1]).log_softmax(-1)[0].gather(1, ids[1:, None])[:, 0]
            own = logprobs[torch.from_numpy(tokens.is_trained[1:])]
            ratio = (own.sum() - model.reference[number, column]).item()
            rewards.append(0.3 * ratio / (len(own) if kind == "dpo_normalized" else 1))
        total += math.log1p(math.exp(-(rewards[0] - rewards[1])))
    assert preference.loss(model, batch).item() == pytest.approx(total / len(rows), rel=1e-4)


def test_before_training_nothing_is_preferred(base: Path):
    """A model is its own reference: all rewards are 0, and the loss is log 2."""
    model, config = build()
    preference.store_reference(model, config)
    metrics = preference.evaluate(model, iter(read_val(config)))
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(metrics["chosen_reward"]) + abs(metrics["rejected_reward"]) < 1e-4
    assert metrics["chosen_logprob"] < 0 and metrics["rejected_logprob"] < 0


@pytest.mark.slow
def test_training_prefers_what_was_chosen(run: Path):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "the first loss is before the first step"
    assert records[-1]["loss"] < 0.6
    assert {"val_accuracy", "val_margin", "val_chosen_reward", "val_rejected_reward"} <= records[-1].keys()
    figures = json.loads((run / "figures.json").read_text())
    assert figures[0]["title"] == "Rewards" and "often both fall" in figures[0]["note"]


def test_only_answers_count():
    _, config = build()
    (batch,) = read_val(config)
    labels = batch["labels"]
    for i, (_, chosen, rejected) in enumerate(preference.load_rows(config).split("val")):
        for j, tokens in enumerate((chosen, rejected)):
            assert (labels[i, j] >= 0).sum() == tokens.is_trained.sum() > 0


# --- the reference ---


def test_the_reference_is_the_model_before(base: Path, run: Path, tmp_path: Path):
    """Stored in the run, and what transformers says of the exported base."""
    export_checkpoint(base, "hf", tmp_path / "hf")
    oracle = open_reference(transformers.AutoModelForCausalLM, tmp_path / "hf").eval()
    model = api.load(run, "cpu")
    reference = model.module.reference
    assert reference is not None
    for number, *pair in preference.load_rows(model.config).split("all"):
        for column, tokens in enumerate(pair):
            ids = torch.from_numpy(tokens.ids.astype(int))
            with torch.no_grad():
                logprobs = oracle(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            expected = logprobs[torch.from_numpy(tokens.is_trained[1:])].sum()
            assert reference[number, column].item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.slow
def test_resumed_is_uninterrupted(base: Path, tmp_path: Path):
    for name, steps in (("full", [6]), ("parts", [3, 6])):
        for part, n in enumerate(steps):
            start: dict[str, Any] = {"resume": True} if part else {"init": base, "data": DATA}
            train = TRAIN | {"steps": n} if not part else {"steps": n}
            train |= {"schedule": "trapezoid", "min_lr": 1.0} if not part else {}
            api.train("preference", out=tmp_path / name, train=train, progress=False, **start)
    full, parts = (
        load_file(tmp_path / name / "checkpoints" / "step-6" / "model.safetensors") for name in ("full", "parts")
    )
    assert full.keys() == parts.keys() and all(torch.equal(full[name], parts[name]) for name in full)


@pytest.mark.slow
def test_adapters_are_compared_with_the_model_below_them(base: Path, tmp_path: Path):
    out = tmp_path / "run"
    api.train("preference", out=out, init=base, data=DATA, lora={"rank": 2}, train=TRAIN, progress=False)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and records[-1]["loss"] < records[0]["loss"]


@pytest.mark.slow
def test_processes_that_share_a_model_begin_with_the_same_reference(tmp_path: Path):
    """It is computed before the model is cut into shards."""
    flags = ("--preset", "tiny", "--data", DATA, "--steps", 1, "--train.accumulate", 2, "--dtype", "float32")
    flags += ("--train.batch", 2, "--train.final-every", 100, "--device", "cpu")
    call("train", "preference", *flags, "--out", tmp_path / "single").ok()
    command = ["train", "preference", *map(str, flags), "--processes", "2", "--train.shard", "2"]
    command += ["--out", str(tmp_path / "shared")]
    subprocess.run([sys.executable, "-m", "anyformer", *command], check=True, capture_output=True)
    single, shared = (
        json.loads((tmp_path / name / "checkpoints" / "step-1" / "reference.json").read_text())
        for name in ("single", "shared")
    )
    assert single["data"] == shared["data"]
    torch.testing.assert_close(torch.tensor(shared["logprobs"]), torch.tensor(single["logprobs"]), atol=1e-4, rtol=1e-5)


def test_other_pairs_have_no_reference(run: Path, tmp_path: Path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Hi", "chosen": "abc", "rejected": "xyz"}) + "\n")
    other.write_text(other.read_text() + json.dumps({"prompt": "Ho", "chosen": "abc", "rejected": "xyz"}) + "\n")
    metrics = api.load(run, "cpu").evaluate(str(other))
    assert metrics["chosen_reward"] == pytest.approx(0.1 * metrics["chosen_logprob"], rel=1e-5)


@pytest.mark.parametrize("content", ["{}", '{"data": "x", "logprobs": [[1, 2, 3]]}', '{"data": 1, "logprobs": []}'])
def test_a_damaged_reference_is_refused(content: str, tmp_path: Path):
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(InputError, match="is no reference of preferences"):
        build(reference=str(tmp_path / "reference.json"))


# --- pairs ---


def test_layouts():
    text = parse_pair({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "x")
    assert [m["role"] for m in text.chosen.messages] == ["user", "assistant"]
    messages = [{"role": "user", "content": "Hi"}]
    answers = [[{"role": "assistant", "content": name}] for name in "ab"]
    lists = parse_pair({"prompt": messages, "chosen": answers[0], "rejected": answers[1]}, "x")
    both = parse_pair({"chosen": messages + answers[0], "rejected": messages + answers[1]}, "x")
    also = parse_pair({"prompt": "Hi", "chosen": messages + answers[0], "rejected": messages + answers[1]}, "x")
    table = parse_pair({"prompt": "Hi", "chosen": json.dumps(answers[0]), "rejected": json.dumps(answers[1])}, "x")
    assert text == lists == both == also == table


BAD = {
    "same": ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    "empty": ({"prompt": "Hi", "chosen": " ", "rejected": "a"}, "chosen is empty"),
    "no list": ({"prompt": "Hi", "chosen": "a", "rejected": []}, "rejected is empty"),
    "prompts": (
        {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
         "rejected": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        "answer different messages",
    ),
    "field": ({"prompt": "Hi", "chosen": "a"}, "has 'prompt', 'chosen': expected prompt, chosen and rejected"),
    "number": ({"prompt": "Hi", "chosen": 3, "rejected": "a"}, "the content is 3; expected a text"),
    "role": (
        {"prompt": "Hi", "chosen": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
         "rejected": "a"},
        "chosen does not end with an answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_pairs_are_named(name: str, tmp_path: Path):
    row, message = BAD[name]
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"line 1") as error:
        read_pairs(str(tmp_path / "p.jsonl"), 0.1, "error")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "a", "rejected": "a"}) + "\n")
    command = ("train", "preference", "--preset", "tiny", "--data", tmp_path / "p.jsonl", "--out", tmp_path / "run")
    assert_refused(
        call(*command), "1 of 1 pairs cannot be used", "the same): mend them, or leave them out: --empty skip"
    )
    shown = call("train", "preference", "--preset", "tiny", "--data", DATA, "--show-mask").ok()
    assert "Spell" in shown.out + shown.err


def test_pairs_of_one_prompt_are_divided(tmp_path: Path):
    rows = [{"prompt": "Write!", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {name: len(part) for name, part in read_pairs(str(tmp_path / "p.jsonl"), 0.1, "few").splits.items()} == {
        "train": 18,
        "val": 2,
    }


def test_no_prompt_is_in_both_splits():
    pairs = read_pairs(DATA, 0.3, "few")
    prompts = [{json.dumps(pair.chosen.prompt) for pair in pairs.split(name)} for name in ("train", "val")]
    assert not prompts[0] & prompts[1] and all(prompts)


# --- beside TRL ---


def test_loss_and_gradients_are_those_of_trl(base: Path, tmp_path: Path):
    trl = pytest.importorskip("trl", reason="the oracle of this test: pip install trl datasets")
    datasets = pytest.importorskip("datasets", reason="the oracle of this test: pip install datasets")
    export_checkpoint(base, "hf", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.pad_token = tokenizer.eos_token
    source = api.load(base, "cpu")
    _, config = build(model=source.config.model, tokenizer=str(source.path / "tokenizer.json"))
    model = preference.build(config)
    model.load_state_dict(source.module.state_dict())
    preference.store_reference(model, config)
    pairs = preference.load_pairs(config).split("val")
    rows = [
        {"prompt": p.chosen.prompt, "chosen": p.chosen.messages[-1:], "rejected": p.rejected.messages[-1:]}
        for p in pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.1, max_length=None, use_cpu=True, report_to="none", bf16=False,
        disable_tqdm=True, per_device_train_batch_size=len(rows),
    )  # fmt: skip
    policy, before = (open_reference(transformers.AutoModelForCausalLM, tmp_path / "hf").eval() for _ in range(2))
    noise = torch.Generator().manual_seed(1)
    for name in ("layers.0.mlp.up_proj.weight", "layers.1.self_attn.v_proj.weight"):
        policy.model.get_parameter(name).data.add_(
            0.1 * torch.randn(policy.model.get_parameter(name).shape, generator=noise)
        )
    with torch.no_grad():
        model.body.blocks[0].mlp.up.weight.copy_(policy.model.layers[0].mlp.up_proj.weight)
        model.body.blocks[1].attn.value.weight.copy_(policy.model.layers[1].self_attn.v_proj.weight)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.DPOTrainer(
        model=policy, ref_model=before, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    expected = trainer.compute_loss(trainer.model.eval(), batch)
    expected.backward()
    (own,) = read_val(config)
    loss = preference.loss(model.eval(), own)
    loss.backward()
    assert abs(loss.item() - math.log(2)) > 1e-3, "the models differ"
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    grads = model.body.blocks[1].mlp.down.weight.grad, policy.model.layers[1].mlp.down_proj.weight.grad
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-3)
