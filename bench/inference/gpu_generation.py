"""Generation with GPT-2's shape on a GPU, for bench/gpu.py: ways to run greedy decoding, and their speed.
(On a CPU: bench/inference/generation_vs_peers.py.)
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from anyformer.inference import captured
from anyformer.model.quantization.quantize import quantize
from anyformer.recipes import language
from bench._common import generate_greedy

PROMPT_TOKENS, NEW_TOKENS = 32, 128
Row = dict[str, Any]
Generate = Callable[[list[list[int]], int], list[list[int]]]


def use_transformers(config: Any, device: torch.device) -> Generate:
    """Build a model of the same shape in bfloat16 with a static cache; on a GPU transformers compiles the step itself.

    Raises:
        ImportError: If transformers is not installed.
    """
    import transformers

    shape = config.model
    sizes = {"n_positions": shape.context, "n_embd": shape.dim, "n_layer": shape.n_layer, "n_head": shape.n_head}
    gpt2_config = transformers.GPT2Config(vocab_size=config.padded_vocab, bos_token_id=0, eos_token_id=0, **sizes)
    model: Any = transformers.GPT2LMHeadModel(gpt2_config).to(device, torch.bfloat16).eval()

    def generate_rows(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids: Tensor = torch.tensor(prompts, device=device)
        length = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            arguments = {"attention_mask": torch.ones_like(ids), "cache_implementation": "static"}
            return model.generate(ids, **length, **arguments)[:, ids.shape[1] :].tolist()

    return generate_rows


def list_generation(setup: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield the measurements of each backend at each batch size, for the `Setup` of bench/gpu.py."""
    prompt, new = (4, 20) if setup.dry else (PROMPT_TOKENS, NEW_TOKENS)
    model = build_sharp_model(setup)
    prompts = torch.randint(setup.gpt2.padded_vocab, (32, prompt)).tolist()
    yield "captured steps give the tokens of others, float32", lambda: check_agreement(model, prompts[:2], new)
    backends: dict[str, Callable[[], Generate]] = {
        "anyformer, bfloat16": lambda: partial(generate_greedy, build_sharp_model(setup).bfloat16()),
        "transformers, bfloat16, static cache": lambda: use_transformers(setup.gpt2, setup.device),
        "anyformer, float32": lambda: partial(generate_greedy, model),
        "anyformer, bfloat16 weights": lambda: partial(generate_greedy, build_bfloat16_weights(setup)),
        "anyformer, bfloat16, not captured": lambda: partial(generate_uncaptured, build_sharp_model(setup).bfloat16()),
    }
    for names in (list(backends)[:2], list(backends)[2:]):
        for batch, name in itertools.product((1, 32), names):
            build = backends[name]

            def measure(build: Callable[[], Generate] = build, batch: int = batch) -> Row:
                generate_rows, times = build(), []
                for _ in range(setup.options.rounds + 1):  # the first does not count
                    start = time.perf_counter()
                    rows = generate_rows(prompts[:batch], new)
                    times.append(time.perf_counter() - start)
                    assert [len(row) for row in rows] == [new] * batch
                return {"batch": batch, "tokens_per_second": batch * new / statistics.median(times[1:])}

            yield name, measure


def generate_uncaptured(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    with patch.object(captured, "MIN_STEPS", sys.maxsize):
        return generate_greedy(model, prompts, new)


def check_agreement(model: Any, prompts: list[list[int]], new: int) -> Row:
    """Raise AssertionError if captured steps change the output."""
    same = generate_greedy(model, prompts, new) == generate_uncaptured(model, prompts, new)
    assert same, "captured steps change the output"
    return {"same": True}


def build_sharp_model(setup: Any) -> Any:
    """Build a model whose random weights are larger than at initialization, so that the largest logit is clear."""
    torch.manual_seed(0)
    model: Any = language.build(setup.gpt2).to(setup.device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    return model


def build_bfloat16_weights(setup: Any) -> Any:
    model = build_sharp_model(setup)
    quantize(model, "bfloat16")
    return model
