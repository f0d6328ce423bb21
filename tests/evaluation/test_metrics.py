"""Every number against scikit-learn, SciPy or a sum done by hand."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn import metrics as reference

from tellapart.errors import RecipeError
from tellapart.evaluation.classification import ClassificationRules
from tellapart.evaluation.decide import decide
from tellapart.evaluation.metrics import accuracy, confusion_matrix, log_loss, precision, recall, wilson_interval
from tellapart.evaluation.multilabel import MultiLabelRules
from tellapart.records import Calibration, ConformalRule, ModelCard, Preprocess, SetLevel

fit_temperature = ClassificationRules().fit_temperature
fit_conformal = ClassificationRules().fit_conformal


def measure(labels, probs, class_names):
    model = ModelCard(
        class_names=tuple(class_names),
        preprocess=Preprocess(input_size_px=32),
        calibration=Calibration(temperature=1.0, method="calib", n=100),
        embedding_dim=4,
        created="2026-01-01T00:00:00Z",
    )
    return ClassificationRules().measure(labels, {"probs": probs}, model)


NAMES = ("cat", "dog", "fox", "owl")
EMPTY = (None, None, None)


def answers(n, seed=0, num_classes=4):
    """Labels, and probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    logits = rng.normal(0, 1, (n, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    return labels, softmax(logits, axis=1)


def whole(interval):
    return interval.value, interval.low, interval.high


@pytest.mark.parametrize(
    ("successes", "n"),
    [(0, 1), (1, 1), (0, 40), (40, 40), (1, 2), (7, 9), (99, 100), (50, 1000), (999_999, 1_000_000)],
)
def test_wilson_interval(successes, n):
    found = wilson_interval(successes, n)
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_to_measure_is_an_empty_interval():
    assert whole(wilson_interval(0, 0)) == EMPTY


@pytest.mark.parametrize(
    ("labels", "predicted", "expected"),
    [
        ([0, 0, 1, 2], [0, 1, 1, 2], [[1, 1, 0], [0, 1, 0], [0, 0, 1]]),
        ([2, 2, 2], [0, 0, 1], [[0, 0, 0], [0, 0, 0], [2, 1, 0]]),
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_confusion_matrix_by_hand(labels, predicted, expected):
    assert confusion_matrix(np.array(labels, int), np.array(predicted, int), 3).tolist() == expected


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint64])
def test_confusion_matrix_of_many_classes_in_any_integer(dtype):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 100, (2, 5000))
    found = confusion_matrix(labels.astype(dtype), predicted.astype(dtype), 100)
    np.testing.assert_array_equal(found, reference.confusion_matrix(labels, predicted, labels=range(100)))


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        ([0, 3], [0, 1]),
        ([0, 1], [0, 3]),
        ([-1, 1], [0, 1]),
        ([0, 1], [-1, 1]),
        ([0, 1], [0]),
        ([[0, 1]], [[0, 1]]),
    ],
)
def test_labels_that_do_not_fit(labels, predicted):
    with pytest.raises(RecipeError) as caught:
        confusion_matrix(np.array(labels), np.array(predicted), 3)
    assert caught.value.code == "bad-labels"


@pytest.mark.parametrize("seed", range(3))
def test_measures_agree_with_scikit_learn(seed):
    labels, probs = answers(300, seed)
    found = measure(labels, probs, NAMES)
    predicted = probs.argmax(axis=1)
    each_precision, each_recall, _, each_n = reference.precision_recall_fscore_support(labels, predicted)
    assert found["n"] == 300
    assert found["accuracy"]["value"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["log_loss"]["value"] == pytest.approx(reference.log_loss(labels, probs))
    assert found["confusion_matrix"] == reference.confusion_matrix(labels, predicted).tolist()
    assert list(found["per_class"]) == found["class_names"] == list(NAMES)
    for k, name in enumerate(NAMES):
        row = found["per_class"][name]
        assert row["n"] == each_n[k]
        assert row["precision"]["value"] == pytest.approx(each_precision[k])
        assert row["recall"]["value"] == pytest.approx(each_recall[k])
        expected = binomtest(found["confusion_matrix"][k][k], int(each_n[k])).proportion_ci(0.95, method="wilson")
        assert (row["recall"]["low"], row["recall"]["high"]) == pytest.approx((expected.low, expected.high))


def test_order_of_images_does_not_matter():
    labels, probs = answers(200)
    order = np.random.default_rng(1).permutation(200)
    assert measure(labels, probs, NAMES) == measure(labels[order], probs[order], NAMES)


@pytest.mark.parametrize(
    ("shift", "expected", "loss"),
    [(0, 1.0, 0.0), (1, 0.0, -math.log(np.finfo(np.float32).tiny))],
    ids=["perfect", "worst"],
)
def test_extremes(shift, expected, loss):
    labels = np.arange(40) % 4
    probs = np.eye(4)[(labels + shift) % 4]
    confusion = confusion_matrix(labels, probs.argmax(axis=1), 4)
    found = [accuracy(confusion), *precision(confusion), *recall(confusion)]
    assert [interval.value for interval in found] == [expected] * 9
    assert all((interval.low < 1) if expected else (interval.high > 0) for interval in found), (
        "40 images prove nothing"
    )
    assert log_loss(labels, probs) == pytest.approx(loss)


def test_a_class_never_shown_or_never_answered_has_no_number():
    confusion = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    assert whole(precision(confusion)[2]) == EMPTY
    assert whole(recall(confusion)[2]) == EMPTY
    assert [interval.value for interval in precision(confusion)[:2]] == [3 / 5, 2 / 3]
    assert [interval.value for interval in recall(confusion)[:2]] == [3 / 4, 2 / 4]


def test_no_images_at_all():
    found = measure(np.zeros(0, int), np.zeros((0, 4)), NAMES)
    assert (found["n"], found["log_loss"]["value"], found["accuracy"]["value"]) == (0, None, None)
    assert found["confusion_matrix"] == [[0] * 4] * 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_by_hand(dtype):
    probs = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype)
    assert log_loss(np.array([0, 2]), probs) == pytest.approx((math.log(2) + math.log(8)) / 2)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_temperature_is_recovered(temperature, num_classes):
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, (40_000, num_classes))
    probs = softmax(truth, axis=1)
    labels = (probs.cumsum(axis=1) < rng.random((len(probs), 1))).sum(axis=1).clip(max=num_classes - 1)
    found = fit_temperature((truth * temperature).astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize(
    ("sign", "n", "low", "high"),
    [(1, 50, 0.7, 0.99), (-1, 5_000, 19.5, 20.1)],  # 50 images that are all right do not make the next one certain
    ids=["always right", "always wrong"],
)
def test_temperature_stays_in_bounds(sign, n, low, high):
    labels = np.arange(n) % 2
    assert low <= fit_temperature(sign * 5 * np.eye(2)[labels], labels) <= high


@pytest.mark.parametrize("rules", [ClassificationRules(), MultiLabelRules()])
def test_calibration_errors_are_those_of_measure(rules):
    labels, probs = answers(200)
    if isinstance(rules, MultiLabelRules):
        labels = np.eye(4, dtype=int)[labels]
    card = ModelCard(
        class_names=NAMES,
        preprocess=Preprocess(input_size_px=32),
        calibration=Calibration(temperature=1.0, method="calib", n=100),
        embedding_dim=4,
        created="2026-01-01T00:00:00Z",
        label_thresholds=(0.5,) * 4 if isinstance(rules, MultiLabelRules) else (),
        task="multilabel" if isinstance(rules, MultiLabelRules) else "classification",
    )
    found, measured = rules.calibration_errors(labels, probs), rules.measure(labels, {"probs": probs}, card)
    assert found == {name: pytest.approx(measured[name]["value"]) for name in ("log_loss", "ece")}


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, 2, 2], [], [0, 1], [0, 1, 0, 1]])
def test_temperature_needs_two_classes_and_a_label_for_each_image(labels):
    with pytest.raises(RecipeError) as caught:
        fit_temperature(np.zeros((3 if labels else 0, 3)), np.array(labels, int))
    assert caught.value.code == "bad-labels"


@pytest.mark.parametrize(("n", "coverage"), [(100, 0.8), (199, 0.9), (60, 0.95), (19, 0.95)])
def test_prediction_sets_cover_as_promised(n, coverage):
    """Over many draws of images, the mean lies between the promise and 1 / (n + 1) above it."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        probs = rng.dirichlet([0.5] * 5, n + 200)
        labels = np.array([rng.choice(5, p=row) for row in probs])
        rule = fit_conformal(probs[:n], labels[:n], coverage=coverage)
        of_truth = probs[np.arange(n, n + 200), labels[n:]]
        covered.append((of_truth >= rule.level().min_probs[0]).mean())
    error = np.std(covered) / np.sqrt(len(covered))
    assert coverage - 4 * error <= np.mean(covered) <= coverage + 1 / (n + 1) + 4 * error


@pytest.mark.parametrize(
    ("n", "coverage", "expected"),
    # the images' true classes have the probabilities 0.01, 0.02 ... n / 100
    [
        (0, 0.95, 0.0),
        (1, 0.95, 0.0),
        (18, 0.95, 0.0),  # 19 images are the fewest that can promise 95 %
        (19, 0.95, 0.01),
        (38, 0.95, 0.01),
        (39, 0.95, 0.02),  # one miss allowed
        (99, 0.95, 0.05),
        (8, 0.9, 0.0),
        (9, 0.9, 0.01),
        (9, 0.5, 0.05),
        (99, 0.5, 0.5),
    ],
)
def test_smallest_probability_by_hand(n, coverage, expected):
    truth = np.random.default_rng(0).permutation(np.arange(1, n + 1) / 100)
    labels = np.arange(n) % 2
    probs = np.where(np.arange(2) == labels[:, None], truth[:, None], 1 - truth[:, None])
    rule = fit_conformal(probs, labels, coverage=coverage)
    assert (rule.level().min_probs[0], rule.n, rule.coverage) == (pytest.approx(expected), n, coverage)


def test_ties_never_lower_the_coverage():
    labels = np.arange(100) % 2
    probs = np.where(np.arange(2) == labels[:, None], 0.7, 0.3)
    probs[:3] = probs[:3, ::-1]
    rule = fit_conformal(probs, labels, coverage=0.95)
    assert rule.level().min_probs[0] == 0.7
    assert (probs[np.arange(100), labels] >= rule.level().min_probs[0]).mean() == 0.97


def one_level(coverage, min_prob, n):
    level = SetLevel(coverage=coverage, min_probs=(min_prob,))
    return ConformalRule(coverage=coverage, levels=(level,), method="calib", per_class=False, n=n)


def card(min_prob, coverage=0.95):
    return ModelCard(
        class_names=NAMES[:3],
        preprocess=Preprocess(input_size_px=32),
        calibration=Calibration(temperature=1.0, method="calib", n=100),
        embedding_dim=4,
        created="2026-01-01T00:00:00Z",
        conformal=None
        if min_prob is None
        else ConformalRule(
            coverage=coverage,
            levels=(SetLevel(coverage=coverage, min_probs=(min_prob,)),),
            method="calib",
            per_class=False,
            n=100,
        ),
    )


@pytest.mark.parametrize(
    ("probs", "min_prob", "verdict", "prediction_set"),
    [
        ([0.9, 0.06, 0.04], 0.1, "sure", ("cat",)),
        ([0.04, 0.06, 0.9], 0.1, "sure", ("fox",)),
        ([0.3, 0.6, 0.1], 0.2, "unsure", ("dog", "cat")),
        ([0.3, 0.6, 0.1], 0.1, "unsure", ("dog", "cat", "fox")),
        ([0.5, 0.25, 0.25], 0.25, "unsure", ("cat", "dog", "fox")),
        ([0.25, 0.25, 0.5], 0.5, "sure", ("fox",)),
        ([1.0, 0.0, 0.0], 0.0, "unsure", ("cat", "dog", "fox")),
        ([0.98, 0.01, 0.01], None, "unsure", ("cat", "dog", "fox")),
        # no class reaches the rule's probability: the most probable up to the coverage are listed, none is sure
        ([0.625, 0.25, 0.125], 0.9, "unsure", ("cat", "dog", "fox")),
        ([0.03125, 0.71875, 0.25], 0.9, "unsure", ("dog", "fox")),
        ([0.96875, 0.015625, 0.015625], 0.99, "unsure", ("cat",)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_verdicts(probs, min_prob, verdict, prediction_set, dtype):
    found = decide("a/b.png", {"probs": np.array(probs, dtype)}, card(min_prob))
    assert (found.verdict, found.prediction_set) == (verdict, prediction_set)
    best = int(np.argmax(probs))
    assert (found.path, found.label, found.error) == ("a/b.png", NAMES[best], "")
    assert found.prob == pytest.approx(probs[best])
    assert found.probs == pytest.approx(probs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_set_holds_the_image_the_rule_was_cut_at(dtype):
    labels, probs = answers(50, num_classes=3)
    probs = probs.astype(dtype)
    rule = fit_conformal(probs, labels, coverage=0.9)
    model = card(rule.level().min_probs[0])
    held = [
        NAMES[label] in decide("", {"probs": row}, model).prediction_set
        for label, row in zip(labels, probs, strict=True)
    ]
    assert sum(held) == 46, "ceil(51 * 0.9) of 50"


def test_sure_and_the_labels_given_never_contradict_each_other():
    """Thresholds that disagree with the prediction set make an answer unsure."""
    card = replace_card(label_thresholds=(0.9, 0.1), min_prob=0.3)
    said = MultiLabelRules().decide("", {"probs": np.array([0.8, 0.2], dtype=np.float32)}, card)
    assert (said.labels, said.prediction_set, said.verdict) == (("b",), ("a",), "unsure")
    said = MultiLabelRules().decide("", {"probs": np.array([0.95, 0.05], dtype=np.float32)}, card)
    assert (said.labels, said.prediction_set, said.verdict) == (("a",), ("a",), "sure")


def test_a_precision_out_of_reach_gives_no_label():
    probs = np.array([[0.1, 1.0], [0.05, 0.5]], dtype=np.float32)
    labels = np.array([[0, 0], [1, 1]])
    thresholds = MultiLabelRules().fit_thresholds(probs.astype(np.float64), labels, "precision 0.9")
    assert not (probs >= np.array(thresholds)).any()


def replace_card(label_thresholds, min_prob):
    return ModelCard(
        class_names=("a", "b"),
        preprocess=Preprocess(input_size_px=64),
        calibration=Calibration(temperature=1.0, method="calib", n=9),
        conformal=ConformalRule(
            coverage=0.9,
            levels=(SetLevel(coverage=0.9, min_probs=(min_prob,)),),
            method="calib",
            per_class=False,
            n=9,
        ),
        embedding_dim=1,
        created="",
        label_thresholds=label_thresholds,
        task="multilabel",
    )
