"""tellapart compare: two model files on the same images."""

import csv
import json
from dataclasses import replace

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import tellapart
from tellapart.cli import app
from tellapart.errors import ModelError
from tellapart.inference.model import pack, read_model


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def with_head(model_path, out, *, order=(0, 1, 2), bias=(0.0, 0.0, 0.0), names=None):
    """The same model with its classes in another order, and something added to each logit."""
    model = read_model(model_path)
    graph = onnx.load_model_from_string(model.onnx_bytes)
    for tensor in graph.graph.initializer:
        if tensor.name in ("head.weight", "head.bias"):
            value = numpy_helper.to_array(tensor)[..., list(order)]
            value = value + np.array(bias, np.float32) if tensor.name == "head.bias" else value
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    class_names = names or tuple(model.card.class_names[k] for k in order)
    pack(graph, replace(model.card, class_names=class_names)).save(out)
    return out


@pytest.fixture(scope="module")
def forgetful(run, tmp_path_factory):
    """The model of ``run``, but it never says dots."""
    return with_head(run.model_path, tmp_path_factory.mktemp("worse") / "model.onnx", bias=(0.0, -99.0, 0.0))


def test_a_worse_model(run, forgetful, photos, tmp_path):
    found = tellapart.compare(forgetful, run.model_path, photos)
    evaluated = [tellapart.evaluate(path, photos)["test"] for path in (forgetful, run.model_path)]
    assert [found.result["a"], found.result["b"]] == [test["accuracy"] for test in evaluated]
    assert found.result["verdict"] == "b"
    assert found.result["sentence"].startswith("B is better: ")
    losses = [test["log_loss"]["value"] for test in evaluated]
    assert found.result["log_loss_difference"]["value"] == pytest.approx(losses[1] - losses[0])
    assert found.result["n"] == found.dataset["used"] == 60
    done = call("compare", forgetful, run.model_path, photos, "-o", tmp_path / "changed.csv")
    assert done.exit_code == 0, done.output
    assert found.result["sentence"] in done.stdout
    with (tmp_path / "changed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [change["path"] for change in found.changed]
    counts = found.result["pairs"]
    for change in ("right to wrong", "wrong to right"):
        assert sum(row["change"] == change for row in rows) == counts[change]
    assert all(row["a"] != row["b"] == "dots" for row in rows)
    assert all((row["label"] == "dots") == (row["change"] == "wrong to right") for row in rows)
    assert json.loads(call("compare", forgetful, run.model_path, photos, "--json").stdout)["pairs"] == counts


def test_a_model_against_itself_in_another_order_of_classes(run, photos, tmp_path):
    turned = with_head(run.model_path, tmp_path / "turned.onnx", order=(2, 0, 1))
    found = tellapart.compare(run.model_path, turned, photos)
    assert found.changed == ()
    assert found.result["verdict"] == "none"
    assert found.result["difference"]["value"] == 0
    assert "cannot be told apart" in found.result["sentence"]
    assert abs(found.result["log_loss_difference"]["value"]) < 1e-3


def test_models_that_cannot_be_compared(run, photos, tmp_path):
    other = with_head(run.model_path, tmp_path / "other.onnx", names=("blobs", "spots", "stripes"))
    with pytest.raises(ModelError, match="only A knows dots; only B knows spots") as caught:
        tellapart.compare(run.model_path, other, photos)
    assert caught.value.code == "models-differ"
    labelled = replace(
        read_model(run.model_path).card, task="multilabel", label_thresholds=(0.5, 0.5, 0.5), conformal=None
    )
    read_model(run.model_path).with_card(labelled).save(tmp_path / "labels.onnx")
    done = call("compare", run.model_path, tmp_path / "labels.onnx", photos, "--json")
    assert json.loads(done.stdout)["error"]["code"] == "models-differ"


def test_unreadable_images_count_for_neither(run, forgetful, photos, tmp_path):
    good = sorted((photos / "dots").iterdir())[:4]
    broken = tmp_path / "broken.png"
    broken.write_bytes(good[0].read_bytes()[:200])
    table = pl.DataFrame({"path": [str(path) for path in [*good, broken]], "label": ["dots"] * 5})
    found = tellapart.compare(run.model_path, forgetful, table, tellapart.SourceOptions(outside_root=True))
    assert found.result["n"] == 4
    assert found.dataset["refused"] == 1


def test_several_labels(run, photos, tmp_path):
    card = read_model(run.model_path).card
    models = []
    for name, thresholds in (("some", (0.5, 0.5, 0.5)), ("none", (1.0, 1.0, 1.0))):
        labelled = replace(card, task="multilabel", conformal=None, label_thresholds=thresholds)
        read_model(run.model_path).with_card(labelled).save(tmp_path / f"{name}.onnx")
        models.append(tmp_path / f"{name}.onnx")
    rows = [
        {"path": str(path), **{other: int(other == name) for other in card.class_names}}
        for name in card.class_names
        for path in sorted((photos / name).iterdir())
    ]
    options = tellapart.SourceOptions(labels=card.class_names, outside_root=True)
    found = tellapart.compare(*models, pl.DataFrame(rows), options)
    assert found.result["measure"] == "exact match"
    assert found.result["verdict"] == "a"
    assert found.result["b"]["value"] == 0
    assert found.result["map_difference"]["value"] == 0
    assert {change["b"] for change in found.changed} == {""}
    pl.DataFrame(rows).write_csv(tmp_path / "labels.csv")
    labels = ",".join(card.class_names)
    done = call("compare", *models, tmp_path / "labels.csv", "--labels", labels, "--outside-root")
    assert "mAP, B - A: +0.0" in done.stdout, done.output
