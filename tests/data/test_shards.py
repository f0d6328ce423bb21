"""WebDataset shards: indexed in one pass, nothing unpacked, and the attacks of archives refused."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from folders import fill, png
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import record, tar

from tellapart.data.check import check_contents
from tellapart.data.patterns import expand, split_of_file
from tellapart.data.shards import ShardImage
from tellapart.data.sources import open_dataset, open_test_images
from tellapart.data.tar import TarDamage, iter_tar
from tellapart.errors import DataError, ImageError, TrainingError
from tellapart.imaging.decode import DecodeLimits, read_image_bytes
from tellapart.records import SourceOptions

PICTURES = {str(i): png(i) for i in range(8)}


def sample(key, label=None, ending="cls", image="png"):
    """Members of one sample."""
    key = str(key)
    members = [(f"{key}.{image}", PICTURES.get(key, png(len(key))))]
    return members if label is None else [*members, (f"{key}.{ending}", label.encode())]


GOOD = [*sample(0, "cat"), *sample(1, "dog")]


def shard(root, *members, name="000.tar", **options):
    fill(root, **{name: tar(*members, **options)})
    return root / name


def said(dataset, column="label"):
    rows = dataset.used().table.select("path", column).iter_rows()
    return {path.rpartition("/")[2]: value for path, value in rows}


def reasons(dataset):
    rows = dataset.table.filter(dataset.table["status"] != "used").select("path", "reason").iter_rows()
    return {path.partition("!")[2]: reason for path, reason in rows}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (GOOD, {"0.png": "cat", "1.png": "dog"}),
        ([*sample(0, "cat\n", "txt"), *sample(1, " dog", "txt")], {"0.png": "cat", "1.png": "dog"}),
        ([*sample(0, '{"label": "cat"}', "json"), *sample(1, '{"label": "dog"}', "json")],
         {"0.png": "cat", "1.png": "dog"}),
        ([*sample(0, '"cat"', "json"), *sample(1, '"dog"', "json")], {"0.png": "cat", "1.png": "dog"}),
        ([("cat/0.png", png(0)), ("dog/1.png", png(1))], {"0.png": "cat", "1.png": "dog"}),
        ([("./x/cat/0.png", png(0)), ("./x/dog/1.png", png(1))], {"0.png": "cat", "1.png": "dog"}),
        ([*reversed(sample(0, "0")), *reversed(sample(1, "1"))], {"0.png": "0", "1.png": "1"}),
        ([("0.PNG", png(0)), ("0.cls", b"cat"), ("1.jpg", png(1)), ("1.cls", b"dog")], {"0.PNG": "cat", "1.jpg": "dog"}),
        ([GOOD[0], GOOD[2], GOOD[1], GOOD[3]], {"0.png": "cat", "1.png": "dog"}),
    ],
    ids=["cls", "txt", "json", "json text", "folders", "deep folders", "label first", "endings", "apart"],
)  # fmt: skip
def test_where_labels_stand(tmp_path, members, expected):
    dataset = open_dataset(shard(tmp_path, *members))
    assert said(dataset) == expected
    assert dataset.counts().seen == dataset.counts().used == 2
    assert all(path.startswith(f"{tmp_path}/000.tar!/") for path in dataset.paths)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["a", "é" * 30, "deep/" * 30 + "a", "x" * 90, "y" * 220])
def test_names_of_every_format(tmp_path, kind, key):
    members = [(f"{key}/0.png", png(0)), (f"{key}/0.cls", b"cat"), ("1.png", png(1)), ("1.cls", b"dog")]
    try:
        path = shard(tmp_path, *members, format=kind)
    except ValueError:
        pytest.skip("this format has no room for the name")
    dataset = open_dataset(path)
    assert dataset.paths[0] == f"{path}!/{key}/0.png"
    assert [read_image_bytes(image) for image in dataset.images] == [png(0), png(1)]


def test_images_are_read_where_they_lie(tmp_path):
    path = shard(tmp_path, *(member for i in range(6) for member in sample(i, ("cat", "dog")[i % 2])))
    dataset = open_dataset(path)
    assert [read_image_bytes(image) for image in dataset.images] == [PICTURES[str(i)] for i in range(6)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["000.tar"], "nothing is unpacked"
    checked = check_contents(dataset)
    assert checked.counts().used == 6
    assert checked.where(checked.table["path"] == dataset.paths[3]).images == [dataset.images[3]]


def test_several_labels_an_image(tmp_path):
    members = [(f"{i}.json", json.dumps({"tags": tags, "width": 1}).encode())
               for i, tags in enumerate([["a", "b"], [], ["b"]])]  # fmt: skip
    dataset = open_dataset(shard(tmp_path, *members, *(m for i in range(3) for m in sample(i))))
    assert (dataset.task, dataset.class_names) == ("multilabel", ("a", "b"))
    assert said(dataset, "labels") == {"0.png": ["a", "b"], "1.png": [], "2.png": ["b"]}


def test_several_images_a_sample(tmp_path):
    members = [(f"{i}.{end}", png(10 * i + len(end))) for i in range(4) for end in ("png", "seg.png")]
    path = shard(tmp_path, *members, *((f"{i}.cls", b"cd"[i % 2 : i % 2 + 1]) for i in range(4)))
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert caught.value.code == "ambiguous-columns"
    assert "--image-column png" in caught.value.hint
    assert set(said(open_dataset(path, SourceOptions(image_column="seg.png")))) == {
        f"{i}.seg.png" for i in range(4)
    }


@pytest.mark.parametrize(
    ("member", "shown", "reason"),
    [
        (record("evil.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "/evil.png", "unsafe-member"),
        (record("evil.png", type=tarfile.LNKTYPE, linkname="0.png"), "/evil.png", "unsafe-member"),
        (record("evil.png", type=tarfile.CHRTYPE), "/evil.png", "unsafe-member"),
        (record("evil.png", type=tarfile.BLKTYPE), "/evil.png", "unsafe-member"),
        (record("evil.png", type=tarfile.FIFOTYPE), "/evil.png", "unsafe-member"),
        (record("evil.png", type=b"S"), "/evil.png", "unsafe-member"),
        (record("evil.png", type=b"Z"), "/evil.png", "unsafe-member"),
        (record("evil.png", pax_headers={"GNU.sparse.major": "1"}), "/evil.png", "unsafe-member"),
        (("0.png", png(5)), "/0.png at byte 4,608", "duplicate-key"),
        (("0.cls", b"dog"), "/0.cls at byte 4,608", "duplicate-key"),
        (("2.cls", b"dog"), "/2.*", "no-path"),
        (("2.png", png(2)), "/2.png", "no-label"),
        (("2.npy", b"x"), "/2.npy", "other"),
        (("readme", b"x"), "/readme", "other"),
        (("._0.png", b"x"), "/._0.png", "hidden"),
        (("__MACOSX/0.png", b"x"), "/__MACOSX/0.png", "system"),
        (("2.json", b"{"), "/2.*", "bad-row"),
        (("2.json", b"[" * 5000), "/2.*", "bad-row"),
        (("2.txt", b"\xff\xfe"), "/2.*", "bad-row"),
        (("2.cls", b"x" * (2**20 + 1)), "/2.*", "bad-row"),
    ],
)
def test_members_that_cannot_be_used(tmp_path, member, shown, reason):
    dataset = open_dataset(shard(tmp_path, *GOOD, member, format=tarfile.PAX_FORMAT))
    assert reasons(dataset) == {shown: reason}
    assert said(dataset) == {"0.png": "cat", "1.png": "dog"}
    assert dataset.counts().seen == 3


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png"])
def test_a_name_is_only_a_name(tmp_path, name):
    root = tmp_path / "deep/deeper"
    dataset = open_dataset(shard(root, *GOOD, (name, png(7)), (name.replace("png", "cls"), b"cat")))
    assert f"{root}/000.tar!/{name}" in dataset.used().paths
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "deep", "deep/deeper", "deep/deeper/000.tar"
    ]  # fmt: skip
    assert read_image_bytes(dataset.images[2]) == png(7)


SOUND = tar(*GOOD)[: 4 * 1024]


def broken(change):
    """A sound archive of two samples and then one more, whose bytes are changed."""
    data = bytearray(tar(*GOOD, ("2.png", png(2)), ("2.cls", b"cat")))
    start = data.index(b"2.png")
    return bytes(change(data, start))


def with_size(field):
    def change(data, start):
        data[start + 124 : start + 136] = field
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        return data

    return change


def overwritten(offset, new):
    def change(data, start):
        data[start + offset : start + offset + len(new)] = new
        return data

    return change


@pytest.mark.parametrize(
    "data",
    [
        broken(lambda data, start: data[: start + 512 + 10]),
        broken(lambda data, start: data[: start + 100]),
        broken(overwritten(0, b"\xff")),
        broken(overwritten(124, b"9")),
        broken(with_size(b"77777777777\0")),
        broken(with_size(b"\x80" + b"\xff" * 11)),
        broken(with_size(b"\xff" * 12)),
        broken(with_size(b"no number!!!")),
        SOUND + tar(record("2.png", type=b"L", size=2**40), format=tarfile.GNU_FORMAT)[:512] + b"\0" * 1024,
        SOUND + tar(record("2.png", type=b"x", size=2**21))[:512] + b"\0" * 2**22,
        SOUND + tar(record("h", type=b"x", size=20))[:512] + b"99999 path=x\n".ljust(512, b"\0"),
        SOUND + tar(record("h", type=b"x", size=20))[:512] + b"13 size=-10\n".ljust(512, b"\0")
        + tar(record("2.png"))[:512],
    ],
    ids=["image cut", "header cut", "checksum", "digit", "huge", "huge binary", "negative", "no number", "huge name",
         "huge attributes", "attributes", "negative attribute"],
)  # fmt: skip
def test_damage_ends_the_reading_and_is_said(tmp_path, data):
    fill(tmp_path, **{"000.tar": data})
    dataset = open_dataset(tmp_path / "000.tar")
    assert said(dataset) == {"0.png": "cat", "1.png": "dog"}
    assert reasons(dataset) == {"": "damaged-archive"}
    assert "what comes after is not read" in dataset.table["detail"][2]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "no-images"),
        (b"\0" * 10240, "no-images"),
        (b"no tar at all" * 100, "damaged-archive"),
        (b"\x1f\x8b\x08" + b"\0" * 600, "unsupported-source"),
        (b"BZh9" + b"\0" * 600, "unsupported-source"),
        (b"\xfd7zXZ\0" + b"\0" * 600, "unsupported-source"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 600, "unsupported-source"),
        (tar(("readme.md", b"x")), "no-images"),
        (tar(("0.cls", b"cat"), ("1.cls", b"dog")), "no-images"),
        (tar(*sample(0, "cat"), *sample(1, "cat")), "single-class"),
        (tar(*sample(0), *sample(1)), "no-images"),
    ],
    ids=["empty", "no member", "no tar", "gzip", "bzip2", "xz", "zstd", "no image", "labels alone", "one class",
         "no label"],
)  # fmt: skip
def test_unusable_shards(tmp_path, data, code):
    fill(tmp_path, **{"000.tar": data})
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "000.tar")
    assert caught.value.code == code


def test_compressed_by_its_name(tmp_path):
    fill(tmp_path, **{"000.tar.gz": b"\x1f\x8b"})
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "000.tar.gz")
    assert "gunzip" in caught.value.hint


def test_an_image_beyond_the_limits_is_not_read(tmp_path):
    with pytest.raises(ImageError) as caught:
        open_dataset(shard(tmp_path, *GOOD)).images[0].read_bytes(DecodeLimits(max_bytes=10))
    assert caught.value.code == "too-many-bytes"


@pytest.mark.parametrize("change", ["cut", "gone"])
def test_a_shard_that_changed_since(tmp_path, change):
    path = shard(tmp_path, *GOOD)
    image = open_dataset(path).images[1]
    path.unlink() if change == "gone" else os.truncate(path, 1_600)
    with pytest.raises(ImageError) as caught:
        read_image_bytes(image)
    assert caught.value.code == {"gone": "unreadable-file", "cut": "truncated-image"}[change]


@pytest.mark.parametrize("source", ["{000..001}.tar", "*.tar", "00?.tar", ".", "{000,001}.tar"])
def test_several_shards(tmp_path, source):
    shard(tmp_path, *GOOD)
    shard(tmp_path, *sample(2, "cat"), *sample(0, "dog"), name="001.tar")
    dataset = open_dataset(tmp_path if source == "." else f"{tmp_path}/{source}")
    assert [Path(path).relative_to(tmp_path).as_posix() for path in dataset.paths] == [
        "000.tar!/0.png", "000.tar!/1.png", "001.tar!/2.png", "001.tar!/0.png"
    ]  # fmt: skip


def test_a_missing_shard_is_an_error(tmp_path):
    shard(tmp_path, *GOOD)
    with pytest.raises(DataError) as caught:
        open_dataset(f"{tmp_path}/{{000..001}}.tar")
    assert caught.value.code == "source-not-found"
    assert "001.tar" in caught.value.message


def test_parts_by_the_shards_names(tmp_path):
    shard(tmp_path, *GOOD, name="photos-train-000.tar")
    shard(tmp_path, *sample(2, "cat"), *sample(3, "fox"), name="photos-val-000.tar")
    fill(tmp_path, **{"photos-val-000.tar": tar(*sample(2, "cat"))})
    assert open_dataset(tmp_path).table["split"].to_list() == ["train", "train", "val"]
    alone = open_dataset(tmp_path / "photos-train-000.tar", SourceOptions(group_pattern=r"/(\d)\."))
    assert alone.table["group"].to_list() == ["0", "1"]


def test_measured_with_the_models_classes(tmp_path):
    path = shard(tmp_path, *GOOD, *sample(2, "fox"), name="test-000.tar")
    dataset = open_test_images(path, ("dog", "cat"))
    assert said(dataset) == {"0.png": "cat", "1.png": "dog"}
    assert reasons(dataset) == {"/2.png": "unknown-class"}
    assert dataset.used("test").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{2..0}.tar", ["2.tar", "1.tar", "0.tar"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("s3://b/{00..01}.tar", ["s3://b/00.tar", "s3://b/01.tar"]),
    ],
)
def test_braces(pattern, expected):
    assert expand(pattern) == expected


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{0..999}{0..999}.tar", "no-such-*.tar"])
def test_patterns_that_mean_too_much_or_nothing(pattern):
    with pytest.raises(DataError):
        expand(pattern)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("a/imagenet1k-validation-07.tar", "val"),
        ("test/0000.parquet", "test"),
        ("trainer.tar", None),
        ("train-test.tar", None),
        ("000.tar", None),
    ],
)
def test_parts_in_names(name, split):
    assert split_of_file(name) == split


def test_shards_elsewhere():
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/000.tar", tar(*GOOD))
    memory.pipe("/shards/001.tar", tar(*sample(2, "cat")))
    for source in ("memory://shards/{000..001}.tar", "memory://shards/*.tar"):
        dataset = open_dataset(source)
        assert said(dataset) == {"0.png": "cat", "1.png": "dog", "2.png": "cat"}
        assert [read_image_bytes(image) for image in dataset.images] == [png(0), png(1), png(2)]
    with pytest.raises(ImageError) as caught:
        dataset.images[0].read_bytes(DecodeLimits(max_bytes=10))
    assert caught.value.code == "too-many-bytes"
    memory.rm("/shards/001.tar")
    with pytest.raises(ImageError) as gone:
        read_image_bytes(dataset.images[2])
    assert gone.value.code == "unreadable-file"
    with pytest.raises(DataError) as missing:
        open_dataset("memory://shards/009.tar")
    assert missing.value.code == "source-not-found"


@pytest.mark.parametrize(
    ("source", "code"),
    [("nosuchsystem://x/0.tar", "unsupported-source"), ("memory://x/labels.csv", "unsupported-source"),
     ("pipe:cat x.tar", "source-not-found")],
)  # fmt: skip
def test_addresses_that_are_not_read(source, code):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    with pytest.raises(DataError) as caught:
        open_dataset(source)
    assert caught.value.code == code


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(TrainingError) as caught:
        open_dataset("memory://x/0.tar")
    assert caught.value.code == "package-missing"
    assert "pip install fsspec" in caught.value.hint


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_give_members_or_damage(data):
    sound = bytearray(tar(*GOOD))
    for _ in range(data.draw(st.integers(0, 6))):
        sound[data.draw(st.integers(0, 3_000))] = data.draw(st.integers(0, 255))
    file = io.BytesIO(bytes(sound[: data.draw(st.integers(0, len(sound)))]))
    try:
        members = list(iter_tar(file, len(file.getvalue())))
    except TarDamage:
        return
    assert all(0 <= member.offset <= member.offset + member.size <= len(file.getvalue()) for member in members)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from(["png", "cls", "npy", "json"]), st.sampled_from(["cat", "{"])
        ),
        max_size=10,
    )
)
def test_counts_add_up_whatever_the_members(tmp_path_factory, extra):
    members = [(f"{key}.{ending}", png(1) if ending == "png" else text.encode()) for key, ending, text in extra]
    dataset = open_dataset(
        shard(tmp_path_factory.mktemp("shard"), *GOOD, *members), SourceOptions(label_column="cls")
    )
    counts = dataset.counts()
    assert counts.seen == counts.used + counts.refused + counts.duplicates + counts.skipped
    assert dataset.table["path"].n_unique() == len(dataset)
    names = [name for name, _ in members]
    samples = {key for key, ending, _ in extra if ending != "npy"}
    repeated = len(names) - len(set(names))
    assert counts.seen == 2 + len(samples) + len({n for n in names if n.endswith("npy")}) + repeated


def test_stored_images_are_plain_records():
    assert ShardImage("a.tar", 512, 3) == ShardImage("a.tar", 512, 3)
    assert hash(ShardImage("a.tar", 512, 3)) != hash(ShardImage("a.tar", 1024, 3))
