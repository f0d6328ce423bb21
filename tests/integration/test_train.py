"""From a folder to a model file and honest numbers: what is written agrees with what was done."""

import json
import shutil
import time
import tomllib

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk
from tiny_run import EVERY_RUN

import tellapart
from tellapart.errors import DataError, RecipeError, StorageError
from tellapart.inference import embed
from tellapart.inference.model import read_model
from tellapart.storage import locked_folder
from tellapart.training.recipes import build_recipe

CLASS_NAMES = ["blobs", "dots", "stripes"]


def read_table(run, name):
    return pl.read_parquet(run.folder / f"{name}.parquet")


def split_paths(run, split):
    return set(read_table(run, "dataset").filter(split=split, status="used")["path"])


# What a run leaves


def test_the_run_folder(run):
    assert {path.name for path in run.folder.iterdir() if not path.name.startswith(".")} == EVERY_RUN
    assert not list(run.folder.glob("*.tmp")) + list(run.folder.glob(".*.tmp"))
    assert run.model_path == run.folder / "model.onnx"
    with locked_folder(run.folder):
        pass  # the lock is gone


def test_the_report_is_the_one_returned(run):
    text = (run.folder / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(run.report))


def test_the_reports_keys(run):
    report = run.report
    assert {
        "schema_version",
        "test",
        "calibration",
        "verification",
        "dataset",
        "recipe",
        "seed",
        "seconds",
    } <= set(report)
    assert {"n", "accuracy", "log_loss", "class_names", "confusion_matrix", "per_class"} <= set(report["test"])
    assert set(report["test"]["accuracy"]) == {"value", "low", "high"}
    assert set(report["test"]["per_class"]) == set(CLASS_NAMES)
    assert report["test"]["class_names"] == CLASS_NAMES
    assert report["test"]["n"] == 12
    assert report["seed"] == 0
    assert {"read", "features", "fit", "verify", "test", "total"} <= set(report["seconds"])
    assert all(seconds >= 0 for seconds in report["seconds"].values())


def test_where_the_time_went(photos, tmp_path):
    waits = {"reading": ("read", 0.2), "features": ("features", 0.3), "verifying": ("verify", 0.5)}
    waited = {}

    def progress(stage, *_):
        if stage in waits and stage not in waited:
            waited[stage] = waits[stage]
            time.sleep(waits[stage][1])

    begun = time.perf_counter()
    seconds = tellapart.train(photos, out=tmp_path / "run", progress=progress).report["seconds"]
    assert waited == waits
    assert all(seconds[name] >= least for name, least in waits.values())
    total = seconds.pop("total")
    assert sum(seconds.values()) - 0.01 <= total <= time.perf_counter() - begun + 0.01  # 0.01: they are rounded


def test_the_counts_add_up(run):
    found = run.report["dataset"]
    assert found["seen"] == found["used"] + found["refused"] + found["duplicates"] + found["skipped"] == 60
    assert found["used"] == 60
    assert found["reasons"] == {}
    assert found["classes"] == dict.fromkeys(CLASS_NAMES, 20)
    assert found["splits"] == {"train": dict.fromkeys(CLASS_NAMES, 16), "test": dict.fromkeys(CLASS_NAMES, 4)}


def test_the_tables_agree_with_the_report(run, photos):
    dataset, predictions = read_table(run, "dataset"), read_table(run, "predictions")
    assert set(dataset["path"]) == {str(path) for path in photos.rglob("*.*g")}
    assert dataset["status"].unique().to_list() == ["used"]
    assert len(split_paths(run, "test")) == run.report["test"]["n"]
    assert predictions["path"].is_unique().all()
    truth = dataset.select("path", "split", "label")
    joined = predictions.join(truth, on=["path", "split", "label"])  # path, part and class as in the dataset
    assert joined.height == predictions.height
    assert set(predictions.filter(split="test")["path"]) == split_paths(run, "test")
    probs = np.array(predictions["probs"].to_list())
    assert probs.sum(axis=1) == pytest.approx(np.ones(len(probs)), abs=1e-5)
    assert predictions["predicted"].to_list() == [CLASS_NAMES[k] for k in probs.argmax(axis=1)]
    assert predictions["prob"].to_list() == pytest.approx(probs.max(axis=1).tolist())


def test_the_numbers_are_those_of_the_predictions(run):
    test = read_table(run, "predictions").filter(split="test")
    labels, predicted = test["label"].to_list(), test["predicted"].to_list()
    probs = np.array(test["probs"].to_list())
    probs /= probs.sum(axis=1, keepdims=True)  # float32 sums to 1 only nearly
    reported = run.report["test"]
    right = sum(label == answer for label, answer in zip(labels, predicted, strict=True))
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    assert reported["n"] == len(labels)
    assert reported["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert reported["accuracy"]["low"] == pytest.approx(interval.low, abs=1e-9)
    assert reported["accuracy"]["high"] == pytest.approx(interval.high, abs=1e-9)
    assert reported["log_loss"]["value"] == pytest.approx(sk.log_loss(labels, probs, labels=CLASS_NAMES), abs=1e-5)
    confusion = sk.confusion_matrix(labels, predicted, labels=CLASS_NAMES)
    assert reported["confusion_matrix"] == confusion.tolist()
    precision, recall, _, n = sk.precision_recall_fscore_support(
        labels, predicted, labels=CLASS_NAMES, zero_division=np.nan
    )
    for k, name in enumerate(CLASS_NAMES):
        found = reported["per_class"][name]
        assert found["n"] == n[k]
        assert found["recall"]["value"] == pytest.approx(recall[k])
        assert found["precision"]["value"] == pytest.approx(precision[k])
    assert 0.5 < reported["accuracy"]["value"] <= 1  # it learned something: chance is 1 in 3


def test_the_numbers_are_those_of_the_model_file(run):
    """Read again from disk, asked again from the image files."""
    test = read_table(run, "predictions").filter(split="test")
    found = tellapart.load(run.model_path).predict(test["path"].to_list())
    assert [prediction.label for prediction in found] == test["predicted"].to_list()
    assert [prediction.verdict for prediction in found] == test["verdict"].to_list()
    expected = np.array(test["probs"].to_list())
    assert np.array([prediction.probs for prediction in found]) == pytest.approx(expected, abs=1e-5)


def test_the_model_card_is_the_reports(run):
    card = read_model(run.model_path).card
    assert card.metrics == run.report["test"]
    assert card.dataset == run.report["dataset"]
    assert card.verification == run.report["verification"]
    assert card.calibration.method == "cross-fit" == run.report["calibration"]["method"]
    assert card.calibration.n == 48  # all training images, each answered by a model that did not see it
    assert card.conformal.coverage == 0.95
    assert {"tellapart", "openvino", "onnx"} <= set(card.software)


def test_the_file_was_verified_against_the_fitted_model(run):
    found = run.report["verification"]
    assert found["n"] == 48
    assert found["top1_differs"] <= found["ties"]
    assert 0 <= found["max_abs_difference"] < 0.2
    assert 0 <= found["familiarity_max_abs_difference"] < 0.5


def test_the_report_says_what_calibration_did(run):
    calibration = run.report["calibration"]
    before, after = calibration["before"], calibration["after"]
    assert set(before) == set(after) == {"log_loss", "ece"}
    assert after["log_loss"] <= before["log_loss"]


def test_the_recipe_file_builds_the_same_recipe(run):
    settings = tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8"))
    name = settings.pop("name")
    assert build_recipe(name, settings) == build_recipe("probe")


# The same again


def test_the_same_seed_gives_the_same_model_and_computes_no_feature(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "iter_outputs", lambda *_: pytest.fail("a feature was computed twice"))
    again = tellapart.train(photos, out=tmp_path / "again")
    first, second = read_model(run.model_path).card, read_model(again.model_path).card
    assert first.graph_sha256 == second.graph_sha256
    assert again.report["test"] == run.report["test"]
    assert again.report["dataset"] == run.report["dataset"]
    assert split_paths(again, "test") == split_paths(run, "test")


def test_another_seed_draws_other_test_images(run, photos, tmp_path):
    other = tellapart.train(photos, out=tmp_path / "other", seed=1)
    assert other.report["seed"] == 1
    assert split_paths(other, "test") != split_paths(run, "test")
    assert len(split_paths(other, "test")) == 12
    assert read_model(other.model_path).card.graph_sha256 != read_model(run.model_path).card.graph_sha256
    assert other.report["dataset"]["fingerprint"] != run.report["dataset"]["fingerprint"]


def test_names_and_places_of_files_do_not_matter(run, photos, tmp_path):
    """The same pictures under other names: the same split, the same model."""
    for name in CLASS_NAMES:
        (tmp_path / "renamed" / name / "deeper").mkdir(parents=True)
        for i, path in enumerate(sorted((photos / name).iterdir(), reverse=True)):
            shutil.copy(path, tmp_path / "renamed" / name / "deeper" / f"{i:03}{path.suffix}")
    other = tellapart.train(tmp_path / "renamed", out=tmp_path / "run")
    assert other.report["dataset"]["fingerprint"] == run.report["dataset"]["fingerprint"]
    assert other.report["test"]["confusion_matrix"] == run.report["test"]["confusion_matrix"]


def test_a_run_may_be_repeated_in_its_folder(photos, tmp_path):
    first = tellapart.train(photos, out=tmp_path / "run")
    second = tellapart.train(photos, out=tmp_path / "run", seed=3)
    assert first.folder == second.folder
    assert json.loads((tmp_path / "run" / "report.json").read_text())["seed"] == 3
    assert read_model(second.model_path).card.metrics == second.report["test"]
    assert {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")} == EVERY_RUN


def test_settings(photos, tmp_path):
    settings = {
        "input_size_px": 64,
        "resize": "crop",
        "feature_stages": (5, 7),
        "feature_pooling": "mean",
        "test_fraction": 0.3,
    }
    small = tellapart.train(photos, out=tmp_path / "run", settings=settings)
    card = read_model(small.model_path).card
    assert (card.preprocess.input_size_px, card.preprocess.resize) == (64, "crop")
    assert card.embedding_dim == 112 + 320
    assert small.report["test"]["n"] == 18
    saved = tomllib.loads((small.folder / "recipe.toml").read_text(encoding="utf-8"))
    reported = json.loads((small.folder / "report.json").read_text(encoding="utf-8"))["recipe"]
    assert saved == {key: reported[key] for key in saved}  # it also says what was chosen
    assert saved["feature_stages"] == [5, 7]
    assert tellapart.load(small.model_path).predict(photos / "dots" / "dots1.png")[0].label == "dots"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"recipe": "prob"}, "unknown-recipe"),
        ({"settings": {"input_size": 64}}, "unknown-setting"),
        ({"settings": {"input_size_px": "large"}}, "bad-setting"),
        ({"settings": {"feature_stages": (9,)}}, "bad-setting"),
    ],
)
def test_wrong_settings_leave_no_model(photos, tmp_path, options, code):
    with pytest.raises(RecipeError) as caught:
        tellapart.train(photos, out=tmp_path / "run", **options)
    assert caught.value.code == code
    assert not list(tmp_path.rglob("*.onnx"))


# evaluate


def copy_split(run, split, folder):
    """The images of one part, as class folders."""
    for path, label in read_table(run, "dataset").filter(split=split).select("path", "label").iter_rows():
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / label)
    return folder


def test_evaluate_on_the_test_images_gives_the_reports_numbers(run, tmp_path):
    found = tellapart.evaluate(run.model_path, copy_split(run, "test", tmp_path / "test"))
    assert found["test"]["confusion_matrix"] == run.report["test"]["confusion_matrix"]
    assert found["test"]["accuracy"] == run.report["test"]["accuracy"]
    assert found["test"]["log_loss"] == pytest.approx(run.report["test"]["log_loss"], abs=1e-5)
    assert found["test"]["verdicts"] == run.report["test"]["verdicts"]
    assert sum(verdict["n"] for verdict in found["test"]["verdicts"].values()) == 12
    assert (found["dataset"]["seen"], found["dataset"]["used"]) == (12, 12)


def test_evaluate_with_an_open_model_on_all_images(classifier, photos):
    calls = []
    found = tellapart.evaluate(classifier, photos, progress=lambda *call: calls.append(call))
    assert found["test"]["n"] == 60
    assert np.sum(found["test"]["confusion_matrix"], axis=1).tolist() == [20, 20, 20]
    assert ("testing", 60, 60) in calls


def test_evaluate_counts_what_it_cannot_use(classifier, run, tmp_path):
    source = copy_split(run, "test", tmp_path / "test")
    (source / "horses").mkdir()
    some_image = next((source / "dots").iterdir())
    shutil.copy(next((source / "blobs").iterdir()), source / "horses" / "other.png")
    (source / "horses" / "other.png").write_bytes(some_image.read_bytes() + b"more")
    (source / "dots" / "words.png").write_bytes(b"words")
    found = tellapart.evaluate(classifier, source)["dataset"]
    assert found["reasons"] == {"unknown-class": 1, "not-an-image": 1}
    assert (found["seen"], found["used"], found["refused"]) == (14, 12, 2)


@pytest.mark.parametrize(
    ("names", "code"), [([], "no-images"), (["cat", "dog"], "class-mismatch"), (None, "source-not-found")]
)
def test_evaluate_on_something_else(classifier, photos, tmp_path, names, code):
    source = tmp_path / "source"
    for name in names or []:
        shutil.copytree(photos / "dots", source / name)
    if names == []:
        source.mkdir()
    with pytest.raises(DataError) as caught:
        tellapart.evaluate(classifier, source)
    assert caught.value.code == code


# Folders as people have them


@pytest.fixture
def messy(photos, tmp_path):
    """The photos, and what lies beside them in real folders."""
    folder = shutil.copytree(photos, tmp_path / "messy")
    image = (folder / "dots" / "dots1.png").read_bytes()
    other = (folder / "dots" / "dots3.png").read_bytes()
    (folder / "dots" / "cut.png").write_bytes(image[: len(image) // 2])
    (folder / "dots" / "words.jpg").write_bytes(b"these are words")
    (folder / "dots" / "empty.png").write_bytes(b"")
    (folder / "dots" / "copy of dots1.png").write_bytes(image)
    (folder / "dots" / "deeper").mkdir()
    (folder / "dots" / "deeper" / "another copy.png").write_bytes(image)
    (folder / "stripes" / "conflict.png").write_bytes(other)  # with dots3.png
    (folder / "dots" / ".hidden.png").write_bytes(image)
    (folder / "dots" / "Thumbs.db").write_bytes(b"system")
    (folder / "dots" / "notes.txt").write_text("notes")
    (folder / "beside.png").write_bytes(image)
    return folder


def test_every_file_is_accounted_for(messy, tmp_path):
    done = tellapart.train(messy, out=tmp_path / "run")
    found = done.report["dataset"]
    assert found["seen"] == 60 + 10 == sum(path.is_file() for path in messy.rglob("*"))
    assert found["reasons"] == {
        "duplicate": 2,
        "label-conflict": 2,
        "empty-file": 1,
        "not-an-image": 1,
        "truncated-image": 1,
        "hidden": 1,
        "system": 1,
        "other": 1,
        "outside-class-folder": 1,
    }
    assert (found["used"], found["refused"], found["duplicates"], found["skipped"]) == (59, 5, 2, 4)
    assert found["classes"] == {"blobs": 20, "dots": 19, "stripes": 20}
    table = read_table(done, "dataset")
    assert set(table["path"]) == {str(path) for path in messy.rglob("*") if path.is_file()}
    reasons = dict(table.select("path", "reason").iter_rows())
    assert reasons[str(messy / "dots" / "cut.png")] == "truncated-image"
    assert reasons[str(messy / "dots" / "dots3.png")] == reasons[str(messy / "stripes" / "conflict.png")]
    unused = table.filter(pl.col("status") != "used")
    assert unused["split"].null_count() == unused.height
    asked = set(read_table(done, "predictions")["path"])
    assert asked.isdisjoint(unused["path"])


def test_a_class_left_with_too_few_images(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "few")
    for i, path in enumerate(sorted((folder / "dots").iterdir())):
        if i >= 4:
            path.write_bytes(b"words")
    with pytest.raises(DataError) as caught:
        tellapart.train(folder, out=tmp_path / "run")
    assert caught.value.code == "too-few-images"
    assert "16 more were refused" in caught.value.message
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_two_runs_in_one_folder(photos, tmp_path):
    with locked_folder(tmp_path / "run"), pytest.raises(StorageError) as caught:
        tellapart.train(photos, out=tmp_path / "run")
    assert caught.value.code == "run-locked"
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_an_interrupted_run_leaves_the_earlier_model(photos, tmp_path):
    earlier = tellapart.train(photos, out=tmp_path / "run").model_path.read_bytes()

    def interrupt(stage, done, _total):
        if stage == "testing" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tellapart.train(photos, out=tmp_path / "run", seed=5, progress=interrupt)
    assert (tmp_path / "run" / "model.onnx").read_bytes() == earlier
    with locked_folder(tmp_path / "run"):
        pass


# A test folder of one's own


def parts_layout(photos, folder, *, val):
    """Train, test and perhaps val folders: of 20 images of a class 5 are for testing, 5 for val."""
    for name in CLASS_NAMES:
        for i, path in enumerate(sorted((photos / name).iterdir())):
            part = "test" if i < 5 else "val" if val and i < 10 else "train"
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / part / name)
    return folder


@pytest.mark.parametrize(("val", "method", "calibrated_on"), [(False, "cross-fit", 45), (True, "calib", 15)])
def test_folders_of_ones_own_are_kept(photos, tmp_path, val, method, calibrated_on):
    source = parts_layout(photos, tmp_path / "parts", val=val)
    done = tellapart.train(source, out=tmp_path / "run")
    assert split_paths(done, "test") == {str(path) for path in (source / "test").rglob("*.*g")}
    assert split_paths(done, "calib") == {str(path) for path in (source / "val").rglob("*.*g")}
    assert split_paths(done, "train") == {str(path) for path in (source / "train").rglob("*.*g")}
    assert done.report["test"]["n"] == 15
    assert done.report["calibration"]["method"] == method
    assert done.report["calibration"]["n"] == calibrated_on
    found = tellapart.evaluate(done.model_path, source)
    assert found["dataset"]["seen"] == found["test"]["n"] == 15
    assert found["test"]["confusion_matrix"] == done.report["test"]["confusion_matrix"]


def test_test_images_are_not_looked_at_before_the_model_is_done(photos, tmp_path, monkeypatch):
    """Their embeddings are never computed for training: only the finished file answers them."""
    source = parts_layout(photos, tmp_path / "parts", val=False)
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    embedded = []
    iter_outputs = embed.iter_outputs

    def noted(engine, preprocess, sources):
        sources = list(sources)
        embedded.extend(sources)
        return iter_outputs(engine, preprocess, sources)

    monkeypatch.setattr(embed, "iter_outputs", noted)
    tellapart.train(source, out=tmp_path / "run")
    assert set(embedded) == {str(path) for path in (source / "train").rglob("*.*g")}


def test_a_training_image_that_is_also_a_test_image_is_kept_for_testing(photos, tmp_path):
    source = parts_layout(photos, tmp_path / "parts", val=False)
    leaked = min((source / "test" / "dots").iterdir())
    shutil.copy(leaked, source / "train" / "dots" / f"again{leaked.suffix}")
    done = tellapart.train(source, out=tmp_path / "run")
    assert done.report["dataset"]["reasons"] == {"duplicate": 1}
    assert str(leaked) in split_paths(done, "test")
    assert done.report["test"]["n"] == 15
    assert len(split_paths(done, "train")) == 45


def test_a_broken_test_image_is_counted(photos, tmp_path):
    source = parts_layout(photos, tmp_path / "parts", val=False)
    victim = min((source / "test" / "dots").glob("*.png"))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    done = tellapart.train(source, out=tmp_path / "run")
    assert done.report["test"]["n"] == 14
    assert done.report["dataset"]["reasons"] == {"truncated-image": 1}
    assert done.report["dataset"]["used"] == 59


# An image that goes away in the middle of a run


def test_an_image_that_goes_away_during_the_run(photos, tmp_path):
    """The features are known, the file is not there any more: an error with a code, and no model."""
    folder = shutil.copytree(photos, tmp_path / "going")

    def remove(stage, done, total):
        if (stage, done) == ("features", total):
            for path in (folder / "dots").glob("*.png"):
                path.unlink(missing_ok=True)

    with pytest.raises(tellapart.TellapartError) as caught:
        tellapart.train(folder, out=tmp_path / "run", progress=remove)
    assert caught.value.code == "file-not-found"
    assert "dots" in caught.value.message
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_what_an_earlier_loop_logged_does_not_stay(photos, tmp_path):
    for name in ("log.jsonl", "curves.svg"):
        (tmp_path / name).write_text("of another run")
    tellapart.train(photos, out=tmp_path)
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "curves.svg").exists()
