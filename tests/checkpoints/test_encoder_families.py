"""Families of text encoders: logits equal those of transformers, in both directions; pooled vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import anyformer
from anyformer.errors import InputError
from checkpoint_kit import (
    Exchange,
    assert_close,
    assert_same_tensors,
    build_reference,
    edit_config,
    export,
    save,
    transformers,
)

pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="names of version 5 of transformers")
LONGEST = 19
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 37, "vocab_size": 53}
ROBERTA = BERT | {"max_position_embeddings": LONGEST + 2, "layer_norm_eps": 1e-5, "pad_token_id": 1}
IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2}
SIZES: dict[str, dict[str, Any]] = {
    "DistilBert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 37, "vocab_size": 53},
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA | {"type_vocab_size": 1},
    "Camembert": ROBERTA | {"type_vocab_size": 1, "hidden_size": 12},
    "MPNet": ROBERTA,
    "ModernBert": {name: size for name, size in BERT.items() if name != "num_hidden_layers"} | IDS,
}
SIZES["DistilBert"] |= {"max_position_embeddings": LONGEST}
SIZES["ModernBert"] |= {"num_hidden_layers": 5, "max_position_embeddings": LONGEST, "local_attention": 6}
SIZES["ModernBert"] |= {"hidden_size": 18}
CASES: dict[str, dict[str, Any]] = {
    "DistilBert": {},
    "DistilBert, untied, relu": {"tie_word_embeddings": False, "activation": "relu", "sinusoidal_pos_embds": True},
    "Roberta": {},
    "Roberta, untied": {"tie_word_embeddings": False, "num_hidden_layers": 1},
    "XLMRoberta": {},
    "Camembert": {},
    "MPNet": {"num_attention_heads": 2},
    "ModernBert": {},
    "ModernBert, other layers": {
        "num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 2, "tie_word_embeddings": False,
        "rope_parameters": {
            "full_attention": {"rope_theta": 100.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10.0, "rope_type": "default"},
        },
    },
    "ModernBert, global, another activation": {
        "layer_types": ["full_attention"] * 5, "hidden_activation": "gelu_pytorch_tanh",
        "classifier_activation": "gelu_pytorch_tanh", "classifier_bias": True,
    },
}  # fmt: skip
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
MEAN, FIRST = "pooling_mode_mean_tokens", "pooling_mode_cls_token"


def build(case: str, kind: str = "ForMaskedLM") -> Any:
    family = case.split(",")[0]
    model = build_reference(f"{family}{kind}", getattr(transformers, f"{family}Config")(**SIZES[family] | CASES[case]))
    if kind == "ForMaskedLM":
        model.tie_weights()
    if hasattr(model, "lm_head"):
        with torch.no_grad():  # an untied model has two biases and adds the second
            model.lm_head.bias.copy_(model.lm_head.decoder.bias)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def random_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids without padding's, lengths, and what is text, of rows of unequal length."""
    ids = torch.randint(3, 53, (4, LONGEST), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([LONGEST, 7, 1, 12])
    return ids, lengths, torch.arange(LONGEST) < lengths[:, None]


def assert_same_logits(module: Any, reference: Any) -> None:
    ids, lengths, real = random_rows()
    padded = ids.masked_fill(~real, 1)
    with torch.no_grad():
        expected = reference(input_ids=padded, attention_mask=real.long()).logits
        assert_close(module(ids, lengths)[real], expected[real])
        assert_close(module(ids), reference(input_ids=ids).logits)


def test_logits_equal_those_of_transformers(case: Exchange):
    assert case.model.name == "masked" and case.model.missing_keys == []
    assert_same_logits(case.module, case.reference)


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    reference = case.open_exported()
    assert reference.config.model_type == case.reference.config.model_type
    assert_same_logits(case.module, reference)
    case.load_exported()


@pytest.mark.parametrize("family", SIZES)
def test_a_body_without_a_head_has_the_right_vectors(family: str, tmp_path: Path):
    reference = build(family, "Model")
    model = anyformer.load(save(reference, tmp_path), "cpu")
    assert {name.partition(".")[0] for name in model.missing_keys} == {"head"}
    ids, lengths, real = random_rows()
    with torch.no_grad():
        expected = reference(input_ids=ids.masked_fill(~real, 1), attention_mask=real.long()).last_hidden_state
        assert_close(model.module.hidden(ids, lengths)[real], expected[real])


# --- sentence encoders ---


def add_modules(folder: Path, modules: Any, **pooling: Any) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24} | pooling))
    return folder


@pytest.mark.parametrize("pooling", [MEAN, FIRST])
def test_vectors_are_pooled_as_the_folder_says(pooling: str, tmp_path: Path):
    reference = build("MPNet", "Model")
    folder = add_modules(save(reference, tmp_path / "source"), MODULES, **{MEAN: False, FIRST: False} | {pooling: True})
    model, ids = anyformer.load(folder, "cpu"), torch.tensor([[7, 9, 11, 5]])
    with torch.no_grad():
        nodes = reference(input_ids=ids).last_hidden_state
    expected = F.normalize(nodes.mean(1) if pooling == MEAN else nodes[:, 0], dim=-1)
    assert_close(torch.tensor(model.embed(["7 9 11 5"])), expected)
    written = export(model, tmp_path / "out")
    assert json.loads((written / "modules.json").read_text()) == MODULES
    assert anyformer.load(written, "cpu").config.embed_pool == model.config.embed_pool
    assert_same_tensors(anyformer.load(written, "cpu").module.body, model.module.body)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (MODULES, {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens = True is unknown"),
        (MODULES, {MEAN: True, FIRST: True}, "one of pooling_mode_mean_tokens and pooling_mode_cls_token must be true"),
        (MODULES[:1], {MEAN: True}, "the modules are Transformer; supported: Transformer, Pooling, Normalize"),
        ([*MODULES[:2], {"type": "a.Dense"}], {MEAN: True}, "the modules are Transformer, Pooling, Dense"),
        ([MODULES[0], MODULES[1] | {"path": "../1_Pooling"}], {MEAN: True}, "it must be a folder beside this file"),
        ([1, 2], {MEAN: True}, "the modules are , "),
    ],
)
def test_a_pooling_that_is_not_supported_is_refused(modules: Any, pooling: dict, message: str, tmp_path: Path):
    folder = add_modules(save(build("XLMRoberta", "Model"), tmp_path), modules, **pooling)
    with pytest.raises(InputError, match=message):
        anyformer.load(folder, "cpu")


# --- configs that cannot be read ---


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("Roberta", {"pad_token_id": 0}, "pad_token_id is 0"),
        ("Roberta", {"max_position_embeddings": 2}, "max_position_embeddings is 2; it must be above 2"),
        ("Roberta", {"hidden_act": "relu"}, "hidden_act is 'relu', which is not supported"),
        ("MPNet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets is 16"),
        ("DistilBert", {"activation": "swish"}, "activation is 'swish'"),
        ("ModernBert", {"norm_bias": True}, "norm_bias is True"),
        ("ModernBert", {"classifier_activation": "relu"}, "classifier_activation is 'relu'"),
        ("ModernBert", {"layer_types": ["sliding_attention"] * 5}, "supported: the first of every k layers is global"),
        ("ModernBert", {"local_rope_theta": 3.0}, "local_rope_theta is 3.0"),
        ("ModernBert", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}}, "'default'"),
        ("ModernBert", {"rope_parameters": {"other": {"rope_theta": 3.0}}}, "the field other = .* is unknown"),
    ],
)
def test_a_config_with_another_result_is_refused(family: str, fields: dict, message: str, tmp_path: Path):
    edit_config(save(build(family), tmp_path), **fields)
    with pytest.raises(InputError, match=message):
        anyformer.load(tmp_path, "cpu")
