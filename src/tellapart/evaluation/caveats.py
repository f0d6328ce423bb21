"""Plain sentences about what a test set is too small to tell."""

import math
from collections.abc import Mapping

from tellapart.records import Interval

_WIDE = 0.1
_FEW = 10
_NAMED = 3


def caveats(name: str, measured: Interval, n: int, class_counts: Mapping[str, int]) -> list[str]:
    """Say where the numbers may deceive; nothing where they do not.

    Args:
        name: of the metric, with its article, such as ``an accuracy``.
        measured: that metric, 0-1.
        n: number of test images.
        class_counts: test images of each class, or with each label.
    """
    found = []
    if measured.value is not None and measured.low is not None and measured.high is not None:
        if measured.high - measured.low > _WIDE:
            low, high = math.floor(100 * measured.low), math.ceil(100 * measured.high)
            images = "1 test image" if n == 1 else f"{n:,} test images"
            found.append(
                f"with {images}, {name} of {100 * measured.value:.0f} % could be anything from {low} % to {high} %"
            )
    elif not n:
        return ["there are no test images: nothing was measured"]
    absent = [class_name for class_name, count in class_counts.items() if not count]
    few = sorted((count, class_name) for class_name, count in class_counts.items() if 0 < count < _FEW)
    if absent:
        found.append(f"no test image of {_listed(absent)}: nothing was measured for what is not there")
    if few:
        named = _listed([f"{class_name} ({count})" for count, class_name in few])
        found.append(f"fewer than {_FEW} test images of {named}: what is said of them alone may be chance")
    return found


def _listed(names: list[str]) -> str:
    """The first few, and how many more there are."""
    named, rest = names[:_NAMED], len(names) - _NAMED
    return ", ".join(named) + (f" and {rest:,} more" if rest > 0 else "")
