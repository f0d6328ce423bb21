"""Wrong labels come first, their number is about right, and probes that check labels never saw the image."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from tellapart.errors import RecipeError
from tellapart.evaluation.label_errors import confident_joint, find_label_errors
from tellapart.training import label_check
from tellapart.training.label_check import out_of_fold_probs


@pytest.mark.parametrize(
    ("label", "probs", "score", "suggested"),
    [
        (0, [0.9, 0.1], 0.1, 1),
        (1, [0.9, 0.1], 0.9, 0),
        (0, [0.5, 0.5], 0.5, 1),
        (0, [1.0, 0.0], 0.0, 1),
        (1, [1.0, 0.0], 1.0, 0),
        (2, [0.2, 0.6, 0.2], 0.48**0.5 / (0.48**0.5 + 0.2), 1),
        (0, [0.25, 0.25, 0.25, 0.25], 3**0.5 / (3**0.5 + 1), 1),
        (1, [0.0, 0.0], 0.5, 0),
    ],
)
def test_score_compares_the_label_with_its_best_rival_and_with_all(label, probs, score, suggested):
    found = find_label_errors(np.array([label]), np.array([probs], np.float32))
    assert found.score[0] == pytest.approx(score, abs=1e-6)
    assert found.suggested[0] == suggested


def test_an_image_that_could_be_anything_is_less_suspicious_than_one_with_a_rival():
    probs = np.array([[0.2, 0.2, 0.2, 0.2, 0.2], [0.25, 0.72, 0.01, 0.01, 0.01], [0.9, 0.1, 0, 0, 0]])
    found = find_label_errors(np.zeros(3, int), probs)
    assert found.order.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("suspicious", "less"),
    [
        ([0.2, 0.7, 0.1], [0.2, 0.4, 0.4]),
        ([0.3, 0.35, 0.35], [0.5, 0.5, 0.0]),
        ([0.1, 0.45, 0.45], [0.2, 0.8, 0.0]),
    ],
    ids=["one rival weighs more than two", "a low probability counts, too", "and more the lower it is"],
)
def test_what_is_more_suspicious(suspicious, less):
    assert find_label_errors(np.array([0, 0]), np.array([less, suspicious])).order[0] == 1


def test_no_label_that_is_the_likeliest_class_is_suspected():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(8, 0.7), 500)
    labels = rng.integers(0, 8, 500)
    found = find_label_errors(labels, probs)
    assert 100 < found.estimated < 500
    assert not (found.suspected & (probs.argmax(axis=1) == labels)).any()
    assert (found.score[probs.argmax(axis=1) != labels] > 0.5).all()


def test_confident_joint_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.55, 0.45], [0.1, 0.9]])
    # thresholds 0.6 and 0.717: the fifth image is confidently nothing
    assert confident_joint(labels, probs).tolist() == [[2, 1], [0, 2]]
    found = find_label_errors(labels, probs)
    assert found.estimated == 1
    assert found.suspected.tolist() == [False, False, True, False, False, False]
    assert found.order[0] == 2


@pytest.mark.parametrize(
    ("labels", "probs"),
    [
        (np.zeros(4, int), np.full((4, 2), 0.5)),
        (np.arange(4) % 2, np.full((4, 2), 0.5)),
        (np.arange(6) % 3, np.eye(3)[np.arange(6) % 3]),
        (np.array([], int), np.empty((0, 3))),
        (np.array([3, 3]), np.eye(5)[[3, 3]]),
    ],
    ids=["one class, no idea", "no idea", "all sure and right", "nothing", "classes without labels"],
)
def test_nothing_is_suspected_without_a_reason(labels, probs):
    found = find_label_errors(labels, probs)
    assert found.estimated == 0
    assert not found.suspected.any()
    assert sorted(found.order) == list(range(len(labels)))


@pytest.mark.parametrize(
    ("labels", "probs"),
    [
        (np.array([0, 1]), np.full((3, 2), 0.5)),
        (np.array([0, 2]), np.full((2, 2), 0.5)),
        (np.array([0, -1]), np.full((2, 2), 0.5)),
        (np.array([[0], [1]]), np.full((2, 2), 0.5)),
        (np.array([0, 0]), np.ones((2, 1))),
        (np.array([0, 1]), np.array([[0.5, np.nan], [0.5, 0.5]])),
        (np.array([0, 1]), np.array([[0.5, -0.1], [0.5, 0.5]])),
        (np.array([0, 1]), np.array([0.5, 0.5])),
    ],
)
def test_bad_input_is_refused(labels, probs):
    with pytest.raises(RecipeError) as caught:
        find_label_errors(labels, probs)
    assert caught.value.code == "bad-labels"


def test_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), 200)
    labels = rng.integers(0, 4, 200)
    shuffle = rng.permutation(200)
    found, shuffled = find_label_errors(labels, probs), find_label_errors(labels[shuffle], probs[shuffle])
    np.testing.assert_array_equal(found.score[shuffle], shuffled.score)
    np.testing.assert_array_equal(found.suspected[shuffle], shuffled.suspected)
    np.testing.assert_array_equal(found.order, shuffle[shuffled.order])


def noisy_digits(rate, n=1000):
    """Digits of which about a share of ``rate`` is called one of the next three."""
    digits = load_digits()
    rng = np.random.default_rng(1)
    truth = digits.target[:n]
    wrong = rng.random(n) < rate
    labels = np.where(wrong, (truth + rng.integers(1, 4, n)) % 10, truth)
    return digits.data[:n].astype(np.float32), labels, truth


@pytest.mark.parametrize(("rate", "least_precision"), [(0.05, 0.93), (0.2, 0.95), (0.4, 0.93)])
def test_wrong_digits_are_found(rate, least_precision):
    features, labels, truth = noisy_digits(rate)
    wrong = labels != truth
    probs = out_of_fold_probs(features, labels, seed=0)
    assert probs.shape == (1000, 10)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    found = find_label_errors(labels, probs)
    assert average_precision_score(wrong, found.score) > least_precision
    assert found.estimated == pytest.approx(wrong.sum(), rel=0.25)
    assert found.suspected.sum() == found.estimated
    assert wrong[found.suspected].mean() > 0.8
    assert (found.suggested[wrong & found.suspected] == truth[wrong & found.suspected]).mean() > 0.85


def test_few_clean_digits_are_suspected():
    features, labels, _ = noisy_digits(0.0)
    assert find_label_errors(labels, out_of_fold_probs(features, labels, seed=0)).estimated < 20


@pytest.mark.parametrize("limit", [20_000, 200])
def test_random_labels_are_not_learned_by_heart(limit, monkeypatch):
    monkeypatch.setattr(label_check, "MAX_FOLD_IMAGES", limit)
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (600, 400)).astype(np.float32)
    labels = rng.permutation(np.arange(600) % 4)
    probs = out_of_fold_probs(features, labels, seed=0)
    assert abs((probs.argmax(axis=1) == labels).mean() - 0.25) < 0.07


def test_same_seed_same_probs_and_another_seed_others():
    features, labels, _ = noisy_digits(0.2, n=300)
    first, again, other = (out_of_fold_probs(features, labels, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_many_images_are_all_answered_by_probes_of_some(monkeypatch):
    monkeypatch.setattr(label_check, "MAX_FOLD_IMAGES", 300)
    monkeypatch.setattr(label_check, "MAX_SEARCH_IMAGES", 200)
    monkeypatch.setattr(label_check, "_BLOCK_IMAGES", 64)
    features, labels, truth = noisy_digits(0.1)
    probs = out_of_fold_probs(features, labels, seed=0)
    assert np.isfinite(probs).all()
    assert (probs.argmax(axis=1) == truth).mean() > 0.85


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_class_of_hardly_any_images(rare):
    features, labels, truth = noisy_digits(0.0, n=400)
    keep = np.flatnonzero((truth < 3) | (np.cumsum(truth == 9) <= rare) & (truth == 9))
    probs = out_of_fold_probs(features[keep], labels[keep], seed=0)
    assert probs.shape == (len(keep), 10)
    assert np.isfinite(probs).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.arange(9) % 2, np.eye(2, dtype=int)[np.arange(10) % 2]])
def test_labels_that_cannot_be_checked(labels):
    with pytest.raises(RecipeError) as caught:
        out_of_fold_probs(np.ones((10, 3), np.float32), labels, seed=0)
    assert caught.value.code == "bad-labels"
