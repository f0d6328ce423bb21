"""The tutorial's script in Keras against `tellapart train --recipe cnn`: same images, network, epochs and batch size.

    python bench/cnn.py ../shared/data/cats_dogs [--seeds 5]

Both are whole processes with nothing cached, taking turns in one run. Both learn from the same nine tenths of the train
folder; the last tenth is Keras' validation data and our calibration data. The test folder is measured once at the end.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from train import command, keras_python, save, timed


def link_parts(source: Path, out: Path) -> None:
    """A folder of links: every tenth training image goes to ``val``."""
    for part in ("train", "test"):
        for class_folder in sorted(path for path in (source / part).iterdir() if path.is_dir()):
            for number, path in enumerate(sorted(class_folder.iterdir())):
                target = "val" if part == "train" and number % 10 == 0 else part
                link = out / target / class_folder.name / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def ours(folder: Path, seed: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [command(), "train", str(folder), "--recipe", "cnn", "--seed", str(seed), "--json"]
        arguments += ["--set", "val_fraction=0", "--out", f"{scratch}/run"]
        seconds, _, output = timed(arguments, TELLAPART_CACHE=f"{scratch}/cache")
    return seconds, json.loads(output)["test"]["accuracy"]["value"]


def theirs(python: str, folder: Path, seed: int) -> tuple[float, float]:
    script = str(Path(__file__).with_name("rival_keras.py"))
    seconds, _, output = timed([python, script, str(folder), str(seed)], TF_CPP_MIN_LOG_LEVEL="3")
    return seconds, float(output.strip().split()[-1])


def row(name: str, runs: list[tuple[float, float]]) -> dict:
    seconds, accuracies = zip(*runs, strict=True)
    spread = statistics.stdev(accuracies) / len(runs) ** 0.5 if len(runs) > 1 else 0.0
    return {
        "what": name,
        "n": len(runs),
        "seconds_min": round(min(seconds), 2),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_max": round(max(seconds), 2),
        "accuracy_mean": round(statistics.mean(accuracies), 4),
        "accuracy_standard_error": round(spread, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keras", help="a Python that has Keras; without it an environment is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = options.keras or keras_python(Path(scratch))
        folder = Path(scratch) / "photos"
        link_parts(options.folder, folder)
        runs: dict[str, list[tuple[float, float]]] = {"Keras": [], "tellapart": []}
        for seed in range(options.seeds):
            if python:
                runs["Keras"].append(theirs(python, folder, seed))
            runs["tellapart"].append(ours(folder, seed))
            print({name: taken[-1] for name, taken in runs.items() if taken}, flush=True)
    rows = [row(name, taken) for name, taken in runs.items() if taken]
    if python:
        keras_seconds = rows[0]["seconds_median"]
        for line in rows:
            line["times_faster_than_keras"] = round(keras_seconds / line["seconds_median"], 2)
    save("cnn", rows)
    for line in rows:
        print(line)


if __name__ == "__main__":
    main()
