"""Checkpoints and unfinished runs: whole or not at all, whatever fails while they are written."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import StorageError, TrainingError  # noqa: E402
from tellapart.training.checkpoint import Checkpoint, CheckpointFolder  # noqa: E402
from tellapart.training.recipes import build_recipe  # noqa: E402
from tellapart.training.resume import (  # noqa: E402
    UnfinishedRun,
    begin_run,
    checkpoint_folder,
    finish_run,
    read_run,
    require_same_images,
)


def moment(step=1):
    """A checkpoint whose content depends on the step."""
    rng = torch.Generator().manual_seed(step)
    tensors = {
        "network.conv": torch.randn(4, 3, 2, 2, generator=rng).to(memory_format=torch.channels_last),
        "optimizer.steps": torch.tensor(float(step)),
        "half": torch.randn(5, generator=rng).bfloat16(),
        "rows": torch.arange(step, step + 3),
        "none": torch.zeros(0, 2),
    }
    log = [{"epoch": i, "loss": 0.1 + i / 3, "val_loss": None} for i in range(step)]
    return Checkpoint(tensors=tensors, state={"position": {"step": step, "log": log, "seconds": 1e-17 / 3}})


def same(first, second):
    equal = first.tensors.keys() == second.tensors.keys() and first.state == second.state
    return equal and all(
        torch.equal(value, second.tensors[name]) and value.dtype == second.tensors[name].dtype
        for name, value in first.tensors.items()
    )


def names(folder):
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path / "run" / "checkpoint")
    assert folder.load() is None
    for step in (1, 2, 3):
        folder.save(moment(step))
        assert same(folder.load(), moment(step))
        assert same(CheckpointFolder(folder.folder).load(), moment(step))
        assert names(folder.folder) == ["state.json", "tensors"]
    assert not same(moment(1), moment(2))


def test_a_state_that_is_no_json_is_refused_and_the_last_one_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(moment(1))
    with pytest.raises(ValueError, match="JSON"):
        folder.save(Checkpoint(tensors={}, state={"position": {"loss": float("nan")}}))
    assert same(folder.load(), moment(1))
    assert names(tmp_path) == ["state.json", "tensors"]


def test_leftovers_of_killed_processes_go_with_the_next_save(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(moment(1))
    for name in (
        ".state.json.0123456789ab.tmp",
        ".tensors-1.safetensors.0123456789ab.tmp",
        "tensors-1.safetensors",
    ):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "run.json").write_text("{}")
    assert same(folder.load(), moment(1))
    folder.save(moment(2))
    assert names(tmp_path) == ["run.json", "state.json", "tensors"]
    assert same(folder.load(), moment(2))


# When writing fails


class Failing:
    """Lets some calls of a function through; the next one fails as on a full disk, or as on Ctrl-C."""

    def __init__(self, real, after, error):
        self.real, self.after, self.error, self.calls = real, after, error, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls == self.after + 1:
            raise self.error
        return self.real(*arguments, **options)


class FullFile:
    """A file on a full disk: it opens, and takes nothing."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITES = {"mkdir": (Path, 2), "fsync": (os, 4), "replace": (Path, 2)}
FAILURES = [(name, call) for name, (_, calls) in WRITES.items() for call in range(calls)]


def failing(monkeypatch, name, after, error):
    place = WRITES[name][0]
    patch = Failing(getattr(place, name), after, error)
    # A method must stay one: a plain instance would not be bound to its path.
    monkeypatch.setattr(place, name, patch if place is os else lambda *a, **k: patch(*a, **k))
    return patch


@pytest.mark.parametrize("name", WRITES)
def test_these_are_all_the_writes_there_are(name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counted = failing(patch, name, 10**6, OSError())
        CheckpointFolder(tmp_path).save(moment(1))
    assert counted.calls == WRITES[name][1]


@pytest.mark.parametrize(("name", "after"), FAILURES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_write_that_fails_leaves_a_whole_checkpoint(name, after, interrupted, tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(moment(1))
    error = KeyboardInterrupt() if interrupted else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        failing(patch, name, after, error)
        with pytest.raises(KeyboardInterrupt if interrupted else StorageError) as caught:
            folder.save(moment(2))
    if not interrupted:
        assert caught.value.code == "cannot-write"
        assert "No space left" in caught.value.message
        assert "free some space" in caught.value.hint
    in_place = (name, after) == ("fsync", 3)  # only the folder's own fsync was left to do
    assert same(folder.load(), moment(2 if in_place else 1))
    assert names(tmp_path) == ["state.json", "tensors"]
    folder.save(moment(3))
    assert same(folder.load(), moment(3))


@pytest.mark.parametrize("which", ["tensors", "state"])
def test_a_disk_that_is_full_leaves_the_last_checkpoint(which, tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(moment(1))
    real = Path.open

    def full(path, *arguments, **options):
        file = real(path, *arguments, **options)
        return FullFile(file) if path.name.startswith(f".{which}") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageError) as caught:
            folder.save(moment(2))
    assert caught.value.code == "cannot-write"
    assert same(folder.load(), moment(1))
    assert names(tmp_path) == ["state.json", "tensors"]


# Damage


def in_state(change):
    """Damage to the parsed document."""

    def damage(folder):
        path = folder / "state.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def state_as(data):
    return lambda folder: (folder / "state.json").write_bytes(data)


def in_tensors(change):
    def damage(folder):
        (path,) = folder.glob("tensors-*")
        path.write_bytes(change(path.read_bytes()))

    return damage


DAMAGE = {
    "empty state": state_as(b""),
    "half a state": lambda folder: state_as((folder / "state.json").read_bytes()[:100])(folder),
    "not UTF-8": state_as(b'{"version": 1, "tensors": "\xff"}'),
    "null": state_as(b"null"),
    "a list": state_as(b"[]"),
    "a number": state_as(b"1"),
    "an empty object": state_as(b"{}"),
    "other version": in_state(lambda document: document.update(version=99)),
    "no version": in_state(lambda document: document.pop("version")),
    "no state": in_state(lambda document: document.pop("state")),
    "other step": in_state(lambda document: document["state"]["position"].update(step=2)),
    "other loss": in_state(lambda document: document["state"]["position"]["log"][0].update(loss=0.1000001)),
    "no checksum": in_state(lambda document: document.pop("sha256")),
    "name is a number": in_state(lambda document: document.update(tensors=5)),
    "name is missing": in_state(lambda document: document.update(tensors="tensors-0.safetensors")),
    "name is a folder": in_state(lambda document: document.update(tensors="")),
    "tensors are gone": lambda folder: next(folder.glob("tensors-*")).unlink(),
    "empty tensors": in_tensors(lambda _: b""),
    "half the tensors": in_tensors(lambda data: data[: len(data) // 2]),
    "one bit": in_tensors(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "one more byte": in_tensors(lambda data: data + b"\0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed(name, tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(moment(1))
    DAMAGE[name](tmp_path)
    with pytest.raises(TrainingError) as caught:
        folder.load()
    assert caught.value.code == "damaged-checkpoint"
    assert str(tmp_path) in caught.value.message
    assert str(tmp_path) in caught.value.hint
    assert "train again" in caught.value.hint


def test_a_checkpoint_names_no_file_elsewhere(tmp_path):
    """Only files of its own folder are read, whatever state.json says."""
    folder = CheckpointFolder(tmp_path / "checkpoint")
    folder.save(moment(1))
    (path,) = folder.folder.glob("tensors-*")
    path.rename(tmp_path / path.name)
    in_state(lambda document: document.update(tensors=f"../{path.name}"))(folder.folder)
    with pytest.raises(TrainingError) as caught:
        folder.load()
    assert caught.value.code == "damaged-checkpoint"


# What an unfinished run is about


def unfinished(**changes):
    recipe = build_recipe("cnn", {"epochs": 7, "augment": "zoom 0.1, flip both", "lr": 3e-4})
    return replace(UnfinishedRun(source="/photos of Zoë", recipe=recipe, seed=5), **changes)


def code_of(function, *arguments):
    with pytest.raises(TrainingError) as caught:
        function(*arguments)
    return caught.value.code, caught.value.hint


def test_files_that_settings_name_are_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    kept = str(tmp_path / "elsewhere/mine.npy")
    settings = [
        ("cnn", {"first_layer_filters": "filters/mine.npy"}, "first_layer_filters", "filters/mine.npy", ""),
        ("cnn", {"first_layer_filters": kept}, "first_layer_filters", kept, ""),
        ("finetune", {"backbone": "timm/resnet18", "weights": "w.safetensors"}, "weights", "w.safetensors", ""),
        ("finetune", {"backbone": "local-dir:nets/mine"}, "backbone", "nets/mine", "local-dir:"),
    ]
    for i, (name, changes, key, path, prefix) in enumerate(settings):
        recipe, run = build_recipe(name, changes), tmp_path / f"run{i}"
        monkeypatch.chdir(tmp_path)
        begin_run(run, unfinished(recipe=recipe))
        assert read_run(run).recipe == recipe
        monkeypatch.chdir(tmp_path / "there")
        found = read_run(run)
        assert found.recipe == replace(recipe, **{key: f"{prefix}{tmp_path / path}"})
        require_same_images(run, found, "abc")
        monkeypatch.chdir(tmp_path)
        assert read_run(run).recipe == found.recipe


def test_what_names_no_file_stays_as_it_is_in_another_folder(tmp_path, monkeypatch):
    for i, (name, changes) in enumerate(
        [("cnn", {"first_layer_filters": "sobel"}), ("finetune", {}), ("scratch", {})]
    ):
        begin_run(tmp_path / str(i), unfinished(recipe=build_recipe(name, changes)))
        monkeypatch.chdir("/")
        assert read_run(tmp_path / str(i)).recipe == build_recipe(name, changes)
        monkeypatch.chdir(tmp_path)


def test_a_run_is_begun_read_and_finished(tmp_path):
    assert code_of(read_run, tmp_path)[0] == "nothing-to-resume"
    begin_run(tmp_path, unfinished(seed=4))
    begin_run(tmp_path, unfinished())  # nothing was learned yet: nothing is lost
    assert read_run(tmp_path) == unfinished()
    CheckpointFolder(checkpoint_folder(tmp_path)).save(moment(1))
    code, hint = code_of(begin_run, tmp_path, unfinished(seed=6))
    assert code == "unfinished-run"
    assert f"tellapart train --resume {tmp_path}" in hint
    assert read_run(tmp_path) == unfinished()
    require_same_images(tmp_path, unfinished(), "abc")
    assert read_run(tmp_path) == unfinished(fingerprint="abc")
    require_same_images(tmp_path, read_run(tmp_path), "abc")
    assert code_of(require_same_images, tmp_path, read_run(tmp_path), "xyz")[0] == "resume-changed"
    (tmp_path / "model.onnx").write_bytes(b"mine")
    (tmp_path / ".model.onnx.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"mine")
    finish_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "model.onnx"]
    assert code_of(read_run, tmp_path)[0] == "nothing-to-resume"


def test_a_probe_has_nothing_to_go_on_from(tmp_path):
    run = unfinished(recipe=build_recipe("probe"))
    begin_run(tmp_path, run)
    require_same_images(tmp_path, run, "abc")
    assert list(tmp_path.iterdir()) == []
    begin_run(tmp_path, unfinished())
    CheckpointFolder(checkpoint_folder(tmp_path)).save(moment(1))
    assert code_of(begin_run, tmp_path, run)[0] == "unfinished-run"


def test_a_new_run_takes_nothing_from_the_remains_of_an_old_one(tmp_path):
    """A process that was killed while it deleted a finished run's checkpoint leaves tensors without a run."""
    CheckpointFolder(checkpoint_folder(tmp_path)).save(moment(1))
    begin_run(tmp_path, unfinished())
    assert CheckpointFolder(checkpoint_folder(tmp_path)).load() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[:50],
        lambda data: data.replace(b'"seed"', b'"seeds"'),
        lambda data: data.replace(b'"epochs": 7', b'"epochs": -7'),
        lambda data: data.replace(b'"epochs": 7', b'"epoch": 7'),
        lambda data: data.replace(b'"name": "cnn"', b'"name": "magic"'),
        lambda data: data.replace(b'"name": "cnn"', b'"name": ["cnn"]'),
        lambda _: b"null",
        lambda _: b"[]",
        lambda _: b'{"settings": []}',
        lambda _: b"\xff\xfe",
    ],
)
def test_a_damaged_note_is_said_to_be_damaged(change, tmp_path):
    begin_run(tmp_path, unfinished())
    path = checkpoint_folder(tmp_path) / "run.json"
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    code, hint = code_of(read_run, tmp_path)
    assert code == "damaged-checkpoint"
    assert str(checkpoint_folder(tmp_path)) in hint
