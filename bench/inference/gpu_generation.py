"""Answers of a model of GPT-2's shape on a GPU, for bench/gpu.py: ways to let it say the likeliest tokens, and their
speed. (On a CPU: bench/inference/generation_vs_peers.py.)"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from anyformer.inference.decode import generate, new_cache, prefill, step
from anyformer.inference.sampling import SamplingParams
from anyformer.model.cache import KVCache
from anyformer.model.quantization.quantize import quantize
from anyformer.recipes import language

PROMPT, NEW = 32, 128
Row = dict[str, Any]
Say = Callable[[list[list[int]], int], list[list[int]]]


def by_generate(model: Any) -> Say:
    """As the library does it."""

    def say(prompts: list[list[int]], new: int) -> list[list[int]]:
        rounds = generate(model, prompts, tokens=new, sampling=SamplingParams(temperature=0), seeds=[0] * len(prompts))
        return [list(row) for row in zip(*rounds)]

    return say


class Still(KVCache):
    """A cache whose shapes are the same in every step, as a graph that was captured once needs them. All of its slots
    are read each time, one node at a time: the causal rule hides those that nothing stands in yet."""

    def __init__(self, cache: KVCache):
        vars(self).update(vars(cache))  # the same memory
        self.lengths = torch.zeros(cache.batch, dtype=torch.long, device=cache.device)

    @property
    def max_length(self) -> int:
        return self.size - 1  # with the node that is read, all of it

    def advance(self, new: int) -> None:
        self._lengths += new  # in place, and nobody asks for the longest: the graph knows this tensor


class Stepper:
    """Steps that leave every tensor where it is: as they are, captured as a CUDA graph, or compiled."""

    def __init__(self, model: Any, batch: int, size: int):
        self.model, self.cache = model, new_cache(model, batch, size)
        with torch.no_grad():
            prefill(model, [[0]] * batch, self.cache)  # which takes its memory
        self.still = Still(self.cache)
        self.new = torch.zeros(batch, dtype=torch.long, device=self.cache.device)
        self.advance: Callable[[], None] = self.one

    def one(self) -> None:
        """Read the newest token of each row; the likeliest to follow takes its place."""
        self.new.copy_(step(self.model, self.new, self.still).argmax(-1))

    @torch.no_grad()
    def captured(self) -> "Stepper":
        """The step as one graph: the kernels of all its operations are launched at once."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries take their memory now
                self.one()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.still.lengths.zero_()
        with torch.cuda.graph(graph):
            self.one()
        self.advance = graph.replay
        return self

    def compiled(self, dry: bool = False) -> "Stepper":
        """The step by torch.compile, which makes fewer kernels of it and captures them; dry: only traced."""
        kept = [tensor for pair in self.cache.layers for tensor in pair or ()]
        for fixed in (*kept, self.still.lengths, self.new):
            torch._dynamo.mark_static_address(fixed)
        if dry:
            self.advance = as_on_gpu(torch.compile(self.one, backend="eager"))
        else:
            self.advance = torch.compile(self.one, mode="reduce-overhead")
        return self

    @torch.no_grad()
    def say(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """Raises ValueError where prompts and new tokens do not fit into the cache."""
        if len(prompts[0]) + new > self.cache.size:
            raise ValueError(f"{len(prompts[0])} and {new} tokens do not fit into a cache of {self.cache.size}")
        self.new.copy_(prefill(self.model, prompts, self.cache).argmax(-1))
        self.still.lengths.fill_(len(prompts[0]))
        said: list[list[int]] = [self.new.tolist()]
        for _ in range(new - 1):
            self.advance()
            said.append(self.new.tolist())
        return [list(row) for row in zip(*said)]


def as_on_gpu(step: Callable[[], None]) -> Callable[[], None]:
    """Traced on a CPU along the branch that a GPU takes: a rule's table is not asked whether some rows are empty."""

    def run() -> None:
        with patch("torch.compiler.is_exporting", lambda: True):
            step()

    return run


def by_transformers(config: Any, device: torch.device) -> Say:
    """A model of its own with the same shape, in bfloat16, with its static cache; on a GPU the library then compiles
    the step by itself. Raises ImportError where it is not installed."""
    import transformers

    shape = config.model
    sizes = {"n_positions": shape.context, "n_embd": shape.dim, "n_layer": shape.n_layer, "n_head": shape.n_head}
    about = transformers.GPT2Config(vocab_size=config.padded_vocab, bos_token_id=0, eos_token_id=0, **sizes)
    model: Any = transformers.GPT2LMHeadModel(about).to(device, torch.bfloat16).eval()

    def say(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids: Tensor = torch.tensor(prompts, device=device)
        length = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            more = {"attention_mask": torch.ones_like(ids), "cache_implementation": "static"}
            return model.generate(ids, **length, **more)[:, ids.shape[1] :].tolist()

    return say


def generation(here: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every side for each batch. here: device, dry, gpt2 (the shape) and asked.rounds."""
    prompt, new = (4, 6) if here.dry else (PROMPT, NEW)
    model = sharp(here)
    size, vocab = prompt + new, here.gpt2.padded_vocab
    prompts = torch.randint(vocab, (32, prompt)).tolist()
    yield "a cache of one size says the same, float32", lambda: agreeing(model, prompts[:2], min(new, 16))

    def stepper(batch: int) -> Stepper:
        return Stepper(sharp(here).bfloat16(), batch, size)

    makers: dict[str, Callable[[int], Any]] = {
        "anyformer, float32, eager": lambda batch: by_generate(model),
        "anyformer, bfloat16 weights, eager": lambda batch: by_generate(narrowed(here)),
        "anyformer, bfloat16, eager": lambda batch: by_generate(sharp(here).bfloat16()),
        "anyformer, bfloat16, captured": lambda batch: stepper(batch).captured().say,
        "anyformer, bfloat16, compiled": lambda batch: stepper(batch).compiled(here.dry).say,
        "transformers, bfloat16, static cache": lambda batch: by_transformers(here.gpt2, here.device),
    }
    for batch in (1, 32):
        for name, make in makers.items():

            def measured(make: Callable[[int], Any] = make, batch: int = batch) -> Row:
                say, times = make(batch), []
                for _ in range(here.asked.rounds + 1):  # the first does not count
                    began = time.perf_counter()
                    said = say(prompts[:batch], new)
                    times.append(time.perf_counter() - began)
                    assert [len(row) for row in said] == [new] * batch
                return {"batch": batch, "tokens_per_second": batch * new / statistics.median(times[1:])}

            yield name, measured


def agreeing(model: Any, prompts: list[list[int]], new: int) -> Row:
    """Raises AssertionError where a cache of one size would say something else."""
    said = Stepper(model, len(prompts), len(prompts[0]) + new).say(prompts, new)
    assert said == by_generate(model)(prompts, new), "a cache of one size says something else"
    return {"same": True}


def sharp(here: Any) -> Any:
    """Random weights, sharper than at birth so that the likeliest token is clear."""
    torch.manual_seed(0)
    model: Any = language.build(here.gpt2).to(here.device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    return model


def narrowed(here: Any) -> Any:
    model = sharp(here)
    quantize(model, "bfloat16")
    return model
