"""Prediction sets: the promise by simulation, thresholds for each class, and what is measured of them."""

import numpy as np
import pytest
from scipy.stats import beta

from tellapart.errors import ModelError
from tellapart.evaluation.classification import ClassificationRules
from tellapart.evaluation.conformal import exact_interval, measure_coverage, smallest_prob
from tellapart.evaluation.decide import decide
from tellapart.evaluation.multilabel import MultiLabelRules
from tellapart.records import Calibration, ConformalRule, FamiliarityRule, ModelCard, Preprocess, SetLevel

NAMES = ("cat", "dog", "fox")


def draw(rng, n, num_classes=3):
    """Labels drawn from the very probabilities that are given."""
    probs = rng.dirichlet(np.full(num_classes, 0.5), size=n)
    labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    return np.minimum(labels, num_classes - 1), probs


def card(conformal, **changes):
    values = {
        "class_names": NAMES,
        "preprocess": Preprocess(input_size_px=32),
        "calibration": Calibration(temperature=1.0, method="calib", n=100),
        "embedding_dim": 4,
        "created": "",
        "conformal": conformal,
    }
    return ModelCard(**values | changes)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [20, 57, 200])
def test_the_promise_holds_on_average(coverage, n):
    """Mean over many draws: at least the coverage, and above it by at most one image in n + 1 where no ties are."""
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(3_000):
        truth = rng.random(n)
        covered.append(1 - smallest_prob(truth, coverage=coverage))  # of uniform new ones
    error = 4 * np.std(covered) / np.sqrt(len(covered))
    assert coverage - error <= np.mean(covered) <= coverage + 1 / (n + 1) + error


def test_pairs_of_one_image_that_depend_on_each_other_keep_the_promise():
    """All labels of an image are right or wrong together: then it is images that count, not pairs."""
    rng = np.random.default_rng(1)
    found = [1 - smallest_prob(np.repeat(rng.random((19, 1)), 10, axis=1), coverage=0.9) for _ in range(4_000)]
    assert np.mean(found) >= 0.9 - 4 * np.std(found) / np.sqrt(len(found))


@pytest.mark.parametrize(("n", "vacuous"), [(18, True), (19, False)])
def test_with_too_few_images_everything_is_in_every_set(n, vacuous):
    labels, probs = draw(np.random.default_rng(0), n)
    rule = ClassificationRules().fit_conformal(probs, labels, coverage=0.95)
    assert [level.coverage for level in rule.levels] == [0.8, 0.9, 0.95, 0.99]
    assert rule.level().vacuous == vacuous
    assert rule.level(0.99).vacuous


def test_sets_grow_with_the_coverage():
    labels, probs = draw(np.random.default_rng(3), 500)
    rule = ClassificationRules().fit_conformal(probs, labels, coverage=0.85)
    thresholds = [level.min_probs[0] for level in rule.levels]
    assert [level.coverage for level in rule.levels] == [0.8, 0.85, 0.9, 0.95, 0.99]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 5


def test_per_class_each_class_keeps_its_promise_where_one_threshold_does_not():
    rng = np.random.default_rng(5)
    labels = rng.integers(3, size=30_000)
    of_truth = np.array([0.9, 0.5, 0.3])[labels] * rng.random(len(labels))  # the third class is harder
    probs = np.repeat((1 - of_truth)[:, None] / 2, 3, axis=1)
    probs[np.arange(len(labels)), labels] = of_truth
    half = len(labels) // 2
    held = {}
    for per_class in (True, False):
        rule = ClassificationRules().fit_conformal(probs[:half], labels[:half], coverage=0.9, per_class=per_class)
        kept = of_truth[half:] >= np.broadcast_to(rule.level().min_probs, (3,))[labels[half:]]
        held[per_class] = [kept[labels[half:] == k].mean() for k in range(3)]
    assert held[True] == pytest.approx([0.9] * 3, abs=0.015)
    assert min(held[False]) < 0.85


def test_classes_with_few_images_share_a_threshold():
    labels = np.array([0] * 100 + [1] * 12 + [2] * 3 + [3] * 2)
    of_truth = np.linspace(0.2, 0.8, len(labels))
    probs = np.repeat((1 - of_truth)[:, None] / 3, 4, axis=1)
    probs[np.arange(len(labels)), labels] = of_truth
    rule = ClassificationRules().fit_conformal(probs, labels, coverage=0.9, per_class=True)
    own, joined, few, fewest = rule.level(0.9).min_probs
    assert own == smallest_prob(of_truth[:100], coverage=0.9)
    assert joined == few == fewest == smallest_prob(of_truth[100:], coverage=0.9) > 0, "12 + 3 + 2 are over 9"


def test_each_label_has_its_own_threshold():
    rng = np.random.default_rng(2)
    probs, labels = rng.random((50, 3)), rng.integers(2, size=(50, 3))
    rule = MultiLabelRules().fit_conformal(probs, labels, coverage=0.9, per_class=True, method="cross-fit")
    of_truth = np.where(labels, probs, 1 - probs)
    assert rule.level().min_probs == tuple(smallest_prob(of_truth[:, k], coverage=0.9) for k in range(3))
    assert (rule.n, rule.method) == (50, "cross-fit")


@pytest.mark.parametrize(("method", "promised"), [("calib", 0.9), ("cross-fit", 0.8)])
def test_what_is_promised(method, promised):
    labels, probs = draw(np.random.default_rng(0), 60)
    rule = ClassificationRules().fit_conformal(probs, labels, coverage=0.95, method=method)
    assert rule.promised(0.9) == pytest.approx(promised)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 7), (940, 1000), (1, 1)])
def test_exact_interval_against_the_beta_distribution(hits, n):
    found = exact_interval(hits, n)
    assert found.low == pytest.approx(beta.ppf(0.025, hits, n - hits + 1) if hits else 0)
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1)
    assert found.value == hits / n
    assert exact_interval(0, 0).value is None


def test_coverage_by_hand():
    levels = (SetLevel(coverage=0.8, min_probs=(0.6,)), SetLevel(coverage=0.9, min_probs=(0.3,)))
    rule = ConformalRule(coverage=0.9, levels=levels, method="calib", per_class=False, n=9)
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.2, 0.6]])
    strict, loose = measure_coverage(np.array([0, 1, 2, 0]), probs, card(rule))
    assert (strict["wanted"], strict["covered"]["value"], strict["mean_size"]) == (0.8, 0.5, 0.75)
    assert (strict["single"], strict["empty"]) == (3, 1)
    assert (loose["wanted"], loose["covered"]["value"], loose["mean_size"]) == (0.9, 0.75, 1.5)
    assert (loose["single"], loose["empty"]) == (2, 0)
    assert measure_coverage(np.zeros(0, np.int64), np.zeros((0, 3)), card(rule)) == []
    assert measure_coverage(np.array([0]), probs[:1], card(None)) == []
    pairs = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]])
    several = card(rule, task="multilabel", label_thresholds=(0.5,) * 3)
    assert [level["covered"]["value"] for level in measure_coverage(pairs, probs, several)] == [11 / 12, 1.0]


def familiarity_rule():
    return FamiliarityRule(threshold=0.0, rate=0.02, promised=0.02, achieved=0.02, method="calib", n=100)


@pytest.mark.parametrize(
    ("probs", "coverage", "familiarity", "verdict", "prediction_set"),
    [
        ([0.7, 0.2, 0.1], None, None, "sure", ("cat",)),
        ([0.5, 0.4, 0.1], None, None, "unsure", ("cat", "dog")),
        ([0.6, 0.3, 0.1], 0.8, None, "sure", ("cat",)),
        ([0.7, 0.2, 0.1], None, 0.0, "sure", ("cat",)),
        ([0.7, 0.2, 0.1], None, -0.1, "unfamiliar", ("cat",)),
        ([0.5, 0.4, 0.1], None, -0.1, "unfamiliar", ("cat", "dog")),
    ],
)
def test_verdicts_at_a_coverage_and_of_unfamiliar_images(probs, coverage, familiarity, verdict, prediction_set):
    levels = (SetLevel(coverage=0.8, min_probs=(0.6,)), SetLevel(coverage=0.9, min_probs=(0.3,)))
    rule = ConformalRule(coverage=0.9, levels=levels, method="calib", per_class=False, n=9)
    answer = {"probs": np.array(probs)}
    if familiarity is not None:
        answer["familiarity"] = np.float32(familiarity)
    said = decide("a.png", answer, card(rule, familiarity=familiarity_rule()), coverage)
    assert (said.verdict, said.prediction_set, said.label) == (verdict, prediction_set, "cat")
    assert said.probs == tuple(probs)
    assert said.familiarity == (None if familiarity is None else pytest.approx(familiarity))


def test_a_set_of_one_class_that_is_not_the_answer_is_not_sure():
    levels = (SetLevel(coverage=0.9, min_probs=(0.7, 0.3, 0.2)),)
    rule = ConformalRule(coverage=0.9, levels=levels, method="calib", per_class=True, n=90)
    said = decide("", {"probs": np.array([0.6, 0.35, 0.05])}, card(rule))
    assert (said.verdict, said.label, said.prediction_set) == ("unsure", "cat", ("dog",))


def test_a_coverage_that_is_not_stored_names_those_that_are():
    labels, probs = draw(np.random.default_rng(0), 60)
    rule = ClassificationRules().fit_conformal(probs, labels, coverage=0.95)
    with pytest.raises(ModelError) as caught:
        decide("", {"probs": probs[0]}, card(rule), 0.85)
    assert caught.value.code == "no-such-coverage"
    assert "0.8, 0.9, 0.95, 0.99" in caught.value.hint
