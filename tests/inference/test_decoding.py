"""Decoding: sampling rules, prefill and steps, rows of unequal length, the crop past the context, when to stop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer import api
from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.inference import decode, sampling
from anyformer.inference.completion import Request, Voice, speak
from anyformer.inference.sampling import Rules
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language
from anyformer.training.run_directory import Run

TEXT = "abcdefghijklmnopqrstuvwxyz \n"


def model(position: str = "rotary", window: int | None = None, global_every: int = 2, **more) -> language.LanguageModel:
    torch.manual_seed(0)
    shape = TransformerConfig(**{"dim": 32, "n_layer": 3, "n_head": 4, "context": 16} | more, position=position)
    config = language.Config(model=shape, window=window, global_every=global_every)
    made = language.LanguageModel(config, Characters(TEXT))
    for parameter in made.parameters():  # far from the quiet start, so that a wrong key shows
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def naive(made: language.LanguageModel, prompt: list[int], tokens: int, keep: int | None = None) -> list[int]:
    """Greedy decoding without a cache: all of the window is read again for each token."""
    context = made.body.config.context
    window, said = prompt[-context:], []
    for _ in range(tokens):
        said.append(int(made(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, said[-1]]
        window = window[-(keep or context // 2) :] if len(window) > context else window
    return said


def greedy(made: language.LanguageModel, prompts: list[list[int]], tokens: int, **more) -> list[list[int]]:
    steps = decode.generate(made, prompts, tokens=tokens, rules=Rules(temperature=0), seeds=[0] * len(prompts), **more)
    return [list(row) for row in zip(*steps)]


POSITIONS = ["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("position", POSITIONS)
def test_cached_is_uncached_within_and_past_the_context(position: str, window: int | None):
    made = model(position, window, n_kv_head=2)
    assert greedy(made, [[3, 1, 4]], 50) == [naive(made, [3, 1, 4], 50)]


@torch.inference_mode()
@pytest.mark.parametrize("keep", [1, 7, 15, 16])
def test_the_crop_keeps_the_newest(keep: int):
    """keep = context crops one token at a time, as nanoGPT does."""
    made = model("learned")
    assert greedy(made, [[3, 1, 4]], 40, keep=keep) == [naive(made, [3, 1, 4], 40, keep)]


@torch.inference_mode()
@pytest.mark.parametrize("position", POSITIONS)
def test_a_batch_of_unequal_prompts_is_each_prompt_alone(position: str):
    made = model(position, window=6)
    prompts = [[1], [2, 3, 4, 5, 6], list(range(20)), [7, 8]]
    assert greedy(made, prompts, 30) == [greedy(made, [prompt], 30)[0] for prompt in prompts]


@torch.inference_mode()
def test_a_sample_does_not_depend_on_its_company():
    made = model()
    request = {"temperature": 1.0, "tokens": 25, "seed": 3}
    alone = [language.predict(made, {"prompt": p, "samples": 2} | request)["samples"] for p in ("ab", "hello w")]
    together = language.predict(made, {"prompt": ["ab", "hello w"], "samples": 2} | request)["samples"]
    assert together == [*alone[0], *alone[1]]
    assert together[0]["text"] != together[1]["text"], "two samples of one prompt should differ"


def test_memory_never_grows(monkeypatch: pytest.MonkeyPatch):
    made, caches = model(), []
    real = decode.new_cache
    monkeypatch.setattr(decode, "new_cache", lambda *a: caches.append(real(*a)) or caches[-1])
    greedy(made, [[1, 2]], 100)
    assert [cache.size for cache in caches] == [16]


@torch.inference_mode()
def test_the_same_seed_says_the_same_and_another_another():
    made = model()
    says = [language.predict(made, {"seed": seed, "tokens": 30, "temperature": 1.0})["samples"] for seed in (1, 1, 2)]
    assert says[0] == says[1] != says[2]


# --- sampling rules ---

logits = st.lists(st.floats(-5, 5), min_size=2, max_size=12).map(lambda row: torch.tensor([row]))


@given(logits, st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest(row: torch.Tensor, k: int):
    kept = sampling.top_k(row, k).isfinite()[0]
    least = row[0].sort(descending=True).values[min(k, row.shape[1]) - 1]
    assert torch.equal(kept, row[0] >= least)


@pytest.mark.parametrize("first", [1, 3, 1024])
@given(row=logits, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(first: int, row: torch.Tensor, p: float):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FIRST", first)
        kept, chance = sampling.top_p(row, p).isfinite()[0], row[0].double().softmax(0)
    order = chance.argsort(descending=True, stable=True)
    assert kept.any() and chance[kept].sum() >= p - 1e-5
    assert chance[kept].min() >= chance[~kept].max() if (~kept).any() else True
    assert chance[order][: int(kept.sum()) - 1].sum() < p + 1e-5


@given(logits, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(row: torch.Tensor, p: float):
    kept, chance = sampling.min_p(row, p).isfinite()[0], row[0].softmax(0)
    assert torch.equal(kept, chance >= p * chance.max())


def test_the_repetition_penalty_makes_the_seen_less_likely():
    row, seen = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]])
    assert sampling.repeat_less(row, seen, 2.0).tolist() == [[1.0, -4.0, 1.0]]


def test_pick_follows_the_probabilities():
    row = torch.tensor([[0.5, 0.2, 0.3]]).log().expand(4000, 3)
    rngs = [torch.Generator().manual_seed(i) for i in range(4000)]
    share = torch.bincount(sampling.pick(row, rngs), minlength=3) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.2, 0.3]), atol=0.03)


def test_pick_never_takes_what_cannot_come():
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(500, 3)
    assert sampling.pick(row, [torch.Generator().manual_seed(i) for i in range(500)]).unique().tolist() == [1]


def test_temperature_zero_takes_the_likeliest_whatever_else_is_asked():
    row = torch.tensor([[0.1, 3.0, 0.2]])
    rules = Rules(temperature=0, top_k=2, top_p=0.5, min_p=0.1)
    assert sampling.choose(row, torch.zeros_like(row, dtype=torch.bool), rules, []).tolist() == [1]


# --- stopping and streaming ---


def say(voice: Voice, text: str) -> list[str]:
    """What is shown after each character, until it stops."""
    shown = []
    for character in text:
        ended = voice.add(int(voice.tokenizer.encode(character)[0]))
        shown.append(voice.fresh())
        if ended:
            break
    return shown


def test_a_stop_text_ends_the_sample_and_is_never_shown():
    voice = Voice("x", [23], Characters(TEXT), ["end", "ab"])
    shown = say(voice, "see a enemy end of it")
    assert shown[:5] == ["s", "", "e", "e ", ""] and "".join(shown) == "see a enemy "
    assert voice.text == "see a enemy " and voice.finish_reason == "stop"
    assert voice.shown == len("see a enemy ")


def test_what_is_shown_adds_up_to_the_text():
    voice = Voice("x", [23], Characters(TEXT), ["zzz"])
    shown = "".join(say(voice, "a zz b z")) + (setattr(voice, "finish_reason", "length") or voice.fresh())
    assert shown == voice.text == "a zz b z"


def test_the_end_of_a_text_ends_the_sample():
    voice = Voice("a", [0], Characters(TEXT), [])
    assert not voice.add(1) and voice.add(voice.tokenizer.end)
    second = voice.tokenizer.decode([1])
    assert voice.result() == {"prompt": "a", "text": second, "tokens": [1], "finish_reason": "stop"}


@torch.inference_mode()
def test_rows_stop_by_themselves():
    made = model()
    free = language.predict(made, {"prompt": ["ab", "cd"], "tokens": 20, "temperature": 0})["samples"]
    word = free[0]["text"][4:7]
    stopped = language.predict(made, {"prompt": ["ab", "cd"], "tokens": 20, "temperature": 0, "stop": [word]})[
        "samples"
    ]
    assert stopped[0]["finish_reason"] == "stop" and word not in stopped[0]["text"]
    assert free[0]["text"].startswith(stopped[0]["text"])
    assert stopped[1]["text"] == free[1]["text"].split(word)[0]


@torch.inference_mode()
def test_watching_gives_the_same_as_waiting():
    made = model()
    request = {"prompt": "abc", "tokens": 12, "samples": 2}
    watched = [""]
    for voices in language.stream(made, request):
        watched[0] += voices[0].fresh()
    assert watched[0] == language.predict(made, request)["samples"][0]["text"]
    assert len(voices) == 2


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"tokns": 3}, "no 'tokns': did you mean 'tokens'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_k": 0}, "top-k is 0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": "É"}, "no 'É'"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_a_request_that_means_nothing_is_refused(request_: dict, complaint: str):
    with pytest.raises(InputError, match=complaint):
        language.predict(model(), request_)


def test_an_empty_prompt_starts_from_the_end_of_text():
    made = model()
    voices = list(speak(made, made.tokenizer, Request(prompt="", tokens=3)))[-1]
    assert voices[0].before == [made.tokenizer.end]


def test_saved_and_loaded_says_the_same(text: Path, tmp_path: Path):
    settings = language.PRESETS["tiny"]
    settings = replace(settings, data=str(text), train=replace(settings.train, steps=2, device="cpu"))
    first = api.run_config("language", "tiny", settings, run=Run(tmp_path / "run"))
    ids = torch.randint(10, (2, 20))
    assert torch.equal(first.module(ids), api.load(tmp_path / "run", "cpu").module(ids))
