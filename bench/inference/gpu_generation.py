"""Generation with GPT-2's shape on a GPU, for bench/gpu.py: ways to run greedy decoding, and their speed.
(On a CPU: bench/inference/generation_vs_peers.py.)
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from anyformer.inference.decode import new_cache, prefill, step
from anyformer.model.cache import KVCache
from anyformer.model.quantization.quantize import quantize
from anyformer.recipes import language
from bench._common import generate_greedy

PROMPT_TOKENS, NEW_TOKENS = 32, 128
Row = dict[str, Any]
Generate = Callable[[list[list[int]], int], list[list[int]]]


class StaticCache(KVCache):
    """A cache whose shapes are the same in every step, as a captured graph needs. All slots are read in each step; the
    causal rule masks those that are not filled yet.
    """

    def __init__(self, cache: KVCache):
        vars(self).update(vars(cache))  # shares its tensors
        self._lengths = torch.zeros(cache.batch, dtype=torch.long, device=cache.device)
        self.max_length = self.size - 1  # all slots, the current token included

    def advance(self, new: int) -> None:
        self._lengths += new  # in place: the graph holds this tensor


class GreedyDecoder:
    """Greedy decoding in which every tensor keeps its address: eager, captured as a CUDA graph, or compiled."""

    def __init__(self, model: Any, batch: int, size: int):
        self.model, self.cache = model, new_cache(model, batch, size)
        with torch.no_grad():
            prefill(model, [[0]] * batch, self.cache)  # allocates the cache
        self.static_cache = StaticCache(self.cache)
        self.new = torch.zeros(batch, dtype=torch.long, device=self.cache.device)
        self.advance: Callable[[], None] = self.decode_token

    def decode_token(self) -> None:
        """Decode one token of each row: the argmax replaces `self.new`."""
        self.new.copy_(step(self.model, self.new, self.static_cache).argmax(-1))

    @torch.no_grad()
    def capture(self) -> "GreedyDecoder":
        """Capture the step as a CUDA graph, which launches all kernels at once."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate their workspaces
                self.decode_token()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.static_cache.lengths.zero_()
        with torch.cuda.graph(graph):
            self.decode_token()
        self.advance = graph.replay
        return self

    def compile_step(self, dry: bool = False) -> "GreedyDecoder":
        """Compile the step, which fuses and captures its kernels; with `dry`, only trace it."""
        buffers = [tensor for pair in self.cache.layers for tensor in pair or ()]
        for tensor in (*buffers, self.static_cache.lengths, self.new):
            torch._dynamo.mark_static_address(tensor)
        if dry:
            self.advance = trace_as_on_gpu(torch.compile(self.decode_token, backend="eager"))
        else:
            self.advance = torch.compile(self.decode_token, mode="reduce-overhead")
        return self

    @torch.no_grad()
    def generate_rows(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """Decode `new` tokens. Raises ValueError if prompts and new tokens exceed the cache."""
        if len(prompts[0]) + new > self.cache.size:
            raise ValueError(f"{len(prompts[0])} and {new} tokens exceed a cache of {self.cache.size}")
        self.new.copy_(prefill(self.model, prompts, self.cache).argmax(-1))
        self.static_cache.lengths.fill_(len(prompts[0]))
        rows: list[list[int]] = [self.new.tolist()]
        for _ in range(new - 1):
            self.advance()
            rows.append(self.new.tolist())
        return [list(row) for row in zip(*rows)]


def trace_as_on_gpu(step: Callable[[], None]) -> Callable[[], None]:
    """Trace on a CPU the branch that a GPU takes, which does not check a mask for empty rows."""

    def run() -> None:
        with patch("torch.compiler.is_exporting", lambda: True):
            step()

    return run


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
    prompt, new = (4, 6) if setup.dry else (PROMPT_TOKENS, NEW_TOKENS)
    model = build_sharp_model(setup)
    size, vocab = prompt + new, setup.gpt2.padded_vocab
    prompts = torch.randint(vocab, (32, prompt)).tolist()
    yield "static cache equals generate, float32", lambda: check_agreement(model, prompts[:2], min(new, 16))

    def build_decoder(batch: int) -> GreedyDecoder:
        return GreedyDecoder(build_sharp_model(setup).bfloat16(), batch, size)

    backends: dict[str, Callable[[int], Any]] = {
        "anyformer, bfloat16, captured": lambda batch: build_decoder(batch).capture().generate_rows,
        "transformers, bfloat16, static cache": lambda batch: use_transformers(setup.gpt2, setup.device),
        "anyformer, bfloat16, eager": lambda batch: partial(generate_greedy, build_sharp_model(setup).bfloat16()),
        "anyformer, bfloat16, compiled": lambda batch: build_decoder(batch).compile_step(setup.dry).generate_rows,
        "anyformer, bfloat16 weights, eager": lambda batch: partial(generate_greedy, build_bfloat16_weights(setup)),
        "anyformer, float32, eager": lambda batch: partial(generate_greedy, model),
    }
    for names in (list(backends)[:2], list(backends)[2:]):
        for batch, name in itertools.product((1, 32), names):
            build = backends[name]

            def measure(build: Callable[[int], Any] = build, batch: int = batch) -> Row:
                generate_rows, times = build(batch), []
                for _ in range(setup.options.rounds + 1):  # the first does not count
                    start = time.perf_counter()
                    rows = generate_rows(prompts[:batch], new)
                    times.append(time.perf_counter() - start)
                    assert [len(row) for row in rows] == [new] * batch
                return {"batch": batch, "tokens_per_second": batch * new / statistics.median(times[1:])}

            yield name, measure


def check_agreement(model: Any, prompts: list[list[int]], new: int) -> Row:
    """Raise AssertionError if the static cache changes the output."""
    rows = GreedyDecoder(model, len(prompts), len(prompts[0]) + new).generate_rows(prompts, new)
    assert rows == generate_greedy(model, prompts, new), "the static cache changes the output"
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
