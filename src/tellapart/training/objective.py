"""What is minimised, and how logits become answers: the part of the loop that depends on the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows it by

from tellapart.records import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """One class an image: binary cross-entropy on one logit for two classes, cross-entropy for more.

    Attributes:
        class_weights: (K,) weight of each class in the loss; mean 1 over the training images.
        label_smoothing: share of the target that is spread over all classes, 0-1.
    """

    class_weights: Tensor
    label_smoothing: float = 0.0

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_weights)

    @property
    def num_outputs(self) -> int:
        """Logits the network gives: 1 for two classes, that of the second."""
        return 1 if self.num_classes == 2 else self.num_classes

    def targets(self, labels: Tensor) -> Tensor:
        """(B, K) float targets of (B,) class indices, unsmoothed."""
        return F.one_hot(labels, self.num_classes).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats, weighted and smoothed, of (B, outputs) logits and (B, K) targets whose rows sum to 1."""
        weights = targets @ self.class_weights
        smooth = targets + self.label_smoothing * (1 / self.num_classes - targets)
        if self.num_outputs == 1:
            losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), smooth[:, 1], reduction="none")
        else:
            losses = F.cross_entropy(logits.float(), smooth, reduction="none")
        return (losses * weights).mean()

    def class_logits(self, logits: Tensor) -> Tensor:
        """(B, K) float32 logits whose softmax gives the probabilities."""
        logits = logits.float()
        return torch.cat([-logits / 2, logits / 2], dim=1) if self.num_outputs == 1 else logits

    def plain_loss(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """Mean log loss in nats, without smoothing and weights, of (B, K) class logits."""
        return F.cross_entropy(class_logits, targets)

    def accuracy(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) whether the most probable class is the one with the largest target."""
        return (class_logits.argmax(dim=1) == targets.argmax(dim=1)).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiLabel:
    """Any number of labels an image: binary cross-entropy on one logit for each.

    Attributes:
        class_weights: (K,) weight of each label in the loss.
        label_smoothing: share of each target that is moved to one half, 0-1.
    """

    class_weights: Tensor
    label_smoothing: float = 0.0

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_weights)

    @property
    def num_outputs(self) -> int:
        """Logits the network gives: K."""
        return self.num_classes

    def targets(self, labels: Tensor) -> Tensor:
        """(B, K) float targets of (B, K) labels of 0 and 1."""
        return labels.float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats over images and labels, weighted and smoothed."""
        smooth = targets + self.label_smoothing * (0.5 - targets)
        losses = F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none")
        return (losses * self.class_weights).mean()

    def class_logits(self, logits: Tensor) -> Tensor:
        """(B, K) float32 logits whose sigmoid gives the probabilities."""
        return logits.float()

    def plain_loss(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """Mean log loss in nats over images and labels."""
        return F.binary_cross_entropy_with_logits(class_logits, targets)

    def accuracy(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) share of the labels that are right at a probability of one half."""
        return ((class_logits > 0) == (targets > 0.5)).float().mean(dim=1)


Objective = Classification | MultiLabel
OBJECTIVES: Mapping[Task, type[Objective]] = MappingProxyType(
    {"classification": Classification, "multilabel": MultiLabel}
)
