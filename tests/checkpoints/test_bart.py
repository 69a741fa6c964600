"""BART and Marian: logits and greedy generation equal those of transformers, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer
from anyformer.checkpoints import hf_folder
from anyformer.errors import InputError
from anyformer.model.edges import within
from anyformer.parsing import to_json
from checkpoint_kit import (
    Exchange,
    assert_close,
    build_reference,
    edit_config,
    open_reference,
    save,
    transformers,
)

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 29,
    "max_position_embeddings": 40,
}
MARIAN = {"pad_token_id": 52, "decoder_start_token_id": 52}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", {}),
    "bart, scaled": ("Bart", {"scale_embedding": True, "activation_function": "relu", "decoder_layers": 2}),
    "marian": ("Marian", MARIAN | {"scale_embedding": True, "activation_function": "swish"}),
    "marian, odd channels": ("Marian", MARIAN | {"d_model": 27, "decoder_attention_heads": 1, "encoder_layers": 3}),
}
CLASSES = {"Bart": "BartForConditionalGeneration", "Marian": "MarianMTModel"}


def build(case: str) -> Any:
    name, fields = CASES[case]
    config = getattr(transformers, f"{name}Config")(**SIZES | fields)
    reference = build_reference(CLASSES[name], config)
    bias = torch.randn(reference.final_logits_bias.shape, generator=torch.Generator().manual_seed(1))
    reference.final_logits_bias.copy_(bias)
    if name == "Marian":  # fixed, though they are parameters
        fresh = getattr(transformers, CLASSES[name])(config).model
        for stack in ("encoder", "decoder"):
            positions = getattr(reference.model, stack).embed_positions
            positions.weight.data.copy_(getattr(fresh, stack).embed_positions.weight)
    return reference


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def assert_same_logits(module: Any, reference: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([29, 1, 13, 40])
    real = torch.arange(40) < lengths[:, None]
    source, target = (torch.randint(3, 50, (4, n), generator=generator) for n in (40, 33))
    with torch.no_grad():
        expected = reference(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
        assert_close(module(source, target, within(lengths)), expected)


def test_logits_equal_those_of_transformers(case: Exchange):
    assert_same_logits(case.module, case.reference)


def test_greedy_translation_equals_that_of_transformers(case: Exchange):
    """A source of BART begins with its first token."""
    config, source = case.reference.config, [7, 30, 11, 45, 9]
    start = [0] if config.model_type == "bart" else []
    options = {"do_sample": False, "num_beams": 1, "forced_eos_token_id": None, "max_new_tokens": 30}
    ids = torch.tensor([[*start, *source, config.eos_token_id]])
    expected = case.reference.generate(ids, **options)[0].tolist()[1:]
    request = {
        "input": " ".join(map(str, source)),
        "no_repeat_ngram": 0,
        "max_length_ratio": 0.0,
        "tokens": 30,
        "beam": 1,
    }
    (result,) = case.model.predict(request)["results"]
    end = expected.index(config.eos_token_id) if config.eos_token_id in expected else len(expected)
    assert [int(word) for word in result["text"].split()] == expected[:end]


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    reference = case.open_exported()
    assert_same_logits(case.module, reference)
    case.load_exported()
    for name in ("decoder_start_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(reference.config, name) == getattr(case.reference.config, name)


def test_copies_of_the_embedding_and_positions_in_old_files(case: Exchange, tmp_path: Path):
    folder = save(case.reference, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    shared = tensors["model.shared.weight"]
    copies = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tensors |= {name: shared.clone() for name in copies}
    if "model.encoder.embed_positions.weight" not in tensors:
        for stack in ("encoder", "decoder"):
            positions = getattr(case.reference.model, stack).embed_positions.weight.detach()
            tensors[f"model.{stack}.embed_positions.weight"] = positions.clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    module = anyformer.load(folder, "cpu").module
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, case.module.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
def test_a_trained_model_with_the_shape_of_1706_is_exported_as_marian(biased: bool, tmp_path: Path):
    stack = {"dim": 24, "n_layer": 1, "n_head": 2, "context": 30, "position": "sinusoidal", "norm_place": "post"}
    fields = {"encoder": stack, "decoder": stack | {"n_layer": 2}, "copy": False, "logit_bias": biased}
    model = anyformer.train("translation", "tiny", out=tmp_path / "run", train={"steps": 2, "device": "cpu"}, **fields)
    if biased:
        model.module.head.project.bias.data.normal_()
    folder, pair = tmp_path / "out", model.module.pair_tokenizer
    values = to_json(model.config) | {"start": pair.start_id, "end": pair.end_id}
    hf_folder.write(folder, model.recipe, values, model.module)
    reference = open_reference(transformers.MarianMTModel, folder)
    source, target = torch.randint(0, 9, (2, 11)), torch.randint(0, 9, (2, 7))
    with torch.no_grad():
        expected = reference(input_ids=source, decoder_input_ids=target).logits
        assert_close(model.module(source, target), expected)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "marian"
    assert_same_logits_of_both(model.module, anyformer.load(folder, "cpu").module, source, target)


def assert_same_logits_of_both(first: Any, second: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(first(source, target), second(source, target))


@pytest.mark.parametrize(
    ("case_name", "fields", "message"),
    [
        ("bart", {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        ("bart", {"normalize_before": True}, "normalize_before is True"),
        ("bart", {"normalize_embedding": False}, "normalize_embedding is False"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("bart", {"bos_token_id": 53}, "bos_token_id is 53; it must be an id from 0 to 52"),
        ("bart", {"decoder_layers": 4}, "lacks model.decoder.layers.1"),
        ("bart", {"max_position_embeddings": 41}, "has shape"),
        ("bart", {"use_rotary": True}, "use_rotary = True is unknown"),
        ("marian", {"decoder_vocab_size": 50}, "decoder_vocab_size is 50"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ("marian", {"static_position_embeddings": False}, "static_position_embeddings is False"),
        ("marian", {"max_position_embeddings": 1 << 20}, "max_position_embeddings is 1048576; at most 65536"),
        ("marian", {"d_model": 1 << 20}, "d_model is 1048576, but no tensor is longer"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(case_name: str, fields: dict, message: str, tmp_path: Path):
    edit_config(save(build(case_name), tmp_path), **fields)
    with pytest.raises(InputError, match=message) as error:
        anyformer.load(tmp_path, "cpu")
    assert "\n" not in str(error.value)


def test_a_source_that_fills_the_context(tmp_path: Path):
    model = anyformer.load(save(build("bart"), tmp_path), "cpu")
    model.predict({"input": " ".join(["7"] * 38), "tokens": 2})
    with pytest.raises(InputError, match="has 39 tokens, and 38 fit into the context"):
        model.predict({"input": " ".join(["7"] * 39)})
    (result,) = model.predict({"input": "7 8", "align": True, "tokens": 2})["results"]
    assert len(result["alignment"]["columns"]) == len(result["alignment"]["weights"][0]) == 3
