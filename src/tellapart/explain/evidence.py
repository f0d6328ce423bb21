"""Where in the image the answer comes from: found by covering places, or read out of the model's own class maps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.explain.occlusion import default_patch, occlusion_map
from tellapart.explain.sentences import number
from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import Engine
from tellapart.records import Progress

_CLEAR_FALL = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What speaks for the predicted class and against it, place by place.

    Attributes:
        values: (h, w) float32, positive where the image speaks for the class.
        text: how to read it.
        method: how it was found.
        caption: of the picture.
        low: what the strongest colour against the class stands for.
        high: what the strongest colour for it stands for.
        note: what to beware of.
    """

    values: NDArray[np.float32]
    text: str
    method: str
    caption: str
    low: str
    high: str
    note: str = ""


def occlusion_evidence(
    engine: Engine, pixels: Pixels, class_index: int, label: str, progress: Progress
) -> Evidence:
    """Cover one place after another, and see how the probability changes; see ``occlusion_map``."""
    patch_px, stride_px = default_patch(len(pixels))
    fall = occlusion_map(engine, pixels, class_index, patch_px=patch_px, stride_px=stride_px, progress=progress)
    fall = np.nan_to_num(fall)
    points = number(100 * float(np.abs(fall).max()))
    note = (
        f"No single patch matters much: the strongest colour stands for only {points} percentage points, and the"
        " answer does not hang on one place."
    )
    return Evidence(
        values=fall,
        text=f"A gray patch of {patch_px} x {patch_px} pixels covers one place after another. Orange: covering it makes"
        f" “{label}” less probable, so the model uses what is there. Blue: covering it makes “{label}” more probable, so what"
        " is there speaks against it. The scale is in percentage points.",
        method=f"occlusion sensitivity, patch moved by {stride_px} pixels",
        caption="fall of the probability",
        low=f"rises by {points} points",
        high=f"falls by {points} points",
        note=note if np.abs(fall).max() < _CLEAR_FALL else "",
    )


def map_evidence(values: NDArray[np.float32], label: str) -> Evidence:
    """Read what the model's own class map says; see ``class_evidence``.

    Args:
        values: (h, w) evidence for the class.
        label: the class.
    """
    values = np.nan_to_num(values)
    height, width = values.shape
    share = number(float(np.abs(values).max()) / values.size)
    return Evidence(
        values=values,
        text=f"The model looks at {height} x {width} places and adds up what each says. Orange: what is there speaks for"
        f" “{label}”. Blue: it speaks for another answer. A place sees some of what is around it, so edges are soft.",
        method="class activation map, out of the model file",
        caption="evidence, place by place",
        low=f"{share} against",
        high=f"{share} for it, in units of the logit",
    )
