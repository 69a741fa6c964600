"""Public checkpoints that are broken, lie or are not what they should be: one line each, and nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_kit import saved, shaken, transformers
from cli_kit import Said, call, refused

SIZES = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "vocab_size": 53}
LLAMA = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 53}
ENDS = {"bos_token_id": None, "eos_token_id": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("made")
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | ENDS))
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | ENDS))
    return {"gpt2": saved(shaken(gpt2, 0), home / "gpt2"), "llama": saved(shaken(llama, 0), home / "llama")}


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["gpt2"], tmp_path / "copy"))


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    kept = {name: value for name, value in (json.loads(path.read_text()) | values).items() if value is not ...}
    path.write_text(json.dumps(kept))


def brought(folder: Path) -> Said:
    """Try to import; whatever happens, a failure leaves nothing."""
    out = folder.with_name("run")
    said = call("import", folder, "--out", out)
    assert (said.code == 0) == out.exists()
    return said


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_embd": 48}, ["wte.weight has shape [53, 24]", "[53, 48]"]),
        ({"n_embd": 3 << 20}, ["has shape", "[53, 3145728]"]),
        ({"vocab_size": 10**9}, ["vocab_size is 1000000000", "no tensor is longer than 96"]),
        ({"n_layer": 10**9}, ["n_layer is 1000000000"]),
        ({"n_layer": 3}, ["lacks transformer.h.2", "expected with shape"]),
        ({"n_layer": 1}, ["transformer.h.1", "more) with shape", "says nothing of"]),
        ({"n_layer": 0}, ["n_layer is 0", "whole number from 1"]),
        ({"n_head": 5}, ["n_head 5 does not divide dim 24"]),
        ({"n_head": "3"}, ["n_head is '3'"]),
        ({"n_embd": 1e9}, ["n_embd is 1000000000.0"]),
        ({"layer_norm_epsilon": "tiny"}, ["layer_norm_epsilon is 'tiny'"]),
        ({"activation_function": "mish"}, ["activation_function is 'mish'", "gelu_new"]),
        ({"activation_function": ["relu"]}, ["activation_function is ['relu']"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True", "False"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights is False", "True"]),
        ({"add_cross_attention": True}, ["add_cross_attention is True"]),
        ({"logit_softcap": 30.0}, ["does not know logit_softcap = 30.0"]),
        ({"quantization_config": {"bits": 4}}, ["does not know quantization_config"]),
        ({"model_type": "gpt3"}, ["model_type is 'gpt3'", "gpt2"]),
        ({"model_type": 7}, ["model_type is 7"]),
        ({"model_type": "../gpt2"}, ["model_type is '../gpt2'"]),
    ],
)
def test_a_config_that_lies_or_asks_for_other_maths(values: dict, parts: list[str], copy: Path):
    edit(copy, **values)
    refused(brought(copy), str(copy), *parts)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["rope_type is 'llama3'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["type is 'linear'"]),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            ["rope_theta is 500000", "which one is meant"],
        ),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'"]),
        ({"pretraining_tp": 2}, ["pretraining_tp is 2"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ({"num_key_value_heads": 3}, ["n_kv_head 3 does not divide n_head 4"]),
        ({"sliding_window": 16}, ["does not know sliding_window = 16"]),
        ({"head_dim": 7}, ["even"]),
    ],
)
def test_a_llama_that_asks_for_other_maths(values: dict, parts: list[str], made: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(made["llama"], tmp_path / "copy"))
    edit(folder, **values)
    refused(brought(folder), *parts)


def test_harmless_values_are_let_be(copy: Path):
    edit(
        copy,
        _name_or_path="x",
        transformers_version="9.9",
        gradient_checkpointing=True,
        summary_type="mean",
        use_cache=False,
        initializer_range=0.5,
        temperature=0.3,
        some_new_switch=False,
        other=None,
    )
    assert brought(copy).code == 0


def test_a_pickle_is_not_read_and_the_line_says_how_to_convert_it(copy: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refused(brought(copy), "pytorch_model.bin is a pickle", "save_pretrained")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 2000, -1])
def test_a_file_that_was_cut(keep: int, copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(brought(copy), "model.safetensors", "is not a complete safetensors file")


def test_a_header_that_promises_more_than_there_is(copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(brought(copy), "is not a complete safetensors file")


def test_numbers_of_another_kind(copy: Path):
    path = copy / "model.safetensors"
    save_file({name: t.to(torch.int64) for name, t in load_file(path).items()}, path)
    refused(brought(copy), "holds I64", "F32")


@pytest.mark.parametrize(
    ("index", "parts"),
    [
        ({}, ["has no weight_map"]),
        ({"weight_map": {"wte.weight": "../../etc/passwd"}}, ["names the file '../../etc/passwd'"]),
        ({"weight_map": {"wte.weight": "a.bin"}}, ["names the file 'a.bin'"]),
        ({"weight_map": {"wte.weight": "a.safetensors"}}, ["a.safetensors does not exist"]),
        ({"weight_map": {"nothing": "real.safetensors"}}, ["promises nothing in real.safetensors"]),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(5000)}}, ["5,000 files"]),
        ([1], ["should hold a JSON object"]),
        ("{", ["cannot be read as JSON"]),
    ],
)
def test_an_index_that_lies(index: object, parts: list[str], copy: Path):
    (copy / "model.safetensors").rename(copy / "real.safetensors")
    text = index if isinstance(index, str) else json.dumps(index)
    (copy / "model.safetensors.index.json").write_text(text)
    refused(brought(copy), *parts)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(brought(tmp_path / "empty"), "no config.json with a model_type")
    refused(call("import", tmp_path / "none", "--out", tmp_path / "run"), "there is no checkpoint at")
    refused(call("import", "--out", tmp_path / "run"), "The folder or the file")


def test_weights_that_are_missing_altogether(copy: Path):
    (copy / "model.safetensors").unlink()
    refused(brought(copy), "has no model.safetensors")
