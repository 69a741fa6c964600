"""Whisper: logits and greedy generation equal those of transformers, in both directions."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer
from anyformer.checkpoints.hf_folder import PublicCheckpoint
from anyformer.checkpoints.tensor_map import WeightSource
from anyformer.checkpoints.whisper import Whisper
from anyformer.data.tokenizers.build import build_tokenizer
from anyformer.errors import InputError
from anyformer.inference.speech_prompt import build_prompt, detect_languages
from anyformer.inference.transcription import (
    NODE_SECONDS,
    TranscriptSettings,
    encode_sounds,
    read_weights,
    transcribe_windows,
)
from anyformer.inference.word_times import find_first_nodes, read_alignment_heads
from anyformer.parsing import parse_dataclass
from anyformer.recipes import speech
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
def test_whisper_base_says_when_spoken_digits_end(whisper_base: Path, real_data: Path):
    """Half a second of silence before six digits, and 0.4 s after each."""
    from anyformer.data.audio.datasets import load_audio

    dataset, sound, ends = load_audio("fsdd"), [np.zeros(8000, np.float32)], []
    for clip in np.random.default_rng(0).choice(dataset.split("val"), 6):
        sound.append(dataset.samples[dataset.starts[clip] : dataset.starts[clip + 1]].astype(np.float32))
        ends.append(sum(map(len, sound)) / 16_000)
        sound.append(np.zeros(6400, np.float32))
    samples = np.concatenate(sound)
    settings = TranscriptSettings(words=True, language="auto")
    module = anyformer.load(whisper_base, "cpu").module
    (window,) = transcribe_windows(module, iter([iter([0.6 * samples / abs(samples).max()])]), settings)
    assert (window.language, len(window.words)) == ("en", 6)
    assert max(abs(word.end - end) for word, end in zip(window.words, ends)) <= 0.4


@pytest.mark.slow
def test_logits_of_whisper_base_equal_those_of_transformers(whisper_base: Path):
    assert_same_logits(anyformer.load(whisper_base, "cpu").module, open_reference(KIND, whisper_base))


# --- languages, tasks, and when words are said ---

NAMES = ["<|startoftranscript|>", "<|de|>", "<|en|>", "<|yue|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
START, GERMAN, ENGLISH, CANTONESE, TRANSLATE, TRANSCRIBE, UNTIMED = range(48, 55)
END, HEADS = 55, [[0, 1], [1, 0], [1, 1]]


def write_generation_config(folder: Path, heads: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": heads}))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose vocabulary has the tokens of Whisper's prompts."""
    folder = tmp_path_factory.mktemp("multilingual")
    ids = {"decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    forced = [[1, ENGLISH], [2, TRANSCRIBE], [3, UNTIMED]]
    config = transformers.WhisperConfig(**SIZES | ids | {"vocab_size": 57})
    reference = build_reference("WhisperForConditionalGeneration", config)
    save(reference, folder)
    edit_config(folder, forced_decoder_ids=forced)
    write_generation_config(folder, HEADS)
    (folder / "tokenizer.json").write_text(make_tokenizer([" a", "b", ",", " c", *NAMES, "<|endoftext|>"], END))
    return anyformer.load(folder, "cpu")


def make_tokenizer(tokens: list[str], end: int) -> str:
    """Return a vocabulary whose last tokens are these; names like <|x|> are special."""
    first = end + 1 - len(tokens)
    vocab = {f"t{i}": i for i in range(first)} | {token: first + i for i, token in enumerate(tokens)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": i, "content": t, "special": True} | flags for t, i in vocab.items() if t.startswith("<|")]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    return json.dumps({"version": "1.0", **empty, "added_tokens": special, "decoder": {"type": "Fuse"}, "model": model})


def test_token_times_equal_those_of_transformers():
    """transformers leaves out all of the prompt, and gives the last token the time of the one before."""
    case, frames = build("fixed position"), [42, 31]
    mel, mask = random_mel(case.config), torch.arange(42) < torch.tensor(frames)[:, None]
    prompt = [58, 60]
    generation = transformers.GenerationConfig(
        alignment_heads=HEADS, no_timestamps_token_id=prompt[1], decoder_start_token_id=prompt[0], eos_token_id=59,
        pad_token_id=59, bos_token_id=59, is_multilingual=False, return_timestamps=False, max_length=40,
        suppress_tokens=None, begin_suppress_tokens=None, prev_sot_token_id=1,
    )  # fmt: skip
    options = {"return_token_timestamps": True, "return_dict_in_generate": True, "attention_mask": mask.long()}
    expected = case.generate(mel, generation_config=generation, **options)
    model = load_with_heads(case)
    memory, edges = encode_sounds(model, mel, torch.full((2,), 21))
    for row, ids in enumerate(expected["sequences"].tolist()):
        weights = read_weights(model, memory[row : row + 1], edges, ids[:-1])[:, len(prompt) :, : frames[row] // 2]
        times = find_first_nodes(weights) * NODE_SECONDS
        times = [0.0] * len(prompt) + [*times, times[-1]]
        np.testing.assert_allclose(times, expected["token_timestamps"][row].numpy(), atol=1e-6)
        assert len(set(times)) > 3


def load_with_heads(reference: Any) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = save(reference, Path(name))
        write_generation_config(folder, HEADS)
        return anyformer.load(folder, "cpu").module


def test_alignment_heads_and_special_tokens_are_written_and_read(multilingual: Any, tmp_path: Path):
    assert multilingual.config.alignment_heads == "0:1 1:0 1:1"
    folder = export(multilingual, tmp_path / "out")
    values = json.loads((folder / "generation_config.json").read_text())
    assert values["alignment_heads"] == HEADS
    assert values["lang_to_id"] == {"<|de|>": GERMAN, "<|en|>": ENGLISH, "<|yue|>": CANTONESE}
    assert values["task_to_id"] == {"transcribe": TRANSCRIBE, "translate": TRANSLATE}
    assert (values["is_multilingual"], values["no_timestamps_token_id"]) == (True, UNTIMED)
    assert anyformer.load(folder, "cpu").config.alignment_heads == "0:1 1:0 1:1"
    reference = open_reference(KIND, folder)
    mel = random_mel(reference.config)
    for language in ("de", "yue"):
        reference.generate(mel, language=language, task="translate", max_new_tokens=2)


@pytest.mark.parametrize("heads", [[[0, 2]], [[2, 0]], [[-1, 0]], [[0, True]], [[0]], "0:1", 7, [[0, 1]] * 5000])
def test_alignment_heads_that_the_decoder_lacks_are_refused(heads: Any, tmp_path: Path):
    write_generation_config(save(build("odd sizes"), tmp_path), heads)
    with pytest.raises(InputError, match=r"generation_config.json: alignment_heads is .* below 2 and a head below 2"):
        anyformer.load(tmp_path, "cpu")


@pytest.mark.parametrize("text", ["0", "0:1,1:0", "0:1 1", "a:b", "2:0", "0:2", "1:0x"])
def test_alignment_heads_of_another_form_are_refused(text: str):
    decoder = anyformer.TransformerConfig(n_layer=2, n_head=2)
    with pytest.raises(InputError, match="alignment_heads"):
        read_alignment_heads(text, decoder)
    assert read_alignment_heads("", decoder) == [(1, 0), (1, 1)]


def test_a_prompt_for_another_language_and_task(multilingual: Any):
    module = multilingual.module
    assert build_prompt(module).ids == (START, ENGLISH, TRANSCRIBE, UNTIMED)
    prompt = build_prompt(module, "yue", "translate")
    assert prompt.ids == (START, CANTONESE, TRANSLATE, UNTIMED)
    assert (prompt.language, build_prompt(module).language) == ("yue", "en")
    with pytest.raises(InputError, match="language is 'xx', which this model does not know"):
        build_prompt(module, "xx")


def test_a_detected_language_is_the_likeliest_token_after_the_first(multilingual: Any):
    module, prompt = multilingual.module, build_prompt(multilingual.module, "auto")
    mel = torch.randn(6, 10, 30, generator=torch.Generator().manual_seed(3))
    memory, edges = encode_sounds(module, mel, torch.full((6,), 15))
    with torch.inference_mode():
        logits = module.head(module.decode(torch.full((6, 1), START), memory, edges))[:, 0]
    expected = [max((GERMAN, ENGLISH, CANTONESE), key=lambda token: row[token]) for row in logits]
    assert [p.ids[1] for p in detect_languages(module, prompt, memory, edges)] == expected


def test_a_model_of_one_language_takes_no_other():
    module = load_with_heads(build("odd sizes"))
    assert build_prompt(module).language is None
    for settings in ({"language": "en"}, {"task": "translate"}):
        with pytest.raises(InputError, match="trained on one"):
            build_prompt(module, **settings)


def test_words_cover_the_sound_in_order(multilingual: Any, monkeypatch: pytest.MonkeyPatch):
    """The words of a transcript: its ids are given, the times are those of the model."""
    module = multilingual.module
    ids = [44, 45, 46, 47, 44]  # " a", "b", ",", " c", " a"
    monkeypatch.setattr("anyformer.inference.transcription.write_texts", lambda *args: [ids] * len(args[3]))
    rng, samples = np.random.default_rng(0), 3 * 4800 - 1000
    sounds = [[rng.normal(size=samples).astype(np.float32)], [rng.normal(size=2000).astype(np.float32)]]
    windows = list(transcribe_windows(module, iter(map(iter, sounds)), TranscriptSettings(words=True)))
    assert [window.index for window in windows] == [0, 0, 0, 1]
    assert windows[0].text == "ab, c a"
    for window in windows:
        assert [word.text for word in window.words] == ["ab,", "c", "a"]
        times = [time for word in window.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert window.start <= times[0] <= times[-1] <= window.end + 0.02


class ShapesOnly(WeightSource):
    """The shapes of a model of transformers that takes no memory; its values are zeros."""

    def __init__(self, reference: Any):
        self.where, self.shapes = "large-v3", {n: tuple(t.shape) for n, t in reference.state_dict().items()}
        del self.shapes["proj_out.weight"]  # tied

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, *self.shapes[name][1:])


def test_the_shapes_of_large_v3_fit():
    sizes = {
        f"{s}_{n}": v
        for s in ("encoder", "decoder")
        for n, v in {"layers": 32, "attention_heads": 20, "ffn_dim": 5120}.items()
    }
    config = transformers.WhisperConfig(vocab_size=51866, d_model=1280, num_mel_bins=128, eos_token_id=50257, **sizes)
    with torch.device("meta"):
        weights = ShapesOnly(KIND(config))
    fields, tokenizers = json.loads(config.to_json_string()), {"tokenizer": "ids"}
    checkpoint = PublicCheckpoint(Whisper(), fields, weights, "config.json", tokenizers)
    values = checkpoint.values
    assert (values["mels"], values["prompt"], values["end"]) == (128, "50258 50259 50360 50364", 50257)
    names = (
        "encoder",
        "decoder",
        "mels",
        "prompt",
        "end",
        "padded_vocab",
        "pad_to_context",
        "tokenizer",
        "alignment_heads",
    )
    config = parse_dataclass(speech.Config, {name: values[name] for name in names})
    with torch.device("meta"):
        model = speech.SpeechTransformer(config, build_tokenizer("char", lambda: iter(["a"]), 0))
    assert checkpoint.check(model) == []
