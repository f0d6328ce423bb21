"""check_contents, require_enough and split: what may be used, and for what."""

import os
from pathlib import Path

import polars as pl
import pytest
from folders import below, fill, numbered, png, unused

from tellapart.data.check import MIN_IMAGES, check_contents, require_enough
from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.data.sources import open_dataset
from tellapart.data.split import MIN_CALIB_IMAGES, split
from tellapart.errors import DataError
from tellapart.storage import sha256

PICTURE = png(1)


def checked(root, *paths, **contents):
    return check_contents(open_dataset(fill(root, *paths, **contents)))


def table(counts, name="{label}/{i}.png"):
    """A checked dataset without files. ``counts``: number of images by class, or by part and class."""
    rows = []
    for key, n in counts.items():
        part, label = key if isinstance(key, tuple) else (None, key)
        for i in range(n):
            path = name.format(label=label if part is None else f"{part}/{label}", i=i)
            content = sha256(f"{part}:{label}:{i}".encode())
            rows.append({"path": path, "label": label, "split": part, "status": "used", "content": content})
    names = tuple(sorted({row["label"] for row in rows}))
    frame = pl.DataFrame(rows, schema=SCHEMA).with_columns(reason=pl.lit(""), detail=pl.lit(""))
    return Dataset(table=frame, class_names=names, root=Path())


def parts(dataset):
    """Part by content."""
    return dict(dataset.used().table.select("content", "split").iter_rows())


@pytest.mark.parametrize(
    ("copies", "kept"),
    [
        (["cat/a.png", "cat/b.png"], "cat/a.png"),
        (["cat/10.png", "cat/9.png", "cat/z/1.png"], "cat/9.png"),
        (["train/cat/a.png", "test/cat/b.png"], "test/cat/b.png"),
        (["train/cat/a.png", "val/cat/b.png"], "val/cat/b.png"),
        (["val/cat/a.png", "test/cat/b.png"], "test/cat/b.png"),
        (["train/cat/a.png", "train/cat/b.png", "val/cat/c.png", "test/cat/d.png"], "test/cat/d.png"),
    ],
)
def test_one_of_identical_files_is_kept(tmp_path, copies, kept):
    part = "train/" if "/cat" in copies[0] else ""
    dataset = checked(tmp_path, f"{part}cat/other.png", f"{part}dog/1.png", **dict.fromkeys(copies, PICTURE))
    rest = set(copies) - {kept}
    assert unused(dataset, tmp_path) == dict.fromkeys(rest, "duplicate")
    details = dataset.where(pl.col("status") == "duplicate").table["detail"]
    assert {below(tmp_path, detail) for detail in details} == {kept}
    assert dataset.counts().duplicates == len(rest)
    assert dataset.counts().used == 3


@pytest.mark.parametrize(
    "copies",
    [
        ["cat/a.png", "dog/b.png"],
        ["cat/a.png", "cat/b.png", "dog/c.png"],
        ["train/cat/a.png", "test/dog/b.png"],
        ["train/cat/a.png", "val/dog/b.png", "test/dog/c.png"],
    ],
)
def test_a_picture_in_two_classes_is_refused_in_both(tmp_path, copies):
    part = "train/" if "/cat" in copies[0] else ""
    dataset = checked(tmp_path, f"{part}cat/1.png", f"{part}dog/1.png", **dict.fromkeys(copies, PICTURE))
    assert unused(dataset, tmp_path) == dict.fromkeys(copies, "label-conflict")
    assert (dataset.counts().used, dataset.counts().refused) == (2, len(copies))
    for path, detail in dataset.where(pl.col("status") == "refused").table.select("path", "detail").iter_rows():
        assert "in cat and dog" in detail or "in dog and cat" in detail
        assert all(str(tmp_path / other) in detail for other in copies if str(tmp_path / other) != path)


def test_different_pictures_are_all_used(tmp_path):
    paths = [*numbered("cat", 40), *numbered("dog", 40)]
    dataset = checked(tmp_path, *paths)
    assert [below(tmp_path, path) for path in dataset.used().paths] == paths
    assert dataset.contents == [sha256((tmp_path / path).read_bytes()) for path in paths]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"a page of text, saved under the wrong name", "not-an-image"),
        (b"8BPS\0\1" + bytes(50), "unsupported-format"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, data, code):
    dataset = checked(tmp_path, "cat/1.png", "dog/1.png", **{"cat/2.png": data})
    assert unused(dataset, tmp_path) == {"cat/2.png": code}
    row = dataset.where(pl.col("status") == "refused").table.row(0, named=True)
    assert row["detail"]
    assert (row["content"], row["split"]) == (None, None)


@pytest.mark.parametrize(
    ("make", "code"),
    [(lambda path: path.symlink_to("no-such-file.png"), "file-not-found"), (os.mkfifo, "not-a-file")],
    ids=["link to nothing", "pipe"],
)
def test_what_is_no_file_is_refused(tmp_path, make, code):
    fill(tmp_path, "cat/1.png", "dog/1.png")
    make(tmp_path / "cat/2.png")
    assert unused(checked(tmp_path), tmp_path) == {"cat/2.png": code}


def test_counts_add_up(tmp_path):
    dataset = checked(
        tmp_path,
        *numbered("cat", 4),
        *numbered("dog", 3),
        "cat/notes.txt",
        ".hidden/1.png",
        "front.png",
        **{"cat/broken.jpg": b"no image", "dog/empty.png": b"", "cat/a.png": PICTURE, "cat/b.png": PICTURE},
        **{"cat/c.png": png(2), "dog/c.png": png(2)},
    )
    counts = dataset.counts()
    assert (counts.used, counts.refused, counts.duplicates, counts.skipped) == (8, 4, 1, 3)
    assert counts.seen == 16 == sum(path.is_file() for path in tmp_path.rglob("*"))
    assert dataset.class_counts() == {"cat": 5, "dog": 3}
    assert dataset.reasons() == {
        "label-conflict": 2,
        "duplicate": 1,
        "empty-file": 1,
        "hidden": 1,
        "not-an-image": 1,
        "other": 1,
        "outside-class-folder": 1,
    }


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    dataset = open_dataset(
        fill(tmp_path, *numbered("cat", 40), *numbered("dog", 40), **{"dog/x.png": b"no image"})
    )
    check_contents(dataset, lambda *args: seen.append(args))
    assert seen[-1] == ("reading", 81, 81)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, False),
        ({"name": "other/{label}-{i}.jpg"}, False),
        ({"counts": {"cat": 4, "dog": 3}}, True),
        ({"counts": {("train", "cat"): 3, "dog": 3}}, True),
    ],
    ids=["the same", "other names", "one more image", "in a part"],
)
def test_fingerprint(changes, differs):
    first, other = table({"cat": 3, "dog": 3}), table(**{"counts": {"cat": 3, "dog": 3}, **changes})
    other = other.with_columns(*(other.table[::-1].get_columns()))
    assert (first.fingerprint() != other.fingerprint()) == differs


def enough(name, code, *paths, **contents):
    return pytest.param(code, paths, contents, id=name)


ENOUGH_DOGS = numbered("dog", MIN_IMAGES)
TRAIN_AND_TEST = [*numbered("train/dog", MIN_IMAGES - 1), *numbered("test/dog", 1)]


@pytest.mark.parametrize(
    ("code", "paths", "contents"),
    [
        enough("just enough", None, *numbered("cat", MIN_IMAGES), *ENOUGH_DOGS),
        enough("one too few", "too-few-images", *numbered("cat", MIN_IMAGES - 1), *ENOUGH_DOGS),
        enough("one", "too-few-images", "cat/1.png", *ENOUGH_DOGS),
        enough("all refused", "empty-class", *ENOUGH_DOGS, **{"cat/1.png": b"", "cat/2.png": b"text"}),
        enough("refused ones do not count", "too-few-images", *numbered("cat", MIN_IMAGES - 1), *ENOUGH_DOGS,
               **{"cat/x.png": b"text"}),
        enough("duplicates do not count", "too-few-images", *ENOUGH_DOGS,
               **dict.fromkeys(numbered("cat", 2 * MIN_IMAGES), PICTURE)),
        enough("just enough beside a test folder", None, *numbered("train/cat", MIN_IMAGES - 1), *TRAIN_AND_TEST),
        enough("a class without test images", None, *numbered("train/cat", MIN_IMAGES - 1), *TRAIN_AND_TEST),
        enough("too few beside a test folder", "too-few-images", *numbered("train/cat", MIN_IMAGES - 2),
               *numbered("test/cat", 9), *TRAIN_AND_TEST),
        enough("a test folder of refused images", "too-few-images", *numbered("train/cat", MIN_IMAGES - 1),
               *numbered("train/dog", MIN_IMAGES), **{"test/cat/1.png": b"text"}),
        enough("a val folder does not teach", "too-few-images", *numbered("train/cat", 1), *numbered("val/cat", 9),
               *TRAIN_AND_TEST),
        enough("all of train refused", "empty-class", *numbered("val/cat", 9), *TRAIN_AND_TEST,
               **{"train/cat/1.png": b"text"}),
    ],
)  # fmt: skip
def test_require_enough(tmp_path, code, paths, contents):
    dataset = checked(tmp_path, *paths, **contents)
    if code is None:
        require_enough(dataset)
        return
    with pytest.raises(DataError) as caught:
        require_enough(dataset)
    assert caught.value.code == code
    assert "'cat'" in caught.value.message


CAT_AND_DOG_IN_TEST = {("test", "cat"): 7, ("test", "dog"): 3}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # expected: (train, calib, test) by class
        ({"cat": 500, "dog": 250}, {"cat": (360, 40, 100), "dog": (180, 20, 50)}),
        ({"cat": 100, "dog": 50}, {"cat": (80, 0, 20), "dog": (40, 0, 10)}),
        ({"cat": 5, "dog": 6}, {"cat": (4, 0, 1), "dog": (5, 0, 1)}),
        ({"cat": 2, "dog": 40}, {"cat": (1, 0, 1), "dog": (32, 0, 8)}),
        (
            {("train", "cat"): 250, ("train", "dog"): 250} | CAT_AND_DOG_IN_TEST,
            {"cat": (225, 25, 7), "dog": (225, 25, 3)},
        ),
        (
            {("train", "cat"): 250, ("train", "dog"): 240} | CAT_AND_DOG_IN_TEST,
            {"cat": (250, 0, 7), "dog": (240, 0, 3)},
        ),
        (
            {("train", "cat"): 20, ("train", "dog"): 10, ("val", "cat"): 4, ("val", "dog"): 5}
            | CAT_AND_DOG_IN_TEST,
            {"cat": (20, 4, 7), "dog": (10, 5, 3)},
        ),
        (
            {("train", "cat"): 900, ("train", "dog"): 10, ("val", "cat"): 4, ("val", "dog"): 5},
            {"cat": (720, 4, 180), "dog": (8, 5, 2)},
        ),
    ],
    ids=[
        "drawn from class folders",
        "too few for a calib part",
        "at least one to test on",
        "two images",
        "just enough for a calib part",
        "one too few for a calib part",
        "train, val and test folders",
        "train and val folders",
    ],
)
def test_split_sizes(counts, expected):
    assert MIN_CALIB_IMAGES == 50
    before = table(counts)
    after = split(before)
    found = {part: after.class_counts(part) for part in ("train", "calib", "test")}
    assert {name: tuple(found[part][name] for part in found) for name in after.class_names} == expected
    assert after.used("val").paths == [], "every image has one of the three parts"
    assert after.table["split"].null_count() == 0
    assert after.paths == before.paths
    for folder, part in (("test", "test"), ("val", "calib")):
        given = set(before.used(folder).paths)
        assert given <= set(after.used(part).paths), "the user's own folders are kept"
        assert not given or given == set(after.used(part).paths), "and nothing is added to them"


def test_same_seed_same_parts_whatever_the_names_and_the_order():
    first = table({"cat": 500, "dog": 250})
    renamed = table({"cat": 500, "dog": 250}, name="z{i}/{label}")
    backwards = table({"dog": 250, "cat": 500})
    backwards = backwards.with_columns(*backwards.table[::-1].get_columns())
    assert parts(split(first)) == parts(split(first)) == parts(split(renamed)) == parts(split(backwards))


def test_another_seed_draws_other_images_of_the_same_number():
    dataset = table({"cat": 500, "dog": 250})
    first, second = split(dataset, seed=1), split(dataset, seed=2)
    assert first.class_counts("test") == second.class_counts("test")
    in_both = set(first.used("test").contents) & set(second.used("test").contents)
    assert 10 < len(in_both) < 60, "150 of 750 each: 30 in both by chance"


def test_images_are_drawn_from_all_over_a_class():
    places = sorted(int(Path(path).stem) for path in split(table({"cat": 500, "dog": 50})).used("test").paths)
    assert places[0] < 40
    assert places[-1] > 460
    assert 200 < sum(places) / len(places) < 300


def test_more_images_move_few_of_the_others():
    before, after = parts(split(table({"cat": 500, "dog": 250}))), parts(split(table({"cat": 510, "dog": 250})))
    moved = [content for content, part in before.items() if after[content] != part]
    assert len(moved) <= 10


@pytest.mark.parametrize(("test_fraction", "calib_fraction"), [(0.1, 0.2), (0.5, 0.5), (0.25, 0.05)])
def test_fractions(test_fraction, calib_fraction):
    dataset = split(table({"cat": 2000, "dog": 1000}), test_fraction=test_fraction, calib_fraction=calib_fraction)
    for name, n in (("cat", 2000), ("dog", 1000)):
        assert dataset.class_counts("test")[name] == n * test_fraction
        assert dataset.class_counts("calib")[name] == pytest.approx(
            n * (1 - test_fraction) * calib_fraction, abs=1
        )


def test_large_fractions_leave_every_class_images_to_learn_from():
    dataset = split(table({"cat": 5, "dog": 500}), test_fraction=0.5, calib_fraction=0.5)
    assert len(dataset.used("calib")) > MIN_CALIB_IMAGES
    assert dataset.class_counts("train")["cat"] >= 2, "cross-validation needs two"
    assert dataset.class_counts("test")["cat"] >= 1


def test_what_is_not_used_has_no_part(tmp_path):
    dataset = checked(
        tmp_path,
        *numbered("cat", 9),
        *numbered("dog", 9),
        "dog/a.txt",
        **{"cat/x.png": b"text", "cat/y.png": PICTURE, "cat/z.png": PICTURE},
    )
    after = split(dataset)
    idle = after.where(pl.col("status") != "used").table
    assert idle.height == 3
    assert idle["split"].to_list() == [None] * 3
    assert sum(len(after.used(part)) for part in ("train", "test")) == len(after.used()) == 19


def grouped(images):
    """A dataset of (label or labels, group) rows."""
    rows = [
        {
            "path": f"{i}.png",
            "label": label if isinstance(label, str) else None,
            "labels": None if isinstance(label, str) else list(label),
            "group": group,
            "status": "used",
            "content": f"{i:064x}",
        }
        for i, (label, group) in enumerate(images)
    ]
    names = sorted({name for label, _ in images for name in ([label] if isinstance(label, str) else label)})
    several = any(not isinstance(label, str) for label, _ in images)
    return Dataset(
        table=pl.DataFrame(rows, schema=SCHEMA),
        class_names=tuple(names),
        root=Path(),
        task="multilabel" if several else "classification",
    )


@pytest.mark.parametrize(
    "images",
    [
        [(label, f"{label}{g}") for label in "ab" for g in range(4) for _ in range(100)],
        [((f"label{k}",), None) for k in range(20) for _ in range(5)],
        [((f"label{k}",), None) for k in range(20) for _ in range(8)],
        [(("a", "b"), None)] * 30 + [(("b",), None)] * 30 + [((), None)] * 30,
    ],
)
@pytest.mark.parametrize("cross_fit", [True, False])
def test_groups_and_several_labels_are_dealt_out(images, cross_fit):
    """Every part that must be there is there, groups stay whole, and train knows every label."""
    options = {} if cross_fit else {"val_fraction": 0.1, "cross_fit": False}
    done = split(grouped(images), seed=2, **options)
    parts = set(done.table["split"])
    assert parts >= ({"train", "test"} if cross_fit else {"train", "val", "calib", "test"})
    assert all(done.class_counts("train").values())
    of_group = done.table.filter(pl.col("group").is_not_null()).group_by("group").agg(pl.col("split").n_unique())
    assert of_group["split"].to_list() == [1] * len(of_group)


def test_a_class_whose_images_are_all_in_one_group_cannot_be_learned_and_tested():
    images = [("a", f"g{i}") for i in range(40)] + [("b", "v1")] * 2 + [("b", "v2")] + [("c", "v2")] * 6
    with pytest.raises(DataError) as caught:
        split(grouped(images), seed=2)
    assert caught.value.code == "too-few-groups"


def test_a_copy_in_a_calib_part_is_one_image(tmp_path):
    (tmp_path / "1.png").write_bytes(png(0))
    (tmp_path / "2.png").write_bytes(png(0))
    rows = [
        {"path": str(tmp_path / f"{i}.png"), "label": "a", "split": part, "status": "used"}
        for i, part in ((1, "train"), (2, "calib"))
    ]
    dataset = Dataset(table=pl.DataFrame(rows, schema=SCHEMA), class_names=("a", "b"), root=tmp_path)
    assert check_contents(dataset).used().paths == [str(tmp_path / "2.png")]
