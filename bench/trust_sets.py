"""The embeddings and labels that bench/trust.py measures on."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, log_softmax, softmax

from tellapart.demo import write_digits
from tellapart.inference.bundled import open_backbone
from tellapart.inference.embed import embed_files
from tellapart.storage import sha256
from tellapart.training.probe import Probe, fit_probe
from tellapart.training.recipes import build_recipe

RECIPE = build_recipe("probe", {})


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """(N, D) embeddings; (N,) classes or (N, K) of 0 and 1; (N,) whether the image is in a test folder."""

    name: str
    embeddings: np.ndarray
    labels: np.ndarray
    test: np.ndarray

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2


def embed(paths: Sequence[Path]) -> np.ndarray:
    backbone = open_backbone(RECIPE.backbone, RECIPE.feature_stages, RECIPE.feature_pooling)
    contents = [sha256(path.read_bytes()) for path in paths]
    files = dict(zip(contents, map(str, paths), strict=True))
    found = embed_files(files, backbone, RECIPE.preprocess).embeddings
    return np.stack([found[content] for content in contents])


def image_set(name: str, paths: Sequence[Path], labels: Sequence) -> ImageSet:
    labels = np.array(labels)
    if labels.dtype.kind == "U":
        labels = np.unique(labels, return_inverse=True)[1]
    test = np.array(["test" in path.parts for path in paths])
    return ImageSet(name=name, embeddings=embed(paths), labels=labels, test=test)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cats_dogs(data: Path) -> ImageSet:
    paths = sorted((data / "cats_dogs").rglob("*.jpg"))
    return image_set("cats and dogs", paths, [path.parent.name for path in paths])


def cifar(data: Path) -> ImageSet:
    table = rows(data / "label_noise/labels.csv")
    paths = [data / "label_noise" / row["path"] for row in table]
    return image_set("CIFAR-10, 4,000", paths, [row["clean_label"] for row in table])


def digits(_data: Path) -> ImageSet:
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        paths = sorted(Path(folder).rglob("*.png"))
        return image_set("digits", paths, [path.parent.name for path in paths])


def multilabel(data: Path) -> ImageSet:
    table = rows(data / "multilabel/miml_labels_1.csv")
    paths = [data / "multilabel/images" / row.pop("Filenames") for row in table]
    return image_set("several labels", paths, [[int(value) for value in row.values()] for row in table])


def fit(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> Probe:
    return fit_probe(embeddings, labels, strengths=RECIPE.strengths, folds=RECIPE.folds, seed=seed)


def probs_of(logits: np.ndarray, *, multilabel: bool) -> np.ndarray:
    logits = logits.astype(np.float64)
    return expit(logits) if multilabel else softmax(logits, axis=1)


def mean_log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """In nats; of several labels the mean over all pairs."""
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        return float((np.logaddexp(0, logits) - labels * logits).mean())
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
