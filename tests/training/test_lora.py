"""Adapters: they begin as nothing, learn alone, are saved alone, and fold into the weights they are on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.loading import export_checkpoint
from anyformer.training import lora
from anyformer.training.config import LoRAConfig
from checkpoint_kit import close, opened, saved, shaken, transformers
from cli_kit import call, refused

FEW = {"steps": 6, "batch": 4, "eval_every": 3, "eval_batches": 2, "save_every": 3, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of our own, with llama's shape."""
    out = tmp_path_factory.mktemp("base") / "run"
    shape = {"dim": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "mlp_dim": 48, "context": 32}
    api.train("language", "llama", out=out, model=shape, train=FEW, tokenizer="byte")
    return out


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    api.train("language", out=out, init=base, lora={"rank": 3}, train=FEW | {"lr": 1e-2})
    return out


def weights(run: Path) -> Path:
    return api.load(run, "cpu").path / "model.safetensors"


def test_only_adapters_are_saved_and_the_base_is_untouched(base: Path, tuned: Path):
    found = load_file(weights(tuned))
    assert found and all(".lora_" in name for name in found)
    assert {tuple(t.shape) for name, t in found.items() if name.endswith("attn.key.lora_B")} == {(16, 3)}
    unmerged, before = api.load(tuned, "cpu", merged=False).module, api.load(base, "cpu").module.state_dict()
    own = {name.replace(".base.", "."): t for name, t in unmerged.state_dict().items() if ".lora_" not in name}
    assert own.keys() == before.keys() and all(torch.equal(own[name], before[name]) for name in own)
    assert any(t.any() for name, t in found.items() if name.endswith("lora_B"))


def test_merged_says_the_same(tuned: Path):
    one, other = api.load(tuned, "cpu", merged=False).module, api.load(tuned, "cpu").module
    assert not any(isinstance(module, lora.LoRALinear) for module in other.modules())
    ids = torch.randint(257, (2, 20))
    with torch.no_grad():
        close(other(ids), one(ids))


def test_adapters_begin_as_nothing(base: Path):
    model = api.load(base, "cpu").module
    ids = torch.randint(257, (2, 20))
    with torch.no_grad():
        before = model(ids)
        assert torch.equal(lora.add_lora(model, LoRAConfig(rank=2))(ids), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)
    assert not any(
        ".mlp." in n
        for n, p in lora.add_lora(api.load(base, "cpu").module, LoRAConfig(rank=2, where="attention")).named_parameters()
        if p.requires_grad
    )


def test_a_run_of_adapters_goes_on_as_if_never_stopped(base: Path, tuned: Path, tmp_path: Path):
    half = tmp_path / "half"
    api.train("language", out=half, init=base, lora={"rank": 3}, train=FEW | {"lr": 1e-2, "steps": 3, "warmup": 50})
    api.train("language", out=half, resume=True, train={"steps": 6})
    whole = tmp_path / "whole"
    api.train("language", out=whole, init=base, lora={"rank": 3}, train=FEW | {"lr": 1e-2, "warmup": 50})
    one, other = load_file(weights(half)), load_file(weights(whole))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_another_base_is_refused(base: Path, tuned: Path, tmp_path: Path):
    described = json.loads((tuned / "config.json").read_text())
    moved = tmp_path / "moved"
    for path in tuned.rglob("*"):
        if path.is_file():
            new = moved / path.relative_to(tuned)
            new.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_bytes()
            new.write_bytes(text.replace(described["init"]["sha256"].encode(), b"0" * 64))
    refused(call("sample", moved), "has changed since adapters were trained")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_opens_what_we_export(family: str, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="the oracle of this test: pip install peft")
    ends = {"bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "vocab_size": 257}
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | ends))
    else:
        sizes = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=257, **sizes | ends))
    folder = saved(shaken(made, 0), tmp_path / "base")
    api.train(
        "language",
        out=tmp_path / "run",
        init=folder,
        lora={"rank": 3},
        data="plays",
        tokenizer="byte",
        model={"context": 32},
        train=FEW | {"lr": 1e-2},
    )
    assert export_checkpoint(tmp_path / "run", "peft", tmp_path / "peft") == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = peft.PeftModel.from_pretrained(opened(type(made), folder), tmp_path / "peft").eval()
    ids = torch.randint(257, (2, 20))
    with torch.no_grad():
        ours = api.load(tmp_path / "run", "cpu").module(ids)
        close(ours, theirs(ids).logits)
        assert (ours - opened(type(made), folder)(ids).logits).abs().max() > 1e-3
    export_checkpoint(tmp_path / "run", "hf", tmp_path / "hf")
    with torch.no_grad():
        close(ours, opened(type(made), tmp_path / "hf")(ids).logits)


def test_adapters_without_a_base_are_refused(tmp_path: Path):
    refused(call("train", "language", "--lora.rank", "4", "--out", tmp_path / "run"), "--init RUN")
    assert not (tmp_path / "run").exists()
