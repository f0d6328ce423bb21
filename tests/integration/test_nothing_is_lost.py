"""Whatever stops a run, it goes on as if it had never been stopped: Ctrl-C, kill -9, a full disk, somebody's mistake.

Run as a script, this file kills runs at random moments: ``python test_nothing_is_lost.py PHOTOS FOLDER KILLS``.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import tellapart  # noqa: E402
from tellapart import pipeline  # noqa: E402
from tellapart.errors import StorageError, TellapartError  # noqa: E402
from tellapart.inference.model import read_model  # noqa: E402
from tellapart.report import present  # noqa: E402
from tellapart.storage import locked_folder, sha256  # noqa: E402
from tellapart.training import gradient, loop  # noqa: E402, F401  imported here, once for all the processes that are killed

SETTINGS = {
    "input_size_px": 12,
    "layers": "conv 6x3, batchnorm, pool 2, dropout 0.3, conv 5x2, flatten, dense 7",
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "one-cycle",
    "ema_decay": 0.9,
    "lr": 0.01,
    "augment": "zoom 0.2, rotation 10, mixup 0.2",
}
CLOCK = ("images_per_s", "seconds")
RUN_FILES = {
    *(
        "model.onnx",
        "report.html",
        "model_card.md",
        "report.json",
        "recipe.toml",
        "dataset.parquet",
        "predictions.parquet",
    ),
    *("log.jsonl", "curves.svg", ".lock"),
}
KILLS = 200
COMMAND = [sys.executable, "-c", "from tellapart.cli import main; main()"]


def outcome(folder):
    """All that a finished run must have in common with one that was never stopped, without its clocks."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for entry in log:
        for key in CLOCK:
            del entry[key]
    report = json.loads((folder / "report.json").read_text())
    fit = {key: report["fit"][key] for key in ("best_epoch", "epochs_trained", "interrupted", "verdict")}
    model = read_model(folder / "model.onnx").card.graph_sha256  # of weights and temperature
    return {"model": model, "log": log, "fit": fit, "test": report["test"], "dataset": report["dataset"]}


def begin(source, out, **options):
    return tellapart.train(source, recipe="cnn", settings=SETTINGS, out=out, **options)


# Killed at random moments


def kill_at_random(photos, folder, kills):
    """Kill runs until ``kills`` have died of it; returns what the parent saw, or raises.

    A run that was killed is gone on with by the next process, and killed again, until it comes to its end. Then its
    outcome is compared with that of a run that nobody killed, and a new run begins.
    """
    rng = random.Random(0)  # noqa: S311  moments, no secrets
    whole = folder / "whole"
    wait(start(photos, whole))  # fills the cache
    shutil.rmtree(whole)
    began = time.perf_counter()
    require(wait(start(photos, whole)) == 0, "the run that nobody kills fails")
    seconds = time.perf_counter() - began
    expected = outcome(whole)
    seen = {"killed": 0, "finished": 0, "with_checkpoint": 0, "with_report": 0, "restarted": 0, "half_written": 0}
    while seen["killed"] < kills:
        run = folder / f"run{seen['finished']}"
        process = start(photos, run)
        if seen["killed"] % 10 == 9 and not (run / "report.json").exists():
            await_end(
                run / "report.json", process
            )  # the last files are written in a moment that chance seldom meets
        else:
            time.sleep(rng.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        status = wait(process)
        if status == 0:
            require(outcome(run) == expected, f"{run} differs from the run that nobody killed")
            names = {path.name for path in run.iterdir()}
            require(names == RUN_FILES, f"{run} has {sorted(names ^ RUN_FILES)}")
            seen["finished"] += 1
            continue
        require(status == -signal.SIGKILL, f"a process ended with {status} in {run}")
        seen["killed"] += 1
        require_whole(run, seen)
    return seen


def start(photos, run):
    """A process that begins the run, or goes on with it; the imports are already done."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        torch.set_num_threads(1)
        # Heat maps by covering places would be most of a run, and nothing is written meanwhile.
        present.occlusion_maps = lambda *_: {}
        # A checkpoint after every step: the more is written, the more there is to be hit.
        loop.time = SimpleNamespace(monotonic=lambda: 1e9 * time.monotonic(), perf_counter=time.perf_counter)
        begun = (run / "checkpoint" / "run.json").exists()
        if (run / "model.onnx").exists():
            read_model(run / "model.onnx")  # never a half one
        if begun:
            pipeline.resume(run)
        else:  # it was killed before its first step; or after its last, and is made once more
            begin(photos, run)
        status = 0
    except BaseException:  # noqa: BLE001  a child ends here, whatever happens
        traceback.print_exc()
    finally:
        os._exit(status)


def await_end(path, process):
    """Until a file appears or the process has ended, which is then left for ``wait``."""
    while not path.exists() and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)


def wait(process):
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def require(holds, message):
    """Also where assertions are switched off: this part runs as a script."""
    if not holds:
        raise RuntimeError(message)


def require_whole(run, seen):
    """Nothing under its final name is half-written."""
    checkpoint = run / "checkpoint"
    for path in (run / "report.json", checkpoint / "run.json"):
        if path.exists():
            json.loads(path.read_bytes())
    if (run / "log.jsonl").exists():
        for line in (run / "log.jsonl").read_text().splitlines():
            json.loads(line)
    if (run / "curves.svg").exists():
        require((run / "curves.svg").read_text().endswith("</svg>\n"), "half a picture")
    seen["with_report"] += (
        run / "report.json"
    ).exists()  # killed while the run's files were written, or after that
    if (checkpoint / "state.json").exists():
        document = json.loads((checkpoint / "state.json").read_bytes())
        if (checkpoint / "run.json").exists():  # else the run was over, and this was being deleted
            digest = sha256((checkpoint / document["tensors"]).read_bytes())
            state = json.dumps(document["state"], sort_keys=True)
            require(sha256((digest + state).encode()) == document["sha256"], "state and tensors differ")
            seen["with_checkpoint"] += 1
    elif not (checkpoint / "run.json").exists():
        seen["restarted"] += 1
    seen["half_written"] += any(run.rglob("*.tmp"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no kill -9 here")
def test_a_run_that_is_killed_at_any_moment_goes_on_or_begins_anew(photos, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TELLAPART_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, __file__, str(photos), str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["killed"] == KILLS
    assert seen["finished"] >= 3, seen
    assert seen["with_checkpoint"] >= 20, seen
    assert seen["with_report"] >= 1, seen
    assert seen["half_written"] >= 1, f"no kill hit a write: the moments are badly chosen: {seen}"


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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(kill_at_random(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
