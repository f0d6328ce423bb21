"""Every command: what it prints, what it writes, and how it refuses."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from tellapart import __version__
from tellapart.cli import app
from tellapart.inference import rows as rows_module
from tellapart.training import checkpoint, loop


def call(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine images in natural order, one broken, one hidden."""
    folder = tmp_path_factory.mktemp("new")
    for i in range(1, 12):
        Image.fromarray(np.full((20, 20, 3), 20 * i, np.uint8)).save(folder / f"img{i}.png")
    (folder / "img3.png").write_bytes(b"not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def names(n=11):
    return [f"img{i}.png" for i in range(1, n + 1)]


def test_version_and_help():
    assert call("--version").output.strip() == f"tellapart {__version__}"
    for command in ("train", "evaluate", "compare", "predict", "serve", "info", "demo"):
        assert command in call("--help").output
        assert call(command, "--help").exit_code == 0


def test_train_prints_counts_metrics_and_next_step(photos, tmp_path):
    done = call("train", photos, "--out", tmp_path / "run", "--set", "folds=3", "--seed", 7)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert f"{report['dataset']['seen']:,} files seen = {report['dataset']['used']:,} used" in done.output
    assert "accuracy" in done.output
    assert "Next: tellapart predict" in done.output
    assert report["recipe"]["folds"] == 3
    assert report["seed"] == 7


def test_train_as_json_and_quiet(photos, tmp_path):
    done = call("train", photos, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["test"]["n"] > 0
    assert call("train", photos, "--out", tmp_path / "run", "--quiet").stdout == ""


def test_evaluate(run, photos):
    assert "accuracy" in call("evaluate", run.model_path, photos).stdout
    document = json.loads(call("evaluate", run.model_path, photos, "--json").stdout)
    assert document["test"]["n"] == document["dataset"]["used"]


def test_info(run):
    assert run.report["dataset"]["fingerprint"]
    card = json.loads(call("info", run.model_path, "--json").stdout)
    assert card["schema_version"] == 3
    assert all(key in card for key in ("familiarity", "conformal", "decision_rules", "calibration", "metrics"))
    said = " ".join(call("info", run.model_path).stdout.split())
    assert ", ".join(card["class_names"]) in said
    assert "95% coverage" in said
    assert "also 80%, 90%, 99%" in said
    assert f"familiarity below {card['familiarity']['threshold']:.4g}" in said


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("probs", [False, True])
def test_predict_writes_one_row_a_file(run, folder, tmp_path, suffix, probs):
    out = tmp_path / f"predictions{suffix}"
    done = call("predict", run.model_path, folder, "-o", out, *(["--probs"] if probs else []))
    assert done.exit_code == 0, done.output
    if suffix == ".jsonl":
        table = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        table = (pl.read_csv(out) if suffix == ".csv" else pl.read_parquet(out)).to_dicts()
    assert [row["path"] for row in table] == [str(folder / name) for name in names()]
    assert table[2]["verdict"] == "error"
    assert table[2]["error"] == "not-an-image"
    assert table[2]["label"] is None
    assert {row["verdict"] for row in table} <= {"sure", "unsure", "unfamiliar", "error"}
    expected = ["path", "label", "prob", "verdict", "familiarity", "prediction_set", "error"]
    classes = [f"prob_{name}" for name in sorted(run.report["dataset"]["classes"])]
    assert list(table[0]) == expected + (classes if probs else [])
    if probs:
        assert sum(table[0][name] for name in classes) == pytest.approx(1, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "something was left behind"


def test_predict_to_standard_output(run, folder):
    done = call("predict", run.model_path, folder)
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in table] == [str(folder / name) for name in names()]
    as_json = [json.loads(line) for line in call("predict", run.model_path, folder, "--json").stdout.splitlines()]
    assert [row["label"] for row in as_json] == [row["label"] or None for row in table]


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["{}/img2.png", "{}/img1.png"], None, ["img2.png", "img1.png"]),
        (["{}/img1*.png"], None, ["img1.png", "img10.png", "img11.png"]),
        (["-"], "{}/img5.png\n\n{}/img4.png\n", ["img5.png", "img4.png"]),
        (["{}/missing.png", "{}/img1.png"], None, ["missing.png", "img1.png"]),
    ],
)
def test_predict_takes_files_globs_and_lists(run, folder, arguments, stdin, expected):
    done = call(
        "predict",
        run.model_path,
        *[argument.format(folder) for argument in arguments],
        stdin=stdin and stdin.format(folder, folder),
    )
    paths = [row["path"] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert paths == [str(folder / name) for name in expected]


def interrupt_after(monkeypatch, count):
    real = rows_module.row

    def row(*arguments, **options):
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(rows_module, "row", row)


def test_interrupted_prediction_is_resumed(run, folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    call("predict", run.model_path, folder, "-o", whole)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        done = call("predict", run.model_path, folder, "-o", out)
    assert done.exit_code == 130
    assert "--resume" in done.stderr
    assert not out.exists()
    part = next(tmp_path.glob(".out.csv.*.part"))
    assert len(part.read_text().splitlines()) == 6
    with part.open("a") as file:
        file.write('{"path": "half a row')
    asked = []
    real = rows_module.row
    monkeypatch.setattr(rows_module, "row", lambda said, *a, **k: asked.append(said.path) or real(said, *a, **k))
    assert call("predict", run.model_path, folder, "-o", out, "--resume").exit_code == 0
    assert [path for path in asked if path] == [str(folder / name) for name in names()[6:]]
    assert out.read_text() == whole.read_text()


def test_resume_of_other_files_is_refused(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        call("predict", run.model_path, folder, "-o", out)
    done = call("predict", run.model_path, folder / "img7.png", "-o", out, "--resume")
    assert done.exit_code == 1
    assert "resume-mismatch" in done.stderr


def refusals(run, photos, tmp_path):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "single/cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "single/cat/1.png")
    return [
        (["train", tmp_path / "missing"], "source-not-found"),
        (["train", tmp_path / "file.txt"], "damaged-table"),
        (["train", tmp_path / "empty"], "no-images"),
        (["train", tmp_path / "single"], "single-class"),
        (["train", photos, "--recipe", "magic"], "unknown-recipe"),
        (["train", photos, "--set", "fold=3"], "unknown-setting"),
        (["train", photos, "--set", "folds=three"], "bad-setting"),
        (["train", photos, "--set", "folds"], "bad-setting"),
        (["train", photos, "--out", tmp_path / "file.txt"], "cannot-write"),
        (["evaluate", tmp_path / "none.onnx", photos], "model-not-found"),
        (["evaluate", tmp_path / "file.txt", photos], "damaged-model"),
        (["evaluate", run.model_path, tmp_path / "single"], "class-mismatch"),
        (["predict", run.model_path, photos, "-o", tmp_path / "out.xls"], "bad-output"),
        (["predict", run.model_path, tmp_path / "empty", "-o", tmp_path / "out.csv"], "nothing-to-predict"),
        (["info", tmp_path / "file.txt"], "damaged-model"),
        (["explain", run.model_path, tmp_path / "file.txt", "--out", tmp_path / "pages"], "not-an-image"),
        (["explain", tmp_path / "none.onnx", photos, "--out", tmp_path / "pages"], "model-not-found"),
        (["train", "--resume", tmp_path], "nothing-to-resume"),
        (["train", photos, "--preview-augmentation", "--recipe", "probe"], "bad-setting"),
        (["train", photos, "--recipe", "cnn", "--set", "layers=conv 5x3, pol 2, flatten"], "bad-setting"),
    ]


def test_mistakes_get_a_code_and_no_traceback(run, photos, tmp_path):
    for arguments, code in refusals(run, photos, tmp_path):
        done = call(*arguments)
        assert done.exit_code == 1, arguments
        assert f"[{code}]" in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.output
    done = call("train", tmp_path / "missing", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "source-not-found"
    assert call("train").exit_code == 2
    for other in (
        ["--set", "epochs=3"],
        ["--recipe", "cnn"],
        ["--seed", "1"],
        ["--out", "x"],
        ["--preview-augmentation"],
    ):
        assert call("train", "--resume", tmp_path, *other).exit_code == 2, other


def test_demo(tmp_path):
    done = call("demo", "--out", tmp_path / "demo")
    assert done.exit_code == 0, done.output
    assert "1,797" in done.output
    report = json.loads((tmp_path / "demo/run/report.json").read_text())
    assert report["dataset"]["used"] + report["dataset"]["duplicates"] == 1797
    assert report["test"]["accuracy"]["value"] > 0.9


def test_what_went_to_standard_output_cannot_be_resumed(run, folder, monkeypatch):
    interrupt_after(monkeypatch, 6)
    done = call("predict", run.model_path, folder)
    assert done.exit_code == 130
    assert "interrupted" in done.stderr
    assert "--resume" not in done.stderr


def test_explain_writes_its_pages(run, folder, tmp_path):
    done = call("explain", run.model_path, folder / "img7.png", "--out", tmp_path / "pages", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["label"] in ("blobs", "dots", "stripes")
    assert Path(said["html"]).read_text().count("<img") > 3
    assert Path(said["png"]).stat().st_size > 1000


def test_after_an_interruption_the_next_step_is_one_that_works(photos, tmp_path, monkeypatch):
    """Before a checkpoint the same command again; after one, --resume."""
    arguments = ["train", photos, "--recipe", "cnn", "--out", tmp_path / "run", "--set", "input_size_px=16"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "augment", interrupt)
        done = call(*arguments)
    assert done.exit_code == 130
    assert "type the same again" in done.stderr
    with monkeypatch.context() as patch:
        saved = checkpoint.CheckpointFolder.save
        patch.setattr(checkpoint.CheckpointFolder, "save", lambda *a: (saved(*a), interrupt()))
        done = call(*arguments)
    assert done.exit_code == 130
    assert f"tellapart train --resume {tmp_path / 'run'}" in done.stderr
    done = call("train", "--resume", tmp_path / "run", "--quiet")
    assert (done.exit_code, done.output) == (0, "")


def interrupt(*_arguments):
    raise KeyboardInterrupt


def test_a_table_trains_and_is_measured_with_the_same_options(photos, tmp_path):
    rows = [f"{path};{path.parent.name};{path.parent.name}" for path in sorted(photos.rglob("*.*"))]
    table = tmp_path / "labels.csv"
    table.write_text("file;species;other\n" + "\n".join(rows) + "\n")
    chosen = ["--image-column", "file", "--label-column", "species", "--root", photos]
    assert "[ambiguous-columns]" in call("train", table, "--root", photos, "--out", tmp_path / "run").stderr
    done = call("train", table, *chosen, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["dataset"]["used"] == len(rows)
    measured = json.loads(call("evaluate", report["model"], table, *chosen, "--json").stdout)
    assert measured["test"]["n"] == len(rows)


def test_several_labels_an_image(photos, tmp_path):
    """From the table to a row of predictions with the labels in one cell."""
    table = tmp_path / "labels.csv"
    rows = [
        (path, int("blobs" in path.name or "stripes" in path.name), int("dots" in path.name), i % 2)
        for i, path in enumerate(sorted(photos.rglob("*.*")))
    ]
    table.write_text("file,warm,dotted,odd\n" + "".join(f"{p},{a},{b},{c}\n" for p, a, b, c in rows))
    done = call(
        "train", table, "--labels", "warm,dotted,odd", "--root", photos, "--out", tmp_path / "run", "--json"
    )
    assert done.exit_code == 0, done.output
    test = json.loads(done.stdout)["test"]
    assert test["map"]["low"] <= test["map"]["value"] <= test["map"]["high"]
    assert set(test["per_class"]) == {"warm", "dotted", "odd"}
    done = call("predict", tmp_path / "run/model.onnx", photos, "--probs")
    first = next(csv.DictReader(io.StringIO(done.stdout)))
    assert set(first["label"].split(";")) <= {"warm", "dotted", "odd", ""}
    assert (
        "average precision"
        in call(
            "evaluate", tmp_path / "run/model.onnx", table, "--labels", "warm,dotted,odd", "--root", photos
        ).stdout
    )


def test_what_check_finds_train_leaves_out(photos, tmp_path):
    """A planted wrong label and a broken file: on the page, in the table, in the list, and out of training."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "dots/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    fixes = tmp_path / "fixes.csv"
    done = call("check", folder, "--out", tmp_path / "found", "--fix-list", fixes, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["counts"]["unreadable"] == 1
    assert said["dataset"]["seen"] == 61
    table = pl.read_parquet(tmp_path / "found/issues.parquet")
    assert len(table) == sum(said["counts"].values())
    assert "broken.jpg" in (tmp_path / "found/check.html").read_text()
    kept = [line for line in fixes.read_text().splitlines() if "broken.jpg" in line or line.startswith("path,")]
    fixes.write_text("\n".join(kept) + "\n")
    done = call("train", folder, "--exclude", fixes, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["dataset"]["reasons"] == {"excluded": 1}
    fixes.write_text("path,action\nnowhere.jpg,exclude\n")
    assert "[no-path]" in call("train", folder, "--exclude", fixes, "--out", tmp_path / "run").stderr


def test_check_needs_no_labels(photos, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    for path in list(photos.rglob("*.*"))[:8]:
        shutil.copy(path, folder)
    shutil.copy(next(folder.iterdir()), folder / "copy.png")
    done = call("check", folder, "--out", tmp_path / "found")
    assert done.exit_code == 0, done.output
    assert "duplicate" in done.stdout


def predicted(run, *arguments):
    done = call("predict", run.model_path, *arguments)
    assert done.exit_code == 0, done.output
    return [(line["path"], line["label"], line["error"]) for line in csv.DictReader(io.StringIO(done.stdout))]


def test_predict_takes_tables_too(run, folder, tmp_path):
    """With labels, without any, and with the images inside: a row for every row, the same answers as from the files."""
    expected = predicted(run, folder / "img7.png", folder / "missing.png")
    for number, text in enumerate(("file,label\n{0},a\n{1},b\n", "file\n{0}\n{1}\n")):
        table = tmp_path / f"{number}.csv"
        table.write_text(text.format("img7.png", "missing.png"))
        assert predicted(run, table, "--root", folder) == expected
    pl.DataFrame({"image": [(folder / "img7.png").read_bytes()], "label": ["a"]}).write_parquet(
        tmp_path / "in.parquet"
    )
    [(path, label, error)] = predicted(run, tmp_path / "in.parquet")
    assert (label, error) == expected[0][1:]
    assert "in.parquet" in path


def test_class_names_are_shown_as_they_are(photos, tmp_path):
    """Square brackets are markup to the library that draws the tables."""
    folder = tmp_path / "photos"
    for name in ("dots", "blobs"):
        shutil.copytree(photos / name, folder / f"[{name}]")
    shutil.copytree(photos / "stripes", folder / "[" / "b]")
    done = call("train", folder, "--out", tmp_path / "[red]")
    assert done.exit_code == 0, done.output
    assert "[dots]" in done.stdout
    assert "[red]/model.onnx" in done.stdout
    assert "[dots]" in call("info", tmp_path / "[red]/model.onnx").stdout


def test_preview_says_where_its_picture_is_to_machines_too(photos, tmp_path):
    settings = ["--recipe", "cnn", "--set", "input_size_px=16", "--out", tmp_path / "run"]
    said = json.loads(call("train", photos, *settings, "--preview-augmentation", "--json").stdout)
    assert Image.open(said["picture"]).width > 100
    assert not (tmp_path / "run/model.onnx").exists()
