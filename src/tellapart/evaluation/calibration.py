"""Make probabilities mean what they say."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tellapart.errors import RecipeError
from tellapart.evaluation.metrics import FloatArray, IntArray

_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)  # 0.05 to 20


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Find the temperature that minimises log loss.

    Args:
        logits: (N, K), from images that neither trained nor chose the model.
        labels: (N,) class indices in 0..K-1.

    Returns:
        Temperature from 0.05 to 20; 1 leaves probabilities unchanged, more softens them.

    Raises:
        RecipeError: bad-labels, when fewer than two classes are present or the lengths differ.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    if len(logits) != len(labels) or len(np.unique(labels)) < 2:
        raise RecipeError("bad-labels", f"calibration needs images of two classes, got labels {np.unique(labels)}")
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    best = minimize_scalar(loss, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(best.x))
