"""T5: the library's logits and the library's words, there and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anyformer import api
from anyformer.checkpoints import hf_folder as directory
from anyformer.errors import InputError
from anyformer.model.edges import within
from anyformer.model.positions import RelativeBias
from anyformer.recipe import to_json
from anyformer.recipes import translation
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers

SIZES = {
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 37,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "vocab_size": 53,
}
CASES: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "v1.0, one layer": {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 1},
    "v1.0, deep encoder": {"num_layers": 3, "num_decoder_layers": 1, "layer_norm_epsilon": 1e-3},
    "v1.0, plain gelu": {"feed_forward_proj": "gelu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "v1.1, gated silu": {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_decoder_layers": None},
    "gated and tied": {"feed_forward_proj": "gated-gelu"},
    "relu and untied": {"tie_word_embeddings": False, "vocab_size": 61},
}
KIND = transformers.T5ForConditionalGeneration


def library(case: str, seed: int = 0, eos: int | None = 1) -> Any:
    torch.manual_seed(seed)
    config = transformers.T5Config(**SIZES | CASES[case] | {"decoder_start_token_id": 0, "eos_token_id": eos})
    model = KIND(config)
    if CASES[case].get("tie_word_embeddings") is False:
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return shaken(model, seed)


def ragged(vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """source (4, 29) padded on the right, its lengths, target (4, 33)"""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([29, 1, 13, 28])
    source = torch.randint(2, vocab, (4, 29), generator=generator)
    source[torch.arange(29) >= lengths[:, None]] = 0
    return source, lengths, torch.randint(vocab, (4, 33), generator=generator)


def same_logits(ours: Any, theirs: Any, seed: int) -> None:
    source, lengths, target = ragged(theirs.config.vocab_size, seed)
    mask = (torch.arange(29) < lengths[:, None]).long()
    with torch.no_grad():
        want = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        close(ours.module(source, target, within(lengths)), want)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case: str, seed: int, tmp_path: Path):
    theirs = library(case, seed)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    assert (ours.config.tied, ours.config.scaled) == (("tie_word_embeddings" not in CASES[case]),) * 2
    same_logits(ours, theirs, seed)


def test_long_sources_reach_the_last_bucket(tmp_path: Path):
    theirs = library("v1.0", 5)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    source, target = torch.randint(53, (1, 300)), torch.randint(53, (1, 290))
    with torch.no_grad():
        close(ours.module(source, target), theirs(input_ids=source, decoder_input_ids=target).logits)


@pytest.mark.parametrize("both_sides", [True, False])
def test_buckets_are_the_librarys(both_sides: bool):
    distance = torch.arange(-300, 301)
    attention = transformers.models.t5.modeling_t5.T5Attention
    want = attention._relative_position_bucket(distance, both_sides, 32, 128)
    assert torch.equal(RelativeBias(1).bucket(distance, both_sides), want)


def said(model: Any, sources: list[list[int]], **more: Any) -> list[list[int]]:
    results = model.predict({"input": [" ".join(map(str, source)) for source in sources], **more})["results"]
    return [[int(word) for word in result["text"].split()] for result in results]


def theirs_say(model: Any, source: list[int]) -> list[int]:
    """Their cache has as many layers as the encoder, which is too few for a deeper decoder."""
    cached = model.config.num_decoder_layers <= model.config.num_layers
    ids = torch.tensor([[*source, 1]])
    ids = model.generate(ids, max_new_tokens=64, do_sample=False, use_cache=cached)[0].tolist()[1:]
    return ids[: ids.index(1)] if 1 in ids else ids


@pytest.mark.parametrize("case", CASES)
def test_greedy_words_are_the_librarys(case: str, tmp_path: Path):
    theirs = library(case, 3)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    sources = [[7, 2, 30], [5] * 17, [9, 8, 7, 6, 50, 4, 3, 2]]
    want = [theirs_say(theirs, source) for source in sources]
    assert said(ours, sources, beam=1, tokens=64) == want
    assert [said(ours, [source], beam=1, tokens=64)[0] for source in sources] == want


def test_greedy_words_are_the_librarys_to_the_64th(tmp_path: Path):
    """The end token made unlikely, so that nothing stops before."""
    theirs = library("v1.1", 4)
    with torch.no_grad():
        theirs.lm_head.weight[1] = -theirs.lm_head.weight.abs().mean() * torch.ones(24)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    lengths = set()
    for first in range(2, 40):
        want = theirs_say(theirs, [first, 3, 40])
        assert said(ours, [[first, 3, 40]], beam=1, tokens=64)[0] == want
        lengths.add(len(want))
    assert 64 in lengths


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_opens_there_and_comes_back_bit_for_bit(case: str, tmp_path: Path):
    ours = api.load(saved(library(case, 1), tmp_path / "theirs"), "cpu")
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    theirs = opened(KIND, tmp_path / "ours")
    same_logits(ours, theirs, 1)
    back = api.load(tmp_path / "ours", "cpu")
    same_tensors(ours.module, back.module)
    sources = [[7, 2, 30], [9, 8, 7, 6]]
    assert said(ours, sources, beam=1, tokens=64) == [theirs_say(theirs, source) for source in sources]
    assert said(back, sources, beam=3) == said(ours, sources, beam=3)


@pytest.mark.parametrize("preset", ["t5", "t5-v1.1"])
def test_a_model_of_ours_goes_out(preset: str, tmp_path: Path):
    values = to_json(translation.PRESETS[preset])
    for stack in ("encoder", "decoder"):
        values[stack] |= {"dim": 32, "n_layer": 1, "mlp_dim": 40}
    values |= {"data": "reverse", "tokenizer": "char", "start": 10, "end": 10}  # the ten digits, and the end
    config = api.config_of(translation, values, "here")
    module = shaken(translation.build(config), 0)
    directory.export(tmp_path, "translation", to_json(config), module)
    theirs, tokenizer = opened(KIND, tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = [*tokenizer("31415")["input_ids"], 10]
    want = theirs.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0][1:].tolist()
    text = translation.predict(module, {"input": "31415", "beam": 1, "tokens": 30})["results"][0]["text"]
    assert text == tokenizer.decode(want, skip_special_tokens=True).replace(" ", "")


def test_what_this_family_cannot_say_is_refused(tmp_path: Path):
    config = translation.PRESETS["tiny"]
    module = translation.build(config)
    with pytest.raises(InputError, match=r"t5: encoder.position is learned, not relative.*--preset t5 or t5-v1.1"):
        directory.export(tmp_path / "out", "translation", to_json(config), module)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; .* only with 32"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance is 64"),
        ({"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu', which anyformer has no maths for"),
        ({"dense_act_fn": "tanh"}, "dense_act_fn is 'tanh'"),
        ({"d_kv": 8}, "SelfAttention.q.weight has shape .21, 24., .* .24, 24."),
        ({"num_decoder_layers": 9}, "lacks decoder.block.3.layer.0.SelfAttention.q.weight"),
        ({"eos_token_id": 53}, "eos_token_id is 53; it must be an id from 0 to 52"),
        ({"scale_factor": 2.0}, "does not know scale_factor"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(values: dict, line: str, tmp_path: Path):
    saved(library("v1.0"), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=line):
        api.load(tmp_path, "cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_files_of_the_older_library_say_it_otherwise(tied: bool, tmp_path: Path):
    """There `tie_word_embeddings` decides, nothing tells the scale apart, and embeddings come three times."""
    from safetensors.torch import load_file, save_file

    theirs = library("v1.0" if tied else "relu and untied", 2)
    saved(theirs, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described.pop("scale_decoder_outputs", None)
    (tmp_path / "config.json").write_text(json.dumps(described | {"tie_word_embeddings": tied}))
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(["lm_head.weight"] if tied else [])):
        tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    same_logits(api.load(tmp_path, "cpu"), theirs, 2)
