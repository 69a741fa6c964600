"""TransformerConfig: misspelt choices and numbers out of range are one clear line, never a silent default."""

import pickle

import pytest

from anyformer.model.config import CHOICES, MAX_SIZES, RopeScaling, TransformerConfig


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("position", "rope", "rotary"),
        ("position", "learnt", "learned"),
        ("norm", "rms_norm", "rmsnorm"),
        ("norm_place", "pos", "post"),
        ("activation", "swigl", "swiglu"),
        ("init", "gpt-2", "gpt2"),
    ],
)
def test_a_misspelt_choice_names_the_nearest_valid_one(name, value, nearest):
    with pytest.raises(ValueError, match=f"^{name} is '{value}': did you mean '{nearest}'\\? valid: .*{nearest}"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", [None, 1, "", ["gelu"]], ids=str)
def test_a_choice_of_another_type_lists_the_valid_ones(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*valid: {CHOICES[name][0]}"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize("name", MAX_SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, 64.0, True, "8", 10**30, 1e30, float("nan"), float("inf")])
def test_a_size_is_a_positive_integer_of_sensible_size(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*it must be (at least 1|an integer from 1 to )"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize("name", ["norm_eps", "rotary_base", "scale", "softcap", "embedding_scale", "dropout"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), -float("inf"), 1e30, 10**30, True, "0.1"])
def test_a_number_is_finite_and_in_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*it must be "):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize("change", [{"norm_eps": 0}, {"rotary_base": 0}, {"scale": 0}, {"dropout": 1.0}], ids=str)
def test_numbers_at_the_end_of_their_range_are_rejected(change):
    with pytest.raises(ValueError, match="it must be"):
        TransformerConfig(**change)


@pytest.mark.parametrize("name", ["bias", "qk_norm", "qk_norm_joint"])
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*true or false"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30, "n_head": 4}, "n_head 4 does not divide dim 30; divisors: 1, 2, 3, 5"),
        ({"n_head": 4, "n_kv_head": 3}, "n_kv_head 3 does not divide n_head 4; divisors: 1, 2, 4"),
        ({"dim": 12, "n_head": 4, "position": "rotary"}, "a head has 3 channels; rotary positions need an even number"),
    ],
)
def test_values_that_do_not_fit_together_are_both_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**changes)


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "yran"}, "rope_type is 'yran': did you mean 'yarn'"),
        ({"factor": 0.5}, "factor is 0.5; it must be a number from 1 to"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0; it must be at least 1"),
        ({"attention_factor": 0.0}, "attention_factor is 0.0"),
        ({"beta_slow": 40.0}, "beta_slow is 40.0; it must be below beta_fast, 32.0"),
        ({"low_freq_factor": 4.0}, "low_freq_factor is 4.0; it must be below high_freq_factor, 4.0"),
    ],
    ids=str,
)
def test_a_scaling_of_rotary_positions_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**YARN | changes)


def test_only_rotary_positions_are_scaled():
    with pytest.raises(ValueError, match="rope_scaling is set, but position is 'learned'; it must be 'rotary'"):
        TransformerConfig(rope_scaling=RopeScaling(**YARN))
    with pytest.raises(ValueError, match=r"rotary_cycle is 0\.5; it must be a number from 1"):
        TransformerConfig(position="rotary", rotary_cycle=(10.0, 0.5))
    with pytest.raises(ValueError, match=r"rotary_cycle is .*; it must be a tuple"):
        TransformerConfig(position="rotary", rotary_cycle=[10.0])
    with pytest.raises(ValueError, match="rotary_base is 1; with rope_scaling it must be above 1"):
        TransformerConfig(position="rotary", rotary_base=1, rope_scaling=RopeScaling(**YARN))


def test_a_config_can_be_pickled():
    scaling = RopeScaling(**YARN)
    config = TransformerConfig(dim=32, n_kv_head=2, position="rotary", rope_scaling=scaling, scale=1.0, dropout=0)
    assert pickle.loads(pickle.dumps(config)) == config
