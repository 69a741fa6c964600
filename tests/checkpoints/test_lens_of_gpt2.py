"""What is recorded of an imported GPT-2 equals the hidden states and attentions of transformers."""

from pathlib import Path

import torch

import anyformer
from anyformer.report.lens import build_lens
from checkpoint_kit import assert_close, build_reference, save, transformers

SIZES = {"n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 32, "vocab_size": 53}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def test_recorded_values_equal_those_of_transformers(tmp_path: Path):
    config = transformers.GPT2Config(**SIZES, **ENDS, attn_implementation="eager")
    reference = build_reference("GPT2LMHeadModel", config)
    model = anyformer.load(save(reference, tmp_path / "gpt2"), "cpu")
    ids = torch.randint(53, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.record() as trace:
        model.module(ids)
        expected = reference(ids, output_hidden_states=True, output_attentions=True)
    streams = [trace["body.blocks.0"].input, *(trace[f"body.blocks.{i}"].output for i in range(2))]
    for stream, hidden in zip([*streams, trace["body"].output], expected.hidden_states, strict=True):
        assert_close(stream, hidden)
    for i, attention in enumerate(expected.attentions):
        assert_close(trace[f"body.blocks.{i}.attn"].weights, attention)
    sums = {}
    for i, block in enumerate(reference.transformer.h):
        for name, module in ((f"body.blocks.{i}.attn", block.attn), (f"body.blocks.{i}.mlp", block.mlp)):
            module.register_forward_hook(
                lambda _, args, output, name=name: sums.update(
                    {name: output[0] if isinstance(output, tuple) else output}
                )
            )
    with torch.no_grad():
        reference(ids)
    for name, output in sums.items():
        assert_close(trace[name].output, output)


def test_the_lens_shows_an_imported_checkpoint(tmp_path: Path):
    reference = build_reference("GPT2LMHeadModel", transformers.GPT2Config(**SIZES, **ENDS))
    model = anyformer.load(save(reference, tmp_path / "gpt2"), "cpu")
    data = build_lens(model, "3 1 4 1 5")
    with torch.no_grad():
        hidden = reference(torch.tensor([[3, 1, 4, 1, 5]]), output_hidden_states=True).hidden_states
        early = reference.lm_head(reference.transformer.ln_f(hidden[1]))[0].softmax(-1)
    top, probability = data["readings"]["cells"][1][-1][0]
    assert data["readings"]["outputs"][top] == str(int(early[-1].argmax()))
    assert abs(probability - float(early[-1].max())) < 1e-3
