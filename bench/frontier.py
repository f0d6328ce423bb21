"""Accuracy against wall-clock: `tellapart train --budget`, timm in a plain loop and fastai, one backbone and its
weights for all.

    python bench/frontier.py SOURCE [SOURCE ...] [--label-column NAME] [--budgets 30 120 600] [--seeds 3] [--tools auto timm]

A SOURCE is anything `tellapart train` takes whose images are files. For each seed its images are dealt out to
train and test once, and every tool learns from that train and is asked about that test. Nothing is cached.
The tools: auto, probe, timm, fastai (where it is installed).
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tellapart.data.check import check_contents
from tellapart.data.sources import open_dataset
from tellapart.data.split import split
from tellapart.records import SourceOptions, no_progress
from train import RESULTS, command, cpu_name, timed

HERE = Path(__file__).parent


def deal_out(source: str, options: SourceOptions, seed: int, folder: Path) -> None:
    """Links to the images of train and test, in class folders; a test folder of the source's own is kept."""
    dataset = split(check_contents(open_dataset(source, options), no_progress), seed=seed, calib_fraction=0.0001)
    for part, table in (("train", dataset.used("train", "val", "calib")), ("test", dataset.used("test"))):
        for i, (path, label) in enumerate(table.table.select("path", "label").iter_rows()):
            place = folder / part / label / f"{i}{Path(path).suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(path).resolve())


def source_name(source: Path) -> str:
    """The folder's name, or that of the folder a label file lies in."""
    return source.parent.name if source.suffix else source.name


def run_tool(tool: str, folder: Path, budget: int, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        if tool in ("auto", "probe"):
            arguments = [command(), "train", str(folder), "--out", f"{scratch}/run", "--seed", str(seed), "--json"]
            arguments += ["--budget", f"{budget}s"] if tool == "auto" else []
        else:
            arguments = [
                sys.executable, str(HERE / "rival_finetune.py"), tool, str(folder), "--seconds", str(budget), "--seed", str(seed),
            ]  # fmt: skip
        seconds, megabytes, output = timed(arguments, TELLAPART_CACHE=f"{scratch}/cache")
    if tool in ("auto", "probe"):
        report = json.loads(output)
        found = {"accuracy": report["test"]["accuracy"]["value"], "n": report["test"]["n"]}
        recipe = report["recipe"]
        found["what"] = f"{recipe['name']} {recipe['input_size_px']} px {recipe.get('backbone', '')}".rstrip()
    else:
        found = json.loads(output.strip().splitlines()[-1])
        found["what"] = tool
    return {**found, "seconds": round(seconds, 1), "peak_mb": round(megabytes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--label-column", default="")
    parser.add_argument("--budgets", type=int, nargs="+", default=[30, 120, 600])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tools", nargs="+", default=["auto", "probe", "timm", "fastai"])
    given = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    where = {"processor": cpu_name(), "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d")}
    RESULTS.mkdir(exist_ok=True)
    fields = ["source", "tool", "budget_s", "seed", "accuracy", "n", "seconds", "what", "peak_mb", *where]
    path = RESULTS / "frontier.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, fields, lineterminator="\n", extrasaction="ignore")
        if new:
            table.writeheader()
        for source in given.sources:
            for seed in range(given.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    deal_out(source, SourceOptions(label_column=given.label_column), seed, Path(folder))
                    for tool in given.tools:
                        for budget in given.budgets if tool != "probe" else [0]:
                            try:
                                found = run_tool(tool, Path(folder), budget, seed)
                            except SystemExit as error:
                                print(f"{tool} at {budget} s: left out: {error}", flush=True)
                                continue
                            row = {
                                "source": source_name(Path(source)),
                                "tool": tool,
                                "budget_s": budget,
                                "seed": seed,
                                **found,
                            }
                            table.writerow({**row, **where})
                            file.flush()
                            print(row, flush=True)


if __name__ == "__main__":
    main()
