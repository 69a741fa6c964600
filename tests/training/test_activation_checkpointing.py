"""Activation checkpointing: the same gradients from fewer activations, with every recipe, LoRA, FSDP and compile."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from anyformer.errors import InputError
from anyformer.model.config import find_stacks
from anyformer.model.transformer import Attention, Transformer
from anyformer.recipe_loading import list_recipes, load_recipe
from anyformer.recipes import mlp
from anyformer.training import loop
from anyformer.training.activation_checkpointing import checkpoint_activations
from anyformer.training.config import LoRAConfig
from anyformer.training.lora import add_lora

QUICK = {
    "test_gradients_are_the_same_bit_for_bit": {"multimodal", "language"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


def configure(name: str, is_checkpointed: bool, dropout: float = 0.1) -> tuple[Any, Any]:
    """Return a recipe and its tiny preset."""
    recipe = load_recipe(name)
    config: Any = recipe.PRESETS["tiny"]
    stacks = {key: replace(stack, dropout=dropout) for key, stack in find_stacks(config).items()}
    settings = {"device": "cpu", "dtype": "float32", "batch": 4, "activation_checkpointing": is_checkpointed}
    return recipe, replace(config, **stacks, train=replace(config.train, **settings))


def compute_gradients(recipe: Any, model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    loss = recipe.loss(model.train(), batch)
    loss.backward()
    return [loss.detach(), torch.rand(1), *(p.grad for p in model.parameters() if p.grad is not None)]


# One stack and two, with and without padding, in every run of the tests; the others are slow.
OFTEN = {"classify", "control", "language", "multimodal", "translation"}
WITHOUT = {"mlp", "seq2seq", "rnnsearch", "generalist"}  # no blocks, or blocks of which several stacks consist


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow)
        for name in list_recipes()
        if name not in WITHOUT
    ],
)
def test_gradients_are_the_same_bit_for_bit(name: str):
    results, calls = [], []
    for is_checkpointed in (False, True):
        recipe, config = configure(name, is_checkpointed)
        batch, _ = next(recipe.batches(config, "train", None))
        model = loop.init_state(recipe, config).model
        blocks = [block for stack in model.modules() if isinstance(stack, Transformer) for block in stack.blocks]
        calls.append(count_calls(blocks))
        results.append(compute_gradients(recipe, model, batch))
        assert sum(calls[-1].values()) == len(blocks) * (1 + is_checkpointed), "every block is computed twice"
    assert len(results[0]) > 2 and all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def count_calls(blocks: list[nn.Module]) -> dict[nn.Module, int]:
    calls = dict.fromkeys(blocks, 0)
    for block in blocks:
        attention = block.attn
        assert isinstance(attention, Attention)
        attention.register_forward_pre_hook(lambda *_, block=block: calls.update({block: calls[block] + 1}))
    return calls


def test_with_adapters():
    results = []
    for is_checkpointed in (False, True):
        recipe, config = configure("language", is_checkpointed)
        batch, _ = next(recipe.batches(config, "train", None))
        state = loop.init_state(recipe, config, lambda model: add_lora(model, LoRAConfig(rank=2)))
        results.append(compute_gradients(recipe, state.model, batch))
    assert len(results[0]) > 2 and all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture
def process_group() -> Generator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_with_shared_blocks(monkeypatch: pytest.MonkeyPatch):
    """FSDP gathers the weights of a block before its second pass; the loss reads those of the head in chunks."""
    monkeypatch.setattr("anyformer.model.kernels.cross_entropy.MAX_CPU_LOGITS", 1 << 10)
    results = []
    for is_sharded in (False, True):
        recipe, config = configure("language", is_sharded)
        batch, _ = next(recipe.batches(config, "train", None))
        model = loop.init_state(recipe, config).model
        step = Step(recipe, model)
        if is_sharded:
            mesh = init_device_mesh("cpu", (1,))
            for block in model.body.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(step, mesh=mesh)
        torch.manual_seed(0)
        step(batch).backward()
        results.append([p.grad.full_tensor() if is_sharded else p.grad for p in model.parameters()])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(expected, actual)


class Step(nn.Module):
    def __init__(self, recipe: Any, model: nn.Module):
        super().__init__()
        self.recipe, self.model = recipe, model.train()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.recipe.loss(self.model, batch)


@pytest.mark.slow
def test_traced_by_torch_compile():
    recipe, config = configure("language", True, dropout=0.0)
    batch, _ = next(recipe.batches(config, "train", None))
    model = loop.init_state(recipe, config).model.train()
    torch._dynamo.reset()
    compiled = torch.compile(recipe.loss, backend="eager", fullgraph=True)
    expected = torch.autograd.grad(recipe.loss(model, batch), list(model.parameters()))
    actual = torch.autograd.grad(compiled(model, batch), list(model.parameters()))
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_and_predictions_are_those_of_any_model():
    recipe, config = configure("language", True)
    model, plain = loop.init_state(recipe, config).model, loop.init_state(*configure("language", False)).model
    assert list(model.state_dict()) == list(plain.state_dict())
    batch, _ = next(recipe.batches(config, "val", None))
    calls = count_calls(list(model.body.blocks))
    assert torch.equal(recipe.loss(model.eval(), batch), recipe.loss(plain.eval(), batch))
    assert set(calls.values()) == {1}, "nothing is computed twice where no gradient is needed"


def test_a_model_without_blocks_is_refused():
    config = replace(mlp.PRESETS["tiny"].train, activation_checkpointing=True)
    with pytest.raises(InputError, match="no blocks of a Transformer"):
        checkpoint_activations(nn.Linear(1, 1), config)
