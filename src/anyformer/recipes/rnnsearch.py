"""RNNsearch: translation in 2014, a little later; the decoder looks back at every word of the source.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides
nodes  tokens, read in both directions
edges  two chains over the source; one over the target, each state of which reads all of the source: attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed

    anyformer train rnnsearch                                minutes on two cores: captions, English to French
    anyformer ladder --data multi30k --minutes 10            beside what came before and after, with the same time

Bahdanau, Cho and Bengio: Neural Machine Translation by Jointly Learning to Align and Translate (1409.0473).
"""

from dataclasses import replace

from torch import nn

from ..baselines.recurrent import Search
from ..data.tokenizers.bilingual import Bilingual
from . import seq2seq, translation
from .translation import batches, evaluate, figures, judge, loss, predict

__all__ = ["PRESETS", "batches", "build", "evaluate", "figures", "judge", "loss", "predict"]

PRESETS = {
    # seconds: for tests
    "tiny": seq2seq.TINY,
    "multi30k": replace(seq2seq.PRESETS["multi30k"], layers=1),
    "reverse": seq2seq.PRESETS["reverse"],
    # a thousand hidden, as in the paper: bring pairs and a GPU
    "bahdanau": replace(seq2seq.PRESETS["sutskever"], dim=620, layers=1),
}


class Searcher(Search):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, vocab_size)"""

    def __init__(self, config: seq2seq.Config, words: Bilingual):
        super().__init__(**seq2seq.sizes(config, words))
        self.words, self.files = words, words.files
        self.label_smoothing = config.label_smoothing


def build(config: seq2seq.Config) -> nn.Module:
    return Searcher(config, translation.words_of(config))
