"""Whisper: the library's logits and the library's words, there and back."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer.checkpoints import hf_folder as directory
from anyformer.errors import InputError
from anyformer.recipe import to_json
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers
from ctranslate2_kit import convert

SMALL: dict[str, Any] = {
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
    "one layer each": {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1},
    "deep ear, narrow mouth": {"encoder_layers": 4, "decoder_layers": 1, "decoder_ffn_dim": 7},
    "fixed position": {"max_source_positions": 21},
    "other activation": {"activation_function": "gelu_new", "num_mel_bins": 13},
    # version 4 of the library has no cache for a mouth with more layers than the ear
    **({} if transformers.__version__ < "5" else {"shallow ear, deep mouth": {"decoder_layers": 3}}),
}


def library(case: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SMALL | CASES[case]))
    places = model.model.encoder.embed_positions.weight.detach().clone()
    shaken(model, seed)
    if case == "fixed position":
        model.model.encoder.embed_positions.weight.data.copy_(places)
    return model


def heard(model: Any, seed: int, rows: int = 2) -> torch.Tensor:
    """Mel frames, as many as the encoder takes."""
    c = model.config
    return torch.randn(rows, c.num_mel_bins, 2 * c.max_source_positions, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case: str, seed: int, tmp_path: Path):
    theirs = library(case, seed)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    assert ours.config.encoder.position == ("sinusoidal" if case == "fixed position" else "learned")
    mel, ids = heard(theirs, seed), torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        close(ours.module(mel, ids), theirs(input_features=mel, decoder_input_ids=ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_greedy_words_are_the_librarys(case: str, tmp_path: Path):
    theirs = library(case, 3)
    ours = api.load(saved(theirs, tmp_path), "cpu").module
    mel, prompt = heard(theirs, 3), [58, 7, 30]
    plain = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=None,
        pad_token_id=59,
        decoder_start_token_id=58,
        use_cache=True,
    )
    start = torch.tensor([prompt] * 2)
    with torch.no_grad():  # the plain loop: Whisper's own has rules for windows and time stamps
        want = transformers.GenerationMixin.generate(theirs, mel, generation_config=plain, decoder_input_ids=start)
    ours.prompt, ours.end = prompt, None
    got = ours.transcribe(mel, torch.full((2,), mel.shape[2] // 2))
    assert [row[:64] for row in got] == want[:, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_opens_there_and_comes_back_bit_for_bit(case: str, tmp_path: Path):
    ours = api.load(saved(library(case, 1), tmp_path / "theirs"), "cpu")
    directory.export(tmp_path / "ours", ours.name, to_json(ours.config), ours.module)
    theirs = opened(transformers.WhisperForConditionalGeneration, tmp_path / "ours")
    mel, ids = heard(theirs, 1), torch.randint(61, (2, 9))
    with torch.no_grad():
        close(ours.module(mel, ids), theirs(input_features=mel, decoder_input_ids=ids).logits)
    again = api.load(tmp_path / "ours", "cpu")
    same_tensors(ours.module, again.module)
    assert (again.config.prompt, again.config.end) == (ours.config.prompt, ours.config.end) == ("58", 59)
    sound = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert (sound.feature_size, sound.sampling_rate, sound.hop_length) == (ours.config.mels, 16_000, 160)
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["decoder_start_token_id"] == 58


def test_a_model_of_ours_goes_out_and_hears_the_same(tmp_path: Path):
    """Trained here, keys with a bias and a fixed position: the library makes the same of it."""
    small = {"dim": 24, "n_layer": 2, "n_head": 3, "context": 16}
    tokens = {"prompt": "3 1", "whole": True, "train": {"steps": 3, "device": "cpu"}}
    encoder = small | {"context": 100, "position": "sinusoidal", "n_head": 2, "mlp_dim": 50}
    ours = api.train("speech", "tiny", out=tmp_path / "run", encoder=encoder, decoder=small, **tokens)
    for name, parameter in ours.module.named_parameters():
        if name.endswith("key.bias"):
            parameter.data.normal_()
    directory.export(tmp_path / "out", ours.name, to_json(ours.config), ours.module)
    theirs = opened(transformers.WhisperForConditionalGeneration, tmp_path / "out")
    mel, ids = heard(theirs, 0), torch.randint(16, (2, 12))
    with torch.no_grad():
        close(ours.module(mel, ids), theirs(input_features=mel, decoder_input_ids=ids).logits)
    again = api.load(tmp_path / "out", "cpu")
    assert (again.config.prompt, again.config.encoder.position) == ("3 1", "sinusoidal")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_embedding": True}, "scale_embedding is True"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
        ({"encoder_attention_heads": 5}, "does not divide dim 24"),
        ({"d_model": 32, "encoder_attention_heads": 2}, "has shape"),
        ({"encoder_layers": 3, "num_hidden_layers": 3}, "lacks model.encoder.layers.2"),
        ({"decoder_start_token_id": 99}, "decoder_start_token_id is 99; it must be an id from 0 to 60"),
        ({"use_rotary": True}, "does not know use_rotary"),
    ],
)
def test_what_would_change_the_maths_is_refused(changes: dict, message: str, tmp_path: Path):
    folder = saved(library("odd sizes"), tmp_path)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as error:
        api.load(folder, "cpu")
    assert "\n" not in str(error.value)


@pytest.fixture
def whisper_base(tmp_path: Path) -> Path:
    """Real weights; skips, with the reason, where there are none."""
    folder = Path(os.environ.get("ANYFORMER_WEIGHTS") or "none") / "whisper-base"
    if not (folder / "model.bin").is_file():
        pytest.skip("$ANYFORMER_WEIGHTS/whisper-base/model.bin is not there: make weights")
    return convert(folder, tmp_path / "whisper-base")


@pytest.mark.slow
def test_whisper_base_writes_down_real_speech(whisper_base: Path, real_data: Path, tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="sound files: pip install 'anyformer[audio]'")
    jiwer = pytest.importorskip("jiwer", reason="counts wrong words: pip install 'anyformer[scores]'")
    from anyformer.data.audio import read as clips

    spoken, said, found = clips.read("fsdd"), [], []
    draw = np.random.default_rng(0)
    for i in range(8):
        sound, text = clips.joined(spoken, draw.choice(spoken.part("val"), 6), np.random.Philox(key=i))
        soundfile.write(tmp_path / f"{i}.wav", sound, 16_000)
        said.append(text)
    model = api.load(whisper_base, "cpu")
    answer = model.predict({"input": [str(tmp_path / f"{i}.wav") for i in range(8)]})
    words = dict(zip("0123456789", clips.WORDS))
    for result in answer["results"]:
        letters = "".join(c if c.isalnum() else " " for c in result["text"].lower())
        spelled = "".join(f" {words[c]} " if c in words else c for c in letters)
        found.append(" ".join(spelled.split()))
    assert jiwer.wer(said, found) <= 0.2, list(zip(said, found))


@pytest.mark.slow
def test_whisper_base_is_the_librarys(whisper_base: Path):
    theirs = opened(transformers.WhisperForConditionalGeneration, whisper_base)
    ours = api.load(whisper_base, "cpu")
    mel, ids = heard(theirs, 0, 1), torch.randint(50_000, (1, 20))
    with torch.no_grad():
        close(ours.module(mel, ids), theirs(input_features=mel, decoder_input_ids=ids).logits)
