"""Separated values as people have them: delimiters, decimal commas, missing names, other encodings."""

from pathlib import Path

import pytest

from anyformer.data.audio.datasets import list_entries
from anyformer.data.images.read import open_table as open_image_table
from anyformer.data.io.manifest import read_rows
from anyformer.data.tables.infer_schema import infer_schema
from anyformer.data.tables.read import read_table
from anyformer.data.text.labeled import read_labeled
from anyformer.data.text.pairs import read_pairs
from data_kit import refuses, write

TEXTS = [("good, really", "pos"), ("bad; really", "neg"), ("fine | so far", "pos"), ("poor", "neg")]


def read(path: Path) -> list[dict[str, str]]:
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_delimiter_of_a_csv_is_recognized(delimiter: str, mark: str, tmp_path: Path):
    lines = [f"text{delimiter}label", *(f'"{text}"{delimiter}{label}' for text, label in TEXTS)]
    path = write(tmp_path / "a.csv", mark + "\r\n".join(lines))
    assert [tuple(row.values()) for row in read(path)] == TEXTS
    assert sorted(read_labeled(str(path)).texts) == sorted(text for text, _ in TEXTS)
    assert sorted(read_pairs(str(path), 0.3).split("all")) == sorted(TEXTS)


def test_decimal_commas_are_numbers_only_in_columns_of_numbers_beside_semicolons(tmp_path: Path):
    path = write(tmp_path / "a.csv", "size;name;part;kind\n1,5;1,5 m;1.234;a\n1.234,5;2;2.5;b\n-3;3,0;3;a\n")
    rows = read(path)
    assert [row["size"] for row in rows] == ["1.5", "1234.5", "-3"]
    assert [row["name"] for row in rows] == ["1,5 m", "2", "3,0"]
    assert [row["part"] for row in rows] == ["1.234", "2.5", "3"], "a column without a comma has decimal points"
    assert infer_schema(read_table(path), ["kind"]).fields[0].kind == "scalar"
    assert read(write(tmp_path / "b.csv", 'a,b\n"1,5",2\n')) == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize(
    ("lines", "has_names"),
    [
        (["5.1,3.5,setosa", "4.9,3.0,setosa", "6.3,3.3,virginica"], False),
        (["5,1;3,5;setosa", "4,9;3,0;setosa", "6,3;3,3;virginica"], False),
        (["great film,pos", "bad film,neg", "good film,pos"], False),
        (["A cat sat.,Un chat.", "A dog.,Un chien."], False),
        (["a.wav,one", "b.wav,two", "c.wav,three"], False),
        (["length,width,species", "5.1,3.5,setosa"], True),
        (["country,2019,2020", "France,1,2", "Spain,3,4"], True),
        (["2018,2019,2020", "2018,2019,2020"], False),
        (["0,1,2", "5,6,7", "8,9,9"], True),
        (["en,fr", "a cat,un chat"], True),
        (["path,text", "a.wav,one"], True),
        (["name,answer", "x,y"], True),
    ],
)
def test_a_first_line_without_names_is_recognized(
    lines: list[str], has_names: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "a.csv", "\n".join(lines))
    rows = read(path)
    assert len(rows) == len(lines) - has_names
    assert (list(rows[0]) == [str(i + 1) for i in range(len(rows[0]))]) is not has_names
    read(path)
    notices = [] if has_names else [f"{path}: the first line holds no names: the columns are numbered, 1 to"]
    assert [line.rsplit(" ", 1)[0] for line in capsys.readouterr().err.splitlines()] == notices, "said once"


def test_manifests_without_names_are_read_in_order(tmp_path: Path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.png", b"x")
    images = open_image_table(write(tmp_path / "a.csv", "a.png;cat\nb.png;dog\nc.png;cat\n"))
    assert images.classes == ("cat", "dog") and len(images) == 3
    sounds = list_entries(str(write(tmp_path / "b.csv", "a.wav,one\nb.wav,two words\n")))
    assert [entry.text for entry in sounds] == ["one", "two words"]


def test_columns_without_names_can_be_named_by_number(tmp_path: Path):
    path = write(tmp_path / "a.csv", "pos,great film\nneg,bad film\npos,good film\n")
    assert len(read_labeled(str(path), ("2", "1")).texts) == 3
    with refuses("there is no column 'text'", "1, 2", "--columns"):
        read_labeled(str(path))


def test_names_that_are_missing_or_twice(tmp_path: Path):
    assert read(write(tmp_path / "a.csv", ",a\n0,x\n1,y\n")) == [{"1": "0", "a": "x"}, {"1": "1", "a": "y"}]
    with refuses("line 1: two columns are named 'a'"):
        read(write(tmp_path / "b.csv", "a,b,a\n1,2,3\n"))
    with refuses("line 3: has more columns than the header", "','"):
        read(write(tmp_path / "c.csv", "a,b\n1,2\n1,2,3\n"))


@pytest.mark.parametrize(
    ("encoding", "text", "parts"),
    [
        ("cp1252", "text,label\ncafé “so”,a\n", ["line 2", "0xE9", "cp1252", "iconv -f cp1252 -t utf-8 'a.csv'"]),
        ("utf-16", "text,label\nx,a\n", ["line 1", "utf-16"]),
        ("cp1251", "текст,метка\nхорошо,а\n", ["line 1", "cp1251", "save it as UTF-8"]),
    ],
)
def test_other_encodings_are_one_line(encoding: str, text: str, parts: list[str], tmp_path: Path):
    path = write(tmp_path / "a.csv", text.encode(encoding))
    for reader in (read, lambda path: read_pairs(str(path)), lambda path: read_labeled(str(path))):
        with refuses("a.csv", *parts):
            reader(path)
    with refuses("a.tsv", parts[0], "0x", parts[-1].replace("a.csv", "a.tsv") if "iconv" in parts[-1] else ""):
        read_pairs(str(write(tmp_path / "a.tsv", text.replace(",", "\t").encode(encoding))))


def test_the_first_of_pairs_of_texts_is_no_header(tmp_path: Path):
    """Names of two columns of texts have few words and no commas."""
    pairs = [("214th Example Street", "214 bis, rue Exemple"), ("Add new string", "Ajouter une chaîne")]
    pairs += [(f"open page {i} of it", f"ouvrir la page {i}") for i in range(9)]
    path = write(tmp_path / "a.tsv", "".join(f"{a}\t{b}\n" for a, b in pairs))
    assert sorted(read_pairs(str(path), 0.3).split("all")) == sorted(pairs)
    path = write(tmp_path / "b.tsv", "".join(f"{a}\t{b}\n" for a, b in [("English text", "French"), *pairs]))
    assert [tuple(row) for row in read(path)[:1]] == [("English text", "French")]
