import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.records import Calibration, ModelCard, Preprocess
from tellapart.report import story
from tellapart.report.charts import reliability
from tellapart.report.examples import choose_examples
from tellapart.report.page import render_report
from tellapart.report.plots import interval_bar

HOSTILE = ("<script>alert(1)</script>", "q\"'&amp;", "😀" + "x" * 200, "\u202eعربي")


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def numbers(n=100, **more):
    half = interval(0.9, 0.8, 0.95)
    rows = {name: {"n": n // 4, "recall": half, "precision": half} for name in HOSTILE}
    return {"n": n, "headline": ["accuracy"], "class_names": list(HOSTILE), "per_class": rows, **more}


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "said", "grade"),
    [
        (0.989, 0.9804, 0.9938, 1000, "100: 99 to be right (98 to 99).", "excellent"),
        (0.999, 0.994, 1.0, 1000, "1,000: 999 to be right (994 to 1,000).", "excellent"),
        (0.5, 0.41, 0.59, 120, "100: 50 to be right (41 to 59).", "poor"),
        (0.9, 0.6, 0.98, 10, "100: 90 to be right (60 to 98).", "too few test images to say"),
        (0.27, 0.22, 0.33, 200, "100: 27 to be right (22 to 33).", "no better than a guess"),
    ],
)  # fmt: skip
def test_the_answer_comes_in_words(value, low, high, n, said, grade):
    test = numbers(n, accuracy=interval(value, low, high))
    scale, _, expected = said.partition(": ")
    assert story.answer(test) == f"Of {scale} new photos like these, expect about {expected}"
    assert story.grade(test) == grade


def test_nothing_measured_is_said():
    assert "Nothing was measured" in story.answer(numbers(0))


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def case(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((20, 30, 3), 30 * i, np.uint8)).save(path)
    rows = {
        "path": paths,
        "label": [HOSTILE[i % 4] for i in range(8)],
        "split": ["test"] * 8,
        "status": ["used"] * 8,
    }
    table = pl.DataFrame(rows).with_columns(
        [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in rows]
    )
    dataset = Dataset(table=table.select(SCHEMA.names()).cast(SCHEMA), class_names=HOSTILE, root=Path(tmp_path))
    probs = np.full((8, 4), 0.1, np.float32)
    probs[np.arange(8), np.arange(8) % 4] = 0.7
    probs[0] = (0.02, 0.95, 0.02, 0.01)  # wrong and certain
    probs[1] = (0.5, 0.4, 0.1, 0.0)  # wrong, less so
    card = ModelCard(
        class_names=HOSTILE, preprocess=Preprocess(input_size_px=32), embedding_dim=4, created="2026-01-01",
        calibration=Calibration(temperature=1.25, method="calib", n=17),
    )  # fmt: skip
    counts = {"seen": 11, "used": 8, "refused": 2, "duplicates": 1, "skipped": 0}
    described = {
        **counts,
        "notes": ["a <b>note</b>"],
        "reasons": {"truncated": 2},
        "classes": dict.fromkeys(HOSTILE, 2),
    }
    return dataset, {path: {"probs": row} for path, row in zip(paths, probs, strict=True)}, card, described


def rendered(case, test, heatmaps=None, **more):
    dataset, answers, card, described = case
    examples = choose_examples(dataset.used("test"), answers, card)
    page = render_report(
        {"test": test, "dataset": described, **more}, dataset, answers, card, examples=examples,
        heatmaps=heatmaps or {}, title=HOSTILE[0], command="tellapart train 'a<b'",
    )  # fmt: skip
    parsed = _Page()
    parsed.feed(page.decode())
    return page, parsed


def test_the_most_confidently_wrong_image_comes_first(case):
    dataset, answers, card, _ = case
    examples = choose_examples(dataset, answers, card)
    assert [Path(path).name for path in examples.most_wrong] == ["0.png", "1.png"]
    assert Path(examples.least_sure[0]).name == "1.png"
    assert examples.least_familiar == ()


FULL = {
    "accuracy": interval(0.75, 0.409, 0.929),
    "confusion_matrix": [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]],
    "reliability": [{"low": 0.4, "high": 0.7, "n": 7, "prob": 0.617, "share": interval(0.857, 0.487, 0.974)}],
    "selective": [{"answered": 0.5, "min_prob": 0.71, "accuracy": interval(0.813, 0.5, 0.9)}],
    "verdicts": {"sure": {"n": 3, "share": interval(0.375, 0.137, 0.694), "accuracy": interval(0.667, 0.2, 0.9)}},
    "coverage": [
        {"wanted": 0.9, "covered": interval(0.876, 0.5, 0.99), "mean_size": 1.43, "single": 6, "empty": 1}
    ],
    "warnings": ["a warning <i>here</i>"],
}


def test_every_number_is_on_the_page(case):
    _, page = rendered(case, numbers(8, **FULL))
    for figure in ("75.0% (40.9% to 92.9%)", "61.7%", "85.7% (48.7% to 97.4%)", "81.3% (50.0% to 90.0%)",
            "37.5% (13.7% to 69.4%)",
                   "87.6% (50.0% to 99.0%)", "1.43", "1.250, fitted on 17 images", "95.0%, unsure", "A warning <i>here</i>.",
                   "tellapart train 'a<b'", "truncated"):  # fmt: skip
        assert figure in page.text, figure


@pytest.mark.parametrize("more", [{}, FULL])
def test_no_script_and_nothing_fetched_whatever_the_names(case, more):
    raw, page = rendered(case, numbers(8, **more))
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not re.search(rb"https?://|@import|url\(", raw)
    assert HOSTILE[0] in page.text  # as text, not as a tag
    assert (raw, page.text) == (rendered(case, numbers(8, **more))[0], page.text)


def test_a_heat_map_lies_beside_its_image(case):
    path = case[0].paths[0]
    with_map, _ = rendered(case, numbers(8), {path: np.eye(4, dtype=np.float32)})
    without, _ = rendered(case, numbers(8))
    assert with_map.count(b'alt="Heat map') > without.count(b'alt="Heat map') == 0


def test_points_of_a_plot_lie_where_their_numbers_say():
    drawn = reliability({"reliability": [{"prob": 0.75, "share": interval(1.0, 0.5, 1.0)}]})
    # From 0.5 to 1 over 332 pixels after the first 54, and over 202 below the first 14.
    assert 'cx="220.0" cy="14.0"' in drawn
    assert 'y1="216.0" y2="14.0"' in drawn
    bar = interval_bar(interval(0.25, 0.2, 0.4), says="<x>")
    assert 'width="25.0"' in bar
    assert 'x1="20.0" x2="40.0"' in bar
    assert "&lt;x&gt;" in bar
