"""Training curves: a picture that any program can read, a row of bars, and a sentence that is true."""

import xml.etree.ElementTree as ET

import pytest

from tellapart.records import EpochLog
from tellapart.training.curves import describe_fit, draw_curves, sparkline

SVG = "{http://www.w3.org/2000/svg}"


def log(train, val=None, *, accuracy=None, val_accuracy=None, running=None):
    """Epochs with these losses; accuracies are 0.9 where nothing else is said."""
    count = len(train)
    val = val or [None] * count
    accuracy = accuracy or [0.9] * count
    val_accuracy = val_accuracy or [None if loss is None else 0.9 for loss in val]
    return [
        EpochLog(
            epoch=i + 1,
            epochs=count,
            running_loss=(running or train)[i],
            running_accuracy=accuracy[i],
            train_loss=train[i],
            train_accuracy=accuracy[i],
            val_loss=val[i],
            val_accuracy=val_accuracy[i],
            lr=0.001,
            images_per_s=100.0,
            seconds=float(i),
        )
        for i in range(count)
    ]


LOGS = {
    "with val": log([1.1, 0.7, 0.5], [1.2, 0.9, 0.8], running=[1.5, 1.0, 0.7]),
    "without val": log([1.1, 0.7, 0.5]),
    "one epoch": log([1.1], [1.2]),
    "all equal": log([0.0, 0.0], [0.0, 0.0], accuracy=[1.0, 1.0], val_accuracy=[1.0, 1.0]),
    "far below chance": log([9.0, 20.0], [30.0, 50.0], accuracy=[0.1, 0.0], val_accuracy=[0.0, 0.0]),
    "hundreds": log([1 / (i + 1) for i in range(300)], [2 / (i + 1) for i in range(300)]),
}


def lines(svg):
    """Points of each series' lines, without those of the legend."""
    found = {}
    for line in ET.fromstring(svg).iter(f"{SVG}polyline"):  # noqa: S314  our own
        points = [tuple(float(number) for number in point.split(",")) for point in line.get("points").split()]
        found.setdefault(line.get("class"), []).append(points)
    return {name: series[:2] for name, series in found.items()}


@pytest.mark.parametrize("name", LOGS)
def test_the_picture_has_a_line_for_each_series(name):
    entries = LOGS[name]
    svg = draw_curves(entries)
    root = ET.fromstring(svg)  # noqa: S314
    assert root.tag == f"{SVG}svg"
    assert not list(root.iter(f"{SVG}script"))
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    drawn = lines(svg)
    assert set(drawn) == {"train", "running"} | ({"val"} if entries[0].val_loss is not None else set())
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for series in drawn.values():
        assert [len(points) for points in series] == [max(2, len(entries))] * 2
        assert all(0 <= x <= width and 0 <= y <= height for points in series for x, y in points)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"1", str(len(entries))} <= set(words)
    assert any("loss" in word for word in words)
    assert any("accuracy" in word for word in words)


def test_the_lines_show_the_numbers():
    drawn = lines(draw_curves(LOGS["with val"]))
    (train, train_accuracy), (val, _) = drawn["train"], drawn["val"]
    assert [y for _, y in train] == sorted(y for _, y in train)  # down the page: a falling loss
    assert all(a[1] > b[1] for a, b in zip(train, val, strict=True))
    assert len({y for _, y in train_accuracy}) == 1
    left, middle, right = (x for x, _ in train)
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    scale = (train[0][1] - train[2][1]) / (1.1 - 0.5)
    assert (val[0][1] - val[2][1]) / (1.2 - 0.8) == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([1.0, 0.0], "█▁"),
        ([7, 6, 5, 4, 3, 2, 1, 0], "█▇▆▅▄▃▂▁"),
        ([float("nan"), 1.0, float("inf"), 0.0], "█▁"),
        ([float("nan")], ""),
        ([5.0] * 30 + [0.0], "█" * 19 + "▁"),
    ],
)
def test_sparklines(values, expected):
    assert sparkline(values) == expected


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (log([1.0], [1.0]), "Too few epochs"),
        ([], "Too few epochs"),
        (log([1.0, 0.8, 0.6]), "Without val"),
        (log([1.0, 0.6, 0.3, 0.1], [1.0, 0.7, 0.9, 1.2]), "Overfitting: val loss was lowest after epoch 2"),
        (
            log([1.0, 0.6, 0.3, 0.1], [0.7, 0.8, 0.9, 1.2]),
            "Overfitting: val loss was lowest after epoch 1",
        ),
        (log([1.0, 0.8, 0.6], [1.0, 0.9, 0.8]), "Still learning"),
        (log([1.0, 0.8, 0.6], [1.0, 0.9, 0.8]), "--set epochs=6"),
        (
            log([1.0, 0.8, 0.6], [1.0, 0.9, 0.8], accuracy=[0.5, 0.7, 0.9], val_accuracy=[0.5, 0.6, 0.7]),
            "20% above val",
        ),
        (
            log([1.0, 0.5, 0.495], [1.0, 0.8, 0.81], accuracy=[0.5, 0.9, 0.99], val_accuracy=[0.5, 0.8, 0.8]),
            "Learning by heart: 99% on train images, 80% on val",
        ),
        (log([1.0, 0.99, 0.985], [1.0, 0.99, 1.0]), "Underfitting"),
        (log([1.0, 0.3, 0.3], [1.0, 0.35, 0.352]), "Settled"),
        (log([1.0, 0.3, 0.3, 0.31], [1.0, 0.35, 0.36, 0.355]), "Settled"),
    ],
)
def test_the_sentence(entries, says):
    assert says in describe_fit(entries)


def test_a_curve_that_only_shakes_is_not_called_overfitting():
    """Val loss that rises because train loss rises, too, is no overfitting."""
    said = describe_fit(log([1.0, 0.3, 0.35], [1.0, 0.3, 0.36]))
    assert "Overfitting" not in said
