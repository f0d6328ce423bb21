"""``kill -9`` at any moment: the run goes on as if it had never been killed.

Run as a script, this file does the killing: ``python test_killed_at_random.py PHOTOS FOLDER KILLS``.
"""

import faulthandler
import gc
import importlib
import json
import math
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
from tiny_run import RUN_FILES, begin, outcome

from tellapart.inference.model import read_model
from tellapart.storage import sha256

KILLS = 200
TASKS = Path("/proc/self/task")  # the threads of this process
SECONDS_A_PROCESS_MAY_TAKE = 60

# What takes long to import and starts no thread. A process with threads must not be forked: what a thread holds at that
# moment is held for ever in the child. Polars and OpenVINO start some, so each child imports those itself.
IMPORTED_ONCE = (
    *("jinja2", "onnx", "sklearn.linear_model", "torch"),
    *("tellapart.data.cache", "tellapart.data.near_duplicates", "tellapart.evaluation.decide"),
    *("tellapart.pages.template", "tellapart.training.loop", "tellapart.training.resume"),
)


def kill_at_random(photos, folder, kills):
    """Kill runs until ``kills`` have died of it; returns what the parent saw, or raises.

    A run that was killed is gone on with by the next process, and killed again, until it comes to its end. Then its
    outcome is compared with that of a run that nobody killed, and a new run begins.
    """
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    gc.freeze()  # else each child's collector touches, and so copies, all that was imported
    rng = random.Random(0)  # noqa: S311  moments, no secrets
    whole = folder / "whole"
    seconds = math.inf
    for _ in range(3):  # the first fills the cache; other programs may disturb one of the others
        shutil.rmtree(whole, ignore_errors=True)
        process = start(photos, whole)
        began = time.perf_counter()
        require(wait(process) == 0, "the run that nobody kills fails")
        seconds = min(seconds, time.perf_counter() - began)
    expected = outcome(whole)
    seen = {"killed": 0, "finished": 0, "with_checkpoint": 0, "with_report": 0, "restarted": 0, "half_written": 0}
    while seen["killed"] < kills:
        run = folder / f"run{seen['finished']}"
        process = start(photos, run)
        if seen["killed"] % 10 == 9 and not (run / "report.json").exists():
            # The last files are written in a moment that chance seldom meets.
            await_end(run / "report.json", process)
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
    """A process that has imported all there is to import, and begins the run or goes on with it."""
    require(len([*TASKS.iterdir()]) == 1, "a process with threads would be forked")
    imported, says_so = os.pipe()
    process = os.fork()
    if not process:
        os.close(imported)
        try:
            faulthandler.dump_traceback_later(SECONDS_A_PROCESS_MAY_TAKE, exit=True)
            go_on(photos, run, lambda: os.close(says_so))
            status = 0
        except BaseException:  # noqa: BLE001  a child ends here, whatever happens
            traceback.print_exc()
            status = 1
        finally:
            os._exit(status)
    os.close(says_so)
    os.read(imported, 1)  # until the child has closed its end
    os.close(imported)
    return process


def go_on(photos, run, when_imported):
    import torch

    from tellapart import pipeline
    from tellapart.report import present
    from tellapart.training import gradient, loop  # noqa: F401  the first brings PyTorch's part

    torch.set_num_threads(1)
    # Heat maps by covering places would be most of a run, and nothing is written meanwhile.
    present.occlusion_maps = lambda *_: {}
    # A checkpoint after every step: the more is written, the more there is to be hit.
    loop.time = SimpleNamespace(monotonic=lambda: 1e9 * time.monotonic(), perf_counter=time.perf_counter)
    # What a killed process has written is there without this; it helps against power cuts, and may take minutes.
    os.fsync = lambda _: None
    when_imported()
    if (run / "model.onnx").exists():
        read_model(run / "model.onnx")  # never a half one
    if (run / "checkpoint" / "run.json").exists():
        pipeline.resume(run)
    else:  # it was killed before its first step; or after its last, and is made once more
        begin(photos, run)


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


@pytest.mark.skipif(not TASKS.exists(), reason="needs fork, and the list of threads of Linux")
def test_a_run_that_is_killed_at_any_moment_goes_on_or_begins_anew(photos, tmp_path):
    pytest.importorskip("torch")
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **one_thread, "TELLAPART_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, __file__, str(photos), str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,  # a hang is found by the child itself, long before
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["killed"] == KILLS
    assert seen["finished"] >= 3, seen
    assert seen["with_checkpoint"] >= 20, seen
    assert seen["with_report"] >= 1, seen
    assert seen["half_written"] >= 1, f"no kill hit a write: the moments are badly chosen: {seen}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(kill_at_random(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
