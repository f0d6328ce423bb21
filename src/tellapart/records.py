"""The records that cross the layers: frozen, and checked where they are made."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tellapart.errors import ModelError, RecipeError

Task = Literal["classification", "multilabel"]
ResizeMode = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
Verdict = Literal["sure", "unsure", "unfamiliar", "error"]

TIMM, LOCAL = "timm/", "local-dir:"
"""How the names of backbones begin that are not bundled."""

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(stage, done, total)``; ``total`` is None while it is not known."""


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How a decoded image becomes the model's input; stored in the model file.

    Attributes:
        input_size_px: side S of the square the model sees.
        resize: ``squash`` ignores the image's shape, ``crop`` cuts the middle square, ``pad`` adds gray bars.
        interpolation: filter of the reduction, always antialiased.
        crop_share: of ``crop``: share of the middle square's side that is kept, above 0, at most 1.
    """

    input_size_px: int
    resize: ResizeMode = "squash"
    interpolation: Interpolation = "bilinear"
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        if not 8 <= self.input_size_px <= 4096:
            raise RecipeError("bad-setting", f"input_size_px must be 8 to 4096, got {self.input_size_px}")
        if self.resize not in ("squash", "crop", "pad"):
            raise RecipeError("bad-setting", f"resize must be squash, crop or pad, got {self.resize!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise RecipeError(
                "bad-setting", f"interpolation must be bilinear or bicubic, got {self.interpolation!r}"
            )
        if not 0.1 <= self.crop_share <= 1:
            raise RecipeError("bad-setting", f"crop_share must be 0.1 to 1, got {self.crop_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Where in a source the images, labels, groups and parts are; what is empty is recognised.

    Attributes:
        image_column: column of a table with the images or their paths; of shards the ending, such as ``jpg``.
        label_column: column with one class an image, or with a list of labels.
        labels: for several labels an image: columns of 0 and 1, or the names in a list column that count.
        group_column: column whose equal values lie on one side of every split.
        split_column: column with train, val, calib or test.
        root: folder that relative paths begin with; the table's own when empty.
        outside_root: whether a table may name files outside that folder.
        label_separator: what stands between the labels of a list; ``none``: a cell is one class, whatever is in it.
        group_pattern: regular expression searched in each path below the root; its first group, or all of the match.
        exclude: fix list, as ``tellapart check --fix-list`` writes one: what it says to exclude is left out.
        relabel: fix list: what it says to relabel gets the label it proposes.
    """

    image_column: str = ""
    label_column: str = ""
    labels: tuple[str, ...] = ()
    group_column: str = ""
    split_column: str = ""
    root: str = ""
    outside_root: bool = False
    label_separator: str = ""
    group_pattern: str = ""
    exclude: str = ""
    relabel: str = ""

    def __post_init__(self) -> None:
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise RecipeError("bad-setting", f"labels names one twice: {', '.join(self.labels)}")
        if self.group_column and self.group_pattern:
            raise RecipeError("bad-setting", "group_column and group_pattern exclude each other")
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            message = f"group_pattern is no regular expression: {error}"
            raise RecipeError("bad-setting", message, hint="such as 'patient([0-9]+)'") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval; all three are None where there was nothing to measure."""

    value: float | None
    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        if self.value is None or self.low is None or self.high is None:
            if (self.value, self.low, self.high) != (None, None, None):
                raise ValueError("an interval is whole or empty")
        elif not self.low <= self.value <= self.high:
            raise ValueError(f"an interval must hold its estimate: {self.low} <= {self.value} <= {self.high}")


HeldOut = Literal["calib", "cross-fit"]
"""Where held-out answers came from: a part of their own, or models of folds that did not see the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The temperature that logits are divided by, and what it was fitted on.

    Attributes:
        temperature: above 0; 1 leaves probabilities unchanged, more softens them.
        method: ``calib`` images of their own, or ``cross-fit``: each training image answered by a model that
            did not see it, where there were too few images for a part of their own.
        n: number of images it was fitted on.
        before: ``log_loss`` and ``ece`` of those images as they would be at temperature 1; empty where nobody looked.
        after: the same at the temperature.
    """

    temperature: float
    method: HeldOut
    n: int
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SetLevel:
    """Prediction sets at one coverage.

    Attributes:
        coverage: wanted share of sets that hold the truth, 0-1.
        min_probs: a class is in the set when its probability is at least this: one number for all classes, or K. 0 puts it
            into every set: there were too few images to promise more.
    """

    coverage: float
    min_probs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {self.coverage}")
        if not self.min_probs or not all(0 <= min_prob <= 1 for min_prob in self.min_probs):
            raise ValueError(f"min_probs must be 0 to 1, got {self.min_probs}")

    @property
    def vacuous(self) -> bool:
        """Whether some class is in every set, because too few images were there to rule it out."""
        return 0.0 in self.min_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class ConformalRule:
    """What may be ruled out: thresholds of prediction sets at several coverages.

    Attributes:
        coverage: the level that verdicts are given at, unless another is asked for.
        levels: one for each coverage, ascending.
        method: ``calib``, where the promise is the coverage itself; or ``cross-fit``, see ``promised``.
        per_class: whether the promise holds within each class; classes with too few images share a threshold, and it holds over
            them together.
        n: number of images it was fitted on.
    """

    coverage: float
    levels: tuple[SetLevel, ...]
    method: HeldOut
    per_class: bool
    n: int

    def __post_init__(self) -> None:
        coverages = [level.coverage for level in self.levels]
        if coverages != sorted(set(coverages)) or self.coverage not in coverages:
            raise ValueError(f"levels must be ascending and hold {self.coverage}, got {coverages}")
        if self.method not in ("calib", "cross-fit"):
            raise ValueError(f"method must be calib or cross-fit, got {self.method!r}")
        if len({len(level.min_probs) for level in self.levels}) != 1:
            raise ValueError("every level needs as many thresholds")

    def level(self, coverage: float | None = None) -> SetLevel:
        """The thresholds at a coverage; at the rule's own when None.

        Raises:
            ModelError: no-such-coverage.
        """
        wanted = self.coverage if coverage is None else coverage
        for level in self.levels:
            if math.isclose(level.coverage, wanted, abs_tol=1e-9):
                return level
        stored = ", ".join(f"{level.coverage:g}" for level in self.levels)
        message = f"the model has no prediction sets at the coverage {wanted:g}"
        raise ModelError(
            "no-such-coverage", message, hint=f"it has {stored}; train with --set coverage={wanted:g}"
        )

    def promised(self, coverage: float | None = None) -> float:
        """The share of sets that is promised to hold the truth, over images like those the rule was fitted on.

        With a calib part it is the coverage. Cross-fitted sets are expected to reach it, too, but what is proven of
        cross-conformal sets is twice the misses.

        Source: Vovk 2015, "Cross-conformal predictors"; Barber, Candes, Ramdas and Tibshirani 2021, "Predictive inference with
        the jackknife+", theorems 1 and 4.
        """
        wanted = self.level(coverage).coverage
        return wanted if self.method == "calib" else max(0.0, 1 - 2 * (1 - wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class FamiliarityRule:
    """An image is unfamiliar when the model file's output ``familiarity`` is below ``threshold``.

    Attributes:
        threshold: of the score.
        rate: share of familiar images that may be called unfamiliar, as wanted, 0-1.
        promised: the same as promised: ``rate``, or one in n + 1 where n images are too few for it.
        achieved: the same as found on the images the threshold was fitted on.
        method: how the scores of those images were made.
        n: number of those images.
    """

    threshold: float
    rate: float
    promised: float
    achieved: float
    method: HeldOut
    n: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a number, got {self.threshold}")
        if not 0 < self.rate < 1 or not self.rate <= self.promised <= 1 or not 0 <= self.achieved <= 1:
            raise ValueError(f"rates must be 0 to 1, got {self.rate}, {self.promised}, {self.achieved}")
        if self.method not in ("calib", "cross-fit"):
            raise ValueError(f"method must be calib or cross-fit, got {self.method!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A named range of one class's probability.

    Attributes:
        name: what the user calls it, such as ``high``.
        min_prob: probability from which an image is in this band, or in one above it; None: no image ever is.
        goal: what the probability was chosen for, such as ``precision 0.95``; empty for the last band.
        note: why no image is in the band.
    """

    name: str
    min_prob: float | None
    goal: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.goal, self.note)) or not self.name:
            raise ValueError("a band needs a name, and texts for its goal and its note")
        if self.min_prob is not None and not 0 <= self.min_prob <= 1:
            raise ValueError(f"min_prob must be 0 to 1, got {self.min_prob}")
        if (self.min_prob is None) != bool(self.note):
            raise ValueError(f"a band says why no image is in it, and only then: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRule:
    """Named bands of one class's probability.

    Attributes:
        class_name: whose probability.
        bands: from the top down; the last has no goal and takes the rest.
    """

    class_name: str
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        names = [band.name for band in self.bands]
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"a rule needs two or more bands with different names, got {names}")
        *goals, rest = self.bands
        if rest.goal or rest.min_prob != 0 or not all(band.goal for band in goals):
            raise ValueError("the last band takes the rest, all others have a goal")
        limits = [band.min_prob for band in goals if band.min_prob is not None]
        if any(lower >= upper for upper, lower in itertools.pairwise(limits)):
            raise ValueError(f"the bands of a rule must go from the top down, got {limits}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where pretrained weights came from, and on what terms."""

    name: str
    source: str
    license: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """An ONNX model from ``images`` (uint8 [N, S, S, 3]; bundled ones take any S) to ``embedding`` (float32 [N, D])."""

    onnx_bytes: bytes
    sha256: str
    embedding_dim: int
    weights: Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of every file that was seen."""

    seen: int
    used: int
    refused: int
    duplicates: int
    skipped: int

    def __post_init__(self) -> None:
        if self.seen != self.used + self.refused + self.duplicates + self.skipped:
            raise ValueError(f"the counts do not add up: {self}")

    def __str__(self) -> str:
        """Say it as a sum."""
        return (
            f"{self.seen:,} files seen = {self.used:,} used + {self.refused:,} refused"
            f" + {self.duplicates:,} duplicates + {self.skipped:,} skipped"
        )


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says about itself: the JSON document under its metadata key ``tellapart``.

    Attributes:
        class_names: K names, in the order of the columns of ``probs``.
        conformal: the rule behind the verdict ``sure``; None where there was nothing to fit it on.
        familiarity: the rule behind the verdict ``unfamiliar``; None in files without the output ``familiarity``.
        label_thresholds: K probabilities from which a label is given; none where every image has one class.
        decision_rules: named bands of a class's probability, at most one rule a class.
        metrics: as in ``report.json`` under ``test``; empty until measured.
        graph_sha256: checksum of the graph's bytes in the file.
        verification: how far the file's own answers lie from the fitted model's.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    calibration: Calibration
    embedding_dim: int
    created: str
    graph_sha256: str = ""
    weights: Weights | None = None
    conformal: ConformalRule | None = None
    familiarity: FamiliarityRule | None = None
    label_thresholds: tuple[float, ...] = ()
    decision_rules: tuple[DecisionRule, ...] = ()
    recipe: Mapping[str, object] = field(default_factory=dict)
    dataset: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)
    verification: Mapping[str, object] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    task: Task = "classification"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"a model needs two or more different classes, got {self.class_names}")
        if len(self.label_thresholds) != (len(self.class_names) if self.task == "multilabel" else 0):
            raise ValueError("a model for several labels an image needs a threshold for each, others none")
        if self.conformal is not None:
            expected = len(self.class_names) if self.conformal.per_class else 1
            if len(self.conformal.levels[0].min_probs) != expected:
                raise ValueError(f"the prediction sets need {expected} thresholds at each coverage")
        ruled = [rule.class_name for rule in self.decision_rules]
        if len(set(ruled)) != len(ruled) or not set(ruled) <= set(self.class_names):
            raise ValueError(f"decision rules are for different classes of the model, got {ruled}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochLog:
    """One epoch of the gradient loop: a line of ``log.jsonl``. Losses are in nats, accuracies 0-1.

    Attributes:
        epoch: counted from 1.
        epochs: of the whole run.
        running_loss: mean over the epoch's own steps: augmented, smoothed and weighted, while the weights still moved.
        running_accuracy: over the same steps.
        train_loss: on a fixed sample of the training images as they are, after the epoch.
        train_accuracy: on the same sample.
        val_loss: on the val images as they are; None without any.
        val_accuracy: on the same images.
        lr: learning rate of the last step.
        images_per_s: trained on, without measuring.
        seconds: trained so far.
    """

    epoch: int
    epochs: int
    running_loss: float
    running_accuracy: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """Something wrong with some images.

    Attributes:
        kind: of the files ``unreadable``, ``truncated``, ``wrong-extension``, ``name-clash``; of copies ``duplicate``,
            ``near-duplicate``, ``label-conflict`` (the same picture in two classes), ``leak`` (in two splits); of the labels
            ``label-error``, ``outlier``; of the pixels ``blank``, ``dark``, ``bright``, ``blurred``, ``odd-size``,
            ``odd-shape``; of the classes ``imbalance``, ``small-class``.
        severity: 0-1, to rank by.
        paths: the images it is about; of copies, the one to keep first; none for a class.
        evidence: the numbers and names behind it.
    """

    kind: str
    severity: float
    paths: tuple[str, ...]
    evidence: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.severity <= 1:
            raise ValueError(f"severity must be 0 to 1, got {self.severity}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one image; or, with the verdict ``error``, why there is none.

    Attributes:
        path: as it was given; empty for bytes and arrays.
        label: the most probable class; where an image may have several labels, those given, with ";" between.
        labels: the same labels one by one; none where every image has one class.
        prob: calibrated probability of the most probable class, 0-1.
        probs: K probabilities in the order of the model's class names.
        prediction_set: the classes that cannot be ruled out at the coverage, most probable first.
        familiarity: how much the image is like the training images; None for files without that output.
        error: code of the error, empty without one.
        bands: for each decision rule of the model, its class and the name of the band the image is in.
    """

    path: str
    verdict: Verdict
    label: str | None = None
    prob: float | None = None
    probs: tuple[float, ...] = ()
    prediction_set: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    familiarity: float | None = None
    bands: tuple[tuple[str, str], ...] = ()
    error: str = ""
    message: str = ""

    def __post_init__(self) -> None:
        if (self.verdict == "error") != bool(self.error) or (self.label is None) != bool(self.error):
            raise ValueError("a prediction has either a label or an error")
