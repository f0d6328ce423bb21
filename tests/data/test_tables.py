"""Tables of labels: recognised by their values, every row accounted for, nothing outside the root."""

import os
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from folders import below, fill, png, unused
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.data.check import check_contents
from tellapart.data.sources import open_dataset, open_test_images
from tellapart.errors import CODES, DataError, RecipeError
from tellapart.imaging.decode import read_image_bytes
from tellapart.records import SourceOptions

DATA = Path(os.environ.get("TELLAPART_DATA", Path(__file__).parents[2] / "../shared/data"))
FILES = ("1.png", "2.png", "3.png", "4.png")
CSV = "file,species\n1.png,cat\n2.png,dog\n3.png,cat\n4.png,dog\n"
CAT_DOG = {"1.png": "cat", "2.png": "dog", "3.png": "cat", "4.png": "dog"}
BITS = "file,sea,sun,tree\n1.png,1,0,1\n2.png,0,0,0\n3.png,0,1,0\n4.png,0,1,1\n"
SETS = {"1.png": ["sea", "tree"], "2.png": [], "3.png": ["sun"], "4.png": ["sun", "tree"]}


def table(root, text, /, *files, name="labels.csv", **options):
    """A table and its images on disk, opened."""
    data = text if isinstance(text, bytes) else text.encode()
    fill(root, *(files or FILES), **{name: data})
    return open_dataset(root / name, SourceOptions(**options))


def said(dataset, root, column="label"):
    rows = dataset.used().table.select("path", column).iter_rows()
    return {below(root, path): value for path, value in rows}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("labels.csv", CSV.encode()),
        ("labels.csv", CSV.encode("utf-8-sig")),
        ("labels.csv", CSV.replace("\n", "\r\n").encode()),
        ("labels.csv", CSV.replace("\n", "\r").encode()),
        ("labels.csv", CSV.replace(",", ";").encode()),
        ("labels.csv", CSV.replace(",", "|").encode()),
        ("labels.csv", CSV.replace(",", "\t").encode()),
        ("labels.tsv", CSV.replace(",", "\t").encode()),
        ("labels.txt", CSV.replace(",", " ").encode()),
        ("labels.txt", CSV.split("\n", 1)[1].replace(",", " ").encode()),
        ("labels.csv", CSV.split("\n", 1)[1].encode()),
        ("labels.csv", ("sep=;\n" + CSV.replace(",", ";")).encode()),
        ("labels.csv", CSV.encode("utf-16")),
        ("labels.csv", CSV.replace("cat", '"cat"').encode()),
        ("labels.csv", CSV.replace("\n", ",\n").encode()),
        ("labels.csv", CSV.replace("\n", "\n\n").encode()),
        ("labels.csv", CSV.replace(",", " , ").encode()),
        ("labels.csv", CSV.replace("1.png", "./1.png").encode()),
        ("labels.csv", CSV.rstrip("\n").encode()),
        ("labels.CSV", CSV.encode()),
        ("labels.csv", CSV.replace(".png", "").encode()),
        ("labels.jsonl", b"".join(b'{"file": "%d.png", "species": "%s"}\n' % (i + 1, b"dog" if i % 2 else b"cat")
                                  for i in range(4))),
    ],
    ids=["plain", "byte order mark", "CR LF", "CR", "semicolons", "bars", "tabs", "tsv", "blanks", "no header",
         "no header, commas", "Excel's sep", "UTF-16", "quotes", "empty last column", "blank lines", "blanks around",
         "dot slash", "no last line end", "upper case", "no ending", "JSON lines"],
)  # fmt: skip
def test_ways_to_write_one_table(tmp_path, name, data):
    dataset = table(tmp_path, data, name=name)
    assert said(dataset, tmp_path) == CAT_DOG
    assert dataset.class_names == ("cat", "dog")
    assert dataset.task == "classification"
    assert dataset.counts().seen == dataset.counts().used == 4


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (CSV, "labels.csv: images: column 'file'; classes: column 'species'"),
        (CSV.replace(",", ";"), "labels.csv is separated by semicolons"),
        (CSV.encode("utf-16"), "labels.csv is UTF-16"),
        (CSV.replace("cat", "ché").encode("latin-1"), "labels.csv is not UTF-8 (line 2): read as Latin-1"),
        (CSV.split("\n", 1)[1], "labels.csv has no header: its columns are called 1 2"),
        (CSV.replace(".png", ""), "names without an ending mean .png"),
        (BITS, "labels: columns sea, sun, tree"),
        (CSV.replace("cat", '"cat,dog"'), "labels: column 'species', a list, separated by ','"),
        ("file,species,set\n1.png,cat,train\n2.png,dog,train\n3.png,cat,test\n4.png,dog,test\n", "parts: column 'set'"),
        ("file,species,patient\n1.png,cat,a\n2.png,dog,a\n3.png,cat,b\n4.png,dog,b\n", "groups: column 'patient'"),
    ],
)  # fmt: skip
def test_what_was_recognised_is_said(tmp_path, text, note):
    assert note in "\n".join(table(tmp_path, text).notes)


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x1c", "\x85"])
def test_what_is_no_end_of_a_line(tmp_path, separator):
    dataset = table(tmp_path, CSV.replace("cat", f"c{separator}t").replace("\n", "\r"))
    assert f"c{separator}t" in dataset.class_names
    assert len(dataset.used()) == 4


@pytest.mark.parametrize("letter", ["é", "\x81", "\x8d"])
def test_two_names_stay_two_whatever_the_bytes(tmp_path, letter):
    dataset = table(tmp_path, CSV.replace("cat", f"x{letter}").replace("dog", "xö").encode("latin-1"))
    assert len(dataset.class_names) == 2


def test_latin_1_letters(tmp_path):
    dataset = table(tmp_path, CSV.replace("cat", "Gepäck").encode("latin-1"))
    assert dataset.class_names == ("dog", "Gepäck")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (BITS, {}),
        (BITS.replace("1,0,1", "true,false,true"), {}),
        (BITS.replace(",0", ",0.0"), {}),
        (BITS, {"labels": ("sea", "sun", "tree")}),
        ("file,what\n1.png,sea;tree\n2.png,\n3.png,sun\n4.png,tree;sun\n", {}),
        ("file,what\n1.png,sea|tree\n2.png,\n3.png,sun\n4.png,tree|sun\n", {}),
        ('file,what\n1.png,"sea, tree"\n2.png,\n3.png,sun\n4.png,"sun,tree"\n', {}),
        ("file;what\n1.png;sea,tree\n2.png;\n3.png;sun\n4.png;sun,tree\n", {}),
        ("file,what\n1.png,sea tree\n2.png,\n3.png,sun\n4.png,sun tree\n", {"label_separator": " "}),
        ("file,what\n1.png,sea+tree\n2.png,\n3.png,sun\n4.png,sun+tree+sun\n", {"label_separator": "+"}),
        ("file,what\n1.png,\"['sea', 'tree']\"\n2.png,[]\n3.png,['sun']\n4.png,\"['sun', 'tree']\"\n", {}),
        ('file,what\n1.png,"[""sea"", ""tree""]"\n2.png,\n3.png,"[""sun""]"\n4.png,"[""sun"",""tree""]"\n', {}),
    ],
    ids=["0 and 1", "true and false", "1.0", "named", "semicolons", "bars", "commas", "in semicolons", "blanks",
         "plus", "Python's lists", "JSON's lists"],
)  # fmt: skip
def test_several_labels_an_image(tmp_path, text, options):
    dataset = table(tmp_path, text, **options)
    assert dataset.task == "multilabel"
    assert said(dataset, tmp_path, "labels") == SETS
    assert dataset.table["label"].null_count() == 4
    assert dataset.class_names == ("sea", "sun", "tree")


def test_lists_of_json_lines(tmp_path):
    text = '{"f":"1.png","tags":["sea","tree"]}\n{"f":"2.png","tags":[]}\n{"f":"3.png","tags":["sun"]}\n'
    dataset = table(tmp_path, text + '{"f":"4.png","tags":["tree","sun"]}\n', name="labels.jsonl")
    assert said(dataset, tmp_path, "labels") == SETS


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["golden retriever", "siamese cat", "labrador retriever", "siamese cat"], ""),
        (["Smith, John", "Doe, Jane", "Smith, John", "Doe, Jane"], ""),
        (["haze primary", "clear primary water", "clear primary", "haze water", "clear water"], " "),
        (["a;b", "c", "d", "e"], ";"),
    ],
)
def test_blanks_and_commas_in_names(tmp_path, names, expected):
    rows = "".join(f'{i}.png,"{name}"\n' for i, name in enumerate(names))
    dataset = table(tmp_path, "file,species\n" + rows, *(f"{i}.png" for i in range(len(names))))
    assert (dataset.task == "multilabel") == bool(expected)
    if not expected:
        assert set(dataset.class_names) == set(names)


def test_a_cell_can_be_told_to_be_one_class(tmp_path):
    text = "file,species\n1.png,a;b\n2.png,c\n3.png,a;b\n4.png,c\n"
    assert table(tmp_path, text, label_column="species", label_separator="none").class_names == ("a;b", "c")


def test_exclusive_columns_are_classes_until_asked_for_as_labels(tmp_path):
    text = "file,cat,dog\n1.png,1,0\n2.png,0,1\n3.png,1,0\n4.png,0,1\n"
    dataset = table(tmp_path, text)
    assert (dataset.task, said(dataset, tmp_path)) == ("classification", CAT_DOG)
    assert "--labels" in dataset.notes[-1]
    asked = open_dataset(tmp_path / "labels.csv", SourceOptions(labels=("cat", "dog")))
    assert asked.task == "multilabel"
    assert said(asked, tmp_path, "labels")["2.png"] == ["dog"]


def test_a_single_column_of_0_and_1_is_two_classes(tmp_path):
    dataset = table(tmp_path, "file,defect\n1.png,0\n2.png,1\n3.png,0\n4.png,1\n")
    assert (dataset.task, dataset.class_names) == ("classification", ("0", "1"))


def test_names_that_count_in_a_list(tmp_path):
    text = 'file,what\n1.png,"sea,tree"\n2.png,\n3.png,sun\n4.png,"tree,sun"\n'
    dataset = table(tmp_path, text, labels=("tree", "sea"))
    assert dataset.class_names == ("tree", "sea"), "in the order they are named"
    assert said(dataset, tmp_path, "labels") == {
        "1.png": ["sea", "tree"], "2.png": [], "3.png": [], "4.png": ["tree"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "rows", "label"),
    [
        ("file,label,remark", "{f},{c},{p}", "label"),
        ("id,file,species", "{i},{f},{c}", "species"),
        (",file,species", "{i},{f},{c}", "species"),
        ("file,species,width", "{f},{c},{i}.5", "species"),
        ("file,species,note", "{f},{c},same", "species"),
        ("species,file", "{c},{f}", "species"),
        ("file,species,where", "{f},{c},https://example.org/{f}", "species"),
    ],
)
def test_the_label_among_other_columns(tmp_path, header, rows, label):
    files = [f"{i}.png" for i in range(24)]
    lines = [
        rows.format(f=file, i=i, c=("cat", "dog")[i % 2], p=("x", "y", "z")[i % 3]) for i, file in enumerate(files)
    ]
    dataset = table(tmp_path, "\n".join([header, *lines]), *files)
    assert dataset.class_names == ("cat", "dog")
    assert f"{label!r}" in dataset.notes[-1]


AMBIGUOUS = "file,first,second\n1.png,cat,a\n2.png,dog,b\n3.png,cat,b\n4.png,dog,a\n"


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        (AMBIGUOUS, "ambiguous-columns", "first (2 values: cat, dog); second (2 values: a, b)", "--label-column first"),
        ("front,back,species\n1.png,2.png,cat\n3.png,4.png,dog\n", "ambiguous-columns", "front, back", "--image-column"),
        (BITS.replace("\n", ",x\n", 1).replace("1,0,1\n", "1,0,1,k\n").replace("0,0,0\n", "0,0,0,l\n")
         .replace("0,1,0\n", "0,1,0,k\n").replace("0,1,1\n", "0,1,1,l\n"),
         "ambiguous-columns", "sea + sun + tree (3 values", "--labels sea,sun,tree"),
        ("name,species\na,cat\nb,dog\n", "unknown-columns", "no column holds paths of images", "--image-column"),
        ("file\n1.png\n2.png\n", "unknown-columns", "no column holds the labels", "--label-column"),
    ],
    ids=["two labels", "two images", "columns or a column", "no image", "no label"],
)  # fmt: skip
def test_ambiguity_shows_the_choices(tmp_path, text, code, message, hint):
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    assert caught.value.code == code
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_customary_name_decides_between_images(tmp_path):
    dataset = table(tmp_path, "image,mask,species\n1.png,2.png,cat\n3.png,4.png,dog\n")
    assert said(dataset, tmp_path) == {"1.png": "cat", "3.png": "dog"}
    chosen = open_dataset(tmp_path / "labels.csv", SourceOptions(image_column="mask"))
    assert said(chosen, tmp_path) == {"2.png": "cat", "4.png": "dog"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"image_column": "nope"}, "no-such-column"),
        ({"label_column": "nope"}, "no-such-column"),
        ({"labels": ("species", "nope")}, "no-such-column"),
        ({"labels": ("nope", "neither")}, "empty-class"),
        ({"group_column": "nope"}, "no-such-column"),
        ({"split_column": "nope"}, "no-such-column"),
        ({"split_column": "species", "label_column": "species"}, "bad-split"),
        ({"group_pattern": "never"}, "bad-setting"),
        ({"root": "no/such/folder"}, "bad-setting"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, code):
    with pytest.raises((DataError, RecipeError)) as caught:
        table(tmp_path, CSV, **options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "options",
    [
        {"group_pattern": "("},
        {"group_pattern": "x", "group_column": "y"},
        {"labels": ("a", "a")},
    ],
)
def test_options_that_contradict_themselves(options):
    with pytest.raises(RecipeError) as caught:
        SourceOptions(**options)
    assert caught.value.code == "bad-setting"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("9.png", "file-not-found"),
        ("no/such/folder/1.png", "file-not-found"),
        ("../outside.png", "outside-root"),
        ("sub/../../outside.png", "outside-root"),
        ("ABSOLUTE", "outside-root"),
        ("/etc/passwd", "outside-root"),
        ("link.png", "outside-root"),
        ("away/outside.png", "outside-root"),
        ("../no-such.png", "outside-root"),
        ("http://example.org/1.png", "outside-root"),
        ("file:///etc/passwd", "outside-root"),
        ("s3://bucket/1.png", "outside-root"),
        ("sub", "not-a-file"),
        (".", "not-a-file"),
        ("pipe.png", "not-a-file"),
        ("", "no-path"),
    ],
)
def test_rows_that_lead_to_no_file_of_the_table(tmp_path, cell, reason):
    root = fill(tmp_path / "photos", *FILES, "sub/5.png")
    outside = fill(tmp_path, "outside.png") / "outside.png"
    (root / "link.png").symlink_to(outside)
    (root / "away").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    cell = str(outside) if cell == "ABSOLUTE" else cell
    dataset = table(root, CSV + f"{cell},cat\n", label_column="species")
    ((path, found),) = [item for item in unused(dataset, root).items() if item[1] != "not-in-table"]
    assert found == reason
    assert reason in CODES
    assert path.endswith("labels.csv#line 6") or path == cell
    detail = dataset.table.filter(pl.col("reason") == reason)["detail"][0]
    assert detail.startswith("labels.csv, line 6: ")
    assert len(dataset.used()) == 4


@pytest.mark.parametrize("cell", ["../outside.png", "ABSOLUTE", "link.png", "away/outside.png"])
def test_outside_the_root_only_when_asked(tmp_path, cell):
    root = fill(tmp_path / "photos", *FILES)
    outside = fill(tmp_path, "outside.png") / "outside.png"
    (root / "link.png").symlink_to(outside)
    (root / "away").symlink_to(tmp_path)
    cell = str(outside) if cell == "ABSOLUTE" else cell
    dataset = table(root, CSV + f"{cell},cat\n", outside_root=True)
    assert len(dataset.used()) == 5
    assert read_image_bytes(dataset.images[4]) == outside.read_bytes()


@pytest.mark.parametrize(
    "cell", ["sub/5.png", "./sub/5.png", "sub\\5.png", "sub/../sub/5.png", "inside.png", "ABSOLUTE"]
)
def test_ways_to_name_a_file_inside(tmp_path, cell):
    root = fill(tmp_path, *FILES, "sub/5.png")
    (root / "inside.png").symlink_to("sub/5.png")
    cell = str(root / "sub/5.png") if cell == "ABSOLUTE" else cell
    dataset = table(root, CSV + f"{cell},cat\n")
    assert len(dataset.used()) == 5
    assert read_image_bytes(dataset.images[4]) == (root / "sub/5.png").read_bytes()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_match_however_they_are_stored(tmp_path, form):
    name = unicodedata.normalize(form, "é.png")
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "é.png")
    dataset = table(tmp_path, CSV + f"{other},café\n{name},cafe\u0301\n", *FILES, name)
    assert "café" in dataset.class_names
    assert len(dataset.class_names) == 3


def test_root_of_the_paths(tmp_path):
    fill(tmp_path / "elsewhere", *FILES)
    dataset = table(tmp_path / "tables", CSV, "unrelated/1.txt", root=str(tmp_path / "elsewhere"))
    assert said(dataset, tmp_path / "elsewhere") == CAT_DOG


@pytest.mark.parametrize(
    ("source", "prefix"), [("labels.csv", ""), ("./labels.csv", ""), ("../photos/labels.csv", "../photos/")]
)
def test_relative_sources(tmp_path, monkeypatch, source, prefix):
    root = fill(tmp_path / "photos", *FILES, "sub/5.png", **{"labels.csv": (CSV + "./sub//5.png,cat\n").encode()})
    monkeypatch.chdir(root)
    dataset = open_dataset(source)
    assert dataset.paths == [prefix + file for file in (*FILES, "sub/5.png")]
    assert dataset.counts().used == 5


def test_images_in_a_folder_beside_the_table(tmp_path):
    dataset = table(tmp_path, CSV, *(f"images/{file}" for file in FILES), "other/notes.txt")
    assert said(dataset, tmp_path / "images") == CAT_DOG
    assert "paths begin in" in dataset.notes[0]


def test_images_in_two_folders_beside_the_table(tmp_path):
    with pytest.raises(DataError) as caught:
        table(tmp_path, CSV, *(f"{folder}/{file}" for folder in ("a", "b") for file in FILES))
    assert caught.value.code == "ambiguous-columns"
    assert f"--root {tmp_path / 'a'}" in caught.value.hint


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["1.png,cat", "1.png,cat"], {"labels.csv#line 7": "duplicate"}),
        (["1.png,cat", "./1.png,cat", "1.png,cat"],
         {"labels.csv#line 7": "duplicate", "labels.csv#line 8": "duplicate"}),
        (["1.png,cat", "1.png,dog"], {"1.png": "label-conflict", "labels.csv#line 7": "label-conflict"}),
        (["1.png,cat", "1.png,"], {"labels.csv#line 7": "no-label"}),
        (["1.png,", "1.png,cat"], {"labels.csv#line 6": "no-label"}),
        (["gone.png,cat", "gone.png,dog"], {"gone.png": "file-not-found", "labels.csv#line 7": "file-not-found",
                                            "1.png": "not-in-table"}),
    ],
)  # fmt: skip
def test_rows_about_the_same_file(tmp_path, rows, expected):
    base = "file,species\n2.png,dog\n3.png,cat\n4.png,dog\n5.png,cat\n"
    dataset = table(tmp_path, base + "\n".join(rows), *FILES, "5.png")
    assert unused(dataset, tmp_path) == expected
    assert dataset.counts().seen == 4 + len(rows) + ("1.png" in expected and expected["1.png"] == "not-in-table")
    assert dataset.table["path"].n_unique() == len(dataset)


def test_a_conflict_names_both_lines(tmp_path):
    dataset = table(tmp_path, CSV + "1.png,dog\n")
    assert "labels.csv, line 2 says 'cat', labels.csv, line 6 says 'dog'" in dataset.table["detail"].to_list()


def test_images_that_no_row_names(tmp_path):
    text = "file,species\na/1.png,cat\na/2.png,dog\n3.png,cat\n"
    extra = ("a/4.png", "a/deep/5.png", "6.png", "7.txt", "b/8.png", "a/.hidden.png")
    dataset = table(tmp_path, text, "a/1.png", "a/2.png", "3.png", *extra)
    assert unused(dataset, tmp_path) == dict.fromkeys(("a/4.png", "a/deep/5.png", "6.png"), "not-in-table")
    assert (dataset.counts().seen, dataset.counts().skipped) == (6, 3)


def test_images_elsewhere_are_not_even_listed(tmp_path):
    root = fill(tmp_path / "photos", *FILES, "sub/5.png")
    fill(tmp_path, "secret/1.png", "secret/sub/2.png")
    (root / "away").symlink_to(tmp_path / "secret")
    (root / "sub/away").symlink_to(tmp_path / "secret")
    dataset = table(root, CSV + "sub/5.png,cat\naway/1.png,dog\n")
    assert unused(dataset, root) == {"away/1.png": "outside-root"}


def test_lines_are_counted_as_an_editor_does(tmp_path):
    text = 'file,species,remark\n1.png,cat,"two\nlines"\n\n2.png,dog,"three\r\nmore\nlines"\n9.png,cat,\n'
    dataset = table(tmp_path, text + "3.png,cat\n4.png,dog,x\n", label_column="species")
    details = dataset.table.filter(pl.col("status") == "refused")["detail"].to_list()
    assert details == [
        f"labels.csv, line 8: there is no file {tmp_path / '9.png'}",
        "labels.csv, line 9: it has 2 cells, the header has 3",
    ]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("split", ("train", "train", "test", "test"), ["train", "train", "test", "test"]),
        ("phase", ("Training", "TRAIN", "valid", "validation"), ["train", "train", "val", "val"]),
        ("split", ("train", "train", "", ""), ["train", "train", None, None]),
        ("split", ("train", "train", "train", "train"), ["train"] * 4),
    ],
)
def test_a_column_of_parts(tmp_path, column, values, expected):
    rows = [
        f"{file},{('cat', 'dog')[i % 2]},{part}" for i, (file, part) in enumerate(zip(FILES, values, strict=True))
    ]
    dataset = table(tmp_path, "\n".join([f"file,species,{column}", *rows]))
    assert dataset.table["split"].to_list() == expected


def test_groups_of_a_column_and_of_a_pattern(tmp_path):
    text = "file,species,site\n1.png,cat,a\n2.png,dog,a\n3.png,cat,b\n4.png,dog,\n"
    dataset = table(tmp_path, text, label_column="species", group_column="site")
    assert dataset.table["group"].to_list() == ["a", "a", "b", None]
    by_path = open_dataset(tmp_path / "labels.csv", SourceOptions(label_column="species", group_pattern="^[123]"))
    assert by_path.table["group"].to_list() == ["1", "2", "3", None]


def test_groups_of_class_folders(tmp_path):
    fill(tmp_path, "cat/p1_a.png", "cat/p2_a.png", "dog/p1_b.png")
    dataset = open_dataset(tmp_path, SourceOptions(group_pattern=r"p(\d)_"))
    assert dataset.table["group"].to_list() == ["1", "2", "1"]


@pytest.mark.parametrize("name", ["label_column", "root", "image_column"])
def test_class_folders_have_no_columns(tmp_path, name):
    fill(tmp_path, "cat/1.png", "dog/1.png")
    with pytest.raises(RecipeError) as caught:
        open_dataset(tmp_path, SourceOptions(**{name: "x"}))
    assert caught.value.code == "bad-setting"


def test_measured_on_the_test_part_with_the_models_classes(tmp_path):
    text = "file,species,split\n1.png,cat,train\n2.png,dog,test\n3.png,fox,test\n4.png,dog,train\n9.png,cat,test\n"
    fill(tmp_path, *FILES, **{"labels.csv": text.encode()})
    dataset = open_test_images(tmp_path / "labels.csv", ("dog", "cat"), SourceOptions(label_column="species"))
    assert said(dataset, tmp_path) == {"2.png": "dog"}
    assert unused(dataset, tmp_path) == {"3.png": "unknown-class", "9.png": "file-not-found"}
    assert dataset.class_names == ("dog", "cat")
    assert dataset.used("test").labels.tolist() == [0]


@pytest.mark.parametrize(
    ("classes", "task", "code"),
    [
        (("cat", "dog"), "multilabel", None),
        (("fox", "owl"), None, "class-mismatch"),
        (("cat", "dog"), "classification", None),
    ],
)
def test_a_class_is_a_list_of_one_label(tmp_path, classes, task, code):
    table(tmp_path, CSV)
    if code:
        with pytest.raises(DataError) as caught:
            open_test_images(tmp_path / "labels.csv", classes, task=task)
        assert caught.value.code == code
        return
    dataset = open_test_images(tmp_path / "labels.csv", classes, task=task)
    column, expected = ("labels", ["cat"]) if task == "multilabel" else ("label", "cat")
    assert said(dataset, tmp_path, column)["1.png"] == expected


@pytest.mark.parametrize(
    ("classes", "task", "expected"),
    [
        (("sea", "sun", "tree"), "multilabel", {}),
        (("sun", "tree"), "multilabel", {}),
        (("sun", "cloud"), "multilabel", "class-mismatch"),
        (("sea", "sun", "tree"), "classification", "task-mismatch"),
    ],
)
def test_measured_on_several_labels_an_image(tmp_path, classes, task, expected):
    table(tmp_path, BITS)
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            open_test_images(tmp_path / "labels.csv", classes, task=task)
        assert caught.value.code == expected
        return
    dataset = open_test_images(tmp_path / "labels.csv", classes, task=task)
    assert said(dataset, tmp_path, "labels")["1.png"] == [name for name in ("sea", "tree") if name in classes]
    assert dataset.class_names == classes


def test_unknown_labels_of_a_list_are_refused_row_by_row(tmp_path):
    table(tmp_path, "file,what\n1.png,sea;tree\n2.png,\n3.png,sun\n4.png,tree;sun\n")
    dataset = open_test_images(tmp_path / "labels.csv", ("sea", "tree"))
    assert unused(dataset, tmp_path) == {"3.png": "unknown-class", "4.png": "unknown-class"}
    assert said(dataset, tmp_path, "labels") == {"1.png": ["sea", "tree"], "2.png": []}


def test_the_models_classes_decide_between_columns(tmp_path):
    table(tmp_path, AMBIGUOUS, label_column="first")
    dataset = open_test_images(tmp_path / "labels.csv", ("b", "a"))
    assert said(dataset, tmp_path) == {"1.png": "a", "2.png": "b", "3.png": "b", "4.png": "a"}


@pytest.mark.parametrize("kind", ["text", "bytes", "pair"])
def test_a_table_in_memory(tmp_path, kind, monkeypatch):
    fill(tmp_path, *FILES)
    monkeypatch.chdir(tmp_path)
    cells = {
        "text": list(FILES),
        "bytes": [(tmp_path / file).read_bytes() for file in FILES],
        "pair": [{"bytes": (tmp_path / file).read_bytes(), "path": file} for file in FILES],
    }[kind]
    dataset = open_dataset(pl.DataFrame({"image": cells, "label": ["cat", "dog", "cat", "dog"]}))
    assert dataset.table["label"].to_list() == ["cat", "dog", "cat", "dog"]
    assert [read_image_bytes(image) for image in dataset.images] == [(tmp_path / f).read_bytes() for f in FILES]
    assert check_contents(dataset).counts().used == 4


def test_a_pandas_table(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    fill(tmp_path, *FILES)
    frame = pandas.DataFrame({"file": [*FILES, None], "species": ["cat", "dog", "cat", float("nan"), "dog"]})
    dataset = open_dataset(frame, SourceOptions(root=str(tmp_path)))
    assert said(dataset, tmp_path) == {"1.png": "cat", "2.png": "dog", "3.png": "cat"}
    assert sorted(unused(dataset, tmp_path).values()) == ["no-label", "no-path"]


@pytest.mark.parametrize("source", [3, None, [1, 2], {"a": 1}])
def test_what_is_no_source(source):
    with pytest.raises(RecipeError) as caught:
        open_dataset(source)
    assert caught.value.code == "bad-setting"


CELLS = st.sampled_from(["1.png", "2.png", "3.png", "gone.png", "../x.png", "", "a/1.png", "http://x/1.png", "."])
LABELS = st.sampled_from(["cat", "dog", "", "fox", "Ünïcode", 'quo"te', "two\nlines"])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, LABELS, st.booleans()), max_size=12))
def test_counts_add_up_whatever_the_rows(tmp_path_factory, rows):
    root = fill(tmp_path_factory.mktemp("table"), "1.png", "2.png", "3.png", "4.png", "5.png")
    lines = [
        f'"{cell}","{label.replace(chr(34), chr(34) * 2)}"' + ",ragged" * ragged for cell, label, ragged in rows
    ]
    (root / "labels.csv").write_text("\n".join(["file,label", "4.png,cat", "5.png,dog", *lines]), encoding="utf-8")
    dataset = open_test_images(root / "labels.csv", ("cat", "dog"), SourceOptions(label_separator="none"))
    counts = dataset.counts()
    assert counts.seen == counts.used + counts.refused + counts.duplicates + counts.skipped
    assert counts.seen - dataset.reasons().get("not-in-table", 0) == 2 + sum(any(row) for row in rows)
    assert dataset.table["path"].n_unique() == len(dataset)
    assert dataset.used().table["label"].null_count() == 0


needs_multilabel = pytest.mark.skipif(
    not (DATA / "multilabel").is_dir(), reason="the data for measuring is not here"
)


@needs_multilabel
@pytest.mark.parametrize("name", ["miml_labels_1.csv", "miml_labels_2.csv"])
def test_a_table_as_people_have_it(name):
    dataset = open_dataset(DATA / "multilabel" / name)
    assert dataset.class_names == ("desert", "mountains", "sea", "sunset", "trees")
    assert (dataset.task, len(dataset.used())) == ("multilabel", 2000)
    numbers = dataset.table["labels"].list.len().value_counts(sort=True)
    assert dict(numbers.iter_rows()) == {1: 1543, 2: 442, 3: 15}


@pytest.mark.skipif(not (DATA / "label_noise").is_dir(), reason="the data for measuring is not here")
def test_three_columns_of_labels_are_ambiguous():
    with pytest.raises(DataError) as caught:
        open_dataset(DATA / "label_noise/labels.csv")
    assert caught.value.code == "ambiguous-columns"
    assert all(name in caught.value.message for name in ("clean_label", "random_label1", "worse_label"))


def test_png_is_what_the_tests_write(tmp_path):
    assert check_contents(table(tmp_path, CSV)).counts().used == 4
    assert png(1) != png(2)
