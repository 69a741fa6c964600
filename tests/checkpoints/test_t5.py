"""T5: logits and greedy generation equal those of transformers, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import anyformer
from anyformer import recipe_loading
from anyformer.checkpoints import hf_folder
from anyformer.errors import InputError
from anyformer.model.edges import within
from anyformer.model.position_bias import RelativeBias
from anyformer.parsing import to_json
from checkpoint_kit import (
    Exchange,
    assert_close,
    build_reference,
    edit_config,
    open_reference,
    randomize,
    save,
    transformers,
)

QUICK = {
    "test_greedy_generation_equals_that_of_transformers": {"v1.0, deep encoder, one shared head"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


SIZES = {"d_model": 24, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
SIZES |= {"vocab_size": 53, "decoder_start_token_id": 0, "eos_token_id": 1}
CASES: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "v1.0, deep encoder, one head": {
        "num_layers": 3, "num_decoder_layers": 1, "num_heads": 1, "layer_norm_epsilon": 1e-3
    },
    "v1.0, ungated gelu": {"feed_forward_proj": "gelu", "num_layers": 1, "num_decoder_layers": 1},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "v1.1, gated silu": {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_decoder_layers": None},
    "gated and tied": {"feed_forward_proj": "gated-gelu"},
    "relu and untied": {"tie_word_embeddings": False, "vocab_size": 61},
}  # fmt: skip


def build(case: str, seed: int = 0) -> Any:
    config = transformers.T5Config(**SIZES | CASES[case])
    model = build_reference("T5ForConditionalGeneration", config, seed)
    if CASES[case].get("tie_word_embeddings") is False:
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(build(request.param), tmp_path_factory.mktemp("case"))


def assert_same_logits(module: Any, reference: Any) -> None:
    """Compare on sources of unequal lengths, padded on the right."""
    vocab_size, generator = reference.config.vocab_size, torch.Generator().manual_seed(0)
    lengths = torch.tensor([29, 1, 13, 28])
    real = torch.arange(29) < lengths[:, None]
    source = torch.randint(2, vocab_size, (4, 29), generator=generator) * real
    target = torch.randint(vocab_size, (4, 33), generator=generator)
    with torch.no_grad():
        expected = reference(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
        assert_close(module(source, target, within(lengths)), expected)


def translate(model: Any, sources: list[list[int]], **request: Any) -> list[list[int]]:
    request = {"no_repeat_ngram": 0, "max_length_ratio": 0.0} | request
    results = model.predict({"input": [" ".join(map(str, source)) for source in sources], **request})["results"]
    return [[int(word) for word in result["text"].split()] for result in results]


def generate_reference(model: Any, source: list[int], tokens: int = 24, **options: Any) -> list[int]:
    """Generate greedily; transformers' cache has as many layers as the encoder, too few for a deeper decoder."""
    use_cache = model.config.num_decoder_layers <= model.config.num_layers
    ids = torch.tensor([[*source, 1]])
    ids = model.generate(ids, max_new_tokens=tokens, do_sample=False, use_cache=use_cache, **options)[0].tolist()[1:]
    return ids[: ids.index(1)] if 1 in ids else ids


def test_logits_equal_those_of_transformers(case: Exchange):
    is_tied = "lm_head.weight" not in load_file(case.source / "model.safetensors")
    assert case.model.config.tied == case.model.config.scaled == is_tied
    assert_same_logits(case.module, case.reference)


def test_greedy_generation_equals_that_of_transformers(case: Exchange):
    sources = [[7, 2, 30], [5] * 17, [9, 8, 7, 6, 50, 4, 3, 2]]
    expected = [generate_reference(case.reference, source) for source in sources]
    assert translate(case.model, sources, beam=1, tokens=24) == expected
    assert translate(case.model, sources[:1], beam=1, tokens=24) == expected[:1]
    blocked = [generate_reference(case.reference, source, no_repeat_ngram_size=2) for source in sources]
    assert translate(case.model, sources, beam=1, tokens=24, no_repeat_ngram=2) == blocked


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    assert_same_logits(case.module, case.open_exported())
    again = case.load_exported()
    assert translate(again, [[7, 2, 30]], beam=3, tokens=9) == translate(case.model, [[7, 2, 30]], beam=3, tokens=9)


def test_long_sources_reach_the_last_bucket(tmp_path: Path):
    reference = build("v1.0")
    model = anyformer.load(save(reference, tmp_path), "cpu")
    source, target = torch.randint(53, (1, 300)), torch.randint(53, (1, 290))
    with torch.no_grad():
        assert_close(model.module(source, target), reference(input_ids=source, decoder_input_ids=target).logits)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_those_of_transformers(bidirectional: bool):
    distance = torch.arange(-300, 301)
    attention = transformers.models.t5.modeling_t5.T5Attention
    expected = attention._relative_position_bucket(distance, bidirectional, 32, 128)
    assert torch.equal(RelativeBias(1).bucket(distance, bidirectional), expected)


@pytest.mark.slow
def test_greedy_generation_equals_that_of_transformers_up_to_the_64th_token(tmp_path: Path):
    """The end token is made unlikely, so that some answers do not stop early."""
    reference = build("v1.1", seed=4)
    with torch.no_grad():
        reference.lm_head.weight[1] = -reference.lm_head.weight.abs().mean() * torch.ones(24)
    model = anyformer.load(save(reference, tmp_path), "cpu")
    sources = [[first, 3, 40] for first in range(2, 6)]
    expected = [generate_reference(reference, source, 64) for source in sources]
    assert translate(model, sources, beam=1, tokens=64) == expected
    assert 64 in {len(ids) for ids in expected}


# --- models of anyformer's own presets ---


def build_preset(name: str, preset: str, **fields: Any) -> tuple[Any, Any, nn.Module]:
    """Build a model of a preset's architecture with small sizes."""
    recipe = recipe_loading.load_recipe(name)
    values = to_json(recipe.PRESETS[preset])
    for stack in ("encoder", "decoder"):
        values[stack] |= {"dim": 32, "n_layer": 1, "mlp_dim": 40}
    config = recipe_loading.parse_config(recipe, values | fields, "test")
    return recipe, config, randomize(recipe.build(config))


@pytest.mark.parametrize("preset", ["t5", "t5-v1.1"])
def test_a_translator_is_exported(preset: str, tmp_path: Path):
    fields = {"data": "reverse", "tokenizer": "char", "start": 10, "end": 10}  # ten digits, and the end
    recipe, config, module = build_preset("translation", preset, **fields)
    hf_folder.write(tmp_path / "out", recipe, to_json(config), module)
    reference = open_reference(transformers.T5ForConditionalGeneration, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[*tokenizer("31415")["input_ids"], 10]])
    expected = reference.generate(ids, max_new_tokens=30, do_sample=False)[0][1:].tolist()
    text = recipe.predict(module, {"input": "31415", "beam": 1, "tokens": 30})["results"][0]["text"]
    assert text == tokenizer.decode(expected, skip_special_tokens=True).replace(" ", "")


def test_a_model_of_spans_is_exported(tmp_path: Path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 20)
    fields = {"data": str(tmp_path / "text.txt"), "vocab_size": 280, "padded_vocab": 352}
    recipe, config, module = build_preset("spans", "small", **fields)
    hf_folder.write(tmp_path / "out", recipe, to_json(config), module)
    reference = open_reference(transformers.T5ForConditionalGeneration, tmp_path / "out")
    assert_same_logits(module, reference)
    assert_same_logits(anyformer.load(tmp_path / "out", "cpu").module, reference)


def test_what_the_family_cannot_express_is_refused(tmp_path: Path):
    recipe = recipe_loading.load_recipe("translation")
    config = recipe.PRESETS["tiny"]
    message = r"t5: encoder.position is learned, not relative.*--preset t5 or t5-v1.1"
    with pytest.raises(InputError, match=message):
        hf_folder.write(tmp_path / "out", recipe, to_json(config), recipe.build(config))
    assert not (tmp_path / "out").exists()


# --- files ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; .* only with 32"),
        ({"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu', which is not supported"),
        ({"dense_act_fn": "tanh"}, "dense_act_fn is 'tanh'"),
        ({"d_kv": 8}, "SelfAttention.q.weight has shape .21, 24., .* .24, 24."),
        ({"num_decoder_layers": 9}, "lacks decoder.block.3.layer.0.SelfAttention.q.weight"),
        ({"eos_token_id": 53}, "eos_token_id is 53; it must be an id from 0 to 52"),
        ({"scale_factor": 2.0}, "scale_factor = 2.0 is unknown"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields: dict, message: str, tmp_path: Path):
    edit_config(save(build("v1.0"), tmp_path), **fields)
    with pytest.raises(InputError, match=message):
        anyformer.load(tmp_path, "cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_files_of_older_versions_are_read(tied: bool, tmp_path: Path):
    """There `tie_word_embeddings` decides, no field has the scale, and the embedding is stored three times."""
    reference = build("v1.0" if tied else "relu and untied")
    edit_config(save(reference, tmp_path), scale_decoder_outputs=..., tie_word_embeddings=tied)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(["lm_head.weight"] if tied else [])):
        tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
    assert_same_logits(anyformer.load(tmp_path, "cpu").module, reference)
