"""Generate 200 tokens with nanoGPT's `generate` and with anyformer, from the same weights: tokens per second.

    python -m bench.inference.generation_vs_nanogpt --nanogpt ../nanoGPT

Both decode greedily, and must agree on every token before anything is timed.
"""

import statistics
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from anyformer.data.tokenizers.build import Characters
from anyformer.recipes import language
from bench._common import generate_greedy
from bench._nanogpt import find_shakespeare, import_nanogpt, make_nanogpt_parser, print_report

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
    gpt = theirs.transformer
    modules = {"nodes.token": gpt.wte, "head.project": gpt.wte, "nodes.position": gpt.wpe, "body.norm": gpt.ln_f}
    state = {f"{name}.weight": part.weight for name, part in modules.items()}
    for i, block in enumerate(gpt.h):
        modules = {"attn.output": block.attn.c_proj, "attn_norm": block.ln_1, "mlp_norm": block.ln_2}
        modules |= {"mlp.up": block.mlp.c_fc, "mlp.down": block.mlp.c_proj}
        weights = {name: part.weight for name, part in modules.items()}
        weights |= zip(("attn.query", "attn.key", "attn.value"), block.attn.c_attn.weight.chunk(3))
        state |= {f"body.blocks.{i}.{name}.weight": weight for name, weight in weights.items()}
    ours.load_state_dict(state)
    return theirs, ours


def generate_theirs(model: Any, rows: int) -> list[list[int]]:
    return model.generate(torch.zeros(rows, 1, dtype=torch.long), NEW_TOKENS, top_k=1)[:, 1:].tolist()


def time_median(work: Callable[[], object]) -> float:
    return statistics.median(timeit.repeat(work, number=1, repeat=3))


def main() -> None:
    options = make_nanogpt_parser(__doc__).parse_args()
    module, rows = import_nanogpt(options.nanogpt), {}
    text = find_shakespeare(options.nanogpt).read_text()
    for preset in ("nanogpt-gpu", "nanogpt-cpu"):
        theirs, ours = build_pair(module, preset, text)
        context = ours.body.config.context
        if generate_theirs(theirs, 1) != generate_greedy(ours, [[0]], NEW_TOKENS, context):
            raise SystemExit(f"{preset}: the two models disagree")
        for batch in (1, 8):
            tokens = NEW_TOKENS * batch
            our_seconds = time_median(partial(generate_greedy, ours, [[0]] * batch, NEW_TOKENS))
            their_seconds = time_median(partial(generate_theirs, theirs, batch))
            row = (tokens / our_seconds, tokens / their_seconds, "tok/s")
            rows[f"{preset}, context {context}, batch {batch}"] = row
    title = f"{NEW_TOKENS} new tokens, the same weights, the same output, {torch.get_num_threads()} threads"
    print_report(title, rows, options.json)


if __name__ == "__main__":
    main()
