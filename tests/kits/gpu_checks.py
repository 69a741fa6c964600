"""What must hold on a GPU, as functions of a device: the tests run them on the CPU too, so that their first run on a
GPU does not fail on a slip, and bench/gpu.py runs them where there is no pytest.

Each returns figures worth noting, and raises AssertionError (or what the library raises) if something does not hold.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from anyformer import api, recipe_loading
from anyformer.inference import decode
from anyformer.inference.batching import Batcher
from anyformer.inference.captured import CapturedStep, Step, can_be_static
from anyformer.inference.completion import CompletionRequest
from anyformer.model import Transformer, TransformerConfig
from anyformer.model.edges import Edges, causal, neighbors, same, window, within
from anyformer.model.heads import LMHead
from anyformer.model.kernels import cross_entropy as kernels
from anyformer.model.kernels.cross_entropy import IGNORE_INDEX
from anyformer.model.kernels.dense import DenseMask
from anyformer.model.kernels.flex import Flex
from anyformer.model.kernels.select import AttentionSpec
from anyformer.model.position_bias import Alibi, RelativeBias
from anyformer.recipes import language
from anyformer.training import checkpoints, gradients, loop, muon, prefetch
from anyformer.training.updates import make_update
from bench._common import generate_greedy
from bench.inference import gpu_generation
from rules import RULES

B, H, NODES = 3, 4, 200  # rows, heads, nodes: two blocks of FlexAttention, the second not full
TEXT = "the cat sat on the mat. the dog sat on the log.\n" * 60
NO_SET = {"plays", "digits"}  # data of tiny presets that come from packages
Figures = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Where checks run: a device, and a folder for data and checkpoints."""

    device: torch.device
    folder: Path

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def write_text(self) -> str:
        path = self.folder / "text.txt"
        path.write_text(TEXT)
        return str(path)

    def configure(self, **train: Any) -> language.Config:
        """Return the tiny language model on a small text, with a few steps."""
        tiny = language.PRESETS["tiny"]
        settings = {"steps": 6, "eval_every": 3, "eval_batches": 2, "device": str(self.device), "dtype": "float32"}
        return replace(tiny, data=self.write_text(), train=replace(tiny.train, **settings | train))


Check = Callable[[Target], Figures]


# --- attention ---


def check_flex(rule: str, position: str | None, target: Target) -> Figures:
    """FlexAttention, compiled on a GPU, equals a dense mask: values, and on a GPU gradients of q, k, v and the bias."""
    with target.device:
        torch.manual_seed(0)
        edges = {**RULES, **LONG_RULES}[rule](B, NODES)
        bias = None if position is None else {"relative": RelativeBias, "alibi": Alibi}[position](H)
        q, k, v = (torch.randn(B, groups, NODES, 32) for groups in (H, 2, 2))
    weights = [bias.weight] if isinstance(bias, RelativeBias) else []
    spec = AttentionSpec(B, H, NODES, NODES, 0, target.device)
    results = []
    with torch.set_grad_enabled(target.is_gpu):
        for kernel in (DenseMask(edges, bias, spec), Flex(edges, bias, spec, compiled=target.is_gpu)):
            inputs = [x.detach().requires_grad_(target.is_gpu) for x in (q, k, v)]
            y = kernel(*inputs)
            dy = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
            has_gradient = target.is_gpu and y.requires_grad
            sources = [*inputs, *weights] if has_gradient else []
            results.append([y, *(torch.autograd.grad(y, sources, dy, materialize_grads=True) if sources else ())])
    return {"difference": compare(*results, tolerance=5e-3)}


LONG_RULES: dict[str, Callable[[int, int], Edges]] = {
    "documents": lambda B, T: causal & same((torch.arange(T) // 37).expand(B, -1)),
    "documents in a window": lambda B, T: causal & window(40) & same((torch.arange(T) // 90).expand(B, -1)),
    "a grid behind a class node": lambda B, T: neighbors(9, 20, 2, 1) | window(2),
    "long window": lambda B, T: causal & window(150),
    "ragged window": lambda B, T: window(60) & within(torch.tensor([T, 3, T - 7])),
}
"""Rules that span more than one block, besides those of rules.py."""


def compare(first: list[Tensor], second: list[Tensor], tolerance: float) -> float:
    """Return the largest difference of two lists of tensors, relative to their norms or 2 % of the largest norm: of
    a gradient that is 0, such as that of a key's bias, only noise remains. Raises AssertionError above the tolerance.
    """
    norms = [b.float().norm().item() for b in second]
    pairs = zip(first, second, norms, strict=True)
    errors = [(a.float() - b.float()).norm().item() / max(norm, 0.02 * max(norms), 1e-6) for a, b, norm in pairs]
    assert max(errors) <= tolerance, f"tensor {errors.index(max(errors))} differs by {max(errors):.2g} of its norm"
    return max(errors)


def check_recompiling(target: Target) -> Figures:
    """Documents whose borders differ in every batch do not compile FlexAttention anew."""
    from torch._dynamo.utils import counters

    spec = AttentionSpec(B, H, NODES, NODES, 0, target.device)
    attend = torch.compile(flex_attention, backend="inductor" if target.is_gpu else "eager")
    counters.clear()
    q = torch.randn(B, H, NODES, 32, device=target.device)
    for width in (20, 30, 50, 60):
        document = (torch.arange(NODES, device=target.device) // width).expand(B, -1)
        attend(q, q, q, block_mask=Flex(causal & same(document), None, spec).block_mask)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1, f"{graphs} graphs for one rule"
    return {"graphs": graphs}


def check_stack(target: Target) -> Figures:
    """A stack with rotary positions, normed queries and several rules gives on the device what it gives on the CPU, in
    values and gradients; in bfloat16 nearly so."""
    config = TransformerConfig(dim=64, n_layer=3, n_head=4, n_kv_head=2, position="rotary", qk_norm=True, context=256)
    torch.manual_seed(0)
    model, x = Transformer(config), torch.randn(2, NODES, 64)
    rules = [causal & window(40), causal, causal & window(40)]
    results: dict[str, list[Tensor]] = {}
    for name, device, dtype in (
        ("cpu", torch.device("cpu"), torch.float32),
        ("device", target.device, torch.float32),
        ("bfloat16", target.device, torch.bfloat16),
    ):
        model.to(device).zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = model(x.to(device), rules)
        (y.float() * torch.linspace(-1, 1, y.numel(), device=device).view(y.shape)).sum().backward()
        gradients = [p.grad.float().cpu().clone() for p in model.parameters() if p.grad is not None]
        results[name] = [y.detach().float().cpu(), *gradients]
    figures = {"float32": compare(results["device"], results["cpu"], 5e-3)}
    return figures | {"bfloat16": compare(results["bfloat16"], results["cpu"], 0.1)}


def check_narrow_heads(target: Target) -> Figures:
    """Heads of 8 channels, for which FlexAttention has no kernel, take a dense mask."""
    model = Transformer(TransformerConfig(dim=16, n_layer=1, n_head=2, context=64)).to(target.device)
    model(torch.randn(2, 40, 16, device=target.device), causal & window(8)).sum().backward()
    return {}


# --- training ---


def check_resume(target: Target, dtype: str = "float32") -> Figures:
    """A training that is saved, loaded and continued equals one that was never stopped: bit for bit where the device
    repeats itself, else within what it differs from itself."""

    def train(stop: int | None) -> list[Tensor]:
        config = target.configure(dtype=dtype)
        state = loop.init_state(language, config)
        for _ in itertools.islice(loop.train(language, config, state), stop):
            pass
        if stop is not None:
            folder = checkpoints.save_checkpoint(target.folder, state, {})
            state = loop.init_state(language, config)
            checkpoints.load_checkpoint(folder, state)
            list(loop.train(language, config, state))
        assert state.step == 6
        return [p.detach().float().cpu() for p in state.model.parameters()]

    first, again, resumed = train(None), train(None), train(3)
    noise = max((a - b).abs().max().item() for a, b in zip(first, again))
    difference = max((a - b).abs().max().item() for a, b in zip(first, resumed))
    assert difference <= 4 * noise, f"resumed differs by {difference:.2g}, the same training twice by {noise:.2g}"
    return {"bit_for_bit": difference == 0, "difference": difference, "twice": noise}


def check_recipe(name: str, target: Target) -> Figures:
    """The tiny preset of a recipe is trained in bfloat16, validated, and answers."""
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    settings = {"steps": 3, "batch": 4, "eval_every": 3, "eval_batches": 2, "device": str(target.device)}
    data = choose_data(name, config.data, target)
    config = replace(config, data=data, train=replace(config.train, **settings, dtype="bfloat16"))
    state = loop.init_state(recipe, config)
    records = list(loop.train(recipe, config, state))
    assert all(math.isfinite(record["loss"]) for record in records) and math.isfinite(records[-1]["val_loss"])
    assert all(p.device.type == target.device.type for p in state.model.parameters())
    state.model.eval()
    assert recipe.predict(state.model, {})
    return {"loss": records[-1]["loss"], "val_loss": records[-1]["val_loss"]}


def choose_data(name: str, data: str, target: Target) -> str:
    """Return small data that need no package, in target of a preset's."""
    if name == "classify":
        return str(Path(__file__).parent.parent / "data_files" / "moods.csv")
    if name in ("vision", "contrastive", "text2image"):
        rng, path = np.random.default_rng(0), target.folder / "images.npz"
        np.savez(path, images=rng.integers(0, 255, (80, 8, 8), np.uint8), labels=np.arange(80) % 4)
        return str(path)
    if name == "tagging":
        path = target.folder / "tags.conll"
        path.write_text("the DET\ncat NOUN\nsat VERB\n\na DET\ndog NOUN\nran VERB\n\n" * 30)
        return str(path)
    return target.write_text() if data in NO_SET else data


def check_scaler(target: Target) -> Figures:
    """float16 begins with gradients that overflow, skips these updates, and then learns."""
    config = target.configure(dtype="float16", steps=60, lr=1e-2, eval_every=60)
    state = loop.init_state(language, config)
    state.scaler = torch.amp.GradScaler(target.device.type, init_scale=2.0**24)
    records = list(loop.train(language, config, state))
    skipped = sum("skipped_update" in record for record in records)
    assert 0 < skipped < 40 and records[-1]["loss"] < records[0]["loss"] - 0.3
    return {"skipped": skipped, "loss": records[-1]["loss"]}


def check_compile(target: Target) -> Figures:
    """A compiled loss gives the loss and the gradients of the loss that is not compiled."""
    config = target.configure(batch=4)
    batch, _ = next(language.batches(config, "train"))
    state = loop.init_state(language, config)
    model = state.model
    compiled = torch.compile(language.loss, backend="inductor" if target.is_gpu else "eager")
    results = []
    for loss in (language.loss, compiled):
        model.zero_grad()
        state.wrapped.loss_function = loss
        mean, _ = gradients.compute_gradient(state, make_update(language, [batch]), "bfloat16")
        results.append([mean, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    return {"difference": compare(*results, tolerance=5e-2)}


def check_prefetch(target: Target) -> Figures:
    """Batches that a thread prepares, pinned for a GPU, are those of the stream."""
    config = target.configure()
    stream = prefetch.prefetch(language.batches(config, "train"), target.device)
    for (batch, state), (expected, expected_state) in zip(stream, itertools.islice(read(config), 5)):
        moved = gradients.move_batch(batch, target.device)
        assert state == expected_state and all(torch.equal(moved[name].cpu(), expected[name]) for name in expected)
        assert not target.is_gpu or all(value.is_pinned() for value in batch.values())
    stream.close()
    return {}


def read(config: Any) -> Iterator[Any]:
    return language.batches(config, "train")


def check_generation(target: Target) -> Figures:
    """Decoding with steps of fixed shapes, on a GPU captured as a CUDA graph, gives the tokens of any other: for
    prompts of different lengths, also when the context is full and read again."""
    model, prompts, new = build_small_gpt2(target), [[1, 2, 3, 4], [9, 8, 7]], 100
    expected = gpu_generation.generate_uncaptured(model, prompts, new)
    steps: list[CapturedStep] = []

    def choose(step: Step, cache: Any, n_steps: int) -> CapturedStep:
        assert can_be_static(cache)
        steps.append(CapturedStep(step, cache))
        assert not target.is_gpu or steps[-1].can_be_captured()
        return steps[-1].capture() if target.is_gpu else steps[-1]

    with patch.object(decode, "choose_step", choose):
        assert generate_greedy(model, prompts, new) == expected, "steps of fixed shapes give other tokens"
    assert len(steps) == 1
    return {"tokens": 2 * new}


def check_uncapturable(target: Target) -> Figures:
    """A decoder that reads numbers from the GPU is decoded all the same."""
    model, prompts = build_small_gpt2(target), [[1, 2, 3, 4], [9, 8, 7, 6]]
    expected, hidden = gpu_generation.generate_uncaptured(model, prompts, 40), model.hidden
    model.hidden = lambda ids, cache=None: hidden(ids + int(ids.max()) * 0, cache)
    assert generate_greedy(model, prompts, 40) == expected
    return {}


def build_small_gpt2(target: Target) -> Any:
    tiny = replace(language.PRESETS["gpt2"], data="", tokenizer="ids", vocab_size=512, padded_vocab=512)
    shape = replace(tiny.model, dim=64, n_layer=2, n_head=2, context=64)
    return gpu_generation.build_sharp_model(SimpleNamespace(gpt2=replace(tiny, model=shape), device=target.device))


def check_muon(target: Target) -> Figures:
    """Matrices orthogonalized together come out as they do one by one."""
    group = torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))]).param_groups[0]
    torch.manual_seed(0)
    matrices = torch.randn(4, 96, 64, device=target.device).bfloat16()
    together = muon.orthogonalize_batch(matrices, group)
    return {"difference": compare(list(together), [muon.orthogonalize(m, group) for m in matrices], tolerance=0.05)}


def check_large_vocabulary(target: Target) -> Figures:
    """The cross-entropy in chunks, fused on a GPU, is that of whole logits, and so are its gradients."""
    torch.manual_seed(0)
    x, head = torch.randn(70, 64, device=target.device, requires_grad=True), LMHead(64, 1000).to(target.device)
    labels = torch.randint(1000, (70,), device=target.device)
    labels[::7] = IGNORE_INDEX
    results = []
    for chunks in (1, 4):
        with patch.object(kernels, "count_chunks", lambda head, labels, chunks=chunks: chunks):
            loss = kernels.cross_entropy(head, x, labels, label_smoothing=0.1)
        results.append([loss, *torch.autograd.grad(loss, [x, head.project.weight])])
    assert isinstance(head, kernels.LinearHead)
    return {"difference": compare(results[1], results[0], tolerance=5e-3)}


# --- use ---

ANSWERS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "the cat ", "temperature": 0.0},
    "two prompts": {"prompt": ["the cat sat on the ", "the cat sat on the mat. the dog"], "temperature": 0.0},
    "samples": {"prompt": "the dog sat on the log", "samples": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.9},
    "penalties": {
        "prompt": "the",
        "temperature": 0.0,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.2,
        "min_p": 0.1,
    },
    "log-probabilities": {"prompt": "the cat", "temperature": 0.0, "logprobs": 3, "echo": True, "tokens": 9},
}
LOADED: dict[str, dict[str, Any]] = {
    "drafts": {"draft": "prompt"},
    "bfloat16 cache": {"cache_dtype": "bfloat16"},
    "int8 cache": {"cache_dtype": "int8"},
    "bfloat16 weights": {"weights": "bfloat16"},
    "int8 weights": {"weights": "int8"},
}


def train_run(target: Target, recipe: str = "language", steps: int = 60) -> Path:
    """Train a run on the CPU, for which answers are clear. Returns its folder."""
    train = {"steps": steps, "eval_every": steps, "lr": 1e-2, "warmup": 5, "device": "cpu", "dtype": "float32"}
    api.train(recipe, "tiny", data=target.write_text(), out=target.folder / "run", progress=False, train=train)
    return target.folder / "run"


def check_use(target: Target) -> Figures:
    """A run answers on the device as on the CPU: texts, log-probabilities, metrics, attention, the server's batcher; in
    other number formats it answers at all."""
    run, name = train_run(target), str(target.device)
    model, expected = api.load(run, name), api.load(run, "cpu")
    for what, request in ANSWERS.items():
        ours, theirs = (loaded.generate(**{"tokens": 70} | request)["samples"] for loaded in (model, expected))
        assert [row["text"] for row in ours] == [row["text"] for row in theirs], what
        for row, other in zip(ours, theirs):
            values = [[token["logprob"] for token in answer.get("logprobs", [])] for answer in (row, other)]
            assert np.allclose(*values, atol=1e-3), what
    loss, other = (loaded.evaluate()["loss"] for loaded in (model, expected))
    assert abs(loss - other) < 1e-2, f"loss {loss:.4f}, on the CPU {other:.4f}"
    weights = [loaded.attention("the cat sat") for loaded in (model, expected)]
    figures = {"attention": compare([weights[0].cpu()], [weights[1].cpu()], 1e-2)}
    greedy = ANSWERS["greedy"] | {"tokens": 70}
    text = expected.generate(**greedy)["samples"][0]["text"]
    for what, settings in LOADED.items():
        answer = api.load(run, name, **settings).generate(**greedy)["samples"][0]["text"]
        assert len(answer) == len(text) and (answer == text or what != "drafts"), what
    assert answer_by_server(model, greedy) == text
    return figures


def answer_by_server(model: Any, request: dict[str, Any]) -> str:
    """Return the answer of the server's batcher to one of two requests that share its steps."""
    batcher, pieces, is_over = (
        Batcher(model.module, prefix_bytes=None),
        list[str](),
        [threading.Event() for _ in range(2)],
    )
    for event, add in zip(is_over, (lambda piece: pieces.append(piece.text), lambda piece: None)):
        batcher.submit(CompletionRequest(**request), add, lambda error, event=event: event.set())
    assert all(event.wait(120) for event in is_over)
    batcher.close()
    return "".join(pieces)


def check_beam(target: Target) -> Figures:
    """Translation by beam search gives on the device what it gives on the CPU."""
    pairs = target.folder / "pairs.tsv"
    pairs.write_text("".join(f"{word} {word}\t{word[::-1]}\n" for word in ("abc", "bcd", "cde", "abd", "bce")) * 20)
    train = {"steps": 40, "eval_every": 40, "device": "cpu", "dtype": "float32"}
    api.train("translation", "tiny", data=str(pairs), out=target.folder / "run", progress=False, train=train)
    answers = [api.load(target.folder / "run", name).predict("abc abc", beam=3) for name in (str(target.device), "cpu")]
    assert answers[0]["results"][0]["text"] == answers[1]["results"][0]["text"]
    return {}


# --- all of them, the most telling first ---


def list_checks() -> dict[str, Check]:
    """Return all checks by name."""
    positions = itertools.cycle([None, "alibi", None, "relative"])
    checks: dict[str, Check] = {
        "a stack equals the CPU": check_stack,
        "resumed equals uninterrupted": check_resume,
        "float16 with a loss scale": check_scaler,
        "captured generation": check_generation,
        "generation that cannot be captured": check_uncapturable,
        "a large vocabulary": check_large_vocabulary,
        "Muon on several matrices": check_muon,
        "a run in use": check_use,
        "beam search": check_beam,
        "narrow heads": check_narrow_heads,
        "a compiled loss": check_compile,
        "prefetched batches": check_prefetch,
        "documents do not compile again": check_recompiling,
    }
    flexible = {f"flex: {rule}": partial(check_flex, rule, next(positions)) for rule in (*LONG_RULES, *RULES)}
    first = dict(itertools.islice(flexible.items(), len(LONG_RULES)))
    checks |= first | {f"bfloat16: {name}": partial(check_recipe, name) for name in recipe_loading.list_recipes()}
    return checks | flexible | {"resumed in bfloat16": partial(check_resume, dtype="bfloat16")}
