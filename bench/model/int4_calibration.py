"""What 4 bits cost a language model, by kind of map: rounded as `--weights int4` does, and by GPTQ on its own texts.

    python -m bench.model.int4_calibration SmolLM2-135M-Instruct.Q4_1.gguf

Public weights may lie on a grid of 4 bits already, which int4 would find again. So channels are scaled at random first:
norms and maps by opposite factors from 0.7 to 1.42, which leaves the function as it is. The judge is the perplexity of
Python's documentation (`pydoc_data`), --windows of 256 tokens; calibration sees none of it: the model samples --rows
texts of --tokens tokens at temperature 1. GPTQ (2210.17323) rounds a column after the other, and the others make up for
its error, by the products X'X of the inputs, whose parts off the diagonal are shrunk by --shrink, since the texts are
few. All rounded weights are multiplied in float32 here; heads stay as they are.
"""

import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import api
from anyformer.inference.decode import generate
from anyformer.inference.sampling import SamplingParams
from anyformer.model.quantization.fusion import fuse_linears
from anyformer.model.quantization.int4 import GROUP_SIZE, LEVELS, Int4Linear, round_in_groups
from bench._common import make_parser

CONTEXT = 256


@torch.no_grad()
def scale_channels(body: Any) -> None:
    """Scale channels between maps by random factors, in place: the function stays the same."""
    generator = torch.Generator().manual_seed(0)
    for block in body.blocks:
        attn, mlp, D = block.attn, block.mlp, block.attn.head_channels
        inputs = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
        for norm, maps in ((block.attn_norm, [attn.query, attn.key, attn.value]), (block.mlp_norm, inputs)):
            factors = 2 ** (torch.rand(len(norm.weight), generator=generator) - 0.5)
            for parameter in norm.parameters():
                parameter.mul_(factors)
            for linear in maps:
                linear.weight.div_(factors)
        factors = 2 ** (torch.rand(len(attn.value.weight), generator=generator) - 0.5)
        n_repeat = attn.output.in_features // len(factors)
        attn.value.weight.mul_(factors[:, None])
        attn.output.weight.div_(factors.view(-1, 1, D).expand(-1, n_repeat, D).flatten())
        if mlp.gate is not None:
            factors = 2 ** (torch.rand(len(mlp.up.weight), generator=generator) - 0.5)
            mlp.up.weight.mul_(factors[:, None])
            mlp.down.weight.div_(factors)


def sample_texts(decoder: Any, rows: int, tokens: int) -> Tensor:
    start = [decoder.tokenizer.end_id or 0]
    settings: dict[str, Any] = {"sampling": SamplingParams(temperature=1.0), "seeds": list(range(rows))}
    steps = list(generate(decoder, [start] * rows, tokens=tokens, **settings))
    return torch.tensor([start + list(row) for row in zip(*steps)])


def sum_products(decoder: Any, maps: dict[str, nn.Linear], ids: Tensor) -> dict[str, Tensor]:
    """X'X of the inputs of each map, (I, I), over texts."""
    sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in maps.items()}

    def add_to(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2)
            sums[name] += x.T @ x

        return add

    hooks = [linear.register_forward_pre_hook(add_to(name)) for name, linear in maps.items()]
    with torch.no_grad():
        for part in ids.split(8):
            decoder.hidden(part)
    for hook in hooks:
        hook.remove()
    return sums


def round_to_nearest(weight: Tensor) -> Tensor:
    integers, scale, offset = round_in_groups(weight)
    groups = integers.view(len(weight), -1, GROUP_SIZE) * scale[..., None] + offset[..., None]
    return groups.flatten(1)


def round_by_gptq(weight: Tensor, products: Tensor, shrink: float) -> Tensor:
    """(O, I), with X'X (I, I) of its inputs -> (O, I)"""
    diagonal = products.diagonal().clamp(min=1e-8 * float(products.diagonal().mean()))
    hessian = products * (1 - shrink)
    hessian.diagonal().copy_(diagonal)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weight, rounded = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], GROUP_SIZE):
        stop = start + GROUP_SIZE
        group, part = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.empty_like(group)
        _, scale, offset = round_in_groups(group)
        for i in range(GROUP_SIZE):
            column = group[:, i : i + 1]
            new = ((column - offset) / scale).round().clamp(0, LEVELS) * scale + offset
            errors[:, i : i + 1] = (column - new) / part[i, i]
            rounded[:, start + i : start + i + 1] = new
            group[:, i + 1 :] -= errors[:, i : i + 1] * part[i, i + 1 :]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return rounded


@torch.inference_mode()
def measure_loss(decoder: Any, windows: Tensor) -> float:
    return F.cross_entropy(decoder(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a language model: a run, or a public checkpoint")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=112)
    parser.add_argument("--shrink", type=float, default=0.4)
    options = parser.parse_args()
    decoder: Any = api.load(options.model, "cpu").module
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = decoder.tokenizer.encode(text[: 8 * CONTEXT * options.windows])[: CONTEXT * options.windows]
    windows = torch.as_tensor(ids, dtype=torch.long).view(options.windows, -1)
    scale_channels(decoder.body)
    fuse_linears(decoder)
    is_map = {name: isinstance(module, nn.Linear) for name, module in decoder.body.named_modules()}
    maps: dict[str, Any] = {name: decoder.body.get_submodule(name) for name, value in is_map.items() if value}
    maps = {name: linear for name, linear in maps.items() if Int4Linear.fits(linear)}
    seconds = [time.process_time()]
    samples = sample_texts(decoder, options.rows, options.tokens)
    seconds.append(time.process_time())
    products = sum_products(decoder, maps, samples)
    exact = {name: linear.weight.detach().clone() for name, linear in maps.items()}
    sides = {"nearest": {name: round_to_nearest(weight) for name, weight in exact.items()}}
    seconds.append(time.process_time())
    sides["gptq"] = {name: round_by_gptq(exact[name], products[name], options.shrink) for name in maps}
    seconds.append(time.process_time())
    base, rises = measure_loss(decoder, windows), {}
    kinds = sorted({name.rpartition(".")[2] for name in maps})
    for side, weights in sides.items():
        for kind in ("all", *kinds):
            for name, linear in maps.items():
                linear.weight.data = (weights if kind in ("all", name.rpartition(".")[2]) else exact)[name]
            rises[f"{side}, {kind}"] = math.exp(measure_loss(decoder, windows) - base) - 1
    spans = dict(zip(("sampling", "products", "gptq"), (b - a for a, b in pairwise(seconds))))
    if options.json:
        print(json.dumps({"perplexity": math.exp(base), "rises": rises, "cpu_seconds": spans}))
        return
    print(f"float32: perplexity {math.exp(base):.3f}; " + ", ".join(f"{k} {v:.1f} CPU s" for k, v in spans.items()))
    for name, rise in rises.items():
        print(f"{name}: {rise:+.2%}")


if __name__ == "__main__":
    main()
