"""A datastore: the mixture is the formula, the search finds the nearest, cached equals uncached, others are refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anyformer import api
from anyformer.errors import InputError
from anyformer.inference.datastore import BLOCK_STATES, Datastore, StoreInfo, write_store
from anyformer.inference.decode import generate, new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.inference.sampling import SamplingParams
from anyformer.model.neighbor_mixture import NeighborMixture
from cli_kit import assert_refused, call

OLD = "the cat sat on the mat. the dog sat on the log. the rat ate the malt.\n" * 40
NEW = "zebras graze at dusk; foxes doze in the oak, and owls quote verse.\n" * 40  # never trained on
INFO = StoreInfo(model="", vocabulary="", sha256="", neighbors=5, probes=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datastore")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    flags = ("--preset", "tiny", "--steps", 20, "--tokenizer", "byte", "--device", "cpu", "--dtype", "float32")
    call("train", "language", *flags, "--data", folder / "old.txt", "--out", folder / "run").ok()
    api.load(folder / "run", "cpu").index(folder / "new.txt", folder / "store")
    return folder / "run"


@pytest.fixture(scope="module")
def store(run: Path) -> Path:
    return run.parent / "store"


def make_states(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).half().float()


def build(folder: Path, keys: torch.Tensor, tokens: torch.Tensor, info: StoreInfo) -> Datastore:
    return write_store(folder, zip(keys.split(100), tokens.split(100)), info)


def test_the_mixture_is_the_formula(tmp_path: Path):
    keys, tokens, queries = make_states(40, 8, 0), torch.arange(40) % 6, make_states(6, 8, 1)
    head = nn.Linear(8, 7)
    head.vocab_size = 7
    search = build(tmp_path, keys, tokens, INFO).search
    with torch.no_grad():
        result = NeighborMixture(head, 8, search, 0.3, 2.5)(queries.view(2, 3, 8))
        for x, row in zip(queries, result.view(6, 7)):
            distances = [float(((x - key) ** 2).sum()) for key in keys]
            nearest = sorted(range(40), key=lambda i: distances[i])[:5]
            total = sum(math.exp(-distances[i] / 2.5) for i in nearest)
            own = head(x).softmax(-1).tolist()
            for token in range(7):
                shares = sum(math.exp(-distances[i] / 2.5) for i in nearest if int(tokens[i]) == token) / total
                assert row[token].exp().item() == pytest.approx(0.3 * shares + 0.7 * own[token], abs=1e-5)


def test_with_all_groups_the_search_is_exact_and_with_some_it_is_right(tmp_path: Path):
    n = BLOCK_STATES + 100  # in several groups
    keys, tokens, queries = make_states(n, 4, 2), torch.arange(n), make_states(20, 4, 3)
    store = build(tmp_path, keys, tokens, INFO)
    exact = torch.cdist(queries, keys).square()
    farthest = exact.topk(5, largest=False).values[:, -1:]
    for probes, least in ((1, 0.3), (16, 0.8), (len(store.centroids), 0.9999)):
        store.probes = probes
        index, distances = store.search(queries)
        torch.testing.assert_close(distances, exact.gather(1, index), atol=1e-4, rtol=1e-4)
        assert (distances <= farthest + 1e-5).float().mean() > least
        assert (distances.diff(dim=1) >= 0).all()


def test_queries_are_answered_together_as_alone(tmp_path: Path):
    keys, queries = make_states(500, 16, 4), make_states(30, 16, 5)
    opened = build(tmp_path, keys, torch.arange(500), INFO)
    together, alone = opened.search(queries), [opened.search(query[None]) for query in queries]
    assert torch.equal(together[0], torch.cat([tokens for tokens, _ in alone]))
    torch.testing.assert_close(together[1], torch.cat([distances for _, distances in alone]))


def test_a_store_of_fewer_states_than_neighbors(tmp_path: Path):
    tokens, distances = build(tmp_path, make_states(3, 4, 6), torch.arange(3), INFO).search(make_states(2, 4, 7))
    assert tokens.shape == distances.shape == (2, 3)


# --- of a run ---


def test_a_text_that_was_never_trained_on_is_predicted_better(run: Path, store: Path):
    result = call("eval", run, "--data", run.parent / "new.txt", "--store", store, "--json").ok().json
    assert result["bits_per_byte"] < 0.2 * result["bits_per_byte_without_store"]
    n_val = len(NEW.encode()) - int(len(NEW.encode()) * 0.9)
    assert result["tokens"] == n_val - 1, "of the text that is stored only the validation split is evaluated"
    info = json.loads((store / "store.json").read_text())
    n_stored = np.load(store / "tokens.npy").shape[0]
    assert 0 < info["weight"] < 1 and n_stored == round(0.9 * (len(NEW) - n_val - 1), 0)


def test_with_weight_0_the_model_is_the_same_bit_for_bit(run: Path, store: Path):
    plain, mixed = api.load(run, "cpu"), api.load(run, "cpu", store=store)
    ids = torch.tensor([list(b"the owl sat on the mat")])
    with torch.inference_mode():
        assert not torch.equal(plain.module(ids), mixed.module(ids))
        mixed.module.head.weight = 0.0
        assert torch.equal(plain.module(ids), mixed.module(ids))


@pytest.mark.parametrize("split", [1, 9])
def test_cached_equals_uncached(run: Path, store: Path, split: int):
    model, ids = api.load(run, "cpu", store=store).module, list(b"foxes doze in the log")
    with torch.inference_mode():
        cache = new_cache(model, 1)
        logits = [prefill(model, [ids[:split]], cache)]
        logits += [step(model, torch.tensor([token]), cache) for token in ids[split:]]
        expected = model(torch.tensor([ids]))[0, split - 1 :]
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-4, rtol=1e-4)


def test_prompts_of_unequal_length_decode_together_as_alone(run: Path, store: Path):
    model = api.load(run, "cpu", store=store).module
    prompts = [list(text) for text in (b"z", b"foxes doze", b"the rat", b"on the log. the")]
    arguments = {"sampling": SamplingParams(temperature=0), "tokens": 40}  # beyond the context
    together = list(zip(*generate(model, prompts, seeds=[0] * 4, **arguments)))
    for prompt, tokens in zip(prompts, together):
        assert [row[0] for row in generate(model, [prompt], seeds=[0], **arguments)] == list(tokens)


def test_sample_writes_the_stored_text(run: Path, store: Path):
    flags = ("--prompt", "foxes doze", "--tokens", 25, "--temperature", 0, "--json")
    (sample,) = call("sample", run, "--store", store, *flags).ok().json["samples"]
    assert sample["text"] == " in the oak, and owls quo"


def test_counts_and_a_store_are_mixed(tmp_path: Path):
    (tmp_path / "a.txt").write_text(OLD)
    fields = {"data": str(tmp_path / "a.txt"), "out": tmp_path / "run", "steps": 2, "tokenizer": "byte"}
    api.train("recall", "tiny", **fields, progress=False)
    (tmp_path / "b.txt").write_text(NEW)
    api.load(tmp_path / "run", "cpu").index(tmp_path / "b.txt", tmp_path / "store")
    metrics = api.load(tmp_path / "run", "cpu", store=tmp_path / "store").evaluate(str(tmp_path / "b.txt"))
    assert metrics["bits_per_byte"] < metrics["bits_per_byte_without_store"]


def test_a_public_checkpoint_has_a_store(run: Path, tmp_path: Path):
    api.export_checkpoint(run, "hf", tmp_path / "hf")
    text = str(run.parent / "new.txt")
    api.load(tmp_path / "hf", "cpu").index(text, tmp_path / "store")
    metrics = api.load(tmp_path / "hf", "cpu", store=tmp_path / "store").evaluate(text)
    assert metrics["bits_per_byte"] < 0.2 * metrics["bits_per_byte_without_store"]


# --- what is refused ---


@pytest.fixture(scope="module")
def others(run: Path) -> dict[str, Path]:
    """Runs of another vocabulary, of other weights, and of a recipe that continues no text."""
    fields = {"data": str(run.parent / "old.txt"), "steps": 1, "progress": False}
    api.train("language", "tiny", out=run.parent / "model", tokenizer="byte", seed=7, **fields)
    api.train("language", "tiny", out=run.parent / "vocabulary", **fields)
    api.train("masked", "tiny", out=run.parent / "masked", **fields)
    return {name: run.parent / name for name in ("model", "vocabulary", "masked")}


@pytest.mark.parametrize("name", ["model", "vocabulary"])
def test_a_store_of_another_model_is_refused(others: dict[str, Path], store: Path, name: str):
    assert_refused(
        call("eval", others[name], "--store", store), f"{store} belongs to another {name}", "anyformer index"
    )


def test_only_a_model_that_continues_texts_has_a_store(others: dict[str, Path], store: Path, tmp_path: Path):
    message = "continues no texts: a store serves a language model"
    assert_refused(call("eval", others["masked"], "--store", store), message)
    assert_refused(call("index", others["masked"], "--out", tmp_path / "new"), message)


def test_a_damaged_store_is_refused(run: Path, store: Path, tmp_path: Path):
    def copy() -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in store.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    changed = copy()
    content = bytearray((changed / "keys.npy").read_bytes())
    content[-1] ^= 1
    (changed / "keys.npy").write_bytes(content)
    assert_refused(call("eval", run, "--store", changed), "is damaged (keys.npy has changed)")
    (changed / "starts.npy").unlink()
    assert_refused(call("eval", run, "--store", changed), "starts.npy is missing")
    assert_refused(call("sample", run, "--store", tmp_path), f"there is no store at {tmp_path}")
    for values, message in (
        ({"weight": 2}, "weight is 2"),
        ({"neighbors": 10**9}, "neighbors is 1000000000"),
    ):
        folder = copy()
        (folder / "store.json").write_text(json.dumps(json.loads((store / "store.json").read_text()) | values))
        assert_refused(call("eval", run, "--store", folder), message)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("tokens", np.full(10, 1, np.int32)),
        ("tokens", np.full(10**6, 10**6, np.int32)),
        ("starts", np.array([0, 5], np.int64)),
        ("tokens", np.array(1, np.int32)),
        ("keys", np.zeros((4, 4), np.float64)),
        ("centroids", np.zeros((0, 32), np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(run: Path, store: Path, tmp_path: Path, name: str, array: np.ndarray):
    from anyformer.data.io.seal import write_seal

    for file in store.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    np.save(tmp_path / f"{name}.npy", array)
    write_seal(tmp_path)
    with pytest.raises(InputError, match=r"do not fit together|cannot be read as \.npy"):
        api.load(run, "cpu", store=tmp_path)


def test_texts_and_folders_that_make_no_store(run: Path, store: Path, tmp_path: Path):
    new = run.parent / "new.txt"
    assert_refused(
        call("index", run, "--data", new, "--out", store), f"{store} exists and is not empty: choose another --out"
    )
    assert_refused(
        call("index", run, "--data", f"{new}:1 {run.parent / 'old.txt'}:2", "--out", tmp_path / "a"), "one text"
    )
    (tmp_path / "short.txt").write_text("a few words")
    assert_refused(call("index", run, "--data", tmp_path / "short.txt", "--out", tmp_path / "a"), "too few for a store")
    with pytest.raises(InputError, match="was loaded with a store"):
        api.load(run, "cpu", store=store).index(new, tmp_path / "a")
    assert not (tmp_path / "a").exists()
