"""calibrate: what it does to the held-out images, and that it does nothing where nothing is won."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from tellapart.training.calibrate import calibrate
from tellapart.training.recipes import build_recipe

RECIPE = build_recipe("probe")


def fitted(logits, labels):
    return SimpleNamespace(held_out_logits=logits.astype(np.float32), held_out_labels=labels, method="calib")


def too_sure(n=500, num_classes=3):
    """Labels, and logits that are twice as far apart as they should be."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, num_classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return 2 * logits, labels


def test_before_and_after_are_those_of_the_held_out_images():
    logits, labels = too_sure()
    calibration, _, _ = calibrate(fitted(logits, labels), RECIPE, "classification")
    assert calibration.temperature == pytest.approx(2, rel=0.15)
    for temperature, errors in ((1.0, calibration.before), (calibration.temperature, calibration.after)):
        exponents = np.exp(logits / temperature)
        expected = log_loss(labels, exponents / exponents.sum(axis=1, keepdims=True))
        assert errors["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert calibration.after["ece"] < calibration.before["ece"]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_temperature_stays_1_where_it_wins_nothing(task):
    labels = np.arange(60) % 2
    labels = np.eye(2, dtype=int)[labels] if task == "multilabel" else labels
    calibration, _, _ = calibrate(fitted(np.zeros((60, 2)), labels), RECIPE, task)
    assert calibration.temperature == 1
    assert calibration.before == calibration.after
    assert calibration.before["log_loss"] == pytest.approx(np.log(2))


def test_a_temperature_must_be_shown_to_be_better():
    """Answers that need none keep 1 most of the time, and any other has won more than a standard error."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        logits = rng.normal(0, 2, (80, 3))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        temperature = calibrate(fitted(logits, labels), RECIPE, "classification")[0].temperature
        found.append(temperature)
        if temperature != 1:
            rows = np.arange(80), labels
            gains = log_softmax(logits / temperature, axis=1)[rows] - log_softmax(logits, axis=1)[rows]
            assert gains.mean() > gains.std(ddof=1) / np.sqrt(80) - 1e-6
    assert 0 < np.mean(np.array(found) != 1) < 0.35
