"""Run a GGUF file with llama.cpp itself."""

import json
from pathlib import Path

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp in Python: pip install xllamacpp (Linux, x86-64)")


class LlamaCpp:
    """A GGUF file opened by llama.cpp, with single-precision keys and values and without flash attention."""

    def __init__(self, path: Path):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = (
            str(path),
            96,
            1,
            False,
            -1,
        )
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def generate_greedily(self, prompt: str | list[int], n: int) -> tuple[list[int], list[float]]:
        """Return the n most likely next ids, one after the other, and their log-probabilities."""
        request = {"prompt": prompt, "n_predict": n, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        request |= {"return_tokens": True, "ignore_eos": False, "repeat_penalty": 1.0}
        answer = self.server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        if "choices" in answer:
            tokens = answer["choices"][0]["logprobs"]["content"]
        else:
            tokens = answer["completion_probabilities"]
        return [token["id"] for token in tokens], [token["logprob"] for token in tokens]
