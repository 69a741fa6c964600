"""torch's optimizers without its compiler: the same updates and states, and it is not imported."""

import subprocess
import sys

import pytest
import torch

from anyformer.training.uncompiled import AdamW

CODE = """
import sys
from torch import nn
from anyformer.training.config import TrainConfig
from anyformer.training.optimizers import Optimizer
from anyformer.model.config import TransformerConfig
from anyformer.model.transformer import Transformer
model = Transformer(TransformerConfig(dim=8, n_layer=1, n_head=2, context=4))
optimizer = Optimizer(model, TrainConfig(optimizer="muon"))
for parameter in model.parameters():
    parameter.grad = parameter.detach() * 0.1
optimizer.step(0.1)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def update(kind: type[torch.optim.AdamW], fused: bool) -> tuple[list[torch.Tensor], dict]:
    """Return the parameters and the state after five updates; the second half continues from a stored state."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(4))]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = kind(groups, 0.01, (0.9, 0.95), fused=fused)
    for step in range(5):
        if step == 3:
            state, optimizer = optimizer.state_dict(), kind(groups, 0.01, (0.9, 0.95), fused=fused)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        sum((parameter**2).sum() for parameter in parameters).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def test_updates_and_states_are_those_of_torch():
    for fused in (False, True):
        (own, state), (other, expected) = update(AdamW, fused), update(torch.optim.AdamW, fused)
        assert all(map(torch.equal, own, other))
        assert state["param_groups"] == expected["param_groups"] and state["state"].keys() == expected["state"].keys()
        for values, reference in zip(state["state"].values(), expected["state"].values()):
            assert values.keys() == reference.keys() and all(
                torch.equal(values[key], reference[key]) for key in reference
            )


@pytest.mark.slow
def test_the_compiler_is_not_imported():
    process = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "[]\n"
