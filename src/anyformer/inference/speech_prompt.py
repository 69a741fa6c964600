"""The tokens that tell a speech model which language a sound is in and what to write (Whisper, 2212.04356).

A multilingual prompt is <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>: settings replace the token of the
language and that of the task. Which languages there are is read from the vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, suggest
from ..model.edges import Edges

LANGUAGE_NAME = re.compile(r"<\|([a-z]{2,3})\|>")
DETECT = "auto"
TASKS = ("transcribe", "translate")
MAX_LANGUAGES = 1000


@dataclass(frozen=True)
class SpeechPrompt:
    """The ids that a text begins with, and where among them the language stands.

    Attributes:
        languages: code -> id, of a model that knows several; empty for one that was trained on one language.
    """

    ids: tuple[int, ...]
    languages: dict[str, int]
    language_index: int | None
    is_detected: bool = False

    @property
    def language(self) -> str | None:
        return None if self.language_index is None else self.name_language(self.ids[self.language_index])

    def name_language(self, token: int) -> str:
        return next(code for code, i in self.languages.items() if i == token)

    def set_language(self, token: int) -> "SpeechPrompt":
        """Return the prompt for another language, given as its id."""
        index = self.language_index
        assert index is not None
        ids = (*self.ids[:index], token, *self.ids[index + 1 :])
        return SpeechPrompt(ids, self.languages, index)


def build_prompt(model: Any, language: str | None = None, task: str | None = None) -> SpeechPrompt:
    """Return the prompt of a model with another language or task, where they are given.

    Args:
        language: its code, such as "fr"; "auto": the likeliest for each sound (`detect_language`).
        task: transcribe, or translate into English.

    Raises:
        InputError: the model knows one language or task, or not this one.
    """
    ids, languages = list(model.prompt), list_languages(model.tokenizer, model.prompt)
    index = next((i for i, token in enumerate(ids) if token in languages.values()), None)
    if task is not None:
        ids = set_task(model.tokenizer, ids, task)
    if language not in (None, DETECT):
        if index is None:
            raise InputError(f"language is '{language}', but this model was trained on one language: leave it out")
        if language not in languages:
            hint = suggest(str(language), [*languages, DETECT])
            raise InputError(f"language is '{language}', which this model does not know: {hint}")
        ids[index] = languages[str(language)]
    return SpeechPrompt(tuple(ids), languages, index, language == DETECT and index is not None)


def list_languages(tokenizer: Any, prompt: Sequence[int]) -> dict[str, int]:
    """Return code -> id of the languages that may stand in a prompt: their tokens follow each other in a vocabulary."""
    names = [tokenizer.special_name(token) for token in prompt]
    index = next((i for i, name in enumerate(names) if LANGUAGE_NAME.fullmatch(name)), None)
    if index is None:
        return {}
    languages: dict[str, int] = {}
    for step in (1, -1):
        token = prompt[index]
        while 0 <= token < tokenizer.vocab_size and len(languages) < MAX_LANGUAGES:
            match = LANGUAGE_NAME.fullmatch(tokenizer.special_name(token))
            if match is None:
                break
            languages[match[1]] = token
            token += step
    return dict(sorted(languages.items(), key=lambda item: item[1]))


def set_task(tokenizer: Any, ids: list[int], task: str) -> list[int]:
    tokens = {name: tokenizer.token_to_id(f"<|{name}|>") for name in TASKS}
    index = next((i for i, token in enumerate(ids) if token in tokens.values()), None)
    if index is None or tokens[task] is None:
        raise InputError(f"task is '{task}', but this model was trained on one task: leave it out")
    return [*ids[:index], tokens[task], *ids[index + 1 :]]


@torch.inference_mode()
def detect_languages(model: Any, prompt: SpeechPrompt, memory: Tensor, memory_mask: Edges) -> list[SpeechPrompt]:
    """Return the prompt of each sound with its likeliest language, given the nodes of the sounds (B, S, C)."""
    ids = torch.tensor([prompt.ids[: prompt.language_index]] * len(memory), device=memory.device)
    logits = model.head(model.decode(ids, memory, memory_mask)[:, -1:])[:, 0]  # (B, V)
    tokens = torch.tensor(list(prompt.languages.values()), device=logits.device)
    return [prompt.set_language(int(tokens[i])) for i in logits[:, tokens].argmax(-1).tolist()]
