"""Times of words: the path through attention weights, words of tokens, subtitles."""

import itertools
import re

import numpy as np
import pytest
import torch

from anyformer.inference.subtitles import Word, format_subtitles
from anyformer.inference.word_times import find_first_nodes, find_words, warp_time


def cheapest_cost(costs: np.ndarray) -> float:
    """Try every path: 0 is a step to the next token, 1 to the next node, 2 both."""
    T, S = costs.shape
    if T == S == 1:
        return costs[0, 0]
    paths = [cheapest_cost(costs[a:, b:]) for a, b in ((1, 0), (0, 1), (1, 1)) if a < T and b < S]
    return costs[0, 0] + min(paths)


@pytest.mark.parametrize(("tokens", "nodes"), [(1, 1), (1, 5), (4, 1), (3, 4), (4, 3), (5, 5)])
def test_the_path_is_the_cheapest(tokens: int, nodes: int):
    for seed in range(5):
        costs = np.random.default_rng(seed).normal(size=(tokens, nodes))
        rows, columns = warp_time(costs)
        assert costs[rows, columns].sum() == pytest.approx(cheapest_cost(costs))
        steps = set(itertools.starmap(lambda a, b: (b[0] - a[0], b[1] - a[1]), itertools.pairwise(zip(rows, columns))))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, tokens - 1, nodes - 1)


def test_each_token_begins_where_its_head_looks():
    """Two of three heads look at the nodes of the token; the other is noise."""
    starts, nodes = [0, 12, 20, 41], 60
    weights = torch.rand(3, 4, nodes, generator=torch.Generator().manual_seed(0)) * 0.01
    for token, (start, end) in enumerate(zip(starts, [*starts[1:], nodes])):
        weights[:2, token, start:end] += 1 / (end - start)
    assert find_first_nodes(weights).tolist() == starts
    assert find_first_nodes(torch.full((2, 3, 4), 0.25)).shape == (3,)  # no variation: no division by zero
    assert find_first_nodes(weights[:, :1]).tolist() == [0]


PIECES = [" Good", " mor", "ning", ",", " (", "Ann", ")", ".", " 3", ".", "5"]


def test_words_are_what_spaces_separate_and_end_before_their_punctuation():
    words = list(find_words(range(len(PIECES)), list(range(12)), lambda ids: "".join(PIECES[i] for i in ids), "en"))
    expected = [("Good", 0, 1), ("morning,", 1, 3), ("(Ann).", 4, 6), ("3.5", 8, 11)]
    assert [(word.text, word.start, word.end) for word in words] == expected


def test_without_spaces_each_character_is_a_word():
    data = "你好。吗".encode()  # three tokens a character
    words = list(
        find_words(range(12), list(range(13)), lambda ids: bytes(data[i] for i in ids).decode("utf-8", "replace"), "zh")
    )
    assert [(word.text, word.start, word.end) for word in words] == [("你", 0, 3), ("好。", 3, 6), ("吗", 9, 12)]
    broken = list(find_words([0, 1], [0, 1, 2], lambda ids: "\ufffd", None))
    assert [word.text for word in broken] == ["\ufffd"]
    assert list(find_words([], [0], lambda ids: "", None)) == []


SRT = """1
00:00:00,500 --> 00:00:01,250
Is it <b>?

2
01:02:03,004 --> 01:02:04,000
A very long sentence that does not
fit into one line of a subtitle

3
01:02:06,000 --> 01:02:07,000
late
"""


def test_subtitles():
    words = [Word("Is", 0.5, 0.7), Word("it", 0.7, 1.0), Word("<b>?", 1.0, 1.25)]
    sentence = re.split(" ", "A very long sentence that does not fit into one line of a subtitle")
    hour = 3723.0035
    words += [Word(text, hour + 0.01 * i, hour + 0.01 * i) for i, text in enumerate(sentence)]
    words[-1] = Word(sentence[-1], hour + 0.5, 3724)
    words.append(Word("late", 3726, 3727))
    assert format_subtitles(words, "srt") == SRT
    vtt = format_subtitles(words, "vtt").split("\n\n")
    assert vtt[0] == "WEBVTT"
    assert vtt[1] == "00:00:00.500 --> 00:00:01.250\nIs it &lt;b&gt;?"
    assert format_subtitles([], "vtt") == "WEBVTT\n"


def test_words_in_plain_values_have_milliseconds():
    assert Word("a", 0.12345, 1.98765).to_json() == {"word": "a", "start": 0.123, "end": 1.988}
