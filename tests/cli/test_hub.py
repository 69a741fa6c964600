"""Models and data sets of a hub, and data at a URL: a hub on this machine, kind and hostile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import anyformer
from anyformer.data.io import download, hub
from anyformer.data.registry import GENERATED, SETS
from checkpoint_kit import build_reference, save, transformers
from cli_kit import assert_refused, call
from hub_kit import COMMIT, Hub, serve_hub

constants: Any = pytest.importorskip("huggingface_hub.constants")
REVIEWS = "text,label\n" + "".join(
    f"a {'good' if i % 2 else 'bad'} film of many words {i},{i % 2}\n" for i in range(60)
)
FLAGS = ("--preset", "tiny", "--steps", 2, "--device", "cpu")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub that holds nothing yet, found by HF_ENDPOINT; caches of its own; a working directory of its own."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with serve_hub(Hub()) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def save_gpt2(folder: Path) -> dict[str, bytes]:
    sizes = {"vocab_size": 256, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    save(build_reference("GPT2LMHeadModel", transformers.GPT2Config(**sizes)), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- models ---


def test_a_model_is_imported_with_the_files_it_needs(server: Hub, tmp_path: Path):
    extra = {"pytorch_model.bin": b"pickle", "README.md": b"", "onnx/model.onnx": b"", "model.fp16.safetensors": b""}
    server.repos["models/owner/small-gpt2"] = save_gpt2(tmp_path / "gpt2") | extra
    result = call("import", "owner/small-gpt2").ok()
    assert f"owner/small-gpt2: 3 files, 0.0 MB, from {server.url}/owner/small-gpt2 (commit 0123456)" in result.err
    assert {path.rsplit("/", 1)[1] for path in server.downloads} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert json.loads(Path("runs/small-gpt2/config.json").read_text())["recipe"] == "language"
    server.requests.clear()
    again = call("import", "owner/small-gpt2", "--revision", "v1", "--json").ok()
    assert again.json["run"] == "runs/small-gpt2-2" and server.downloads == []
    assert_refused(call("import", "owner/small-gpt2", "--revision", "v9"), "no revision 'v9'")


def test_a_sentence_encoder_is_fetched_with_its_pooling(server: Hub, tmp_path: Path):
    sizes = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 16}
    folder = save(build_reference("BertModel", transformers.BertConfig(**sizes)), tmp_path / "bert")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    types = [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling")]
    files["modules.json"] = json.dumps([{"type": types[0]}, {"type": types[1], "path": "1_Pooling"}]).encode()
    files["1_Pooling/config.json"] = b'{"pooling_mode_cls_token": true}'
    server.repos["models/owner/encoder"] = files | {"2_Dense/config.json": b"{}", "1_Pooling/other": b""}
    assert anyformer.load("owner/encoder", "cpu").config.embed_pool == "first"
    assert len(server.downloads) == 4


def test_a_folder_that_exists_is_never_looked_up(server: Hub, tmp_path: Path):
    save_gpt2(Path("owner/name").absolute())
    assert call("import", "owner/name", "--out", "run").ok() and server.requests == []
    assert_refused(call("import", "owner/nome"), "there is no checkpoint at owner/nome")
    assert_refused(call("import", "owner/name", "--revision", "v1"), "--revision is for a model on the hub")
    assert server.requests == []


def test_a_model_of_the_hub_is_used_wherever_a_public_checkpoint_is(server: Hub, tmp_path: Path):
    server.repos["models/owner/gpt"] = save_gpt2(tmp_path / "gpt2")
    answer = call("predict", "owner/gpt", "--request", '{"tokens": 2}').ok()
    assert answer.out and anyformer.load(f"{server.url}/owner/gpt", "cpu").name == "language"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "has only pickles (pytorch_model.bin)"),
        ({"README.md": b""}, "no config.json with model.safetensors"),
        (
            {"a.gguf": b"GGUF", "b.gguf": b"GGUF"},
            "holds several models: name one: owner/name/a.gguf, owner/name/b.gguf",
        ),
    ],
)
def test_repositories_without_a_model_that_can_be_read(server: Hub, files: dict[str, bytes], message: str):
    server.repos["models/owner/name"] = files
    assert_refused(call("import", "owner/name"), message)
    assert server.downloads == [] and not Path("runs").exists()


def test_what_is_not_there_gets_one_line(server: Hub, monkeypatch: pytest.MonkeyPatch):
    assert_refused(call("import", "owner/none"), "there is no file or folder owner/none here", "no model owner/none on")
    server.repos["models/owner/name"] = {}
    for status, code, says in (
        (403, "GatedRepo", "is gated: accept its terms"),
        (503, "", "refuses the model owner/name"),
    ):
        server.errors["models/owner/name"] = (status, code)
        assert_refused(call("import", "owner/name"), says)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert_refused(call("import", "owner/name"), "cannot be fetched from http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused(call("import", "owner/name"), "no file or folder owner/name here", "pip install 'anyformer[hub]'")


def test_without_a_connection_the_last_commit_is_used(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.repos["models/owner/gpt"] = save_gpt2(tmp_path / "gpt2")
    call("import", "owner/gpt").ok()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    server.requests.clear()
    result = call("import", "owner/gpt").ok()
    assert "the hub cannot be reached: commit 0123456 of the last time" in result.err and server.requests == []
    assert_refused(call("import", "owner/other"), "owner/other is not here, and HF_HUB_OFFLINE forbids")


def save_bert(folder: Path) -> dict[str, bytes]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    save(build_reference("BertModel", config), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"vocab.txt": "\n".join(words).encode()}


def test_classify_and_embed_from_an_encoder_of_the_hub(server: Hub, tmp_path: Path):
    server.repos["models/owner/bert"] = save_bert(tmp_path / "bert")
    Path("reviews.csv").write_text(REVIEWS)
    data = ("--data", "reviews.csv", "--init", "owner/bert", "--device", "cpu")
    result = call("train", "classify", *data, "--preset", "frozen", "--steps", 4, "--out", "run").ok()
    assert "owner/bert: " in result.err and "MB, from" in result.err
    assert call("predict", "run", "a good film").ok().out
    init = json.loads(Path("run/config.json").read_text())["init"]
    assert Path(init["path"], "model.safetensors").is_file() and Path(init["path"], "vocab.txt").is_file()
    call("train", "classify", *data, "--steps", 1, "--out", "tuned").ok()
    vectors = [json.loads(line) for line in call("embed", "owner/bert", "a good film", "rain").ok().out.splitlines()]
    assert [len(vector) for vector in vectors] == [16, 16] and vectors[0] != vectors[1]


# --- hostile answers ---


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_file_outside_its_folder_is_refused(server: Hub, name: str, tmp_path: Path):
    server.repos["models/owner/name"] = {"config.json": b"{}", "model.safetensors": b"", name: b"evil"}
    assert_refused(call("import", "owner/name"), "outside its folder: nothing is taken")
    assert server.downloads == [] and list(tmp_path.rglob("evil*")) == []


@pytest.mark.parametrize("etag", ["../../../evil", "/tmp/evil-of-a-hub", "x/../../../../evil", "", "a" * 300])
def test_an_etag_is_no_path(server: Hub, etag: str, tmp_path: Path):
    """huggingface_hub names files of its cache by the ETag of the answer, whatever it is."""
    server.repos["models/owner/name"] = {"config.json": b"{}", "model.safetensors": b"x"}
    server.etag = etag
    result = call("import", "owner/name")
    assert result.code == 2 and len(result.err.splitlines()) <= 2, result.err
    names = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() in (b"{}", b"x")}
    assert names <= {"config.json", "model.safetensors"} and not Path("/tmp/evil-of-a-hub").exists()


def test_what_huggingface_hub_has_already_is_not_downloaded_again(server: Hub, tmp_path: Path):
    server.repos["models/owner/gpt"] = save_gpt2(tmp_path / "gpt2")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    for name in server.repos["models/owner/gpt"]:
        huggingface_hub.hf_hub_download(
            "owner/gpt", name, revision=COMMIT, endpoint=server.url, cache_dir=tmp_path / "hf"
        )
    server.requests.clear()
    call("import", "owner/gpt").ok()
    assert server.downloads == []


def test_after_a_failure_complete_files_are_not_fetched_again(server: Hub, tmp_path: Path):
    server.repos["models/owner/gpt"] = save_gpt2(tmp_path / "gpt2")
    server.redirects["model.safetensors"] = f"{server.url}/nowhere/at/all"
    assert call("import", "owner/gpt").code == 2 and not Path("runs").exists()
    server.redirects.clear()
    call("import", "owner/gpt").ok()
    assert len([path for path in server.downloads if path.endswith("/config.json")]) == 1
    assert list((tmp_path / "cache/hub/partial").iterdir()) == []


@pytest.mark.parametrize("size", [5, 10_000, -1, "many", None])
def test_a_size_that_lies_is_refused(server: Hub, size: Any, tmp_path: Path):
    server.repos["models/owner/name"] = {"config.json": b"{}", "model.safetensors": b"x" * 5000}
    server.sizes["model.safetensors"] = size
    result = call("import", "owner/name")
    assert result.code == 2 and "nothing is taken" in result.err.splitlines()[-1]
    assert not (tmp_path / "cache/hub/models").exists() or not list((tmp_path / "cache/hub/models").iterdir())


def test_a_stream_that_does_not_end_is_cut(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    content = b"x" * 1_000_000
    server.repos["models/owner/name"] = {"config.json": b"{}", "model.safetensors": content}
    server.sizes["model.safetensors"] = 1500
    assert_refused_last(call("import", "owner/name"), "is larger than the 1,500 bytes that are listed")
    assert max((path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()), default=0) < 10_000


def assert_refused_last(result: Any, *parts: str) -> None:
    """Check the last line of a command that has said something before it was refused."""
    assert (result.code, result.out) == (2, ""), result
    line = result.err.splitlines()[-1]
    assert line.startswith("anyformer: ") and all(part in line for part in parts), result.err


def test_the_token_does_not_follow_a_redirect_elsewhere(server: Hub, tmp_path: Path):
    with serve_hub(Hub()) as other:
        files = save_gpt2(tmp_path / "gpt2")
        server.repos["models/owner/gpt"] = files
        elsewhere = other.url.replace("127.0.0.1", "localhost") + "/blob"
        server.redirects["model.safetensors"] = elsewhere
        other.files["/blob"] = ({}, files["model.safetensors"])
        call("import", "owner/gpt").ok()
        assert [(path, token) for _, path, token in other.requests] == [("/blob", "")]
        assert any(token == "Bearer hf_secret" for _, _, token in server.requests)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"id": 3}', b'{"sha": "../../evil", "id": "a/b"}'])
def test_an_answer_that_is_none_gets_one_line(server: Hub, answer: bytes):
    server.files["/api/models/owner/name"] = ({"Content-Type": "application/json"}, answer)
    assert_refused(call("import", "owner/name"), "owner/name", "answer")


def test_too_much_is_refused_before_the_download(server: Hub, monkeypatch: pytest.MonkeyPatch):
    server.repos["models/owner/name"] = {"config.json": b"{}", "model.safetensors": b"x" * 5000}
    monkeypatch.setattr(hub, "MAX_BYTES", 4096)
    assert_refused(call("import", "owner/name"), "2 files, 0.0 MB, more than", "hf download owner/name")
    assert server.downloads == []


# --- data sets ---


def test_a_data_set_is_detected_and_trained(server: Hub):
    server.repos["datasets/owner/reviews"] = {
        "README.md": b"",
        "train.csv": REVIEWS.encode(),
        "test.csv": b"text,label\n",
    }
    answer = call("detect", "owner/reviews", "--json").ok()
    assert answer.json["recipe"] == "classify"
    result = call("train", "owner/reviews", *FLAGS, "--tokenizer", "char", "--out", "run").ok()
    assert "owner/reviews: texts with a class each" in result.err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert Path(config["data"]).name == "reviews.csv" and Path(config["data"]).read_text() == REVIEWS
    named = call("train", "classify", "--data", f"{server.url}/datasets/owner/reviews", "--print-config").ok()
    assert json.loads(named.out)["config"]["data"] == config["data"]
    assert [path for path in server.downloads if "test" in path] == []


def make_parquet(folder: Path, start: int) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"width": [start + i / 7 for i in range(20)], "kind": [i % 2 for i in range(20)]}
    features = {
        "width": {"dtype": "float64", "_type": "Value"},
        "kind": {"names": ["thin", "wide"], "_type": "ClassLabel"},
    }
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    parquet.write_table(table, folder / "shard.parquet")
    return (folder / "shard.parquet").read_bytes()


def test_shards_of_parquet_become_one_file_with_names_of_classes(server: Hub, tmp_path: Path):
    files = {f"data/train-{i:05}-of-00002.parquet": make_parquet(tmp_path, i) for i in range(2)}
    server.repos["datasets/owner/widths"] = files | {"data/test-00000-of-00001.parquet": b"", "widths.csv": b"a,b\n"}
    answer = call("detect", "owner/widths", "--json").ok().json
    assert (answer["recipe"], answer["target"]) == ("multimodal", "kind")
    (path,) = Path(os.environ["ANYFORMER_CACHE"]).rglob("widths.parquet")
    rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert len(rows) == 40 and rows[0] == {"width": 0.0, "kind": "thin"} and rows[21]["kind"] == "wide"


def test_a_parquet_of_labeled_texts_is_classified_by_the_names_of_its_classes(server: Hub, tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"a {('bad', 'good')[i % 2]} film of many words {i}" for i in range(60)]
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    table = pyarrow.table({"text": texts, "label": [i % 2 for i in range(60)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    files = {
        f"plain_text/{split}-00000-of-00001.parquet": (tmp_path / "a.parquet").read_bytes()
        for split in ("train", "test")
    }
    server.repos["datasets/owner/reviews"] = files
    call("train", "owner/reviews", *FLAGS, "--tokenizer", "char", "--out", "run").ok()
    assert set(json.loads(call("predict", "run", "a good film", "--json").ok().out)["results"][0]["probabilities"]) == {
        "neg",
        "pos",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.jsonl": b'{"text": "one"}', "b.jsonl": b'{"text": "two"}\n'}, '{"text": "one"}\n{"text": "two"}\n'),
        ({"train.json": b'{"data": [{"text": "one"}, {"text": "two"}]}'}, '{"text": "one"}\n{"text": "two"}\n'),
        ({"train/a.csv": b"x,y\n1,2", "train/b.csv": b"x,y\n3,4\n"}, "x,y\n1,2\n3,4\n"),
    ],
)
def test_files_of_one_split_are_joined(server: Hub, files: dict[str, bytes], expected: str):
    from anyformer.data.io.hub_dataset import fetch_dataset

    server.repos["datasets/owner/name"] = files
    assert fetch_dataset("owner/name").read_text() == expected


def test_a_data_set_of_the_hub_is_a_source_of_a_mixture(server: Hub, tmp_path: Path):
    lines = "".join(json.dumps({"text": f"the cat sat on mat number {i}"}) + "\n" for i in range(60))
    server.repos["datasets/owner/name"] = {"train.jsonl": lines.encode()}
    (tmp_path / "b.txt").write_text("def f(x): return x + 1\n" * 60)
    data = ("--data", "owner/name:3", "--data", tmp_path / "b.txt")
    call("train", "language", "--preset", "tiny", "--device", "cpu", "--steps", 2, *data, "--out", "run").ok()
    assert {"val_name_loss", "val_b_loss"} <= json.loads(Path("run/result.json").read_text()).keys()


def test_folders_of_texts_stay_folders(server: Hub):
    texts = {f"{name}/{i}.txt": f"a {name} text {i}\n".encode() * 9 for name in ("good", "bad") for i in range(4)}
    server.repos["datasets/owner/name"] = texts
    answer = call("detect", "owner/name", "--json").ok().json
    assert answer["recipe"] == "classify" and "2 folders" in answer["why"]


def test_one_of_several_sets_is_named_by_its_folder(server: Hub):
    tables = {f"{name}/{split}.csv": REVIEWS.encode() for name in ("cola", "sst2") for split in ("train", "test")}
    server.repos["datasets/owner/glue"] = tables | {
        "only/test.csv": b"a,b\n1,2\n",
        "only/validation.csv": b"a,b\n1,2\n",
    }
    assert_refused(call("detect", "owner/glue"), "holds several sets: name one: owner/glue/cola, owner/glue/sst2")
    assert "so the recipe is classify" in call("detect", "owner/glue/sst2").ok().out
    assert "so the recipe is classify" in call("detect", "owner/glue@v1/sst2/test.csv").ok().out
    assert_refused(call("detect", "owner/glue/only"), "no split to train on, only test, validation: name a file")
    assert_refused(call("detect", "owner/glue/nothing"), "has no nothing", "valid: ", "cola")


def test_a_data_set_without_data(server: Hub):
    server.repos["datasets/owner/pictures"] = {f"{i}.png": b"" for i in range(3)} | {"load.py": b""}
    says = ("holds 3 .png, 1 .py, and none of .parquet", "hf download owner/pictures --repo-type dataset")
    assert_refused(call("train", "owner/pictures"), *says)


# --- URLs ---


def test_data_at_a_url_are_downloaded_once(server: Hub):
    server.files["/files/reviews.csv"] = ({"Content-Type": "text/csv"}, REVIEWS.encode())
    url = f"{server.url}/files/reviews.csv?raw=1"
    assert "so the recipe is classify" in call("detect", url).ok().out
    call("train", url, *FLAGS, "--tokenizer", "char", "--out", "run").ok()
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert Path(config["data"]).name == "reviews.csv" and len(server.requests) == 1
    assert call("eval", "run", "--data", url, "--json").ok().json["texts"] == 6, "the validation split of the same data"


def test_an_archive_at_a_url(server: Hub, tmp_path: Path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("reviews.csv", REVIEWS)
    server.files["/a.zip"] = ({}, (tmp_path / "a.zip").read_bytes())
    assert "so the recipe is classify" in call("detect", f"{server.url}/a.zip").ok().out


@pytest.mark.parametrize(
    ("headers", "content", "says"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, b"<html>", "is a web page, not a file"),
        ({"Content-Length": "100000000000000"}, b"", "more than"),
        ({"Content-Length": "50", "Connection": "close"}, b"a,b\n", "ended after 4 of 50 bytes"),
        ({"status": "404"}, b"", "HTTP 404: Not Found"),
        ({"status": "302", "Location": "http://example.org/a.csv"}, b"", "cannot be downloaded"),
        ({"status": "302", "Location": "file:///etc/passwd"}, b"", "cannot be downloaded"),
    ],
)
def test_bad_answers_leave_nothing(server: Hub, headers: dict[str, str], content: bytes, says: str, tmp_path: Path):
    server.files["/data"] = (headers, content)
    assert_refused_last(call("train", f"{server.url}/data"), f"{server.url}/data", says)
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_only_https_and_never_a_path():
    assert_refused(
        call("train", "http://example.org/a.csv"), "http://example.org/a.csv cannot be downloaded: not https"
    )
    names = {
        "https://a.org/x/data.csv?raw=1": "data.csv",
        "https://a.org/x/..%2f..%2fevil.csv": "evil.csv",
        "https://a.org/%2e%2e%5c.bashrc": "bashrc",
        "https://a.org/": "data",
    }
    assert {url: download.choose_file_name(url, {}) for url in names} == names
    disposition = {"content-disposition": 'attachment; filename="../../t.tsv"'}
    assert download.choose_file_name("https://a.org/get", disposition) == "t.tsv"
    assert download.choose_file_name("https://a.org/get", {"content-type": "text/csv"}) == "get.csv"


# --- which of them a word means ---


@pytest.mark.parametrize("name", [*SETS, *GENERATED])
def test_every_named_set_has_a_recipe(name: str):
    described = json.loads(call("train", name, "--yes", "--print-config").ok().out)
    assert described["config"]["data"] == name


def test_named_sets_are_trained_with_the_preset_that_is_for_them():
    def choose(name: str, *flags: str) -> tuple[str, str]:
        described = json.loads(call("train", name, "--print-config", *flags).ok().out)
        return described["recipe"], described["preset"]

    assert choose("plays") == ("language", "small") and choose("fra-eng") == ("translation", "fra-eng")
    assert choose("tunes") == ("music", "small") and choose("tunes-ryan") == ("music", "ryan")
    described = json.loads(call("train", "molecules", "--print-config").ok().out)
    assert (described["recipe"], described["config"]["columns"]) == ("language", "SMILES")
    assert choose("protein", "--recipe", "masked") == ("masked", "protein")
    assert_refused(call("train", "plays", "--recipe", "vision"), "the data set 'plays'", "no recipe of vision")


def test_a_word_that_is_nothing_is_explained(server: Hub):
    assert_refused(
        call("train", "playz"), "'playz' is none of a recipe, a file or folder here", "did you mean 'plays'?"
    )
    assert_refused(call("train", "qqq"), "'qqq' is none of a recipe", "anyformer list shows")
    Path("my_data").mkdir()
    assert_refused(call("train", "my_dta"), "'my_dta' is none of a recipe", "did you mean 'my_data'?")
    Path("my.csv").touch()
    assert_refused(call("train", "my_.csv"), "'my_.csv' is none of a recipe", "did you mean 'my.csv'?")
    assert_refused(call("train", "langage"), "there is no recipe 'langage': did you mean 'language'?")
    assert_refused(call("train", "owner/data.csv"), "there is no file or folder owner/data.csv")
    assert_refused(call("train", "owner/none"), "no file or folder owner/none here, and no data set owner/none on")
    assert all("data.csv" not in path for _, path, _ in server.requests)
    for text in ("a", "a/b.csv", "./a/b", "/a/b", "~/a", "a//b", "plays/x", "a/../b", "multi30k/test2016", "runs/x"):
        assert hub.parse_reference(text, "dataset") is None, text
    assert hub.parse_reference("a/b@v1/c/d", "dataset") == hub.Reference("a/b@v1/c/d", "a/b", "v1", "c/d")


@pytest.mark.slow
def test_the_environment_of_a_process_decides(tmp_path: Path):
    """HF_ENDPOINT and HF_HOME, with the token in it, of a real process from the start."""
    with serve_hub(Hub(repos={"datasets/owner/reviews": {"train.csv": REVIEWS.encode()}})) as served:
        environment = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text("hf_secret")
        environment |= {"ANYFORMER_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "anyformer", "detect", "owner/reviews"]
        process = subprocess.run(command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True)
        assert "so the recipe is classify" in process.stdout, process.stderr
        assert {token for _, path, token in served.requests if "owner" in path} == {"Bearer hf_secret"}
