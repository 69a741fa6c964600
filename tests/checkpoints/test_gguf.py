"""GGUF: what the public library reads from it, what llama.cpp says of ours, few bits, damage."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer.checkpoints import gguf as ours_gguf
from anyformer.data.tokenizers import build as tokenizers_of_ours
from anyformer.errors import InputError
from anyformer.loading import bring_in, give_out
from anyformer.recipe import to_json
from checkpoint_kit import close, same_tensors, saved, shaken, transformers
from cli_kit import SHORT, call, refused
from llama_cpp_kit import Served

gguf = pytest.importorskip("gguf", reason="the oracle of these tests: pip install gguf")
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 301}  # its reader knows no other widths and lengths
DRY = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # GGUF says nothing of dropout
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "vocab_size": 301,
    "rms_norm_eps": 1e-6,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied, one layer": ("gpt2", {"tie_word_embeddings": False, "n_layer": 1}),
    "llama": ("llama", {}),
    "llama, tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "llama, rotary base": (
        "llama",
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
}


def library(case: str, seed: int = 0, **more: Any) -> Any:
    family, changes = CASES[case]
    changes = changes | more
    torch.manual_seed(seed)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if family == "gpt2":
        return shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**(GPT2 | DRY | ends | changes))), seed)
    return shaken(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | ends | changes)), seed)


def speaking(folder: Path) -> Path:
    """A byte-level tokenizer of 300 ids beside the weights; the 301st row is the padding's."""
    text = "the cat sat on the mat and the dog sat on the cat, then the rat ran at the bat\n" * 3
    (folder / "tokenizer.json").write_text(tokenizers_of_ours.train_bpe([text], 300).json())
    return folder


def numbers(model: Any, length: int = 37, seed: int = 0) -> torch.Tensor:
    return torch.randint(290, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_bit_for_bit(case: str, tmp_path: Path):
    source = speaking(saved(library(case), tmp_path / "theirs"))
    assert give_out(source, "gguf", tmp_path / "out") == ["model.gguf"]
    before, after = api.load(source, "cpu"), api.load(tmp_path / "out" / "model.gguf", "cpu")
    same_tensors(before.module, after.module)
    one, other = to_json(before.config), to_json(after.config)
    assert {k: v for k, v in one.items() if k != "tokenizer"} == {k: v for k, v in other.items() if k != "tokenizer"}
    text = "the rat, the bat:  \u00e9 12"
    assert before.module.tokenizer.json() == after.module.tokenizer.json()
    assert before.module.tokenizer.encode(text).tolist() == after.module.tokenizer.encode(text).tolist()


@pytest.mark.parametrize("case", [case for case in CASES if "biases" not in case])  # the library leaves those out
def test_the_public_library_reads_ours(case: str, tmp_path: Path):
    """And so it is read by another hand: names, orders of channels, sizes."""
    theirs = library(case, 1)
    give_out(speaking(saved(theirs, tmp_path / "theirs")), "gguf", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf").eval()
    with torch.no_grad():
        close(again(numbers(theirs)).logits, theirs(numbers(theirs)).logits)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = "the cat ran at 12 rats"
    assert (
        words(text, add_special_tokens=False)["input_ids"]
        == api.load(tmp_path / "theirs", "cpu").module.tokenizer.encode(text).tolist()
    )


def quantised(source: Path, target: Path, kind: str) -> None:
    """The same file with its matrices in another kind of numbers, written by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    number = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        plain = np.array(tensor.data)
        small = plain.ndim == 1
        stored = plain if small else gguf.quants.quantize(plain, number)
        writer.add_tensor(tensor.name, stored, raw_dtype=gguf.GGMLQuantizationType.F32 if small else number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("case", ["gpt2, untied, one layer", "llama"])
def test_few_bits_are_what_the_gguf_package_makes_of_them(case: str, kind: str, tmp_path: Path):
    give_out(speaking(saved(library(case, 2), tmp_path / "theirs")), "gguf", tmp_path / "out")
    quantised(tmp_path / "out" / "model.gguf", tmp_path / "small.gguf", kind)
    run = bring_in(tmp_path / "small.gguf", tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf").eval()
    with torch.no_grad():
        close(run.module(numbers(theirs)), theirs(numbers(theirs)).logits)
    again = api.load(tmp_path / "run", "cpu")
    asked = {"tokens": 8, "temperature": 0}
    assert again.generate("the cat", **asked) == run.generate("the cat", **asked)


@pytest.mark.parametrize("shape", [(5, 64), (64,)])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_part_is_a_part_of_the_whole(kind: str, shape: tuple[int, ...], tmp_path: Path):
    number = gguf.GGMLQuantizationType[kind]
    plain = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    stored = gguf.quants.quantize(plain, number)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", stored, raw_dtype=number)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    want = gguf.quants.dequantize(stored, number).reshape(shape)
    file = ours_gguf.File(tmp_path / "x.gguf")
    if len(shape) == 1:
        np.testing.assert_array_equal(file.part("x", slice(3, 40)), want[3:40])
    else:
        np.testing.assert_array_equal(file.part("x", slice(1, 4), slice(7, 39)), want[1:4, 7:39])


# --- llama.cpp itself ---


def greedy(model: Any, ids: list[int], n: int) -> tuple[list[int], list[float]]:
    """The likeliest next ids, one after the other, and their log-probabilities."""
    found, sure = list(ids), []
    for _ in range(n):
        with torch.no_grad():
            log = model(torch.tensor([found]))[0, -1].log_softmax(-1)
        found.append(int(log.argmax()))
        sure.append(float(log.max()))
    return found[len(ids) :], sure


ODD = {"n_positions": 96, "n_inner": 96}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_goes_on_as_we_do(case: str, tmp_path: Path):
    source = saved(library(case, 4, **(ODD if case.startswith("gpt2") else {})), tmp_path / "theirs")
    whole_characters = tokenizers_of_ours.Characters(map(chr, range(0x4E00, 0x4E00 + 300)))  # any of them can be told
    (source / "tokenizer.json").write_text(whole_characters.json())
    give_out(source, "gguf", tmp_path / "out")
    theirs, ours = Served(tmp_path / "out" / "model.gguf"), api.load(source, "cpu").module
    ids = [5, 7, 100, 50, 260]
    (want, sure), (got, heard) = greedy(ours, ids, 12), theirs.goes_on(ids, 12)
    assert got == want
    assert heard == pytest.approx(sure, abs=2e-3)  # it looks GELU up in a table of half precision


@pytest.mark.parametrize("preset", ["nanogpt-cpu", "llama"])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_model_of_ours_speaks_in_llama_cpp(preset: str, tokenizer: str, tmp_path: Path):
    """Its tokenizer, too: a text given there is read as the ids that it has here."""
    text = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 20
    (tmp_path / "text.txt").write_text(text)
    sizes = ("--model.dim", 32, "--model.n-layer", 1, "--model.mlp-dim", 64, "--model.context", 64, "--device", "cpu")
    asked = ("--preset", preset, "--data", tmp_path / "text.txt", "--tokenizer", tokenizer, "--vocab-size", 280)
    activation = ("--model.activation", "gelu_tanh") if preset == "nanogpt-cpu" else ()
    call("train", "language", *asked, *sizes, *activation, *SHORT, "--steps", 40, "--out", tmp_path / "run").well()
    said = call("export", tmp_path / "run", "--to", "gguf", tmp_path / "out", "--json").well()
    assert said.json["files"] == ["model.gguf"]
    theirs, ours = Served(tmp_path / "out" / "model.gguf"), api.load(tmp_path / "run", "cpu").module
    prompt = "not to be: 'tis\nthe  mind"
    ids = ours.tokenizer.prompt(prompt).tolist()
    (want, sure), (got, heard) = greedy(ours, ids, 6), theirs.goes_on(prompt, 6)
    assert got == want
    assert heard == pytest.approx(sure, abs=2e-3)
    again = api.load(tmp_path / "out" / "model.gguf", "cpu").module
    assert again.tokenizer.json() == ours.tokenizer.json()
    assert again.tokenizer.ends == ours.tokenizer.ends


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("recipe", "preset", "parts"),
    [
        ("language", "bloom", ["no public family has this architecture", "position is alibi", "train with --preset"]),
        ("language", "nanogpt-cpu", ["the activation is gelu", "gelu_new"]),
    ],
)
def test_what_gguf_has_no_kind_for_says_so(recipe: str, preset: str, parts: list[str], tmp_path: Path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    sizes = ("--model.dim", 32, "--model.n-layer", 1, "--model.context", 16, "--device", "cpu")
    run = ("--preset", preset, "--data", tmp_path / "text.txt", *sizes, *SHORT, "--out", tmp_path / "run")
    call("train", recipe, *run).well()
    refused(call("export", tmp_path / "run", "--to", "gguf", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("whole")
    give_out(speaking(saved(library("llama"), home / "theirs")), "gguf", home / "out")
    return (home / "out" / "model.gguf").read_bytes()


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-4, 0.01, 0.1, 0.3, 0.9, 0.99999])
def test_a_file_cut_short_is_one_line(share: float, whole: bytes, tmp_path: Path):
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    refused(call("import", tmp_path / "cut.gguf", "--out", tmp_path / "run"), "cut.gguf")
    assert not (tmp_path / "run").exists()


def test_a_file_with_wrong_bytes_never_ends_in_a_traceback(whole: bytes, tmp_path: Path):
    """Any byte of the first 4,000 flipped: it opens, or it is one line."""
    drawn = np.random.default_rng(0)
    said = []
    for _ in range(150):
        bad = bytearray(whole)
        for at in drawn.integers(0, 4000, 3):
            bad[at] ^= 1 << int(drawn.integers(8))
        (tmp_path / "bad.gguf").write_bytes(bad)
        try:
            api.load(tmp_path / "bad.gguf", "cpu")
        except InputError as error:
            said.append(str(error))
    assert len(said) > 20 and not any("\n" in line for line in said)


def replaced(whole: bytes, name: str, code: str, value: Any) -> bytes:
    """The file with another value of a scalar."""
    at = whole.index(name.encode()) + len(name) + 4
    new = struct.pack(f"<{code}", value)
    return whole[:at] + new + whole[at + len(new) :]


@pytest.mark.parametrize(
    ("name", "code", "value", "parts"),
    [
        ("llama.block_count", "I", 3, ["lacks model.layers.2"]),
        ("llama.block_count", "I", 1 << 31, ["num_hidden_layers", "2147483648"]),
        ("llama.embedding_length", "I", 32, ["model.embed_tokens.weight has shape [301, 64]", "[301, 32]"]),
        ("llama.attention.value_length", "I", 8, ["attention.value_length is 8", "16"]),
        ("llama.rope.dimension_count", "I", 8, ["rope.dimension_count is 8", "16"]),
        ("llama.vocab_size", "I", 300, ["vocab_size is 300", "301"]),
        ("llama.attention.head_count", "I", 3, ["n_kv_head 2 does not divide n_head 3"]),
        ("llama.rope.freq_base", "f", float("nan"), ["rope.freq_base is nan"]),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    name: str, code: str, value: Any, parts: list[str], whole: bytes, tmp_path: Path
):
    (tmp_path / "bad.gguf").write_bytes(replaced(whole, name, code, value))
    refused(call("import", tmp_path / "bad.gguf", "--out", tmp_path / "run"), *parts)


def test_a_count_that_lies_takes_no_memory(whole: bytes, tmp_path: Path):
    (tmp_path / "bad.gguf").write_bytes(whole[:8] + struct.pack("<QQ", 1 << 60, 1 << 60) + whole[24:])
    refused(call("import", tmp_path / "bad.gguf", "--out", tmp_path / "run"), "promises", "tensors")


def test_other_values_that_change_the_maths_are_errors(whole: bytes, tmp_path: Path):
    """Scaled angles, experts, and what we never heard of."""
    reader_values = {"llama.rope.scaling.type": "linear", "llama.expert_count": 8, "llama.logit_scale": 2.0}
    for name, value in reader_values.items():
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        sizes = {"block_count": 1, "embedding_length": 64, "attention.head_count": 4, "context_length": 32}
        for key, size in sizes.items():
            writer.add_uint32(f"llama.{key}", size)
        adds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        adds[type(value)](name, value)
        writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        said = call("import", tmp_path / "x.gguf", "--out", tmp_path / "run")
        refused(said, name.removeprefix("llama."), str(value))
