"""The whole page, number by number: each is calculated again from the answers and in its place, and there are no others."""

import re
from pathlib import Path

import numpy as np
import pytest
from by_hand import NONE, ByHand, beta_range, wilson
from made import ALARMS, NAMES, THRESHOLD, generated, made_card, paged
from page_parts import Read, blocks, parse, rows, says, section, table
from sklearn import metrics as sk
from test_report import HOSTILE, _Page

from tellapart.evaluation.measure import measure
from tellapart.report.run_folder import describe

LOG = [
    {"epoch": i, "train_loss": 1.1 / i, "train_accuracy": 0.61 + i / 50, "val_loss": 1.23 / i, "val_accuracy": 0.6,
     "running_loss": 1.37 / i, "running_accuracy": 0.57} for i in range(1, 4)
]  # fmt: skip
GIVEN = {
    "fit": {"verdict": "Settled.", "log": LOG},
    "seconds": {"total": 12.7},
    "verification": {"n": 219, "top1_differs": 2, "max_abs_difference": 0.0123, "precision": "bf16"},
    "calibration": {"before": {"log_loss": 0.731, "ece": 0.0914}, "after": {"log_loss": 0.642, "ece": 0.0311}},
}
LEAKED = 3


@pytest.fixture(
    scope="module", params=[("classification", 4), ("classification", 14), ("multilabel", 4), ("multilabel", 14)]
)
def case(request, tmp_path_factory):
    """The page of a run, and the same figures by hand."""
    task, k = request.param
    folder = tmp_path_factory.mktemp("photos")
    names = NAMES[:k]
    dataset, answers = generated(folder, task, names, 403)
    card, part = made_card(task, names), dataset.used("test")
    without = {name: values[LEAKED:] for name, values in answers.items()}
    leaks = {
        "n": LEAKED,
        "paths": part.paths[:LEAKED],
        "test_without": measure(part.labels[LEAKED:], without, card),
    }
    report = {"test": measure(part.labels, answers, card), "dataset": describe(dataset), "leaks": leaks, **GIVEN}
    raw = paged(dataset, answers, card, report)
    assert raw == paged(dataset, answers, card, report)
    assert str(folder).encode() not in raw, "where the images lie is nobody else's business"
    assert all(Path(path).name.encode() in raw for path in leaks["paths"])
    limits = (THRESHOLD,) * k if task == "multilabel" else ()
    return Case(
        page=parse(raw.decode().replace(dataset.fingerprint(), "the fingerprint")),
        names=names,
        hand=ByHand(part.labels, answers["probs"], limits),
        without=ByHand(part.labels[LEAKED:], without["probs"], limits),
        labels=part.labels,
        probs=answers["probs"],
        familiarity=answers["familiarity"],
        several=task == "multilabel",
        card=card,
        dataset=dataset,
    )


class Case:
    def __init__(self, **parts):
        self.__dict__.update(parts)

    def verdicts(self):
        """From the numbers alone: what is left at the wanted coverage, and whether the image is like those learned from."""
        least = np.float64(self.card.conformal.level().min_probs[0])
        possible = self.probs >= least
        if self.several:
            given = self.probs >= THRESHOLD
            sure = ((possible != (1 - self.probs < least)) == 0).all(axis=1) & (possible == given).all(axis=1)
        else:
            sure = possible.sum(axis=1) == 1
        return np.where(self.familiarity < ALARMS.threshold, "unfamiliar", np.where(sure, "sure", "unsure"))

    def right(self):
        if self.several:
            return ((self.probs >= THRESHOLD) == self.labels.astype(bool)).all(axis=1)
        return self.probs.argmax(axis=1) == self.labels


def numeric(node):
    return [text for text in blocks(node) if re.search(r"\d", text)]


def reads(texts, expected):
    """The texts are these sentences with these numbers, in this order, and no others."""
    assert len(texts) == len(expected), (texts, expected)
    for text, (pattern, *numbers) in zip(texts, expected, strict=True):
        says(text, pattern, *numbers)


def share(interval):
    """A pattern and numbers: ``98.9% (98.0% to 99.4%)``."""
    return ("–",) if interval == NONE else ("#% (#% to #%)", *(100 * end for end in interval))  # noqa: RUF001


def score(interval):
    return ("# (# to #)", *interval)


def of_hundred(value):
    """A share in words."""
    return (
        (round(100 * value), 100)
        if 0 < round(100 * value) < 100 or value in (0, 1)
        else (round(1000 * value), 1000)
    )


def test_the_answer_first(case):
    hand, n = case.hand, case.hand.n
    value, low, high = (100 * end for end in hand.accuracy())
    what = "to get exactly the right labels" if case.several else "to be right"
    answer = (
        f"Of # new photos like these, expect about # {what} (# to #).",
        100,
        round(value),
        round(low),
        round(high),
    )
    if case.several:
        ranked = (
            "For each label, the images that have it are ranked before the others with a mean average precision of ",
        )
        pattern, *numbers = share(hand.map())
        answer = (f"{ranked[0]}{pattern}. {answer[0]}", *numbers, *answer[1:])
    verdicts, right = case.verdicts(), case.right()
    sure, correct = verdicts == "sure", (verdicts == "sure") & right
    of_sure = wilson(correct.sum(), sure.sum())
    unsure = (
        "It is sure of # of # images, and # of # of those answers are right (#% to #%). For the others it says unsure and lists"
        " what they may be, or unfamiliar when they are unlike anything it has learned from: have a person look at those.",
        *of_hundred(sure.mean()),
        *of_hundred(of_sure[0]),
        100 * of_sure[1],
        100 * of_sure[2],
    )
    basis = [
        ("Measured on # test images, # of them not new to the model, with the model file itself. The numbers in brackets are #%"
         " confidence intervals: with other test images of the same kind, expect a value in there.", n, LEAKED, 95),
    ]  # fmt: skip
    if not case.several:
        most = np.bincount(case.labels).argmax()
        basis.append(
            (
                f"Always answering “{case.names[most]}” would be right on #% of these images.",
                100 * (case.labels == most).mean(),
            )
        )
    reads(numeric(section(case.page, "header")), [answer, *basis, unsure])


def test_warnings(case):
    name, first = ("Mean average precision", ByHand.map) if case.several else ("Accuracy", ByHand.accuracy)
    (pattern, *with_them), (_, *without) = share(first(case.hand)), share(first(case.without))
    leak = f"# test images also stand among the images it learned from, so the score is too high. {name} with them: {pattern};"
    found = numeric(section(case.page, "warnings"))
    says(found[0], f"{leak} without them: {pattern}.", LEAKED, *with_them, *without)
    assert len(found) == 1


def test_what_would_help(case):
    hand, names = case.hand, case.names
    expected = []
    if case.several:
        off = np.abs(case.probs.astype(float) - case.labels) * ((case.probs >= THRESHOLD) != case.labels)
        contradicted = (off.max(axis=1) >= 0.9).sum()
    else:
        contradicted = (~case.right() & (case.probs.max(axis=1) >= 0.9)).sum()
    if contradicted:
        many = contradicted > 1
        expected.append((
            f"Look at the labels of # test image{'s' if many else ''} first: the model contradicts"
            f" {'their labels' if many else 'its label'} with #% certainty or more. {'They come' if many else 'It comes'} first"
            " under “Most wrong”. A wrong label there makes the score too low, and tellapart check finds those among the"
            " training images, too.",
            contradicted,
            90,
        ))  # fmt: skip
    recalls = [hand.of_class(k)["recall"] for k in range(hand.k)]
    weakest = int(np.argmin([recall[0] for recall in recalls]))
    if recalls[weakest][0] <= np.mean([recall[0] for recall in recalls]) - 0.05:
        said = f"More images of “{names[weakest]}”: # of # are recognised (#% to #%), fewer than of the others."
        numbers = [*of_hundred(recalls[weakest][0]), 100 * recalls[weakest][1], 100 * recalls[weakest][2]]
        if not case.several:
            _, taken, times, of = min(
                (m for m in hand.mistakes() if m[0] == weakest), key=lambda m: (-m[2], names[m[1]])
            )
            said += f" It is mostly taken for “{names[taken]}” (# of #): add images that show the difference."
            numbers += [times, of]
        expected.append((f"{said} It has # training images.", *numbers, 21 if weakest == 0 else 3))
    else:
        assert case.several
    expected.append(
        (f"A better balance: # images of “{names[0]}”, # of “{names[1]}”. What is rare is learned and measured poorly; add"
         f" images of “{names[1]}”.", 21, 3),
    )  # fmt: skip
    value, low, high = hand.ece()
    if low >= 0.05:
        expected.append(("Take the probabilities with care: they are off by #% on average (#% to #%). More images to calibrate"
            " on would help.", 100 * value, 100 * low, 100 * high))  # fmt: skip
    reads(numeric(section(case.page, "help")), expected)


def test_the_images(case):
    n, k = case.hand.n, case.hand.k
    used = n + 18 + 3 * k + k
    headlines = (
        {"mean average precision": "map", "macro F1": "macro_f1", "micro F1": "micro_f1", "exact match": "exact_match",
         "hamming loss": "hamming_loss"} if case.several else {"accuracy": "accuracy"}
    )  # fmt: skip
    if not case.several and np.bincount(case.labels).max() > 2 * np.bincount(case.labels).min():
        headlines["balanced accuracy"] = "balanced_accuracy"
    expected = [("#", used + 12), ("#", used), ("#", 3), ("#", 4), ("#", 5)]
    expected += [("#", 5), ("#", 4), ("#", 2), ("#", 1)]  # reasons, the most frequent first
    expected.append(("#", LEAKED))
    for word, name in headlines.items():
        for hand, said in ((case.hand, "all test images"), (case.without, "without them")):
            expected += (
                [(f"macro F#, {said}", 1)]
                if word == "macro F1"
                else [(f"micro F#, {said}", 1)]
                if word == "micro F1"
                else []
            )
            expected.append(share(getattr(hand, name)()))
    of_class = case.hand.there.sum(axis=0)
    for i, name in enumerate(case.names):
        learned = 21 if i == 0 else 3
        expected.append(
            (f"{name} # (train #, calib #, test #)", learned + 1 + of_class[i], learned, 1, of_class[i])
        )
    node = section(case.page, "data")
    reads(numeric(node), expected)
    reasons = [text for text in blocks(node) if text in ("not-an-image", "duplicate", "truncated", "empty")]
    assert reasons == ["not-an-image", "duplicate", "truncated", "empty"]


def test_class_by_class(case):
    hand, names = case.hand, case.names
    node = section(case.page, "classes")
    if not case.several:
        confusion_is_scikit_learns(node, hand, names)
        found = table(node, ["is", "taken for"])
        mistakes = sorted(hand.mistakes(), key=lambda m: (-m[2], names[m[0]], names[m[1]]))[:15]
        assert found == [[names[i], names[j], str(times), str(of)] for i, j, times, of in mistakes]
    metrics = [
        "recall",
        "precision",
        "f1",
        *(["average precision", "auroc"] if case.several else ["auroc", "auprc"]),
    ]
    (head, *found) = next(rows(each) for each in node.find("table") if rows(each)[0][0] == "class")
    spelled = {"f1": "F1", "auroc": "AUROC", "auprc": "AUPRC"}
    assert head == [
        "class",
        "test images",
        *(spelled.get(m, m) for m in metrics),
        *(["given from"] if case.several else []),
    ]
    for k, cells in enumerate(found):
        numbers = hand.of_class(k)
        numbers["auprc"] = numbers["average precision"]
        assert cells[0] == names[k]
        expected = [("#", numbers["n"]), *(share(numbers[metric]) for metric in metrics)]
        reads(cells[1:], [*expected, *([("#%", 100 * THRESHOLD)] if case.several else [])])
    bars_are_intervals(
        node,
        [
            hand.of_class(k)[m]
            for k in range(hand.k)
            for m in metrics
            if m in ("recall", "precision", "average precision")
        ],
    )
    narrow_screens_name_every_cell(node)
    all_numbers(node, case)


def confusion_is_scikit_learns(node, hand, names):
    matrix = hand.confusion()
    if hand.k <= 12:
        found = next(rows(each) for each in node.find("table") if each.attrs.get("class") == "matrix")
        assert found[0] == ["", *names]
        assert found[1:] == [[names[i], *map(str, row)] for i, row in enumerate(matrix.tolist())]
        return
    (drawn,) = [svg for svg in node.find("svg") if svg.attrs["class"] == "plot square"]
    right, n = np.trace(matrix), matrix.sum()
    pattern = "Confusion matrix of # classes: # of # images on the diagonal. The table lists the mistakes."
    says(drawn.attrs["aria-label"], pattern, hand.k, right, n)
    cell = 480 / hand.k
    expected = [(i, j) for i in range(hand.k) for j in range(hand.k) if matrix[i, j]]
    cells = [rect for rect in drawn.find("rect") if rect.attrs["class"] != "track"]
    assert [rect.text() for rect in cells] == [f"{names[i]} → {names[j]}: {matrix[i, j]}" for i, j in expected]
    for rect, (i, j) in zip(cells, expected, strict=True):
        assert rect.attrs["class"] == ("right" if i == j else "wrong")
        assert (float(rect.attrs["x"]), float(rect.attrs["y"])) == pytest.approx((j * cell, i * cell), abs=0.01)
        assert float(rect.attrs["fill-opacity"]) == pytest.approx(
            0.2 + 0.8 * matrix[i, j] / matrix[i].sum(), abs=0.01
        )


def bars_are_intervals(node, expected):
    bars = [svg for svg in node.find("svg") if svg.attrs["class"] == "bar"]
    assert len(bars) == len(expected)
    for svg, interval in zip(bars, expected, strict=True):
        says(svg.attrs["aria-label"], *share(interval))
        _, value = svg.find("rect")
        (line,) = svg.find("line")
        drawn = [float(value.attrs["width"]), float(line.attrs["x1"]), float(line.attrs["x2"])]
        assert drawn == pytest.approx([100 * end for end in interval], abs=0.006)


def all_numbers(node, case):
    hand = case.hand
    (dl,) = node.find("dl")
    found = dict(zip((dt.text() for dt in dl.find("dt")), (dd.text() for dd in dl.find("dd")), strict=True))
    both = {"macro F1": hand.macro_f1, "AUROC": hand.auroc}
    losses = {
        "log loss": hand.log_loss,
        "Brier score": hand.brier,
        "expected calibration error": hand.ece,
        "AURC": hand.aurc,
    }
    if case.several:
        both |= {"mean average precision": hand.map, "micro F1": hand.micro_f1, "exact match": hand.exact_match}
        losses |= {"hamming loss": hand.hamming_loss}
    else:
        both |= {"accuracy": hand.accuracy, "balanced accuracy": hand.balanced_accuracy, "AUPRC": hand.auprc}
        losses |= {"kappa": hand.kappa}
        both |= {f"right class among the first {k}": lambda k=k: hand.top_k(k) for k in (2, 3, 5) if k < hand.k}
    assert set(found) == set(both) | set(losses)
    for name, calculate in both.items():
        says(found[name], *share(calculate()))
    for name, calculate in losses.items():
        says(found[name], *score(calculate()))


def test_the_figures_by_hand_are_scikit_learns(case):
    """What the page is compared with, itself compared with the library where that has the metric."""
    hand = case.hand
    truth, probs = hand.there.astype(int), hand.probs
    average = {"average": "macro"}
    found = {"auroc": hand.auroc, "auprc": hand.auprc, "macro_f1": hand.macro_f1}
    expected = {"auroc": sk.roc_auc_score(truth, probs, **average), "auprc": sk.average_precision_score(truth, probs, **average),
                "macro_f1": sk.f1_score(truth, hand.said.astype(int), **average)}  # fmt: skip
    if case.several:
        found |= {
            "micro_f1": hand.micro_f1,
            "hamming": hand.hamming_loss,
            "log_loss": hand.log_loss,
            "brier": hand.brier,
            "exact": hand.exact_match,
        }
        said = hand.said.astype(int)
        expected |= {"micro_f1": sk.f1_score(truth, said, average="micro"), "hamming": sk.hamming_loss(truth, said),
                     "log_loss": sk.log_loss(truth.ravel(), probs.ravel()),
                     "brier": sk.brier_score_loss(truth.ravel(), probs.ravel()),
                     "exact": sk.accuracy_score(truth, said)}  # fmt: skip
    else:
        found |= {
            "log_loss": hand.log_loss,
            "kappa": hand.kappa,
            "accuracy": hand.accuracy,
            "balanced": hand.balanced_accuracy,
        }
        said = hand.probs32.argmax(axis=1)
        exact = probs / probs.sum(axis=1, keepdims=True)
        expected |= {"log_loss": sk.log_loss(hand.labels, exact), "kappa": sk.cohen_kappa_score(hand.labels, said),
                     "accuracy": sk.accuracy_score(hand.labels, said),
                     "balanced": sk.balanced_accuracy_score(hand.labels, said)}  # fmt: skip
    assert {name: calculate()[0] for name, calculate in found.items()} == pytest.approx(expected, abs=1e-6)


def wrongness(case):
    """(N,) probability of what is wrong, 0 where nothing is; of several labels the worst."""
    if case.several:
        wrong = (case.probs >= THRESHOLD) != case.labels
        return (np.abs(case.probs.astype(float) - case.labels) * wrong).max(axis=1)
    return np.where(case.right(), 0, case.probs.max(axis=1))


def doubt(case):
    """(N,) how near the answer was to another one."""
    if case.several:
        return -np.abs(case.probs.astype(float) - THRESHOLD).min(axis=1)
    first, second = -np.sort(-case.probs.astype(float), axis=1)[:, :2].T
    return second - first


def subject(case, i):
    """The class that caption and heat map are about: the answer; of several labels the worst, or else the nearest its limit."""
    probs = case.probs[i].astype(float)
    if not case.several:
        return probs.argmax()
    off = np.abs(probs - case.labels[i]) * ((case.probs[i] >= THRESHOLD) != case.labels[i])
    return off.argmax() if off.any() else np.abs(probs - THRESHOLD).argmin()


def shortened(text):
    return text if len(text) <= 90 else f"{text[:45].rstrip()} … {text[-30:].lstrip()}"


def test_every_image_shown_says_its_own_numbers(case):
    """The twelve of each kind are those they claim to be, and each has its own probability."""
    node = section(case.page, "examples")
    paths = [re.sub(r".*/", "", path) for path in case.dataset.used("test").paths]
    captions = [[item.text() for item in gallery.find("figcaption")] for gallery in node.find("ul")]
    verdicts, names = case.verdicts(), case.names
    about = np.array([subject(case, i) for i in range(len(paths))])
    wanted = {"Most wrong": wrongness(case), "Least sure": doubt(case), "Least familiar": -case.familiarity}
    assert [h3.text() for h3 in node.find("h3")] == list(wanted)
    for found, strength in zip(captions, wanted.values(), strict=True):
        shown = [paths.index(re.search(r"image-.*$", caption)[0]) for caption in found]
        assert len(shown) == 12
        assert strength[shown] == pytest.approx(np.sort(strength)[::-1][:12]), "the strongest first"
        for caption, i in zip(found, shown, strict=True):
            labels = (
                [names[k] for k in np.flatnonzero(case.labels[i])] if case.several else [names[case.labels[i]]]
            )
            given = (
                [names[k] for k in np.flatnonzero(case.probs[i] >= THRESHOLD)]
                if case.several
                else [names[case.probs[i].argmax()]]
            )
            said = [shortened(", ".join(sorted(each)) or "none") for each in (labels, given)]
            prob = 100 * case.probs[i, about[i]]
            if case.several:
                pattern = f"label {said[0]} answer {said[1]}, {verdicts[i]} {names[about[i]]} #% {paths[i]}"
            else:
                pattern = f"label {said[0]} answer {said[1]} #%, {verdicts[i]} {paths[i]}"
            says(caption, pattern, prob)


def test_how_far_to_trust_it(case):
    hand, card, names = case.hand, case.card, case.names
    node = section(case.page, "trust")
    verdicts, right = case.verdicts(), case.right()
    found = table(node, ["verdict"])
    for name, cells in zip(("sure", "unsure", "unfamiliar"), found, strict=True):
        given = verdicts == name
        expected = [
            ("#", given.sum()),
            share(wilson(given.sum(), hand.n)),
            share(wilson(right[given].sum(), given.sum())),
        ]
        assert cells[0] == name
        reads(cells[1:], expected)
    for cells, (claimed, n, came_true) in zip(table(node, ["claimed"]), hand.reliability(), strict=True):
        reads(cells, [("#%", 100 * claimed), ("#", n), share(came_true)])
    for cells, (answered, least, accuracy) in zip(table(node, ["answered"]), hand.selective(), strict=True):
        reads(cells, [("#%", 100 * answered), ("#%", 100 * least), share(accuracy)])
    for cells, level in zip(table(node, ["wanted"]), card.conformal.levels, strict=True):
        covered, size, single, empty = hand.coverage(level.min_probs)
        reads(cells, [("#%", 100 * level.coverage), share(covered), ("#", size), ("#", single), ("#", empty)])
    assert f"Decision bands for {names[1]}." in blocks(node)
    heads = [rows(each)[0] for each in node.find("table")]
    assert heads == [
        ["verdict", "test images", "share", "right"],
        ["claimed", "answers" if case.several else "images", "right"],
        ["answered", "from", "right"],
        ["wanted", "covered", "classes on average", "sets of one class", "empty sets"],
        ["band", "goal", "from", "test images", "share of all images", "precision", "recall"],
    ]
    narrow_screens_name_every_cell(node)
    (rule,) = card.decision_rules
    limits = [band.min_prob for band in rule.bands]
    for cells, band, numbers in zip(table(node, ["band"]), rule.bands, hand.bands(1, limits), strict=True):
        n, rate, precision, recall = numbers
        start = (band.note,) if band.min_prob is None else ("#%", 100 * band.min_prob)
        assert cells[:2] == [band.name, band.goal or "the rest"]
        reads(cells[2:], [start, ("#", n), share(rate), share(precision), share(recall)])
    *_, dl = node.find("dl")
    unfamiliar = (case.familiarity < ALARMS.threshold).sum()
    pattern, *numbers = share(wilson(unfamiliar, hand.n))
    low, high = beta_range(317, 0.02)
    reads(
        [dd.text() for dd in dl.find("dd")],
        [
            ("#, fitted on # images", 1.437, 317),
            ("# before, # after", 0.731, 0.642),
            ("# before, # after", 0.0914, 0.0311),
            ("#% coverage over all classes, from # images; promised #%", 95, 319, 95),
            (f"{pattern} of the test images; #% wanted. A threshold set on # images gives #% to #%, # times in #",
             *numbers, 2, 317, 100 * low, 100 * high, 95, 100),
        ],
    )  # fmt: skip
    cells = {cell for each in node.find("table") for row in rows(each) for cell in row}
    others = [text for text in numeric(node) if text not in cells]
    assert (
        others[0]
        == "On the dashed line, 90% is right 9 times out of 10. Below it, the model is too sure of itself."
    )
    assert len(others) == 6, others


def narrow_screens_name_every_cell(node):
    """Where a table is stacked its head is hidden; each cell then says what it is."""
    for each in node.find("table"):
        if "stack" in each.attrs.get("class", "").split():
            head, *body = each.find("tr")
            heads = [cell.text() for cell in head.find("th", "td")]
            for row in body:
                first, *cells = row.find("th", "td")
                assert [cell.attrs.get("data-is") for cell in cells] == heads[1:]
                assert first.attrs.get("data-is") in (None, heads[0])


def test_plots_show_the_same_numbers(case):
    reliability, selective = (Read(svg) for svg in section(case.page, "trust").find("svg"))
    expected = case.hand.reliability()
    reliability.ticks_are_even()
    assert reliability.points() == pytest.approx(
        np.array([(claimed, share[0]) for claimed, _, share in expected]), abs=1e-4
    )
    assert reliability.whiskers() == pytest.approx(np.array([share[1:] for _, _, share in expected]), abs=1e-4)
    said = reliability.svg.attrs["aria-label"].removeprefix("Reliability: ").split("; ")
    reads(said, [("claimed #%, right #%", 100 * claimed, 100 * share[0]) for claimed, _, share in expected])
    (ideal,) = [line.attrs for line in reliability.svg.find("line") if line.attrs["class"] == "ideal"]
    assert reliability.at(float(ideal["x1"]), reliability.x) == reliability.at(float(ideal["y1"]), reliability.y)
    expected = case.hand.selective()
    selective.ticks_are_even()
    assert selective.points() == pytest.approx(
        np.array([(part, accuracy[0]) for part, _, accuracy in expected]), abs=1e-4
    )
    assert selective.whiskers() == pytest.approx(np.array([accuracy[1:] for *_, accuracy in expected]), abs=1e-4)
    first, last = expected[0], expected[-1]
    says(selective.svg.attrs["aria-label"], "Answering the surest #% of the images, #% are right; answering #%, #%.",
         100 * first[0], 100 * first[2][0], 100 * last[0], 100 * last[2][0])  # fmt: skip


def test_training_curves_are_the_log(case):
    node = section(case.page, "training")
    assert numeric(node) == []
    for svg, metric in zip(node.find("svg"), ("loss", "accuracy"), strict=True):
        plot = Read(svg)
        plot.ticks_are_even()
        for name, tone in (("running", "third"), ("train", "first"), ("val", "second")):
            expected = np.array([(row["epoch"], row[f"{name}_{metric}"]) for row in LOG])
            assert plot.points(tone) == pytest.approx(expected, abs=0.006)
        lines = "running from # to #; train from # to #; val from # to #"
        ends = [LOG[i][f"{name}_{metric}"] for name in ("running", "train", "val") for i in (0, -1)]
        says(svg.attrs["aria-label"].partition(". ")[2], f"Over # epochs, {lines}.", 3, *ends)


def test_the_model_file_and_its_limits(case):
    k = case.hand.k
    assert numeric(section(case.page, "file"))[0].startswith("The file itself was asked again")
    reads(
        numeric(section(case.page, "file")),
        [
            ("The file itself was asked again, from the image files: of # images, # got the same answer as from the model in"
             " training, with probabilities within # (bf#).", 219, 217, 0.0123, 16),
            ("#", k), ("# \N{MULTIPLICATION SIGN} # pixels, squash", 32, 32), ("# s", 12.7),
        ],
    )  # fmt: skip
    (limit,) = numeric(section(case.page, "limits"))
    assert limit.startswith(f"The model knows {k} classes and no other.")


def test_no_number_stands_outside_of_what_was_compared(case):
    """Every digit of the page is in a block of a section above, in a plot, or in an attribute."""
    compared = "header", "warnings", "help", "data", "training", "classes", "examples", "trust", "file", "limits"
    inside = [text for name in compared for text in numeric(section(case.page, name))]
    (body,) = case.page.find("body")
    everywhere = re.findall(r"\d[\d,.]*", " ".join(_texts(body)))
    assert sorted(everywhere) == sorted(number for text in inside for number in re.findall(r"\d[\d,.]*", text))
    assert len(everywhere) > 300
    assert [node.attrs.get("id") for node in case.page.find("section")] == list(compared[1:])


def _texts(node):
    for child in node.children:
        if isinstance(child, str):
            yield child
        elif child.tag not in ("svg", "style"):
            yield from _texts(child)


@pytest.mark.parametrize("text", ["92.7% of 404", "92.9% of 403", "92.8% of 403 and 1", "92.8 of 403"])
def test_another_number_is_noticed(text):
    assert says("92.8% of 403", "#% of #", 92.76, 403)
    with pytest.raises(AssertionError):
        says(text, "#% of #", 92.76, 403)


def test_hostile_names_stay_text(tmp_path):
    dataset, answers = generated(tmp_path, "classification", HOSTILE, 60)
    card, part = made_card("classification", HOSTILE), dataset.used("test")
    raw = paged(
        dataset,
        answers,
        card,
        {"test": measure(part.labels, answers, card), "dataset": describe(dataset), **GIVEN},
    )
    page = _Page()
    page.feed(raw.decode())
    assert "script" not in page.tags
    assert not re.search(rb"https?://|@import|url\(", raw)
    assert f"Decision bands for {HOSTILE[1]}." in page.text
