"""Whatever stops a run, it goes on as if it had never been stopped: Ctrl-C, a full disk, somebody's mistake.

``kill -9`` has a file of its own: test_killed_at_random.py.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny_run import RUN_FILES, SETTINGS, begin, outcome

torch = pytest.importorskip("torch")

import tellapart  # noqa: E402
from tellapart import pipeline  # noqa: E402
from tellapart.errors import StorageError, TellapartError  # noqa: E402
from tellapart.inference.model import read_model  # noqa: E402
from tellapart.storage import locked_folder  # noqa: E402

COMMAND = [sys.executable, "-c", "from tellapart.cli import main; main()"]


# Ctrl-C


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As many as the processes have: sums in another order would have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(*arguments):
    """A process of its own, which can be interrupted, whatever the tests were started from."""
    return subprocess.Popen(
        [*COMMAND, *(str(argument) for argument in arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def await_file(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.005)


def chosen(settings):
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_first_ctrl_c_leaves_a_model_and_a_run_to_go_on_with(photos, tmp_path):
    settings = {**SETTINGS, "input_size_px": 32, "epochs": 40}
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = command("train", photos, "--recipe", "cnn", "--out", run, *chosen(settings))
    await_file(run / "log.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"tellapart train --resume {run}" in said
    assert "Traceback" not in said
    report = json.loads((run / "report.json").read_text())
    assert report["fit"]["interrupted"] is True
    assert 1 <= report["fit"]["epochs_trained"] < 40
    assert report["test"]["n"] == 12
    assert all(p.label for p in tellapart.load(run / "model.onnx").predict(sorted(photos.rglob("*0.jpg"))))
    assert (run / "checkpoint" / "state.json").exists()
    again = command("train", "--resume", run)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "epoch 40/40" in said
    assert not (run / "checkpoint").exists()
    assert {path.name for path in run.iterdir()} == RUN_FILES
    tellapart.train(photos, recipe="cnn", settings=settings, out=whole)
    assert outcome(run) == outcome(whole)
    paths = sorted(photos.rglob("*.jpg"))
    answers = [[p.probs for p in tellapart.load(folder / "model.onnx").predict(paths)] for folder in (run, whole)]
    assert answers[0] == answers[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_second_ctrl_c_stops_at_once(photos, tmp_path):
    """With steps that take long; and the run can still be gone on with."""
    settings = {
        **SETTINGS,
        "input_size_px": 224,
        "layers": "conv 48x7, pool 8, conv 8x3, average",
        "batch_size": 64,
    }
    run = tmp_path / "run"
    process = command("train", photos, "--recipe", "cnn", "--out", run, *chosen(settings))
    await_file(run / "log.jsonl", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # two at once would be one
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 10
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (run / "model.onnx").exists()
    assert (run / "checkpoint" / "run.json").exists()
    finished = pipeline.resume(run)
    assert not finished.interrupted
    assert finished.report["fit"]["epochs_trained"] == 3
    assert not (run / "checkpoint").exists()


class Stop:
    """A progress that types Ctrl-C after some step of the training."""

    def __init__(self, step):
        self.steps = step

    def __call__(self, stage, *_):
        self.steps -= stage == "training"
        if not self.steps:
            self.steps = -1
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def stopped(photos, tmp_path):
    """A run that was stopped in its second epoch."""
    run = begin(photos, tmp_path / "run", progress=Stop(8))
    assert run.interrupted
    return run.folder


def test_a_stopped_run_has_a_model_of_its_own(stopped, photos):
    report = json.loads((stopped / "report.json").read_text())
    assert report["fit"]["interrupted"] is True
    assert report["fit"]["epochs_trained"] == report["fit"]["best_epoch"] == 1
    assert report["verification"]["top1_differs"] <= report["verification"]["ties"]
    assert len((stopped / "log.jsonl").read_text().splitlines()) == 1
    assert tellapart.load(stopped / "model.onnx").predict([str(next(photos.rglob("*.png")))])[0].label


def test_a_run_may_be_stopped_before_its_first_epoch_ends(photos, tmp_path):
    run = begin(photos, tmp_path / "run", progress=Stop(1))
    assert run.interrupted
    assert run.report["fit"]["epochs_trained"] == 0
    assert read_model(run.model_path)
    finished = pipeline.resume(run.folder)
    begin(photos, tmp_path / "whole")
    assert outcome(finished.folder) == outcome(tmp_path / "whole")


def test_going_on_tells_of_the_epochs_behind(stopped):
    told = []
    pipeline.resume(stopped, on_epoch=told.append)
    assert [entry.epoch for entry in told] == [1, 2, 3]


# Mistakes


def refused(function, *arguments, **options):
    with pytest.raises(TellapartError) as caught:
        function(*arguments, **options)
    return caught.value


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_unfinished_run_is_not_overwritten(stopped, photos):
    before = contents(stopped)
    for recipe in ("cnn", "probe"):
        error = refused(tellapart.train, photos, recipe=recipe, out=stopped)
        assert error.code == "unfinished-run"
        assert f"tellapart train --resume {stopped}" in error.hint
    assert contents(stopped) == before
    pipeline.resume(stopped)
    assert refused(pipeline.resume, stopped).code == "nothing-to-resume"
    begin(photos, stopped)  # a finished one may be


def test_there_must_be_something_to_go_on_with(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty", run.folder):
        assert refused(pipeline.resume, folder).code == "nothing-to-resume"
    assert not (tmp_path / "missing").exists()


def test_two_runs_never_share_a_folder(stopped, photos):
    before = contents(stopped)
    with locked_folder(stopped):
        assert refused(pipeline.resume, stopped).code == "run-locked"
        assert refused(begin, photos, stopped).code == "run-locked"
    assert contents(stopped) == before


@pytest.mark.parametrize("change", ["removed", "added", "altered", "moved"])
def test_a_run_goes_on_with_its_own_images_only(change, photos, tmp_path):
    source = tmp_path / "photos"
    shutil.copytree(photos, source)
    run = begin(source, tmp_path / "run", progress=Stop(8)).folder
    first, second, *_ = sorted((source / "dots").iterdir())
    if change == "removed":
        first.unlink()
    elif change == "added":
        (source / "dots" / "new.png").write_bytes(second.read_bytes() + b"\0")
    elif change == "altered":
        first.write_bytes(first.read_bytes() + b"\0")
    else:
        first.rename(source / "blobs" / "new.png")
    before = contents(run / "checkpoint")
    error = refused(pipeline.resume, run)
    assert error.code == "resume-changed"
    assert str(source) in error.message
    assert contents(run / "checkpoint") == before
    shutil.rmtree(source)
    assert refused(pipeline.resume, run).code == "source-not-found"
    shutil.copytree(photos, source)
    assert not pipeline.resume(run).interrupted


def spoil_state(folder):
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 2'))


def spoil_tensors(folder):
    (path,) = folder.glob("tensors-*")
    path.write_bytes(path.read_bytes()[:-1])


def spoil_recipe(folder):
    """Another network than the one whose weights were saved."""
    path = folder / "run.json"
    path.write_text(path.read_text().replace("conv 6x3", "conv 7x3"))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_state,
        spoil_tensors,
        spoil_recipe,
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: next(folder.glob("tensors-*")).unlink(),
    ],
)
def test_a_damaged_checkpoint_is_no_checkpoint(spoil, stopped, photos):
    before = contents(stopped / "checkpoint")
    spoil(stopped / "checkpoint")
    assert contents(stopped / "checkpoint") != before
    error = refused(pipeline.resume, stopped)
    assert error.code == "damaged-checkpoint"
    assert "train again" in error.hint
    shutil.rmtree(stopped / "checkpoint")  # as the hint says
    assert not begin(photos, stopped).interrupted


@pytest.mark.parametrize("writes", [1, 3, 4, 6, 9, 14])
def test_a_full_disk_loses_no_more_than_what_was_not_written(writes, photos, tmp_path, monkeypatch):
    begin(photos, tmp_path / "whole")
    real, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count > 2 * writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = refused(begin, photos, run)
    assert isinstance(error, StorageError)
    assert error.code == "cannot-write"
    assert "free some space" in error.hint
    if (run / "checkpoint" / "run.json").exists():
        pipeline.resume(run)
    else:
        begin(photos, run)
    assert outcome(run) == outcome(tmp_path / "whole")
    assert {path.name for path in run.iterdir()} == RUN_FILES
