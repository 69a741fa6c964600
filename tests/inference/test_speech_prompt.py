"""The prompt of a speech model: its languages are read from the vocabulary, settings replace tokens."""

from types import SimpleNamespace

import pytest

from anyformer.errors import InputError
from anyformer.inference.speech_prompt import build_prompt, list_languages

NAMES = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|zh|>",
    "<|yue|>",
    "<|translate|>",
    "<|transcribe|>",
    "a",
]
TOKENIZER = SimpleNamespace(
    vocab_size=len(NAMES),
    special_name=lambda token: NAMES[token] if token < len(NAMES) - 1 else "",
    token_to_id=lambda name: NAMES.index(name) if name in NAMES else None,
)
MULTILINGUAL = SimpleNamespace(tokenizer=TOKENIZER, prompt=[1, 3, 6])
MONOLINGUAL = SimpleNamespace(tokenizer=TOKENIZER, prompt=[1, 7])


def test_languages_stand_beside_that_of_the_prompt_in_both_directions():
    assert list_languages(TOKENIZER, [1, 3, 6]) == {"en": 2, "zh": 3, "yue": 4}
    assert list(list_languages(TOKENIZER, [1, 4, 6])) == ["en", "zh", "yue"]
    assert list_languages(TOKENIZER, [1, 7]) == {}


def test_languages_end_with_the_vocabulary():
    last = SimpleNamespace(vocab_size=5, special_name=lambda token: NAMES[token])
    assert list_languages(last, [1, 3]) == {"en": 2, "zh": 3, "yue": 4}
    first = SimpleNamespace(vocab_size=2, special_name=lambda token: ["<|en|>", "<|de|>"][token])
    assert list_languages(first, [0]) == {"en": 0, "de": 1}


def test_settings_replace_tokens():
    prompt = build_prompt(MULTILINGUAL)
    assert (prompt.ids, prompt.language, prompt.language_index, prompt.is_detected) == ((1, 3, 6), "zh", 1, False)
    prompt = build_prompt(MULTILINGUAL, "yue", "translate")
    assert (prompt.ids, prompt.language, prompt.is_detected) == ((1, 4, 5), "yue", False)
    assert prompt.set_language(2).ids == (1, 2, 5) and prompt.set_language(2).language == "en"
    prompt = build_prompt(MULTILINGUAL, "auto")
    assert (prompt.ids, prompt.is_detected) == ((1, 3, 6), True)


def test_a_model_of_one_language_takes_no_settings():
    prompt = build_prompt(MONOLINGUAL, "auto")
    assert (prompt.ids, prompt.languages, prompt.language, prompt.is_detected) == ((1, 7), {}, None, False)
    with pytest.raises(InputError, match="language is 'en', but this model was trained on one language"):
        build_prompt(MONOLINGUAL, "en")
    with pytest.raises(InputError, match="task is 'translate', but this model was trained on one task"):
        build_prompt(MONOLINGUAL, task="translate")


def test_unknown_languages_are_named_with_the_nearest():
    with pytest.raises(InputError, match=r"language is 'yu', which this model does not know: .*yue"):
        build_prompt(MULTILINGUAL, "yu")
