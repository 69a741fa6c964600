"""BERT: the library's logits, there and back, with its head or without; and weights that people use."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from anyformer import api
from anyformer.checkpoints import hf_folder as directory
from anyformer.errors import InputError
from anyformer.loading import Model
from anyformer.recipe import to_json
from checkpoint_kit import close, opened, same_tensors, saved, shaken, transformers

BERT: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 19,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 101},
    "another activation": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "untied, five kinds": {"tie_word_embeddings": False, "type_vocab_size": 5, "vocab_size": 31},
}
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.", "Rain"]


def library(case: str, seed: int = 0, kind: str = "BertForMaskedLM") -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(**BERT | CASES[case])
    model = shaken(getattr(transformers, kind)(config), seed)
    if kind == "BertForMaskedLM":
        model.tie_weights()
        with torch.no_grad():  # untied, the library keeps two and reads the second
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    return model


def rows(theirs: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, lengths and kinds; the rows are of unequal length."""
    draw, c = torch.Generator().manual_seed(seed), theirs.config
    ids = torch.randint(c.vocab_size, (4, c.max_position_embeddings), generator=draw)
    kind = torch.randint(c.type_vocab_size, ids.shape, generator=draw)
    return ids, torch.tensor([ids.shape[1], 7, 1, 12]), kind


def real(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]) < lengths[:, None]


def agree(ours: Model, theirs: Any, seed: int = 0) -> None:
    ids, lengths, kind = rows(theirs, seed)
    there = real(ids, lengths)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=there.long(), token_type_ids=kind).logits
        close(ours.module(ids, lengths, kind)[there], wanted[there])
        close(ours.module(ids, None, kind), theirs(input_ids=ids, token_type_ids=kind).logits)


def out(ours: Model, folder: Path) -> Path:
    directory.export(folder, "masked", to_json(ours.config), ours.module)
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case: str, seed: int, tmp_path: Path):
    theirs = library(case, seed)
    ours = api.load(saved(theirs, tmp_path), "cpu")
    assert ours.name == "masked" and ours.fresh == []
    agree(ours, theirs, seed)


@pytest.mark.parametrize("case", CASES)
def test_out_and_in_again(case: str, tmp_path: Path):
    theirs = library(case)
    ours = api.load(saved(theirs, tmp_path / "theirs"), "cpu")
    folder = out(ours, tmp_path / "out")
    again = opened(transformers.BertForMaskedLM, folder)
    same_tensors(again, theirs)
    agree(ours, again)
    same_tensors(api.load(folder, "cpu").module, ours.module)


def respelled(folder: Path, spell: Any, more: dict[str, torch.Tensor]) -> Path:
    path = folder / "model.safetensors"
    save_file({spell(name): value for name, value in load_file(path).items()} | more, path, {"format": "pt"})
    return folder


def test_old_spellings_and_what_is_passed_over(tmp_path: Path):
    theirs = library("plain")
    ours = api.load(saved(theirs, tmp_path / "new"), "cpu")
    more = {
        "bert.embeddings.position_ids": torch.arange(19)[None],
        "bert.pooler.dense.weight": torch.zeros(24, 24),
        "cls.seq_relationship.weight": torch.zeros(2, 24),
        "cls.predictions.decoder.weight": theirs.bert.embeddings.word_embeddings.weight.detach().clone(),
    }

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = respelled(saved(theirs, tmp_path / "old"), old, more)
    same_tensors(api.load(folder, "cpu").module, ours.module)
    folder = respelled(folder, lambda name: name.removeprefix("bert."), {})
    same_tensors(api.load(folder, "cpu").module, ours.module)


def test_without_a_head_its_vectors_are_right_and_the_head_is_said_to_be_fresh(tmp_path: Path):
    theirs = library("plain", kind="BertModel")
    ours = api.load(saved(theirs, tmp_path), "cpu")
    assert ours.fresh == [f"head.{n}" for n in ("think.weight", "think.bias", "norm.weight", "norm.bias")] + [
        "head.project.bias"
    ]
    ids, lengths, kind = rows(theirs, 0)
    there = real(ids, lengths)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=there.long(), token_type_ids=kind).last_hidden_state
        close(ours.module.hidden(ids, lengths, kind)[there], wanted[there])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ({"embedding_size": 12}, "embedding_size = 12"),
    ],
)
def test_what_would_change_the_maths_is_refused(change: dict, says: str, tmp_path: Path):
    folder = saved(library("plain"), tmp_path)
    (folder / "config.json").write_text(json.dumps(directory.read_json(folder / "config.json") | change))
    with pytest.raises(InputError, match=says):
        api.load(folder, "cpu")


# --- weights that people use ---


def weights(name: str) -> Path:
    home = os.environ.get("ANYFORMER_WEIGHTS")
    folder = Path(home or "") / name
    if not home or not folder.is_dir():
        pytest.skip(f"$ANYFORMER_WEIGHTS/{name} is not there: make weights")
    return next(
        path.parent for path in sorted(folder.rglob("config.json")) if "model_type" in directory.read_json(path)
    )


@pytest.mark.slow
def test_the_similarities_of_minilm_are_the_librarys():
    folder = weights("minilm")
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    tokenizer.backend_tokenizer.no_padding()
    read = tokenizer(TEXTS, padding="longest", return_tensors="pt")
    with torch.no_grad():
        nodes = theirs(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    there = read["attention_mask"][..., None]
    wanted = F.normalize((nodes * there).sum(1) / there.sum(1), dim=-1)
    vectors = torch.tensor(api.load(folder, "cpu").predict(embed=TEXTS)["vectors"])
    close(vectors @ vectors.T, wanted @ wanted.T)
    assert (vectors @ vectors.T)[0, 1] > 0.7 > 0.3 > (vectors @ vectors.T)[0, 2]


HEAVY = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"


@pytest.mark.slow
def test_an_encoder_of_antibodies_recovers_hidden_residues(tmp_path: Path):
    folder = weights("antiberty")
    pickled = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    heads = ("bert.", "cls.predictions.")
    kept = {name: value.clone().contiguous() for name, value in pickled.items() if name.startswith(heads)}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    ours, right, hidden = api.load(tmp_path, "cpu"), 0, range(2, len(HEAVY), 5)
    for i in hidden:
        asked = " ".join("[MASK]" if j == i else letter for j, letter in enumerate(HEAVY))
        right += ours.predict(input=asked)["results"][0]["masks"][0][0]["token"] == HEAVY[i]
    assert right / len(hidden) > 0.8, f"{right} of {len(hidden)}"
