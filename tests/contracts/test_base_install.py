"""What ships works where PyTorch is not installed at all."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base_python(tmp_path_factory):
    """The interpreter of a base install: ``make test`` has made one; otherwise it is made here."""
    given = os.environ.get("TELLAPART_BASE_PYTHON")
    if given:
        return given
    envs = tmp_path_factory.mktemp("envs")
    subprocess.run(["make", f"{envs}/base/.ready", f"ENVS={envs}"], cwd=ROOT, check=True, capture_output=True)
    return str(envs / "base/bin/python")


def run(python, *arguments):
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=False)


def test_no_torch_there(base_python):
    for package in ("torch", "torchvision", "timm"):
        done = run(base_python, "-c", f"import {package}")
        assert "ModuleNotFoundError" in done.stderr, f"{package} is installed in the base environment"


def test_train_evaluate_predict_explain_themselves(base_python, photos, tmp_path):
    program = "from tellapart.cli import main; main()"
    trained = run(base_python, "-c", program, "train", str(photos), "--out", str(tmp_path), "--json")
    assert trained.returncode == 0, trained.stderr
    model = json.loads(trained.stdout)["model"]
    evaluated = run(base_python, "-c", program, "evaluate", model, str(photos), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["test"]["n"] > 0
    predicted = run(base_python, "-c", program, "predict", model, str(photos))
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.count("\n") > 50


def test_serve_names_what_to_install(base_python):
    done = run(base_python, "-c", "from tellapart.cli import main; main()", "serve", "model.onnx")
    assert done.returncode == 1
    assert "[package-missing]" in done.stderr
    assert "tellapart[serve]" in done.stderr
