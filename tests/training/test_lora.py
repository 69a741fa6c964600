"""LoRA: adapters start without effect, are trained and saved alone, and merge into the weights they adapt."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer import api
from anyformer.conversion import export_checkpoint
from anyformer.training import checkpoints, lora
from anyformer.training.checksums import write_checksums
from anyformer.training.config import LoRAConfig
from checkpoint_kit import assert_close, build_reference, open_reference, save, transformers
from cli_kit import assert_refused, call

QUICK = {
    "test_resumed_equals_uninterrupted": {"muon"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

TRAIN = {"steps": 6, "batch": 4, "eval_every": 3, "eval_batches": 2, "save_every": 3, "device": "cpu"}
TRAIN |= {"dtype": "float32", "final_every": 1000}
TUNE = TRAIN | {"lr": 1e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run in the shape of Llama."""
    out = tmp_path_factory.mktemp("base") / "run"
    text = out.with_name("text.txt")
    text.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    shape = {"dim": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "mlp_dim": 48, "context": 32}
    api.train("language", "llama", out=out, data=str(text), model=shape, train=TRAIN, tokenizer="byte")
    return out


@pytest.fixture(scope="module")
def adapter_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    api.train("language", out=out, init=base, lora={"rank": 3}, train=TUNE)
    return out


def find_weights(run: Path) -> Path:
    return api.load(run, "cpu").path / "model.safetensors"


def test_only_adapters_are_saved_and_the_base_is_unchanged(base: Path, adapter_run: Path):
    saved = load_file(find_weights(adapter_run))
    assert saved and all(".lora_" in name for name in saved)
    assert {tuple(t.shape) for name, t in saved.items() if name.endswith("attn.key.lora_B")} == {(16, 3)}
    assert any(t.any() for name, t in saved.items() if name.endswith("lora_B"))
    unmerged, expected = api.load(adapter_run, "cpu", merged=False).module, api.load(base, "cpu").module.state_dict()
    frozen = {name.replace(".base.", "."): t for name, t in unmerged.state_dict().items() if ".lora_" not in name}
    assert frozen.keys() == expected.keys() and all(torch.equal(frozen[name], expected[name]) for name in frozen)


def test_merged_equals_unmerged(adapter_run: Path):
    unmerged, merged = api.load(adapter_run, "cpu", merged=False).module, api.load(adapter_run, "cpu").module
    assert not any(isinstance(module, lora.LoRALinear) for module in merged.modules())
    ids = torch.randint(257, (2, 20))
    with torch.no_grad():
        assert_close(merged(ids), unmerged(ids))


def test_new_adapters_have_no_effect(base: Path):
    ids = torch.randint(257, (2, 20))
    for where, layers in (("all", 7), ("attention", 4)):
        model = api.load(base, "cpu").module
        with torch.no_grad():
            expected = model(ids)
            assert torch.equal(lora.add_lora(model, LoRAConfig(rank=2, where=where))(ids), expected)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert len(trainable) == 2 * layers * 2 and all(".lora_" in name for name in trainable)
        assert where == "all" or not any(".mlp." in name for name in trainable)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted(base: Path, tmp_path: Path, optimizer: str):
    settings = TUNE | {"warmup": 50, "optimizer": optimizer}
    start = {"init": base, "lora": {"rank": 3}}
    api.train("language", out=tmp_path / "resumed", train=settings | {"steps": 3}, **start)
    api.train("language", out=tmp_path / "resumed", resume=True, steps=6)
    api.train("language", out=tmp_path / "uninterrupted", train=settings, **start)
    resumed, expected = (load_file(find_weights(tmp_path / name)) for name in ("resumed", "uninterrupted"))
    assert resumed.keys() == expected.keys() and all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("settings", [{}, {"rank": 3}], ids=["all weights", "adapters"])
def test_the_base_is_read_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict):
    folders: list[Path] = []
    load_weights = checkpoints.load_weights
    monkeypatch.setattr(
        checkpoints, "load_weights", lambda folder, model: folders.append(folder) or load_weights(folder, model)
    )
    api.train("language", out=tmp_path / "run", init=base, lora=settings, train=TUNE | {"steps": 1})
    assert [folder.is_relative_to(base) for folder in folders].count(True) == 1


def test_another_base_is_refused(base: Path, adapter_run: Path, tmp_path: Path):
    sha256 = json.loads((adapter_run / "config.json").read_text())["init"]["sha256"]
    copy = tmp_path / "copy"
    for path in adapter_run.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(adapter_run)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(adapter_run)).write_bytes(path.read_bytes().replace(sha256.encode(), b"0" * 64))
    for folder in (copy / "checkpoints").iterdir():
        write_checksums(folder)
    assert_refused(call("sample", copy), "has changed since adapters were trained")
    assert_refused(call("train", "language", "--out", copy, "--resume"), "has changed since adapters were trained")


def test_adapters_need_a_base(tmp_path: Path):
    assert_refused(call("train", "language", "--lora.rank", "4", "--out", tmp_path / "run"), "--init RUN")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_opens_exported_adapters(family: str, text: Path, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="the oracle of this test: pip install peft")
    ends = {"bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "vocab_size": 257}
        reference = build_reference("GPT2LMHeadModel", transformers.GPT2Config(**sizes | ends))
    else:
        sizes = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=257, **sizes | ends)
        reference = build_reference("LlamaForCausalLM", config)
    folder, run, kind = save(reference, tmp_path / "base"), tmp_path / "run", type(reference)
    settings = {"data": str(text), "tokenizer": "byte", "model": {"context": 32}, "train": TUNE}
    api.train("language", out=run, init=folder, lora={"rank": 3}, **settings)
    assert export_checkpoint(run, "peft", tmp_path / "peft") == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = peft.PeftModel.from_pretrained(open_reference(kind, folder), tmp_path / "peft").eval()
    ids = torch.randint(257, (2, 20))
    with torch.no_grad():
        ours = api.load(run, "cpu").module(ids)
        assert_close(ours, theirs(ids).logits)
        assert (ours - open_reference(kind, folder)(ids).logits).abs().max() > 1e-3
        export_checkpoint(run, "hf", tmp_path / "hf")
        assert_close(ours, open_reference(kind, tmp_path / "hf")(ids).logits)
