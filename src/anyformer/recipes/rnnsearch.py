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

from ..baselines.recurrent import RNNSearch
from ..data.tokenizers.pair_tokenizer import PairTokenizer
from ._shared.pairs import batches, evaluate, figures, load_tokenizers, loss, predict, score
from ._shared.recurrent import LARGE, MULTI30K, REVERSE, TINY, model_arguments
from ._shared.recurrent import RecurrentConfig as Config

__all__ = ["PRESETS", "Config", "batches", "build", "evaluate", "figures", "loss", "predict", "score"]

PRESETS = {
    # seconds: for tests
    "tiny": TINY,
    "multi30k": MULTI30K,
    "reverse": REVERSE,
    # a thousand channels, as in the paper: needs pairs and a GPU
    "bahdanau": replace(LARGE, dim=620),
}


class RNNSearchModel(RNNSearch):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, V)"""

    def __init__(self, config: Config, pair_tokenizer: PairTokenizer):
        super().__init__(**model_arguments(config, pair_tokenizer))
        self.pair_tokenizer, self.files = pair_tokenizer, pair_tokenizer.files
        self.label_smoothing = config.label_smoothing


def build(config: Config) -> RNNSearchModel:
    return RNNSearchModel(config, load_tokenizers(config))
