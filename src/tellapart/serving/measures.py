"""What is counted while serving, in the form that Prometheus reads, and whether images are still like those of training."""

import math
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tellapart.records import ModelCard, Prediction
from tellapart.serving.shelf import ServedModel, Shelf

VERDICTS = ("sure", "unsure", "unfamiliar")
WINDOW_IMAGES = 1000
"""The last answers of a version, which shares and drift are about."""

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_OUTCOMES: Mapping[int, str] = {408: "too-slow", 499: "disconnected", 503: "refused"}


class Measures:
    """Counters of one server.

    Args:
        shelf: the models.
        queue: number of images that are taken in and not yet answered.
        decoders: number of decoding processes.
    """

    def __init__(self, shelf: Shelf, queue: Callable[[], int], decoders: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tellapart_requests",
            "Requests by route and outcome; route connection: ended by a limit before or while a request arrived.",
            ["route", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tellapart_request_seconds",
            "From the end of the headers to the end of the answer, of requests that were not refused.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._answers = Counter(
            "tellapart_answers", "Images by model and verdict.", ["model", "verdict"], registry=self._registry
        )
        self._lost = Counter(
            "tellapart_decoders_lost", "Decoding processes that were replaced.", ["code"], registry=self._registry
        )
        self._windows: dict[str, _Window] = {}
        self._registry.register(_Now(shelf, queue, decoders, self._windows))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered, refused or given up."""
        self._requests.labels(route, outcome(status)).inc()
        if status < 400:
            self._seconds.labels(route).observe(seconds)

    def count_answer(self, model: ServedModel, prediction: Prediction) -> None:
        """An image has been answered."""
        self._answers.labels(model.name, prediction.verdict).inc()
        window = self._windows.get(model.name)
        if window is None or window.version != model.version:
            window = self._windows[model.name] = _Window(model.version)
        if prediction.verdict != "error":
            window.verdicts.append(prediction.verdict)
            if prediction.familiarity is not None:
                window.familiarities.append(prediction.familiarity)

    def count_loss(self, code: str) -> None:
        """A decoding process was replaced."""
        self._lost.labels(code).inc()

    def exposition(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)


def outcome(status: int) -> str:
    """A status in one word."""
    if status in _OUTCOMES:
        return _OUTCOMES[status]
    return "ok" if status < 400 else "client-error" if status < 500 else "server-error"


class _Window:
    """The last answers of one version of a model."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.verdicts: deque[str] = deque(maxlen=WINDOW_IMAGES)
        self.familiarities: deque[float] = deque(maxlen=WINDOW_IMAGES)


class _Now(Collector):
    """Numbers that are looked up when they are asked for."""

    def __init__(
        self,
        shelf: Shelf,
        queue: Callable[[], int],
        decoders: Callable[[], int],
        windows: Mapping[str, _Window],
    ) -> None:
        self._shelf = shelf
        self._queue = queue
        self._decoders = decoders
        self._windows = windows

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All of them."""
        queue = GaugeMetricFamily("tellapart_queue_images", "Images that are taken in and not yet answered.")
        queue.add_metric([], self._queue())
        yield queue
        decoders = GaugeMetricFamily("tellapart_decoders", "Decoding processes that are there.")
        decoders.add_metric([], self._decoders())
        yield decoders
        swaps = _gauge("tellapart_model_swaps", "How often a new version of the model was swapped in.")
        broken = _gauge(
            "tellapart_model_file_unusable", "1 where the newest file is not used because it is unsound."
        )
        shares = _gauge(
            "tellapart_verdict_share", "Of the last 1,000 answers, and of the test images.", "verdict", "of"
        )
        familiarity = _gauge(
            "tellapart_familiarity_median", "Of the last 1,000 answers; below the threshold: unfamiliar."
        )
        threshold = _gauge("tellapart_familiarity_threshold", "Below which an image is unfamiliar.")
        drift = _gauge(
            "tellapart_drift_z", "How many standard errors more images are unfamiliar than on the test images."
        )
        for name in self._shelf.names:
            model = self._shelf.get(name)
            swaps.add_metric([name], self._shelf.swaps(name))
            broken.add_metric([name], float(bool(self._shelf.error(name))))
            if model.card.familiarity is not None:
                threshold.add_metric([name], model.card.familiarity.threshold)
            for verdict, share in expected_shares(model.card).items():
                shares.add_metric([name, verdict, "test"], share)
            window = self._windows.get(name)
            if window is None or not window.verdicts:
                continue
            seen = Tally(window.verdicts)
            for verdict in VERDICTS:
                shares.add_metric([name, verdict, "served"], seen[verdict] / len(window.verdicts))
            if window.familiarities:
                familiarity.add_metric([name], sorted(window.familiarities)[len(window.familiarities) // 2])
            z = drift_z(model.card, seen["unfamiliar"], len(window.verdicts))
            if z is not None:
                drift.add_metric([name], z)
        yield from (swaps, broken, shares, familiarity, threshold, drift)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model", *labels])


def expected_shares(card: ModelCard) -> dict[str, float]:
    """Share of each verdict among the test images; where nothing was measured, what the calibration images promise."""
    verdicts: Any = card.metrics.get("verdicts") or {}
    found = {
        verdict: verdicts[verdict]["share"]["value"]
        for verdict in VERDICTS
        if verdict in verdicts and verdicts[verdict].get("share", {}).get("value") is not None
    }
    if "unfamiliar" not in found and card.familiarity is not None:
        found["unfamiliar"] = card.familiarity.achieved
    return found


def drift_z(card: ModelCard, unfamiliar: int, n: int) -> float | None:
    """How many standard errors the share of unfamiliar images lies above that of the test images.

    Around 0 while images come from where the test images came from; above 3 something has changed. The share on the test images
    is itself an estimate from finitely many, so the standard error is that of the difference.

    Args:
        card: of the model.
        unfamiliar: number among the last answers.
        n: number of the last answers.

    Returns:
        None where the model does not judge familiarity, or nothing was answered.

    Source: the two-sample test of proportions with a pooled share; Agresti, "Categorical Data Analysis", section 3.1.
    """
    expected = expected_shares(card).get("unfamiliar")
    if card.familiarity is None or expected is None or not n:
        return None
    tested = card.metrics.get("n")
    n_expected = tested if isinstance(tested, int) and tested > 0 else max(1, card.familiarity.n)
    # One image more of each kind on either side: shares of 0 and 1 would leave no standard error.
    pooled = (unfamiliar + expected * n_expected + 1) / (n + n_expected + 2)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / n_expected))
    return (unfamiliar / n - expected) / error
