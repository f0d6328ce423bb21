"""Parquet files with paths or with images: bytes are read when they are asked for, and Hugging Face's classes have names."""

import json
import threading

import polars as pl
import pytest
from folders import fill, png

from tellapart.data import parquet
from tellapart.data.check import check_contents
from tellapart.data.sources import open_dataset, open_test_images
from tellapart.errors import DataError, ImageError
from tellapart.imaging.decode import DecodeLimits, read_image_bytes
from tellapart.records import SourceOptions

LABELS = ["cat", "dog", "cat", "dog"]
HF = {"huggingface": json.dumps({"info": {"features": {
    "image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["sea", "sun"], "_type": "ClassLabel"}, "_type": "List"},
}}})}  # fmt: skip


def pairs(*seeds, path=None):
    return [None if seed is None else {"bytes": png(seed), "path": path} for seed in seeds]


def write(path, metadata=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path, metadata=metadata, row_group_size=3)
    return path


@pytest.mark.parametrize(
    ("image", "label", "metadata"),
    [
        (pairs(0, 1, 2, 3), LABELS, None),
        (pairs(0, 1, 2, 3, path="x.png"), LABELS, None),
        ([png(i) for i in range(4)], LABELS, None),
        (pairs(0, 1, 2, 3), [0, 1, 0, 1], HF),
        (pairs(0, 1, 2, 3), pl.Series(LABELS, dtype=pl.Categorical), None),
        (pairs(0, 1, 2, 3), pl.Series(LABELS, dtype=pl.Enum(["cat", "dog"])), None),
    ],
    ids=["pairs", "pairs with paths", "bytes", "class numbers", "categorical", "enum"],
)
def test_images_in_cells(tmp_path, image, label, metadata):
    file = write(tmp_path / "data.parquet", metadata, image=image, label=label)
    dataset = open_dataset(file)
    assert dataset.paths == [f"{file}#row {i}" for i in range(1, 5)]
    assert dataset.table["label"].to_list() == LABELS
    assert dataset.class_names == ("cat", "dog")
    assert [read_image_bytes(image) for image in dataset.images] == [png(i) for i in range(4)]
    assert check_contents(dataset).counts().used == 4


@pytest.mark.parametrize("nested", [True, False])
def test_paths_in_cells(tmp_path, nested):
    fill(tmp_path, "a/1.png", "a/2.png")
    names = ["a/1.png", "a/2.png"]
    cells = [{"bytes": None, "path": name} for name in names] if nested else names
    dtype = pl.Struct({"bytes": pl.Binary, "path": pl.String}) if nested else pl.String
    file = write(tmp_path / "data.parquet", image=pl.Series(cells, dtype=dtype), label=["cat", "dog"])
    dataset = open_dataset(file)
    assert dataset.paths == [str(tmp_path / name) for name in names]
    assert not dataset.stored


def test_rows_that_cannot_be_used(tmp_path):
    file = write(tmp_path / "data.parquet", HF, image=[*pairs(0, 1, None, 3, 4), {"bytes": b"", "path": None}],
                 label=[0, 1, 0, -1, 7, 1])  # fmt: skip
    dataset = check_contents(open_dataset(file))
    rows = {path.rpartition(" ")[2]: reason for path, reason in dataset.table.select("path", "reason").iter_rows()}
    assert rows == {"1": "", "2": "", "3": "no-path", "4": "no-label", "5": "no-label", "6": "empty-file"}
    assert dataset.counts().seen == 6
    assert "data.parquet#row 3: column 'image' is empty" in dataset.table["detail"][2]


@pytest.mark.parametrize("metadata", [HF, None])
def test_lists_of_labels(tmp_path, metadata):
    tags = [[0, 1], [], [1], None] if metadata else [["sea", "sun"], [], ["sun"], None]
    file = write(tmp_path / "data.parquet", metadata, image=pairs(0, 1, 2, 3), tags=tags)
    dataset = open_dataset(file)
    assert (dataset.task, dataset.class_names) == ("multilabel", ("sea", "sun"))
    assert dataset.table["labels"].to_list() == [["sea", "sun"], [], ["sun"], []]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001", "test-00000-of-00001"], {"train": 2, "test": 2}),
        (["data/train-0", "data/validation-0"], {"train": 2, "val": 2}),
        (["train/0000", "test/0000"], {"train": 2, "test": 2}),
        (["a", "b"], {None: 4}),
        (["test-0", "test-1"], {None: 4}),
    ],
)
@pytest.mark.parametrize("source", ["folder", "glob"])
def test_parts_by_the_files_names(tmp_path, names, splits, source):
    for i, name in enumerate(names):
        write(tmp_path / f"{name}.parquet", image=pairs(2 * i, 2 * i + 1), label=["cat", "dog"])
    fill(tmp_path, "readme.txt")
    dataset = open_dataset(tmp_path if source == "folder" else f"{tmp_path}/**/*.parquet")
    assert dict(dataset.table["split"].value_counts().iter_rows()) == splits
    assert check_contents(dataset).counts().used == 4
    part = open_test_images(tmp_path, ("cat", "dog"))
    assert len(part.used()) == splits.get("test", 4)


def test_a_column_of_parts_is_stronger_than_names(tmp_path):
    parts = ["train", "test", "train", "test"]
    write(tmp_path / "train-0.parquet", image=pairs(0, 1, 2, 3), label=["cat", "cat", "dog", "dog"], split=parts)
    assert open_dataset(tmp_path).table["split"].to_list() == parts


def test_files_of_two_tables(tmp_path):
    write(tmp_path / "a.parquet", image=pairs(0, 1), label=["cat", "dog"])
    write(tmp_path / "b.parquet", image=pairs(0, 1), species=["cat", "dog"])
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "unsupported-source"


def test_two_columns_of_images(tmp_path):
    file = write(tmp_path / "a.parquet", front=pairs(0, 1), back=pairs(2, 3), label=["cat", "dog"])
    with pytest.raises(DataError) as caught:
        open_dataset(file)
    assert caught.value.code == "ambiguous-columns"
    chosen = open_dataset(file, SourceOptions(image_column="back"))
    assert [read_image_bytes(image) for image in chosen.images] == [png(2), png(3)]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 70])
def test_neighbours_are_read_together(tmp_path, n, monkeypatch):
    file = write(tmp_path / "a.parquet", image=pairs(*range(n + 1)), label=["cat", *["dog"] * n])
    parquet._read_chunk.cache_clear()
    dataset = open_dataset(file)
    assert [read_image_bytes(image) for image in dataset.images] == [png(i) for i in range(n + 1)]
    assert parquet._read_chunk.cache_info().misses == -(-(n + 1) // 32)
    monkeypatch.setattr(parquet, "_CHUNK_BYTES", 300)
    small = open_dataset(file)
    assert [read_image_bytes(image) for image in small.images] == [png(i) for i in range(n + 1)]
    assert max(image.count for image in small.stored.values()) <= 2


def test_read_by_many_threads_in_any_order(tmp_path):
    file = write(tmp_path / "a.parquet", image=pairs(*range(100)), label=["cat", "dog"] * 50)
    images = open_dataset(file).images
    wrong = []

    def read(start):
        wrong.extend(i for i in range(start, 100, 3) if read_image_bytes(images[i]) != png(i))

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_limits_and_changes(tmp_path):
    file = write(tmp_path / "a.parquet", image=pairs(0, 1), label=["cat", "dog"])
    image, other = open_dataset(file).images
    with pytest.raises(ImageError) as caught:
        image.read_bytes(DecodeLimits(max_bytes=10))
    assert caught.value.code == "too-many-bytes"
    parquet._read_chunk.cache_clear()
    write(file, image=[b"x"], label=["cat"])
    with pytest.raises(ImageError) as changed:
        read_image_bytes(other)
    file.unlink()
    with pytest.raises(ImageError) as gone:
        read_image_bytes(image)
    assert changed.value.code == gone.value.code == "unreadable-file"


@pytest.mark.parametrize("document", ["{", "[]", '{"info": 3}', '{"info": {"features": [1]}}',
                                      '{"info": {"features": {"label": {"names": [1, 2]}}}}'])  # fmt: skip
def test_metadata_of_another_kind(tmp_path, document):
    file = write(tmp_path / "a.parquet", {"huggingface": document}, image=pairs(0, 1), label=[0, 1])
    assert open_dataset(file).class_names == ("0", "1")
