"""What each task does in its own way. A new task is another set of rules, not another branch."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.classification import ClassificationRules
from tellapart.evaluation.metrics import Answer, FloatArray, IntArray
from tellapart.evaluation.multilabel import MultiLabelRules
from tellapart.records import ConformalRule, HeldOut, ModelCard, Prediction, Task


class TaskRules(Protocol):
    """From logits to a verdict. Labels are what ``Dataset.labels`` gives for the task."""

    @property
    def activation(self) -> Literal["Softmax", "Sigmoid"]:
        """ONNX operator from calibrated logits to probabilities."""
        ...

    def probs(self, logits: FloatArray) -> NDArray[np.float64]:
        """(N, K) probabilities of (N, K) calibrated logits."""
        ...

    def fit_temperature(self, logits: FloatArray, labels: IntArray) -> float:
        """The temperature that minimises log loss."""
        ...

    def calibration_errors(self, labels: IntArray, probs: FloatArray) -> dict[str, float]:
        """``log_loss`` in nats and ``ece``, of (N, K) probabilities, N at least 1."""
        ...

    def fit_conformal(
        self,
        probs: FloatArray,
        labels: IntArray,
        *,
        coverage: float,
        per_class: bool = False,
        method: HeldOut = "calib",
    ) -> ConformalRule:
        """The rule behind prediction sets and the verdict ``sure``: one threshold for all classes, or one for each."""
        ...

    def fit_thresholds(self, probs: FloatArray, labels: IntArray, goal: str) -> tuple[float, ...]:
        """K probabilities from which a label is given; none where exactly one class is."""
        ...

    def disagreement(
        self, expected: FloatArray, found: FloatArray, thresholds: Sequence[float]
    ) -> tuple[NDArray[np.bool_], FloatArray]:
        """(N,) whether two sets of probabilities give different answers, and how near the expected answer was to another."""
        ...

    def right(self, labels: IntArray, answers: Answer, card: ModelCard) -> NDArray[np.bool_]:
        """(N,) whether each answer is wholly right."""
        ...

    def measure(self, labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
        """Metrics with intervals, as in ``report.json``; ``headline`` names those to print first."""
        ...

    def decide(self, path: str, answer: Answer, card: ModelCard, coverage: float | None = None) -> Prediction:
        """The answer for one image; familiarity is not looked at."""
        ...


RULES: Mapping[Task, TaskRules] = MappingProxyType(
    {"classification": ClassificationRules(), "multilabel": MultiLabelRules()}
)
