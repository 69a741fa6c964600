"""GRPO: the loss is that of the paper and of TRL, answers are the model's own, and what goes wrong is one line."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.conversion import export_checkpoint
from anyformer.data.text.prompts import parse_prompt
from anyformer.errors import InputError
from anyformer.recipes import grpo
from anyformer.rewards import FUNCTIONS
from checkpoint_kit import open_reference, transformers
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA, refuses

DATA = str(SMALL_DATA["grpo"])
TRAIN: dict[str, Any] = {"steps": 4, "batch": 4, "eval_every": 2, "eval_batches": 2, "save_every": 2, "device": "cpu"}
TRAIN |= {"dtype": "float32", "final_every": 1000, "lr": 1e-2, "warmup": 0, "schedule": "trapezoid", "min_lr": 1.0}
SETTINGS: dict[str, Any] = {"data": DATA, "reward": "regex:[0-9]", "tokens": 5, "group": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model in the shape of Llama."""
    out = tmp_path_factory.mktemp("base") / "run"
    shape: dict[str, Any] = {"dim": 32, "n_layer": 2, "n_head": 4, "context": 64, "position": "rotary", "bias": False}
    shape |= {"norm": "rmsnorm", "activation": "swiglu"}
    settings: dict[str, Any] = {"model": shape, "train": TRAIN | {"steps": 2}, "tokenizer": "byte"}
    api.train(
        "chat", "tiny", out=out, data=DATA.replace("prompts", "chats"), too_long="cut", progress=False, **settings
    )
    return out


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates, two with the same answers."""
    out = tmp_path_factory.mktemp("run") / "run"
    api.train("grpo", out=out, init=base, updates=2, kl_weight=0.1, train=TRAIN, progress=False, **SETTINGS)
    return out


def build(**fields: Any) -> tuple[grpo.GRPOModel, grpo.Config]:
    torch.manual_seed(0)
    tiny = grpo.PRESETS["tiny"]
    config = dataclasses.replace(tiny, data=DATA, train=dataclasses.replace(tiny.train, dtype="float32"), **fields)
    return grpo.build(config).eval(), config


def change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def read_train(config: grpo.Config) -> dict[str, torch.Tensor]:
    return next(grpo.batches(config, "train"))[0]


def read_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- the loss ---


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo"])
def test_the_loss_is_that_of_the_formula(variant: Any):
    model, config = build(variant=variant, kl_weight=0.3)
    grpo.keep_reference(model, config)
    change(model)
    (batch,), _ = grpo.roll_out(model, [read_train(config)], 0)
    change(model)
    total, n = 0.0, 0
    for prompt in range(len(batch["ids"])):
        rewards = batch["rewards"][prompt].tolist()
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + 1e-4
        for i, reward in enumerate(rewards):
            ids, labels = batch["ids"][prompt, i], batch["labels"][prompt, i]
            new, before = (m(ids[None]).log_softmax(-1)[0] for m in (model, model.reference[0]))
            losses = []
            for t in range(len(labels)):
                if labels[t] >= 0:
                    advantage = (reward - mean) / (1 if variant == "dr_grpo" else deviation)
                    ratio = math.exp(new[t, labels[t]].item() - batch["old_logprobs"][prompt, i, t].item())
                    clipped = min(max(ratio, 0.8), 1.2)
                    distance = (before[t, labels[t]] - new[t, labels[t]]).item()
                    divergence = math.exp(distance) - distance - 1
                    losses.append(-min(ratio * advantage, clipped * advantage) + 0.3 * ratio * divergence)
            total += sum(losses) / (config.tokens if variant == "dr_grpo" else len(losses))
            n += 1
    assert batch["advantages"].abs().max() > 0.1
    assert grpo.loss(model, batch).item() == pytest.approx(total / n, rel=1e-3, abs=1e-5)


def test_a_group_of_equal_rewards_teaches_nothing():
    rewards = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 1.0]])
    advantages = grpo.compare_rewards(rewards, "grpo")
    assert advantages[0].tolist() == [0, 0, 0] and advantages[1].sum().abs() < 1e-6 and advantages[1, 0] < 0
    assert grpo.compare_rewards(rewards, "dr_grpo")[1].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


def test_loss_and_gradients_are_those_of_trl(base: Path, tmp_path: Path):
    trl = pytest.importorskip("trl", reason="the oracle of this test: pip install trl datasets")
    datasets = pytest.importorskip("datasets", reason="the oracle of this test: pip install datasets")
    export_checkpoint(base, "hf", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.pad_token = tokenizer.eos_token
    source = api.load(base, "cpu")
    for variant in ("grpo", "dr_grpo"):
        fields: dict[str, Any] = {"model": source.config.model, "tokenizer": str(source.path / "tokenizer.json")}
        model, config = build(variant=variant, kl_weight=0.2, **fields)
        model.load_state_dict(source.module.state_dict())
        grpo.keep_reference(model, config)
        (batch,), _ = grpo.roll_out(model, [read_train(config)], 0)
        batch["advantages"] = torch.linspace(-1, 2, batch["advantages"].numel()).view(batch["advantages"].shape)
        policy = open_reference(transformers.AutoModelForCausalLM, tmp_path / "hf").eval()
        for name, weight in (
            ("layers.0.mlp.up_proj.weight", model.body.blocks[0].mlp.up.weight),
            ("layers.1.self_attn.v_proj.weight", model.body.blocks[1].attn.value.weight),
        ):
            own = policy.model.get_parameter(name)
            own.data.add_(0.5 * torch.randn(own.shape, generator=torch.Generator().manual_seed(1)))
            weight.data.copy_(own.data)
        arguments = trl.GRPOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.2, loss_type=variant, scale_rewards=variant == "grpo",
            max_completion_length=config.tokens, num_generations=config.group, use_cpu=True, report_to="none",
            bf16=False, disable_tqdm=True, per_device_train_batch_size=config.train.batch * config.group,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model=policy, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
            train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 64), processing_class=tokenizer,
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        expected = trainer._compute_loss(trainer.model.eval(), convert_batch(batch))
        expected.backward()
        loss = grpo.loss(model, batch)
        loss.backward()
        ratio = (grpo.score_tokens(model, batch) - batch["old_logprobs"]).exp()
        assert ((ratio - 1).abs() > 0.2).sum() > 3, "some are clipped"
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
        for own, other in (
            (model.body.blocks[1].mlp.down.weight, policy.model.layers[1].mlp.down_proj.weight),
            (model.body.blocks[0].attn.query.weight, policy.model.layers[0].self_attn.q_proj.weight),
        ):
            torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=1e-3)


def convert_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of TRL's loss: prompts padded on the left, answers on the right."""
    rows: list[dict[str, list[float]]] = []
    flat = {name: batch[name].flatten(0, 1) for name in ("ids", "labels", "old_logprobs", "reference_logprobs")}
    for ids, labels, old, reference in zip(*flat.values()):
        places = (labels >= 0).nonzero()[:, 0].tolist()
        answer = labels[places].tolist()
        prompt = ids[: places[0] + 1].tolist()
        rows.append(
            {"prompt": prompt, "answer": answer, "old": old[places].tolist(), "ref": reference[places].tolist()}
        )

    def pad(name: str, left: bool = False) -> torch.Tensor:
        width = max(len(row[name]) for row in rows)
        return torch.tensor(
            [[0] * (width - len(r[name])) * left + r[name] + [0] * (width - len(r[name])) * (not left) for r in rows]
        )

    masks = [[{"prompt": [1] * len(r["prompt"]), "answer": [1] * len(r["answer"])} for r in rows]][0]
    values = {
        "prompt_ids": pad("prompt", left=True),
        "completion_ids": pad("answer"),
        "old_per_token_logps": pad("old"),
    }
    values |= {"ref_per_token_logps": pad("ref"), "advantages": batch["advantages"].flatten()}
    rows = masks
    return values | {"prompt_mask": pad("prompt", left=True), "completion_mask": pad("answer")}


# --- the answers ---


def test_answers_do_not_depend_on_the_batch_and_know_their_probability():
    model, config = build()
    batch = read_train(config)
    (filled,), figures = grpo.roll_out(model, [batch], 0)
    for i in range(len(batch["ids"])):
        (alone,), _ = grpo.roll_out(model, [{name: value[i : i + 1] for name, value in batch.items()}], 0)
        width = alone["ids"].shape[-1]
        assert torch.equal(alone["labels"][0], filled["labels"][i, :, :width])
    logprobs = grpo.score_tokens(model, filled)
    torch.testing.assert_close(logprobs, filled["old_logprobs"], atol=1e-5, rtol=1e-4)
    assert figures["reward"] == filled["rewards"].mean().item() and 0 < figures["entropy"] < math.log(60)
    assert not torch.equal(filled["labels"][:, 0], filled["labels"][:, 1]), "answers of a group differ"


@pytest.mark.slow
def test_training_prefers_what_is_rewarded(base: Path, tmp_path: Path):
    """An untrained model learns to write digits."""
    train = TRAIN | {"steps": 20, "eval_every": 20, "save_every": 20, "lr": 1e-2}
    api.train("grpo", out=tmp_path / "run", init=base, train=train, updates=1, progress=False, **SETTINGS)
    rewards = [record["reward"] for record in read_records(tmp_path / "run")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2, rewards


def test_records_and_report_say_what_people_ask(run: Path):
    records = read_records(run)
    names = {"reward", "correct", "best_of_group", "equal_groups", "length", "finished", "entropy", "kl"}
    assert names <= records[0].keys() and {f"val_{name}" for name in names} <= records[1].keys()
    assert not names & records[1].keys(), "the second update has the same answers"
    assert abs(records[0]["kl"]) < 1e-6 < records[2]["kl"], "at the start the model is its own reference"
    assert records[1]["val_loss"] == -records[1]["val_reward"]
    (figure,) = json.loads((run / "figures.json").read_text())
    assert figure["title"] == "Rewards" and "reward stalls" in figure["note"] and "length" in figure["note"]
    assert api.load(run, "cpu").score()["prompts"] == 2


def test_resumed_is_uninterrupted(base: Path, run: Path, tmp_path: Path):
    """Also between two updates with the same answers, which the checkpoint then holds."""
    out = tmp_path / "parts"
    steps = TRAIN | {"steps": 3, "save_every": 3}
    api.train("grpo", out=out, init=base, updates=2, kl_weight=0.1, train=steps, progress=False, **SETTINGS)
    assert (out / "checkpoints" / "step-3" / "rollouts.json").is_file()
    assert not (run / "checkpoints" / "step-4" / "rollouts.json").exists()
    api.train("grpo", out=out, resume=True, train={"steps": 4}, progress=False)
    full, parts = (load_file(folder / "checkpoints" / "step-4" / "model.safetensors") for folder in (run, out))
    assert full.keys() == parts.keys() and all(torch.equal(full[name], parts[name]) for name in full)


@pytest.mark.parametrize("content", ["[3]", '[{"ids": [[1]], "labels": [], "old_logprobs": [], "advantages": []}]'])
def test_damaged_answers_are_refused(content: str, tmp_path: Path):
    (tmp_path / "rollouts.json").write_text(content)
    with refuses("rollouts.json holds no answers"):
        build(rollouts=str(tmp_path / "rollouts.json"))


# --- code is not run because a run names it ---


def test_a_reward_of_ones_own(base: Path, tmp_path: Path):
    file = tmp_path / "my.py"
    file.write_text(
        "def score(prompt, completion, row):\n    return len(completion) / 10 + (row['answer'] in prompt)\n"
    )
    flags = ("--init", base, "--data", DATA, "--tokens", 4, "--group", 2, "--steps", 1, "--train.batch", 2)
    flags += ("--train.final-every", 1000, "--out", tmp_path / "run", "--device", "cpu", "--dtype", "float32")
    call("train", "grpo", "--preset", "tiny", *flags, "--reward", f"{file}:score").ok()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored["reward"] == f"{file}:score"
    FUNCTIONS.clear()  # another process
    file.write_text("raise RuntimeError('this code was run')")
    assert_refused(
        call("train", "grpo", "--out", tmp_path / "run", "--resume", "--steps", 2), "is code, which a run only"
    )
    assert_refused(call("eval", tmp_path / "run"), "my.py:score is code, which a run only names: name it again")
    assert call("sample", tmp_path / "run", "--chat", "Hi", "--tokens", 3).ok()


def test_a_reward_that_fails_says_where(base: Path, tmp_path: Path):
    rows = [{"prompt": f"Say {i}", "level": i} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = TRAIN | {"steps": 1}

    def divide(prompt: str, completion: str, row: Any) -> float:
        return 1 / (row["level"] - row["level"])

    for reward, message in (
        (divide, "divide fails for the answer"),
        (lambda prompt, completion, row: math.nan, "returns nan for the answer"),
        (lambda prompt, completion, row: None, "returns None for the answer"),
    ):
        settings: dict[str, Any] = {"data": str(tmp_path / "p.jsonl"), "reward": reward, "train": train, "tokens": 3}
        with refuses("p.jsonl, line ", message):
            api.train("grpo", out=tmp_path / "run", init=base, progress=False, **settings)


# --- prompts ---


def test_layouts():
    text = parse_prompt({"prompt": "Hi", "answer": "a"}, "x")
    user = {"role": "user", "content": "Hi"}
    others = [
        {"question": "Hi", "answer": "a"},
        {"prompt": "Hi", "completion": "a"},
        {"prompt": [user], "answer": "a"},
        {"messages": [user, {"role": "assistant", "content": "a"}]},
        {"messages": [user], "answer": "a"},
    ]
    for row in others:
        prompt = parse_prompt(row, "x")
        assert prompt.messages == text.messages and prompt.row["answer"] == "a"


PROMPTS = [{"prompt": f"Say {i}"} for i in range(9)]
BAD: dict[str, tuple[list[dict[str, Any]], tuple[Any, ...], tuple[str, ...]]] = {
    "nothing": ([], (), ("holds no prompts",)),
    "empty": ([{"prompt": " ", "answer": "a"}], (), ("1 of 1 prompts cannot be used", "line 1: the prompt is empty")),
    "field": ([{"text": "a"}], (), ("line 1: has 'text': expected prompt and maybe answer, or messages",)),
    "answer": (PROMPTS, (), (', line ', ': there is no "answer"', "the reward exact needs")),
    "regex": (PROMPTS, ("--reward", "regex:("), ("regex:( is no regular expression: missing )",)),
    "reward": (PROMPTS, ("--reward", "exakt"), ("there is no reward 'exakt': expected exact, regex:PATTERN",)),
    "file": (PROMPTS, ("--reward", "no.py:f"), ("there is no reward at no.py: expected a Python file",)),
    "run": (PROMPTS, ("--reward", "classifier:no:pos"), ("there is no run at", "/no")),
    "tokens": (PROMPTS, ("--tokens", 64, "--reward", "regex:a"), ("tokens is 64", "context of the model is 64: no")),
    "long": ([{"prompt": c * 60} for c in "abc"], ("--reward", "regex:a"), ("3 of 3 prompts leave no room for 6",)),
    "group": (PROMPTS, ("--group", 1), ("group is 1; it must be at least 2",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_command_says_what_is_wrong(name: str, tmp_path: Path):
    rows, flags, messages = BAD[name]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--reward", "exact", *flags, "--out", tmp_path / "run")
    assert_refused(call("train", "grpo", "--preset", "tiny", "--data", tmp_path / "p.jsonl", *flags), *messages)
    assert not (tmp_path / "run").exists()


def test_processes_that_share_a_model_cannot_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anyformer.training.job import check_processes

    job = api.resolve_job("grpo", "tiny", {"data": DATA, "train": {"shard": 2, "accumulate": 2}}, out=tmp_path / "run")
    with pytest.raises(InputError, match="samples are drawn from whole models"):
        check_processes(job, 2)
