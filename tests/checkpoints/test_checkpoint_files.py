"""Public checkpoints as files: shards, old spellings, damage, lies and pickles; what is said and what is left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyformer import api
from checkpoint_kit import close, opened, saved, shaken, transformers
from cli_kit import call, refused

SIZES = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "vocab_size": 53}
ENDS = {"bos_token_id": None, "eos_token_id": None}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | ENDS))
    return saved(shaken(model, 0), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def copy(gpt2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gpt2, tmp_path / "copy"))


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def renamed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


# --- the verbs ---


def test_import_makes_a_run_that_the_other_verbs_take(gpt2: Path, tmp_path: Path):
    run = tmp_path / "run"
    said = call("import", gpt2, "--out", run, "--json").well().json
    assert said["recipe"] == "language" and said["fresh"] == [] and said["run"] == str(run)
    assert said["parameters"] == sum(p.numel() for p in opened(transformers.GPT2LMHeadModel, gpt2).parameters())
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json"]
    asked = ("--prompt", "7 1 30", "--temperature", "0", "--tokens", "12", "--json")
    answers = [call("sample", where, *asked).well().json["samples"][0] for where in (run, gpt2)]
    assert answers[0] == answers[1]
    want = opened(transformers.GPT2LMHeadModel, gpt2).generate(
        torch.tensor([[7, 1, 30]]), max_new_tokens=12, do_sample=False
    )
    assert answers[0]["tokens"] == want[0, 3:].tolist()
    line = call("predict", run, "7 1 30", "--request", '{"tokens": 12, "temperature": 0}', "--device", "cpu").well().out
    assert json.loads(line)["tokens"] == answers[0]["tokens"]


def test_an_imported_run_is_evaluated_and_tuned_on_data(gpt2: Path, tmp_path: Path):
    run, text = tmp_path / "run", tmp_path / "numbers.txt"
    text.write_text(" ".join(str(i * 7 % 53) for i in range(4000)))
    call("import", gpt2, "--out", run).well()
    refused(call("eval", run), "came without data", "--data")
    before = call("eval", run, "--data", text, "--json").well().json["loss"]
    few = ("--steps", "20", "--train.lr", "1e-2", "--train.eval-every", "10", "--dtype", "float32", "--device", "cpu")
    call("train", "language", "--init", run, "--data", text, "--out", tmp_path / "tuned", *few).well()
    assert call("eval", tmp_path / "tuned", "--json").well().json["loss"] < before - 0.5
    tuned = api.load(tmp_path / "tuned", "cpu")
    assert tuned.config.model == api.load(gpt2, "cpu").config.model and tuned.config.tokenizer != "ids"


def test_export_and_import_by_the_command_line(gpt2: Path, tmp_path: Path):
    call("import", gpt2, "--out", tmp_path / "run").well()
    said = call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf", "--json").well().json
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(said["files"])
    ids = torch.randint(53, (2, 9))
    with torch.no_grad():
        close(api.load(gpt2, "cpu").module(ids), opened(transformers.GPT2LMHeadModel, tmp_path / "hf")(ids).logits)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words("7 1 30").input_ids == [7, 1, 30]
    refused(call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf"), "hf", "not empty")
    refused(call("import", gpt2, "--out", tmp_path / "run"), str(tmp_path / "run"))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_what_we_train_opens_in_the_library_with_its_tokenizer(tokenizer: str, tmp_path: Path):
    few = {"steps": 4, "batch": 4, "eval_every": 2, "eval_batches": 2, "device": "cpu", "dtype": "float32"}
    model = api.train("language", "tiny", out=tmp_path / "run", train=few, tokenizer=tokenizer, vocab_size=300)
    call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf").well()
    theirs = opened(transformers.AutoModelForCausalLM, tmp_path / "hf")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "To be, or not to be:\nthat is"
    ids = words(text).input_ids
    assert ids == model.module.tokenizer.encode(text).tolist() and words.decode(ids) == text
    assert words.eos_token_id == model.module.tokenizer.end
    want = theirs.generate(torch.tensor([ids]), max_new_tokens=20 if len(ids) < 12 else 2, do_sample=False)
    got = model.generate(text, tokens=want.shape[1] - len(ids), temperature=0)["samples"][0]["tokens"]
    assert got == want[0, len(ids) :].tolist()


def test_what_no_family_has_is_said_with_the_preset_that_one_has(tmp_path: Path):
    few = {"steps": 2, "batch": 2, "eval_every": 2, "eval_batches": 1, "device": "cpu"}
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "context": 16}
    api.train("language", "small", out=tmp_path / "run", train=few, model=shape)
    refused(call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf"), "gpt2: ", "llama: ", "--preset")
    assert not (tmp_path / "hf").exists()
    refused(call("export", tmp_path / "run", "--to", "peft", tmp_path / "peft"), "no adapters")


# --- shards and spellings ---


def same_logits(gpt2: Path, other: Path) -> None:
    ids = torch.randint(53, (2, 9))
    with torch.no_grad():
        assert torch.equal(api.load(gpt2, "cpu").module(ids), api.load(other, "cpu").module(ids))


def test_shards_are_one_checkpoint(gpt2: Path, tmp_path: Path):
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    same_logits(gpt2, tmp_path / "shards")


def test_old_spellings(gpt2: Path, copy: Path):
    def bare(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
        head = {"lm_head.weight": found["transformer.wte.weight"].clone()}
        return {name.removeprefix("transformer."): t for name, t in found.items()} | masks | head

    renamed(copy, bare)
    same_logits(gpt2, copy)


@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_read_as_float32(number: torch.dtype, copy: Path):
    renamed(copy, lambda found: {name: t.to(number) for name, t in found.items()})
    model = api.load(copy, "cpu").module
    want = load_file(copy / "model.safetensors")["transformer.wte.weight"].float()
    assert model.nodes.token.weight.dtype == torch.float32 and torch.equal(model.nodes.token.weight, want)
