"""Familiarity: the distance against scikit-learn's, the false alarms by simulation, and no image that breaks it."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from tellapart.evaluation import familiarity
from tellapart.evaluation.familiarity import (
    directions,
    expected_alarms,
    fit_familiarity,
    fit_familiarity_rule,
    fit_gaussian,
)


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
    fitted = fit_familiarity(train, logits, fold)
    found, distances = fitted.score, fitted.distances
    for part in (0, 1):
        other = fit_gaussian(train[fold != part])
        assert distances[fold == part] == pytest.approx(other.distances(train[fold == part]))
    assert found.logit == (2.0, 1.0)
    nearness = (distances.mean() - found.gaussian.distances(train[:2])) / distances.std()
    given = np.array([[0.5, 0.0], [9.0, 0.0]])
    lengths = np.sqrt(np.abs(train).sum(axis=1))
    assert found.length == pytest.approx((lengths.mean(), lengths.std()))
    odd = np.maximum(np.abs(lengths[:2] - lengths.mean()) / lengths.std() - 2, 0)
    expected = nearness + 2 * np.array([-1.5, 1.0]) - 2 * odd
    assert found.score(train[:2], given) == pytest.approx(expected), "the second is capped"
    cross_fitted = (distances.mean() - distances[:2]) / distances.std()
    expected = cross_fitted + 2 * np.array([-1.5, 1.0]) - 2 * odd
    assert fitted.held_out(np.array([0, 1]), given) == pytest.approx(expected)


@pytest.mark.parametrize("times", [0.01, 100.0])
def test_an_odd_length_counts_against_an_image_however_near_it_is(times):
    train = np.abs(embeddings(200)) + 1
    found = fit_familiarity(train, np.zeros((4, 2)), np.arange(200) % 2).score
    logits = np.zeros((200, 2))
    own, other = found.score(train, logits), found.score(times * train, logits)
    assert found.gaussian.distances(times * train) == pytest.approx(found.gaussian.distances(train))
    assert other.max() < own.min() - 5


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
    found = fit_familiarity(train, np.zeros((4, 3)), np.arange(len(train)) % 2).score
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


@pytest.mark.parametrize(("n", "rate"), [(20, 0.02), (49, 0.02), (200, 0.02), (99, 0.05)])
def test_how_far_false_alarms_scatter(n, rate):
    """Uniform scores: the threshold is the share of new images below it."""
    rng = np.random.default_rng(n)
    rules = [fit_familiarity_rule(rng.random(n), rate=rate, method="calib") for _ in range(4_000)]
    low, high = np.quantile([rule.threshold for rule in rules], (0.025, 0.975))
    assert expected_alarms(rules[0]) == pytest.approx((low, high), rel=0.25, abs=3e-4)


def test_with_too_few_images_less_is_promised():
    scores = np.array([0.4, -1.0, 2.0])
    rule = fit_familiarity_rule(scores, rate=0.02, method="cross-fit")
    assert (rule.threshold, rule.promised, rule.achieved, rule.n) == (-1.0, 0.25, 0.0, 3)


def test_features_that_never_move_do_not_magnify_rounding():
    """As most of a network's may do; the square root makes much of little."""
    train = np.zeros((1_000, 256))
    train[:, :32] = np.abs(embeddings(1_000, dim=8) @ np.random.default_rng(3).standard_normal((8, 32)))
    fitted = fit_familiarity(train, np.zeros((4, 2)), np.arange(1_000) % 2)
    found, distances = fitted.score, fitted.distances
    rounding = np.random.default_rng(1).uniform(0, 2.0**-12, train.shape) * train.mean()
    moved = found.gaussian.distances(train + rounding) - found.gaussian.distances(train)
    assert np.abs(moved).max() < distances.std()


def test_strange_images_score_lower():
    rng = np.random.default_rng(0)
    train = np.abs(rng.standard_normal((300, 20))) * np.repeat([3, 1], 10)
    strange = np.abs(rng.standard_normal((50, 20))) * np.repeat([1, 3], 10)
    fitted = fit_familiarity(train, np.zeros((4, 2)), np.arange(300) % 2)
    found, distances = fitted.score, fitted.distances
    rule = fit_familiarity_rule(-distances, rate=0.02, method="cross-fit")
    assert (-found.gaussian.distances(strange) < rule.threshold).mean() > 0.9
