"""Masked: which tokens are hidden, documents kept apart, padding, proteins, and requests."""

import dataclasses
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from anyformer import recipe_loading
from anyformer.data.io.resolve import resolve
from anyformer.data.sequences.prepare import select_validation
from anyformer.data.sequences.read import RESIDUES, read_fasta
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.masking import MaskingPolicy, word_indices, word_pieces
from anyformer.data.tokenizers.base import Characters
from anyformer.data.tokenizers.masked_tokenizer import MaskedTokenizer
from anyformer.data.tokenizers.subwords import Subwords
from data_kit import needs_data, refuses, write

masked: Any = recipe_loading.load_recipe("masked")
TINY: Any = dataclasses.replace(masked.PRESETS["tiny"], documents="joined")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "##ly", "sat", "on", "mat", "."]


def wordpiece() -> Subwords:
    """A small tokenizer like BERT's."""
    public = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    public.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    public.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    public.add_special_tokens(PIECES[:5])
    return Subwords(public.to_str())


def build_model(config: Any = TINY) -> Any:
    torch.manual_seed(0)
    model = masked.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def first(config: Any, split: str = "train") -> dict[str, torch.Tensor]:
    return next(masked.batches(config, split))[0]


# --- which tokens are hidden ---


def test_15_percent_are_selected_of_which_80_10_10():
    ids = np.random.default_rng(0).integers(0, 1000, (200, 100))
    policy = MaskingPolicy(1000, 1000)
    hidden, where, labels = policy(ids, np.ones(ids.shape, bool), 1, 0)
    assert (np.bincount(where // 100) == 15).all(), "the same number in each row"
    assert (ids.reshape(-1)[where] == labels).all()
    new = hidden.reshape(-1)[where]
    is_mask, is_same = (new == 1000).mean(), (new == labels).mean()
    for share, expected in ((is_mask, 0.8), (is_same, 0.1), (1 - is_mask - is_same, 0.1)):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(where))
    untouched = np.setdiff1d(np.arange(ids.size), where)
    assert (hidden.reshape(-1) == ids.reshape(-1))[untouched].all()
    assert abs((where % 100).mean() - 49.5) < 4 * 28.9 / math.sqrt(len(where)), "from everywhere in a row"
    positions = [policy(ids, np.ones(ids.shape, bool), *draw)[1].tolist() for draw in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert positions[0] == positions[1] and positions[0] != positions[2] and positions[0] != positions[3]


@pytest.mark.parametrize("rate", [0.01, 0.4, 0.99])
def test_only_maskable_tokens_are_selected_at_the_rate(rate: float):
    ids, maskable = np.zeros((50, 140), np.int64), np.zeros((50, 140), bool)
    maskable[:, 20:120] = True
    maskable[7] = False
    _, where, _ = MaskingPolicy(9, 9, rate=rate)(ids, maskable, 1, 0)
    counts = np.bincount(where // 140, minlength=50)
    assert maskable.reshape(-1)[where].all() and (np.delete(counts, 7) == round(100 * rate)).all() and counts[7] == 0


@pytest.mark.parametrize("kind", ["char", "wordpiece"])
def test_whole_words_stay_whole(kind: str):
    tokenizer = Characters("abcdefghij .") if kind == "char" else wordpiece()
    text = "abc de f. ghij a bb " * 9 if kind == "char" else "the cats sat . on mats the catsly " * 9
    ids = tokenizer.encode(text).astype(np.int64)[None].repeat(30, 0)
    maskable, table = np.ones(ids.shape, bool), word_pieces(tokenizer)
    word = word_indices(ids[0], maskable[0], table)
    assert tokenizer.decode(ids[0][word == word[0]]) == text.split()[0]
    _, where, _ = MaskingPolicy(99, tokenizer.vocab_size, table)(ids, maskable, 1, 0)
    row, column = np.divmod(where, ids.shape[1])
    for i in range(30):
        selected = set(column[row == i].tolist())
        assert selected == {j for c in selected for j in np.flatnonzero(word == word[c]).tolist()}
        assert 0.1 * ids.shape[1] < len(selected) <= round(0.15 * ids.shape[1])


def test_a_batch_has_its_labels_in_rows():
    tokenizer = Characters("abcdefghij .")
    windows = np.random.default_rng(0).integers(0, 12, (8, 60))
    policy = MaskingPolicy(13, 12, word_pieces(tokenizer), 0.3)
    arguments = MaskedTokenizer.from_tokenizer(tokenizer), policy, windows, np.arange(53, 61)
    batch = {name: value.numpy() for name, value in masked.make_batch(*arguments, seed=1, step=0).items()}
    row, slot = np.nonzero(batch["labels"] != IGNORE_INDEX)
    assert batch["labels"].shape == batch["masked_positions"].shape and len(row) < batch["labels"].size
    restored = batch["ids"].copy()
    restored[row, batch["masked_positions"][row, slot]] = batch["labels"][row, slot]
    is_text = np.arange(60) < batch["lengths"][:, None]
    assert (restored == windows)[is_text].all() and (batch["ids"] != windows)[is_text].any()


# --- tokens around a text ---


def test_a_text_is_surrounded_as_its_tokenizer_says():
    tokenizer = MaskedTokenizer.from_tokenizer(wordpiece())
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.mask_id, tokenizer.vocab_size) == ((2,), (3,), 4, 13)
    assert tokenizer.encode("the [MASK] sat") == [2, 5, 4, 9, 3]
    ids, lengths, is_text = tokenizer.wrap_rows(np.array([[5, 6, 7], [9, 3, 0]]), np.array([3, 2]))
    assert ids.tolist() == [[2, 5, 6, 7, 3], [2, 9, 3, 3, 0]] and lengths.tolist() == [5, 4]
    assert is_text.tolist() == [[False, True, True, True, False], [False, True, False, False, False]], (
        "no end of a text"
    )


def test_a_tokenizer_without_a_mask_gets_one_more_entry():
    tokenizer = MaskedTokenizer.from_tokenizer(Characters("abc"))
    assert (tokenizer.mask_id, tokenizer.vocab_size, tokenizer.encode("a[MASK]c<mask>")) == (4, 5, [0, 4, 2, 4])
    with refuses("no [MASK]", "padded_vocab"):
        MaskedTokenizer.from_tokenizer(Characters("abc"), capacity=4).encode("a[MASK]")
    model = build_model()
    assert model.nodes.token.weight.shape[0] == model.masked_tokenizer.tokenizer.vocab_size + 1


# --- documents ---


@pytest.fixture
def short_documents(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": text}) for text in ("the cat", "a dog sat", "on", "the old mat", "is it?") * 30]
    return write(tmp_path / "short.jsonl", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("position", ["learned", "rotary", "relative"])
def test_packed_documents_are_separate_ones_in_loss_and_gradient(short_documents: Path, position: Any):
    shape = dataclasses.replace(TINY.model, position=position)
    config = dataclasses.replace(TINY, data=str(short_documents), documents="apart", model=shape, mask_rate=0.5)
    model, packed = build_model(config), first(config)
    document, labels = packed["document"], packed["labels"]
    assert (document.amax(1) > 1).all() and packed["positions"].max() < 20, "several documents in each row"

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=False))

    losses, count = [], 0
    for row, number in {(i, int(d)) for i in range(len(document)) for d in document[i]}:
        start, stop = (document[row] == number).nonzero()[[0, -1], 0].tolist()
        positions = packed["masked_positions"][row]
        inside = (positions >= start) & (positions <= stop) & (labels[row] != IGNORE_INDEX)
        if inside.any():
            alone = {"ids": packed["ids"][row : row + 1, start : stop + 1], "labels": labels[row : row + 1, inside]}
            loss = masked.loss(model, alone | {"masked_positions": positions[None, inside] - start})
            losses.append(loss * int(inside.sum()))
            count += int(inside.sum())
    separate, together = torch.stack(losses).sum() / count, masked.loss(model, packed)
    torch.testing.assert_close(together, separate)
    for a, b in zip(gradients(together), gradients(separate), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    joined = {name: value for name, value in packed.items() if name not in ("document", "positions")}
    assert not torch.isclose(masked.loss(model, joined), separate), "joined, they read each other"


def test_one_document_gives_the_same_batches_in_both_ways(tmp_path: Path):
    write(tmp_path / "long.txt", "It was the best of times, it was the worst of times.\n" * 50)
    joined = dataclasses.replace(TINY, data=str(tmp_path / "long.txt"))
    apart = dataclasses.replace(joined, documents="apart")
    for split in ("train", "val"):
        a, b = first(joined, split), first(apart, split)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_last_row_of_an_evaluation_is_padded(short_documents: Path):
    """Padding is hidden by `lengths`, and the documents before it read as they do without it."""
    config = dataclasses.replace(TINY, data=str(short_documents), documents="apart")
    *_, (batch, _) = masked.batches(config, "all")
    length = int(batch["lengths"][-1])
    assert length < 32
    model = build_model(config)
    with torch.no_grad():
        together = model(*(batch[name] for name in ("ids", "lengths")), None, batch["document"], batch["positions"])
        parts = {name: batch[name][-1:, :length] for name in ("ids", "document", "positions")}
        alone = model(parts["ids"], None, None, parts["document"], parts["positions"])
    torch.testing.assert_close(together[-1, :length], alone[0], atol=1e-5, rtol=1e-5)


# --- the model ---


def test_padding_changes_nothing():
    model, ids = build_model(), first(TINY)["ids"].clone()
    lengths = torch.tensor([32, 5, 1, 20, 31, 9, 2, 32])
    with torch.no_grad():
        before = model(ids, lengths)
        for i, n in enumerate(lengths):
            ids[i, n:] = 3
        after = model(ids, lengths)
        for i, n in enumerate(lengths):
            assert torch.equal(before[i, :n], after[i, :n])
            torch.testing.assert_close(before[i, :n], model(ids[i : i + 1, :n])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_both_sides_are_read():
    model, ids = build_model(), torch.arange(8)[None]
    for index in (0, 7):
        changed = ids.clone()
        changed[0, index] = 40
        assert not torch.equal(model(changed)[0, 4], model(ids)[0, 4])


# --- requests ---


def test_every_mask_gets_its_likeliest_tokens_without_an_autograd_graph():
    model, outputs = build_model(), []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    results = masked.predict(model, {"input": ["th[MASK] cat", "a[MASK][MASK]"], "top": 3})["results"]
    assert not any(output.requires_grad for output in outputs)
    assert [len(result["masks"]) for result in results] == [1, 2]
    (best,) = results[0]["masks"]
    tokenizer = model.masked_tokenizer
    probabilities = model(torch.tensor([tokenizer.encode("th[MASK] cat")]))[0, 2].softmax(-1)
    top = probabilities[: tokenizer.tokenizer.vocab_size].topk(3)
    assert [token["probability"] for token in best] == pytest.approx(top.values.tolist())
    assert [token["token"] for token in best] == [tokenizer.token_text(i) for i in top.indices.tolist()]
    assert results[0]["text"] == f"th{best[0]['token']} cat"


@torch.no_grad()
def test_vectors_are_the_mean_node_of_each_text():
    model, texts = build_model(), ["the cat sat", "a", "on the mat"]
    vectors = torch.tensor(masked.predict(model, {"embed": texts})["vectors"])
    for text, vector in zip(texts, vectors):
        mean = model.hidden(torch.tensor([model.masked_tokenizer.encode(text)]))[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-5)
    assert len(masked.predict(model, {"embed": ["x" * 40], "cut": True})["vectors"]) == 1


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"inptu": "x"}, ("'inptu'", "did you mean 'input'")),
        ({"input": "no mask"}, ("hides nothing", "[MASK]")),
        ({"input": 3}, ("input is 3; it must be a text",)),
        ({"input": ["[MASK]", 3]}, ("input is", "it must be a text or a list")),
        ({"input": "[MASK]" * 33}, ("33 tokens, the context holds 32",)),
        ({"input": "[MASK]", "top": 0}, ("top is 0",)),
        ({"input": "[MASK]", "top": "3"}, ("top is '3'; it must be a whole number",)),
        ({"embed": [""]}, ("empty text",)),
        ({"embed": ["x" * 40]}, ("40 tokens, the context holds 32",)),
    ],
)
def test_requests_that_cannot_be_answered(request_: dict, parts: tuple[str, ...]):
    with refuses(*parts):
        masked.predict(build_model(), request_)


@pytest.mark.parametrize("changes", [{"mask_rate": 1.5}, {"token_types": -1}, {"documents": "aprt"}], ids=str)
def test_configs_that_make_no_sense(changes: dict):
    (name,) = changes
    with refuses(f"{name} is "):
        dataclasses.replace(TINY, **changes)


# --- proteins ---


def generate_proteins(families: int = 60, size: int = 4) -> list[str]:
    """Families of near-identical sequences: one residue in twenty differs."""
    rng, sequences = np.random.default_rng(0), []
    for _ in range(families):
        ancestor = rng.integers(0, 20, 200)
        for _ in range(size):
            residues = np.where(rng.random(200) < 0.05, rng.integers(0, 20, 200), ancestor)
            sequences.append("".join(RESIDUES[i] for i in residues))
    return sequences


def test_near_identical_sequences_are_in_one_split():
    is_val = select_validation(generate_proteins(), 0.2)
    assert all(len(set(is_val[i : i + 4])) == 1 for i in range(0, 240, 4)) and 0.15 <= np.mean(is_val) <= 0.2


def test_fasta_trains_the_same_recipe(tmp_path: Path):
    sequences = generate_proteins()
    lines = "".join(f">p{i} a name\n{s[:90]}\n{s[90:].lower()}\n" for i, s in enumerate(sequences))
    path = tmp_path / "p.fasta.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    assert list(read_fasta(path)) == sequences
    config = dataclasses.replace(masked.PRESETS["tiny"], data=str(path), tokenizer="residues")
    model, batch = build_model(config), first(config)
    assert model.masked_tokenizer.tokenizer.decode([0, 1, 2]) == "ACD" and masked.loss(model, batch).isfinite()
    assert any("document" in batch for batch, _ in masked.batches(config, "val")), "sequences are documents"
    n_labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch, _ in masked.batches(config, "val"))
    assert abs(n_labels - 0.15 * 0.1 * 200 * 240) < 120


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (">a\nMKV\nMK1V\n", ("p.fa, line 3", "'1' is no residue")),
        ("MKV\n", ("p.fa, line 1", "without a name")),
        (">a\n>b\nMKV\n", ("p.fa, line 2", "the sequence before this line is empty")),
        ("", ("no sequence in it",)),
    ],
)
def test_damaged_fasta(content: str, parts: tuple[str, ...], tmp_path: Path):
    with refuses(*parts):
        list(read_fasta(write(tmp_path / "p.fa", content)))


@needs_data
def test_the_protein_set_is_complete():
    sequences = list(read_fasta(resolve("protein")[0]))
    assert len(sequences) == 20_000 and sum(map(len, sequences)) > 8_000_000
