"""Inputs of every kind: each has its embedding, edges and head, and the loss falls.

Shapes: B batch, T nodes, C channels, M nodes of a memory.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.model import (
    Classifier,
    Edges,
    FrameEmbedding,
    LMHead,
    PatchEmbedding,
    Regressor,
    TokenEmbedding,
    TrajectoryEmbedding,
    Transformer,
    TransformerConfig,
    causal,
    full,
    initialize,
    neighbors,
    window,
    within,
)
from anyformer.model.positions import SinusoidalPosition

B, C, VOCAB = 4, 16, 11
LENGTHS = torch.tensor([6, 3, 1, 5])

Loss = Callable[[nn.ModuleDict], Tensor]


def make_config(**changes) -> TransformerConfig:
    return TransformerConfig(**{"dim": C, "n_layer": 2, "n_head": 4, "context": 32} | changes)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1)


def causal_text() -> tuple[nn.ModuleDict, Loss]:
    config = make_config(n_kv_head=2, activation="swiglu", norm="rmsnorm", bias=False, position="rotary")
    nodes = TokenEmbedding(VOCAB, config)
    model = nn.ModuleDict({"nodes": nodes, "body": Transformer(config), "head": LMHead(C, VOCAB, tied=nodes.token)})
    ids = torch.randint(VOCAB, (B, 13))
    return model, lambda m: cross_entropy(m.head(m.body(m.nodes(ids[:, :-1]), causal)), ids[:, 1:])


def text_with_masks() -> tuple[nn.ModuleDict, Loss]:
    config = make_config(norm_place="post")
    parts = {"nodes": TokenEmbedding(VOCAB, config), "body": Transformer(config), "head": LMHead(C, VOCAB)}
    ids, is_masked = torch.randint(1, VOCAB, (B, 6)), torch.arange(6) % 2 == 0
    labels = ids.masked_fill(~is_masked | (torch.arange(6) >= LENGTHS[:, None]), -1)
    inputs = ids.masked_fill(is_masked, 0)
    return nn.ModuleDict(parts), lambda m: cross_entropy(m.head(m.body(m.nodes(inputs), within(LENGTHS))), labels)


def translation() -> tuple[nn.ModuleDict, Loss]:
    config = make_config(position="relative", norm="rmsnorm", activation="relu", bias=False)
    model = nn.ModuleDict(
        {
            "source": TokenEmbedding(VOCAB, config),
            "encoder": Transformer(config),
            "target": TokenEmbedding(VOCAB, config),
            "decoder": Transformer(config, cross=True),
            "head": LMHead(C, VOCAB),
        }
    )
    source, target, mask = torch.randint(VOCAB, (B, 6)), torch.randint(VOCAB, (B, 8)), within(LENGTHS)

    def loss(m: nn.ModuleDict) -> Tensor:
        memory = m.encoder(m.source(source), mask)
        return cross_entropy(m.head(m.decoder(m.target(target[:, :-1]), causal, memory, mask)), target[:, 1:])

    return model, loss


def image() -> tuple[nn.ModuleDict, Loss]:
    config = make_config()
    parts = {"nodes": PatchEmbedding(4, config), "body": Transformer(config), "head": Classifier(C, 3, pool="first")}
    pixels, labels = torch.randn(B, 3, 12, 16), torch.tensor([0, 1, 2, 0])
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(pixels), full)), labels)


def image_with_neighbors() -> tuple[nn.ModuleDict, Loss]:
    """The class token stands before the grid: it reads all and is read by all; early layers read neighbors only."""
    config = make_config(n_layer=3)
    hub = Edges(lambda b, h, q, k: (q == 0) | (k == 0), uses_batch=False, uses_head=False)
    parts = {"nodes": PatchEmbedding(4, config), "body": Transformer(config), "head": Classifier(C, 3, pool="mean")}
    pixels, labels = torch.randn(B, 3, 12, 16), torch.tensor([0, 1, 2, 0])
    rules = [hub | neighbors(3, 4, 1, offset=1)] * 2 + [full]
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(pixels), rules)), labels)


def speech() -> tuple[nn.ModuleDict, Loss]:
    config = make_config()
    model = nn.ModuleDict(
        {
            "sound": FrameEmbedding(8, config),
            "encoder": Transformer(config),
            "text": TokenEmbedding(VOCAB, config),
            "decoder": Transformer(config, cross=True),
            "head": LMHead(C, VOCAB),
        }
    )
    mel, ids = torch.randn(B, 8, 20), torch.randint(VOCAB, (B, 7))

    def loss(m: nn.ModuleDict) -> Tensor:
        memory = m.encoder(m.sound(mel), full)
        return cross_entropy(m.head(m.decoder(m.text(ids[:, :-1]), causal, memory)), ids[:, 1:])

    return model, loss


def trajectories() -> tuple[nn.ModuleDict, Loss]:
    """Return, state, action, return, state, action ...: after each state, which action?"""
    config, steps = make_config(position="none"), 5
    parts = {"nodes": TrajectoryEmbedding(3, 2, steps, config), "body": Transformer(config), "head": nn.Linear(C, 2)}
    returns, state, action = (torch.randn(B, steps, size) for size in (1, 3, 2))
    timestep = torch.arange(steps).expand(B, -1)

    def loss(m: nn.ModuleDict) -> Tensor:
        x = m.body(m.nodes(returns, state, action, timestep), causal)
        return F.mse_loss(m.head(x[:, 1::3]), action)

    return nn.ModuleDict(parts), loss


class SensorEmbedding(nn.Module):
    """Measurements of several sensors as a set: the value plus a vector for the sensor, without position."""

    def __init__(self, kinds: int, features: int):
        super().__init__()
        self.value, self.kind = nn.Linear(features, C), nn.Embedding(kinds, C)

    def forward(self, value: Tensor, kind: Tensor) -> Tensor:
        return self.value(value) + self.kind(kind)


def sensors() -> tuple[nn.ModuleDict, Loss]:
    config = make_config(position="none", qk_norm=True)
    parts = {"nodes": SensorEmbedding(5, 2), "body": Transformer(config), "head": Regressor(C, 1)}
    value, kind, labels = torch.randn(B, 6, 2), torch.randint(5, (B, 6)), torch.randn(B, 1)
    rule = full & within(LENGTHS)
    return nn.ModuleDict(parts), lambda m: F.mse_loss(m.head(m.body(m.nodes(value, kind), rule), LENGTHS), labels)


def long_sound() -> tuple[nn.ModuleDict, Loss]:
    """Many frames, each of which reads those near it: attention in blocks."""
    config = make_config(position="alibi")
    parts = {"nodes": FrameEmbedding(8, config), "body": Transformer(config), "head": Classifier(C, 3)}
    mel, labels = torch.randn(B, 8, 300), torch.tensor([0, 1, 2, 0])
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(mel), window(5))), labels)


KINDS = [
    causal_text,
    text_with_masks,
    translation,
    image,
    image_with_neighbors,
    speech,
    trajectories,
    sensors,
    long_sound,
]


def has_no_effect(name: str, model: nn.ModuleDict) -> bool:
    """A bias of all keys adds the same q . bias to all scores of a query, which the softmax ignores. (Not so where a
    norm or a rotation comes between.)"""
    stack = next(part for part in model.values() if isinstance(part, Transformer))
    return name.endswith(".key.bias") and not stack.config.qk_norm and stack.config.position != "rotary"


def build(kind: Callable[[], tuple[nn.ModuleDict, Loss]]) -> tuple[nn.ModuleDict, Loss]:
    torch.manual_seed(0)
    model, loss = kind()
    return initialize(model, next(part.config for part in model.values() if isinstance(part, Transformer))), loss


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_parameter_has_a_gradient_and_the_loss_falls(kind):
    model, loss = build(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = loss(model)
    before.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        largest = weight.grad.abs().max()
        assert largest < 1e-6 if has_no_effect(name, model) else largest > 1e-9, name
    optimizer.step()
    assert loss(model) < before.detach() - 1e-5


@pytest.mark.parametrize("kind", [causal_text, text_with_masks, image, speech], ids=lambda kind: kind.__name__)
def test_initially_all_answers_are_about_equally_likely(kind):
    model, loss = build(kind)
    assert loss(model).item() == pytest.approx(torch.tensor(model.head.project.out_features).log().item(), rel=0.05)


def test_blocks_initialized_with_zero_are_the_identity():
    config = make_config(init="zero")
    body, x = initialize(Transformer(config), config), torch.randn(B, 6, C)
    torch.testing.assert_close(body(x, causal), F.layer_norm(x, (C,)))


@torch.no_grad()
def test_a_set_of_measurements_has_no_order():
    model, _ = build(sensors)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    value, kind, order = torch.randn(B, 6, 2), torch.randint(5, (B, 6)), torch.randperm(6)

    def predict(value: Tensor, kind: Tensor) -> Tensor:
        return model.head(model.body(model.nodes(value, kind), full))

    torch.testing.assert_close(predict(value[:, order], kind[:, order]), predict(value, kind), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predict(value, kind[:, order]), predict(value, kind), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_pooling_ignores_padding(pool):
    torch.manual_seed(0)
    head, x = Classifier(C, 3, pool), torch.randn(B, 6, C)
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(head(x, LENGTHS)[row], head(x[row : row + 1, :length])[0])
    assert head(x, torch.zeros(B, dtype=torch.long)).isfinite().all()


def test_a_tied_head_and_its_embedding_are_one_parameter():
    model, loss = build(causal_text)
    assert model.head.project.weight is model.nodes.token.weight
    assert sum(1 for name, _ in model.named_parameters() if "token" in name or "head" in name) == 1
    loss(model).backward()


def test_patches_are_read_row_by_row_after_the_class_token():
    config = make_config(position="none")
    nodes = PatchEmbedding(4, config)
    pixels = torch.randn(1, 3, 8, 12)
    x = nodes(pixels)
    assert x.shape == (1, 1 + 2 * 3, C)
    assert torch.equal(x[0, 0], nodes.cls_token[0, 0])
    torch.testing.assert_close(x[0, 6], nodes(pixels[:, :, 4:8, 8:12])[0, 1])  # the last cell alone
    torch.testing.assert_close(x[0, 3], nodes(pixels[:, :, :4, 8:12])[0, 1])


def test_two_frames_of_sound_make_a_node_with_a_position():
    nodes = FrameEmbedding(8, make_config(position="sinusoidal"))(torch.zeros(1, 8, 20))[0]  # (10, C), of silence
    content = nodes - SinusoidalPosition(C)(torch.arange(10))
    torch.testing.assert_close(content[2:-2], content[2:3].expand(6, C))
