"""Small models over every kind of tokenizer, for answers of a guaranteed structure."""

import string
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer as PublicTokenizer
from tokenizers import decoders, models, pre_tokenizers

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.base import ids_json
from anyformer.data.tokenizers.gguf_vocabulary import build_sentencepiece
from anyformer.data.tokenizers.vocabularies import add_special_tokens
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language

TEXT = 'the "cat": [1, 20] and {the dog} sat on a mat, yes or no? '


def build_sentencepiece_tokenizer(has_prefix: bool) -> tok.Subwords:
    """BPE with spaces as characters and a token for each byte; with a prefix, a text loses its first space."""
    special, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    words = [*special, *bytes_, *'\u2581abcdefghij"{}[]:,0123456789', "\u2581a", "ab", "\u2581ab", '"a', "\u2581{"]
    types, scores = [2, 3, 3] + [6] * 256 + [1] * (len(words) - 259), [-float(i) for i in range(len(words))]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = build_sentencepiece(vocab, types, {"scores": scores, "add_space_prefix": has_prefix}, "the test")
    add_special_tokens(tokenizer, special)
    return tok.Subwords(tokenizer.to_str())


def build_wordpiece_tokenizer() -> tok.Subwords:
    words = ["[UNK]", "[SEP]", *string.printable.strip(), *(f"##{c}" for c in string.printable.strip()), "yes", "##no"]
    tokenizer = PublicTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    add_special_tokens(tokenizer, ["[UNK]", "[SEP]"])
    return tok.Subwords(tokenizer.to_str())


TOKENIZERS = {
    "characters": lambda: tok.Characters(string.printable + "é"),
    "bytes": tok.Bytes,
    "bpe": lambda: tok.train_bpe([TEXT * 50], 320),
    "sentencepiece": lambda: build_sentencepiece_tokenizer(has_prefix=True),
    "no prefix": lambda: build_sentencepiece_tokenizer(has_prefix=False),
    "wordpiece": build_wordpiece_tokenizer,
}
NUMBERS = ids_json(30)  # a tokenizer without an end


def build_model(tokenizer: tok.Tokenizer, context: int = 96, std: float = 0.3) -> language.LanguageModel:
    """Return a model that was not trained, with large weights, so that its distributions are not flat."""
    torch.manual_seed(0)
    shape = TransformerConfig(dim=16, n_layer=1, n_head=2, context=context, position="rotary")
    model = language.LanguageModel(language.Config(model=shape), tokenizer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


class Pieces(tok.Tokenizer):
    """A vocabulary of any pieces of text, the same one also twice; its last id ends a text."""

    kind = "pieces"

    def __init__(self, pieces: Sequence[str]):
        self.pieces, self.end_id, self.vocab_size = [*pieces, ""], len(pieces), len(pieces) + 1

    def encode(self, text: str):
        ids = []
        while text:
            piece = max((piece for piece in self.pieces[:-1] if text.startswith(piece)), key=len)
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return torch.tensor(ids).numpy()

    def decode(self, ids) -> str:
        return "".join(self.pieces[int(i)] for i in ids)
