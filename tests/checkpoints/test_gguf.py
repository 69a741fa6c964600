"""GGUF: written files read by transformers and by llama.cpp itself, every quantized type, damaged files."""

import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer
from anyformer.checkpoints import tensor_map
from anyformer.checkpoints.gguf import GGUFTensors
from anyformer.conversion import export_checkpoint, import_checkpoint
from anyformer.data.io import gguf_file as gguf_io
from anyformer.data.io.gguf_file import GGUFFile
from anyformer.data.tokenizers import build as tokenizers
from anyformer.errors import InputError
from anyformer.parsing import to_json
from checkpoint_kit import assert_close, assert_same_tensors, build_reference, save, transformers
from cli_kit import SHORT, assert_refused, call
from llama_cpp_kit import LlamaCpp

QUICK = {
    "test_llama_cpp_reads_a_trained_model_and_its_tokenizer": {"llama-char"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


gguf = pytest.importorskip("gguf", reason="the oracle of these tests: pip install gguf")
# llama.cpp has a half-precision table of GELU, which the random Gemma 3 of version 4 of transformers notices more.
ROUNDING = 2e-3 if transformers.__version__ >= "5" else 6e-3
# transformers' reader sets GPT-2's MLP width and context itself, and reads no dropout.
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 24}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTARY = {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
CASES: dict[str, dict[str, Any]] = {
    "GPT2": GPT2,
    "GPT2, untied, one layer": GPT2 | {"tie_word_embeddings": False, "n_layer": 1},
    "Llama": LLAMA,
    "Llama, tied, biases": LLAMA | {"tie_word_embeddings": True, "attention_bias": True},
    "Llama, wide heads, another base": LLAMA | {"head_dim": 32, "num_key_value_heads": 1, **ROTARY},
    "Qwen3": LLAMA | {"head_dim": 128},  # transformers' reader assumes it
    "Qwen2": LLAMA,
    "Llama, linear scaling": LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "Llama, yarn": LLAMA | {"rope_parameters": YARN},
    "Llama, llama3 scaling": LLAMA | {"rope_parameters": LLAMA3},
}
GEMMA = LLAMA | {"head_dim": 32, "num_hidden_layers": 3, "sliding_window": 6, "query_pre_attn_scalar": 32}
CASES |= {
    "Olmo2": LLAMA | {"rms_norm_eps": 1e-5},
    "Olmo2, tied": LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "Phi3": LLAMA | {"sliding_window": None},
    "SmolLM3": LLAMA | {"num_hidden_layers": 5, "tie_word_embeddings": False},
    "Gemma2": GEMMA,
    "Gemma3": GEMMA | {"num_hidden_layers": 7},
}
if transformers.__version__ < "5":  # whose configs do not have `rope_parameters`
    CASES = {case: CASES[case] for case in CASES if "factor" not in str(CASES[case])}
READABLE = [
    c for c in CASES if c.startswith(("GPT2", "Llama", "Qwen")) and not c.endswith(("biases", "scaling", "yarn"))
]  # by transformers
TEXT = "the cat sat on the mat and the dog sat on the cat, then the rat ran at the bat\n" * 3


def build(case: str, **fields: Any) -> Any:
    family = case.split(",")[0]
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": 301}
    kind = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, kind)(**CASES[case] | ends | fields)
    return build_reference("GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM", config)


def add_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer of 300 ids; the 301st row of the embedding is padding."""
    (folder / "tokenizer.json").write_text(tokenizers.train_bpe([TEXT], 300).to_json())
    return folder


def random_ids() -> torch.Tensor:
    return torch.randint(290, (2, 37), generator=torch.Generator().manual_seed(0))


class GGUFExport:
    """A model of transformers with a tokenizer, and its GGUF file written by anyformer."""

    def __init__(self, case: str, folder: Path):
        self.reference, self.folder = build(case), folder / "gguf"
        self.source, self.path = add_tokenizer(save(self.reference, folder / "hf")), self.folder / "model.gguf"
        assert export_checkpoint(self.source, "gguf", self.folder) == ["model.gguf"]
        self.model = anyformer.load(self.source, "cpu")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that exports a case once."""
    written: dict[str, GGUFExport] = {}

    def get(case: str) -> GGUFExport:
        if case not in written:
            written[case] = GGUFExport(case, tmp_path_factory.mktemp("export"))
        return written[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_a_written_file_is_read_back_bit_for_bit(case: str, exports: Any):
    before, after = exports(case).model, anyformer.load(exports(case).path, "cpu")
    if case.startswith("Gemma"):  # whose norms are stored as 1 + weight: the last digit may be lost
        for name, tensor in before.module.state_dict().items():
            atol = 1.2e-7 if "norm" in name else 0
            torch.testing.assert_close(after.module.state_dict()[name], tensor, rtol=0, atol=atol)
    else:
        assert_same_tensors(before.module, after.module)
    named = {"tokenizer": "", **({"family": ""} if case.startswith("Gemma3") else {})}  # gemma3_text elsewhere
    assert to_json(before.config) | named == to_json(after.config) | named
    tokenizer, again = before.module.tokenizer, after.module.tokenizer
    assert tokenizer.to_json() == again.to_json()
    text = "the rat, the bat:  \u00e9 12"
    assert tokenizer.encode(text).tolist() == again.encode(text).tolist()


def test_the_folder_of_an_export_is_imported(exports: Any, tmp_path: Path):
    export = exports(next(iter(CASES)))
    import_checkpoint(export.folder, tmp_path / "run")
    import_checkpoint(export.path, tmp_path / "other")
    stored = [(tmp_path / name / "checkpoints/step-0/model.safetensors").read_bytes() for name in ("run", "other")]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("case", [case for case in CASES if case in READABLE])
def test_transformers_reads_a_written_file(case: str, exports: Any):
    """An independent reader checks names, the order of rotary channels and sizes."""
    export = exports(case)
    again = transformers.AutoModelForCausalLM.from_pretrained(export.folder, gguf_file="model.gguf").eval()
    with torch.no_grad():
        assert_close(again(random_ids()).logits, export.reference(random_ids()).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export.folder, gguf_file="model.gguf")
    ids = tokenizer("the cat ran at 12 rats", add_special_tokens=False)["input_ids"]
    assert ids == export.model.module.tokenizer.encode("the cat ran at 12 rats").tolist()


# --- quantized types ---


def quantize_file(source: Path, target: Path, kind: str) -> None:
    """Copy a file with its matrices in another type, written by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    number, float32 = gguf.GGMLQuantizationType[kind], gguf.GGMLQuantizationType.F32
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        stored = values if values.ndim == 1 else gguf.quants.quantize(values, number)
        writer.add_tensor(tensor.name, stored, raw_dtype=float32 if values.ndim == 1 else number)
    finish(writer)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("case", ["GPT2, untied, one layer", "Llama"])
def test_a_quantized_model_has_the_logits_of_transformers(case: str, kind: str, exports: Any, tmp_path: Path):
    quantize_file(exports(case).path, tmp_path / "small.gguf", kind)
    run = import_checkpoint(tmp_path / "small.gguf", tmp_path / "run")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf").eval()
    with torch.no_grad():
        assert_close(run.module(random_ids()), reference(random_ids()).logits)
    assert anyformer.load(tmp_path / "run", "cpu").module.tokenizer.to_json() == run.module.tokenizer.to_json()


def list_readable_types() -> list[str]:
    """List the types that the gguf package can dequantize."""
    names = []
    for kind, (_, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, n_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        names.append(kind.name)
    return names


def write_tensor(path: Path, kind: str, blocks: np.ndarray) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes are infinite scales, too
@pytest.mark.parametrize("kind", list_readable_types())
def test_parts_of_a_tensor_are_decoded_as_the_gguf_package_does(kind: str, tmp_path: Path):
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    n_blocks = 3 if block_size > 1 else 90
    stored = np.random.default_rng(0).integers(0, 256, (5, n_blocks * block_bytes), dtype=np.uint8)
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    write_tensor(tmp_path / "matrix.gguf", kind, stored)
    matrix = GGUFFile(tmp_path / "matrix.gguf")
    assert matrix.tensors["x"].shape == (5, n_blocks * block_size)
    np.testing.assert_array_equal(matrix.read("x", slice(0, 5)), expected)
    np.testing.assert_array_equal(matrix.read("x", slice(1, 4), slice(7, 79)), expected[1:4, 7:79])
    write_tensor(tmp_path / "vector.gguf", kind, stored[0])
    np.testing.assert_array_equal(GGUFFile(tmp_path / "vector.gguf").read("x", slice(7, 79)), expected[0, 7:79])


def test_at_least_24_types_are_readable_and_others_are_named(tmp_path: Path):
    assert len(list_readable_types()) >= 24
    write_tensor(tmp_path / "x.gguf", "I32", np.zeros((2, 4), np.int32))
    with pytest.raises(InputError, match="x is stored as ggml type 26, which the package gguf cannot decode"):
        GGUFFile(tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_without_the_gguf_package_floats_are_read_and_blocks_say_what_is_needed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = np.ones((2, 32), np.float32)
    write_tensor(tmp_path / "x.gguf", kind, gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]))
    monkeypatch.setitem(sys.modules, "gguf", None)
    gguf_io.find_storage_type.cache_clear()
    if kind == "F16":
        np.testing.assert_array_equal(GGUFFile(tmp_path / "x.gguf").read("x", slice(0, 2)), values)
    else:
        with pytest.raises(
            InputError, match=r"x is quantized .*needs the package gguf: pip install 'anyformer\[gguf\]'"
        ):
            GGUFFile(tmp_path / "x.gguf")


def test_a_quantized_tensor_is_copied_in_pieces(tmp_path: Path):
    """Decoding takes a few pieces of memory, not the whole tensor in float32."""
    shape = (2048, 4096)
    write_tensor(tmp_path / "x.gguf", "Q4_0", np.zeros((shape[0], shape[1] // 32 * 18), np.uint8))
    source = GGUFTensors(GGUFFile(tmp_path / "x.gguf"), {})
    target = torch.ones(shape)
    source.read_rows("x", 0, 1)  # imports and mappings are not counted
    tracemalloc.start()
    tensor_map.load_weights([tensor_map.map_tensor("x", "x")], {"x": target}, source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not target.any()
    assert peak < target.nbytes / 2, f"{peak:,} bytes for a tensor of {target.nbytes:,}"


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "bf16"])
def test_a_quantized_file_is_that_of_the_gguf_package(kind: str, exports: Any, tmp_path: Path):
    source = exports("Llama").source
    call("export", source, "--to", "gguf", "--quantize", kind, tmp_path / "out").ok()
    quantize_file(exports("Llama").path, tmp_path / "expected.gguf", kind.upper())
    written, expected = (
        gguf.GGUFReader(path) for path in (tmp_path / "out" / "model.gguf", tmp_path / "expected.gguf")
    )
    assert written.fields["general.file_type"].contents() == int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    for tensor, other in zip(written.tensors, expected.tensors, strict=True):
        assert (tensor.name, tensor.tensor_type) == (other.name, other.tensor_type)
        np.testing.assert_array_equal(tensor.data, other.data)
    module = anyformer.load(tmp_path / "out" / "model.gguf", "cpu").module
    with torch.no_grad():
        assert (module(random_ids()) - exports("Llama").model.module(random_ids())).abs().mean() < 0.2
    refused = call("export", source, "--to", "hf", "--quantize", kind, tmp_path / "hf")
    assert_refused(refused, f"quantize is {kind}, which is for gguf, not for hf")


# --- llama.cpp itself ---


def generate_greedily(module: Any, ids: list[int], n: int) -> tuple[list[int], list[float]]:
    """Return the n most likely next ids, one after the other, and their log-probabilities."""
    ids, log_probabilities, n_prompt = list(ids), [], len(ids)
    for _ in range(n):
        with torch.no_grad():
            log_probability, token = module(torch.tensor([ids]))[0, -1].log_softmax(-1).max(0)
        ids.append(int(token))
        log_probabilities.append(float(log_probability))
    return ids[n_prompt:], log_probabilities


def assert_same_generation(path: Path, module: Any, prompt: str | list[int], n: int = 8) -> None:
    ids = module.tokenizer.encode_prompt(prompt).tolist() if isinstance(prompt, str) else prompt
    expected, log_probabilities = generate_greedily(module, ids, n)
    actual, theirs = LlamaCpp(path).generate_greedily(prompt, n)
    assert actual == expected
    assert theirs == pytest.approx(log_probabilities, abs=ROUNDING)


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_generates_the_same(case: str, tmp_path: Path):
    source = save(
        build(case, **({"n_positions": 96, "n_inner": 96} if case.startswith("GPT2") else {})), tmp_path / "hf"
    )
    characters = tokenizers.Characters(map(chr, range(0x4E00, 0x4E00 + 300)))  # llama.cpp returns whole characters only
    (source / "tokenizer.json").write_text(characters.to_json())
    export_checkpoint(source, "gguf", tmp_path / "out")
    assert_same_generation(tmp_path / "out" / "model.gguf", anyformer.load(source, "cpu").module, [5, 7, 100, 50, 260])


@pytest.mark.parametrize(("preset", "tokenizer"), [("nanogpt-cpu", "bpe"), ("llama", "char"), ("llama", "byte")])
def test_llama_cpp_reads_a_trained_model_and_its_tokenizer(preset: str, tokenizer: str, tmp_path: Path):
    text = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 20
    (tmp_path / "text.txt").write_text(text)
    sizes = ("--model.dim", 32, "--model.n-layer", 1, "--model.mlp-dim", 64, "--model.context", 64, "--device", "cpu")
    data = ("--preset", preset, "--data", tmp_path / "text.txt", "--tokenizer", tokenizer, "--vocab-size", 280)
    activation = ("--model.activation", "gelu_tanh") if preset == "nanogpt-cpu" else ()
    call("train", "language", *data, *sizes, *activation, *SHORT, "--steps", 20, "--out", tmp_path / "run").ok()
    answer = call("export", tmp_path / "run", "--to", "gguf", tmp_path / "out", "--json").ok()
    assert answer.json["files"] == ["model.gguf"]
    path, module = tmp_path / "out" / "model.gguf", anyformer.load(tmp_path / "run", "cpu").module
    assert_same_generation(path, module, "not to be: 'tis\nthe  mind", 6)
    again = anyformer.load(path, "cpu").module.tokenizer
    assert (again.to_json(), again.end_ids) == (module.tokenizer.to_json(), module.tokenizer.end_ids)


# --- what cannot be written or read ---


@pytest.mark.parametrize(
    ("preset", "reasons"),
    [
        ("bloom", ["no GGUF architecture can express this model", "gpt2: position is alibi", "--preset gpt2 or llama"]),
        ("nanogpt-cpu", ["gpt2: activation is gelu, not gelu_tanh"]),
    ],
)
def test_a_model_without_an_architecture_is_refused(preset: str, reasons: list[str], tmp_path: Path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    sizes = ("--model.dim", 32, "--model.n-layer", 1, "--model.context", 16, "--device", "cpu")
    data = ("--preset", preset, "--data", tmp_path / "text.txt")
    call("train", "language", *data, *sizes, *SHORT, "--out", tmp_path / "run").ok()
    assert_refused(call("export", tmp_path / "run", "--to", "gguf", tmp_path / "out"), *reasons)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def content(exports: Any) -> bytes:
    return exports("Llama").path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-4, 0.01, 0.3, 0.99999])
def test_a_truncated_file_is_refused_in_one_line(share: float, content: bytes, tmp_path: Path):
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    assert_refused(call("import", tmp_path / "cut.gguf", "--out", tmp_path / "run"), "cut.gguf")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_never_end_in_a_traceback(flips: list[tuple[int, int]], content: bytes, tmp_path: Path):
    damaged = bytearray(content)
    for offset, bit in flips:
        damaged[offset] ^= 1 << bit
    (tmp_path / "bad.gguf").write_bytes(damaged)
    message = ""
    try:
        anyformer.load(tmp_path / "bad.gguf", "cpu")
    except InputError as error:
        message = str(error)
    assert "\n" not in message


def set_scalar(content: bytes, key: str, code: str, value: Any) -> bytes:
    start = content.index(key.encode()) + len(key) + 4
    new = struct.pack(f"<{code}", value)
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    ("key", "code", "value", "parts"),
    [
        ("llama.block_count", "I", 3, ["lacks blk.2"]),
        ("llama.block_count", "I", 1 << 31, ["block_count", "2147483648"]),
        ("llama.embedding_length", "I", 32, ["token_embd.weight has shape [301, 64]", "[301, 32]"]),
        ("llama.attention.value_length", "I", 8, ["attention.value_length is 8", "16"]),
        ("llama.rope.dimension_count", "I", 8, ["rope.dimension_count is 8", "16"]),
        ("llama.vocab_size", "I", 300, ["vocab_size is 300", "301"]),
        ("llama.attention.head_count", "I", 3, ["n_kv_head 2 does not divide n_head 3"]),
        ("llama.rope.freq_base", "f", float("nan"), ["rope.freq_base is nan"]),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    key: str, code: str, value: Any, parts: list[str], content: bytes, tmp_path: Path
):
    (tmp_path / "bad.gguf").write_bytes(set_scalar(content, key, code, value))
    assert_refused(call("import", tmp_path / "bad.gguf", "--out", tmp_path / "run"), *parts)


def test_false_counts_allocate_no_memory(content: bytes, tmp_path: Path):
    """Numbers of tensors, of metadata values, of array items and of bytes in a string, far beyond the file's size."""
    header = content[:8]
    array = struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 40)
    string = struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, 1 << 40)
    damaged = {
        "at most": header + struct.pack("<QQ", 1 << 60, 0) + content[24:],
        "metadata values": header + struct.pack("<QQ", 0, 1 << 60) + content[24:],
        "items of a": header + array,
        "a should have 1,099,511,627,776 bytes": header + string,
    }
    for message, bad in damaged.items():
        (tmp_path / "bad.gguf").write_bytes(bad)
        tracemalloc.start()
        with pytest.raises(InputError, match=message):
            GGUFFile(tmp_path / "bad.gguf")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.rope.scaling.type", "longrope"), ("llama.expert_count", 8), ("llama.logit_scale", 2.0)],
)
def test_values_that_change_the_result_are_refused(key: str, value: Any, tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    sizes = {"block_count": 1, "embedding_length": 64, "attention.head_count": 4, "feed_forward_length": 64}
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
    add(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    finish(writer)
    with pytest.raises(InputError, match=rf"{key.removeprefix('llama.')} .*{value}"):
        anyformer.load(tmp_path / "x.gguf", "cpu")


@pytest.mark.parametrize("value", ["bloom", ["gpt2"]])
def test_another_architecture_is_refused(value: Any, tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gpt2")
    writer.kv_data[0].pop("general.architecture")
    (writer.add_string if isinstance(value, str) else writer.add_array)("general.architecture", value)
    finish(writer)
    with pytest.raises(InputError, match=r"architecture .* is not supported; .*valid: gpt2, llama, qwen3, qwen2"):
        anyformer.load(tmp_path / "x.gguf", "cpu")
