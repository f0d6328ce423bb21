"""Nothing under its final name is ever half-written, and a run folder has one owner."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from tellapart.errors import StorageError
from tellapart.storage import (
    atomic_file,
    cache_folder,
    locked_folder,
    read_checked,
    room_for,
    sha256,
    write_bytes,
    write_checked,
    write_json,
)

DATA = bytes(range(256)) * 3

HOLDER = """
import sys, time
from pathlib import Path
from tellapart.storage import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


class WriterError(Exception):
    """Raised by a test's own writer."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(path, error):
    with atomic_file(path) as file:
        file.write(DATA)
        raise error


@pytest.mark.parametrize("old", [None, b"", b"what was there before"])
def test_a_file_appears_whole(tmp_path, old):
    path = tmp_path / "a/b/file.bin"
    if old is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(old)
    with atomic_file(path) as file:
        file.write(DATA)
        file.flush()
        assert (path.read_bytes() if path.exists() else None) == old, "unchanged while it is being written"
    assert path.read_bytes() == DATA
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("old", [None, b"what was there before"])
@pytest.mark.parametrize("error", [WriterError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path, old, error):
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error):
        fail_halfway(path, error)
    assert (path.read_bytes() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["file.bin"])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_system_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file.bin"
    path.write_bytes(b"what was there before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(StorageError) as caught:
        write_bytes(path, DATA)
    assert caught.value.code == "cannot-write"
    assert "No space left" in caught.value.message
    assert "--out" in caught.value.hint
    assert path.read_bytes() == b"what was there before"
    assert names(tmp_path) == ["file.bin"]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda source, target: steps.append("rename") or replace(source, target))
    write_bytes(tmp_path / "file.bin", DATA)
    assert steps == ["fsync", "rename", "fsync"], "the file, its name, the folder"


@pytest.mark.parametrize("path", ["file/below", "folder", "file/deep/below"])
def test_places_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").write_bytes(b"in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / path, DATA)
    assert caught.value.code == "cannot-write"
    assert str(tmp_path / path) in caught.value.message
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, b"{}\n"),
        ({"a": [1, 2.5, None, True]}, b'{\n  "a": [\n    1,\n    2.5,\n    null,\n    true\n  ]\n}\n'),
        ({"name": "caf\u00e9"}, '{\n  "name": "caf\u00e9"\n}\n'.encode()),
    ],
)
def test_write_json(tmp_path, document, expected):
    write_json(tmp_path / "a.json", document)
    assert (tmp_path / "a.json").read_bytes() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), [1.0, float("nan")]])
def test_write_json_refuses_what_json_cannot_say(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"value": value})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_checked_entries_come_back(tmp_path, data):
    write_checked(tmp_path / "entry", data)
    assert read_checked(tmp_path / "entry") == data


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda whole: whole[:10],
        lambda whole: whole[:32],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: whole[32:],
        *[
            lambda whole, i=i: whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]
            for i in (0, 31, 32, 400, len(DATA) + 31)
        ],
    ],
    ids=["empty", "in the digest", "digest only", "last byte lost", "one byte more", "no digest",
         *[f"bit flipped at {place}" for place in ("start", "digest's end", "first", "middle", "last")]],
)  # fmt: skip
def test_damaged_entries_are_noticed(tmp_path, damage):
    path = tmp_path / "entry"
    write_checked(path, DATA)
    path.write_bytes(damage(path.read_bytes()))
    assert read_checked(path) is None


def test_no_entry(tmp_path):
    assert read_checked(tmp_path / "missing") is None
    assert read_checked(tmp_path) is None, "a folder in its place"


def held_elsewhere(folder):
    """Another process that holds ``folder``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, env=env, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "runs/photos"
    process = held_elsewhere(folder)
    try:
        with pytest.raises(StorageError) as caught, locked_folder(folder):
            pass
        assert caught.value.code == "run-locked"
        assert str(folder) in caught.value.message
        assert caught.value.hint
        with locked_folder(tmp_path / "runs/other") as other:
            assert other.is_dir()
    finally:
        process.kill()  # SIGKILL: it cleans up nothing
        process.wait()
        process.stdout.close()
    with locked_folder(folder) as held:
        assert held == folder


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with locked_folder(tmp_path), pytest.raises(StorageError) as caught, locked_folder(tmp_path):
        pass
    assert caught.value.code == "run-locked"


@pytest.mark.parametrize("error", [None, WriterError])
def test_a_folder_is_free_after_its_run(tmp_path, error):
    try:
        with locked_folder(tmp_path):
            if error:
                raise error
    except WriterError:
        pass
    with locked_folder(tmp_path) as held:
        assert held == tmp_path


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StorageError) as caught, locked_folder(tmp_path / "file/run"):
        pass
    assert caught.value.code == "cannot-write"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/somewhere/else", Path("/somewhere/else")), ("", platformdirs.user_cache_path("tellapart"))],
)
def test_cache_folder(monkeypatch, given, expected):
    monkeypatch.setenv("TELLAPART_CACHE", given)
    assert cache_folder() == expected


def test_sha256():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_disk_without_room_is_no_map(tmp_path, monkeypatch):
    """What is mapped all the same ends the process when it is written to."""
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            room_for((2**21,), np.uint8, memory_bytes=0)
        room = room_for((2**19, 2), np.uint8, memory_bytes=2**20 - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "cannot-write"
    assert (type(room), room.shape) == (np.memmap, (2**19, 2))
    room[:] = 7
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_where_else_to_go(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError) as caught:
        room_for((10,), np.float16, memory_bytes=19)
    assert "TELLAPART_CACHE" in caught.value.hint
    assert type(room_for((10,), np.float16, memory_bytes=20)) is np.ndarray
