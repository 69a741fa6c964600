"""The Transformer and its edges, in pure PyTorch.

from anyformer.model import Transformer, TransformerConfig, causal

model = Transformer(TransformerConfig(dim=64, n_layer=2))
y = model(torch.randn(8, 32, 64), causal)
"""

from .cache import KVCache
from .config import RopeScaling, TransformerConfig
from .edges import (
    Edges,
    MaskMod,
    as_edges,
    between,
    causal,
    every,
    first,
    from_mask,
    full,
    hops,
    leak,
    neighbors,
    prefix,
    reach,
    same,
    window,
    within,
)
from .embeddings import (
    FrameEmbedding,
    MultiFieldEmbedding,
    Normalized,
    PatchEmbedding,
    ScalarEmbedding,
    SeriesPatchEmbedding,
    TokenEmbedding,
    TrajectoryEmbedding,
)
from .encoder_decoder import Encoder, EncoderDecoder
from .heads import Classifier, LMHead, MaskedHead, Regressor
from .init import initialize
from .inspection import attention_weights
from .intervention import ablate, patch
from .pointer import PointerHead
from .trace import Trace, record
from .transformer import MLP, Attention, Block, Transformer

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Classifier",
    "Edges",
    "Encoder",
    "EncoderDecoder",
    "FrameEmbedding",
    "KVCache",
    "LMHead",
    "MaskMod",
    "MaskedHead",
    "MultiFieldEmbedding",
    "Normalized",
    "PatchEmbedding",
    "PointerHead",
    "Regressor",
    "RopeScaling",
    "ScalarEmbedding",
    "SeriesPatchEmbedding",
    "TokenEmbedding",
    "Trace",
    "TrajectoryEmbedding",
    "Transformer",
    "TransformerConfig",
    "ablate",
    "as_edges",
    "attention_weights",
    "between",
    "causal",
    "every",
    "first",
    "from_mask",
    "full",
    "hops",
    "initialize",
    "leak",
    "neighbors",
    "patch",
    "prefix",
    "reach",
    "record",
    "same",
    "window",
    "within",
]
