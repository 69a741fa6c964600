"""Data are recognized from names, columns and values: one small set for each form that people bring."""

# ruff: noqa: E501, SIM905 (one line for each set)

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.detect import detect
from anyformer.data.images.read import open_images
from anyformer.data.io.manifest import read_rows
from anyformer.data.tables.columns import is_smiles
from anyformer.detection import detect_recipe
from anyformer.errors import InputError
from forms_kit import WORDS, Build, both, files, jsonl, sentence, table


def write_fasta(folder: Path) -> Path:
    path = folder / "db.fasta.gz"
    path.write_bytes(gzip.compress("".join(f">p{i}\n{'MKV' * (i + 3)}\n" for i in range(9)).encode()))
    return path


def parquet_images(folder: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": b"\x89PNG", "path": f"{i}.png"}, "label": i % 3} for i in range(30)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return folder / "train.parquet"


def trajectories(folder: Path) -> Path:
    np.savez(folder / "runs.npz", observations=np.zeros((5, 2)), actions=np.zeros((5, 1)), rewards=np.zeros(5))
    return folder / "runs.npz"


SETS: dict[str, tuple[Build, str, str]] = {
    # name: (files, kind, recipe)
    "book": (files("book.txt", content=lambda i: "\n".join(map(sentence, range(99)))), "text", "language"),
    "notes": (files("a.md", "b.md", "sub/c.md"), "documents", "language"),
    "chapters": (files("index.md", "about.md", *[f"{c}/{i}.md" for c in ("api", "tour") for i in range(4)]), "documents", "language"),
    "code": (files("pkg/a.py", "pkg/b.py", "README.md", content=lambda i: f"x = {i}\n"), "code", "language"),
    "documents": (jsonl("docs.jsonl", lambda i: {"text": sentence(i, 30)}), "documents", "language"),
    "reviews": (table("reviews.csv", "review,sentiment", lambda i: f"{sentence(i)},{'neg pos'.split()[i % 2]}"), "labeled text", "classify"),
    "spam": (table("sms.tsv", "", lambda i: f"{'ham spam'.split()[i % 3 == 0]}\t{sentence(i)}"), "labeled text", "classify"),
    "stars": (jsonl("yelp.jsonl", lambda i: {"text": sentence(i, 20), "stars": i % 5 + 1}), "labeled text", "classify"),
    "class folders": (files(*[f"{c}/{i}.txt" for c in ("neg", "pos") for i in range(4)]), "labeled text", "classify"),
    "file per class": (files("polarity.neg", "polarity.pos"), "labeled text", "classify"),
    "fasttext": (table("train.txt", "", lambda i: f"__label__{'ab'[i % 2]} {sentence(i)}"), "labeled text", "classify"),
    "tab pairs": (table("fra.txt", "", lambda i: f"{sentence(i)}\t{sentence(i + 3)}"), "pairs", "translation"),
    "parallel files": (files("train.en", "train.de"), "pairs", "translation"),
    "named pairs": (table("en-de.csv", "en,de", lambda i: f"{sentence(i)},{sentence(i + 1)}"), "pairs", "translation"),
    "summaries": (jsonl("cnn.jsonl", lambda i: {"article": sentence(i, 60), "highlights": sentence(i)}), "pairs", "translation"),
    "chats": (jsonl("chat.jsonl", lambda i: {"messages": [{"role": "user", "content": sentence(i)}]}), "conversations", "chat"),
    "preferred answers": (jsonl("pairs.jsonl", lambda i: {"prompt": sentence(i), "chosen": sentence(i + 1), "rejected": sentence(i + 2)}), "preferences", "preference"),
    "alpaca": (jsonl("alpaca.jsonl", lambda i: {"instruction": sentence(i), "input": "", "output": sentence(i + 1)}), "conversations", "chat"),
    "image folders": (files(*[f"train/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(3)]), "labeled images", "vision"),
    "image table": (both(files(*[f"img/{i}.png" for i in range(60)]), table("labels.csv", "filename,label", lambda i: f"img/{i}.png,{i % 4}")), "labeled images", "vision"),
    "image parquet": (parquet_images, "labeled images", "vision"),
    "idx": (files("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), "labeled images", "vision"),
    "transcripts": (both(files(*[f"clips/{i}.wav" for i in range(60)]), table("train.tsv", "path\tsentence", lambda i: f"clips/{i}.wav\t{sentence(i)}")), "transcribed sounds", "speech"),
    "text beside sound": (files(*[f"{i}{e}" for i in range(5) for e in (".flac", ".txt")]), "transcribed sounds", "speech"),
    "commands": (files(*[f"{w}/{i}.wav" for w in ("yes", "no", "up") for i in range(3)]), "labeled sounds", "multimodal"),
    "iris": (table("iris.csv", "sepal,petal,species", lambda i: f"{i % 7}.{i % 9},{i % 5}.5,{'abc'[i % 3]}"), "table", "multimodal"),
    "without header": (table("iris.data", "", lambda i: f"{i % 7}.{i % 9},{i % 5}.5,Iris-{'abc'[i % 3]}"), "table", "multimodal"),
    "semicolons": (table("wine.csv", '"acidity";"alcohol";"quality"', lambda i: f"{i % 11}.1;{i % 8}.5;{i % 6}"), "table", "multimodal"),
    "codes": (table("cabbages.csv", "Cult,Date,weight", lambda i: f"c{39 + i % 2 * 13},d{i % 3},{i % 7}.5"), "table", "multimodal"),
    "names in single quotes": (table("anes.csv", "'age'\t'party'\t'vote'", lambda i: f"{i % 70}\t{i % 7}\t{i % 2}"), "table", "multimodal"),
    "classes in names": (files(*[f"recordings/{i % 3}_theo_{i}.wav" for i in range(12)]), "labeled sounds", "multimodal"),
    "people": (table("titanic.csv", "PassengerId,Survived,Pclass,Name,Sex,Age", lambda i: f'{i},{i % 2},{i % 3},"Doe, Mr. {sentence(i, 2)}",{"male female".split()[i % 2]},{i % 70}'), "table", "multimodal"),
    "homes": (both(files(*[f"{i}.jpg" for i in range(60)]), table("homes.csv", "photo,rooms,price", lambda i: f"{i}.jpg,{i % 6},{1000 * i}")), "table", "multimodal"),
    "passengers": (table("air.csv", "Month,Passengers", lambda i: f"{1949 + i // 12}-{i % 12 + 1:02},{112 + i}"), "series", "forecast"),
    "sunspots": (table("sunspots.csv", "YEAR,SUNACTIVITY", lambda i: f"{1700 + i},{i % 11 * 10}"), "series", "forecast"),
    "many series": (table("stocks.csv", "symbol,date,price", lambda i: f"{'MSFT IBM'.split()[i // 30]},{2000 + i % 30 // 12}-{i % 12 + 1:02}-01,{i}"), "series", "forecast"),
    "hourly": (table("ETTh1.csv", "date,HUFL,HULL,OT", lambda i: f"2016-07-{i // 24 + 1:02} {i % 24:02}:00:00,{i}.5,{i % 7},{i % 9}"), "series", "forecast"),
    "fasta": (write_fasta, "sequences", "masked"),
    "alignment": (table("dhfr.fasta", "", lambda i: f">s{i}\nMK-V{'ACDE'[i % 4]}A"), "alignment", "msa"),
    "dialogues": (jsonl("talk.jsonl", lambda i: {"topic": "ab"[i % 2], "dialog": [sentence(i), sentence(i + 1)]}), "documents", "language"),
    "smiles": (table("drugs.smi", "", lambda i: f"CC(=O)O{'c1ccccc1' * (i % 3 + 1)}C(=O)O mol{i}"), "molecules", "language"),
    "solubility": (table("esol.csv", "smiles,solubility", lambda i: f"CC(=O)O{'C' * (i % 9)},{-i % 7}.5"), "table", "multimodal"),
    "tunes": (files("jigs.abc", content=lambda i: "X:1\nT:A jig\nM:6/8\nK:D\nA2A ABc|\n"), "tunes", "music"),
    "source and target files": (files("src-train.txt", "tgt-train.txt", "src-val.txt", "tgt-val.txt"), "pairs", "translation"),
    "pairs between numbers": (table("links.tsv", "", lambda i: f"{1000 + 7 * i}\t{sentence(i)}\t{90 + 3 * i}\t{sentence(i + 3)}"), "pairs", "translation"),
    "class folders and a note": (files("db.README.2.0", *[f"txt/{c}/{i}.txt" for c in ("neg", "pos") for i in range(4)]), "labeled text", "classify"),
    "votes": (table("tweets.csv", ",count,hateful,class,tweet", lambda i: f"{i},3,{i % 4},{i % 3},{sentence(i, 12)}"), "labeled text", "classify"),
    "helpfulness": (table("reviews.csv", "age,price,rating,review", lambda i: f"{18 + i},{i}.5,{i % 5},{sentence(i, 12)}"), "table", "multimodal"),
    "class first": (table("TREC.train", "", lambda i: f"{'DESC:manner ENTY:animal NUM:date'.split()[i % 3]} {sentence(i, 4 + i % 6)}"), "labeled text", "classify"),
    "digit first": (table("sst.all", "", lambda i: f"{i * i % 5} {sentence(i, 4 + i % 6)}"), "labeled text", "classify"),
    "values with spaces": (table("monks.train", "", lambda i: f"{i * i % 3} {i % 4} {'red blue'.split()[i % 2]} {i % 5}.5"), "table", "multimodal"),
    "numbered lines": (table("laws.txt", "", lambda i: f"{i // 10 + 1} {sentence(i, 4 + i % 5)}"), "text", "language"),
    "sounds with codes": (both(files(*[f"audio/{i % 5}-{i}.wav" for i in range(60)]), table("meta/esc.csv", "filename,fold,target,category,src_file", lambda i: f"{i % 5}-{i}.wav,{i % 5 + 1},{i % 3},{'dog rain sea'.split()[i % 3]},{100 + i // 2}")), "labeled sounds", "multimodal"),
    "one column": (table("visits.csv", "x", lambda i: str(80 + i % 9)), "series", "forecast"),
    "years and months": (table("cars.csv", "Year,Month,Make,Sold", lambda i: f"{2007 + i // 24},{i // 2 % 12 + 1},{'Ford Fiat'.split()[i % 2]},{i}"), "series", "forecast"),
    "steps with names": (table("pole.csv", "episode,t,position,speed,action,reward,done", lambda i: f"{i // 10},{i % 10},{i}.5,{i % 7}.1,{i % 2},1.0,{i % 10 == 9}"), "trajectories", "control"),
    "tags": (table("ner.conll", "", lambda i: f"{WORDS[i % 17]} {'B-PER O O'.split()[i % 3]}" if i % 6 else ""), "tagged text", "tagging"),
    "tags in a text": (table("train.txt", "", lambda i: f"{WORDS[i % 17]} NN {'B-PER O O'.split()[i % 3]}" if i % 6 else "", rows=99), "tagged text", "tagging"),
    "tag lists": (jsonl("ner.jsonl", lambda i: {"id": i, "tokens": WORDS[: i % 5 + 1], "ner_tags": [0] * (i % 5 + 1)}), "tagged text", "tagging"),
    "tagged splits": (files("README.md", "eng.train", "eng.testa", content=lambda i: f"{chr(10).join(f'{word} {word[0]}' if k % 5 else '' for k, word in enumerate(WORDS * 9))}\n"), "tagged text", "tagging"),
    "short lines": (table("poem.txt", "", lambda i: f"{WORDS[i % 17]} {WORDS[i * 5 % 17]}" if i % 4 else ""), "text", "language"),
    "list in an object": (table("squad.json", "", lambda i: '{"version": "1.1", "n": 3, "data": [' + ",".join(json.dumps({"text": sentence(k, 30)}) for k in range(30)) + "]}", rows=1), "documents", "language"),
    "episodes": (trajectories, "trajectories", "control"),
    "pixels in columns": (table("mnist.csv", "label," + ",".join(f"pixel{i}" for i in range(64)), lambda i: f"{i % 3}," + ",".join(str((i * k) % 256) for k in range(64))), "labeled images", "vision"),
    "classes one after the other": (table("imdb.csv", "text,label", lambda i: f"{sentence(i)},{'neg pos'.split()[i > 350]}", rows=400), "labeled text", "classify"),
    "numbered classes one after the other": (table("imdb.csv", "text,label", lambda i: f"{sentence(i)},{i // 350}", rows=400), "labeled text", "classify"),
    "panel": (table("firms.csv", "invest,value,firm,year", lambda i: f"{i}.5,{i % 9},{'abc'[i // 20]},{1950 + i % 20}"), "series", "forecast"),
    "hours": (table("weather.csv", "origin,year,month,day,hour,temp,wind,time_hour", lambda i: f"EWR,2013,1,{1 + i // 24},{i % 24},{i % 7}.1,{i % 5},2013-01-{1 + i // 24:02} {i % 24:02}:00:00"), "series", "forecast"),
    "robot": (jsonl("data.jsonl", lambda i: {"observation.state": [i, 0.5], "action": i % 3, "episode_index": i // 20, "frame_index": i % 20, "next.reward": -1.0, "next.done": i % 20 == 19}), "trajectories", "control"),
    "clustal": (table("p53.aln", "CLUSTAL W (1.83) multiple sequence alignment", lambda i: f"s{i} MK-V{'ACDE'[i % 4]}A"), "alignment", "msa"),
    "documents of one name": (files(*[f"{c}/README.md" for c in "abcd"]), "documents", "language"),
    "images in a list": (both(files(*[f"img/{i}.png" for i in range(60)]), table("labels.txt", "image,label", lambda i: f"{i}.png,{'cat dog'.split()[i % 2]}")), "labeled images", "vision"),
    "documents with pictures": (files(*[f"docs/{i}.md" for i in range(20)], *[f"docs/img/{i}.png" for i in range(5)]), "documents", "language"),
    "code with pictures": (files("d.csv", *[f"pkg/{i}.py" for i in range(9)], *[f"pkg/img/{i}.png" for i in range(3)]), "code", "language"),
    "memes": (both(files(*[f"img/{i}.jpg" for i in range(60)]), jsonl("memes.jsonl", lambda i: {"id": i, "img": f"img/{i}.jpg", "label": i % 2, "text": sentence(i)})), "table", "multimodal"),
    "images and sounds": (both(files(*[f"{i}{e}" for i in range(60) for e in (".png", ".wav")]), table("birds.csv", "photo,song,species", lambda i: f"{i}.png,{i}.wav,{'abc'[i % 3]}")), "table", "multimodal"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_data_are_recognized(name: str, tmp_path: Path):
    build, kind, recipe = SETS[name]
    path = build(tmp_path) or tmp_path
    readings = detect(path)
    assert readings[0].kind == kind, [(reading.kind, reading.score) for reading in readings]
    assert readings[0].why
    assert detect_recipe(path).recipe == recipe


def test_the_target_and_the_columns_are_named(tmp_path: Path):
    assert detect_recipe(SETS["iris"][0](tmp_path) or tmp_path).target == "species"
    assert detect_recipe(SETS["people"][0](tmp_path) or tmp_path).target == "Survived"
    reviews = detect_recipe(SETS["reviews"][0](tmp_path) or tmp_path)
    assert reviews.fields["columns"] == "review,sentiment" and "classify" in reviews.describe()
    assert reviews.alternatives == ("multimodal", "language")


def test_columns_of_numbers_that_repeat_the_classes_are_no_features(tmp_path: Path):
    SETS["sounds with codes"][0](tmp_path)
    assert detect_recipe(tmp_path).target == "category"


def test_the_parts_of_a_time_are_no_values(tmp_path: Path):
    assert detect_recipe(SETS["years and months"][0](tmp_path) or tmp_path).why.endswith("Year, then Sold")


def test_images_in_columns_of_pixels_are_read(tmp_path: Path):
    path = SETS["pixels in columns"][0](tmp_path) or tmp_path
    fields = detect_recipe(path).fields
    images = open_images(fields["data"], fields["columns"])
    assert images.read(7).tolist() == [[7 * k % 256 for k in range(row, row + 8)] for row in range(0, 64, 8)]
    assert images.classes == ("0", "1", "2") and images.labels[7] == 1
    path.write_text(path.read_text().replace(",0,1,2,", ",0,1,256,", 1))
    with pytest.raises(InputError, match="line 3: expected a whole number from 0 to 255"):
        open_images(fields["data"], fields["columns"])


def test_the_table_of_a_folder_is_the_data(tmp_path: Path):
    SETS["homes"][0](tmp_path)
    assert detect_recipe(tmp_path).fields["data"] == str(tmp_path / "homes.csv")


def test_what_is_not_read_is_said(tmp_path: Path):
    files(*[f"{word}/{i}{e}" for word in ("yes", "no") for i in range(3) for e in (".wav", ".json")])(tmp_path)
    assert detect_recipe(tmp_path).why.endswith("not read: 6 .json")
    both(table("t/users.csv", "age,city", lambda i: f"{i},{i % 3}"), SETS["iris"][0])(tmp_path / "t")
    assert detect_recipe(tmp_path / "t").why.endswith("not read: users.csv")


def test_a_table_that_does_not_name_the_images_beside_it_is_asked_about(tmp_path: Path):
    both(files(*[f"photos/{i}-{k}.jpg" for i in range(60) for k in "ab"]), SETS["iris"][0])(tmp_path)
    detection = detect_recipe(tmp_path)
    assert not detection.is_sure and detection.why.endswith("iris.csv names no image")


def test_images_with_captions_are_no_texts(tmp_path: Path):
    both(files(*[f"{i}.png" for i in range(60)]), table("c.csv", "image,caption", lambda i: f"{i}.png,{sentence(i)}"))(
        tmp_path
    )
    with pytest.raises(InputError, match=r"images with a text each .*no recipe"):
        detect_recipe(tmp_path)
    assert not detect_recipe(tmp_path / "c.csv").is_sure


@pytest.mark.parametrize(
    ("header", "target"),
    [("inspection_score,year,chain", "inspection_score"), ("size,weight,area code", "weight"), ("a,b,c", "c")],
)
def test_the_target_is_known_by_its_name(header: str, target: str, tmp_path: Path):
    path = table("t.csv", header, lambda i: f"{i % 7}.5,{i % 5},{i % 3}")(tmp_path)
    assert path and detect_recipe(path).target == target


def test_an_archive_is_what_it_holds(tmp_path: Path):
    SETS["commands"][0](tmp_path / "words")
    archive = shutil.make_archive(str(tmp_path / "words"), "zip", tmp_path / "words")
    assert detect(Path(archive))[0].kind == "labeled sounds"


def test_a_recipe_can_be_chosen(tmp_path: Path):
    path = SETS["reviews"][0](tmp_path) or tmp_path
    assert detect_recipe(path, "language").recipe == "language"
    with pytest.raises(InputError, match="no recipe"):
        detect_recipe(path, "control")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("noise.bin", bytes(range(256)), "a .bin of 256 bytes"),
        ("empty.csv", b"", "is empty"),
        ("data.zip", b"PK\x03\x04rest", "cannot be unpacked"),
        ("broken.npz", b"PK\x03\x04junk", "not a .npz"),
        ("wide.csv", b'a,b\n"' + b"x" * 200_000 + b'",1\n', "field larger"),
        ("one.json", b'{\n"a": {\n' + b",\n".join(b'"%d": 1' % i for i in range(400)) + b"}}", "one JSON object"),
        ("states.csv", b"state,share\n" + b"".join(b"s%dx,%d.5\n" % (i, i) for i in range(60)), "without rows"),
        ("movie.mp4", b"\0\0\0\x18ftypmp42", "a .mp4 of 12 bytes"),
    ],
)
def test_what_is_not_recognized_gets_one_line(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        detect_recipe(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        detect_recipe(tmp_path / "absent")


def test_a_long_line_is_text(tmp_path: Path):
    (tmp_path / "novel.txt").write_text("word " * 60_000 + "\nThe end.\n")
    assert detect(tmp_path / "novel.txt")[0].kind == "text"


def test_the_reader_finds_the_columns_that_are_recognized(tmp_path: Path):
    """Both judge by one function whether the first line holds names."""
    for name in ("reviews", "spam", "without header", "semicolons", "tab pairs"):
        path = SETS[name][0](tmp_path) or tmp_path
        if path.suffix in (".csv", ".tsv"):
            options, row = detect(path)[0].options, next(iter(read_rows(path)))[1]
            assert {value for key, value in options.items() if key != "data"} <= row.keys(), (name, options, row)


@pytest.mark.parametrize(
    ("text", "is_molecule"),
    [
        ("CC(=O)Oc1ccccc1C(=O)O", True),
        ("C1CC2CC1C2", True),
        ("[13CH4]", True),
        ("C00012", False),
        ("C1CC", False),
        ("B12", False),
    ],
)
def test_codes_are_no_molecules(text: str, is_molecule: bool):
    """The rings of a molecule are closed."""
    assert is_smiles(text) == is_molecule


def test_the_target_has_a_name_of_targets_and_is_no_note(tmp_path: Path):
    rows = table(
        "heating.csv",
        "idcase,depvar,income,rooms,comments",
        lambda i: f"{i},{'abc'[i % 3]},{i % 7},{i % 5},{'x' * (i % 9 == 0)}",
    )
    assert detect_recipe(rows(tmp_path)).target == "depvar"
    rows = table(
        "plain.csv",
        "idcase,rooms,kind,comments",
        lambda i: f"{i},{i % 5},{'abc'[i % 3]},{'xy'[i % 2] if i % 9 == 0 else ''}",
    )
    assert detect_recipe(rows(tmp_path)).target == "kind"
