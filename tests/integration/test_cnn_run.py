"""Networks from scratch, from a folder to a model file; and what every recipe must hold to."""

import json
import shutil
import sys
import tomllib
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest
from tiny_run import EVERY_RUN
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import tellapart  # noqa: E402
from tellapart import pipeline  # noqa: E402
from tellapart.cli import app  # noqa: E402
from tellapart.errors import TellapartError  # noqa: E402
from tellapart.imaging.preprocess import load_input  # noqa: E402
from tellapart.inference.model import read_model  # noqa: E402
from tellapart.inference.predict import Classifier  # noqa: E402
from tellapart.training import gradient, loop  # noqa: E402
from tellapart.training.objective import Classification  # noqa: E402
from tellapart.training.recipes import RECIPES, build_recipe  # noqa: E402
from tellapart.training.verify import verify  # noqa: E402

TINY = "conv 6x3, pool 2, flatten, dense 16"
QUICK = {
    "probe": {"folds": 3},
    "auto": {"budget_seconds": 60.0, "searches": ("input_size_px",)},
    "finetune": {"epochs": 2, "input_size_px": 32, "views": 2, "train_stages": 1, "batch_size": 16},
    "cnn": {"epochs": 4, "input_size_px": 16, "layers": TINY},
    "scratch": {"epochs": 3, "input_size_px": 16, "batch_size": 16},
}
WRITTEN = {"auto": "probe"}
"""What is written of a search is the recipe that it found: with so few images, a probe."""

NETWORKS = ("cnn", "scratch")
LOG_KEYS = {
    *("epoch", "epochs", "running_loss", "running_accuracy", "train_loss", "train_accuracy"),
    *("val_loss", "val_accuracy", "lr", "images_per_s", "seconds"),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(photos, tmp_path_factory):
    """Two of the classes, one of them with half its images."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("blobs", "stripes"):
        shutil.copytree(photos / name, folder / name)
    for path in sorted((folder / "stripes").iterdir())[:10]:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def in_full():
    """What the fitted model and its file say in full precision of the images that verified it, by run folder's name."""
    return {}


@pytest.fixture(scope="module")
def runs(photos, pair, tmp_path_factory, in_full):
    """A finished run of each recipe on three classes and, under its name and "-2", on two; made when asked for."""
    made = {}

    def get(name):
        def verify_and_record(classifier, model, part, fitted, asked_in_full, progress):
            file = Classifier(model, precision="f32").predict(part.images)
            in_full[name] = asked_in_full(np.arange(len(part))), np.array([one.probs for one in file])
            return verify(classifier, model, part, fitted, asked_in_full, progress)

        if name not in made:
            recipe, _, classes = name.partition("-")
            source = pair if classes else photos
            out = tmp_path_factory.mktemp("runs") / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "verify", verify_and_record)
                made[name] = tellapart.train(source, recipe=recipe, settings=QUICK[recipe], out=out)
        return made[name]

    return get


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def log_of(run):
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


# What every recipe holds to


def test_the_contract_has_every_recipe():
    assert set(QUICK) == set(RECIPES)


@pytest.mark.parametrize("name", [*RECIPES, *(f"{name}-2" for name in RECIPES)])
def test_every_recipe_gives_a_model_file_that_agrees(runs, in_full, name):
    run = runs(name)
    found = run.report["verification"]
    assert found["n"] >= 2
    assert found["top1_differs"] <= found["ties"]
    assert found["max_abs_difference"] < 0.05
    assert 0 <= found["familiarity_max_abs_difference"] < 0.7  # bfloat16, and a spread known from 48 images
    fitted, file = in_full[name]
    assert len(fitted) == found["n"]
    assert fitted == pytest.approx(file, abs=1e-4)
    assert {path.name for path in run.folder.iterdir()} >= EVERY_RUN
    page = (run.folder / "report.html").read_text()
    assert page.count('alt="Heat map') > 10
    assert ("found by covering" in page) == name.startswith("cnn"), "only it flattens its maps"
    assert not list(run.folder.rglob("*.tmp"))
    assert not run.interrupted
    card = read_model(run.model_path).card
    assert card.metrics == run.report["test"]
    assert card.recipe["name"] == WRITTEN.get(name.partition("-")[0], name.partition("-")[0])
    assert card.familiarity.rate == card.recipe["false_alarms"] == 0.02
    table = pl.read_parquet(run.folder / "predictions.parquet").filter(split="test")
    predictions = tellapart.load(run.model_path).predict(table["path"].to_list())
    assert [prediction.label for prediction in predictions] == table["predicted"].to_list()
    assert np.array([p.probs for p in predictions]) == pytest.approx(np.array(table["probs"].to_list()), abs=1e-5)
    assert run.report["test"]["n"] == len(table) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_what_calibration_did_is_in_the_answers(runs, name):
    """Those of calib, with the file's temperature and without it."""
    said = runs(name).report["calibration"]
    table = pl.read_parquet(runs(name).folder / "predictions.parquet").filter(split="calib")
    assert said["n"] == len(table) < 20, "so few that all are one bin of the calibration error"
    class_names = read_model(runs(name).model_path).card.class_names
    labels = np.array([class_names.index(label) for label in table["label"]])
    after = np.array(table["probs"].to_list())
    before = after ** said["temperature"]
    before /= before.sum(axis=1, keepdims=True)
    for moment, probs in (("before", before), ("after", after)):
        log_loss = -np.log(probs[np.arange(len(labels)), labels]).mean()
        gap = abs(probs.max(axis=1).mean() - (probs.argmax(axis=1) == labels).mean())
        assert said[moment] == pytest.approx({"log_loss": log_loss, "ece": gap}, abs=0.01), moment


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_written_as_it_was_used(runs, name):
    settings = tomllib.loads((runs(name).folder / "recipe.toml").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(settings)) == json.loads(json.dumps(runs(name).report["recipe"]))
    written = WRITTEN.get(name, name)
    assert settings.pop("name") == written
    recipe = build_recipe(written, settings)
    assert all(getattr(recipe, key) == type(getattr(recipe, key))(value) for key, value in settings.items())
    for key, value in QUICK[name].items() if written == name else ():
        assert settings[key] == value


# What a network leaves


@pytest.mark.parametrize("name", [*NETWORKS, "cnn-2"])
def test_the_log_is_in_the_folder_and_in_the_report(runs, name):
    run = runs(name)
    epochs = QUICK[name.partition("-")[0]]["epochs"]
    lines, fit = log_of(run), run.report["fit"]
    assert [line["epoch"] for line in lines] == list(range(1, epochs + 1))
    assert all(set(line) == LOG_KEYS for line in lines)
    assert fit["log"] == lines
    assert fit["epochs_trained"] == epochs
    assert 1 <= fit["best_epoch"] <= epochs
    assert min(lines, key=lambda line: line["val_loss"])["epoch"] == fit["best_epoch"]
    assert fit["verdict"]
    assert fit["interrupted"] is False
    assert fit["device"] == "cpu" or torch.cuda.is_available()
    assert not (run.folder / "checkpoint").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_curves_are_a_picture(runs, name):
    root = ET.parse(runs(name).folder / "curves.svg").getroot()  # noqa: S314  our own
    assert root.tag.endswith("svg")
    assert sum(line.get("class") == "val" for line in root.iter("{http://www.w3.org/2000/svg}polyline")) >= 2


@pytest.mark.parametrize("name", NETWORKS)
def test_there_are_four_parts(runs, name):
    """Val chooses the epoch, calib calibrates, test is measured: each class has at least one image in each."""
    splits = runs(name).report["dataset"]["splits"]
    assert set(splits) == {"train", "val", "calib", "test"}
    assert all(count > 0 for part in splits.values() for count in part.values())
    assert sum(count for part in splits.values() for count in part.values()) == 60
    assert runs(name).report["calibration"]["n"] == sum(splits["calib"].values())
    assert runs(name).report["calibration"]["method"] == "calib"


@pytest.fixture
def given(monkeypatch):
    """What the loop was given by a run that ends there."""
    arguments = {}

    def stop(*positional, **_):
        arguments.update(zip(("network", "objective", "data", "recipe"), positional, strict=True))
        raise TellapartError("bad-setting", "far enough")

    monkeypatch.setattr(gradient, "train_network", stop)
    return arguments


def test_scratch_is_sized_by_the_images(photos, given, tmp_path):
    with pytest.raises(TellapartError, match="far enough"):
        tellapart.train(photos, recipe="scratch", out=tmp_path / "run")
    assert given["data"].pixels.shape[1] == given["recipe"].input_size_px == 48  # as the photos
    assert "residual" in given["recipe"].layers


@pytest.mark.parametrize("setting", ["none", "balanced"])
def test_class_weights_balance_the_classes(setting, pair, given, tmp_path):
    with pytest.raises(TellapartError, match="far enough"):
        tellapart.train(
            pair, recipe="cnn", settings={**QUICK["cnn"], "class_weights": setting}, out=tmp_path / "run"
        )
    counts = np.bincount(given["data"].labels[given["data"].train])
    assert counts[0] > counts[1] > 0
    expected = [1, 1] if setting == "none" else counts.sum() / (2 * counts)
    assert given["objective"].class_weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_only_training_images_are_augmented(photos, monkeypatch, tmp_path):
    """From the whole pipeline: what is augmented, and nothing else, is the train part."""
    augmented = []

    def record(images, draws, settings):
        augmented.extend(
            image.numpy().tobytes() for image in (images * 255).round().byte().permute(0, 2, 3, 1).contiguous()
        )
        return real(images, draws, settings)

    real = loop.augment
    monkeypatch.setattr(loop, "augment", record)
    run = tellapart.train(photos, recipe="cnn", settings=QUICK["cnn"], out=tmp_path / "run")
    table = pl.read_parquet(run.folder / "dataset.parquet")
    spec = build_recipe("cnn", QUICK["cnn"]).preprocess
    train = [load_input(path, spec).tobytes() for path in table.filter(split="train")["path"]]
    assert sorted(augmented) == sorted(train * QUICK["cnn"]["epochs"])


@pytest.mark.parametrize(
    "settings",
    [
        {"color": "gray", "first_layer_filters": "sobel", "freeze_first_layer": True},
        {"normalize": "featurewise_center, featurewise_std", "precision": "bf16", "class_weights": "balanced"},
        {"layers": "conv 6x3, batchnorm, pool 2, dropout 0.2, residual 8, average", "ema_decay": 0.9},
        {"normalize": "samplewise_center, samplewise_std", "augment": "randaugment 2 5, cutmix 1, erase 0.3"},
        {"val_fraction": 0.0, "optimizer": "sgd", "schedule": "cosine", "clip_norm": 1.0, "patience": 1},
    ],
)
def test_settings_reach_the_model_file(settings, pair, tmp_path):
    run = tellapart.train(pair, recipe="cnn", settings={**QUICK["cnn"], **settings}, out=tmp_path / "run")
    found = run.report["verification"]
    assert found["top1_differs"] <= found["ties"]
    assert found["max_abs_difference"] < 0.05
    card = read_model(run.model_path).card
    assert {key: card.recipe[key] for key in settings} == settings


def test_the_same_seed_gives_the_same_model(photos, tmp_path):
    graphs = []
    for i, seed in enumerate((3, 3, 4)):
        run = tellapart.train(photos, recipe="cnn", settings=QUICK["cnn"], out=tmp_path / str(i), seed=seed)
        graphs.append(read_model(run.model_path).card.graph_sha256)
    assert graphs[0] == graphs[1] != graphs[2]


def test_the_cache_changes_nothing(photos, tmp_path, monkeypatch):
    """The same run with an empty cache, a full one, and one that another run has filled in another order."""
    graphs = []
    for i, first in enumerate((None, None, ("stripes",))):
        if i != 1:
            monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / f"cache{i}"))
        for name in first or ():
            fewer = tmp_path / "fewer"
            shutil.copytree(photos / name, fewer / name)
            shutil.copytree(photos / "blobs", fewer / "blobs")
            tellapart.train(fewer, recipe="cnn", settings=QUICK["cnn"], out=tmp_path / "other")
        run = tellapart.train(photos, recipe="cnn", settings=QUICK["cnn"], out=tmp_path / f"run{i}")
        graphs.append(read_model(run.model_path).card.graph_sha256)
    assert graphs[0] == graphs[1] == graphs[2]


# On the command line


def test_train_prints_epochs_and_a_verdict(photos, tmp_path):
    quick = [part for key, value in QUICK["cnn"].items() for part in ("--set", f"{key}={value}")]
    done = call("train", photos, "--recipe", "cnn", *quick, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    said = done.output
    assert [f"epoch {i}/4" in said for i in range(1, 6)] == [True] * 4 + [False]
    assert "val loss" in said
    assert json.loads((tmp_path / "run/report.json").read_text())["fit"]["verdict"] in said
    assert "Next: tellapart predict" in said
    assert not (tmp_path / "run/checkpoint").exists()
    predicted = call("predict", tmp_path / "run/model.onnx", photos / "dots", "--json")
    assert len(predicted.stdout.splitlines()) == 20


def test_preview_draws_and_trains_nothing(photos, tmp_path):
    from PIL import Image

    done = call(
        *("train", photos, "--recipe", "cnn", "--preview-augmentation", "--out", tmp_path / "run"),
        *("--set", "augment=rotation 45, erase 1", "--set", "input_size_px=24", "--set", f"layers={TINY}"),
    )
    assert done.exit_code == 0, done.output
    assert "augmentation.png" in done.output
    written = {path.name for path in (tmp_path / "run").rglob("*") if not path.name.startswith(".")}
    assert written == {"augmentation.png"}
    pixels = np.asarray(Image.open(tmp_path / "run/augmentation.png"))
    assert pixels.std() > 10
    assert min(pixels.shape[:2]) > 100


MISTAKES = [
    (["--set", "layers=conv 5x3, pol 2"], "bad-setting", "pol"),
    (["--set", "layers=conv 5x3, flatten, conv 5x3"], "bad-setting", "conv"),
    (["--set", "augment=zoom 0.2, flop horizontal"], "bad-setting", "flop"),
    (["--set", "augment=rotation 400"], "bad-setting", "rotation"),
    (["--set", "normalize=featurewise_centre"], "bad-setting", "featurewise_center"),
    (["--set", "optimizer=adamm"], "bad-setting", "adam"),
    (["--set", "schedule=linear"], "bad-setting", "cosine"),
    (["--set", "epochs=0"], "bad-setting", "epochs"),
    (["--set", "epochs=2.5"], "bad-setting", "epochs"),
    (["--set", "lr=nan"], "bad-setting", "lr"),
    (["--set", "batch_size=1"], "bad-setting", "batch_size"),
    (["--set", "ema_decay=1"], "bad-setting", "ema_decay"),
    (["--set", "color=blue"], "bad-setting", "gray"),
    (["--set", "compile=maybe"], "bad-setting", "compile"),
    (["--set", "input_size_px=4"], "bad-setting", "input_size_px"),
    (["--set", "first_layer_filters=sobbel"], "bad-setting", "sobel"),
    (["--set", "first_layer_filters=missing.npy"], "bad-setting", "missing.npy"),
    (["--set", "epoch=3"], "unknown-setting", "epochs"),
    (["--set", "val_fraction=0.9"], "bad-setting", "val_fraction"),
    (["--set", "calib_fraction=0"], "bad-setting", "calib_fraction"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), MISTAKES)
def test_a_wrong_setting_is_one_clear_message(arguments, code, says, photos, tmp_path):
    done = call("train", photos, "--recipe", "cnn", "--out", tmp_path / "run", *arguments)
    assert done.exit_code == 1, done.output
    assert f"[{code}]" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_after_a_mistake_the_next_try_is_not_refused(photos, tmp_path, monkeypatch):
    """A run that ended before it learned anything is no unfinished run."""
    quick = [part for key, value in QUICK["cnn"].items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for mistake in (["--set", "first_layer_filters=missing.npy"], ["--tensorboard"]):
        done = call("train", photos, "--recipe", "cnn", "--out", tmp_path / "run", *quick, *mistake)
        assert done.exit_code == 1, mistake
        assert "unfinished-run" not in done.stderr, mistake
    done = call("train", photos, "--recipe", "cnn", "--out", tmp_path / "run", *quick)
    assert done.exit_code == 0, done.output


def test_tensorboard_is_asked_for_by_name(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = call("train", photos, "--recipe", "cnn", "--tensorboard", "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "[package-missing]" in done.stderr
    assert "pip install tensorboard" in done.stderr


def test_a_loss_that_is_not_finite_is_said_with_its_files(photos, tmp_path, monkeypatch):
    real = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *arguments: real(*arguments) * float("inf"))
    done = call("train", photos, "--recipe", "cnn", "--out", tmp_path / "run", "--set", "batch_size=4")
    assert done.exit_code == 1, done.output
    assert "[loss-not-finite]" in done.stderr
    assert "step 1 of epoch 1" in done.stderr
    assert done.stderr.count(str(photos)) == 4
    assert "Traceback" not in done.output


@pytest.mark.parametrize("recipe", ["probe", "auto"])
@pytest.mark.parametrize("asked", [{"tensorboard": True}, {}], ids=["tensorboard", "preview"])
def test_what_only_a_gradient_loop_can_do_is_refused_before_an_image_is_read(photos, tmp_path, recipe, asked):
    read = []
    do = pipeline.train if asked else pipeline.preview_augmentation
    with pytest.raises(TellapartError) as caught:
        do(photos, recipe=recipe, out=tmp_path / "run", progress=lambda *what: read.append(what), **asked)
    assert (caught.value.code, read) == ("bad-setting", [])
    assert repr(recipe) in caught.value.message
    assert "--recipe finetune" in caught.value.hint
