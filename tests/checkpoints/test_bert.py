"""BERT: logits equal those of transformers, in both directions, with its head or without; weights that people use."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import anyformer
from anyformer.data.io.checks import read_json
from anyformer.errors import InputError
from checkpoint_kit import (
    Exchange,
    assert_close,
    assert_same_tensors,
    build_reference,
    edit_config,
    save,
    transformers,
)

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 19,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer, one head, another activation": {
        "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3
    },
    "untied, five token types": {"tie_word_embeddings": False, "type_vocab_size": 5, "vocab_size": 31},
}  # fmt: skip
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.", "Rain"]


def build(case: str, kind: str = "BertForMaskedLM") -> Any:
    model = build_reference(kind, transformers.BertConfig(**SIZES | CASES[case]))
    if kind == "BertForMaskedLM":
        model.tie_weights()
        with torch.no_grad():  # an untied model has two biases and adds the second
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def random_rows(config: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, lengths and token types of rows of unequal length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (4, config.max_position_embeddings), generator=generator)
    types = torch.randint(config.type_vocab_size, ids.shape, generator=generator)
    return ids, torch.tensor([ids.shape[1], 7, 1, 12]), types


def assert_same_logits(module: Any, reference: Any) -> None:
    ids, lengths, types = random_rows(reference.config)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=real.long(), token_type_ids=types).logits
        assert_close(module(ids, lengths, types)[real], expected[real])
        assert_close(module(ids, None, types), reference(input_ids=ids, token_type_ids=types).logits)


def test_logits_equal_those_of_transformers(case: Exchange):
    assert case.model.name == "masked" and case.model.missing_keys == []
    assert_same_logits(case.module, case.reference)


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    reference = case.open_exported()
    assert_same_tensors(reference, case.reference)
    assert_same_logits(case.module, reference)
    case.load_exported()


def rename_tensors(folder: Path, rename: Any, extra: dict[str, torch.Tensor]) -> Path:
    path = folder / "model.safetensors"
    tensors = {rename(name): value for name, value in load_file(path).items()}
    save_file(tensors | extra, path, {"format": "pt"})
    return folder


def test_old_names_are_read_and_unused_tensors_ignored(tmp_path: Path):
    reference = build("plain")
    expected = anyformer.load(save(reference, tmp_path / "new"), "cpu").module
    extra = {
        "bert.embeddings.position_ids": torch.arange(19)[None],
        "bert.pooler.dense.weight": torch.zeros(24, 24),
        "cls.seq_relationship.weight": torch.zeros(2, 24),
        "cls.predictions.decoder.weight": reference.bert.embeddings.word_embeddings.weight.detach().clone(),
    }

    def use_old_names(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = rename_tensors(save(reference, tmp_path / "old"), use_old_names, extra)
    assert_same_tensors(anyformer.load(folder, "cpu").module, expected)
    folder = rename_tensors(folder, lambda name: name.removeprefix("bert."), {})
    assert_same_tensors(anyformer.load(folder, "cpu").module, expected)


def test_a_body_without_a_head_has_the_right_vectors_and_missing_head_keys(tmp_path: Path):
    reference = build("plain", "BertModel")
    model = anyformer.load(save(reference, tmp_path), "cpu")
    names = ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "project.bias")
    assert model.missing_keys == [f"head.{name}" for name in names]
    ids, lengths, types = random_rows(reference.config)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=real.long(), token_type_ids=types).last_hidden_state
        assert_close(model.module.hidden(ids, lengths, types)[real], expected[real])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ({"embedding_size": 12}, "embedding_size = 12"),
    ],
)
def test_a_config_with_another_result_is_refused(fields: dict, message: str, tmp_path: Path):
    edit_config(save(build("plain"), tmp_path), **fields)
    with pytest.raises(InputError, match=message):
        anyformer.load(tmp_path, "cpu")


# --- weights that people use ---


def find_weights(name: str) -> Path:
    home = os.environ.get("ANYFORMER_WEIGHTS")
    folder = Path(home or "") / name
    if not home or not folder.is_dir():
        pytest.skip(f"$ANYFORMER_WEIGHTS/{name} does not exist: make weights")
    return next(path.parent for path in sorted(folder.rglob("config.json")) if "model_type" in read_json(path))


@pytest.mark.slow
def test_similarities_of_minilm_equal_those_of_transformers():
    folder = find_weights("minilm")
    reference = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    tokenizer.backend_tokenizer.no_padding()
    inputs = tokenizer(TEXTS, padding="longest", return_tensors="pt")
    with torch.no_grad():
        nodes = reference(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = F.normalize((nodes * mask).sum(1) / mask.sum(1), dim=-1)
    vectors = torch.tensor(anyformer.load(folder, "cpu").predict(embed=TEXTS)["vectors"])
    assert_close(vectors @ vectors.T, expected @ expected.T)
    assert (vectors @ vectors.T)[0, 1] > 0.7 > 0.3 > (vectors @ vectors.T)[0, 2]


HEAVY_CHAIN = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"


@pytest.mark.slow
def test_antiberty_recovers_masked_residues(tmp_path: Path):
    folder = find_weights("antiberty")
    pickled = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    parts = ("bert.", "cls.predictions.")
    tensors = {name: value.clone().contiguous() for name, value in pickled.items() if name.startswith(parts)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    model, right, masked = anyformer.load(tmp_path, "cpu"), 0, range(2, len(HEAVY_CHAIN), 5)
    for i in masked:
        text = " ".join("[MASK]" if j == i else letter for j, letter in enumerate(HEAVY_CHAIN))
        right += model.predict(input=text)["results"][0]["masks"][0][0]["token"] == HEAVY_CHAIN[i]
    assert right / len(masked) > 0.8, f"{right} of {len(masked)}"
