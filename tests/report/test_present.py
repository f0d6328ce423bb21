"""The command that is shown trains the same model; heat maps are about the class that is named; evaluate writes a page."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tellapart
from tellapart import cli, pipeline
from tellapart.imaging.preprocess import load_input
from tellapart.inference.engine import OpenVINOEngine, iter_outputs
from tellapart.inference.heatmap import HEATMAP
from tellapart.inference.model import read_model
from tellapart.records import SourceOptions
from tellapart.report.heat import class_maps, has_class_maps, in_turns, occlusion_maps
from tellapart.report.present import training_command
from tellapart.training.recipes import build_recipe


class _Stop(Exception):  # noqa: N818  no error: it ends the command where training would begin
    pass


def typed(command, monkeypatch):
    """What the command line makes of it, without training."""
    seen = {}

    def record(source, options, **more):
        seen.update(source=source, options=options, **more)
        raise _Stop

    monkeypatch.setattr(pipeline, "train", record)
    program, *words = shlex.split(command)
    assert program == "tellapart"
    assert isinstance(CliRunner().invoke(cli.app, words).exception, _Stop)
    return seen


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("probe", {}),
        ("probe", {"input_size_px": 160, "conformal": "per-class", "test_fraction": 0.3, "feature_stages": (8,)}),
        ("cnn", {"epochs": 3, "layers": "conv 8x3, average", "augment": ""}),
        ("scratch", {"lr": 0.001}),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        SourceOptions(),
        SourceOptions(image_column="an 'image'", label_column="$(label)", group_column="g", split_column="s"),
        SourceOptions(
            labels=("a b", "c"), label_separator=";", group_pattern=r"patient(\d+)|-x", outside_root=True
        ),
    ],
)
def test_the_command_trains_the_same(recipe, settings, options, monkeypatch):
    asked = build_recipe(recipe, settings)
    seen = typed(training_command("/home/me/my photos", options, asked, 7), monkeypatch)
    assert seen["source"] == "my photos"
    assert seen["options"] == options
    assert build_recipe(seen["recipe"], seen["settings"]) == asked
    assert seen["seed"] == 7


def test_no_folder_is_named(monkeypatch):
    options = SourceOptions(root="/secret/root", exclude="/secret/fix.csv", relabel="/secret/fix.csv")
    command = training_command("/secret/photos.csv", options, build_recipe("probe"), 0)
    assert "secret" not in command
    found = typed(command, monkeypatch)["options"]
    assert [Path(value).name for value in (found.root, found.exclude, found.relabel)] == [
        "root",
        "fix.csv",
        "fix.csv",
    ]
    assert replace(found, root="", exclude="", relabel="") == SourceOptions()
    assert "hf:owner/name" in training_command("hf:owner/name", SourceOptions(), build_recipe("probe"), 0)
    assert "TABLE" in training_command("", SourceOptions(), build_recipe("probe"), 0)


def test_a_heat_map_is_about_the_class_that_is_named(run, photos):
    path = str(next((photos / "dots").iterdir()))
    model = read_model(run.model_path)
    engine = OpenVINOEngine(
        model.onnx_bytes, input_size_px=model.card.preprocess.input_size_px, outputs=("probs", HEATMAP)
    )
    (answer,) = iter_outputs(engine, model.card.preprocess, [path])
    for k in range(3):
        weights = np.delete(answer["probs"].astype(np.float64), k)
        rest = np.average(np.delete(answer[HEATMAP], k, axis=0), axis=0, weights=weights)
        found = class_maps(model, {path: path}, {path: k})[path]
        assert found == pytest.approx(answer[HEATMAP][k] - rest, abs=1e-3)


def test_places_are_covered_while_there_is_time(run, photos, tmp_path):
    model = read_model(run.model_path)
    assert has_class_maps(model)
    good = [str(path) for path in sorted((photos / "dots").iterdir())[:3]]
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = {path: path for path in [good[0], str(tmp_path / "broken.png"), *good[1:]]}
    about = dict.fromkeys(images, 1)
    found = occlusion_maps(model, images, about, seconds=60)
    assert list(found) == good
    engine = OpenVINOEngine(model.onnx_bytes, input_size_px=224, outputs=("probs",))
    pixels = load_input(good[0], model.card.preprocess)
    covered = np.repeat(pixels[None], 2, axis=0)
    covered[1, :32, 32:64] = 128
    whole, without = engine.run(covered)["probs"][:, 1]
    assert found[good[0]].shape == (7, 7)
    assert found[good[0]][0, 1] == pytest.approx(whole - without, abs=1e-3)
    assert occlusion_maps(model, images, about, seconds=0) == {}


def test_images_of_each_kind_take_turns():
    assert in_turns((["a", "b", "c"], ["b"], ["d", "a"])) == ["a", "b", "d", "c"]
    assert in_turns(((), ())) == []


def test_evaluate_writes_a_page_that_claims_no_more_than_it_knows(run, photos, tmp_path):
    page = tmp_path / "page.html"
    found = tellapart.evaluate(run.model_path, photos, report=page)
    text = page.read_text()
    accuracy = found["test"]["accuracy"]
    assert f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})" in text
    assert "Measured on 60 test images" in text
    assert "neither trained nor chose" not in text
    assert str(photos.parent) not in text
    assert "neither trained nor chose" in (run.folder / "report.html").read_text()
    assert not list(tmp_path.glob("*.tmp"))
