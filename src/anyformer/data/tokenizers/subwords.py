"""Any tokenizer of the `tokenizers` library, with what a checkpoint says of it beside tokenizer.json."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, processors

from ...errors import InputError
from .base import END, Tokenizer, dtype_for, encode_utf8, valid_ids
from .chat_template import Chat, render_chats
from .special_tokens import parse_metadata
from .tiktoken_backend import TiktokenBackend, build_backend

END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # usual names, in order of preference
# The tiktoken backend is built for a batch of this many characters, once this many were encoded in all.
MIN_BATCH_CHARACTERS, MIN_TOTAL_CHARACTERS = 1 << 16, 1 << 20
PROBES = ("a", "0", "1", ".", "<", "\u2581", "the")  # any vocabulary has one of these


class Subwords(Tokenizer):
    """A tokenizer of the library. Raw text never becomes a special token; nothing is truncated or padded.

    A batch is spread over the cores. `count_bytes` is exact for a byte-level vocabulary, and by decoding for others.

    Args:
        text: the content of tokenizer.json.
        files: the metadata files of the checkpoint, name -> text.
        where: the folder of the files, for error messages.
    """

    def __init__(self, text: str, files: Mapping[str, str] | None = None, where: str = ""):
        self._json = text  # stored as it is, so that saving changes nothing
        self._metadata = parse_metadata(files or {}, where)
        self.extra_files = self._metadata.to_files()
        self._tokenizer = self._open()
        self._tokenizer.encode_special_tokens = True
        self.kind = type(self._tokenizer.model).__name__.lower()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # some ids may be unused
        self.end_id = next(iter(self.end_ids), None)
        self._n_encoded = 0  # characters

    def _open(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self._json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if flags := self._metadata.flags:  # whether a text gets bos and eos; they override tokenizer.json

            def find(kind: str) -> list[str]:
                token = self._metadata.names.get(f"{kind}_token", "") if flags.get(f"add_{kind}_token") else ""
                return [token] if token and tokenizer.token_to_id(token) is not None else []

            before, after = find("bos"), find("eos")
            single, special = [*before, "$A", *after], [(t, tokenizer.token_to_id(t)) for t in (*before, *after)]
            pair = [*single, "$B:1"]
            tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        return tokenizer

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Those of the generation config, else the eos token of the metadata, else a token of a usual name."""
        if end_ids := tuple(i for i in self._metadata.end_ids if i < self.vocab_size):
            return end_ids
        names = (self._metadata.names.get("eos_token", ""), *END_TOKENS)
        return tuple(i for name in names if name and (i := self._tokenizer.token_to_id(name)) is not None)[:1]

    def special_name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or super().special_name(token)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        size = sum(map(len, texts))
        self._n_encoded += size
        if size < MIN_BATCH_CHARACTERS or self._n_encoded < MIN_TOTAL_CHARACTERS or self._backend is None:
            return self._encode(self._tokenizer, texts, special=False)
        for text in texts:
            encode_utf8(text)
        return self._backend.encode_batch(texts)

    @cached_property
    def _backend(self) -> TiktokenBackend | None:
        return build_backend(self._json, dtype_for(self.vocab_size))

    def _encode(self, tokenizer: tokenizers.Tokenizer, texts: Sequence[str], special: bool) -> list[np.ndarray]:
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        except Exception as error:  # the library raises bare Exception, and TypeError for half a surrogate pair
            for text in texts:
                encode_utf8(text)
            if type(error) is not Exception:
                raise
            culprit = next((repr(text[:40]) for text in texts if not can_encode(tokenizer, text)), "a text")
            problem = f"{culprit} holds what the vocabulary of {self.vocab_size} tokens lacks"
            raise InputError(f"{problem} ({error})") from None
        return [np.array(encoding.ids, dtype_for(self.vocab_size)) for encoding in encodings]

    def encode_with_bos_eos(self, text: str) -> np.ndarray:
        return self._encode(self._tokenizer, [text], special=True)[0]

    def encode_prompt(self, text: str) -> np.ndarray:
        return np.concatenate([np.array(self._leading_ids, dtype_for(self.vocab_size)), self.encode(text)])

    @cached_property
    def _leading_ids(self) -> list[int]:
        """The special tokens before a single text."""
        if self._tokenizer.num_special_tokens_to_add(False):
            for encoding in map(self._tokenizer.encode, PROBES):
                if 0 in encoding.special_tokens_mask:
                    return encoding.ids[: encoding.special_tokens_mask.index(0)]
        return []

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    @cached_property
    def _tokenizer_parsing_special(self) -> tokenizers.Tokenizer:
        return self._open()  # a second tokenizer: switching the first would affect other threads

    def encode_parsing_special(self, text: str) -> np.ndarray:
        return self._encode(self._tokenizer_parsing_special, [text], special=False)[0]

    @property
    def has_chat_template(self) -> bool:
        return self._metadata.template is not None

    def render_chats(self, chats: Sequence[Chat]) -> list[str]:
        if self._metadata.template is None:
            return super().render_chats(chats)
        return render_chats(self._metadata.template, chats, self._metadata.names)

    def decode(self, ids: Any) -> str:
        return self._tokenizer.decode(valid_ids(ids, self.vocab_size).tolist(), skip_special_tokens=True)

    def count_bytes(self, ids: Any) -> int:
        if self._byte_lengths is None:
            return len(self.decode(ids).encode())
        return int(self._byte_lengths[valid_ids(ids, self.vocab_size)].sum())

    @cached_property
    def _byte_lengths(self) -> np.ndarray | None:
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


def can_encode(tokenizer: tokenizers.Tokenizer, text: str) -> bool:
    """Return whether the vocabulary has what a text holds."""
    try:
        tokenizer.encode(text)
    except Exception:
        return False
    return True
