"""The block ``test`` of a report: every value against scikit-learn, every interval against an independent way to it."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import binomtest
from sklearn import metrics as reference

from tellapart.evaluation.bootstrap import Resamples
from tellapart.evaluation.caveats import caveats
from tellapart.evaluation.classification import ClassificationRules
from tellapart.evaluation.metrics import balanced_accuracy, f1, kappa, macro_f1, top_k, wilson_interval
from tellapart.evaluation.multilabel import MultiLabelRules
from tellapart.evaluation.ranking import areas_under_curves, auroc_interval, rank_classes
from tellapart.evaluation.reliability import adaptive_bins, calibration_error, reliability
from tellapart.evaluation.selective import measure_verdicts, risk_coverage_area, selective_accuracy
from tellapart.records import Calibration, Interval, ModelCard, Preprocess

BOTH = ("macro_f1", "auroc", "log_loss", "brier", "ece", "aurc")
ONE_CLASS = (*BOTH, "accuracy", "balanced_accuracy", "kappa", "auprc")
MANY_LABELS = (*BOTH, "map", "micro_f1", "exact_match", "hamming_loss")
EMPTY = {"value": None, "low": None, "high": None}


def card(num_classes, task="classification"):
    return ModelCard(
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        preprocess=Preprocess(input_size_px=32),
        calibration=Calibration(temperature=1.0, method="calib", n=100),
        embedding_dim=4,
        created="2026-01-01T00:00:00Z",
        task=task,
        label_thresholds=(0.5,) * num_classes if task == "multilabel" else (),
    )


def one_class(n, num_classes, seed=0, *, ties=False):
    """Labels, and probabilities that are right more often than not; with ties, of few different values."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, n, p=rng.dirichlet([3.0] * num_classes))
    logits = rng.normal(0, 1, (n, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    return labels, softmax(np.round(logits) if ties else logits, axis=1)


def many_labels(n, num_classes, seed=0, *, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_classes)) < 0.3).astype(int)
    logits = rng.normal(0, 1, (n, num_classes)) + 2.0 * labels - 1.0
    return labels, expit(np.round(logits) if ties else logits)


def measure(labels, probs):
    task = "multilabel" if labels.ndim == 2 else "classification"
    rules = MultiLabelRules() if labels.ndim == 2 else ClassificationRules()
    return rules.measure(labels, {"probs": probs}, card(probs.shape[1], task))


def intervals(found, path=""):
    """Every interval in a document, with where it stands."""
    if isinstance(found, dict) and set(found) == {"value", "low", "high"}:
        yield path, found
    elif isinstance(found, dict | list):
        for key, part in found.items() if isinstance(found, dict) else enumerate(found):
            yield from intervals(part, f"{path}/{key}")


def values(found, names):
    return {name: found[name]["value"] for name in names}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "num_classes", "seed"), [(300, 4, 0), (200, 2, 1), (500, 10, 2), (40, 3, 3)])
def test_one_class_an_image_agrees_with_scikit_learn(n, num_classes, seed, ties):
    labels, probs = one_class(n, num_classes, seed, ties=ties)
    found, predicted = measure(labels, probs), probs.argmax(axis=1)
    truth = labels[:, None] == np.arange(num_classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "kappa": reference.cohen_kappa_score(labels, predicted),
        "auroc": reference.roc_auc_score(truth, probs, average="macro"),
        "auprc": reference.average_precision_score(truth, probs, average="macro"),
        "log_loss": reference.log_loss(labels, probs),
        "brier": np.square(probs - truth).sum(axis=1).mean(),
    }
    assert values(found, expected) == pytest.approx(expected)
    of_class = {
        "f1": reference.f1_score(labels, predicted, average=None),
        "auroc": reference.roc_auc_score(truth, probs, average=None),
        "auprc": reference.average_precision_score(truth, probs, average=None),
    }
    for name, each in of_class.items():
        assert [row[name]["value"] for row in found["per_class"].values()] == pytest.approx(list(each))
    assert set(found["top_k"]) == {str(k) for k in (2, 3, 5) if k < num_classes}
    if not ties:
        for k, share in found["top_k"].items():
            assert share["value"] == pytest.approx(reference.top_k_accuracy_score(labels, probs, k=int(k)))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "num_classes", "seed"), [(300, 4, 0), (200, 2, 1), (500, 10, 2), (60, 3, 3)])
def test_several_labels_an_image_agree_with_scikit_learn(n, num_classes, seed, ties):
    labels, probs = many_labels(n, num_classes, seed, ties=ties)
    found, given = measure(labels, probs), (probs >= 0.5).astype(int)
    expected = {
        "map": reference.average_precision_score(labels, probs, average="macro"),
        "macro_f1": reference.f1_score(labels, given, average="macro"),
        "micro_f1": reference.f1_score(labels, given, average="micro"),
        "exact_match": reference.accuracy_score(labels, given),
        "hamming_loss": reference.hamming_loss(labels, given),
        "auroc": reference.roc_auc_score(labels, probs, average="macro"),
        "log_loss": reference.log_loss(labels.ravel(), probs.ravel()),
        "brier": reference.brier_score_loss(labels.ravel(), probs.ravel()),
    }
    assert values(found, expected) == pytest.approx(expected)
    of_label = {
        "precision": reference.precision_score(labels, given, average=None),
        "recall": reference.recall_score(labels, given, average=None),
        "f1": reference.f1_score(labels, given, average=None),
        "average_precision": reference.average_precision_score(labels, probs, average=None),
        "auroc": reference.roc_auc_score(labels, probs, average=None),
    }
    for name, each in of_label.items():
        assert [row[name]["value"] for row in found["per_class"].values()] == pytest.approx(list(each))


@pytest.mark.parametrize("draw", [one_class, many_labels])
@pytest.mark.parametrize(
    ("n", "num_classes"), [(0, 2), (0, 3), (1, 2), (2, 2), (2, 6), (3, 4), (20, 2), (20, 30), (400, 5)]
)
def test_every_interval_holds_its_value_whatever_is_missing(draw, n, num_classes):
    """Never NaN, never a crash: without images, with one, with fewer images than classes, with images of one class."""
    labels, probs = draw(n, num_classes)
    for truth in (labels, np.zeros_like(labels), np.ones_like(labels)):
        found = measure(truth, probs.astype(np.float32))
        json.dumps(found, allow_nan=False)
        for path, interval in intervals(found):
            assert (interval == EMPTY) or interval["low"] <= interval["value"] <= interval["high"], path
        names = ONE_CLASS if labels.ndim == 1 else MANY_LABELS
        assert set(names) <= set(found)
        if not n:
            assert all(interval == EMPTY for _, interval in intervals(found))
            assert (found["reliability"], found["selective"], len(found["warnings"])) == ([], [], 1)
        else:
            assert found["accuracy" if labels.ndim == 1 else "exact_match"]["value"] is not None


@pytest.mark.parametrize("draw", [one_class, many_labels])
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_the_images_does_not_matter(draw, ties):
    labels, probs = draw(150, 4, ties=ties)
    order = np.random.default_rng(1).permutation(150)
    assert measure(labels, probs) == measure(labels[order], probs[order])


def test_a_class_without_test_images_has_no_numbers_and_does_not_count():
    labels, probs = one_class(200, 3)
    wider = np.column_stack([probs, np.zeros(200)])
    found, fewer = measure(labels, wider), measure(labels, probs)
    absent = found["per_class"]["class 3"]
    assert absent == {"n": 0} | dict.fromkeys(("precision", "recall", "f1", "auroc", "auprc"), EMPTY)
    same = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "auroc", "auprc", "log_loss", "brier", "ece")
    assert values(found, same) == pytest.approx(values(fewer, same))
    assert found["headline"] == ["accuracy", "balanced_accuracy"]
    assert "no test image of class 3: nothing was measured for what is not there" in found["warnings"]


@pytest.mark.parametrize(
    ("counts", "headline"),
    [([40, 40], 1), ([40, 20], 1), ([41, 20], 2), ([300, 10], 2)],
)
def test_balanced_accuracy_is_told_where_classes_are_imbalanced(counts, headline):
    labels = np.repeat([0, 1], counts)
    found = measure(labels, np.eye(2)[labels] * 0.8 + 0.1)
    assert found["headline"] == ["accuracy", "balanced_accuracy"][:headline]


@pytest.mark.parametrize(("draw", "n"), [(one_class, 40), (many_labels, 40), (one_class, 1000)])
def test_perfect_answers_do_not_prove_perfection(draw, n):
    labels, _ = draw(n, 3)
    probs = 0.1 + 0.8 * (np.eye(3)[labels] if labels.ndim == 1 else labels)
    probs = probs / probs.sum(axis=1, keepdims=True) if labels.ndim == 1 else probs
    found = measure(labels, probs)
    best = {"hamming_loss": 0.0, "aurc": 0.0}
    unbounded = ("log_loss", "brier", "ece")
    for name in ONE_CLASS if labels.ndim == 1 else MANY_LABELS:
        if name not in unbounded:
            interval = found[name]
            assert interval["value"] == pytest.approx(best.get(name, 1.0))
            assert interval["high"] - interval["low"] > 0.5 / n, name
    for row in found["per_class"].values():
        for name in set(row) - {"n"}:
            assert row[name]["value"] == 1
            assert row[name]["low"] < 1


def test_worst_answers():
    labels = np.arange(60) % 3
    found = measure(labels, np.eye(3)[(labels + 1) % 3])
    assert values(found, ("accuracy", "balanced_accuracy", "macro_f1", "brier", "ece", "aurc")) == {
        "accuracy": 0.0,
        "balanced_accuracy": 0.0,
        "macro_f1": 0.0,
        "brier": 2.0,
        "ece": 1.0,
        "aurc": 1.0,
    }
    assert found["kappa"]["value"] == pytest.approx(-0.5)
    assert found["auroc"]["value"] == pytest.approx(0.25)


def plain_bootstrap(statistic, *columns, rounds=600):
    """Percentiles over images drawn with replacement, one resample after another."""
    rng = np.random.default_rng(5)
    n = len(columns[0])
    drawn = []
    for _ in range(rounds):
        rows = rng.integers(0, n, n)
        drawn.append(statistic(*(column[rows] for column in columns)))
    return np.quantile(drawn, (0.025, 0.975))


def without_made_up_image(n, num_classes):
    drawn = Resamples.draw(n, num_classes)
    nothing = np.zeros_like(drawn.missed)
    return Resamples(weights=drawn.weights, missed=nothing, claimed=nothing)


NOISE = 0.12
"""Of an interval's width. An end from B resamples is off by 0.66 / sqrt(B) widths (1 SD): 0.027 for 600 drawn with replacement,
0.021 for our 1,000, 0.034 together; 0.12 is 3.5 of those."""

MADE_UP = {
    "macro_f1": 0.05,
    "micro_f1": 0.05,
    "kappa": 0.05,
    "hamming_loss": 0.05,
    "auroc": 0.1,
    "auprc": 0.15,
    "map": 0.25,
}
"""How far the made-up image moves an end, at most, of an interval's width with 1,500 images; it stands first, where average
precision weighs most. Other metrics do not know it."""

PLAIN = {
    "one class": {
        "balanced_accuracy": lambda y, p: reference.balanced_accuracy_score(y, p.argmax(axis=1)),
        "macro_f1": lambda y, p: reference.f1_score(y, p.argmax(axis=1), average="macro"),
        "kappa": lambda y, p: reference.cohen_kappa_score(y, p.argmax(axis=1)),
        "auroc": lambda y, p: reference.roc_auc_score(np.eye(3)[y], p),
        "auprc": lambda y, p: reference.average_precision_score(np.eye(3)[y], p),
        "log_loss": reference.log_loss,
        "brier": lambda y, p: np.square(p - np.eye(3)[y]).sum(axis=1).mean(),
    },
    "several labels": {
        "map": reference.average_precision_score,
        "macro_f1": lambda y, p: reference.f1_score(y, p >= 0.5, average="macro"),
        "micro_f1": lambda y, p: reference.f1_score(y, p >= 0.5, average="micro"),
        "hamming_loss": lambda y, p: reference.hamming_loss(y, p >= 0.5),
        "auroc": reference.roc_auc_score,
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in PLAIN.items() for name in names])
def test_intervals_are_those_of_a_plain_bootstrap(kind, name, monkeypatch):
    """But for the made-up image, which plain resamples know nothing of; it moves both ends the way of a mistake, and not far."""
    labels, probs = (one_class if kind == "one class" else many_labels)(1500, 3)
    low, high = plain_bootstrap(PLAIN[kind][name], labels, probs)
    shipped = measure(labels, probs)[name]
    plain = without_made_up_image(1500, 3)
    monkeypatch.setattr(Resamples, "draw", staticmethod(lambda *_: plain))
    found = measure(labels, probs)[name]
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=NOISE * (high - low))
    worse = 1 if name == "hamming_loss" else -1
    for end in ("low", "high"):
        assert -1e-9 <= worse * (shipped[end] - found[end]) <= MADE_UP.get(name, 0.0) * (high - low) + 1e-9


@pytest.mark.parametrize("n", [20, 40, 200])
def test_the_made_up_image_gives_right_answers_the_exact_lower_end(n):
    """All right: the share's lower end is Clopper and Pearson's, within the error of 1,000 draws."""
    there = np.ones((n, 1), bool) & (np.arange(2) == (np.arange(n) % 2)[:, None])
    drawn = Resamples.draw(n, 2)
    share = drawn.weights.sum(axis=0) / (drawn.weights.sum(axis=0) + drawn.made_up)
    exact = binomtest(n, n).proportion_ci(0.95, method="exact").low
    assert np.quantile(share[1:], 0.025) == pytest.approx(exact, abs=0.25 * (1 - exact))
    assert rank_classes(there, there.astype(float), drawn).macro_auroc.low < 1


def test_weighted_areas_are_scikit_learns_with_weights():
    labels, probs = one_class(120, 2, ties=True)
    weights = np.random.default_rng(0).exponential(size=(120, 5))
    roc, pr = areas_under_curves(labels == 1, probs[:, 1], weights)
    for b in range(5):
        found = {"sample_weight": weights[:, b]}
        assert roc[b] == pytest.approx(reference.roc_auc_score(labels, probs[:, 1], **found))
        assert pr[b] == pytest.approx(reference.average_precision_score(labels, probs[:, 1], **found))


def test_made_up_images_in_the_areas_are_images():
    """The weight of one that comes last, and of one that comes first, against rows of their own."""
    labels, probs = one_class(50, 2)
    weights = np.ones((50, 1))
    roc, pr = areas_under_curves(labels == 1, probs[:, 1], weights, missed=2.0, claimed=3.0)
    more = np.append(labels, [1, 0]), np.append(probs[:, 1], [-1.0, 2.0])
    known = {"sample_weight": np.append(np.ones(50), [2.0, 3.0])}
    assert roc[0] == pytest.approx(reference.roc_auc_score(*more, **known))
    assert pr[0] == pytest.approx(reference.average_precision_score(*more, **known))


# closed forms and coverage


@pytest.mark.parametrize(("hits", "there", "said"), [(8, 10, 9), (0, 4, 3), (5, 5, 5), (0, 0, 3), (0, 0, 0)])
def test_f1_is_a_share_in_disguise(hits, there, said):
    [found] = f1(np.array([hits]), np.array([there]), np.array([said]))
    union = there + said - hits
    if not union:
        assert found == Interval(value=None, low=None, high=None)
        return
    assert found.value == pytest.approx(2 * hits / (there + said))
    jaccard = binomtest(hits, union).proportion_ci(0.95, method="wilson")
    ends = [2 * share / (1 + share) for share in (jaccard.low, jaccard.high)]
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-9)


@pytest.mark.parametrize(
    ("value", "positives", "negatives"), [(0.5, 20, 30), (0.9, 20, 30), (1.0, 5, 5), (0.0, 7, 9)]
)
def test_auroc_interval_solves_its_equation(value, positives, negatives):
    found = auroc_interval(value, positives, negatives)
    more = (positives + negatives) / 2 - 1
    for end in (found.low, found.high):
        variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end))) / positives / negatives
        assert abs(end - value) == pytest.approx(1.959963984540054 * np.sqrt(variance), abs=1e-6)
    mirrored = auroc_interval(1 - value, positives, negatives)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_intervals_cover_the_truth():
    """Of 300 test sets of 100 images, 95 % should have an interval that holds what 30,000 other images show."""
    labels, probs = one_class(60_000, 3, seed=7)
    whole = measure(labels[:30_000], probs[:30_000])
    of_all = ("balanced_accuracy", "macro_f1", "kappa", "auroc", "auprc", "log_loss", "brier")
    of_class = ("precision", "recall", "f1", "auroc", "auprc")
    covered = dict.fromkeys([*of_all, *(f"class 0 {name}" for name in of_class)], 0)
    for start in range(30_000, 60_000, 100):
        found = measure(labels[start : start + 100], probs[start : start + 100])
        for name in of_all:
            covered[name] += found[name]["low"] <= whole[name]["value"] <= found[name]["high"]
        for name in of_class:
            interval, truth = (block["per_class"]["class 0"][name] for block in (found, whole))
            covered[f"class 0 {name}"] += interval["low"] <= truth["value"] <= interval["high"]
    assert all(270 <= count <= 297 for count in covered.values()), covered


@pytest.mark.parametrize(("n", "sharpness"), [(200, 1.0), (2000, 1.0), (400, 2.5)])
def test_calibration_error_covers_the_truth(n, sharpness):
    """Calibrated probabilities have an error of 0, and overconfident ones the one a million images show."""
    rng = np.random.default_rng(0)

    def draw(count):
        logits = rng.normal(1, 1, count)
        return expit(sharpness * logits), rng.random(count) < expit(logits)

    claimed, right = draw(1_000_000)
    truth = 0.0 if sharpness == 1 else abs(claimed - expit(np.log(claimed / (1 - claimed)) / sharpness)).mean()
    covered = 0
    for _ in range(100):
        claimed, right = draw(n)
        found = calibration_error(claimed, right, Resamples.draw(n, 2))
        covered += found.low <= truth <= found.high
    assert covered >= 88


# reliability


@pytest.mark.parametrize(
    ("n", "bins"), [(0, 0), (1, 1), (19, 1), (20, 2), (45, 4), (150, 15), (1000, 15), (100_000, 15)]
)
def test_bins_hold_equally_many(n, bins):
    probs = np.random.default_rng(0).random(n)
    found = reliability(probs, probs > 0.5)
    assert len(found) == bins
    assert sum(row["n"] for row in found) == n
    sizes = [row["n"] for row in found] or [0]
    assert max(sizes) - min(sizes) <= 1
    for row, following in pairwise(found):
        assert row["low"] <= row["prob"] <= row["high"] < following["low"]


def test_equal_probabilities_share_a_bin():
    probs = np.repeat([0.9, 0.1, 0.5], [50, 30, 20])
    assert adaptive_bins(probs).tolist() == [2] * 50 + [0] * 30 + [1] * 20
    rows = reliability(probs, np.arange(100) % 2 == 0)
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [
        (0.1, 0.1, 30),
        (0.5, 0.5, 20),
        (0.9, 0.9, 50),
    ]
    assert [row["share"]["value"] for row in rows] == [0.5, 0.5, 0.5]


def test_calibration_error_by_hand():
    probs, right = np.repeat([0.9, 0.6], 50), np.tile([True] * 4 + [False], 20)
    found = calibration_error(probs, right, Resamples.draw(100, 2))
    assert found.value == pytest.approx((0.1 + 0.2) / 2)
    pairs = calibration_error(probs.reshape(50, 2), right.reshape(50, 2), Resamples.draw(50, 2))
    assert pairs.value == pytest.approx(found.value)


# answering only the surest


def test_selective_accuracy_by_hand():
    confidence = np.array([0.9, 0.8, 0.8, 0.6])
    found = selective_accuracy(confidence, np.array([True, True, False, False]))
    assert [(row["answered"], row["min_prob"], row["accuracy"]["value"]) for row in found] == [
        (0.25, 0.9, 1.0),
        (0.75, 0.8, 2 / 3),
        (1.0, 0.6, 0.5),
    ]


def test_selective_accuracy_has_twenty_points_and_ends_at_accuracy():
    labels, probs = one_class(1000, 4)
    found = measure(labels, probs)
    shares = [row["answered"] for row in found["selective"]]
    assert shares == pytest.approx(list(np.arange(1, 21) / 20))
    assert found["selective"][-1]["accuracy"] == found["accuracy"]
    for row in found["selective"]:
        assert (probs.max(axis=1) >= row["min_prob"]).mean() == pytest.approx(row["answered"])


def test_risk_coverage_area_is_the_mean_of_running_error_rates():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(200), rng.random(200) < 0.7
    risks = np.cumsum(~right[np.argsort(-confidence)]) / np.arange(1, 201)
    found = risk_coverage_area(confidence, right, Resamples.draw(200, 2))
    assert found.value == pytest.approx(risks.mean())
    assert found.low < found.value < found.high
    together = risk_coverage_area(np.full(200, 0.5), right, Resamples.draw(200, 2))
    assert together.value == pytest.approx((~right).mean())


def test_verdicts_by_hand():
    right = np.array([True, True, False, False, True])
    found = measure_verdicts(["sure", "sure", "sure", "unsure", "unsure"], right)
    assert {name: row["n"] for name, row in found.items()} == {"sure": 3, "unsure": 2, "unfamiliar": 0}
    assert found["sure"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert (found["sure"]["share"]["value"], found["unsure"]["accuracy"]["value"]) == (0.6, 0.5)
    assert (found["unfamiliar"]["accuracy"], found["unfamiliar"]["share"]["value"]) == (EMPTY, 0.0)
    assert all(interval == EMPTY for _, interval in intervals(measure_verdicts([], np.zeros(0, bool))))


def test_right_is_what_accuracy_counts():
    labels, probs = one_class(100, 3)
    right = ClassificationRules().right(labels, {"probs": probs}, card(3))
    assert right.mean() == measure(labels, probs)["accuracy"]["value"]
    labels, probs = many_labels(100, 3)
    right = MultiLabelRules().right(labels, {"probs": probs}, card(3, "multilabel"))
    assert right.mean() == measure(labels, probs)["exact_match"]["value"]


# smaller things


def test_equal_probabilities_are_ranked_as_argmax_does():
    probs = np.array([[0.25, 0.25, 0.25, 0.25]] * 4)
    found = top_k(np.arange(4), probs)
    assert {k: share.value for k, share in found.items()} == {"2": 0.5, "3": 0.75}


def test_balanced_accuracy_of_one_class_is_its_recall():
    recall = wilson_interval(7, 9)
    found = balanced_accuracy([recall, wilson_interval(0, 0)])
    assert (found.value, found.low, found.high) == pytest.approx((recall.value, recall.low, recall.high))


def test_kappa_and_f1_by_hand():
    hits, there, said = (
        np.array(counts, float)[:, None].repeat(3, axis=1) for counts in ([20, 15], [25, 25], [30, 20])
    )
    assert kappa(hits, there, said).value == pytest.approx(0.4)
    assert macro_f1(hits, there, said).value == pytest.approx((40 / 55 + 30 / 45) / 2)


@pytest.mark.parametrize(
    ("successes", "n", "counts", "expected"),
    [
        (38, 40, {"cat": 20, "dog": 20}, ["with 40 test images, an accuracy of 95 % could be anything from 83 % to 99 %"]),
        (950, 1000, {"cat": 500, "dog": 500}, []),
        (1, 1, {"cat": 0, "dog": 1}, [
            "with 1 test image, an accuracy of 100 % could be anything from 20 % to 100 %",
            "no test image of cat: nothing was measured for what is not there",
            "fewer than 10 test images of dog (1): what is said of them alone may be chance",
        ]),
        (990, 1000, {"a": 970, "b": 9, "c": 3, "d": 8, "e": 5, "f": 5}, [
            "fewer than 10 test images of c (3), e (5), f (5) and 2 more: what is said of them alone may be chance",
        ]),
        (0, 0, {"cat": 0}, ["there are no test images: nothing was measured"]),
    ],
)  # fmt: skip
def test_caveats(successes, n, counts, expected):
    assert caveats("an accuracy", wilson_interval(successes, n), n, counts) == expected
