"""Public checkpoints as files: the commands, shards, old names, damaged and false files, pickles."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer
from checkpoint_kit import assert_close, build_reference, edit_config, open_reference, save, transformers
from cli_kit import CommandResult, assert_refused, call

ENDS = {"bos_token_id": None, "eos_token_id": None, "vocab_size": 53}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, **ENDS}
LLAMA = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4, **ENDS}
TEXT = "To be, or not to be:\nthat is the question\n" * 30
FEW = {"steps": 2, "batch": 2, "eval_every": 2, "eval_batches": 1, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = build_reference("GPT2LMHeadModel", transformers.GPT2Config(**GPT2))
    return save(reference, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = build_reference("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA))
    return save(reference, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(gpt2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gpt2, tmp_path / "copy"))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def import_folder(folder: Path) -> CommandResult:
    """Try to import; a failure leaves nothing behind."""
    run = folder.with_name("run")
    result = call("import", folder, "--out", run)
    assert (result.code == 0) == run.exists()
    return result


# --- the commands ---


def test_an_imported_folder_is_a_run(gpt2: Path, tmp_path: Path):
    run, reference = tmp_path / "run", open_reference(transformers.GPT2LMHeadModel, gpt2)
    imported = call("import", gpt2, "--out", run, "--json").ok().json
    assert imported["recipe"] == "language" and imported["fresh"] == [] and imported["run"] == str(run)
    assert imported["parameters"] == sum(p.numel() for p in reference.parameters())
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json"]
    request = ("--prompt", "7 1 30", "--temperature", "0", "--tokens", "12", "--json")
    samples = [call("sample", path, *request).ok().json["samples"][0] for path in (run, gpt2)]
    assert samples[0] == samples[1]
    expected = reference.generate(torch.tensor([[7, 1, 30]]), max_new_tokens=12, do_sample=False)[0, 3:].tolist()
    assert samples[0]["tokens"] == expected
    request = ("7 1 30", "--request", '{"tokens": 12, "temperature": 0}', "--device", "cpu")
    assert json.loads(call("predict", run, *request).ok().out)["tokens"] == expected
    assert_refused(call("import", gpt2, "--out", run), str(run))


def test_an_imported_run_is_evaluated_and_fine_tuned_on_data(gpt2: Path, tmp_path: Path):
    run, text = tmp_path / "run", tmp_path / "numbers.txt"
    text.write_text(" ".join(str(i * 7 % 53) for i in range(4000)))
    call("import", gpt2, "--out", run).ok()
    assert_refused(call("eval", run), "came without data", "--data")
    before = call("eval", run, "--data", text, "--json").ok().json["loss"]
    few = ("--steps", "20", "--train.lr", "1e-2", "--train.eval-every", "10", "--dtype", "float32", "--device", "cpu")
    call("train", "language", "--init", run, "--data", text, "--out", tmp_path / "tuned", *few).ok()
    assert call("eval", tmp_path / "tuned", "--json").ok().json["loss"] < before - 0.5
    tuned = anyformer.load(tmp_path / "tuned", "cpu")
    assert tuned.config.model == anyformer.load(gpt2, "cpu").config.model and tuned.config.tokenizer != "ids"


def test_a_run_is_exported_with_its_tokenizer(gpt2: Path, tmp_path: Path):
    call("import", gpt2, "--out", tmp_path / "run").ok()
    files = call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf", "--json").ok().json["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    ids, reference = torch.randint(53, (2, 9)), open_reference(transformers.GPT2LMHeadModel, tmp_path / "hf")
    with torch.no_grad():
        assert_close(anyformer.load(gpt2, "cpu").module(ids), reference(ids).logits)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("7 1 30").input_ids == [7, 1, 30]
    assert_refused(call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf"), "hf", "not empty")


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_trained_model_opens_in_transformers_with_its_tokenizer(tokenizer: str, tmp_path: Path):
    (tmp_path / "text.txt").write_text(TEXT)
    fields = {"train": FEW, "data": str(tmp_path / "text.txt"), "tokenizer": tokenizer, "vocab_size": 280}
    model = anyformer.train("language", "tiny", out=tmp_path / "run", **fields)
    call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf").ok()
    reference = open_reference(transformers.AutoModelForCausalLM, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = TEXT[:29]
    ids = tokenizer(text).input_ids
    assert ids == model.module.tokenizer.encode(text).tolist() and tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == model.module.tokenizer.end_id
    n = 20 if len(ids) < 12 else 2
    expected = reference.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False)[0, len(ids) :].tolist()
    assert model.generate(text, tokens=len(expected), temperature=0)["samples"][0]["tokens"] == expected


def test_a_model_without_a_family_is_refused_with_a_preset_that_has_one(tmp_path: Path):
    (tmp_path / "text.txt").write_text(TEXT)
    fields = {"data": str(tmp_path / "text.txt"), "model": {"dim": 32, "n_layer": 1, "n_head": 2, "context": 16}}
    anyformer.train("language", "bloom", out=tmp_path / "run", train=FEW, **fields)
    parts = ("gpt2: position is alibi", "llama: ", "qwen3: ", "--preset")
    assert_refused(call("export", tmp_path / "run", "--to", "hf", tmp_path / "hf"), *parts)
    assert not (tmp_path / "hf").exists()
    assert_refused(call("export", tmp_path / "run", "--to", "peft", tmp_path / "peft"), "no adapters")


# --- shards, names and number formats ---


def assert_same_logits(first: Path, second: Path) -> None:
    ids = torch.randint(53, (2, 9))
    with torch.no_grad():
        assert torch.equal(anyformer.load(first, "cpu").module(ids), anyformer.load(second, "cpu").module(ids))


def test_shards_are_one_checkpoint(gpt2: Path, tmp_path: Path):
    reference = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert_same_logits(gpt2, tmp_path / "shards")


def test_old_names_are_read(gpt2: Path, copy: Path):
    def use_old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
        head = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
        return {name.removeprefix("transformer."): value for name, value in tensors.items()} | masks | head

    change_tensors(copy, use_old_names)
    assert_same_logits(gpt2, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_read_as_float32(dtype: torch.dtype, copy: Path):
    change_tensors(copy, lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    weight = anyformer.load(copy, "cpu").module.nodes.token.weight
    expected = load_file(copy / "model.safetensors")["transformer.wte.weight"].float()
    assert weight.dtype == torch.float32 and torch.equal(weight, expected)


# --- configs that do not fit ---


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"n_embd": 48}, ["wte.weight has shape [53, 24]", "[53, 48]"]),
        ({"n_embd": 3 << 18}, ["has shape", "[53, 786432]"]),
        ({"n_embd": 1e9}, ["n_embd is 1000000000.0"]),
        ({"vocab_size": 10**9}, ["vocab_size is 1000000000", "no tensor is longer than 96"]),
        ({"n_layer": 10**9}, ["n_layer is 1000000000"]),
        ({"n_layer": 3}, ["lacks transformer.h.2", "expected with shape"]),
        ({"n_layer": 1}, ["transformer.h.1", "more) with shape", "does not account for"]),
        ({"n_layer": 0}, ["n_layer is 0", "whole number from 1"]),
        ({"n_head": 5}, ["n_head 5 does not divide dim 24"]),
        ({"n_head": "3"}, ["n_head is '3'"]),
        ({"layer_norm_epsilon": "tiny"}, ["layer_norm_epsilon is 'tiny'"]),
        ({"activation_function": "mish"}, ["activation_function is 'mish'", "gelu_new"]),
        ({"activation_function": ["relu"]}, ["activation_function is ['relu']"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True", "False"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights is False", "True"]),
        ({"logit_softcap": 30.0}, ["logit_softcap = 30.0 is unknown"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"model_type": "gpt3"}, ["model_type 'gpt3' is not supported", "did you mean 'gpt2'"]),
        ({"model_type": "gpt_neox"}, ["model_type 'gpt_neox' is not supported; valid: gpt2, llama, qwen3"]),
        ({"model_type": 7}, ["model_type 7 is not supported"]),
        ({"model_type": "../gpt2"}, ["model_type '../gpt2' is not supported"]),
    ],
)
def test_a_gpt2_config_that_does_not_fit_is_refused(fields: dict[str, Any], parts: list[str], copy: Path):
    edit_config(copy, **fields)
    assert_refused(import_folder(copy), str(copy), *parts)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["lacks low_freq_factor"]),
        ({"rope_parameters": 7}, ["rope_parameters is 7; it must be an object"]),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            ["rope_parameters and rope_scaling differ"],
        ),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            ["rope_theta is 500000", "must be equal"],
        ),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'"]),
        ({"pretraining_tp": 2}, ["pretraining_tp is 2"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ({"num_key_value_heads": 3}, ["n_kv_head 3 does not divide n_head 4"]),
        ({"sliding_window": 16}, ["sliding_window = 16 is unknown"]),
        ({"head_dim": 7}, ["even"]),
    ],
)
def test_a_llama_config_that_does_not_fit_is_refused(
    fields: dict[str, Any], parts: list[str], llama: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(llama, tmp_path / "copy"))
    edit_config(folder, **fields)
    assert_refused(import_folder(folder), *parts)


def test_fields_that_change_no_result_are_ignored(copy: Path):
    training = {"gradient_checkpointing": True, "initializer_range": 0.5, "use_cache": False, "temperature": 0.3}
    unset = {"some_new_switch": False, "other": None}
    edit_config(copy, _name_or_path="x", transformers_version="9.9", summary_type="mean", **training, **unset)
    assert import_folder(copy).code == 0


# --- damaged and false files ---


def test_a_pickle_is_not_read_and_the_message_says_how_to_convert_it(copy: Path):
    (copy / "model.safetensors").unlink()
    assert_refused(import_folder(copy), "has no model.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert_refused(import_folder(copy), "pytorch_model.bin is a pickle", "save_pretrained")


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_refused(n_bytes: int, copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert_refused(import_folder(copy), "model.safetensors", "safetensors file")


def test_a_header_that_declares_more_than_the_file_has_is_refused(copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    assert_refused(import_folder(copy), "safetensors file")


def test_integers_are_refused(copy: Path):
    change_tensors(copy, lambda tensors: {name: value.to(torch.int64) for name, value in tensors.items()})
    assert_refused(import_folder(copy), "has dtype I64", "F32")


def test_a_bias_without_an_axis_is_refused(copy: Path):
    change_tensors(copy, lambda tensors: tensors | {"transformer.ln_f.bias": torch.tensor(1.0)})
    assert_refused(import_folder(copy), "transformer.ln_f.bias has shape [1]")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"wte.weight": "../../etc/passwd"}}, "names the file '../../etc/passwd'"),
        ({"weight_map": {"wte.weight": "a.bin"}}, "names the file 'a.bin'"),
        ({"weight_map": {"wte.weight": "a.safetensors"}}, "a.safetensors does not exist"),
        ({"weight_map": {"nothing": "real.safetensors"}}, "lists nothing in real.safetensors"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(5000)}}, "5,000 files"),
        ([1], "should hold a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_false_index_of_shards_is_refused(index: object, message: str, copy: Path):
    (copy / "model.safetensors").rename(copy / "real.safetensors")
    text = index if isinstance(index, str) else json.dumps(index)
    (copy / "model.safetensors.index.json").write_text(text)
    assert_refused(import_folder(copy), message)


def test_paths_that_are_no_checkpoint_are_refused(gpt2: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert_refused(import_folder(tmp_path / "empty"), "no config.json with a model_type")
    assert_refused(call("import", tmp_path / "none", "--out", tmp_path / "run"), "there is no checkpoint at")
    (tmp_path / "report.html").write_text("<!doctype html>")
    expected = "report.html is not a model: expected a run directory, a folder with config.json", "or a GGUF file"
    assert_refused(call("sample", tmp_path / "report.html"), *expected)
    file = gpt2 / "model.safetensors"
    assert_refused(call("sample", file), f"{file} is not a model: name the folder that holds its config.json: {gpt2}")
