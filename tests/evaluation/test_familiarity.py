"""Familiarity: the distance against scikit-learn's, the false alarms by simulation, and no image that breaks it."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from tellapart.evaluation import familiarity
from tellapart.evaluation.familiarity import directions, fit_familiarity, fit_familiarity_rule, fit_gaussian


def embeddings(n, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim))


@pytest.mark.parametrize("n", [5, 40, 500])
def test_distances_against_scikit_learn(n):
    """With all directions but one having a variance of their own it is the whole covariance."""
    train, new = embeddings(n), embeddings(30, seed=1)
    expected = LedoitWolf().fit(directions(train)).mahalanobis(directions(new))
    assert np.square(fit_gaussian(train).distances(new)) == pytest.approx(expected, rel=1e-6)


def test_few_directions_and_one_variance_for_the_rest(monkeypatch):
    monkeypatch.setattr(familiarity, "COMPONENTS", 3)
    train, new = embeddings(200), embeddings(20, seed=1)
    values, axes = np.linalg.eigh(LedoitWolf().fit(directions(train)).covariance_)
    values[:-3] = values[:-3].mean()
    projected = (directions(new) - directions(train).mean(axis=0)) @ axes
    expected = np.sqrt((projected**2 / values).sum(axis=1))
    assert fit_gaussian(train).distances(new) == pytest.approx(expected, rel=1e-6)


def test_the_score_by_hand():
    train = embeddings(60)
    fold = np.arange(60) % 2
    logits = np.array([[1.0, 0.0], [0.0, 3.0]])
    found, distances = fit_familiarity(train, logits, fold)
    for part in (0, 1):
        other = fit_gaussian(train[fold != part])
        assert distances[fold == part] == pytest.approx(other.distances(train[fold == part]))
    assert found.logit == (2.0, 1.0)
    nearness = (distances.mean() - found.gaussian.distances(train[:2])) / distances.std()
    scores = found.score(train[:2], np.array([[0.5, 0.0], [9.0, 0.0]]))
    assert scores == pytest.approx(nearness + np.array([-1.5, 1.0])), "the second is capped"


@pytest.mark.parametrize(
    "train",
    [
        np.zeros((6, 4)),
        np.ones((6, 4)),
        np.eye(4)[[0, 1, 0, 1, 0, 1]],
        embeddings(4, dim=300),
        np.ones((4, 2)),
        embeddings(6, dim=1),
    ],
    ids=["nothing", "constant", "two points", "fewer than dimensions", "two dimensions", "one dimension"],
)
def test_it_is_always_a_number(train):
    found, _ = fit_familiarity(train, np.zeros((4, 3)), np.arange(len(train)) % 2)
    new = np.concatenate([train, np.zeros_like(train), embeddings(3, dim=train.shape[1])])
    assert np.isfinite(found.score(new, np.zeros((len(new), 3)))).all()


@pytest.mark.parametrize(("n", "rate"), [(49, 0.02), (200, 0.02), (99, 0.05)])
def test_false_alarms_stay_below_the_rate_on_new_images(n, rate):
    rng = np.random.default_rng(n)
    alarms = [fit_familiarity_rule(rng.random(n), rate=rate, method="calib").threshold for _ in range(4_000)]
    error = 4 * np.std(alarms) / np.sqrt(len(alarms))
    assert (
        rate - 1 / (n + 1) - error <= np.mean(alarms) <= rate + error
    )  # of uniform scores, the threshold is the share


def test_with_too_few_images_less_is_promised():
    scores = np.array([0.4, -1.0, 2.0])
    rule = fit_familiarity_rule(scores, rate=0.02, method="cross-fit")
    assert (rule.threshold, rule.promised, rule.achieved, rule.n) == (-1.0, 0.25, 0.0, 3)


def test_features_that_never_move_do_not_magnify_rounding():
    """As most of a network's may do; the square root makes much of little."""
    train = np.zeros((1_000, 256))
    train[:, :32] = np.abs(embeddings(1_000, dim=8) @ np.random.default_rng(3).standard_normal((8, 32)))
    found, distances = fit_familiarity(train, np.zeros((4, 2)), np.arange(1_000) % 2)
    rounding = np.random.default_rng(1).uniform(0, 2.0**-12, train.shape) * train.mean()
    moved = found.gaussian.distances(train + rounding) - found.gaussian.distances(train)
    assert np.abs(moved).max() < distances.std()


def test_strange_images_score_lower():
    rng = np.random.default_rng(0)
    train = np.abs(rng.standard_normal((300, 20))) * np.repeat([3, 1], 10)
    strange = np.abs(rng.standard_normal((50, 20))) * np.repeat([1, 3], 10)
    found, distances = fit_familiarity(train, np.zeros((4, 2)), np.arange(300) % 2)
    rule = fit_familiarity_rule(-distances, rate=0.02, method="cross-fit")
    assert (-found.gaussian.distances(strange) < rule.threshold).mean() > 0.9
