"""Rotary frequencies for longer contexts equal those of transformers, also at long positions."""

import pytest
import torch

from anyformer.model import RopeScaling, TransformerConfig
from anyformer.model.positions import rotary_cos_sin
from anyformer.model.rope_scaling import rotary_frequencies

transformers = pytest.importorskip("transformers", reason="the oracle of these tests")
LlamaConfig = transformers.LlamaConfig
pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="names of version 5 of transformers")
CPU = torch.device("cpu")
POSITIONS = torch.tensor([0, 1, 500, 8_191, 8_192, 40_000, 131_071])
ORIGINAL = 8192


def read_reference(channels: int, base: float, **scaling: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines of transformers, (T, D) each."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    is_dynamic = scaling["rope_type"] == "dynamic"
    config = LlamaConfig(
        hidden_size=2 * channels,
        num_attention_heads=2,
        max_position_embeddings=ORIGINAL if is_dynamic else 16 * ORIGINAL,
        rope_parameters={"rope_theta": base, "original_max_position_embeddings": ORIGINAL} | scaling,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), POSITIONS[None])
    return cos[0], sin[0]


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 16.0},
        {"rope_type": "yarn", "factor": 3.7, "attention_factor": 1.25, "beta_fast": 20.0, "beta_slow": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 8.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(("channels", "base"), [(64, 10_000.0), (128, 500_000.0), (16, 1e6)])
def test_angles_are_those_of_transformers_at_long_positions(scaling: dict, channels: int, base: float):
    rope_scaling = RopeScaling(original_max_position_embeddings=ORIGINAL, **scaling)
    shape = {"dim": 2 * channels, "n_head": 2, "context": 16 * ORIGINAL, "position": "rotary", "rotary_base": base}
    config = TransformerConfig(**shape, rope_scaling=rope_scaling)
    cos, sin = rotary_cos_sin(POSITIONS, *rotary_frequencies(config, int(POSITIONS[-1]) + 1, CPU))
    expected_cos, expected_sin = read_reference(channels, base, **scaling)
    sign = torch.cat([-torch.ones(channels // 2), torch.ones(channels // 2)])  # half of the sines are turned here
    assert torch.equal(cos[0, 0], expected_cos) and torch.equal(sin[0, 0] * sign, expected_sin)


@pytest.mark.parametrize("attention", [None, 1.3])
@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1])
def test_longrope_angles_are_those_of_phi3(length: int, attention: float | None):
    """Within the original context, and where one node more is read."""
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    factors = {"short_factor": [1.0 + 0.01 * i for i in range(16)], "long_factor": [1.0 + i for i in range(16)]}
    fields = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL, **factors}
    fields |= {} if attention is None else {"attention_factor": attention}
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 16 * ORIGINAL}
    reference = Phi3RotaryEmbedding(
        Phi3Config(**sizes, original_max_position_embeddings=ORIGINAL, rope_parameters=fields, pad_token_id=0)
    )
    positions = torch.tensor([0, 1, 500, length - 1])
    expected_cos, expected_sin = (part[0] for part in reference(torch.zeros(1), positions[None]))
    scaling = RopeScaling(
        rope_type="longrope", factor=16.0, original_max_position_embeddings=ORIGINAL, attention_factor=attention,
        short_factor=tuple(factors["short_factor"]), long_factor=tuple(factors["long_factor"]),
    )  # fmt: skip
    config = TransformerConfig(dim=64, n_head=2, context=16 * ORIGINAL, position="rotary", rope_scaling=scaling)
    cos, sin = rotary_cos_sin(positions, *rotary_frequencies(config, length, CPU))
    sign = torch.cat([-torch.ones(16), torch.ones(16)])
    assert torch.equal(cos[0, 0], expected_cos) and torch.equal(sin[0, 0] * sign, expected_sin)


@pytest.mark.parametrize("fields", [{"short_factor": (1.0,), "long_factor": (0.0,)}, {"rope_type": "yarn"}, {}])
def test_factors_are_for_longrope_and_fit_the_heads(fields: dict):
    values = {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 8, "long_factor": (1.0,)}
    with pytest.raises(ValueError, match=r"short_factor|long_factor"):
        RopeScaling(**values | fields)
    scaling = RopeScaling(**values | {"short_factor": (1.0,)})
    with pytest.raises(ValueError, match="short_factor has 1 numbers; a head has 4 pairs"):
        TransformerConfig(dim=16, n_head=2, position="rotary", rope_scaling=scaling)


def test_dynamic_frequencies_are_those_of_the_training_within_its_context():
    scaling = RopeScaling(rope_type="dynamic", factor=4.0, original_max_position_embeddings=64)
    config = TransformerConfig(dim=32, n_head=2, context=256, position="rotary", rope_scaling=scaling)
    plain = TransformerConfig(dim=32, n_head=2, context=256, position="rotary")
    frequencies = [rotary_frequencies(config, length, CPU)[0] for length in (1, 64, 65, 256)]
    expected = rotary_frequencies(plain, 1, CPU)[0]
    assert torch.equal(frequencies[0], expected) and torch.equal(frequencies[1], expected)
    assert not torch.equal(frequencies[2], expected) and (frequencies[3][1:] < frequencies[2][1:]).all()
