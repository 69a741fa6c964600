"""What `lm-eval --model local-completions` asks, and the answer of `transformers` on the exported folder."""

from pathlib import Path

import torch

import anyformer
from checkpoint_kit import build_reference, export, transformers
from serve_kit import serve


def test_loglikelihoods_equal_those_of_transformers(tmp_path: Path):
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": 53}
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=96, **ends)
    build_reference("GPT2LMHeadModel", config).save_pretrained(tmp_path / "source")
    model = anyformer.load(tmp_path / "source", "cpu")
    export(model, tmp_path / "exported")
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(53, (n,), generator=generator).tolist() for n in (2, 5, 17, 96, 40)]
    with serve({"gpt2": model}) as server:
        body = {"model": "gpt2", "prompt": rows, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        choices = server.post("/v1/completions", body | {"temperature": 0}).json()["choices"]
    for ids, choice in zip(rows, choices, strict=True):
        n_context = max(1, len(ids) // 2)
        logprobs = choice["logprobs"]["token_logprobs"][n_context:-1]
        top = choice["logprobs"]["top_logprobs"][n_context:-1]
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(ids[1:])
        own = expected.gather(1, labels[:, None])[n_context - 1 :, 0]
        assert abs(sum(logprobs) - own.sum().item()) < 1e-3
        greedy = (expected.argmax(-1) == labels)[n_context - 1 :].tolist()
        assert [value == max(values.values()) for value, values in zip(logprobs, top, strict=True)] == greedy
