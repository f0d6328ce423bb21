"""open_dataset and open_test_images: every layout people have, every file accounted for."""

import os
import unicodedata

import polars as pl
import pytest
from folders import below, fill, png, unused

from tellapart.data.sources import open_dataset, open_test_images
from tellapart.errors import DataError
from tellapart.imaging.files import iter_files, natural_key, skip_rule

CAFE, CAFE_NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
PLAIN = ("cat/1.png", "dog/1.png")


def labelled(dataset, root):
    """(label, split) by path of the images in use."""
    rows = dataset.used().table.select("path", "label", "split").iter_rows()
    return {below(root, path): (label, split) for path, label, split in rows}


def layout(name, *expected):
    """``expected``: triples of path, label and split."""
    return pytest.param({path: (label, split) for path, label, split in expected}, id=name)


@pytest.mark.parametrize(
    "expected",
    [
        layout("class folders", ("cat/1.png", "cat", None), ("dog/1.png", "dog", None)),
        layout("deep class folders", ("cat/a/b/1.png", "cat", None), ("dog/c/1.png", "dog", None)),
        layout("one level down", ("photos/cat/1.png", "cat", None), ("photos/dog/1.png", "dog", None)),
        layout(
            "train and test",
            *[(f"train/{name}/1.png", name, "train") for name in ("cat", "dog")],
            *[(f"test/{name}/1.png", name, "test") for name in ("cat", "dog")],
        ),
        layout(
            "train and test one level down",
            *[(f"archive/train/{name}/1.png", name, "train") for name in ("cat", "dog")],
            *[(f"archive/test/{name}/1.png", name, "test") for name in ("cat", "dog")],
        ),
        layout(
            "Kaggle's archive unpacked twice",
            *[(f"training_set/training_set/{name}/1.png", name, "train") for name in ("cats", "dogs")],
            *[(f"test_set/test_set/{name}/1.png", name, "test") for name in ("cats", "dogs")],
        ),
        layout("train alone", ("train/cat/1.png", "cat", "train"), ("train/dog/1.png", "dog", "train")),
        layout("a class called train", ("bus/1.png", "bus", None), ("train/1.png", "train", None)),
        layout("a class called train with folders in it too", ("bus/1.png", "bus", None),
               ("train/1.png", "train", None), ("train/steam/1.png", "train", None)),
        layout("classes called test and train", ("test/1.png", "test", None), ("train/1.png", "train", None)),
        layout("a class missing from test", ("train/cat/1.png", "cat", "train"),
               ("train/dog/1.png", "dog", "train"), ("test/dog/1.png", "dog", "test")),
    ],
)  # fmt: skip
def test_layouts(tmp_path, expected):
    dataset = open_dataset(fill(tmp_path, *expected))
    assert labelled(dataset, tmp_path) == expected
    assert set(dataset.class_names) == {label for label, _ in expected.values()}
    assert dataset.counts().used == dataset.counts().seen == len(expected)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "test") for name in ("test", "testing", "test_set", "TEST", "Test_Set")],
        *[(name, "val") for name in ("val", "valid", "validation", "validation_set", "Val")],
    ],
)
@pytest.mark.parametrize("train", ["train", "training", "training_set", "Train"])
def test_usual_names_of_parts(tmp_path, train, name, split):
    fill(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{name}/cat/2.png", f"{name}/dog/2.png")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.class_counts("train") == {"cat": 1, "dog": 1}
    assert dataset.class_counts(split) == {"cat": 1, "dog": 1}
    assert {below(tmp_path, path) for path in dataset.used(split).paths} == {
        f"{name}/cat/2.png",
        f"{name}/dog/2.png",
    }


def test_natural_order_files_before_folders(tmp_path):
    names = ["c1/img1.png", "c1/img2.png", "c1/img10.png", "c1/a/img0.png", "c2/1.png", "c10/1.png", "c10/1a.png"]
    dataset = open_dataset(fill(tmp_path, *reversed(names)))
    assert [below(tmp_path, path) for path in dataset.paths] == names
    assert dataset.class_names == ("c1", "c2", "c10")
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["b", "A", "a1", "B2"], ["A", "a1", "b", "B2"]),
        (["x2y10", "x2y9", "x10y1"], ["x2y9", "x2y10", "x10y1"]),
        (["a", "1"], ["1", "a"]),
        (["v007", "v8", "v06"], ["v06", "v007", "v8"]),
    ],
)
def test_natural_key(names, expected):
    assert sorted(names, key=natural_key) == expected


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cat/.hidden.png", "hidden"),
        ("cat/._1.png", "hidden"),
        (".git/cat/1.png", "hidden"),
        ("cat/.thumbnails/deep/1.png", "hidden"),
        ("cat/Thumbs.db", "system"),
        ("cat/desktop.ini", "system"),
        ("cat/Icon\r", "system"),
        ("__MACOSX/cat/._1.png", "system"),
        ("cat/@eaDir/1.png", "system"),
        ("cat/notes.txt", "other"),
        ("cat/deep/notes.txt", "other"),
        ("readme.txt", "other"),
        ("front.png", "outside-class-folder"),
    ],
)
def test_skipped_by_rule_and_counted(tmp_path, path, reason):
    dataset = open_dataset(fill(tmp_path, *PLAIN, path))
    assert unused(dataset, tmp_path) == {path: reason}
    assert dataset.reasons() == {reason: 1}
    assert (dataset.counts().seen, dataset.counts().used, dataset.counts().skipped) == (3, 2, 1)
    assert dataset.class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["1.png", "Photo.JPG", "hidden", "db", "a.thumbs.db", "icon"])
def test_no_rule_for_the_users_own_names(name):
    assert skip_rule(name) == ""


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("cat/2", png(1)),
        ("cat/2.txt", png(1)),
        ("cat/2.jpg", b"no image"),
        ("cat/2.PSD", b"8BPS"),
        ("cat/2.png", b""),
    ],
    ids=["no ending", "wrong ending", "only called an image", "unsupported format", "empty"],
)
def test_called_an_image_or_starts_like_one(tmp_path, path, data):
    dataset = open_dataset(fill(tmp_path, *PLAIN, **{path: data}))
    assert below(tmp_path, dataset.used().paths[1]) == path
    assert dataset.counts().used == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("train/notes.txt", "other"),
        ("readme.txt", "other"),
        ("extra/1.png", "outside-class-folder"),
        ("front.png", "outside-class-folder"),
        (".cache/1.png", "hidden"),
    ],
)
def test_files_beside_the_parts_are_counted(tmp_path, path, reason):
    fill(tmp_path, *(f"{part}/{name}/1.png" for part in ("train", "test") for name in ("cat", "dog")), path)
    dataset = open_dataset(tmp_path)
    assert unused(dataset, tmp_path) == {path: reason}
    assert (dataset.counts().used, dataset.counts().seen) == (4, 5)


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../.."])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_link_back_to_a_folder_above_is_not_followed(tmp_path, folder, target):
    root = fill(tmp_path / "photos", f"{folder}cat/1.png", f"{folder}dog/1.png", f"{folder}cat/a/1.png")
    fill(tmp_path, "beside/1.png")
    (root / folder / "cat/a/back").symlink_to(target)
    dataset = open_dataset(root)
    assert unused(dataset, root) == {f"{folder}cat/a/back": "link-loop"}
    assert dataset.counts().used == 3


def test_links_that_lead_nowhere(tmp_path):
    root = fill(tmp_path, *PLAIN)
    (root / "cat/self").symlink_to("self")
    (root / "cat/gone.jpg").symlink_to("no-such-file.jpg")
    dataset = open_dataset(root)
    assert unused(dataset, root) == {"cat/self": "other"}
    assert {below(root, path) for path in dataset.used().paths} == {*PLAIN, "cat/gone.jpg"}


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    fill(tmp_path, "store/1.png", "photos/dog/1.png")
    (tmp_path / "photos/cat").symlink_to(tmp_path / "store")
    assert open_dataset(tmp_path / "photos").class_counts() == {"cat": 1, "dog": 1}


def test_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    root = fill(tmp_path, *PLAIN, "cat/locked/2.png", "dog/2.png")
    scandir = os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    dataset = open_dataset(root)
    assert unused(dataset, root) == {"cat/locked": "unreadable-folder"}
    assert dataset.counts().used == 3


def test_source_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "no-images"


def test_name_that_is_not_unicode(tmp_path):
    root = fill(tmp_path, *PLAIN)
    try:
        (root / os.fsdecode(b"cat/\xff.png")).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    dataset = open_dataset(root)
    assert unused(dataset, root) == {"cat/\\xff.png": "name-not-unicode"}


@pytest.mark.parametrize(("in_train", "in_test"), [(CAFE, CAFE_NFD), (CAFE_NFD, CAFE), (CAFE_NFD, CAFE_NFD)])
def test_accents_match_however_they_are_stored(tmp_path, in_train, in_test):
    fill(tmp_path, f"train/{in_train}/1.png", "train/tea/1.png", f"test/{in_test}/2.png", "test/tea/2.png")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == (CAFE, "tea")
    assert dataset.class_counts("test") == {CAFE: 1, "tea": 1}
    assert open_test_images(tmp_path, (CAFE, "tea")).class_counts() == {CAFE: 1, "tea": 1}


def refused(name, code, *paths, source="."):
    return pytest.param(code, paths, source, id=name)


@pytest.mark.parametrize(
    ("code", "paths", "source"),
    [
        refused("missing folder", "source-not-found", source="nowhere"),
        refused("a file", "source-not-found", "cat/1.png", source="cat/1.png"),
        refused("empty folder", "no-images"),
        refused("empty class folders", "no-images", "cat/", "dog/"),
        refused("no file is an image", "no-images", "cat/a.txt", "dog/b.txt"),
        refused("images outside class folders", "no-images", "1.png", "2.png"),
        refused("hidden images only", "no-images", "cat/.1.png", "dog/.1.png"),
        refused("one class", "single-class", "cat/1.png", "cat/2.png"),
        refused("one class one level down", "single-class", "photos/cat/1.png"),
        refused("one class in train and test", "single-class", "train/cat/1.png", "test/cat/2.png"),
        refused("empty class", "empty-class", *PLAIN, "fox/"),
        refused("class without an image", "empty-class", *PLAIN, "fox/notes.txt"),
        refused("class with images in test only", "empty-class", "train/cat/1.png", "train/dog/",
                "test/dog/1.png"),
        refused("names that differ by case", "class-names-clash", "Cat/1.png", "cat/2.png", "dog/1.png"),
        refused("class in test absent from train", "class-mismatch", "train/cat/1.png", "train/dog/1.png",
                "test/fox/1.png"),
        refused("class in val absent from train", "class-mismatch", "train/cat/1.png", "train/dog/1.png",
                "val/fox/1.png"),
        refused("another case in test", "class-mismatch", "train/cat/1.png", "train/dog/1.png", "test/Cat/1.png"),
    ],
)  # fmt: skip
def test_unusable_sources(tmp_path, code, paths, source):
    fill(tmp_path, *paths)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / source)
    assert caught.value.code == code
    assert caught.value.hint


TEST_IMAGES = ("train/cat/1.png", "train/dog/1.png", "test/cat/2.png", "test/dog/2.png", "test/dog/3.png")


@pytest.mark.parametrize(
    ("paths", "used"),
    [
        (TEST_IMAGES, {"test/cat/2.png", "test/dog/2.png", "test/dog/3.png"}),
        (PLAIN, set(PLAIN)),
        (("photos/cat/1.png", "photos/dog/1.png"), {"photos/cat/1.png", "photos/dog/1.png"}),
        (("cat/1.png",), {"cat/1.png"}),
        (("train/cat/1.png", "train/dog/1.png"), {"train/cat/1.png", "train/dog/1.png"}),
    ],
    ids=["test folder preferred", "class folders", "one level down", "one class is enough", "no test folder"],
)
def test_images_to_measure_on(tmp_path, paths, used):
    dataset = open_test_images(fill(tmp_path, *paths), ("cat", "dog"))
    assert {below(tmp_path, path) for path in dataset.used("test").paths} == used
    assert len(dataset.used()) == len(used)


def test_unknown_classes_are_refused_one_by_one(tmp_path):
    fill(tmp_path, *PLAIN, "fox/1.png", "fox/2.png", "Dog/3.png", "fox/notes.txt", "top.png")
    dataset = open_test_images(tmp_path, ("dog", "cat", "owl"))
    assert unused(dataset, tmp_path) == {
        "fox/1.png": "unknown-class",
        "fox/2.png": "unknown-class",
        "Dog/3.png": "unknown-class",
        "fox/notes.txt": "other",
        "top.png": "outside-class-folder",
    }
    counts = dataset.counts()
    assert (counts.seen, counts.used, counts.refused, counts.skipped) == (7, 2, 3, 2)
    assert dataset.class_names == ("dog", "cat", "owl"), "the model's, in the model's order"
    assert dataset.used().where(pl.col("label") == "cat").labels.tolist() == [1]
    assert dataset.class_counts() == {"dog": 1, "cat": 1, "owl": 0}


@pytest.mark.parametrize(
    ("code", "paths", "source"),
    [
        refused("missing folder", "source-not-found", source="nowhere"),
        refused("no image", "no-images", "cat/notes.txt"),
        refused("images outside class folders", "no-images", "1.png"),
        refused("other classes only", "class-mismatch", "fox/1.png", "owl/1.png"),
        refused("another case", "class-mismatch", "CAT/1.png", "DOG/1.png"),
        refused("other classes in test", "class-mismatch", *PLAIN, "train/cat/1.png", "train/dog/1.png",
                "test/fox/1.png"),
    ],
)  # fmt: skip
def test_nothing_to_measure_on(tmp_path, code, paths, source):
    fill(tmp_path, *paths)
    with pytest.raises(DataError) as caught:
        open_test_images(tmp_path / source, ("cat", "dog"))
    assert caught.value.code == code


def test_every_file_is_reported_once(tmp_path):
    paths = ["a/1.png", "a/b/2.png", "a/b/c/.x", "a/notes.txt", ".h/1.png", "z.png", "Thumbs.db"]
    found = [below(tmp_path, str(file.path)) for file in iter_files(fill(tmp_path, *paths))]
    assert sorted(found) == sorted(paths)


def test_a_stray_image_beside_the_classes_of_train(tmp_path):
    """It must not turn train and test into two classes."""
    fill(tmp_path, "train/stray.png", "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.reasons() == {"outside-class-folder": 1}
    assert sorted(dataset.used().table["split"]) == ["test", "test", "train", "train"]
