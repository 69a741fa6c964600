"""RNNsearch: translation later in 2014, a recurrent decoder that attends to every token of the source.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides
nodes  tokens, the source read in both directions
edges  two chains over the source; one over the target, each state of which reads all of the source: attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed

    anyformer train rnnsearch                                minutes on two cores: captions, English to French
    anyformer ladder --data multi30k --minutes 10            beside what came before and after, with the same time

Bahdanau, Cho and Bengio: Neural Machine Translation by Jointly Learning to Align and Translate (1409.0473).
"""

from dataclasses import replace

from ..baselines.recurrent import RecurrentSeq2Seq, RNNSearch
from ._shared.pairs import (  # noqa: F401
    baselines,
    batches,
    evaluate,
    examples,
    figures,
    file_input,
    form,
    loss,
    predict,
    predict_batch,
    score,
)
from ._shared.recurrent_pairs import LARGE, MULTI30K, REVERSE, TINY, build_recurrent, sizes  # noqa: F401
from ._shared.recurrent_pairs import RecurrentConfig as Config

PRESETS = {
    # seconds: for tests
    "tiny": TINY,
    "multi30k": MULTI30K,
    "reverse": REVERSE,
    # a thousand channels, as in the paper: needs pairs and a GPU
    "bahdanau": replace(LARGE, dim=620),
}


def build(config: Config) -> RecurrentSeq2Seq:
    return build_recurrent(RNNSearch, config)
