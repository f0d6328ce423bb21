"""Foreign images are flagged, ordinary ones are not, and classes are measured by their own spread."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tellapart.errors import RecipeError
from tellapart.evaluation import outliers
from tellapart.evaluation.outliers import MIN_CLASS_IMAGES, find_outliers


def two_classes(n=200, dim=30, seed=0):
    """Directions around two centres, the second class five times as wide as the first."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    centers = rng.uniform(0, 3, (2, dim))
    width = np.where(labels == 0, 0.1, 0.5)[:, None]
    return np.abs(centers[labels] + width * rng.normal(0, 1, (n, dim))), labels


@pytest.mark.parametrize("planted", [1, 3, 6])
def test_foreign_images_score_highest_and_are_flagged(planted):
    embeddings, labels = two_classes()
    rng = np.random.default_rng(1)
    foreign = rng.choice(len(labels), planted, replace=False)
    embeddings[foreign] = rng.uniform(0, 3, (planted, 30))
    found = find_outliers(embeddings, labels)
    assert set(np.argsort(-found.scores)[:planted]) == set(foreign)
    assert found.flagged[foreign].all()
    assert found.flagged.sum() <= planted + 2


def test_each_class_is_measured_by_its_own_spread():
    embeddings, labels = two_classes()
    rng = np.random.default_rng(2)
    # As far from its class as the other class' ordinary images are from theirs.
    embeddings[0] = np.abs(embeddings[labels == 0].mean(axis=0) + 0.5 * rng.normal(0, 1, 30))
    found = find_outliers(embeddings, labels)
    assert found.flagged[0]
    assert not found.flagged[1::2].any()


@pytest.mark.parametrize("seed", range(3))
def test_hardly_any_ordinary_image_is_flagged(seed):
    embeddings, labels = two_classes(n=2000, seed=seed)
    assert find_outliers(embeddings, labels).flagged.mean() < 0.01


def test_scores_by_hand():
    rng = np.random.default_rng(5)
    embeddings = rng.normal(0, 1, (60, 8))
    roots = np.sign(embeddings) * np.sqrt(np.abs(embeddings))
    roots /= np.sqrt((roots**2).sum(axis=1, keepdims=True))
    distances = np.sqrt(((roots[:, None] - roots) ** 2).sum(axis=2))
    nearest = np.sort(distances, axis=1)[:, 1:21]  # without the image itself
    values = np.log(nearest.mean(axis=1))
    deviations = values - np.median(values)
    expected = 0.6745 * deviations / np.median(np.abs(deviations))
    np.testing.assert_allclose(find_outliers(embeddings, np.zeros(60, int)).scores, expected, atol=1e-3)


def test_wrongly_filed_digits():
    digits = load_digits()
    labels = np.where(digits.target < 5, 0, digits.target)  # one class of five kinds
    labels = labels.copy()
    moved = np.flatnonzero(digits.target == 6)[:5]
    labels[moved] = 7
    ranked = np.argsort(-np.where(labels == 7, find_outliers(digits.data, labels).scores, -np.inf))
    assert len(set(ranked[:12]) & set(moved)) >= 4


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [
        (np.ones((50, 4)), np.zeros(50, int)),
        (np.zeros((50, 4)), np.zeros(50, int)),
        (np.eye(50), np.zeros(50, int)),
        (np.eye(50) + np.random.default_rng(0).uniform(0, 1e-12, (50, 50)), np.zeros(50, int)),
        (np.random.default_rng(0).normal(0, 1, (MIN_CLASS_IMAGES - 1, 4)), np.zeros(MIN_CLASS_IMAGES - 1, int)),
        (np.empty((0, 4)), np.array([], int)),
        (np.random.default_rng(0).normal(0, 1, (10, 4)), np.arange(10)),
    ],
    ids=["copies", "zeros", "all equally far", "but for a digit", "too few", "none", "one an image"],
)
def test_nothing_to_tell_them_apart_by(embeddings, labels):
    found = find_outliers(embeddings, labels)
    assert found.scores.shape == found.flagged.shape == labels.shape
    np.testing.assert_allclose(found.scores, 0, atol=1e-3)
    assert not found.flagged.any()


def test_neither_order_nor_class_numbers_nor_length_matter():
    embeddings, labels = two_classes()
    shuffle = np.random.default_rng(0).permutation(len(labels))
    found = find_outliers(embeddings, labels).scores
    np.testing.assert_allclose(
        find_outliers(embeddings[shuffle], labels[shuffle]).scores, found[shuffle], atol=1e-2
    )
    np.testing.assert_allclose(find_outliers(embeddings * 7, 90 - 3 * labels).scores, found, atol=1e-2)


def test_a_large_class_is_measured_against_some_of_it(monkeypatch):
    embeddings, labels = two_classes(n=1000)
    embeddings[:2] = np.random.default_rng(3).uniform(0, 3, (2, 30))
    whole = find_outliers(embeddings, labels)
    monkeypatch.setattr(outliers, "_MAX_REFERENCES", 100)
    monkeypatch.setattr(outliers, "_BLOCK_IMAGES", 64)
    some = find_outliers(embeddings, labels)
    assert set(np.argsort(-some.scores)[:2]) == {0, 1}
    assert some.flagged[:2].all()
    assert np.corrcoef(whole.scores, some.scores)[0, 1] > 0.9
    np.testing.assert_array_equal(some.scores, find_outliers(embeddings, labels).scores)


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [
        (np.ones((3, 2)), np.zeros(4, int)),
        (np.ones(3), np.zeros(3, int)),
        (np.ones((3, 2)), np.zeros((3, 2), int)),
    ],
)
def test_shapes_that_do_not_fit(embeddings, labels):
    with pytest.raises(RecipeError) as caught:
        find_outliers(embeddings, labels)
    assert caught.value.code == "bad-labels"
