"""Hugging Face data sets: folders as the library writes them, the hub's cache, and a hub that is not asked in tests."""

import sys
import types

import polars as pl
import pytest
from folders import below, fill, png, unused

from tellapart.data.hub import is_hub_name, local_copy
from tellapart.data.sources import open_dataset
from tellapart.errors import DataError, TrainingError
from tellapart.imaging.decode import read_image_bytes
from tellapart.records import SourceOptions

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CSV = b"file_name,label\n1.png,cat\n2.png,dog\n"
JSONL = b'{"file_name":"1.png","label":"cat"}\n{"file_name":"2.png","label":"dog"}\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a network that is not there."""
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub(lambda *_, **__: pytest.fail("the hub was asked")))
    return tmp_path / "hub"


def stub(download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download
    return module


def cached(hub, *paths, name="datasets--me--photos", ref="main", commit=COMMIT, **contents):
    """A revision as the hub's cache keeps it: links into a folder of contents."""
    fill(hub / name / "source", *paths, **contents)
    blobs = hub / name / "blobs"
    blobs.mkdir(exist_ok=True)
    for i, file in enumerate(sorted(path for path in (hub / name / "source").rglob("*") if path.is_file())):
        place = hub / name / "snapshots" / commit / file.relative_to(hub / name / "source")
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = file.rename(blobs / f"blob{i}")
        place.symlink_to(blob)
    (hub / name / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (hub / name / "refs" / ref).write_text(commit)
    return hub / name / "snapshots" / commit


def parquet(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(i), "path": None} for i in range(2)]
    pl.DataFrame({"image": cells, "label": ["cat", "dog"]}).write_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize(("name", "data"), [("metadata.csv", CSV), ("metadata.jsonl", JSONL)])
def test_imagefolder(tmp_path, name, data):
    dataset = open_dataset(fill(tmp_path, "1.png", "2.png", "3.png", **{name: data}))
    assert {below(tmp_path, path): label for path, label in dataset.used().table.select("path", "label").iter_rows()} == {
        "1.png": "cat", "2.png": "dog"
    }  # fmt: skip
    assert unused(dataset, tmp_path) == {"3.png": "not-in-table"}


def test_imagefolder_with_parts(tmp_path):
    fill(tmp_path, *(f"{part}/{i}.png" for part in ("train", "test") for i in (1, 2)))
    broken = CSV + b"3.png,cat\n4.png,cat,x\n"
    dataset = open_dataset(fill(tmp_path, **{"train/metadata.csv": CSV, "test/metadata.csv": broken}))
    assert dataset.class_counts("train") == dataset.class_counts("test") == {"cat": 1, "dog": 1}
    assert unused(dataset, tmp_path) == {
        "test/3.png": "file-not-found", "test/metadata.csv#line 5": "bad-row"
    }  # fmt: skip
    assert (
        "test/metadata.csv#line 4: there is no file"
        in dataset.table.filter(pl.col("reason") == "file-not-found")["detail"][0]
    )


def test_metadata_of_something_else_leaves_class_folders_alone(tmp_path):
    dataset = open_dataset(fill(tmp_path, "cat/1.png", "dog/1.png", **{"metadata.csv": b"key,value\na,b\n"}))
    assert dataset.class_names == ("cat", "dog")
    assert unused(dataset, tmp_path) == {"metadata.csv": "other"}


@pytest.mark.parametrize("stray", ["notes.parquet", "backup.tar", "cat/notes.parquet", "cat/deep/backup.tar"])
def test_tables_and_archives_among_class_folders_are_no_source(tmp_path, stray):
    dataset = open_dataset(fill(tmp_path, "cat/1.png", "dog/1.png", **{stray: b"anything"}))
    assert dataset.class_names == ("cat", "dog")
    assert unused(dataset, tmp_path)[stray] == "other"


@pytest.mark.parametrize(
    "source", ["hf:me/photos", "hf:me/photos@main", f"hf:me/photos@{COMMIT}", f"hf:me/photos@{COMMIT[:9]}"]
)
@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "class folders"])
def test_a_copy_in_the_cache(hub, tmp_path, source, kind):
    contents = {
        "parquet": {"data/train-00000-of-00001.parquet": parquet(tmp_path / "x.parquet"), "README.md": b"x"},
        "imagefolder": {"1.png": png(0), "2.png": png(1), "metadata.csv": CSV, ".gitattributes": b"x"},
        "class folders": {"cat/1.png": png(0), "dog/1.png": png(1), "README.md": b"x"},
    }[kind]
    cached(hub, **contents)
    dataset = open_dataset(source)
    assert dataset.class_counts() == {"cat": 1, "dog": 1}
    assert [read_image_bytes(image) for image in dataset.used().images] == [png(0), png(1)]
    assert dataset.notes[0] == f"{source}: the copy on this machine, revision {COMMIT[:12]}"


def test_another_revision_in_the_cache(hub):
    cached(hub, "cat/1.png", "dog/1.png", ref="v1.0")
    assert open_dataset("hf:me/photos@v1.0").class_names == ("cat", "dog")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_where_the_cache_is(tmp_path, monkeypatch, variable):
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    below_it = {"HF_HUB_CACHE": ".", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    cached(tmp_path / below_it, "cat/1.png", "dog/1.png")
    assert open_dataset("hf:me/photos").class_names == ("cat", "dog")


def test_metadata_in_the_cache_reaches_no_further_than_the_data_set(hub, tmp_path):
    fill(tmp_path, "secret.png")
    folder = cached(hub, "1.png", "2.png", **{"metadata.csv": CSV + b"evil.png,cat\n../../../../secret.png,cat\n"})
    (folder / "evil.png").symlink_to(tmp_path / "secret.png")
    dataset = open_dataset("hf:me/photos")
    assert dataset.reasons() == {"outside-root": 2}
    assert dataset.counts().used == 2


def downloader(hub, calls, *paths, error=None):
    def snapshot_download(name, **options):
        calls.append((name, options["repo_type"], options["revision"]))
        if error:
            raise error
        return str(cached(hub, *paths))

    return stub(snapshot_download)


@pytest.mark.parametrize(("source", "revision"), [("hf:me/photos", "main"), ("hf:me/photos@v2", "v2")])
def test_from_the_hub(hub, monkeypatch, source, revision):
    calls = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", downloader(hub, calls, "cat/1.png", "dog/1.png"))
    dataset = open_dataset(source)
    assert calls == [("me/photos", "dataset", revision)]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.notes[0] == f"{source}: revision {COMMIT[:12]}, downloaded"


def test_an_unfinished_download_is_finished(hub, monkeypatch):
    cached(hub, "cat/1.png")
    (hub / "datasets--me--photos/blobs/abc.incomplete").write_bytes(b"")
    calls = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", downloader(hub, calls, "dog/1.png"))
    assert open_dataset("hf:me/photos").class_names == ("cat", "dog")
    assert len(calls) == 1


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline(hub, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(DataError) as caught:
        open_dataset("hf:me/photos")
    assert caught.value.code == "offline"
    assert str(hub) in caught.value.message


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("401"), RuntimeError("")])
def test_a_hub_that_does_not_answer(hub, monkeypatch, error):
    monkeypatch.setitem(sys.modules, "huggingface_hub", downloader(hub, [], error=error))
    with pytest.raises(DataError) as caught:
        open_dataset("hf:me/photos")
    assert caught.value.code == "offline"
    assert str(error) in caught.value.message


@pytest.mark.usefixtures("hub")
def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TrainingError) as caught:
        open_dataset("hf:me/photos")
    assert caught.value.code == "package-missing"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "source", ["hf:", "hf:a/b/c", "hf:../x", "hf:me/../x", "hf:me/photos@../../x", "hf:me/pho tos", "hf:-x/y"]
)
def test_names_that_are_none(source):
    with pytest.raises(DataError) as caught:
        local_copy(source)
    assert caught.value.code == "source-not-found"


@pytest.mark.parametrize(
    ("source", "expected"), [("hf:a/b", True), ("hf:b", True), ("photos", False), ("./hf:a", False)]
)
def test_what_is_a_hub_name(source, expected):
    assert is_hub_name(source) == expected


def test_options_reach_the_copy(hub):
    cached(hub, "1.png", "2.png", **{"metadata.csv": b"file_name,a,b\n1.png,x,u\n2.png,y,v\n"})
    assert open_dataset("hf:me/photos", SourceOptions(label_column="b")).class_names == ("u", "v")
