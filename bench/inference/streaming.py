"""A stream without end: a trained character model reads novels it has not seen through a cache of a few hundred nodes.

    anyformer train language --preset fast --data eltec --steps 1200 --out runs/novels
    python -m bench.inference.streaming runs/novels --characters 1000000

The run was trained with full causal attention; its weights are read with `causal & window(w)`, and with
`causal & (window(w) | first(4))`, where the first nodes stay in the cache. For each tenth of the stream: the loss, and,
on a sample of the tenth, the loss beside that of the same weights reading the text again, a context that ends there
(half of it predicted). Text differs in how hard it is, so the difference of the two says whether a stream decays. Times
are those of one character at a time: a step through the cache, and reading the last `context` characters again.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer import api
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.longer_context import ContextChange
from anyformer.recipes._shared.text import load_mixture
from anyformer.trained_model import change_model
from bench._common import make_parser

TENTHS = 10


@torch.inference_mode()
def read_stream(model: Any, ids: Tensor, chunk: int) -> tuple[Tensor, list[int]]:
    """Return the loss of each character after the first, (T - 1,), and the bytes of the process after each tenth."""
    cache, losses, memory = new_cache(model, 1), torch.zeros(len(ids) - 1), []
    for start in range(0, len(ids) - 1, chunk):
        labels = ids[start + 1 : start + 1 + chunk]
        logits = model.head(model.hidden(ids[None, start : start + len(labels)], cache))[0]
        losses[start : start + len(labels)] = F.cross_entropy(logits.float(), labels, reduction="none")
        if (start + chunk) * TENTHS // len(ids) > len(memory):
            memory.append(read_memory())
    sizes = {kv[0].shape[2] for kv in cache.layers if kv is not None}
    assert cache.is_unbounded and len(sizes) == 1
    return losses, [*memory, read_memory()]


@torch.inference_mode()
def read_again(model: Any, ids: Tensor, start: int, count: int) -> Tensor:
    """Return the losses of `count` characters from `start` on; each is predicted from a half to a whole context."""
    context = model.body.config.context
    half, losses = context // 2, []
    for place in range(start, start + count, half):
        window = ids[place - half : place + half + 1]
        logits = model.head(model.hidden(window[None, :-1]))[0, half:]
        losses.append(F.cross_entropy(logits.float(), window[1 + half :], reduction="none"))
    return torch.cat(losses)


def read_memory() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


@torch.inference_mode()
def time_characters(
    stream_model: api.Model, trained: api.Model, ids: list[int], rows: int, count: int = 400
) -> dict[str, Any]:
    """Return the CPU seconds of a character of so many streams at once: through the cache, and by reading the last
    context again, alternately."""
    streaming, model = stream_model.module, trained.module
    stack = model.body.config
    context, shape = stack.context, f"{stack.n_layer} layers of {stack.dim}"
    cache, stream, again = new_cache(streaming, rows), 0.0, 0.0
    prefill(streaming, [ids[: context + 9]] * rows, cache)
    for i in range(count):
        start = time.process_time()
        step(streaming, torch.tensor([ids[context + i]] * rows), cache)
        stream += time.process_time() - start
        if i % 10 == 0:
            start = time.process_time()
            prefill(model, [ids[i : i + context]] * rows, new_cache(model, rows))
            again += 10 * (time.process_time() - start)
    return {"shape": shape, "streams": rows, "stream": stream / count / rows, "again": again / count / rows}


def enlarge(model: api.Model) -> api.Model:
    """Return a model with random weights, of the shape of nanoGPT's for a GPU."""
    shape = {"dim": 384, "n_layer": 6, "n_head": 6}
    config = replace(model.config, model=replace(model.config.model, **shape))
    if config.window is not None:
        config = replace(config, global_every=99)
    return api.Model(model.recipe, config, model.recipe.build(config), {"step": 0}, model.path)


def measure(run: Path, characters: int, sinks: int, sample: int, chunk: int) -> dict[str, Any]:
    """Return what is printed, for one number of sinks."""
    trained = api.load(run, "cpu")
    context = trained.config.model.context
    change = ContextChange(window=context - 1 - sinks, sinks=sinks)
    streaming = change_model(trained, change)
    windows = load_mixture(trained.config).eval_windows("val", characters + 1, 1)
    ids = torch.from_numpy(np.asarray(next(iter(windows))[1][0]).astype(np.int64))
    losses, memory = read_stream(streaming.module, ids, chunk)
    size, tenths = len(losses) // TENTHS, []
    for i in range(TENTHS):
        start = i * size + context  # the first characters have no context yet
        count = min(sample, size - context) // context * context
        again = read_again(trained.module, ids, start, count).mean()
        pair = {"stream": losses[start : start + count].mean().item(), "again": again.item()}
        tenths.append({"loss": losses[i * size : (i + 1) * size].mean().item(), **pair})
    times = [time_characters(streaming, trained, ids[: 8 * context].tolist(), rows) for rows in (1, 8)]
    times.append(time_characters(enlarge(streaming), enlarge(trained), ids[: 8 * context].tolist(), 1))
    return {"edges": streaming.module.edges[0].name, "tenths": tenths, "memory": memory, "seconds": times}


def report(result: dict[str, Any]) -> None:
    print(f"{result['edges']}\n  tenth   loss of the tenth   of a sample: stream, read again, difference   process MB")
    for i, (tenth, memory) in enumerate(zip(result["tenths"], result["memory"])):
        pair = f"{tenth['stream']:.4f}   {tenth['again']:.4f}   {tenth['stream'] - tenth['again']:+.4f}"
        print(f"  {i + 1:>5}   {tenth['loss']:.4f}              {pair}                       {memory / 2**20:.0f}")
    differences = [tenth["stream"] - tenth["again"] for tenth in result["tenths"]]
    print(f"  the differences span {max(differences) - min(differences):.4f} nats")
    for seconds in result["seconds"]:
        text = f"{1e3 * seconds['stream']:.2f} ms a character, {1e3 * seconds['again']:.2f} by reading again"
        ratio = f"{seconds['again'] / seconds['stream']:.1f} times sooner"
        print(f"  {seconds['shape']}, {seconds['streams']} at once: {text}, {ratio}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--sinks", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--sample", type=int, default=20_000, help="characters of each tenth that are read again")
    parser.add_argument("--chunk", type=int, default=256, help="characters at once; any number gives the same losses")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for sinks in options.sinks:
        results.append(measure(options.run, options.characters, sinks, options.sample, options.chunk))
        if not options.json:
            report(results[-1])
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
