"""Language: predict the next token of a text, and continue it.

raw    text files, or a set by name: characters, bytes or BPE
nodes  tokens, with a position
edges  causal; in local layers the last `window` nodes only, and `sinks`; within a document where `documents` is apart
head   a logit for each token of the vocabulary, tied to the embedding
loss   cross-entropy of the next token

    anyformer train language                        one to three minutes on two cores: the plays of Shakespeare
    anyformer train language --preset nanogpt-cpu --data shakespeare       about a minute: loss 1.90

GPT (Radford et al. 2018, 2019), in the small form of Karpathy's nanoGPT.
"""

from dataclasses import replace

from ...model.init import initialize
from ...training.config import TrainConfig
from .._shared.cached_graph import export_cached_graph  # noqa: F401
from .._shared.language import LanguageConfig as Config
from .._shared.language import LanguageModel, baselines, batches, decoder, evaluate, export_graph, loss, predict, stream  # noqa: F401
from .._shared.mixtures import describe_sources  # noqa: F401
from .._shared.presets import GPT2_TRAIN, MINUTE_TRAIN, T5, TINY_TRAIN, make_model_config, make_modern_config
from .._shared.scaling import sizes  # noqa: F401
from .._shared.text import file_input, form, load_corpus, load_mixture, load_text_tokenizer, predict_batch  # noqa: F401
from .._shared.text_lenses import lens_language as lens  # noqa: F401


def build(config: Config) -> LanguageModel:
    model = LanguageModel(config, load_text_tokenizer(config))
    initialize(model, config.model)
    return model


# the lowest loss after a minute on two cores
SMALL = Config(documents="apart", model=make_modern_config(128, 4, 4, 128), train=MINUTE_TRAIN)
KINDS = {kind: {"columns": "{text}"} for kind in ("text", "documents", "code", "molecules")}
PRESETS = {
    "tiny": Config(model=make_model_config(32, 2, 2, 32), train=TINY_TRAIN),  # seconds: for tests
    "small": SMALL,
    # the lowest loss after little more than a minute on two cores: --data shakespeare
    "fast": replace(
        SMALL,
        model=make_modern_config(128, 4, 4, 256),
        train=replace(MINUTE_TRAIN, steps=950, batch=8, lr=3e-3, eval_every=475),
    ),
    # nanoGPT's README, "I only have a macbook": --data shakespeare
    "nanogpt-cpu": Config(
        data="shakespeare",
        model=make_model_config(128, 4, 4, 64, bias=False),
        train=TrainConfig(steps=2000, batch=12, beta2=0.99),
    ),
    # nanoGPT's config/train_shakespeare_char.py, three minutes on an A100
    "nanogpt-gpu": Config(
        data="shakespeare",
        model=make_model_config(384, 6, 6, 256, bias=False, dropout=0.2),
        train=TrainConfig(steps=5000, batch=64, beta2=0.99, eval_batches=200),
    ),
    # GPT-2 124M (Radford et al. 2019) under nanoGPT's 600,000 steps of half a million tokens: needs --data and a GPU
    "gpt2": Config(
        tokenizer="bpe",
        vocab_size=50257,
        padded_vocab=50304,
        val_fraction=0.0005,
        model=make_model_config(768, 12, 12, 1024, activation="gelu_tanh"),
        train=GPT2_TRAIN,
    ),
    # The default size, trained for the same minute, with the choices of other models (1706.03762 first).
    "vaswani": replace(SMALL, model=make_model_config(position="sinusoidal", norm_place="post", activation="relu")),
    "lamda": replace(SMALL, model=make_model_config(**T5, activation="geglu")),  # 2201.08239
    "bloom": replace(SMALL, model=make_model_config(position="alibi")),  # 2211.05100
    "llama": replace(  # 2407.21783
        SMALL,
        tied=False,
        model=make_modern_config(
            128, 4, 4, 128, activation="swiglu", qk_norm=False, rotary_base=500_000.0, n_kv_head=2, mlp_dim=344
        ),
    ),
    "local": replace(  # 2004.05150
        SMALL, window=32, global_every=4, model=make_modern_config(128, 4, 4, 512), train=replace(MINUTE_TRAIN, batch=4)
    ),
}
