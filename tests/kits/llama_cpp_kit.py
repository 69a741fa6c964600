"""llama.cpp itself, asked about a file of ours."""

import json
from pathlib import Path
from typing import Any

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp in Python: pip install xllamacpp (Linux, x86-64)")


class Served:
    """A GGUF file, opened by llama.cpp in single precision throughout."""

    def __init__(self, path: Path):
        asked = xllamacpp.CommonParams()
        asked.model.path, asked.n_ctx, asked.n_parallel, asked.warmup, asked.verbosity = str(path), 96, 1, False, -1
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(asked)

    def goes_on(self, prompt: str | list[int], n: int) -> tuple[list[int], list[float]]:
        """The likeliest next ids, one after the other, and their log-probabilities."""
        asked = {"prompt": prompt, "n_predict": n, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        asked |= {"return_tokens": True, "ignore_eos": False, "repeat_penalty": 1.0}
        found = self._answer(self.server.handle_completions(asked))
        found = found["choices"][0]["logprobs"]["content"] if "choices" in found else found["completion_probabilities"]
        return [one["id"] for one in found], [one["logprob"] for one in found]

    def _answer(self, found: Any) -> dict[str, Any]:
        return json.loads(found) if isinstance(found, str | bytes) else found
