"""The rule of bars lets through what is complete, and nothing that is not."""

import random
from fractions import Fraction

import numpy as np
import pytest

from anyformer.data.music.abc import ALPHABET
from anyformer.data.music.bars import BarRule
from anyformer.data.music.score import read_bars
from anyformer.data.tokenizers.build import Characters, train_bpe
from anyformer.data.tokenizers.subwords import Subwords
from anyformer.errors import InputError
from anyformer.inference.token_filter import RuleFilter

JIG = "M:6/8\nK:G\n"


def read(tune: str) -> str | None:
    """Return what comes before the first character that the rule refuses; None if it lets the whole tune through."""
    rule = BarRule()
    for i, character in enumerate(tune):
        if not rule.allows(character):
            return tune[:i]
        rule.append(character)
    return None if rule.may_end else tune


@pytest.mark.parametrize(
    "tune",
    [
        JIG + "GBB BAG|FAA AGF|GBB BAG|AGF E3:|",
        JIG + "d|GBB BAG|FAA AGF|GBB BAG|AGF E2:|d|g3 g3|g3 g2|]",  # upbeats, and what they leave
        JIG + "G/A/B/c/ d>e|f2- f4|(3GABc2 d2|1G6:|2G6|:G6|]",  # lengths, dots, ties, tuplets, endings
        "M:3/4\nK:Am\nA3/2B/c2 d2|e>d c2 A2|A6|]",
        "M:2/4\nL:1/16\nK:D\n(3:2:3DEF G2 A4|D8|]",
    ],
)
def test_complete_bars_are_let_through(tune: str):
    assert read(tune) is None


@pytest.mark.parametrize(
    ("tune", "before"),
    [
        (JIG + "d|GBB BA|G", JIG + "d|GBB BA|"),  # an inner bar of five eighths
        (JIG + "d|GBB BAGF|", JIG + "d|GBB BAG"),  # a seventh
        (JIG + "GBB BA4|", JIG + "GBB BA4"),  # two too many, but for A4/
        (JIG + "GBB BA5", JIG + "GBB BA"),  # too many, A5/ too
        (JIG + "d|G6|G5|G6|]", JIG + "d|G6|G5|"),  # lacks the upbeat, but its part goes on
        (JIG + "G6|G6|", JIG + "G6|G6|"),  # ends with the line between two bars
        (JIG + "G///////", JIG + "G//////"),  # no length that can be read
        (JIG + "G5>|", JIG + "G5"),  # a dot that would fill the bar without a note behind it
    ],
)
def test_what_breaks_the_metre_is_refused(tune: str, before: str):
    assert read(tune) == before


def test_a_bar_without_an_end_is_not_measured_again_and_again():
    rule = BarRule(JIG + "G6|" + "G" * 5000)
    assert rule.length is None and rule.allows("|") and rule.allows("G")


def test_until_there_is_a_key_anything_may_follow():
    rule = BarRule("T:no header")
    assert all(map(rule.allows, ALPHABET)) and rule.may_end
    assert BarRule("K:H\n").header is None


@pytest.mark.parametrize("metre", ["6/8", "4/4", "3/4", "9/8", "2/4"])
def test_random_tunes_have_complete_bars(metre: str):
    """Whatever a model without any knowledge writes, inner bars add up."""
    rng, tokenizer, n_bars = random.Random(metre), Characters("CDEFGABcdefg |2/3(>-^:]1"), 0
    for _ in range(8):
        tune = f"M:{metre}\nK:D\n"
        rule = RuleFilter(BarRule(tune), tokenizer)
        for _ in range(300):
            rule.check_alive()
            if rng.random() < 0.5 and rule.rule.allows("|") and not rule.rule.line:
                token = int(tokenizer.encode("|")[0])
            else:
                token = rng.choice([*{*np.flatnonzero(rule.mask).tolist()} - {*tokenizer.end_ids}])
            rule.consume(token)
            tune += tokenizer.decode([token])
        inner = [bar for bar in read_bars(tune)[1][:-1] if bar.is_inner]  # the line behind the last one may go on
        assert all(bar.length == Fraction(metre) for bar in inner), tune
        n_bars += len(inner)
    assert n_bars > 1


def test_tokens_of_several_characters_are_allowed_as_their_characters_are():
    tune = JIG + "d|GBB BAG|FAA AGF|GBB BAG|AGF E2|]"
    tokenizer = Subwords(train_bpe(iter([tune] * 20), 290).to_json())
    mask = RuleFilter(BarRule(JIG + "G6|GBB BA"), tokenizer).mask
    allowed = {tokenizer.decode([i]) for i in np.flatnonzero(mask).tolist()}
    assert "G|" in allowed or "G" in allowed
    assert not {text for text in allowed if text.startswith("|")}


def test_a_vocabulary_that_can_write_nothing_more_is_told():
    with pytest.raises(InputError, match="nothing that may follow"):
        RuleFilter(BarRule(JIG + "G6"), Characters("G")).check_alive()
