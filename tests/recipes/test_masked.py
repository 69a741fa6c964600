"""Masked: what is hidden, that padding changes nothing, proteins, and what a person may ask or get wrong."""

import gzip
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from anyformer.data.text.masking import Hiding, glue, words
from tokenizers import models, pre_tokenizers, processors

from anyformer import recipe as recipes
from anyformer.data.io.resolve import resolve
from anyformer.data.sequences import fasta
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.masked_tokenizer import Wrapped
from data_kit import needs_data, refuses, write

MASKED = recipes.load("masked")
TINY: Any = MASKED.PRESETS["tiny"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "##ly", "sat", "on", "mat", "."]


def wordpiece() -> tok.Subwords:
    """A small one in the manner of BERT."""
    public = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    public.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    public.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    public.add_special_tokens(PIECES[:5])
    return tok.Subwords(public.to_str())


def model(config: Any = TINY, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = MASKED.build(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return made


# --- what is hidden ---


def hide(seed: int = 1, step: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 1000, (200, 100))
    return ids, *Hiding(1000, 1000)(ids, np.ones(ids.shape, bool), seed, step)


def test_fifteen_of_a_hundred_are_chosen_and_of_these_eighty_ten_ten():
    ids, hidden, where, target = hide()
    assert len(where) == 200 * 15 == len(set(where.tolist()))
    assert (np.bincount(where // 100) == 15).all(), "of each row as many"
    assert (ids.reshape(-1)[where] == target).all()
    there = hidden.reshape(-1)[where]
    masked, kept = (there == 1000).mean(), (there == target).mean()
    for share, wanted in ((masked, 0.8), (kept, 0.1), (1 - masked - kept, 0.1)):
        assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / len(where)), (masked, kept)
    untouched = np.ones(ids.size, bool)
    untouched[where] = False
    assert (hidden.reshape(-1) == ids.reshape(-1))[untouched].all()
    assert abs((where % 100).mean() - 49.5) < 4 * 28.9 / math.sqrt(len(where)), "from everywhere in a row"


def test_another_share_is_chosen_where_it_is_asked_for():
    ids = np.arange(300).reshape(3, 100)
    for share in (0.01, 0.4, 0.99):
        _, where, _ = Hiding(1000, 1000, share=share)(ids, np.ones(ids.shape, bool), seed=1, step=0)
        assert (np.bincount(where // 100) == round(100 * share)).all()
    config = replace(MASKED.PRESETS["tiny"], hidden=1.5)
    with refuses("hidden is 1.5", "below 1"):
        next(MASKED.batches(config, "train"))


def test_another_step_or_seed_hides_something_else_and_the_same_the_same():
    first = hide()[2].tolist()
    assert first == hide()[2].tolist() and first != hide(step=1)[2].tolist() and first != hide(seed=2)[2].tolist()


def test_the_stream_hides_anew_at_each_step_and_repeats_by_seed():
    def taken(seed: int) -> list[dict]:
        config = replace(TINY, train=replace(TINY.train, seed=seed))
        return [batch for batch, _ in islice(MASKED.batches(config, "train"), 3)]

    one, again, other = taken(1), taken(1), taken(2)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, again) for name in a)
    assert not torch.equal(one[0]["where"], one[1]["where"]) and not torch.equal(one[0]["where"], other[0]["where"])


def test_only_what_is_free_is_chosen():
    ids, free = np.zeros((50, 40), np.int64), np.zeros((50, 40), bool)
    free[:, 10:20] = True
    free[7] = False
    _, where, _ = Hiding(9, 9)(ids, free, 1, 0)
    assert free.reshape(-1)[where].all() and len(where) == 49 * 2


@pytest.mark.parametrize("kind", ["char", "wordpiece"])
def test_whole_words_stay_whole(kind: str):
    tokenizer = tok.Characters("abcdefghij .") if kind == "char" else wordpiece()
    text = "abc de f. ghij a bb " * 9 if kind == "char" else "the cats sat . on mats the catsly " * 9
    ids = tokenizer.encode(text).astype(np.int64)[None].repeat(30, 0)
    free, table = np.ones(ids.shape, bool), glue(tokenizer)
    word = words(ids[0], free[0], table)
    assert tokenizer.decode(ids[0][word == word[0]]) == text.split()[0]
    _, where, _ = Hiding(99, tokenizer.vocab_size, table)(ids, free, 1, 0)
    row, at = np.divmod(where, ids.shape[1])
    for i in range(30):
        chosen = set(at[row == i].tolist())
        assert chosen == {j for c in chosen for j in np.flatnonzero(word == word[c]).tolist()}
        assert 0.1 * ids.shape[1] < len(chosen) <= round(0.15 * ids.shape[1])


# --- around a text ---


def test_a_text_is_wrapped_as_its_tokenizer_says():
    wrapped = Wrapped.of(wordpiece())
    assert (wrapped.before, wrapped.after, wrapped.mask, wrapped.vocab_size) == ((2,), (3,), 4, 13)
    assert wrapped.encode("the [MASK] sat") == [2, 5, 4, 9, 3]
    ids, lengths, text = wrapped.rows(np.array([[5, 6, 7], [9, 3, 0]]), np.array([3, 2]))
    assert ids.tolist() == [[2, 5, 6, 7, 3], [2, 9, 3, 3, 0]] and lengths.tolist() == [5, 4]
    assert text.tolist() == [[False, True, True, True, False], [False, True, False, False, False]], "no end is hidden"


def test_a_tokenizer_without_a_mask_gets_one_more_entry():
    wrapped = Wrapped.of(tok.Characters("abc"))
    assert (wrapped.mask, wrapped.vocab_size, wrapped.encode("a[MASK]c<mask>")) == (4, 5, [0, 4, 2, 4])
    with refuses("no [MASK]", "padded_vocab"):
        Wrapped.of(tok.Characters("abc"), room=4).encode("a[MASK]")
    assert model().nodes.token.weight.shape[0] == model().wrapped.tokenizer.vocab_size + 1


# --- the model ---


def test_padding_changes_nothing():
    made, (batch, _) = model(), next(MASKED.batches(TINY, "train"))
    ids, lengths = batch["ids"].clone(), torch.tensor([32, 5, 1, 20, 31, 9, 2, 32])
    with torch.no_grad():
        one = made(ids, lengths)
        for i, n in enumerate(lengths):
            ids[i, n:] = 3
        other = made(ids, lengths)
        for i, n in enumerate(lengths):
            assert torch.equal(one[i, :n], other[i, :n])
            torch.testing.assert_close(one[i, :n], made(ids[i : i + 1, :n])[0], atol=1e-5, rtol=1e-5)


def test_both_sides_are_read():
    made, ids = model(), torch.arange(8)[None]
    with torch.no_grad():
        before = made(ids)[0, 4]
        for at in (0, 7):
            changed = ids.clone()
            changed[0, at] = 40
            assert not torch.equal(made(changed)[0, 4], before)


def test_every_mask_gets_its_likeliest_tokens():
    made = model()
    asked = {"input": ["th[MASK] cat", "a[MASK][MASK]"], "top": 3}
    with torch.no_grad():
        results = MASKED.predict(made, asked)["results"]
        logits = made(torch.tensor([made.wrapped.encode("th[MASK] cat")]))[0, 2]
    assert [len(result["masks"]) for result in results] == [1, 2] and len(results[0]["masks"][0]) == 3
    best = results[0]["masks"][0]
    assert best[0]["probability"] == pytest.approx(logits.softmax(-1)[: made.wrapped.tokenizer.vocab_size].max().item())
    assert best[0]["probability"] >= best[1]["probability"]
    assert results[0]["text"] == f"th{best[0]['token']} cat"


def test_vectors_are_the_mean_of_real_nodes_and_do_not_know_their_neighbours():
    made, texts = model(), ["the cat sat", "a", "on the mat"]
    together = torch.tensor(MASKED.predict(made, {"embed": texts})["vectors"])
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for text, vector in zip(texts, together):
        with torch.no_grad():
            alone = made.hidden(torch.tensor([made.wrapped.encode(text)]))[0].mean(0)
        torch.testing.assert_close(vector, alone / alone.norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"inptu": "x"}, ("no 'inptu'", "'input'")),
        ({"input": "no mask"}, ("hides nothing", "[MASK]")),
        ({"input": 3}, ("3 is int",)),
        ({"input": "[MASK]" * 33}, ("33 tokens, the context holds 32",)),
        ({"input": "[MASK]", "top": 0}, ("top is 0",)),
        ({"embed": [""]}, ("empty text",)),
        ({"embed": ["x" * 40]}, ("40 tokens, the context holds 32",)),
    ],
)
def test_requests_that_cannot_be_answered(request_: dict, says: tuple[str, ...]):
    with refuses(*says):
        MASKED.predict(model(), request_)
    assert len(MASKED.predict(model(), {"embed": ["x" * 40], "cut": True})["vectors"]) == 1


# --- proteins ---


def some_proteins(families: int = 60, each: int = 4) -> list[str]:
    """Families of near-identical sequences: one residue in twenty differs."""
    draw, made = np.random.default_rng(0), []
    for _ in range(families):
        first = draw.integers(0, 20, 200)
        for _ in range(each):
            other = np.where(draw.random(200) < 0.05, draw.integers(0, 20, 200), first)
            made.append("".join(fasta.RESIDUES[i] for i in other))
    return made


def test_near_identical_sequences_are_on_one_side():
    held = fasta.held_out(some_proteins(), 0.2)
    assert all(len(set(held[i : i + 4])) == 1 for i in range(0, 240, 4)) and 0.15 <= np.mean(held) <= 0.2


def test_fasta_trains_the_same_recipe(tmp_path: Path):
    lines = "".join(f">p{i} a name\n{s[:90]}\n{s[90:].lower()}\n" for i, s in enumerate(some_proteins()))
    path = tmp_path / "p.fasta.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    assert list(fasta.sequences(path)) == some_proteins()
    config = replace(TINY, data=str(path), tokenizer="residues")
    made, (batch, _) = model(config), next(MASKED.batches(config, "train"))
    assert made.wrapped.tokenizer.decode([0, 1, 2]) == "ACD" and math.isfinite(MASKED.loss(made, batch).item())
    val = sum(int(batch["target"].numel()) for batch, _ in MASKED.batches(config, "val"))
    assert abs(val - 0.15 * 0.1 * 200 * 240) < 120


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (">a\nMKV\nMK1V\n", ("p.fa, line 3", "'1' is no residue")),
        ("MKV\n", ("p.fa, line 1", "without a name")),
        (">a\n>b\nMKV\n", ("before line 2 is empty",)),
        ("", ("no sequence in it",)),
    ],
)
def test_fasta_that_is_none(content: str, says: tuple[str, ...], tmp_path: Path):
    with refuses(*says):
        list(fasta.sequences(write(tmp_path / "p.fa", content)))


@needs_data
def test_the_protein_set_is_read_whole():
    found = list(fasta.sequences(resolve("protein")[0]))
    assert len(found) == 20_000 and sum(map(len, found)) > 8_000_000
