"""Rounding in float32: the logits of a public language model by anyformer and by transformers, beside float64.

    python -m bench.model.rounding FOLDER      a folder of the Hugging Face layout; needs transformers

float32 has 24 bits: where the residual stream holds numbers of tens of thousands, as in trained models of the Llama
type, its sums are rounded at the third decimal, and two libraries that add in different orders differ. The largest
number in the stream after each block is printed with the differences. Reference: our model in float64, with the angles
of the rotary positions in float32 as everywhere.
"""

import json
from pathlib import Path
from typing import Any

import torch

from anyformer import api
from anyformer.labs.benchmark import load_documentation
from anyformer.model import transformer
from bench._common import make_parser

SKIPPED = 5000  # characters at the beginning of the text


def compute_exactly(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Return the logits in float64, and the largest number after each block. Converts the model."""
    rotary, peaks = transformer.rotary_cos_sin, []
    transformer.rotary_cos_sin = lambda *arguments: tuple(part.double() for part in rotary(*arguments))
    hooks = [
        block.register_forward_hook(lambda _, __, y: peaks.append(float(y.abs().max()))) for block in model.body.blocks
    ]
    try:
        return model.double()(ids), peaks
    finally:
        transformer.rotary_cos_sin = rotary
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    import transformers

    model = api.load(options.model, "cpu").module
    text = load_documentation()[SKIPPED : SKIPPED + 40 * options.tokens]
    ids = torch.tensor([[int(i) for i in model.tokenizer.encode(text)][: options.tokens]])
    peer = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with torch.inference_mode():
        logits = {"anyformer": model(ids), "transformers": peer(ids).logits}
        exact, peaks = compute_exactly(model, ids)
    errors = {name: (x.double() - exact).abs() for name, x in logits.items()}
    errors["between them"] = (logits["anyformer"] - logits["transformers"]).abs().double()
    facts = {"largest_logit": float(exact.abs().max()), "largest_in_stream": max(peaks)}
    rows = {name: {"max": float(e.max()), "rms": float(e.square().mean().sqrt())} for name, e in errors.items()}
    if options.json:
        print(json.dumps(facts | rows))
        return
    print(f"largest logit {facts['largest_logit']:.1f}; largest number in the stream {facts['largest_in_stream']:,.0f}")
    for name, row in rows.items():
        print(f"{name:<14} at most {row['max']:.1e}, root mean square {row['rms']:.1e}")


if __name__ == "__main__":
    main()
