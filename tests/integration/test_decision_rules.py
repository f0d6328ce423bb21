"""Decision rules from the command line to the rows of predict."""

import csv
import io
import json

import polars as pl
import pytest
from typer.testing import CliRunner

import tellapart
from tellapart.cli import app
from tellapart.errors import RecipeError

TEXT = "dots: likely precision 0.9, possible recall 1, unlikely; stripes: yes cost 10:1, no"
CLASS_NAMES = ("blobs", "dots", "stripes")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ruled(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruled") / "run"
    return tellapart.train(photos, settings={"decision_rules": TEXT}, out=folder)


def test_the_report_measures_the_bands_of_the_model_file(ruled):
    rules = tellapart.load(ruled.model_path).card.decision_rules
    assert [rule.class_name for rule in rules] == ["dots", "stripes"]
    assert [band.goal for band in rules[0].bands] == ["precision 0.9", "recall 1", ""]
    assert [[band["name"] for band in rule["bands"]] for rule in ruled.report["test"]["bands"]] == [
        [band.name for band in rule.bands] for rule in rules
    ]
    said = pl.read_parquet(ruled.folder / "predictions.parquet").filter(split="test")
    of_dots = [probs[CLASS_NAMES.index("dots")] for probs in said["probs"]]
    limits = [band.min_prob for band in rules[0].bands if band.min_prob is not None]
    at_or_above = [sum(prob >= limit for prob in of_dots) for limit in limits]
    found = [band["n"] for band in ruled.report["test"]["bands"][0]["bands"] if band["min_prob"] is not None]
    assert [sum(found[: i + 1]) for i in range(len(found))] == at_or_above
    assert at_or_above[-1] == len(of_dots)
    for rule in ruled.report["test"]["bands"]:
        in_table = said[f"band_{rule['class_name']}"].to_list()
        assert [in_table.count(band["name"]) for band in rule["bands"]] == [band["n"] for band in rule["bands"]]


def test_predict_has_a_column_for_each_rule(ruled, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    images = [photos / "dots/dots1.png", photos / "stripes/stripes1.png", broken]
    printed = list(csv.DictReader(io.StringIO(call("predict", ruled.model_path, *images).stdout)))
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert call("predict", ruled.model_path, *images, "-o", tmp_path / f"rows{suffix}").exit_code == 0
    with (tmp_path / "rows.csv").open() as file:
        assert list(csv.DictReader(file)) == printed
    tables = [pl.read_ndjson(tmp_path / "rows.jsonl"), pl.read_parquet(tmp_path / "rows.parquet")]
    for column in ("band_dots", "band_stripes"):
        said = [cells[column] or None for cells in printed]
        assert all(table[column].to_list() == said for table in tables)
        assert said[2] is None
    assert {cells["band_dots"] for cells in printed[:2]} <= {"likely", "possible", "unlikely"}
    python = tellapart.load(ruled.model_path).predict(str(images[0]))[0]
    assert dict(python.bands) == {"dots": printed[0]["band_dots"], "stripes": printed[0]["band_stripes"]}


def test_what_is_printed(ruled, photos):
    said = call("info", ruled.model_path).stdout
    assert "bands of dots" in said
    assert "likely (precision 0.9)" in said
    said = call("evaluate", ruled.model_path, photos).stdout
    assert "bands of stripes" in said
    assert "cost 10:1" in said


def test_a_model_without_rules_is_as_before(run, photos):
    assert "band" not in call("predict", run.model_path, photos / "dots").stdout
    assert "bands" not in run.report["test"]
    assert "bands of" not in call("info", run.model_path).stdout


def test_a_wrong_rule_is_said_before_anything_is_done(photos, tmp_path):
    done = call(
        "train", photos, "--out", tmp_path / "run", "--set", "decision_rules=dogs: yes above 0.5, no", "--json"
    )
    assert json.loads(done.stdout)["error"]["code"] == "bad-setting"
    assert "^^^^" in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError):
        tellapart.train(photos, settings={"decision_rules": "dots: yes"}, out=tmp_path / "run")


def test_labels_that_do_not_exclude_each_other(photos, tmp_path):
    rows = [
        {"path": str(path), "spotted": int(k < 2), "rough": int(k > 0)}
        for k, name in enumerate(CLASS_NAMES)
        for path in sorted((photos / name).iterdir())
    ]
    made = tellapart.train(
        pl.DataFrame(rows),
        tellapart.SourceOptions(labels=("spotted", "rough"), outside_root=True),
        settings={"decision_rules": "rough: yes recall 0.9, no"},
        out=tmp_path / "run",
    )
    (rule,) = made.report["test"]["bands"]
    assert [band["name"] for band in rule["bands"]] == ["yes", "no"]
    assert sum(band["n"] for band in rule["bands"]) == made.report["test"]["n"]
    assert rule["bands"][1]["recall_at_or_above"]["value"] == 1
