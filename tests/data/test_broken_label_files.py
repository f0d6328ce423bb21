"""Broken files of labels, made by hand, each with what must be said about it.

A file as a whole is an error with a code; a row is refused, and its line named.
"""

import polars as pl
import pytest
from folders import fill

from tellapart.data.sources import open_dataset
from tellapart.errors import DataError

FILES = ("a.png", "b.png", "c.png", "d.png")
GOOD = "file,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n"


def whole(name, data, code, message, file="labels.csv"):
    """The file cannot be used."""
    return pytest.param(file, data, code, message, id=name)


def row(name, data, reason, message, file="labels.csv"):
    """One row cannot be used."""
    return pytest.param(file, data, reason, message, id=name)


WHOLE = [
    whole("empty", "", "damaged-table", "it is empty"),
    whole("blank lines", "\n\n \n", "damaged-table", "it is empty"),
    whole("byte order mark alone", b"\xef\xbb\xbf\n", "damaged-table", "line 1: no column has a name"),
    whole("header alone", "file,label\n", "damaged-table", "it has no row below the header"),
    whole("header without names", ",,\na.png,cat,1\n", "damaged-table", "line 1: no column has a name"),
    whole("a column twice", "file,label,label\na.png,cat,cat\n", "damaged-table", "line 1: two columns are called 'label'"),
    whole("quote never closed", GOOD + 'a.png,"cat\nb.png,dog\n', "damaged-table",
          "a quote that is opened in the row of line 6 is never closed"),
    whole("quote never closed in the header", '"file,label\na.png,cat\n', "damaged-table", "line 1 is never closed"),
    whole("text after a quote", GOOD + '"a.png"x,cat\n', "damaged-table", "line 6: "),
    whole("endless cell", GOOD + 'a.png,"' + "x\n" * 80_000, "damaged-table", "a cell in the row of line 6 is longer"),
    whole("zero bytes", GOOD.encode() + b"a.png,\0\n", "damaged-table", "line 6 holds a zero byte"),
    whole("UTF-16 cut short", GOOD.encode("utf-16")[:-1], "damaged-table", "it begins as UTF-16"),
    whole("UTF-16 without its mark", GOOD.encode("utf-16-le"), "damaged-table", "line 1 holds a zero byte"),
    whole("a spreadsheet", b"PK\x03\x04" + b"x" * 100, "damaged-table", "it is a spreadsheet or a ZIP archive"),
    whole("an old spreadsheet", b"\xd0\xcf\x11\xe0" + b"x" * 100, "damaged-table", "it is an old Excel file"),
    whole("Parquet called CSV", b"PAR1" + b"x" * 100, "damaged-table", "it is a Parquet file"),
    whole("compressed", b"\x1f\x8b\x08" + b"x" * 100, "damaged-table", "it is a compressed file"),
    whole("an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "damaged-table", "holds a zero byte: this is no text"),
    whole("a spreadsheet by its name", b"PK\x03\x04", "unsupported-source", "labels.xlsx is of a kind", "labels.xlsx"),
    whole("no column of images", "id,label\n1,cat\n2,dog\n", "unknown-columns", "no column holds paths of images"),
    whole("no column of labels", "file\na.png\nb.png\n", "unknown-columns", "no column holds the labels"),
    whole("no file exists", "file,label\nx.png,cat\ny.png,dog\n", "no-images",
          "none of the 2 images of LABELS can be used: 2 file-not-found; labels.csv, line 2: there is no file"),
    whole("all outside", "file,label\n../x.png,cat\n../y.png,dog\n", "no-images", "2 outside-root; labels.csv, line 2"),
    whole("all addresses", "file,label\nhttp://h/x.png,cat\nhttp://h/y.png,dog\n", "no-images", "is an address"),
    whole("one class", "file,label\na.png,cat\nb.png,cat\n", "single-class", "are of one class, 'cat'"),
    whole("no label at all", "file,label\na.png,\nb.png,\n", "no-images", "column 'label' is empty"),
    whole("names that differ by case", "file,label\na.png,cat\nb.png,Cat\nc.png,dog\n", "class-names-clash",
          "'Cat' and 'cat'"),
    whole("a class in test alone", "file,label,split\na.png,cat,train\nb.png,dog,train\nc.png,fox,test\n",
          "class-mismatch", "of a class (fox) that none of the training images has"),
    whole("a label nobody has", "file,sun,sea\na.png,1,0\nb.png,1,0\nc.png,0,0\n", "empty-class", "class 'sea' has no image"),
    whole("other cells than JSON", "file,label\na.png,cat\n", "damaged-table", "no line is a JSON object", "labels.jsonl"),
    whole("broken Parquet", b"PAR1" + b"x" * 50, "damaged-table", "cannot be read as Parquet", "labels.parquet"),
    whole("empty Parquet", b"", "damaged-table", "cannot be read as Parquet", "labels.parquet"),
]  # fmt: skip

ROWS = [
    row("too few cells", GOOD + "a.png\n", "bad-row", "labels.csv, line 6: it has 1 cell, the header has 2"),
    row("too many cells", GOOD + "a.png,cat,1\n", "bad-row", "labels.csv, line 6: it has 3 cells"),
    row("a comma in a name", GOOD + "a.png,cat, big\n", "bad-row", "labels.csv, line 6: it has 3 cells"),
    row("no name", GOOD + ",cat\n", "no-path", "labels.csv, line 6: column 'file' is empty"),
    row("no label", GOOD + "e.png,\n", "no-label", "labels.csv, line 6: column 'label' is empty"),
    row("blank label", GOOD + "e.png,  \n", "no-label", "labels.csv, line 6: column 'label' is empty"),
    row("missing file", GOOD + "x.png,cat\n", "file-not-found", "labels.csv, line 6: there is no file"),
    row("above the root", GOOD + "../a.png,cat\n", "outside-root", "labels.csv, line 6: "),
    row("a folder", GOOD + "..,cat\n", "not-a-file", "labels.csv, line 6: "),
    row("an address", GOOD + "https://example.org/a.png,cat\n", "outside-root", "line 6: 'https://example.org/a.png' is an"),
    row("twice", GOOD + "a.png,cat\n", "duplicate", "a.png"),
    row("two labels", GOOD + "a.png,dog\n", "label-conflict", "labels.csv, line 2 says 'cat', labels.csv, line 6 says 'dog'"),
    row("neither 0 nor 1", "file,sun,sea\na.png,1,1\nb.png,0,1\nc.png,1,0\nd.png,1,0\ne.png,1,1\n"
        + "".join(f"{name}.png,0,1\n" for name in "fghijk") + "m.png,1,maybe\n", "bad-label",
        "labels.csv, line 13: column 'sea' holds 'maybe'; it must hold 0 or 1"),
    row("lines of Windows, cell over two lines", GOOD.replace("\n", "\r\n") + '"x\r\n.png",cat\r\ny.png,cat\r\n',
        "file-not-found", "labels.csv, line 8: there is no file"),
    row("no JSON", '{"file":"a.png","label":"cat"}\n{"file":"b.png"\n{"file":"b.png","label":"dog"}\n', "bad-row",
        "labels.jsonl, line 2: it is no JSON object", "labels.jsonl"),
    row("JSON, but a list", '{"file":"a.png","label":"cat"}\n\n[1]\n{"file":"b.png","label":"dog"}\n', "bad-row",
        "labels.jsonl, line 3: it is no JSON object", "labels.jsonl"),
]  # fmt: skip


def make(root, file, data):
    data = data.encode() if isinstance(data, str) else data
    fill(root, *FILES, *(f"{name}.png" for name in "efghijkm"), **{file: data})
    return root / file


def test_there_are_forty():
    assert len(WHOLE) + len(ROWS) >= 40


@pytest.mark.parametrize(("file", "data", "code", "message"), WHOLE)
def test_files_that_cannot_be_used(tmp_path, file, data, code, message):
    with pytest.raises(DataError) as caught:
        open_dataset(make(tmp_path, file, data))
    assert caught.value.code == code
    assert message.replace("LABELS", str(tmp_path / file)) in caught.value.message
    assert caught.value.hint or code == "class-names-clash"


@pytest.mark.parametrize(("file", "data", "reason", "message"), ROWS)
def test_rows_that_cannot_be_used(tmp_path, file, data, reason, message):
    dataset = open_dataset(make(tmp_path, file, data))
    found = dataset.table.filter(pl.col("reason") == reason)
    assert any(message in detail for detail in found["detail"]), dataset.table["detail"].to_list()
    assert dataset.used().table.height >= 2
    counts = dataset.counts()
    assert counts.seen == counts.used + counts.refused + counts.duplicates + counts.skipped
