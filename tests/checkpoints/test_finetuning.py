"""After an import, a model of every family answers, is evaluated and is trained further as any run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer
from anyformer.conversion import export_checkpoint, import_checkpoint
from anyformer.errors import InputError
from cli_kit import read_folder

QUICK = {
    "test_it_answers_as_before_the_export": {"gpt2"},
    "test_adapters_do_not_change_the_import": {"gpt2"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

TEXT = "the cat sat on the mat, and the dog sat on the cat\nthen the rat ran at the bat\n" * 30
NUMBERS = [str(i * 7919 % 10**6) for i in range(300)]
FILES = {"text.txt": TEXT, "pairs.tsv": "".join(f"{number}\t{number[::-1]}\n" for number in NUMBERS)}
SIZES = {"dim": 32, "n_layer": 2, "n_head": 2, "mlp_dim": 48, "context": 32}
STACKS = {stack: {"dim": 32, "n_layer": 1, "n_head": 2, "mlp_dim": 48} for stack in ("encoder", "decoder")}
WHISPER = {"prompt": "3 1", "pad_to_context": True, "encoder": STACKS["encoder"] | {"context": 100}}
FEW = {"steps": 2, "batch": 4, "accumulate": 1, "eval_every": 1, "save_every": 1, "eval_batches": 4}
FEW |= {"device": "cpu", "dtype": "float32"}
UNCHANGED = {"lr": 1e-12, "warmup": 0, "weight_decay": 0}

# Family -> recipe, preset, fields of the config, data (one of FILES or the name of a set), a request.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "gpt2": ("language", "nanogpt-cpu", {"tokenizer": "char", "model": SIZES}, "text.txt", {"prompt": "the cat"}),
    "llama": (
        "language",
        "llama",
        {"tokenizer": "bpe", "vocab_size": 280, "model": SIZES},
        "text.txt",
        {"prompt": "a"},
    ),
    "qwen3": ("language", "small", {"tokenizer": "byte", "model": SIZES}, "text.txt", {"prompt": "the cat"}),
    "bert": (
        "masked",
        "bert",
        {"tokenizer": "char", "val_fraction": 0.2, "padded_vocab": 48, "model": SIZES},
        "text.txt",
        {"input": "the c[MASK]t"},
    ),
    "t5": ("translation", "t5", {"tokenizer": "char", "start": 10, "end": 10, **STACKS}, "pairs.tsv", {"input": "314"}),
    "vit": ("vision", "tiny", {}, "digits", {}),
    "whisper": ("speech", "tiny", WHISPER | {"decoder": STACKS["decoder"]}, "tones", {}),
    "decision_transformer": ("control", "tiny", {}, "line", {}),
}


class Imported:
    """A public checkpoint of a family (the other tests show that transformers opens it), checkpoint as a run."""

    def __init__(self, family: str, folder: Path):
        self.recipe, preset, fields, data, self.request = FAMILIES[family]
        for name, text in FILES.items():
            (folder / name).write_text(text)
        self.folder, self.data = folder, str(folder / data) if data in FILES else data
        self.first = anyformer.train(self.recipe, preset, out=folder / "first", data=self.data, train=FEW, **fields)
        export_checkpoint(folder / "first", "hf", folder / "public")
        assert json.loads((folder / "public" / "config.json").read_text())["model_type"] == family
        import_checkpoint(folder / "public", folder / "run")
        self.run, self.model = folder / "run", anyformer.load(folder / "run", "cpu")

    def train(self, name: str, train: dict[str, Any], **options: Any) -> Any:
        fields = {"data": self.data, "train": FEW | UNCHANGED | train}
        return anyformer.train(self.recipe, init=self.run, out=self.folder / name, **fields, **options)


EACH_TIME = {"gpt2", "llama", "bert", "vit"}  # the others are slow tests


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=[] if f in EACH_TIME else pytest.mark.slow) for f in FAMILIES],
    ids=str,
)
def checkpoint(
    request: pytest.FixtureRequest, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Imported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(cache_folder))
        return Imported(request.param, tmp_path_factory.mktemp("checkpoint"))


def test_it_answers_as_before_the_export(checkpoint: Imported):
    answer = checkpoint.model.predict(checkpoint.request)
    assert answer == anyformer.load(checkpoint.folder / "public", "cpu").predict(checkpoint.request)
    if checkpoint.request:  # an example without a request may come from the data of the run
        assert answer == checkpoint.first.predict(checkpoint.request)


def test_it_is_evaluated_on_data_that_are_named(checkpoint: Imported):
    with pytest.raises(InputError, match="came without data"):
        checkpoint.model.evaluate()
    loss = checkpoint.model.evaluate(checkpoint.data, every=20)["loss"]
    assert loss > 0
    assert loss == anyformer.load(checkpoint.folder / "public", "cpu").evaluate(checkpoint.data, every=20)["loss"]


def test_training_starts_from_its_weights(checkpoint: Imported):
    tuned = checkpoint.train("tuned", {}).module.state_dict()
    before = checkpoint.model.module.state_dict()
    assert before.keys() == tuned.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tuned[name], tensor, atol=1e-6, rtol=0)


def test_adapters_do_not_change_the_import(checkpoint: Imported):
    before = read_folder(checkpoint.run)
    merged = checkpoint.train("adapted", {"lr": 1e-2}, lora={"rank": 2})
    assert read_folder(checkpoint.run) == before
    tensors = checkpoint.model.module.state_dict()
    assert merged.module.state_dict().keys() == tensors.keys()
    assert any(not torch.equal(merged.module.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert merged.predict(checkpoint.request)
