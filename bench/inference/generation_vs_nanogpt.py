"""Generate 200 tokens with nanoGPT's `generate` and with anyformer, from the same weights: tokens per second.

    python -m bench.inference.generation_vs_nanogpt --nanogpt ../nanoGPT

Both decode greedily, and must agree on every token before anything is timed.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from anyformer.data.tokenizers.build import Characters
from anyformer.inference.decode import generate
from anyformer.inference.sampling import SamplingParams
from anyformer.recipes import language
from bench._common import find_shakespeare, import_nanogpt, make_parser, print_report

NEW_TOKENS = 200


def build_pair(module: ModuleType, preset: str, text: str) -> tuple[Any, language.LanguageModel]:
    """Return a nanoGPT model, and an anyformer model with its weights."""
    config = language.PRESETS[preset]
    m, tokenizer = replace(config.model, dropout=0.0), Characters(text)
    shape = {"block_size": m.context, "n_layer": m.n_layer, "n_head": m.n_head, "n_embd": m.dim}
    theirs = module.GPT(module.GPTConfig(vocab_size=tokenizer.vocab_size, dropout=0.0, bias=False, **shape)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():  # larger than at initialization, so that the largest logit is clear
        torch.nn.init.normal_(parameter, std=0.08) if parameter.ndim > 1 else None
    ours = language.LanguageModel(replace(config, model=m), tokenizer).eval()
    state = {"nodes.token.weight": theirs.transformer.wte.weight, "head.project.weight": theirs.transformer.wte.weight}
    state |= {
        "nodes.position.weight": theirs.transformer.wpe.weight,
        "body.norm.weight": theirs.transformer.ln_f.weight,
    }
    for i, block in enumerate(theirs.transformer.h):
        prefix = f"body.blocks.{i}."
        state |= {
            prefix + f"attn.{n}.weight": w for n, w in zip(("query", "key", "value"), block.attn.c_attn.weight.chunk(3))
        }
        state |= {
            prefix + "attn.output.weight": block.attn.c_proj.weight,
            prefix + "attn_norm.weight": block.ln_1.weight,
        }
        state |= {prefix + "mlp.up.weight": block.mlp.c_fc.weight, prefix + "mlp.down.weight": block.mlp.c_proj.weight}
        state |= {prefix + "mlp_norm.weight": block.ln_2.weight}
    ours.load_state_dict(state)
    return theirs, ours


def generate_theirs(model: Any, rows: int) -> list[list[int]]:
    return model.generate(torch.zeros(rows, 1, dtype=torch.long), NEW_TOKENS, top_k=1)[:, 1:].tolist()


def generate_ours(model: language.LanguageModel, rows: int, keep: int | None = None) -> list[list[int]]:
    steps = generate(
        model, [[0]] * rows, tokens=NEW_TOKENS, sampling=SamplingParams(temperature=0), seeds=[0] * rows, keep=keep
    )
    return [list(row) for row in zip(*steps)]


def time_median(work: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main() -> None:
    options = make_parser(__doc__.splitlines()[0]).parse_args()
    module, rows = import_nanogpt(options.nanogpt), {}
    text = find_shakespeare(options.nanogpt).read_text()
    for preset in ("nanogpt-gpu", "nanogpt-cpu"):
        theirs, ours = build_pair(module, preset, text)
        context = ours.body.config.context
        if generate_theirs(theirs, 1) != generate_ours(ours, 1, keep=context):
            raise SystemExit(f"{preset}: the two models disagree")
        for batch in (1, 8):
            tokens = NEW_TOKENS * batch
            our_seconds = time_median(partial(generate_ours, ours, batch))
            their_seconds = time_median(partial(generate_theirs, theirs, batch))
            row = (tokens / our_seconds, tokens / their_seconds, "tok/s")
            rows[f"{preset}, context {context}, batch {batch}"] = row
    print_report(
        f"{NEW_TOKENS} new tokens, the same weights, the same output, {torch.get_num_threads()} threads",
        rows,
        options.json,
    )


if __name__ == "__main__":
    main()
