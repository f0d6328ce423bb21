"""Decoded images: each decoded once, whatever happens in between."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from folders import fill, numbered

from tellapart.data import cache as cache_module
from tellapart.data.cache import decode_files
from tellapart.imaging.preprocess import load_input
from tellapart.records import Preprocess
from tellapart.storage import sha256

SPEC = Preprocess(input_size_px=8)


@pytest.fixture
def files(tmp_path):
    """20 images by content hash."""
    return contents_of(fill(tmp_path / "photos", *numbered("cat", 10), *numbered("dog", 10)))


@pytest.fixture(autouse=True)
def shards(tmp_path, monkeypatch):
    """An empty cache; the files in it, as they come."""
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache").rglob("*.checked"))


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was decoded."""
    counts, lock = Counter(), threading.Lock()

    def load(path, spec):
        with lock:
            counts[path] += 1
        return load_input(path, spec)

    monkeypatch.setattr(cache_module, "load_input", load)
    return counts


def contents_of(folder):
    return {sha256(path.read_bytes()): str(path) for path in sorted(folder.rglob("*.png"))}


def require_right(table, files, spec=SPEC, errors=()):
    """Every image is where its row says, in the order in which rows are asked for."""
    assert set(table.rows) == set(files) - set(errors)
    assert sorted(table.rows.values()) == list(range(len(table.pixels)))
    assert table.pixels.dtype == np.uint8
    side = spec.input_size_px
    assert table.pixels.shape == (len(files) - len(errors), side, side, 3)
    asked = [content for content in reversed(list(files)) if content not in errors]
    expected = np.stack([load_input(files[content], spec) for content in asked])
    assert np.array_equal(table.pixels[table.indices(asked)], expected)


def test_nothing_is_decoded_twice(files, decoded):
    said = []
    first, errors = decode_files(files, SPEC, lambda *arguments: said.append(arguments))
    assert errors == {}
    require_right(first, files)
    assert decoded == dict.fromkeys(files.values(), 1)
    assert said[0] == ("decoding", 0, 20)
    assert said[-1] == ("decoding", 20, 20)
    said.clear()
    second, errors = decode_files(files, SPEC, lambda *arguments: said.append(arguments))
    assert errors == {}
    require_right(second, files)
    assert decoded.total() == 20
    assert said == [("decoding", 20, 20)]


def test_only_new_images_are_decoded(files, decoded, tmp_path):
    decode_files(files, SPEC)
    decoded.clear()
    more = files | contents_of(fill(tmp_path / "more", *numbered("owl", 3)))
    table, _ = decode_files(more, SPEC)
    require_right(table, more)
    assert decoded == dict.fromkeys(list(more.values())[20:], 1)
    few = dict(list(more.items())[5:22])
    table, _ = decode_files(few, SPEC)
    require_right(table, few)
    assert decoded.total() == 3


def test_a_file_that_moves_is_known_by_its_content(files, decoded, tmp_path):
    decode_files(files, SPEC)
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = contents_of(tmp_path / "moved")
    table, _ = decode_files(moved, SPEC)
    require_right(table, moved)
    assert decoded.total() == 20


@pytest.mark.parametrize(
    "spec", [Preprocess(input_size_px=9), Preprocess(input_size_px=8, interpolation="bicubic")]
)
def test_another_input_is_another_cache(spec, files, decoded):
    decode_files(files, SPEC)
    table, _ = decode_files(files, spec)
    require_right(table, files, spec)
    assert decoded == dict.fromkeys(files.values(), 2)
    require_right(decode_files(files, SPEC)[0], files)
    assert decoded.total() == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_shard_is_decoded_again(damage, files, decoded, shards):
    decode_files(files, SPEC)
    (shard,) = shards()
    shard.write_bytes(damage(shard.read_bytes()))
    decoded.clear()
    require_right(decode_files(files, SPEC)[0], files)
    assert decoded == dict.fromkeys(files.values(), 1)
    require_right(decode_files(files, SPEC)[0], files)
    assert decoded.total() == 20


def test_images_that_cannot_be_decoded_are_named(files, decoded):
    broken = list(files)[3:14:5]
    for content in broken:
        path = Path(files[content])
        path.write_bytes(path.read_bytes()[:60])
    said = []
    for _ in range(2):  # errors are not kept: the file may be better next time
        decoded.clear()
        table, errors = decode_files(files, SPEC, lambda *arguments: said.append(arguments))
        assert set(errors) == set(broken)
        assert {error.code for error in errors.values()} <= {"truncated-image", "damaged-image"}
        require_right(table, files, errors=errors)
        assert said[-1] == ("decoding", 20, 20)
    assert decoded == {files[content]: 1 for content in broken}


def test_no_files_are_no_images():
    table, errors = decode_files({}, SPEC)
    assert table.pixels.shape == (0, 8, 8, 3)
    assert errors == {}
    assert table.indices([]).tolist() == []


def test_more_than_fits_into_memory_is_mapped(files, decoded, monkeypatch, tmp_path):
    room = 20 * 8 * 8 * 3
    for limit, kind in ((room, np.ndarray), (room - 1, np.memmap)):
        monkeypatch.setattr(cache_module, "MAX_MEMORY_BYTES", limit)
        table, _ = decode_files(files, SPEC)
        assert type(table.pixels) is kind
        require_right(table, files)
    assert decoded.total() == 20
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["pixels"], "the map must have no name"


def test_many_images_are_kept_in_several_shards(files, decoded, shards, monkeypatch):
    monkeypatch.setattr(cache_module, "_SHARD_BYTES", 6 * 8 * 8 * 3 + 5)
    require_right(decode_files(files, SPEC)[0], files)
    assert len(shards()) == 4  # 6 + 6 + 6 + 2
    require_right(decode_files(files, SPEC)[0], files)
    assert decoded.total() == 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("images_a_shard", [3, 100])
def test_what_was_decoded_before_an_interruption_is_kept(error, images_a_shard, files, decoded, monkeypatch):
    monkeypatch.setattr(cache_module, "_SHARD_BYTES", images_a_shard * 8 * 8 * 3)

    def interrupt(_stage, done, _total):
        if done == 16:
            raise error

    with pytest.raises(error):
        decode_files(files, SPEC, interrupt)
    decoded.clear()
    table, _ = decode_files(files, SPEC)
    require_right(table, files)
    assert decoded == dict.fromkeys(list(files.values())[16:], 1)
