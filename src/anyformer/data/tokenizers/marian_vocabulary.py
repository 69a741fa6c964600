"""The vocabulary of a Marian model (1804.00344), as `tokenizers` reads it.

`vocab.json` numbers the pieces of two SentencePiece models: `source.spm` cuts the texts of one side, `target.spm` those
of the other. So both sides have the same ids, and each its own way to cut a text into them.
"""

import json
import re
from pathlib import Path

from ...errors import InputError
from ..io.checks import parse_json, read_text
from .base import Tokenizer
from .sentencepiece_model import UNIGRAM, read_model
from .unigram_model import CONTROL, NORMAL, UNKNOWN, UNUSED, build_unigram
from .vocabularies import check_vocab

MODEL_FILES = ("source.spm", "target.spm")
VOCABULARY_FILE = "vocab.json"
SPECIAL = {"<unk>": UNKNOWN, "</s>": CONTROL, "<pad>": CONTROL}
LANGUAGE = re.compile(r">>\S+<<")  # of the target, in front of a source
# Before a piece that only the other side has: no text has this character, so none is cut into it. Single characters
# are left: an unknown one gets the id that the other side has for it, as in the authors' program.
FOREIGN = "\uf8ff"


def convert_marian(path: Path) -> str:
    """Return the tokenizer.json of one side, of source.spm or target.spm with the vocab.json beside it.

    Raises:
        InputError: a file is damaged, or the two do not fit together.
    """
    model, vocab = read_model(path), path.parent / VOCABULARY_FILE
    if model.kind != UNIGRAM:
        raise InputError(f"{path} is a SentencePiece model of type {model.kind}; Marian's is a unigram model, type 1")
    ids = check_vocab(parse_json(read_text(vocab), str(vocab)), str(vocab))
    if max(ids.values()) != len(ids) - 1:
        raise InputError(f"{vocab} has {len(ids):,} tokens, but ids up to {max(ids.values()):,}: an id is missing")
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    if missing := [text for text in scores if text not in ids]:
        raise InputError(f"{vocab} has no id for {missing[0][:40]!r}, a piece of {path.name}")
    pieces, unlikely = [], min(scores.values(), default=0.0) - 10  # as SentencePiece values an unknown character
    for text in sorted(ids, key=ids.__getitem__):
        kind = SPECIAL.get(text, CONTROL if LANGUAGE.fullmatch(text) else NORMAL if text in scores else UNUSED)
        is_hidden = kind == UNUSED and len(text) > 1
        score = scores.get(text, unlikely if kind == UNUSED else 0.0)
        pieces.append((f"{FOREIGN}{text}" if is_hidden else text, score, kind))
    fields = json.loads(build_unigram(pieces, model.charsmap, model.has_prefix, model.removes_spaces, str(path)))
    fields["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": FOREIGN}, "content": ""})
    return json.dumps(fields, ensure_ascii=False)


def have_one_vocabulary(source: Tokenizer, target: Tokenizer) -> bool:
    """Return whether two tokenizers give each id to the same piece, however they cut texts."""
    first, second = (json.loads(tokenizer.to_json()) for tokenizer in (source, target))
    if first == second:
        return True
    if {first["model"].get("type"), second["model"].get("type")} != {"Unigram"}:
        return False
    pieces, others = ([text.replace(FOREIGN, "") for text, _ in side["model"]["vocab"]] for side in (first, second))
    return pieces == others
