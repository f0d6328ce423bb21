"""`tellapart predict` on a folder of 1,000 photos against the floor, in one run.

    python bench/predict.py ../shared/data/cats_dogs [--repeats 3]

Three figures: images a second of the whole process; images a second from the first row to the last; and the time from start
to the first row on standard output.
"""

import argparse
import itertools
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from floor import measure_floor
from train import command, save

IMAGES = 1_000


def predict_once(model: Path, folder: Path) -> tuple[float, float]:
    """Seconds to the first row, and to the end."""
    start = time.perf_counter()
    process = subprocess.Popen([command(), "predict", str(model), str(folder)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()  # the names of the columns
    process.stdout.readline()
    first = time.perf_counter() - start
    rows = 1 + sum(1 for _ in process.stdout)
    assert process.wait() == 0
    assert rows == IMAGES, rows
    return first, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    photos = sorted(path for path in options.folder.rglob("*.jpg") if "test" in path.parts)[:IMAGES]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        for number, path in enumerate(photos):
            (folder / f"{number:05}.jpg").symlink_to(path.resolve())
        subprocess.run([command(), "train", str(options.folder), "--out", f"{scratch}/run", "-q"], check=True)
        runs = []
        for _ in range(options.repeats):
            floor = measure_floor(folder, repeats=1)["floor_seconds"]
            first, whole = predict_once(Path(scratch) / "run/model.onnx", folder)
            runs.append(
                {"floor": floor, "first": first, "whole": whole, "steady": (whole - first) * IMAGES / (IMAGES - 1)}
            )
            print({name: round(value, 3) for name, value in runs[-1].items()})
    rows = []
    for name, seconds in itertools.product(("whole", "steady"), [runs]):
        rates = [IMAGES / run[name] for run in seconds]
        shares = [run["floor"] / run[name] for run in seconds]
        rows.append(
            {
                "what": {"whole": "whole process", "steady": "first row to last"}[name],
                "n": len(runs),
                "images_per_s_median": round(statistics.median(rates)),
                "share_of_floor_min": round(min(shares), 2),
                "share_of_floor_median": round(statistics.median(shares), 2),
                "share_of_floor_max": round(max(shares), 2),
                "first_row_s_median": round(statistics.median(run["first"] for run in runs), 2),
            }
        )
    save("predict", rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
