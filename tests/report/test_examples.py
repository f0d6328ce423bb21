"""Which images are shown, and that the page stays small."""

import numpy as np
from made import THRESHOLD, generated, made_card, paged

from tellapart.evaluation.measure import measure
from tellapart.report.examples import choose_examples
from tellapart.report.run_folder import describe


def test_ten_thousand_test_images_of_a_hundred_classes_stay_under_5_mb(tmp_path):
    names = tuple(f"class {i}" for i in range(100))
    dataset, answers = generated(tmp_path, "classification", names, 10_000, side=256)
    card = made_card("classification", names)
    test = measure(dataset.used("test").labels, answers, card)
    raw = paged(dataset, answers, card, {"test": test, "dataset": describe(dataset)})
    assert raw.count(b'alt="Heat map') == 36
    assert raw.count(b"data:image/jpeg") == 2 * 36 + 100
    assert len(raw) < 5_000_000


def test_all_test_answers_count_where_labels_are_contradicted(tmp_path):
    dataset, answers = generated(tmp_path, "classification", ("cat", "dog"), 4000)
    card, dataset = made_card("classification", ("cat", "dog")), dataset.used("test")
    by_path = {path: {"probs": row} for path, row in zip(dataset.paths, answers["probs"], strict=True)}
    wrong = answers["probs"].argmax(axis=1) != dataset.labels
    expected = int((wrong & (answers["probs"].max(axis=1) >= 0.9)).sum())
    assert choose_examples(dataset, by_path, card).contradicted == expected > 0


def test_of_several_labels_the_wrong_one_is_named(tmp_path):
    dataset, answers = generated(tmp_path, "multilabel", ("sea", "sand", "sky"), 60)
    card, dataset = made_card("multilabel", ("sea", "sand", "sky")), dataset.used("test")
    probs = answers["probs"].astype(np.float64)
    by_path = {path: {"probs": row} for path, row in zip(dataset.paths, answers["probs"], strict=True)}
    examples = choose_examples(dataset, by_path, card)
    for path in examples.most_wrong:
        i, k = dataset.paths.index(path), examples.about[path]
        off = np.abs(probs[i] - dataset.labels[i])
        is_wrong = (probs[i] >= THRESHOLD) != dataset.labels[i].astype(bool)
        assert is_wrong[k]
        assert off[k] == off[is_wrong].max()
