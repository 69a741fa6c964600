"""Any tokenizer of the `tokenizers` library, with what a checkpoint says of it beside tokenizer.json."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, processors

from ...errors import InputError
from .base import END, Tokenizer, dtype_for, encode_utf8, valid_ids
from .special_tokens import TokenizerMetadata, parse_metadata
from .tiktoken_backend import TiktokenBackend, build_backend

END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # what others call it
MIN_BATCH_CHARACTERS, MIN_TOTAL_CHARACTERS = 1 << 16, 1 << 20  # characters at once, and in all, from which on it pays to look for a quicker way
PROBES = ("a", "0", "1", ".", "<", "\u2581", "the")  # one of these is in any vocabulary


class Subwords(Tokenizer):
    """Raw text never becomes a special token, nothing is cut or padded.

    `files`: texts of the files that stand beside it in a checkpoint, by name. A batch is spread over the cores.
    `n_bytes` is exact for a byte-level vocabulary, and by decoding for others.
    """

    def __init__(self, text: str, files: Mapping[str, str] | None = None, where: str = ""):
        self._json = text  # kept as it came, so that saving changes nothing
        self._about = parse_metadata(files or {}, where)
        self.extra_files = self._about.files()
        self._tokenizer = self._open()
        self._tokenizer.encode_special_tokens = True
        self.kind = type(self._tokenizer.model).__name__.lower()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # there may be holes
        self._ends = self._find_ends(self._about)
        self.end_id = next(iter(self._ends), None)
        self._read = 0  # characters

    def _open(self) -> tokenizers.Tokenizer:
        made = tokenizers.Tokenizer.from_str(self._json)
        made.no_truncation()
        made.no_padding()
        if self._about.flags:
            made.post_processor = self._around(made)
        return made

    def _around(self, made: tokenizers.Tokenizer) -> Any:
        """Where it is said whether a text gets a beginning and an end, that overrules tokenizer.json."""
        flags, names = self._about.flags, self._about.names
        tokens = {f"add_{kind}_token": names.get(f"{kind}_token", "") for kind in ("bos", "eos")}
        ids = {flag: made.token_to_id(token) if flags.get(flag) and token else None for flag, token in tokens.items()}
        pieces = {flag: [tokens[flag]] if ids[flag] is not None else [] for flag in tokens}
        single = [*pieces["add_bos_token"], "$A", *pieces["add_eos_token"]]
        special = [(tokens[flag], ids[flag]) for flag in tokens if ids[flag] is not None]
        return processors.TemplateProcessing(single=single, pair=[*single, "$B:1"], special_tokens=special)

    def _find_ends(self, about: TokenizerMetadata) -> tuple[int, ...]:
        """As generation has it; else the end that is named; else by a name that is usual."""
        if ends := tuple(i for i in about.end_ids if i < self.vocab_size):
            return ends
        names = (about.names.get("eos_token", ""), *END_TOKENS)
        return tuple(i for name in names if name and (i := self._tokenizer.token_to_id(name)) is not None)[:1]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._ends

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        size = sum(map(len, texts))
        self._read += size
        if size < MIN_BATCH_CHARACTERS or self._read < MIN_TOTAL_CHARACTERS or self._quick is None:
            return self._encode(self._tokenizer, texts, False)
        for text in texts:
            encode_utf8(text)
        return self._quick.encode_batch(texts)

    @cached_property
    def _quick(self) -> TiktokenBackend | None:
        return build_backend(self._json, dtype_for(self.vocab_size))

    def _encode(self, made: tokenizers.Tokenizer, texts: Sequence[str], around: bool) -> list[np.ndarray]:
        try:
            encodings = made.encode_batch_fast(list(texts), add_special_tokens=around)
        except Exception as error:  # the library raises bare Exception; TypeError for half a surrogate pair
            for text in texts:
                encode_utf8(text)
            if type(error) is not Exception:
                raise
            where = next((repr(text[:40]) for text in texts if not self._knows(made, text)), "a text")
            raise InputError(f"{where} holds what the vocabulary of {self.vocab_size} tokens lacks ({error})") from None
        return [np.array(e.ids, dtype_for(self.vocab_size)) for e in encodings]

    def _knows(self, made: tokenizers.Tokenizer, text: str) -> bool:
        try:
            made.encode(text)
        except Exception:
            return False
        return True

    def encode_with_bos_eos(self, text: str) -> np.ndarray:
        return self._encode(self._tokenizer, [text], True)[0]

    def encode_prompt(self, text: str) -> np.ndarray:
        return np.concatenate([np.array(self._leading, dtype_for(self.vocab_size)), self.encode(text)])

    @cached_property
    def _leading(self) -> list[int]:
        """The special tokens that stand before a text of its own."""
        if not self._tokenizer.num_special_tokens_to_add(False):
            return []
        for probe in PROBES:
            found = self._tokenizer.encode(probe)
            if 0 in found.special_tokens_mask:
                return found.ids[: found.special_tokens_mask.index(0)]
        return []

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    @cached_property
    def _reading_special(self) -> tokenizers.Tokenizer:
        return self._open()  # a second one: a switch on the first would be seen by other threads

    def encode_parsing_special(self, text: str) -> np.ndarray:
        return self._encode(self._reading_special, [text], False)[0]

    def apply_chat_template(self, messages: Any) -> str:
        if self._about.template is None:
            return super().apply_chat_template(messages)
        from .chat_template import render_chat

        return render_chat(self._about.template, messages, self._about.names)

    def decode(self, ids: Any) -> str:
        return self._tokenizer.decode(valid_ids(ids, self.vocab_size).tolist(), skip_special_tokens=True)

    def count_bytes(self, ids: Any) -> int:
        if self._lengths is None:
            return len(self.decode(ids).encode())
        return int(self._lengths[valid_ids(ids, self.vocab_size)].sum())

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        """id -> bytes. In a byte-level vocabulary each character of a token stands for one byte."""
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, i in self._tokenizer.get_vocab().items():
            lengths[i] = len(token)
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            lengths[i] = 0 if token.special else len(token.content.encode())
        return lengths

    def to_json(self) -> str:
        return self._json
