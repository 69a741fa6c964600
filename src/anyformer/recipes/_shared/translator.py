"""The encoder-decoder of texts, which translation and spans share."""

from dataclasses import dataclass, field

from torch import nn

from ...data.tokenizers.pair_tokenizer import PairTokenizer
from ...model.config import TransformerConfig
from ...model.edges import within
from ...model.embeddings import TokenEmbedding
from ...model.encoder_decoder import EncoderDecoder
from ...model.heads import LMHead
from ...model.init import initialize
from ...recipe import Graph, GraphInput
from ...training.config import TrainConfig
from .pairs import PairConfig


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(PairConfig):
    """A translator, its pairs and its training. Raises ValueError where the two stacks do not fit together."""

    shared: bool = True
    """Source and target have one embedding."""
    tied: bool = True
    """The head reads the target's own embedding (1608.05859)."""
    scaled: bool = False
    """Embeddings are large and the head divides by the root of dim, as in T5."""
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    """A batch holds as many pairs as cost no more than `train.batch` pairs of the longest that fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.dim != self.decoder.dim:
            raise ValueError(
                f"encoder.dim is {self.encoder.dim} and decoder.dim {self.decoder.dim}: one reads the other"
            )
        if self.shared and self.source_tokenizer:
            raise ValueError("source_tokenizer: two vocabularies have no embedding to share: --no-shared")

    @property
    def contexts(self) -> tuple[int, int]:
        return self.encoder.context, self.decoder.context


class Translator(EncoderDecoder):
    """source (B, S) ids, target (B, T) ids -> logits (B, T, vocab_size)"""

    source: TokenEmbedding
    target: TokenEmbedding

    def __init__(self, config: TranslatorConfig, pair_tokenizer: PairTokenizer):
        source_size, target_size = pair_tokenizer.vocab_sizes(config.padded_vocab)
        source, target = TokenEmbedding(source_size, config.encoder), TokenEmbedding(target_size, config.decoder)
        if config.shared:
            target.token = source.token
        dim = config.decoder.dim
        head = LMHead(dim, target_size, target.token if config.tied else None, dim**-0.5 if config.scaled else 1.0)
        super().__init__(source, config.encoder, target, config.decoder, head)
        self.pair_tokenizer, self.files = pair_tokenizer, pair_tokenizer.files
        self.label_smoothing, self.sentinels = config.label_smoothing, 0


def build_translator(config: TranslatorConfig, pair_tokenizer: PairTokenizer) -> Translator:
    """Build an initialized model of the config's shape for these tokenizers."""
    model = Translator(config, pair_tokenizer)
    initialize(model, config.decoder)
    initialize(model.encoder, config.encoder)  # its own depth scales its output maps
    if config.scaled:
        for module in (model.source, model.target):
            nn.init.normal_(module.get_parameter("token.weight"))
    return model


def export_graph(model: Translator) -> Graph:
    inputs = {"source": GraphInput("batch source_length", model.source.token.num_embeddings)}
    inputs["lengths"] = GraphInput("batch", is_length=True)
    inputs["target"] = GraphInput("batch length", model.target.token.num_embeddings)
    longest = {"source_length": model.encoder.config.context, "length": model.decoder.config.context}
    return Graph(lambda source, lengths, target: model(source, target, within(lengths)), inputs, ("logits",), longest)
