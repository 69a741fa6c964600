"""The core takes raw vectors of any kind: for each field its nodes, its edges and its head, and the loss comes down.

Shapes: B batch, T nodes, C channels, M nodes of a memory.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.model.transformer import Transformer
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import Edges, causal, full, neighbors, window, within
from anyformer.model.embeddings import FrameEmbedding, PatchEmbedding, SensorEmbedding, TokenEmbedding
from anyformer.model.heads import Classifier, LMHead, Regressor
from anyformer.model.init import initialize
from anyformer.model.positions import LearnedPosition, SinusoidalPosition

B, C, VOCAB = 4, 16, 11
LENGTHS = torch.tensor([6, 3, 1, 5])

Loss = Callable[[nn.ModuleDict], Tensor]


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{"dim": C, "n_layer": 2, "n_head": 4, "context": 32} | changes)


def entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-1)


def causal_text() -> tuple[nn.ModuleDict, Loss]:
    shape = config(n_kv_head=2, activation="swiglu", norm="rmsnorm", bias=False, position="rotary")
    nodes = TokenEmbedding(VOCAB, shape)
    model = nn.ModuleDict({"nodes": nodes, "body": Transformer(shape), "head": LMHead(C, VOCAB, tied=nodes.token)})
    ids = torch.randint(VOCAB, (B, 13))
    return model, lambda m: entropy(m.head(m.body(m.nodes(ids[:, :-1]), causal)), ids[:, 1:])


def masked_text() -> tuple[nn.ModuleDict, Loss]:
    shape = config(norm_place="post")
    model = nn.ModuleDict({"nodes": TokenEmbedding(VOCAB, shape), "body": Transformer(shape), "head": LMHead(C, VOCAB)})
    ids, hidden = torch.randint(1, VOCAB, (B, 6)), torch.arange(6) % 2 == 0
    target = ids.masked_fill(~hidden | (torch.arange(6) >= LENGTHS[:, None]), -1)
    return model, lambda m: entropy(m.head(m.body(m.nodes(ids.masked_fill(hidden, 0)), within(LENGTHS))), target)


def translation() -> tuple[nn.ModuleDict, Loss]:
    shape = config(position="relative", norm="rmsnorm", activation="relu", bias=False)
    model = nn.ModuleDict(
        {
            "source": TokenEmbedding(VOCAB, shape),
            "encoder": Transformer(shape),
            "target": TokenEmbedding(VOCAB, shape),
            "decoder": Transformer(shape, cross=True),
            "head": LMHead(C, VOCAB),
        }
    )
    source, target, seen = torch.randint(VOCAB, (B, 6)), torch.randint(VOCAB, (B, 8)), within(LENGTHS)

    def loss(m: nn.ModuleDict) -> Tensor:
        memory = m.encoder(m.source(source), seen)
        return entropy(m.head(m.decoder(m.target(target[:, :-1]), causal, memory, seen)), target[:, 1:])

    return model, loss


def image() -> tuple[nn.ModuleDict, Loss]:
    shape = config()
    parts = {"nodes": PatchEmbedding(4, shape), "body": Transformer(shape), "head": Classifier(C, 3, pool="first")}
    pixels, labels = torch.randn(B, 3, 12, 16), torch.tensor([0, 1, 2, 0])
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(pixels), full)), labels)


def image_with_neighbours() -> tuple[nn.ModuleDict, Loss]:
    """The class node stands in front of the grid: it reads all and is read by all; early layers look around only."""
    shape, grid = config(n_layer=3), neighbors(3, 4, 1)
    around = Edges(lambda b, h, q, k: (q == 0) | (k == 0) | grid(b, h, q - 1, k - 1), uses_batch=False, uses_head=False)
    parts = {"nodes": PatchEmbedding(4, shape), "body": Transformer(shape), "head": Classifier(C, 3, pool="mean")}
    pixels, labels = torch.randn(B, 3, 12, 16), torch.tensor([0, 1, 2, 0])
    rules = [around, around, full]
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(pixels), rules)), labels)


def speech() -> tuple[nn.ModuleDict, Loss]:
    shape = config()
    model = nn.ModuleDict(
        {
            "sound": FrameEmbedding(8, shape),
            "encoder": Transformer(shape),
            "text": TokenEmbedding(VOCAB, shape),
            "decoder": Transformer(shape, cross=True),
            "head": LMHead(C, VOCAB),
        }
    )
    mel, ids = torch.randn(B, 8, 20), torch.randint(VOCAB, (B, 7))

    def loss(m: nn.ModuleDict) -> Tensor:
        memory = m.encoder(m.sound(mel), full)
        return entropy(m.head(m.decoder(m.text(ids[:, :-1]), causal, memory)), ids[:, 1:])

    return model, loss


def trajectories() -> tuple[nn.ModuleDict, Loss]:
    """Return, state, action, return, state, action ...: after each state, which action?"""
    shape, steps = config(position="none"), 5
    model = nn.ModuleDict(
        {
            "returns": nn.Linear(1, C),
            "state": nn.Linear(3, C),
            "action": nn.Linear(2, C),
            "step": LearnedPosition(steps, C),
            "body": Transformer(shape),
            "head": nn.Linear(C, 2),
        }
    )
    returns, state, action = torch.randn(B, steps, 1), torch.randn(B, steps, 3), torch.randn(B, steps, 2)

    def loss(m: nn.ModuleDict) -> Tensor:
        at = m.step(torch.arange(steps))
        nodes = torch.stack([m.returns(returns) + at, m.state(state) + at, m.action(action) + at], dim=2)
        return F.mse_loss(m.head(m.body(nodes.flatten(1, 2), causal)[:, 1::3]), action)

    return model, loss


def sensors() -> tuple[nn.ModuleDict, Loss]:
    shape = config(position="none", qk_norm=True)
    parts = {"nodes": SensorEmbedding(5, 2, shape), "body": Transformer(shape), "head": Regressor(C, 1)}
    value, kind, target = torch.randn(B, 6, 2), torch.randint(5, (B, 6)), torch.randn(B, 1)
    rule = full & within(LENGTHS)
    return nn.ModuleDict(parts), lambda m: F.mse_loss(m.head(m.body(m.nodes(value, kind), rule), LENGTHS), target)


def long_sound() -> tuple[nn.ModuleDict, Loss]:
    """Many frames, each of which hears those near it: the path in blocks."""
    shape = config(position="alibi")
    parts = {"nodes": FrameEmbedding(8, shape), "body": Transformer(shape), "head": Classifier(C, 3)}
    mel, labels = torch.randn(B, 8, 300), torch.tensor([0, 1, 2, 0])
    return nn.ModuleDict(parts), lambda m: F.cross_entropy(m.head(m.body(m.nodes(mel), window(5))), labels)


FIELDS = [
    causal_text,
    masked_text,
    translation,
    image,
    image_with_neighbours,
    speech,
    trajectories,
    sensors,
    long_sound,
]


def never_matters(name: str, model: nn.ModuleDict) -> bool:
    """A bias of all keys adds the same q . bias to all scores of a query, and the softmax takes no notice. (Not so
    where a norm or a turn comes between: then the same bias is another number for each key.)"""
    stack = next(part for part in model.values() if isinstance(part, Transformer))
    return name.endswith(".key.bias") and not stack.config.qk_norm and stack.config.position != "rotary"


def build(field: Callable[[], tuple[nn.ModuleDict, Loss]]) -> tuple[nn.ModuleDict, Loss]:
    torch.manual_seed(0)
    model, loss = field()
    return initialize(model, next(part.config for part in model.values() if isinstance(part, Transformer))), loss


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.__name__)
def test_every_parameter_learns(field):
    model, loss = build(field)
    loss(model).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        moved = weight.grad.abs().max()
        assert moved < 1e-6 if never_matters(name, model) else moved > 1e-9, name


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.__name__)
def test_the_loss_comes_down(field):
    model, loss = build(field)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    before = loss(model)
    before.backward()
    optimiser.step()
    assert loss(model) < before.detach() - 1e-5


@pytest.mark.parametrize("field", [causal_text, masked_text, image, speech], ids=lambda field: field.__name__)
def test_at_the_start_every_answer_is_about_equally_likely(field):
    model, loss = build(field)
    assert loss(model).item() == pytest.approx(torch.tensor(model.head.project.out_features).log().item(), rel=0.05)


def test_blocks_that_write_zero_begin_as_the_identity():
    shape = config(init="zero")
    body, x = initialize(Transformer(shape), shape), torch.randn(B, 6, C)
    torch.testing.assert_close(body(x, causal), F.layer_norm(x, (C,)))


@torch.no_grad()
def test_a_set_of_readings_has_no_order():
    model, _ = build(sensors)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    value, kind, order = torch.randn(B, 6, 2), torch.randint(5, (B, 6)), torch.randperm(6)

    def answer(value: Tensor, kind: Tensor) -> Tensor:
        return model.head(model.body(model.nodes(value, kind), full))

    torch.testing.assert_close(answer(value[:, order], kind[:, order]), answer(value, kind), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answer(value, kind[:, order]), answer(value, kind), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_an_answer_for_the_whole_ignores_padding(pool):
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


def test_patches_are_read_row_by_row_after_the_class_node():
    shape = config(position="none")
    nodes = PatchEmbedding(4, shape)
    pixels = torch.randn(1, 3, 8, 12)
    got = nodes(pixels)
    assert got.shape == (1, 1 + 2 * 3, C)
    assert torch.equal(got[0, 0], nodes.cls_token[0, 0])
    alone = nodes(pixels[:, :, 4:8, 8:12])[0, 1]  # the last cell
    torch.testing.assert_close(got[0, 6], alone)
    torch.testing.assert_close(got[0, 3], nodes(pixels[:, :, :4, 8:12])[0, 1])


def test_two_frames_of_sound_make_a_node_that_knows_when_it_was():
    nodes = FrameEmbedding(8, config(position="sinusoidal"))(torch.zeros(1, 8, 20))[
        0
    ]  # (10, C): silence, so that they differ by their time alone
    same = nodes - SinusoidalPosition(C)(torch.arange(10))
    torch.testing.assert_close(same[2:-2], same[2:3].expand(6, C))
