"""Seq2seq: translation in 2014, one LSTM encodes the source into a vector, from which another LSTM writes the target.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides
nodes  tokens, the source in reverse order
edges  a chain: each state reads the one before it; only the last state passes from source to target
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed

    anyformer train seq2seq                                  minutes on two cores: captions, English to French
    anyformer ladder --data multi30k --minutes 10            beside what came after, with the same time

Sutskever, Vinyals and Le: Sequence to Sequence Learning with Neural Networks (1409.3215).
"""

from dataclasses import replace

from ..baselines.recurrent import RecurrentSeq2Seq, Seq2SeqLSTM
from ._shared.pairs import baselines, batches, evaluate, examples, file_input, form, loss, predict, predict_batch, score  # noqa: F401
from ._shared.recurrent_pairs import LARGE, MULTI30K, REVERSE, TINY, build_recurrent, sizes  # noqa: F401
from ._shared.recurrent_pairs import RecurrentConfig as Config

PRESETS = {
    # seconds: for tests
    "tiny": TINY,
    "multi30k": replace(MULTI30K, layers=2),
    "reverse": REVERSE,
    # four layers of a thousand channels and a vocabulary for each side, as in the paper: needs pairs and a GPU
    "sutskever": replace(LARGE, layers=4),
}


def build(config: Config) -> RecurrentSeq2Seq:
    return build_recurrent(Seq2SeqLSTM, config)
