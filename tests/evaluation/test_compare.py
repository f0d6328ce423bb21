"""The statistics behind tellapart compare: against published figures, other implementations, and by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from tellapart.evaluation.compare import (
    Answers,
    changed,
    compare_answers,
    mcnemar,
    paired_difference,
    smallest_difference,
)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [  # statsmodels 0.15.0, mcnemar(..., exact=True)
        (1, 7, 0.0703125),
        (20, 2, 0.00012111663818359375),
        (5, 12, 0.143463134765625),
        (0, 3, 0.25),
        (121, 59, 4.4344492637551645e-06),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_against_statsmodels(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-9)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_mcnemar_against_scipy():
    for only_a in range(12):
        for only_b in range(1, 12):
            expected = binomtest(only_a, only_a + only_b, 0.5).pvalue
            assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_without_discordant_pairs_nothing_is_shown():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 0, mid_p=True) == 1


def test_mid_p():
    # Fagerland, Lydersen and Laake 2013, data of Bentur et al.: 1 and 7 discordant pairs, mid-p 0.039
    assert mcnemar(1, 7, mid_p=True) == pytest.approx(0.039, abs=5e-4)
    for n in range(1, 15):
        mids = [mcnemar(k, n - k, mid_p=True) for k in range(n + 1)]
        assert all(mid <= mcnemar(k, n - k) for k, mid in enumerate(mids))
        assert max(mids) <= 1


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # both, only A, only B, neither
        # Fagerland, Lydersen and Laake 2017, "Statistical Analysis of Contingency Tables", chapter 8, Cavo et al. 2012
        ((59, 16, 6, 80), -0.1186, -0.0046),
        # the formula on the Wilson intervals of statsmodels 0.15.0; the first is the same chapter's Bentur et al. 2009
        ((1, 7, 1, 12), -0.5069202267, -0.0255591242),
        ((90, 0, 0, 10), -0.0352957091, 0.0352957091),
        ((100, 0, 0, 0), -0.0369934982, 0.0369934982),
        ((0, 0, 0, 100), -0.0369934982, 0.0369934982),
        ((900, 12, 30, 58), 0.0051621056, 0.0315094122),
        ((5, 1, 3, 1), -0.1869620829, 0.5210862319),
        ((0, 5, 3, 0), -0.7263114284, 0.3885152108),
        ((850, 40, 55, 55), -0.0042726676, 0.0344954872),
    ],
)
def test_paired_difference(counts, low, high):
    found = paired_difference(*counts)
    both, only_a, only_b, neither = counts
    assert found.value == (only_b - only_a) / sum(counts)
    digits = 1e-9 if len(str(low)) > 8 else 5e-5
    assert (found.low, found.high) == pytest.approx((low, high), abs=digits)
    swapped = paired_difference(both, only_b, only_a, neither)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_no_images_no_difference():
    assert paired_difference(0, 0, 0, 0).value is None


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("shares", [(0.8, 0.06, 0.06, 0.08), (0.85, 0.03, 0.1, 0.02), (0.5, 0.25, 0.15, 0.1)])
def test_intervals_cover_and_the_test_keeps_its_level(n, shares):
    rng = np.random.default_rng(n)
    true = shares[2] - shares[1]
    tables = rng.multinomial(n, shares, size=1500)
    covered = wrong = 0
    for table in tables.tolist():
        found = paired_difference(*table)
        covered += found.low <= true <= found.high
        wrong += mcnemar(table[1], table[2]) <= 0.05
    assert 0.93 < covered / len(tables) <= 1
    if true == 0:
        assert wrong / len(tables) < 0.05 + 0.01


def test_the_smallest_difference_that_shows():
    assert smallest_difference(0, 100) == 0.06  # 6 of 6 is the first below 0.05, 5 of 5 is not
    assert mcnemar(0, 6) <= 0.05 < mcnemar(0, 5)
    for discordant in range(6, 60):
        more = round((smallest_difference(discordant, 1) + discordant) / 2)
        assert mcnemar(discordant - more, more) <= 0.05 < mcnemar(discordant - more + 1, more - 1)


def answers(labels, right, n_classes=3, prob=0.9):
    """One class an image: what a model says that is right where told, and else names the next class."""
    said = np.where(right, labels, (labels + 1) % n_classes)
    probs = np.full((len(labels), n_classes), (1 - prob) / (n_classes - 1))
    probs[np.arange(len(labels)), said] = prob
    return Answers(probs=probs, given=np.eye(n_classes, dtype=np.int64)[said])


def test_a_better_model_and_a_sentence_for_each_case():
    labels = np.arange(300) % 3
    worse = answers(labels, np.arange(300) >= 60)
    better = answers(labels, np.arange(300) >= 15)
    found = compare_answers(labels, worse, better, "abc")
    assert found["verdict"] == "b"
    assert found["sentence"].startswith("B is better: 15.0 points more accuracy (")
    assert found["pairs"] == {"both right": 240, "right to wrong": 0, "wrong to right": 45, "both wrong": 15}
    assert found["a"]["value"] == 0.8
    assert found["b"]["value"] == 0.95
    turned = compare_answers(labels, better, worse, "abc")
    assert turned["verdict"] == "a"
    assert turned["sentence"].startswith("A is better: 15.0 points more accuracy (")
    assert turned["difference"]["low"] == pytest.approx(-found["difference"]["high"])
    same = compare_answers(labels, better, better, "abc")
    assert same["verdict"] == "none"
    assert same["sentence"] == (
        "They cannot be told apart: with 300 images only differences of about 2.0 points or more show (p = 1)."
    )
    assert same["log_loss_difference"]["value"] == 0


def test_a_handful_of_images_shows_nothing():
    labels = np.array([0, 1, 2])
    found = compare_answers(labels, answers(labels, np.zeros(3, bool)), answers(labels, np.ones(3, bool)), "abc")
    assert found["verdict"] == "none"
    assert "with 3 images none can show" in found["sentence"]


def test_log_loss_and_classes_against_references():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 200)
    both = []
    for _ in range(2):
        probs = rng.dirichlet(np.ones(3), 200)
        both.append(Answers(probs=probs, given=np.eye(3, dtype=np.int64)[probs.argmax(axis=1)]))
    found = compare_answers(labels, *both, "abc")
    losses = [reference.log_loss(labels, said.probs) for said in both]
    assert found["log_loss_difference"]["value"] == pytest.approx(losses[1] - losses[0])
    assert found["log_loss_difference"]["low"] < losses[1] - losses[0] < found["log_loss_difference"]["high"]
    for side, said in zip("ab", both, strict=True):
        recalls = reference.recall_score(labels, said.given.argmax(axis=1), average=None)
        assert [found["per_class"][name][side]["value"] for name in "abc"] == pytest.approx(list(recalls))


def test_several_labels():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, (150, 3))
    both = []
    for noise in (2.0, 0.7):
        probs = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, noise, labels.shape))))
        both.append(Answers(probs=probs, given=(probs >= 0.5).astype(np.int64)))
    found = compare_answers(labels, *both, "abc")
    assert found["verdict"] == "b"
    assert found["measure"] == "exact match"
    for side, said in zip("ab", both, strict=True):
        assert found[side]["value"] == reference.accuracy_score(labels, said.given)
    maps = [reference.average_precision_score(labels, said.probs, average="macro") for said in both]
    assert found["map_difference"]["value"] == pytest.approx(maps[1] - maps[0])
    assert found["map_difference"]["low"] > 0
    assert found["log_loss_difference"]["high"] < 0


def test_changed_images_by_change_and_confidence():
    labels = np.array([0, 0, 0, 0, 0, 0])
    said_a = np.array([0, 0, 0, 1, 1, 1])
    said_b = np.array([0, 1, 2, 0, 2, 1])
    of_b = np.array([0.9, 0.6, 0.8, 0.7, 0.5, 0.9])
    probs = np.full((6, 3), 0.05)
    probs[np.arange(6), said_b] = of_b
    eye = np.eye(3, dtype=np.int64)
    found = changed(labels, Answers(probs=probs, given=eye[said_a]), Answers(probs=probs, given=eye[said_b]))
    assert found == [
        (2, "right to wrong", 0.8),
        (1, "right to wrong", 0.6),
        (3, "wrong to right", 0.7),
        (4, "both wrong", 0.5),
    ]


def test_changed_labels_are_as_sure_as_the_least_sure_of_them():
    labels = np.array([[1, 0]])
    a = Answers(probs=np.array([[0.9, 0.6]]), given=np.array([[1, 1]]))
    b = Answers(probs=np.array([[0.8, 0.3]]), given=np.array([[1, 0]]))
    assert changed(labels, a, b) == [(0, "wrong to right", pytest.approx(0.7))]
