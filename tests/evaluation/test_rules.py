"""Decision rules: the texts, the probabilities they find, and what is measured of them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.errors import RecipeError
from tellapart.evaluation.decide import decide
from tellapart.evaluation.rules import band_of, fit_rules, measure_rules, parse_rules
from tellapart.records import Band, Calibration, DecisionRule, ModelCard, Prediction, Preprocess

NAMES = ("dog", "dog: wet", "hot dog, big", "a; b", "cat")


def spelled(rules):
    return [
        (rule.class_name, [(band.name, band.goal and band.goal.text) for band in rule.bands]) for rule in rules
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n ", []),
        ("dog: yes above 0.5, no", [("dog", [("yes", "above 0.5"), ("no", None)])]),
        (
            "dog: high precision 0.95, medium recall 0.99, low",
            [("dog", [("high", "precision 0.95"), ("medium", "recall 0.99"), ("low", None)])],
        ),
        ("dog : yes cost 10:1,no;", [("dog", [("yes", "cost 10:1"), ("no", None)])]),
        ("dog: wet: yes above .5, no", [("dog: wet", [("yes", "above .5"), ("no", None)])]),
        ("hot dog, big: yes recall 1, no", [("hot dog, big", [("yes", "recall 1"), ("no", None)])]),
        (
            "a; b: yes above 0.5, no;\n  cat: yes above 0.5, no",
            [("a; b", [("yes", "above 0.5"), ("no", None)]), ("cat", [("yes", "above 0.5"), ("no", None)])],
        ),
        (
            "cat: a cost 1:1, b cost 10:1, c",
            [("cat", [("a", "cost 1:1"), ("b", "cost 10:1"), ("c", None)])],
        ),
    ],
)
def test_good_texts(text, expected):
    assert spelled(parse_rules(text, NAMES)) == expected


@pytest.mark.parametrize(
    ("text", "underlined", "message"),
    [
        ("fox: yes above 0.5, no", "fox", "a class and a colon"),
        ("dog yes above 0.5, no", "dog yes above 0.5", "a class and a colon"),
        ("dog:", "", "bands"),
        ("dog: yes", "", "a goal for this band"),
        ("dog: yes, no", "", "precision, recall, above, cost"),
        ("dog: yes above 0.5", "", "a last band without a goal"),
        ("dog: yes above 0.5; cat: a above 0.5, b", "", "a last band without a goal"),
        ("dog: yes near 0.5, no", "near", "precision, recall, above, cost"),
        ("dog: yes above, no", "", "a number"),
        ("dog: yes above half, no", "half", "a number"),
        ("dog: yes above 1.5, no", "1.5", "from 0.0001 to 1"),
        ("dog: yes precision 0, no", "0", "from 0.0001 to 1"),
        ("dog: yes recall nan, no", "nan", "from 0.0001 to 1"),
        ("dog: yes above 0.5 0.6, no", "0.6", "a comma"),
        ("dog: yes cost 10, no", "10", "such as 10:1"),
        ("dog: yes cost 10:0, no", "10:0", "such as 10:1"),
        ("dog: yes cost, no", "", "such as 10:1"),
        ("dog: yes above 0.5,, no", "", "nothing stands between"),
        ("dog: yes above 0.5, yes", "yes", "another name"),
        ("dog: a above 0.5, b above 0.7, c", "0.7", "less than above 0.5"),
        ("dog: a precision 0.9, b recall 0.9, c precision 0.9, d", "0.9", "less than precision 0.9"),
        ("dog: a recall 0.9, b recall 0.8, c", "0.8", "more than recall 0.9"),
        ("dog: a cost 2:1, b cost 1:1, c", "1:1", "more than cost 2:1"),
        ("dog: a above 0.5, b; dog: a above 0.5, b", "dog", "another class"),
    ],
)
def test_bad_texts_underline_the_wrong_word(text, underlined, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        parse_rules(text, NAMES)
    assert caught.value.code == "bad-setting"
    _, source, marks = caught.value.message.split("\n")
    start = marks.index("^")
    if underlined:
        assert source[start : start + marks.count("^")] == underlined
    else:
        assert marks.count("^") == 1


def made_up(seed, n=60, ties=True):
    """Labels (n,), and the probabilities of two classes, some of them equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    of_one = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, 1.5, n))))
    of_one = of_one.round(1) if ties else of_one
    return labels, np.column_stack([1 - of_one, of_one])


def fitted(text, labels, probs, names=("no", "yes")):
    (rule,) = fit_rules(parse_rules(text, names), labels, probs, names)
    return rule


def cuts(labels, probs):
    """Every set of images a threshold can take, by brute force: (positives taken, taken)."""
    return [
        (int((labels & (probs >= p)).sum()), int((probs >= p).sum())) for p in sorted(set(probs), reverse=True)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("goal", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_thresholds_against_all_cut_points(seed, goal):
    labels, probs = made_up(seed)
    p = probs[:, 1]
    total = int(labels.sum())

    found = fitted(f"yes: top precision {goal}, rest", labels, probs).bands[0]
    reaching = [taken for hits, taken in cuts(labels, p) if hits / taken >= goal]
    assert (0 if found.min_prob is None else (p >= found.min_prob).sum()) == max(reaching, default=0)

    found = fitted(f"yes: top recall {goal}, rest", labels, probs).bands[0]
    promised = [taken for hits, taken in cuts(labels, p) if hits / (total + 1) >= goal - 1e-9]
    everyone = [taken for hits, taken in cuts(labels, p) if hits == total]
    assert (p >= found.min_prob).sum() == min(promised or everyone)

    found = fitted(f"yes: top cost {10 * goal}:1, rest", labels, probs).bands[0]
    costs = [10 * goal * (total - hits) + taken - hits for hits, taken in [(0, 0), *cuts(labels, p)]]
    chosen = np.zeros(len(p), bool) if found.min_prob is None else p >= found.min_prob
    said = 10 * goal * (labels & ~chosen).sum() + (~labels & 1 & chosen).sum()
    assert said == pytest.approx(min(costs))


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=1, max_size=40),
    precision=st.floats(0.01, 1),
    recall=st.floats(0.01, 1),
)
def test_goals_hold_on_the_fitted_images_and_bands_part_them(data, precision, recall):
    labels = np.array([label for label, _ in data], dtype=np.int64)
    probs = np.array([[1 - p, p] for _, p in data])
    rule = fitted(f"yes: high precision {precision:.4f}, medium recall {recall:.4f}, low", labels, probs)
    places = band_of(rule, probs[:, 1])
    (measured,) = measure_rules(labels, probs, [rule], ("no", "yes"))
    high, medium, low = measured["bands"]
    assert high["n"] + medium["n"] + low["n"] == len(data)
    if rule.bands[0].min_prob is not None:
        assert high["n"] == 0 or high["precision"]["value"] >= float(f"{precision:.4f}")
    if labels.any():
        assert medium["recall_at_or_above"]["value"] >= float(f"{recall:.4f}")
    assert all((band.min_prob is None) == bool(band.note) for band in rule.bands)
    order = np.argsort(-probs[:, 1])
    assert (np.diff(places[order]) >= 0).all()


def test_an_image_in_the_band_of_its_probability():
    rule = DecisionRule(
        class_name="yes",
        bands=(
            Band(name="a", min_prob=0.9, goal="above 0.9"),
            Band(name="b", min_prob=None, goal="recall 0.1", note="why"),
            Band(name="c", min_prob=0.5, goal="above 0.5"),
            Band(name="d", min_prob=0.0),
        ),
    )
    assert band_of(rule, np.array([1.0, 0.9, 0.8999, 0.5, 0.4999, 0.0])).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("yes: a precision 0.9, b", "4 held-out images, 2 of the class, cannot reach it"),
        ("yes: a cost 1:100, b", "no alarm at all costs least"),
        ("yes: z above 0.05, a precision 0.6, b", "it asks for 0.1500 or more, and z begins at 0.0500"),
    ],
)
def test_a_band_that_cannot_be_is_empty_and_says_why(text, note):
    labels = np.array([0, 1, 1, 0])
    of_yes = np.array([0.9, 0.8, 0.2, 0.1])
    rule = fitted(text, labels, np.column_stack([1 - of_yes, of_yes]))
    empty = rule.bands[-2]
    assert empty.min_prob is None
    assert note in empty.note


def test_without_images_of_the_class_nothing_is_reached():
    probs = np.full((5, 2), 0.5)
    for goal in ("recall 0.5", "precision 0.5", "cost 5:1"):
        assert fitted(f"yes: a {goal}, b", np.zeros(5, int), probs).bands[0].min_prob is None


def test_measured_by_hand_and_the_same_for_both_tasks():
    labels = np.array([1, 1, 0, 1, 0, 0])
    of_yes = np.array([0.95, 0.9, 0.85, 0.6, 0.4, 0.1])
    probs = np.column_stack([1 - of_yes, of_yes])
    rules = fit_rules(parse_rules("yes: a above 0.8, b above 0.5, c", ("no", "yes")), labels, probs, ("no", "yes"))
    (found,) = measure_rules(labels, probs, rules, ("no", "yes"))
    (of_labels,) = measure_rules(np.column_stack([1 - labels, labels]), probs, rules, ("no", "yes"))
    assert found == of_labels
    values = [
        tuple(
            band[key]["value"]
            for key in ("rate", "precision", "recall", "precision_at_or_above", "recall_at_or_above")
        )
        for band in found["bands"]
    ]
    assert [band["n"] for band in found["bands"]] == [3, 1, 2]
    assert values == [
        pytest.approx((3 / 6, 2 / 3, 2 / 3, 2 / 3, 2 / 3)),
        pytest.approx((1 / 6, 1, 1 / 3, 3 / 4, 1)),
        pytest.approx((2 / 6, 0, 0, 3 / 6, 1)),
    ]
    assert found["bands"][0]["recall"]["low"] == pytest.approx(0.2077, abs=1e-4)  # Wilson for 2 of 3


def card_with(decision_rules=()):
    return ModelCard(
        class_names=("red", "green", "blue"),
        preprocess=Preprocess(input_size_px=16),
        calibration=Calibration(temperature=1.0, method="calib", n=60),
        embedding_dim=3,
        created="",
        decision_rules=decision_rules,
    )


def test_decide_names_the_band():
    rule = DecisionRule(
        class_name="green",
        bands=(Band(name="high", min_prob=0.5, goal="above 0.5"), Band(name="low", min_prob=0.0)),
    )
    card = card_with((rule,))
    answer = {"probs": np.array([0.2, 0.7, 0.1], np.float32)}
    said = decide("x", answer, card)
    assert said.bands == (("green", "high"),)
    assert decide("x", answer, card_with()) == Prediction(
        **{name: getattr(said, name) for name in ("path", "verdict", "label", "prob", "probs", "prediction_set")}
    )


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ((Band(name="a", min_prob=0.0),), "two or more"),
        ((Band(name="a", min_prob=0.5, goal="above 0.5"), Band(name="a", min_prob=0.0)), "different names"),
        ((Band(name="a", min_prob=0.5), Band(name="b", min_prob=0.0)), "all others have a goal"),
        ((Band(name="a", min_prob=0.5, goal="x"), Band(name="b", min_prob=0.1)), "takes the rest"),
        (
            (
                Band(name="a", min_prob=0.5, goal="x"),
                Band(name="b", min_prob=0.5, goal="y"),
                Band(name="c", min_prob=0.0),
            ),
            "from the top down",
        ),
    ],
)
def test_rules_that_cannot_be(bands, message):
    with pytest.raises(ValueError, match=message):
        DecisionRule(class_name="green", bands=bands)


def test_a_card_refuses_rules_of_classes_it_lacks_and_two_for_one():
    bands = (Band(name="a", min_prob=0.5, goal="above 0.5"), Band(name="b", min_prob=0.0))
    for names in (("pink",), ("green", "green")):
        with pytest.raises(ValueError, match="decision rules"):
            card_with(tuple(DecisionRule(class_name=name, bands=bands) for name in names))
    assert card_with((DecisionRule(class_name="green", bands=bands),)).decision_rules


@pytest.mark.parametrize(("n", "recall"), [(99, 0.99), (40, 0.9), (19, 0.95)])
def test_a_recall_holds_for_new_images(n, recall):
    """Mean over many draws of the calibration images; promised from R / (1 - R) images of the class."""
    rng = np.random.default_rng(3)
    caught = []
    for _ in range(400):
        p, new = rng.beta(4, 2, (2, n))
        probs = np.stack([1 - p, p], axis=1)
        (rule,) = fit_rules(
            parse_rules(f"yes: top recall {recall}, rest", ("no", "yes")), np.ones(n, int), probs, ("no", "yes")
        )
        caught.append((new >= rule.bands[0].min_prob).mean())
    assert np.mean(caught) >= recall - 3 * np.std(caught) / len(caught) ** 0.5
