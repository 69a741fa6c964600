"""GPT-2 and Llama: the library's logits and the library's words, there and back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import api
from anyformer.checkpoints import hf_folder as directory
from anyformer.recipe import to_json
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers

GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 96, "vocab_size": 53}
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "vocab_size": 53,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, one layer": ("gpt2", {"n_layer": 1, "n_head": 1}),
    "gpt2, narrow mlp": ("gpt2", {"n_inner": 17, "activation_function": "relu"}),
    "gpt2, exact gelu": ("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama": ("llama", {}),
    "llama, one layer, one key": ("llama", {"num_hidden_layers": 1, "num_key_value_heads": 1}),
    "llama, all keys, tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, biases of attention": ("llama", {"attention_bias": True}),
    "llama, biases of the mlp": ("llama", {"mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama, wide heads": (
        "llama",
        {"head_dim": 10, "rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
}


def library(case: str, seed: int = 0) -> Any:
    family, changes = CASES[case]
    torch.manual_seed(seed)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if family == "gpt2":
        return shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | ends | changes)), seed)
    return shaken(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | ends | changes)), seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case: str, seed: int, tmp_path: Path):
    theirs = library(case, seed)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    ids = torch.randint(53, (3, 41), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        close(ours.module(ids), theirs(ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_greedy_words_are_the_librarys(case: str, tmp_path: Path):
    theirs = library(case, 3)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    prompt = [7, 1, 30]
    want = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, 3:].tolist()
    got = ours.generate(" ".join(map(str, prompt)), tokens=64, temperature=0)["samples"][0]["tokens"]
    assert got == want


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_opens_there_and_comes_back_bit_for_bit(case: str, tmp_path: Path):
    ours = api.load(saved(library(case, 1), tmp_path / "theirs"), "cpu")
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    kind = transformers.GPT2LMHeadModel if case.startswith("gpt2") else transformers.LlamaForCausalLM
    theirs = opened(kind, tmp_path / "ours")
    ids = torch.randint(53, (2, 17))
    with torch.no_grad():
        close(ours.module(ids), theirs(ids).logits)
    same_tensors(ours.module, api.load(tmp_path / "ours", "cpu").module)
