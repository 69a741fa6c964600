"""Translation: read a source text, write a target text that says the same.

raw    pairs of texts: a table, two files, JSON lines, or a set by name; one vocabulary for both sides, or two
nodes  tokens of the source and tokens of the target, with a position each
edges  the source is fully connected; the target is causal, and reads the top of the source by cross-attention
head   a logit for each token of the vocabulary
loss   cross-entropy of the target's next token, smoothed (1512.00567)

    anyformer train translation                                       about two minutes on two cores: digits reversed
    anyformer train translation --preset multi30k                     about twenty minutes: captions, English to French
    anyformer train translation --data pairs.tsv                      your own pairs of sentences

The original Transformer (1706.03762); T5 (1910.10683) is the preset `t5`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..data.text.pairs import sample_pairs
from ..recipe import DataDefaults, SizeOption
from ..training.config import TrainConfig
from ._shared import pairs
from ._shared.pairs import TranslatorConfig as Config
from ._shared.pairs import (  # noqa: F401
    baselines,
    batches,
    evaluate,
    examples,
    export_graph,
    figures,
    file_input,
    form,
    loss,
    predict,
    predict_batch,
    score,
)
from ._shared.presets import MODERN, MUON, T5, TINY_PAIRS_TRAIN, make_stacks
from ._shared.sizes import Size, offer_sizes
from ._shared.text_lenses import lens_translation as lens  # noqa: F401


def build(config: Config) -> pairs.Translator:
    return pairs.build_translator(config, pairs.load_tokenizers(config))


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose a preset for sentences where the texts have several words; the default one is for strings."""
    sample = sample_pairs(overrides["data"], columns=overrides.get("columns", ""))
    texts = [text for pair in sample for text in pair if text]
    if 2 * sum(" " in text for text in texts) <= len(texts):
        return None
    preset = "multi30k" if overrides.get("source_tokenizer") else "sentences"  # to copy needs one vocabulary
    reason = f"data '{overrides['data']}': pairs of sentences: --preset {preset} ({SENTENCES}; --preset names another)"
    return DataDefaults(preset, {}, reason)


SENTENCES = "subwords, up to 63 of each side"
LLAMA = dict(position="rotary", rotary_base=5e5, norm="rmsnorm", activation="swiglu", n_kv_head=2, bias=False)
CAPTIONS_TRAIN = TrainConfig(
    steps=3000, batch=24, lr=4e-3, warmup=50, weight_decay=0.01, clip=0.0, eval_every=300, save_every=300, **MUON
)
ADAMW_TRAIN = TrainConfig(steps=4000, batch=32, warmup=400, eval_every=500, save_every=500)
T5_PAIRS: dict[str, Any] = {"start": 0, "end": 0, "train": ADAMW_TRAIN}
T5_SIZE = (256, 3, 4, 64)

CAPTIONS = Config(
    vocab_size=6000, **make_stacks(192, 3, 3, 64, dropout=0.1, init="zero", **MODERN), train=CAPTIONS_TRAIN
)

KINDS = {"pairs": {"columns": "{source},{target}", "too_long": "cut"}}
SIZES = (Size(64, 1, 8, 0), Size(96, 2, 8, 600), Size(128, 2, 16, 1200))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(data="reverse", tokenizer="char", copy=True, **make_stacks(32, 1, 2, 24), train=TINY_PAIRS_TRAIN),
    # 99 of 100 strings exact
    "reverse": Config(
        data="reverse",
        tokenizer="char",
        label_smoothing=0.0,
        **make_stacks(64, 2, 4, 24, norm="rmsnorm", activation="swiglu", bias=False),
        train=TrainConfig(steps=2000, batch=32, lr=3e-3, eval_every=500, save_every=500, weight_decay=0.01),
    ),
    "multi30k": CAPTIONS,
    # the same for your own pairs: names, numbers and tags can be copied
    "sentences": replace(CAPTIONS, data="pairs.tsv", copy=True),
    # French to English, with the choices of Llama
    "fra-eng": Config(
        data="fra-eng",
        backwards=True,
        val_fraction=0.05,
        **make_stacks(256, 3, 4, 64, dropout=0.1, **LLAMA),
        train=ADAMW_TRAIN,
    ),
    # T5 v1.0 (1910.10683), small: can be exported as t5
    "t5": Config(**T5_PAIRS, scaled=True, **make_stacks(*T5_SIZE, activation="relu", dropout=0.1, **T5)),
    # T5 v1.1 (2002.05202): gated, with an untied head
    "t5-v1.1": Config(
        **T5_PAIRS, tied=False, **make_stacks(*T5_SIZE, activation="geglu", mlp_dim=680, dropout=0.1, **T5)
    ),
    # the base model of 1706.03762: needs your own pairs and a GPU
    "base": Config(
        data="pairs.tsv",
        empty="skip",
        too_long="cut",
        val_fraction=0.01,
        vocab_size=37_000,
        padded_vocab=37_056,
        shared=False,
        **make_stacks(512, 6, 8, 256, position="sinusoidal", norm_place="post", activation="relu", dropout=0.1),
        train=TrainConfig(
            steps=100_000,
            batch=49,
            accumulate=2,
            lr=7e-4,
            warmup=4000,
            beta2=0.98,
            eval_every=2000,
            eval_batches=50,
            save_every=10_000,
            average=5,
            patience=10,
        ),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=2000)
