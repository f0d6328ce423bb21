"""`tellapart train` as a fresh process against the floor, in one run; rivals beside it.

    python bench/train.py ../shared/data/cats_dogs [--repeats 3] [--rivals]

The floor (bench/floor.py) is the time to decode the same images and run the backbone over them, and nothing else. Nothing is
cached: every run has an empty cache folder. The rivals are the tutorial's network in Keras, in an environment this script
makes, and the same backbone in eager PyTorch; each is left out with a message where it cannot be installed.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from floor import measure_floor

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def timed(command: list[str], **environment: str) -> tuple[float, float, str]:
    """Seconds, peak memory in MB and standard output of a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}, text=True
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1000, output


def command() -> str:
    return str(Path(sys.executable).with_name("tellapart"))


def train_once(folder: Path) -> tuple[float, float, dict]:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [command(), "train", str(folder), "--out", f"{scratch}/run", "--json"]
        seconds, megabytes, output = timed(arguments, TELLAPART_CACHE=f"{scratch}/cache")
    return seconds, megabytes, json.loads(output)


def save(name: str, rows: list[dict]) -> None:
    """Keep the figures with where and when they were measured; rows that say so themselves keep theirs."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    where = {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list({**rows[0], **where}), lineterminator="\n")
        table.writeheader()
        table.writerows({**where, **row} for row in rows)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def summary(name: str, seconds: list[float], floor: float, **more: object) -> dict:
    return {
        "what": name,
        "n": len(seconds),
        "seconds_min": round(min(seconds), 2),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_max": round(max(seconds), 2),
        "ratio_to_floor": round(statistics.median(seconds) / floor, 2),
        "accuracy": more.get("accuracy", ""),
        "peak_mb": more.get("peak_mb", ""),
    }


def keras_python(scratch: Path) -> str | None:
    """The Python of a new environment with Keras; None, with a message, where it cannot be made."""
    python = scratch / "keras/bin/python"
    made = subprocess.run(
        f"{sys.executable} -m venv {scratch}/keras && {python} -m pip install -q tensorflow-cpu pillow scipy",
        shell=True,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        print("left out: Keras cannot be installed here")
        return None
    return str(python)


def rivals(folder: Path, floor: float) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scripts = {"PyTorch eager, same backbone": (sys.executable, "rival_torch.py")}
        keras = keras_python(Path(scratch))
        if keras:
            scripts["Keras, the tutorial's script"] = (keras, "rival_keras.py")
        for name, (python, script) in scripts.items():
            try:
                seconds, megabytes, output = timed([python, str(Path(__file__).with_name(script)), str(folder)])
            except SystemExit as error:
                print(f"left out: {name}: {error}")
                continue
            rows.append(
                summary(name, [seconds], floor, accuracy=output.strip().split()[-1], peak_mb=round(megabytes))
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rivals", action="store_true")
    options = parser.parse_args()
    floors, seconds, peaks = [], [], []
    for _ in range(options.repeats):
        floors.append(measure_floor(options.folder, repeats=1)["floor_seconds"])
        taken, peak, report = train_once(options.folder)
        seconds.append(taken)
        peaks.append(peak)
        print(f"floor {floors[-1]:.2f} s, train {taken:.2f} s, ratio {taken / floors[-1]:.2f}", report["seconds"])
    floor = statistics.median(floors)
    accuracy = report["test"]["accuracy"]["value"]
    rows = [
        summary("floor: decode + backbone", floors, floor),
        summary("tellapart train", seconds, floor, accuracy=accuracy, peak_mb=round(max(peaks))),
    ]
    rows += rivals(options.folder, floor) if options.rivals else []
    save("train", rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
