"""Whisper: logits and greedy generation equal those of transformers, in both directions."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer.errors import InputError
from checkpoint_kit import (
    Exchange,
    assert_close,
    build_reference,
    edit_config,
    export,
    open_reference,
    save,
    transformers,
)
from ctranslate2_kit import convert

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "num_mel_bins": 10,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 37,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 29,
    "max_source_positions": 15,
    "max_target_positions": 80,
    "decoder_start_token_id": 58,
    "bos_token_id": 59,
    "eos_token_id": 59,
    "pad_token_id": 59,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
CASES: dict[str, dict[str, Any]] = {
    "odd sizes": {},
    "deep encoder, narrow decoder, mels of large-v3": {
        "encoder_layers": 3,
        "decoder_layers": 1,
        "decoder_ffn_dim": 7,
        "num_mel_bins": 128,
    },
    "fixed position": {"max_source_positions": 21},
    "another activation": {"activation_function": "gelu_new", "num_mel_bins": 13},
    # version 4 of transformers has no cache for a decoder with more layers than the encoder
    **({} if transformers.__version__ < "5" else {"deep decoder": {"decoder_layers": 3}}),
}
KIND = transformers.WhisperForConditionalGeneration


def build(case: str) -> Any:
    config = transformers.WhisperConfig(**SIZES | CASES[case])
    reference = build_reference("WhisperForConditionalGeneration", config)
    if case == "fixed position":
        fresh = KIND(config).model.encoder.embed_positions.weight
        reference.model.encoder.embed_positions.weight.data.copy_(fresh)
    return reference


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    exchange = Exchange(build(request.param), tmp_path_factory.mktemp("case"))
    assert exchange.model.config.encoder.position == ("sinusoidal" if "fixed" in request.param else "learned")
    return exchange


def random_mel(config: Any, rows: int = 2) -> torch.Tensor:
    """Return mel frames, as many as the encoder takes."""
    shape = (rows, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_same_logits(module: Any, reference: Any) -> None:
    mel = random_mel(reference.config)
    ids = torch.randint(min(61, reference.config.vocab_size), (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(module(mel, ids), reference(input_features=mel, decoder_input_ids=ids).logits)


def test_logits_equal_those_of_transformers(case: Exchange):
    assert_same_logits(case.module, case.reference)


def test_greedy_generation_equals_that_of_transformers(case: Exchange, monkeypatch: pytest.MonkeyPatch):
    mel, prompt = random_mel(case.reference.config), [58, 7, 30]
    ends = {"eos_token_id": None, "pad_token_id": 59, "decoder_start_token_id": 58}
    generation = transformers.GenerationConfig(do_sample=False, max_new_tokens=48, use_cache=True, **ends)
    ids = torch.tensor([prompt] * 2)
    monkeypatch.setattr(case.reference.generation_config, "eos_token_id", None)
    with torch.no_grad():  # the plain loop: Whisper's own adds rules for windows and timestamps
        generate = transformers.GenerationMixin.generate
        expected = generate(case.reference, mel, generation_config=generation, decoder_input_ids=ids)
    monkeypatch.setattr(case.module, "prompt", prompt)
    monkeypatch.setattr(case.module, "end", None)
    rows = case.module.transcribe(mel, torch.full((2,), mel.shape[2] // 2))
    assert [row[:48] for row in rows] == expected[:, len(prompt) :].tolist()


def test_an_exported_folder_opens_in_transformers_and_comes_back_bit_for_bit(case: Exchange):
    assert_same_logits(case.module, case.open_exported())
    config = case.load_exported().config
    assert (config.prompt, config.end) == ("58", 59)
    features = transformers.WhisperFeatureExtractor.from_pretrained(case.exported)
    assert (features.feature_size, features.sampling_rate, features.hop_length) == (config.mels, 16_000, 160)
    assert json.loads((case.exported / "generation_config.json").read_text())["decoder_start_token_id"] == 58


def test_a_trained_model_is_exported(tmp_path: Path):
    """Its keys have a bias, which has no effect and no place in the file; its position is computed."""
    decoder = {"dim": 24, "n_layer": 2, "n_head": 3, "context": 16}
    encoder = decoder | {"context": 100, "position": "sinusoidal", "n_head": 2, "mlp_dim": 50}
    fields = {"prompt": "3 1", "pad_to_context": True, "train": {"steps": 3, "device": "cpu"}}
    model = anyformer.train("speech", "tiny", out=tmp_path / "run", encoder=encoder, decoder=decoder, **fields)
    for name, parameter in model.module.named_parameters():
        if name.endswith("key.bias"):
            parameter.data.normal_()
    folder = export(model, tmp_path / "out")
    reference = open_reference(KIND, folder)
    reference.config.vocab_size = min(16, reference.config.vocab_size)
    assert_same_logits(model.module, reference)
    config = anyformer.load(folder, "cpu").config
    assert (config.prompt, config.encoder.position) == ("3 1", "sinusoidal")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_embedding": True}, "scale_embedding is True"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
        ({"encoder_attention_heads": 5}, "does not divide dim 24"),
        ({"d_model": 32, "encoder_attention_heads": 2}, "has shape"),
        ({"encoder_layers": 3, "num_hidden_layers": 3}, "lacks model.encoder.layers.2"),
        ({"decoder_start_token_id": 99}, "decoder_start_token_id is 99; it must be an id from 0 to 60"),
        ({"forced_decoder_ids": [[1, 99]]}, "forced_decoder_ids is .*; ids must be from 0 to 60"),
        ({"use_rotary": True}, "use_rotary = True is unknown"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields: dict, message: str, tmp_path: Path):
    edit_config(save(build("odd sizes"), tmp_path), **fields)
    with pytest.raises(InputError, match=message) as error:
        anyformer.load(tmp_path, "cpu")
    assert "\n" not in str(error.value)


# --- weights that people use ---


@pytest.fixture
def whisper_base(tmp_path: Path) -> Path:
    """Real weights; skips, with the reason, where there are none."""
    folder = Path(os.environ.get("ANYFORMER_WEIGHTS") or "none") / "whisper-base"
    if not (folder / "model.bin").is_file():
        pytest.skip("$ANYFORMER_WEIGHTS/whisper-base/model.bin does not exist: make weights")
    return convert(folder, tmp_path / "whisper-base")


@pytest.mark.slow
def test_whisper_base_transcribes_real_speech(whisper_base: Path, real_data: Path, tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="sound files: pip install 'anyformer[audio]'")
    jiwer = pytest.importorskip("jiwer", reason="word error rate: pip install 'anyformer[scores]'")
    from anyformer.data.audio.batches import join_clips
    from anyformer.data.audio.datasets import DIGIT_WORDS, load_audio

    dataset, expected, actual = load_audio("fsdd"), [], []
    rng = np.random.default_rng(0)
    for i in range(8):
        samples, text = join_clips(dataset, rng.choice(dataset.split("val"), 6), np.random.Philox(key=i))
        soundfile.write(tmp_path / f"{i}.wav", samples, 16_000)
        expected.append(text)
    answer = anyformer.load(whisper_base, "cpu").predict({"input": [str(tmp_path / f"{i}.wav") for i in range(8)]})
    words = dict(zip("0123456789", DIGIT_WORDS))
    for result in answer["results"]:
        letters = "".join(c if c.isalnum() else " " for c in result["text"].lower())
        actual.append(" ".join("".join(f" {words[c]} " if c in words else c for c in letters).split()))
    assert jiwer.wer(expected, actual) <= 0.2, list(zip(expected, actual))


@pytest.mark.slow
def test_logits_of_whisper_base_equal_those_of_transformers(whisper_base: Path):
    assert_same_logits(anyformer.load(whisper_base, "cpu").module, open_reference(KIND, whisper_base))
