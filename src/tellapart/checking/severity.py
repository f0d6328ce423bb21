"""How much each kind of issue matters, so that all can be ranked in one list."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tellapart.records import Issue

# From the mildest case of a kind to its worst. First what makes a measured number wrong, then what teaches something wrong, then
# what wastes images, then what may well be so on purpose.
SEVERITIES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "label-conflict": (0.9, 1.0),
        "leak": (0.85, 0.95),
        "unreadable": (0.8, 0.8),
        "truncated": (0.75, 0.75),
        "label-error": (0.5, 0.9),
        "blank": (0.6, 0.75),
        "small-class": (0.3, 0.7),
        "name-clash": (0.5, 0.5),
        "duplicate": (0.45, 0.45),
        "near-duplicate": (0.3, 0.45),
        "outlier": (0.2, 0.6),
        "dark": (0.2, 0.5),
        "bright": (0.2, 0.5),
        "blurred": (0.2, 0.5),
        "imbalance": (0.2, 0.5),
        "odd-size": (0.1, 0.3),
        "odd-shape": (0.1, 0.3),
        "wrong-extension": (0.1, 0.1),
    }
)


def rated(kind: str, degree: float, paths: Sequence[str], evidence: Mapping[str, object]) -> Issue:
    """An issue whose severity lies within its kind's.

    Args:
        kind: as in ``Issue``.
        degree: 0-1, how bad a case of its kind it is.
        paths: as in ``Issue``.
        evidence: as in ``Issue``.
    """
    low, high = SEVERITIES[kind]
    severity = round(low + (high - low) * min(max(degree, 0.0), 1.0), 4)
    return Issue(kind=kind, severity=severity, paths=tuple(paths), evidence=evidence)
