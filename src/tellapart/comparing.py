"""compare: is one model file really better than another, on the same labelled images?"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.data.check import check_contents
from tellapart.data.dataset import LABEL_KEY, Dataset
from tellapart.data.sources import DEFAULT_OPTIONS, Source, open_test_images
from tellapart.errors import DataError, ModelError
from tellapart.evaluation.compare import Answers, changed, compare_answers
from tellapart.evaluation.metrics import FloatArray
from tellapart.evaluation.multilabel import LABEL_SEPARATOR
from tellapart.inference.predict import Classifier, load
from tellapart.records import Progress, SourceOptions, no_progress
from tellapart.report.run_folder import describe
from tellapart.storage import write_bytes
from tellapart.training.answers import answer

Model = str | Path | Classifier

CHANGED_COLUMNS = ("path", "label", "a", "b", "change", "confidence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What came of comparing two models.

    Attributes:
        result: as ``compare_answers`` gives it; its ``sentence`` says it in words.
        changed: for each image with another answer its ``path``, ``label``, the answers of ``a`` and ``b``, the ``change``, and
            B's ``confidence``; first those that became wrong, then those that became right, most confident first.
        dataset: what became of every file, as in ``report.json``.
    """

    result: Mapping[str, Any]
    changed: tuple[Mapping[str, Any], ...]
    dataset: Mapping[str, Any]


def compare(
    a: Model,
    b: Model,
    source: Source,
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    out: str | Path | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare two model files image by image on the same labelled images.

    Neither model may have learned from these images. Images that one of the models cannot use count for neither.

    Args:
        a: a model file, or one that is open.
        b: another for the same classes, in any order.
        source: as for ``evaluate``.
        options: as for ``train``.
        out: a ``.csv`` file to write the changed images to.
        progress: called as the images are answered.

    Raises:
        ModelError: a file is at fault; models-differ, when the models are not for the same classes and task.
        DataError: the source is at fault.
        StorageError: cannot-write.
    """
    one, other = (model if isinstance(model, Classifier) else load(model) for model in (a, b))
    _require_comparable(one, other)
    task, names = one.card.task, one.class_names
    dataset = check_contents(open_test_images(source, names, options, task=task), progress)
    of_a = answer(one, dataset.used(), progress, stage="model A")
    of_b = answer(other, dataset.used(), progress, stage="model B")
    dataset = dataset.with_outcome("refused", of_a.refused | of_b.refused)
    part = dataset.used()
    if not len(part):
        hint = "tellapart predict says why for each"
        raise DataError("no-images", f"no image in {source} could be read", hint=hint)
    said_a, said_b = (
        _in_order_of(names, model, np.stack([answers[path]["probs"] for path in part.paths]))
        for model, answers in ((one, of_a.answers), (other, of_b.answers))
    )
    rows = tuple(_changed_rows(part, said_a, said_b))
    if out is not None:
        write_bytes(Path(out), _csv(rows))
    result = compare_answers(part.labels, said_a, said_b, names)
    return Comparison(result=result, changed=rows, dataset=describe(dataset))


def _require_comparable(a: Classifier, b: Classifier) -> None:
    if a.card.task != b.card.task:
        raise ModelError("models-differ", f"A is a model for {a.card.task}, B one for {b.card.task}")
    only_a, only_b = set(a.class_names) - set(b.class_names), set(b.class_names) - set(a.class_names)
    if only_a or only_b:
        said = [
            f"only {which} knows {', '.join(sorted(names))}"
            for which, names in (("A", only_a), ("B", only_b))
            if names
        ]
        hint = "compare models that were trained for the same classes"
        raise ModelError("models-differ", f"the models are for different classes: {'; '.join(said)}", hint=hint)


def _in_order_of(names: tuple[str, ...], model: Classifier, probs: FloatArray) -> Answers:
    """A model's answers with its columns in another order of the same classes."""
    order = [model.class_names.index(name) for name in names]
    probs = probs[:, order]
    if model.card.task == "multilabel":
        given = probs >= np.asarray(model.card.label_thresholds)[order]
    else:
        given = np.eye(len(names), dtype=bool)[probs.argmax(axis=1)]
    return Answers(probs=probs, given=given.astype(np.int64))


def _changed_rows(part: Dataset, a: Answers, b: Answers) -> list[dict[str, Any]]:
    labels = part.table.select(LABEL_KEY)["label"].to_list()
    said_a, said_b = (
        [LABEL_SEPARATOR.join(np.array(part.class_names, dtype=object)[row == 1]) for row in answers.given]
        for answers in (a, b)
    )
    return [
        {
            "path": part.paths[row],
            "label": labels[row],
            "a": said_a[row],
            "b": said_b[row],
            "change": change,
            "confidence": round(confidence, 6),
        }
        for row, change, confidence in changed(part.labels, a, b)
    ]


def _csv(rows: tuple[Mapping[str, Any], ...]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, CHANGED_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")
