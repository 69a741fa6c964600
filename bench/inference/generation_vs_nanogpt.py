"""Generate 200 tokens with nanoGPT's `generate` and with ours, the very same weights in both: tokens a second.

    python -m bench.inference.generation_vs_nanogpt --nanogpt ../nanoGPT

Both take the likeliest token, and must agree on every one of them before anything is timed.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from anyformer.data.tokenizers.build import Characters
from anyformer.inference.decode import generate
from anyformer.inference.sampling import SamplingParams
from anyformer.recipes import language
from bench._common import arguments, nanogpt, report, shakespeare

NEW = 200


def twins(peer: ModuleType, preset: str, text: str) -> tuple[Any, language.LanguageModel]:
    """A nanoGPT model and ours with its weights."""
    config = language.PRESETS[preset]
    m, tokenizer = replace(config.model, dropout=0.0), Characters(text)
    shape = {"block_size": m.context, "n_layer": m.n_layer, "n_head": m.n_head, "n_embd": m.dim}
    theirs = peer.GPT(peer.GPTConfig(vocab_size=tokenizer.vocab_size, dropout=0.0, bias=False, **shape)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():  # sharper than at birth, so that the likeliest token is clear
        torch.nn.init.normal_(parameter, std=0.08) if parameter.ndim > 1 else None
    ours = language.LanguageModel(replace(config, model=m), tokenizer).eval()
    state = {"nodes.token.weight": theirs.transformer.wte.weight, "head.project.weight": theirs.transformer.wte.weight}
    state |= {
        "nodes.position.weight": theirs.transformer.wpe.weight,
        "body.norm.weight": theirs.transformer.ln_f.weight,
    }
    for i, block in enumerate(theirs.transformer.h):
        here = f"body.blocks.{i}."
        state |= {
            here + f"attn.{n}.weight": w for n, w in zip(("query", "key", "value"), block.attn.c_attn.weight.chunk(3))
        }
        state |= {here + "attn.output.weight": block.attn.c_proj.weight, here + "attn_norm.weight": block.ln_1.weight}
        state |= {here + "mlp.up.weight": block.mlp.c_fc.weight, here + "mlp.down.weight": block.mlp.c_proj.weight}
        state |= {here + "mlp_norm.weight": block.ln_2.weight}
    ours.load_state_dict(state)
    return theirs, ours


def theirs_says(model: Any, rows: int) -> list[list[int]]:
    return model.generate(torch.zeros(rows, 1, dtype=torch.long), NEW, top_k=1)[:, 1:].tolist()


def ours_says(model: language.LanguageModel, rows: int, keep: int | None = None) -> list[list[int]]:
    steps = generate(
        model, [[0]] * rows, tokens=NEW, sampling=SamplingParams(temperature=0), seeds=[0] * rows, keep=keep
    )
    return [list(row) for row in zip(*steps)]


def seconds(what: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        what()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def main() -> None:
    asked = arguments(__doc__.splitlines()[0]).parse_args()
    peer, rows = nanogpt(asked.nanogpt), {}
    text = shakespeare(asked.nanogpt).read_text()
    for preset in ("nanogpt-gpu", "nanogpt-cpu"):
        theirs, ours = twins(peer, preset, text)
        context = ours.body.config.context
        if theirs_says(theirs, 1) != ours_says(ours, 1, keep=context):
            raise SystemExit(f"{preset}: the two sides do not say the same")
        for batch in (1, 8):
            mine, other = seconds(lambda: ours_says(ours, batch)), seconds(lambda: theirs_says(theirs, batch))  # noqa: B023
            rows[f"{preset}, context {context}, batch {batch}"] = (NEW * batch / mine, NEW * batch / other, "tok/s")
    report(f"{NEW} new tokens, the same weights, the same words, {torch.get_num_threads()} threads", rows, asked.json)


if __name__ == "__main__":
    main()
