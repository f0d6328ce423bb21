"""Issues of whole classes: much larger than others, or too small to measure."""

from collections.abc import Iterator

from tellapart.checking.severity import rated
from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import wilson_interval
from tellapart.records import Issue

MAX_WIDTH = 0.3
"""Of the 95 % interval of a class's recall; a wider one cannot tell a good recogniser from a poor one."""

MIN_IMBALANCE = 10.0
"""Times as many images in the largest class as in the smallest."""

_SUPPOSED_RECALL = 0.9
_TEST_FRACTION = 0.2  # as in the recipes


def class_issues(part: Dataset) -> Iterator[Issue]:
    """Imbalance and small classes among the images in use; none where there are no labels."""
    counts = {name: count for name, count in part.class_counts().items() if count}
    if not counts:
        return
    own_test = part.class_counts("test")
    yield from _imbalance(counts)
    for name, count in counts.items():
        tested = own_test[name] if sum(own_test.values()) else max(1, round(_TEST_FRACTION * count))
        width = _interval_width(tested)
        if width > MAX_WIDTH:
            evidence = {"label": name, "images": count, "tested": tested, "interval_width": round(width, 3)}
            yield rated("small-class", width, [], evidence)


def _imbalance(counts: dict[str, int]) -> Iterator[Issue]:
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[largest] / counts[smallest]
    if ratio >= MIN_IMBALANCE:
        evidence = {
            "largest": largest,
            "images": counts[largest],
            "smallest": smallest,
            "images_of_smallest": counts[smallest],
            "ratio": round(ratio, 1),
        }
        yield rated("imbalance", 1 - MIN_IMBALANCE / ratio, [], evidence)


def _interval_width(tested: int) -> float:
    """Width of the interval of a class of which most test images are answered rightly; 1 where there are none."""
    interval = wilson_interval(round(_SUPPOSED_RECALL * tested), tested)
    if interval.low is None or interval.high is None:
        return 1.0
    return interval.high - interval.low
