"""The recipe auto: what it settles before it reads, what it falls back on, what it keeps, and what it writes."""

import json
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tellapart
from tellapart import pipeline
from tellapart.data.check import check_contents
from tellapart.data.sources import open_dataset
from tellapart.data.split import split
from tellapart.errors import ImageError, RecipeError
from tellapart.inference.bundled import open_backbone
from tellapart.inference.predict import load
from tellapart.records import Preprocess, SourceOptions, no_progress
from tellapart.report.story import more_time
from tellapart.training import at_hand, feature_search
from tellapart.training import auto as auto_module
from tellapart.training.at_hand import Speed, TypicalShape
from tellapart.training.budget import Budget, Outcome, parse_budget, spend
from tellapart.training.cost import MIN_LOOP_IMAGES, Cost, finetune_seconds
from tellapart.training.loop_recipe import cnn, finetune
from tellapart.training.probe import ProbeWay
from tellapart.training.probe_recipe import SEARCHABLE, auto, probe
from tellapart.training.recipes import build_recipe
from tellapart.training.train import Fitted


@pytest.fixture
def no_hurry(monkeypatch):
    """A clock that stands still: everything that may be tried has time."""
    monkeypatch.setattr(auto_module, "Budget", lambda seconds, *_: Budget(seconds, lambda: 0.0))


@pytest.fixture
def speed(monkeypatch):
    """A machine as fast as a test says, in seconds an image."""

    def set_speed(seconds):
        speed = Speed(decoding=0.0, engine=seconds)
        monkeypatch.setattr(auto_module, "measure_speed", lambda *_: speed)

    return set_speed


LEFT = {"name": "a thing", "seconds": 50.0, "left_seconds": 30.0}


def searched(run):
    return run.report["fit"]["search"]


def tried(run):
    return {step["name"]: step for step in searched(run)["tried"]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("2m30s", 150), (" 5M ", 300)],
)
def test_budgets_as_people_write_them(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-5s", "5 minutes", "1.5h", "s", "10m10m", "1e3", "٣m"])
def test_what_is_no_time(text):
    with pytest.raises(RecipeError, match="a budget is a time"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("settings", "searches"),
    [
        ({}, tuple(SEARCHABLE)),
        ({"input_size_px": 160}, ("resize", "backbone", "feature_stages")),
        ({"resize": "crop", "feature_stages": (8,)}, ("input_size_px", "backbone")),
        ({"backbone": "efficientnet_lite0"}, ("input_size_px", "resize", "feature_stages")),
        ({"feature_stages": (3, 4, 5, 6, 7, 8)}, ("input_size_px", "resize", "backbone")),
        ({"input_size_px": 0, "resize": "auto"}, tuple(SEARCHABLE)),
        ({"searches": ("resize",)}, ("resize",)),
        ({"backbone": "timm/convnext_nano"}, ()),
    ],
)
def test_what_is_given_is_not_searched(settings, searches):
    assert auto(**settings).searches == searches


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget_seconds": 0.0}, "budget_seconds"),
        ({"budget_seconds": 1e9}, "budget_seconds"),
        ({"budget_seconds": float("nan")}, "budget_seconds"),
        ({"val_fraction": 0.6}, "val_fraction"),
        ({"searches": ["colour"]}, "cannot be searched"),
        ({"backbone": "timm/resnet10t", "searches": ["backbone"]}, "bundled backbones only"),
        ({"backbone": "timm/resnet10t", "searches": ["feature_stages"]}, "bundled backbones only"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(RecipeError, match=says):
        build_recipe("auto", settings)


def test_too_short_a_budget_says_what_would_do(photos, tmp_path, speed):
    speed(5.0)
    with pytest.raises(RecipeError) as caught:
        tellapart.train(photos, recipe="auto", settings={"budget_seconds": 20.0}, out=tmp_path / "run")
    assert caught.value.code == "budget-too-short"
    assert "--budget" in caught.value.hint
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_where_the_first_size_does_not_fit_a_smaller_one_is_taken(photos, tmp_path, speed):
    speed(0.5)  # at 224 px 60 images and verifying 48 would take 102 s, at 160 px 52 s
    settings = {"budget_seconds": 60.0, "searches": ("input_size_px",)}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert run.report["recipe"]["input_size_px"] == 160
    assert run.report["test"]["n"] == 12
    assert run.report["dataset"]["skipped"] == 0
    assert not tried(run)
    assert searched(run)["left_out"]


@pytest.mark.parametrize(
    ("settings", "seconds_each", "side"),
    [({"searches": ("input_size_px",)}, 0.5, 160), ({"searches": (), "input_size_px": 128}, 0.25, 128)],
)
def test_where_not_all_images_fit_as_many_as_do_are_learned_from(
    photos, tmp_path, speed, settings, seconds_each, side
):
    speed(seconds_each)
    settings = {"budget_seconds": 50.0, **settings}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert run.report["recipe"]["input_size_px"] == side
    dataset = run.report["dataset"]
    assert 30 < dataset["used"] < dataset["seen"] == dataset["used"] + dataset["skipped"] == 60
    assert dataset["reasons"] == {"no-time": dataset["skipped"]}
    assert f"there was time to learn from {dataset['used']} of 60 images, drawn at random" in dataset["notes"]
    of_class = dataset["classes"].values()
    assert max(of_class) - min(of_class) <= 1


def test_images_in_a_test_folder_are_tested_whatever_the_time(photos, tmp_path, speed):
    root = tmp_path / "parted"
    for part, first, last in (("train", 0, 14), ("test", 14, 20)):
        for folder in photos.iterdir():
            for image in sorted(folder.iterdir())[first:last]:
                (root / part / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(image, root / part / folder.name)
    speed(0.5)
    settings = {"budget_seconds": 47.0, "searches": ("input_size_px",)}
    run = tellapart.train(root, recipe="auto", settings=settings, out=tmp_path / "run")
    assert run.report["test"]["n"] == 18
    assert run.report["dataset"]["skipped"] > 0


def test_of_few_images_none_is_left_out_for_want_of_time(photos, tmp_path, speed):
    root = tmp_path / "few"
    for folder in photos.iterdir():
        for image in sorted(folder.iterdir())[:9]:
            (root / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / folder.name)
    speed(1.0)
    settings = {"budget_seconds": 25.0, "searches": ()}
    with pytest.raises(RecipeError) as caught:
        tellapart.train(root, recipe="auto", settings=settings, out=tmp_path / "run")
    assert caught.value.code == "budget-too-short"


@pytest.mark.usefixtures("no_hurry")
def test_everything_is_tried_and_the_best_is_kept(photos, tmp_path):
    run = tellapart.train(photos, recipe="auto", settings={"budget_seconds": 600.0}, out=tmp_path / "run")
    steps = tried(run)
    assert "images of 320 px" in steps
    assert any(name.startswith("features of stages") for name in steps)
    assert not searched(run)["left_out"]
    leading = [step for step in steps.values() if step["outcome"] and step["outcome"]["kept"]]
    for step in leading:
        assert step["outcome"]["after"] < step["outcome"]["before"]
    adopted = [name for name in steps if name.startswith("the best of these")]
    changed = {key for key in SEARCHABLE if run.report["recipe"][key] != _plain(auto())[key]}
    assert bool(changed) == bool(adopted and steps[adopted[0]]["outcome"]["kept"])
    # What was kept is what is written, in the file too.
    card = load(run.model_path).card
    assert json.loads(json.dumps(card.recipe)) == json.loads(json.dumps(run.report["recipe"]))
    assert card.recipe["name"] == "probe"
    assert card.preprocess.input_size_px == run.report["recipe"]["input_size_px"]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "What was tried" in page
    assert all(name in page for name in steps)


def _plain(recipe):
    return json.loads(json.dumps({key: getattr(recipe, key) for key in SEARCHABLE}))


def _worse_or_better(monkeypatch, better):
    """Let candidates be as good as a test says: log loss by input size."""
    monkeypatch.setattr(
        feature_search.FeatureSearch,
        "_cross_validate",
        lambda self, recipe, _: (
            np.full(len(self._sample), better(recipe)) + np.linspace(0, 1e-3, len(self._sample))
        ),
    )


@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize(
    ("side_px", "losses", "names"),
    [
        (20, {64: 1.0, 96: 0.9, 128: 0.8, 160: 0.7}, ["96", "128", "160"]),
        (20, {64: 1.0, 96: 0.9, 128: 0.95}, ["96", "128"]),  # not further than the first that is worse
        (20, {64: 1.0, 96: 1.1, 56: 0.9, 40: 0.95}, ["96", "56", "40"]),
        (20, {64: 1.0, 96: 1.0, 56: 1.1}, ["96", "56"]),
        (12, {64: 1.0, 96: 0.9}, ["96"]),
        (11, {64: 1.0, 56: 1.1}, ["56"]),  # blown up further than eight times there is nothing new to see
    ],
)
def test_sizes_are_walked_from_the_best(photos, tmp_path, monkeypatch, side_px, losses, names):
    monkeypatch.setattr(auto_module, "typical_shape", lambda _: TypicalShape(side_px=side_px, stretch=1.0))
    monkeypatch.setattr(feature_search, "_LARGER_SIDES", (96, 128, 160))
    monkeypatch.setattr(feature_search, "_SMALLER_SIDES", (56, 40))
    _worse_or_better(monkeypatch, lambda recipe: losses[recipe.input_size_px])
    settings = {"budget_seconds": 600.0, "searches": ("input_size_px",), "input_size_px": 64}
    adopted, adopt = [], auto_module.AutoWay._adopt

    def recorded(way, recipe, *rest):
        adopted.append(recipe.input_size_px)
        return adopt(way, recipe, *rest)

    monkeypatch.setattr(auto_module.AutoWay, "_adopt", recorded)
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert [name.split()[2] for name in tried(run) if name.startswith("images of")] == names
    lead = min(losses, key=losses.__getitem__)
    assert adopted == ([lead] if lead != 64 else [])
    assert any(name.startswith("the best of these") for name in tried(run)) == bool(adopted)


@pytest.mark.usefixtures("no_hurry")
def test_what_led_on_the_sample_only_is_not_tried_again(photos, tmp_path, monkeypatch):
    _worse_or_better(monkeypatch, lambda recipe: 1.0 - recipe.input_size_px / 1e4)
    monkeypatch.setattr(auto_module, "_search_loss", lambda _: 1.0)  # on all images it is no better
    settings = {"budget_seconds": 600.0, "searches": ("input_size_px",)}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    names = [step["name"] for step in searched(run)["tried"]]
    assert names.count("the best of these, on all images") == 1
    assert run.report["recipe"]["input_size_px"] == 224


@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize(
    "settings",
    [
        {"resize": "crop", "searches": ("resize",)},
        {"feature_stages": (8,), "searches": ("feature_stages",)},
    ],
)
def test_what_it_begins_with_is_no_candidate(tmp_path, settings):
    rng = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 90, (32, 64, 3), dtype=np.uint8) + np.uint8(120 * k)
            Image.fromarray(pixels).save(tmp_path / "wide" / name / f"{i}.png")
    given = {"budget_seconds": 600.0, "input_size_px": 32, **settings}
    run = tellapart.train(tmp_path / "wide", recipe="auto", settings=given, out=tmp_path / "run")
    assert not any("crop" in name or name == "features of stages 8" for name in tried(run))
    assert tried(run)


@pytest.mark.usefixtures("no_hurry")
def test_an_image_that_goes_away_ends_what_is_tried_and_no_more(photos, tmp_path, monkeypatch):
    refused = []

    def prepare(way, *_):
        refused.append(way.recipe.input_size_px)
        raise ImageError("unreadable-file", "gone")

    monkeypatch.setattr(feature_search, "prepare_all", prepare)
    settings = {"budget_seconds": 600.0, "searches": ("input_size_px",)}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert refused
    assert all("gone" in step["note"] for step in tried(run).values())
    assert run.report["test"]["n"] == 12


def test_images_are_prepared_all_or_it_is_an_error(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "going")
    dataset = split(check_contents(open_dataset(folder, SourceOptions()), no_progress), seed=0, calib_fraction=0.1)
    feature_search.prepare_all(ProbeWay(probe(input_size_px=32)), dataset, no_progress)
    next((folder / "dots").iterdir()).unlink()
    with pytest.raises(ImageError) as caught:
        feature_search.prepare_all(ProbeWay(probe(input_size_px=48)), dataset, no_progress)
    assert caught.value.code == "unreadable-file"


@pytest.mark.usefixtures("no_hurry")
def test_ctrl_c_in_the_search_leaves_a_whole_run(photos, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_search.FeatureSearch, "_cross_validate", stop)
    run = tellapart.train(photos, recipe="auto", settings={"budget_seconds": 600.0}, out=tmp_path / "run")
    assert run.interrupted
    assert searched(run)["interrupted"]
    assert len(searched(run)["tried"]) == 1
    assert load(run.model_path).predict(next((photos / "dots").iterdir()))[0].verdict != "error"
    assert run.report["test"]["n"] == 12


class Images:
    """Of the dataset only what an estimate looks at."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def used(self, *_parts):
        return self


@pytest.mark.parametrize(
    ("recipe", "count", "said"),
    [
        (probe(), MIN_LOOP_IMAGES, True),
        (probe(), MIN_LOOP_IMAGES - 1, False),  # `auto` would not train then, so nothing is promised
        (probe(backbone="timm/resnet10t"), 5000, False),
        (cnn(), 5000, False),
    ],
)
def test_what_training_would_take_is_said_where_auto_would_train(recipe, count, said):
    tested = SimpleNamespace(answers=[1] * 100, seconds=1.0)
    seconds = finetune_seconds(recipe, learning=Images(count), tested=tested)
    assert (seconds is not None) == said
    if said:
        twice = finetune_seconds(recipe, learning=Images(2 * count), tested=tested)
        assert seconds < twice < 2 * seconds


def small_images(folder, count, side=12):
    """Two classes that a small network tells apart with ease."""
    rng = np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
            pixels[:, k::2] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.usefixtures("no_hurry")
def test_gradient_loops_are_chosen_by_val(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from tellapart.training.gradient import LoopWay

    quick = auto_module._Extent(side_share=1.0, train_stages=1, least=1, most_epochs=1)
    monkeypatch.setattr(auto_module, "_EXTENTS", (quick,))
    monkeypatch.setattr(auto_module, "scratch", partial(auto_module.scratch, epochs=6))
    source = small_images(tmp_path / "small", 260)
    epochs, compared = [], []

    def measure_leaks(learned, thumbnails, *rest):
        compared.append(thumbnails)
        return original(learned, thumbnails, *rest)

    original, marked = pipeline.measure_leaks, np.zeros((416, 32, 32), dtype=np.uint8)
    monkeypatch.setattr(pipeline, "measure_leaks", measure_leaks)
    monkeypatch.setattr(LoopWay, "thumbnails", lambda _way, part: marked[: len(part)])
    run = pipeline.train(
        source,
        recipe="auto",
        settings={"budget_seconds": 600.0, "searches": (), "input_size_px": 32},
        out=tmp_path / "run",
        on_epoch=epochs.append,
    )
    steps = tried(run)
    assert set(steps) == {"a small network trained from nothing", "stages 8-8 trained, 1 epochs, 32 px"}
    assert all(step["outcome"] for step in steps.values()), steps
    assert epochs
    val = sum(run.report["dataset"]["splits"]["val"].values())
    assert val >= 40
    assert [step["outcome"]["n"] for step in steps.values()] == [val, val]
    kept = [name for name, step in steps.items() if step["outcome"]["kept"]]
    written = {
        "a small network trained from nothing": "scratch",
        "stages 8-8 trained, 1 epochs, 32 px": "finetune",
    }
    assert run.report["recipe"]["name"] == (written[kept[-1]] if kept else "probe")
    assert (run.folder / "log.jsonl").exists() == bool(kept)
    assert compared[0].any() != bool(
        kept
    )  # test images are compared with others as the model that ships sees them
    assert not (run.folder / "checkpoint").exists()
    assert run.report["test"]["accuracy"]["value"] > 0.9


@pytest.mark.usefixtures("no_hurry")
def test_without_pytorch_nothing_is_kept_for_val(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(auto_module, "MIN_LOOP_IMAGES", 10)
    settings = {"budget_seconds": 600.0, "searches": ()}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert not sum(run.report["dataset"]["splits"].get("val", {}).values())
    assert "PyTorch" in searched(run)["untrained"]
    assert "PyTorch" in more_time(searched(run))


def test_a_loop_has_the_settings_that_were_given(tmp_path):
    given = {"interpolation": "bicubic", "resize": "crop", "crop_share": 0.9, "strengths": (0.1, 1.0), "folds": 3}
    recipe = auto(input_size_px=96, class_weights="balanced", coverage=0.9, **given)
    way = auto_module.AutoWay(recipe, tmp_path, on_epoch=no_progress)
    loop = way._finetune(recipe.as_probe(), auto_module._EXTENTS[-1], 4)
    assert {name: getattr(loop, name) for name in given} == given
    assert (loop.input_size_px, loop.class_weights, loop.coverage, loop.epochs) == (96, "balanced", 0.9, 4)
    scratch = way._scratch(32)
    assert (scratch.input_size_px, scratch.resize, scratch.class_weights) == (96, "crop", "balanced")


def test_a_network_from_nothing_has_the_images_size_where_none_was_given(tmp_path):
    way = auto_module.AutoWay(auto(), tmp_path, on_epoch=no_progress)
    assert (way._scratch(32).input_size_px, way._scratch(8).input_size_px) == (32, 16)


@pytest.mark.parametrize(
    ("together", "alone", "decoding", "engine"), [(0.3, 0.2, 0.1, 0.2), (0.2, 0.2, 0.0, 0.2), (0.1, 0.2, 0.0, 0.1)]
)
def test_decoding_is_what_the_engine_alone_does_not_take(photos, monkeypatch, together, alone, decoding, engine):
    def timed(_engine, _preprocess, images):
        return alone if isinstance(images, np.ndarray) else together

    monkeypatch.setattr(at_hand, "_seconds_each", timed)
    images = [str(path) for path in photos.rglob("*.png")]
    speed = at_hand.measure_speed(
        open_backbone("efficientnet_lite0", (8,), "mean"), Preprocess(input_size_px=32), images, 2
    )
    assert (speed.decoding, speed.engine) == pytest.approx((decoding, engine))


def test_decoding_takes_as_long_for_any_size_and_is_done_once():
    cost = Cost(speed=Speed(decoding=1.0, engine=0.4), recipe=probe(), learning=100, verified=10, tested=20)
    small = probe(input_size_px=112)
    assert (cost.each(probe()), cost.each(small)) == pytest.approx((1.4, 1.1))
    assert cost.reading(small) == pytest.approx(110)
    # Each of 30 images is decoded and answered once; the 10 are answered in full precision, too, as long again and again.
    assert cost.finish(small) - cost.finish(probe()) == pytest.approx((30 + 2 * 10) * (0.1 - 0.4))
    # A loop decodes once, and then works on what was decoded.
    step = finetune(input_size_px=224, epochs=2)
    slower = replace(cost, speed=Speed(decoding=2.0, engine=0.4))
    assert slower.loop(step, 80) - cost.loop(step, 80) == pytest.approx(100)


def planned(tmp_path, seconds):
    """The way with what it tried of fine-tunes, on a clock that stands still, and what it left out; 2,600 images to train on."""
    way = auto_module.AutoWay(
        auto(budget_seconds=seconds), tmp_path, on_epoch=no_progress, clock=lambda: 0.0, began=0.0
    )
    way._cost = Cost(
        speed=Speed(decoding=2e-4, engine=14e-4), recipe=probe(), learning=3200, verified=300, tested=800
    )
    way._keep(auto_module._Best(fitted=None, recipe=probe()), way)

    def steps():
        for step in way._finetunes(SimpleNamespace(used=lambda _: range(2_600)), seed=0):

            def run(_progress, name=step.name):
                way._begun.add(name)
                return Outcome(before=1.0, after=0.9, n=300, kept=True)

            yield replace(step, run=run)

    search = spend(way._budget, steps(), no_progress)
    return way, [step.name for step in search.tried], [step.name for step in search.left_out]


@pytest.mark.parametrize(
    ("seconds", "extent"), [(45, 3), (60, 3), (80, 2), (110, 2), (140, 1), (300, 0), (450, 0), (7200, 0)]
)
def test_the_largest_fine_tune_that_fits_with_as_many_epochs_as_fit(tmp_path, seconds, extent):
    way, tried, left_out = planned(tmp_path, seconds)
    chosen = auto_module._EXTENTS[extent]
    side = round(224 * chosen.side_share / 32) * 32
    stages, epochs, side_px = re.fullmatch(r"stages (.-8) trained, (\d+) epochs, (\d+) px", *tried).groups()
    assert (stages, int(side_px)) == (f"{9 - chosen.train_stages}-8", side)
    assert len(left_out) == extent
    least = chosen.least_epochs(2_600)
    assert least == chosen.least <= int(epochs) <= chosen.most_epochs

    def fits(count):
        recipe = way._finetune(way._way.recipe, chosen, count)
        return way._budget.fits(way._cost.loop(recipe, 2_600) + way._cost.longer(recipe, way._best.recipe))

    assert fits(int(epochs)) or int(epochs) == least
    assert int(epochs) == chosen.most_epochs or not fits(int(epochs) + 1)


def test_no_fine_tune_where_none_fits(tmp_path):
    _way, tried, left_out = planned(tmp_path, 30)
    assert (tried, len(left_out)) == ([], len(auto_module._EXTENTS))
    assert all(
        f" {extent.least} epochs" in name for extent, name in zip(auto_module._EXTENTS, left_out, strict=True)
    )


@pytest.mark.parametrize(
    ("least", "images", "epochs"),
    [(6, 300, 6), (6, 2_600, 6), (6, 5_200, 3), (6, 11_000, 1), (3, 5_200, 2), (3, 100_000, 1), (8, 0, 8)],
)
def test_of_more_images_fewer_epochs_are_enough(least, images, epochs):
    extent = replace(auto_module._EXTENTS[0], least=least)
    assert extent.least_epochs(images) == epochs


def epoch(number, of, val_accuracy):
    return SimpleNamespace(epoch=number, epochs=of, val_accuracy=val_accuracy)


@pytest.mark.parametrize(
    ("entries", "lead", "hopeless"),
    [
        ([epoch(9, 20, 0.3)], 0.8, False),  # it has not had half its time
        ([epoch(10, 20, 0.3)], 0.8, True),
        ([epoch(10, 20, 0.61)], 0.8, False),
        ([epoch(10, 20, 0.3), epoch(11, 20, 0.7)], 0.8, False),
        ([epoch(10, 20, 0.3)], 0.0, False),  # it began at the best
        ([epoch(10, 20, None)], 0.8, False),  # nobody knows
    ],
)
def test_a_loop_that_is_far_behind_at_half_its_time_is_given_up(entries, lead, hopeless):
    heard = []
    watch = auto_module._Watch(heard.append, lead=lead, at_the_end=lambda: heard.append("the end"))
    for entry in entries:
        watch(entry)
    assert (watch.hopeless, heard) == (hopeless, entries)
    watch(epoch(20, 20, 0.9))
    assert heard[-1] == "the end"


class _LateWay:
    """A gradient loop that ends when hardly any time is left, and whose model is ready ``late`` seconds after that."""

    recipe = finetune()

    def __init__(self, clock, folder, late, on_epoch, out_of_time, *, cut):
        self._clock, self._folder, self._late = clock, folder, late
        self._on_epoch, self._out_of_time, self._cut = on_epoch, out_of_time, cut

    def prepare(self, dataset, _progress):
        return dataset

    def fit(self, _dataset, *, seed, progress):  # noqa: ARG002
        self._clock.now = 59.0
        if self._cut:
            assert self._out_of_time()
        else:
            self._on_epoch(epoch(3, 3, 0.9))
        self._clock.now = 60.0 + self._late
        progress("features", 1, 2)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in auto_module.LOG_FILES:
            (self._folder / name).write_text("")
        return probe_fitted(val_after=(0.1, 0.9))


def probe_fitted(**details):
    return Fitted(
        trunk=b"", embedding_dim=1, head=None, weights=None, held_out_logits=None, held_out_labels=None, method="calib",
        logits={}, familiarity=None, familiar_scores=None, scores={}, details=details, log=(), interrupted=False,
    )  # fmt: skip


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("late", "kept"), [(1, True), (4, True), (6, False)])
def test_a_loop_that_has_ended_is_not_lost_for_some_seconds(tmp_path, monkeypatch, late, kept, cut):
    clock = SimpleNamespace(now=0.0)
    way = auto_module.AutoWay(
        auto(budget_seconds=60.0), tmp_path, on_epoch=lambda _: None, clock=lambda: clock.now, began=0.0
    )
    way._cost = Cost(
        speed=Speed(decoding=0.0, engine=0.0),
        recipe=probe(),
        learning=500,
        verified=50,
        tested=50,
        fit_seconds=2.0,
    )
    monkeypatch.setattr(auto_module.Cost, "finish", lambda *_: 0.0)
    way._keep(auto_module._Best(fitted=None, recipe=probe(), val=(0.5, 0.8)), way)

    def open_way(_recipe, folder, *, on_epoch, out_of_time, **_rest):
        return _LateWay(clock, folder, late, on_epoch, out_of_time, cut=cut)

    monkeypatch.setattr(auto_module, "open_loop_way", open_way)
    dataset = SimpleNamespace(used=lambda *_: range(500))
    search = spend(way._budget, [way._train(finetune(), "loop", dataset, seed=0)], no_progress)
    (step,) = search.tried
    assert (step.outcome is not None and step.outcome.kept) == kept
    assert (way._best.val == (0.1, 0.9)) == kept


def test_a_budget_begins_before_the_source_is_opened(photos, tmp_path, monkeypatch):
    """Listing a large folder takes its time, too."""
    began, opened = [], []

    def budget(seconds, clock, since):
        began.append(since)
        return Budget(seconds, clock, since)

    def opening(*arguments):
        opened.append(time.monotonic())
        return open_dataset(*arguments)

    monkeypatch.setattr(auto_module, "Budget", budget)
    monkeypatch.setattr(pipeline, "open_dataset", opening)
    settings = {"budget_seconds": 600.0, "searches": (), "val_fraction": 0.0}
    tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert began[0] < opened[0]


@pytest.mark.usefixtures("no_hurry")
def test_whether_training_fits_is_asked_for_the_images_that_would_be_trained_on(photos, tmp_path, monkeypatch):
    asked = []

    def too_long(_cost, _recipe, images):
        asked.append(images)
        return 1e6

    monkeypatch.setattr(auto_module, "MIN_LOOP_IMAGES", 10)
    monkeypatch.setattr(auto_module.Cost, "loop", too_long)
    monkeypatch.setattr(auto_module.importlib.util, "find_spec", lambda _: object())
    settings = {"budget_seconds": 600.0, "searches": ()}
    run = tellapart.train(photos, recipe="auto", settings=settings, out=tmp_path / "run")
    assert "it would take" in searched(run)["untrained"]
    assert run.report["test"]["n"] == 12
    assert asked == [round((60 - 12) * 0.9 * 0.9)]  # without test, calib and val


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({}, "Everything there is to try was tried"),
        ({"interrupted": True, "left_out": [LEFT]}, "stopped before its end"),
        ({"left_out": [LEFT]}, "With about 20 s more it could also try: a thing."),
        (
            {"left_out": [{**LEFT, "seconds": 90.0}, LEFT]},
            "With about 20 s more it could also try: a thing, and 1 other thing with more",
        ),
        ({"untrained": "it would take a budget of about 150 s here"}, "not tried: it would take a budget"),
        (
            {"untrained": "PyTorch is not installed", "left_out": [LEFT]},
            "more it could also try: a thing. Training",
        ),
    ],
)
def test_what_more_time_would_buy(search, says):
    assert says in more_time(search)


@pytest.mark.usefixtures("no_hurry")
def test_a_search_says_its_progress_under_the_names_of_its_steps(photos, tmp_path):
    told = []
    settings = {"budget_seconds": 600.0, "searches": ("input_size_px",)}
    pipeline.train(
        photos, recipe="auto", settings=settings, out=tmp_path / "run", progress=lambda *said: told.append(said[0])
    )
    assert "images of 320 px" in told
    no_progress("", 0, 0)
