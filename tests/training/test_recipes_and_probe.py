"""Recipes are checked and complete; the probe is scikit-learn's regression, its strength chosen honestly."""

import sys
import tomllib
from types import ModuleType

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from tellapart.errors import RecipeError, TrainingError
from tellapart.inference.bundled import BUNDLED, open_backbone
from tellapart.records import Backbone, Preprocess, Weights
from tellapart.training import probe as probe_module
from tellapart.training.backbones import open_features
from tellapart.training.probe import fit_logistic, fit_probe, head_of, log_losses, val_score
from tellapart.training.recipes import build_recipe, recipe_settings, recipe_toml

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            {
                "name": "probe",
                "backbone": "efficientnet_lite0",
                "input_size_px": 224,
                "folds": 5,
                "coverage": 0.95,
            },
        ),
        ({"folds": 3}, {"folds": 3}),
        ({"folds": "3"}, {"folds": 3}),
        ({"coverage": "0.9"}, {"coverage": 0.9}),
        ({"test_fraction": 0.5}, {"test_fraction": 0.5}),
        ({"strengths": "[0.1, 1]"}, {"strengths": (0.1, 1.0)}),
        ({"strengths": [0.1, 1]}, {"strengths": (0.1, 1.0)}),
        ({"strengths": "2"}, {"strengths": (2.0,)}),
        ({"feature_stages": "[5, 8]"}, {"feature_stages": (5, 8)}),
        ({"feature_stages": 5}, {"feature_stages": (5,)}),
        ({"input_size_px": 96}, {"input_size_px": 96}),
        ({"input_size_px": "0"}, {"input_size_px": 224}),
        ({"backbone": "efficientnet_lite1"}, {"input_size_px": BUNDLED["efficientnet_lite1"].input_size_px}),
        (
            {"backbone": "timm/convnext_nano"},
            {"input_size_px": 0, "resize": "auto", "interpolation": "auto", "feature_stages": ()},
        ),
        ({"backbone": "local-dir:/some/where", "feature_stages": "[]"}, {"feature_stages": (), "crop_share": 0.0}),
        (
            {"backbone": "timm/test_vit", "weights": "a.safetensors", "input_size_px": 64, "crop_share": 1},
            {"weights": "a.safetensors", "input_size_px": 64, "crop_share": 1.0},
        ),
        ({"interpolation": "bicubic"}, {"interpolation": "bicubic", "resize": "squash", "crop_share": 1.0}),
        ({"resize": "pad"}, {"resize": "pad", "preprocess": Preprocess(input_size_px=224, resize="pad")}),
    ],
)
def test_good_settings(settings, expected):
    recipe = build_recipe("probe", settings)
    assert {key: getattr(recipe, key) for key in expected} == expected
    for key, value in expected.items():
        assert type(getattr(recipe, key)) is type(value)


@pytest.mark.parametrize(
    ("name", "settings", "code", "says"),
    [
        ("prob", {}, "unknown-recipe", "probe"),
        ("", {}, "unknown-recipe", "probe"),
        ("probe", {"fold": 3}, "unknown-setting", "did you mean 'folds'?"),
        ("probe", {"inputsize_px": 3}, "unknown-setting", "did you mean 'input_size_px'?"),
        ("probe", {"Coverage": 0.9}, "unknown-setting", "did you mean 'coverage'?"),
        ("probe", {"zzz": 3}, "unknown-setting", "it has backbone, weights"),
        ("probe", {"name": "mine"}, "unknown-setting", ""),
        ("probe", {"folds": 1}, "bad-setting", "folds"),
        ("probe", {"folds": 2.5}, "bad-setting", "folds"),
        ("probe", {"folds": True}, "bad-setting", "folds"),
        ("probe", {"folds": "many"}, "bad-setting", "'many'"),
        ("probe", {"folds": ""}, "bad-setting", "folds"),
        ("probe", {"folds": None}, "bad-setting", "folds"),
        ("probe", {"folds": [3]}, "bad-setting", "folds"),
        ("probe", {"coverage": 1}, "bad-setting", "coverage"),
        ("probe", {"coverage": 0.4}, "bad-setting", "coverage"),
        ("probe", {"coverage": "nan"}, "bad-setting", "coverage"),
        ("probe", {"coverage": "95 %"}, "bad-setting", "coverage"),
        *(
            ("probe", {"false_alarms": rate}, "bad-setting", "false_alarms")
            for rate in (0, -0.1, 0.51, "nan", "2 %")
        ),
        *((name, {"false_alarms": 0}, "bad-setting", "false_alarms") for name in ("cnn", "scratch")),
        ("probe", {"test_fraction": 0}, "bad-setting", "test_fraction"),
        ("probe", {"test_fraction": 0.6}, "bad-setting", "test_fraction"),
        ("probe", {"calib_fraction": -0.1}, "bad-setting", "calib_fraction"),
        ("probe", {"strengths": []}, "bad-setting", "strengths"),
        ("probe", {"strengths": [1, 0.1]}, "bad-setting", "strengths"),
        ("probe", {"strengths": [0, 1]}, "bad-setting", "strengths"),
        ("probe", {"strengths": ["a"]}, "bad-setting", "strengths"),
        ("probe", {"class_weights": "equal"}, "bad-setting", "class_weights"),
        ("probe", {"feature_stages": [1.5]}, "bad-setting", "feature_stages"),
        ("probe", {"input_size_px": 7}, "bad-setting", "input_size_px"),
        ("probe", {"input_size_px": 5000}, "bad-setting", "input_size_px"),
        ("probe", {"resize": "stretch"}, "bad-setting", "squash, crop or pad"),
        ("probe", {"resize": 3}, "bad-setting", "resize"),
        ("probe", {"backbone": "resnet50"}, "bad-setting", "efficientnet_lite0"),
        ("probe", {"backbone": "resnet50"}, "bad-setting", "timm/NAME"),
        ("probe", {"backbone": "timm/a", "feature_stages": [3]}, "bad-setting", "bundled"),
        ("probe", {"backbone": "timm/a", "resize": "stretch"}, "bad-setting", "squash, crop or pad"),
        ("probe", {"backbone": "timm/a", "interpolation": "lanczos"}, "bad-setting", "bicubic"),
        ("probe", {"weights": "a.safetensors"}, "bad-setting", "timm/NAME"),
        ("probe", {"backbone": "local-dir:a", "weights": "a.safetensors"}, "bad-setting", "timm/NAME"),
        ("probe", {"crop_share": 2}, "bad-setting", "crop_share"),
    ],
)
def test_bad_settings(name, settings, code, says):
    with pytest.raises(RecipeError) as caught:
        build_recipe(name, settings)
    assert caught.value.code == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{}, {"strengths": [1e-7, 1, 1e9]}, {"feature_stages": [3, 8], "resize": "crop", "coverage": 0.8}]
)
def test_toml_says_all_and_builds_the_same_recipe(settings):
    recipe = build_recipe("probe", settings)
    read = tomllib.loads(recipe_toml(recipe))
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in read.items()} == (
        recipe_settings(recipe)
    )
    assert build_recipe(read.pop("name"), read) == recipe


def clouds(n, num_classes, dim=12, spread=2.0, seed=0):
    """Features of overlapping classes, in different units, float32."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    centers = rng.normal(0, 1, (num_classes, dim))
    features = centers[labels] + spread * rng.normal(0, 1, (n, dim))
    return (features * rng.uniform(0.01, 50, dim) + rng.uniform(-20, 20, dim)).astype(np.float32), labels


def scikit_learn(features, labels, strength):
    """Probabilities of the same regression on standardised features."""
    scaler = StandardScaler().fit(features.astype(np.float64))
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(
        scaler.transform(features.astype(np.float64)), labels
    )
    return lambda new: model.predict_proba(scaler.transform(new.astype(np.float64)))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
def test_agrees_with_scikit_learn_at_the_same_strength(num_classes, strength):
    everything, labels = clouds(700, num_classes)
    features, new, labels = everything[:400], everything[400:], labels[:400]
    probe = fit_probe(features, labels, strengths=[strength], folds=5, seed=0)
    assert probe.strength == strength
    assert list(probe.search) == [strength]
    assert probe.head.weight.shape == (12, num_classes)
    assert probe.head.bias.shape == (num_classes,)
    # chosen on 4/5 of the images: the same penalty an image at 4/5 of C
    reference = scikit_learn(features, labels, strength * 4 / 5)
    for images in (features, new):
        found, expected = probe.head.logits(images), np.log(reference(images))
        found, expected = (logits - logits.mean(axis=1, keepdims=True) for logits in (found, expected))
        tolerance = 0.02 * expected.std()
        np.testing.assert_allclose(found, expected, atol=2 * tolerance)
        clear = np.diff(np.sort(expected, axis=1)[:, -2:]).ravel() > 4 * tolerance
        assert clear.mean() > 0.7
        np.testing.assert_array_equal(found.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


@pytest.mark.parametrize(("class_weights", "theirs"), [("none", None), ("balanced", "balanced")])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_weights_are_scikit_learns(num_classes, class_weights, theirs):
    features, labels = clouds(400, num_classes)
    keep = (labels > 0) | (np.arange(len(labels)) % 9 == 0)  # one class is rare
    features, labels = features[keep], labels[keep]
    scaled = StandardScaler().fit_transform(features).astype(np.float32)
    found = fit_logistic(scaled, labels, head=head_of(labels, class_weights), strength=0.3, tolerance=1e-7)
    model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000, class_weight=theirs).fit(scaled, labels)
    np.testing.assert_allclose(found[:-1].T, model.coef_, atol=2e-3)
    np.testing.assert_allclose(found[-1], model.intercept_, atol=2e-3)


def test_balanced_weights_of_several_labels_are_scikit_learns_of_each():
    features, classes = clouds(400, 4)
    labels = np.stack([classes == 0, classes < 3, classes % 2 == 0], axis=1).astype(np.int64)
    scaled = StandardScaler().fit_transform(features).astype(np.float32)
    found = fit_logistic(scaled, labels, head=head_of(labels, "balanced"), strength=0.3, tolerance=1e-8)
    for k, label in enumerate(labels.T):
        model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000, class_weight="balanced").fit(scaled, label)
        np.testing.assert_allclose(found[:-1, k], model.coef_[0], atol=5e-3)
        np.testing.assert_allclose(found[-1, k], model.intercept_[0], atol=5e-3)


def test_a_rare_class_is_found_more_often_where_classes_count_the_same():
    features, labels = clouds(2000, 2)
    keep = (labels == 0) | (np.arange(len(labels)) % 20 == 1)
    new, truth = clouds(2000, 2)
    recalls, searches = {}, {}
    for weights in ("none", "balanced"):
        probe = fit_probe(
            features[keep], labels[keep], strengths=STRENGTHS, folds=5, seed=0, class_weights=weights
        )
        recalls[weights] = (probe.head.logits(new).argmax(axis=1)[truth == 1] == 1).mean()
        searches[weights] = probe.search
    assert recalls["balanced"] > recalls["none"] + 0.05
    assert searches["balanced"] != searches["none"]  # the choice weighs, too


def test_a_start_near_the_end_changes_nothing():
    features, labels = clouds(200, 3)
    scaled = StandardScaler().fit_transform(features).astype(np.float32)
    cold = fit_logistic(scaled, labels, head=head_of(labels), strength=1.0, tolerance=1e-6)
    elsewhere = fit_logistic(scaled, labels, head=head_of(labels), strength=0.01, tolerance=1e-6)
    warm = fit_logistic(scaled, labels, head=head_of(labels), strength=1.0, tolerance=1e-6, start=elsewhere)
    assert np.abs(elsewhere - cold).max() > 0.1
    np.testing.assert_allclose(warm, cold, atol=5e-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, 6.0, 1234.567, -1e-9])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_feature_that_never_moves_says_nothing(constant, num_classes):
    features, labels = clouds(3000, num_classes)
    wider = np.concatenate([features, np.full((len(features), 1), constant, np.float32)], axis=1)
    without = fit_probe(features, labels, strengths=[0.1], folds=3, seed=0)
    found = fit_probe(wider, labels, strengths=[0.1], folds=3, seed=0)
    assert np.isfinite(found.head.weight).all()
    assert np.abs(found.head.weight[-1]).max() < 1e-3
    expected = softmax(without.head.logits(features), axis=1)
    np.testing.assert_allclose(softmax(found.head.logits(wider), axis=1), expected, atol=0.01)


@pytest.mark.parametrize(("num_classes", "folds"), [(2, 5), (2, 2), (3, 4), (7, 5)])
def test_fold_logits_are_scikit_learns_from_the_other_folds(num_classes, folds):
    features, labels = clouds(140, num_classes)
    probe = fit_probe(features, labels, strengths=[0.05], folds=folds, seed=3)
    assert sorted(probe.fold_images) == list(range(140)), "every image is held out once"
    assert probe.fold_logits.shape == (140, num_classes)
    assert probe.search[0.05] == pytest.approx(
        log_loss(labels[probe.fold_images], softmax(probe.fold_logits, axis=1)), rel=1e-3
    )
    start = 0
    for size in np.bincount(np.arange(140) % folds)[:folds]:
        held_out = probe.fold_images[start : start + size]
        expected = scikit_learn(np.delete(features, held_out, 0), np.delete(labels, held_out), 0.05)(
            features[held_out]
        )
        found = softmax(probe.fold_logits[start : start + size], axis=1)
        np.testing.assert_allclose(found, expected, atol=0.02)
        spread = np.bincount(labels[held_out], minlength=num_classes)
        assert spread.max() - spread.min() <= 1, "every class is dealt out evenly"
        start += size


@pytest.mark.parametrize("num_classes", [2, 4])
def test_random_labels_are_not_learned_by_heart(num_classes):
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (600, 500)).astype(np.float32)
    labels = rng.permutation(np.arange(600) % num_classes)
    probe = fit_probe(features, labels, strengths=[10.0], folds=5, seed=0)
    in_sample = (probe.head.logits(features).argmax(axis=1) == labels).mean()
    out_of_fold = (probe.fold_logits.argmax(axis=1) == labels[probe.fold_images]).mean()
    assert in_sample > 0.95, "enough features to know every image by heart"
    assert abs(out_of_fold - 1 / num_classes) < 0.07


@pytest.mark.parametrize(
    ("spread", "best"),
    [(0.05, (1.0, 10.0)), (8.0, (1e-3, 1e-2))],
    ids=["clear classes want little penalty", "noise wants much"],
)
def test_the_strength_is_chosen_by_held_out_loss(spread, best):
    features, labels = clouds(150, 3, dim=60, spread=spread)
    probe = fit_probe(features, labels, strengths=STRENGTHS, folds=5, seed=0)
    assert probe.strength in best
    assert probe.strength == min(probe.search, key=probe.search.get)
    assert tuple(probe.search) == STRENGTHS[: len(probe.search)]
    alone = fit_probe(features, labels, strengths=[probe.strength], folds=5, seed=0)
    np.testing.assert_array_equal(probe.head.weight, alone.head.weight)
    np.testing.assert_array_equal(probe.fold_images, alone.fold_images)
    np.testing.assert_allclose(softmax(probe.fold_logits, axis=1), softmax(alone.fold_logits, axis=1), atol=0.02)


def test_the_search_stops_after_two_strengths_that_did_not_help():
    features, labels = clouds(150, 3, dim=60, spread=8.0)
    probe = fit_probe(features, labels, strengths=STRENGTHS, folds=5, seed=0)
    tried = list(probe.search)
    assert len(tried) < len(STRENGTHS)
    assert tried.index(probe.strength) == len(tried) - 3


@pytest.mark.parametrize(("smallest", "folds"), [(2, 2), (3, 3), (9, 5)])
def test_fewer_folds_where_a_class_is_small(smallest, folds):
    features, labels = clouds(60, 2)
    keep = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:smallest]])
    probe = fit_probe(features[keep], labels[keep], strengths=[0.1], folds=5, seed=0)
    assert sorted(probe.fold_images) == list(range(30 + smallest))
    reference = scikit_learn(features[keep], labels[keep], 0.1 * (folds - 1) / folds)
    np.testing.assert_allclose(softmax(probe.head.logits(features), axis=1), reference(features), atol=0.01)


def test_same_seed_same_probe_and_another_seed_other_folds():
    features, labels = clouds(120, 3)
    first, again, other = (fit_probe(features, labels, strengths=[0.1], folds=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.fold_images, again.fold_images)
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    assert (first.fold_images != other.fold_images).any()


def test_with_many_images_the_search_sees_some_and_the_head_all(monkeypatch):
    monkeypatch.setattr(probe_module, "MAX_SEARCH_IMAGES", 100)
    features, labels = clouds(1000, 4)
    labels[labels == 3] = 2
    labels[:3] = 3  # a class of three images
    probe = fit_probe(features, labels, strengths=[0.1], folds=5, seed=0)
    searched = np.bincount(labels[probe.fold_images], minlength=4)
    assert searched.sum() == len(set(probe.fold_images)) == pytest.approx(100, abs=3)
    assert searched[3] == 2, "never fewer than two"
    assert searched[2] == pytest.approx(50, abs=2), "and otherwise in proportion"
    reference = scikit_learn(features, labels, 0.1 * len(probe.fold_images) / 2 / 1000)
    np.testing.assert_allclose(softmax(probe.head.logits(features), axis=1), reference(features), atol=0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strengths", "nan"),
        ("strengths", "[1, inf]"),
        ("strengths", "[1, 1]"),
        ("folds", "3\nx = 1"),
        ("folds", "1" * 5000),
        ("coverage", "1" + "0" * 400),
    ],
)
def test_numbers_that_are_none(key, value):
    with pytest.raises(RecipeError) as caught:
        build_recipe("probe", {key: value})
    assert caught.value.code == "bad-setting"


def test_cross_validation_never_asks_about_a_group_it_learned_from():
    """Ten pictures of each of twenty patients, whose features say who they are and nothing about the class."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    labels = groups % 2
    features = (rng.normal(size=(20, 40))[groups] + 0.01 * rng.normal(size=(200, 40))).astype(np.float32)
    settings = {"strengths": (0.01, 1.0), "folds": 5, "seed": 1}
    leaking = fit_probe(features, labels, **settings)
    honest = fit_probe(features, labels, groups=groups, **settings)
    accuracy = [np.mean(p.fold_logits.argmax(axis=1) == labels[p.fold_images]) for p in (leaking, honest)]
    assert accuracy[0] == 1
    assert accuracy[1] < 0.8
    assert sorted(honest.fold_images) == list(range(200))


def test_few_groups_are_few_folds():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels, groups = np.arange(30) % 2, np.arange(30) // 10
    probe = fit_probe(features, labels, strengths=(1.0,), folds=5, seed=0, groups=groups)
    assert sorted(probe.fold_images) == list(range(30))


def test_a_network_of_timm_without_its_packages(monkeypatch):
    monkeypatch.delitem(sys.modules, "tellapart.models.backbone", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(TrainingError) as caught:
        open_features(build_recipe("probe", {"backbone": "timm/test_vit"}))
    assert caught.value.code == "package-missing"
    assert "onnxscript" in caught.value.message
    assert "tellapart[train]" in caught.value.hint


def test_the_record_fills_in_only_what_the_recipe_leaves_open(monkeypatch):
    onnx_bytes = open_backbone("efficientnet_lite0", (3,)).onnx_bytes
    weights = Weights(name="timm/x", source="file", license="mit", sha256="0" * 64)
    backbone = Backbone(onnx_bytes=onnx_bytes, sha256="0" * 64, embedding_dim=40, weights=weights)
    record = Preprocess(input_size_px=96, resize="crop", interpolation="bicubic", crop_share=0.9)
    module = ModuleType("tellapart.models.backbone")
    module.open_timm = lambda *_, **__: (backbone, record)
    monkeypatch.setitem(sys.modules, "tellapart.models.backbone", module)
    for settings, expected in (
        ({}, record),
        ({"resize": "squash"}, Preprocess(input_size_px=96, interpolation="bicubic")),
        (
            {"interpolation": "bilinear", "crop_share": 0.5},
            Preprocess(input_size_px=96, resize="crop", crop_share=0.5),
        ),
    ):
        found, recipe = open_features(build_recipe("probe", {"backbone": "timm/x", **settings}))
        assert found is backbone
        assert recipe.preprocess == expected


def random_answers(several, n=400, seed=3):
    """Labels, three in four of the first class, and logits that say something about them, most about the frequent ones."""
    rng = np.random.default_rng(seed)
    if several:
        labels = (rng.random((n, 3)) < [0.8, 0.3, 0.05]).astype(np.int64)
        return labels, ((labels - 0.3) * 3 + rng.normal(0, 1.2, labels.shape)).astype(np.float32)
    labels = rng.choice(3, n, p=[0.75, 0.2, 0.05])
    return labels, (np.diag([3, 2, 1])[labels] + rng.normal(0, 1, (n, 3))).astype(np.float32)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_sureness_alone_makes_no_model_better_or_worse_on_val(several, factor):
    labels, logits = random_answers(several)
    loss, accuracy = val_score(labels, logits)
    other_loss, other_accuracy = val_score(labels, logits * factor)
    assert other_accuracy == accuracy
    assert abs(other_loss - loss) < 0.2 * abs(log_losses(labels, logits * factor).mean() - loss)


@pytest.mark.parametrize("several", [False, True])
def test_balanced_losses_count_every_class_the_same(several):
    labels, logits = random_answers(several)
    losses = log_losses(labels, logits)
    balanced = log_losses(labels, logits, "balanced")
    assert losses.shape == balanced.shape == (len(labels),)
    if several:
        each = np.logaddexp(0, np.where(labels, -logits, logits).astype(np.float64))
        sides = [each[labels[:, k] == side, k].mean() for k in range(3) for side in (0, 1)]
        assert balanced.mean() == pytest.approx(np.mean(sides), rel=1e-5)
    else:
        assert balanced.mean() == pytest.approx(np.mean([losses[labels == k].mean() for k in range(3)]), rel=1e-5)
    assert balanced.mean() != pytest.approx(losses.mean(), rel=0.05)
    assert val_score(labels, logits, "balanced")[1] == val_score(labels, logits)[1]
