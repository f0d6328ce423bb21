"""The report of a run as a model card: Markdown under a YAML header that model hubs read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tellapart.records import ModelCard
from tellapart.report import story
from tellapart.report.page import CLASS_METRICS, METRICS, SCORES

_MAX_CLASS_ROWS = 200


def render_model_card(report: Mapping[str, Any], card: ModelCard, *, title: str, command: str) -> str:
    """What the model is for, how good it is, how sure that is, and where it ends; no paths of anybody's computer.

    Args:
        report: as in ``report.json``; only what is there is said.
        card: of the model file.
        title: such as the name of the run.
        command: what to type to get the same again.

    Source: Mitchell et al. 2019, "Model Cards for Model Reporting", section 4, for what belongs into it.
    """
    parts = [
        _header(report["test"], card, title),
        f"# {_plain(title)}",
        _plain(story.answer(report["test"])),
        *(_plain(said) for said in story.basis(report)),
        "## Intended use",
        _intended(card),
        _plain(story.when_unsure(report)),
        "## Limits",
        _list([*story.warnings(report), *story.limits(card)]),
        "## Training data",
        _data(report.get("dataset", {}), card),
        "## Evaluation",
        _evaluation(report["test"]),
        *_trust(report, card),
        "## How to use it",
        _code("sh", "tellapart predict model.onnx PHOTOS --out predictions.csv"),
        _code(
            "python",
            'import tellapart\n\nmodel = tellapart.load("model.onnx")\n'
            'for said in model.predict(["photo.jpg"]):\n    print(said.label, said.prob, said.verdict)',
        ),
        "## To get the same again",
        _code("sh", command),
        _versions(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(test: Mapping[str, Any], card: ModelCard, title: str) -> str:
    """YAML in which every text is quoted."""
    lines = ["---", "library_name: tellapart", "pipeline_tag: image-classification"]
    if card.weights:
        lines.append(f"license: {_quoted(card.weights.license.lower())}")
    lines += ["tags:", "- image-classification", "- onnx", "- tellapart"]
    lines += ["- multi-label"] if card.task == "multilabel" else []
    measured = [(name, test[name]) for name in METRICS if _value(test.get(name)) is not None]
    if measured:
        lines += ["model-index:", f"- name: {_quoted(title)}", "  results:", "  - task:"]
        lines += ["      type: image-classification", "    dataset:", f"      name: {_quoted(title)}"]
        lines += ["      type: image-classification", "      split: test", "    metrics:"]
        for name, interval in measured:
            said = f"{story.words(name)}, 95% interval {interval['low']:.4f} to {interval['high']:.4f}"
            lines += [
                f"    - type: {name}",
                f"      value: {interval['value']:.4f}",
                f"      name: {_quoted(said)}",
            ]
    return "\n".join([*lines, "---"])


def _intended(card: ModelCard) -> str:
    names = ", ".join(_plain(name) for name in card.class_names[:_MAX_CLASS_ROWS])
    more = len(card.class_names) - _MAX_CLASS_ROWS
    rest = f" and {more:,} more" if more > 0 else ""
    what = (
        "says which of these labels an image has"
        if card.task == "multilabel"
        else "sorts images into these classes"
    )
    return f"The model {what}: {names}{rest}."


def _data(dataset: Mapping[str, Any], card: ModelCard) -> str:
    found = []
    if dataset:
        found.append(
            _list(
                f"{dataset[key]:,} {said}"
                for key, said in (
                    ("seen", "files seen"),
                    ("used", "in use"),
                    ("refused", "refused"),
                    ("duplicates", "duplicates of another"),
                    ("skipped", "skipped"),
                )
            )
        )
    splits = dataset.get("splits", {})
    if splits:
        rows = [
            [name, *(f"{counts.get(name, 0):,}" for counts in splits.values())]
            for name in card.class_names[:_MAX_CLASS_ROWS]
        ]
        found.append(_table(["class", *splits], rows))
    if dataset.get("fingerprint"):
        found.append(f"Fingerprint of the images: `{dataset['fingerprint']}`")
    if card.weights:
        found.append(
            _plain(f"Pretrained weights: {card.weights.name}, {card.weights.source}, {card.weights.license}.")
        )
    return "\n\n".join(found)


def _evaluation(test: Mapping[str, Any]) -> str:
    rows = [
        [story.words(name), (story.amount if name in SCORES else story.percent)(test[name])]
        for name in METRICS
        if test.get(name) is not None
    ]
    rows += [
        [f"right class among the first {k}", story.percent(share)] for k, share in test.get("top_k", {}).items()
    ]
    parts = [f"On {story.counted(test['n'], 'test image')}, with 95% intervals."]
    parts += [_table(["metric", "value"], rows)] if rows else []
    names = [name for name in CLASS_METRICS if any(name in row for row in test["per_class"].values())]
    of_classes = [
        [name, f"{row['n']:,}", *(story.percent(row[key]) if key in row else "" for key in names)]
        for name, row in list(test["per_class"].items())[:_MAX_CLASS_ROWS]
    ]
    parts.append(_table(["class", "test images", *(story.words(name) for name in names)], of_classes))
    return "\n\n".join(parts)


def _trust(report: Mapping[str, Any], card: ModelCard) -> list[str]:
    """Calibration, prediction sets and familiarity."""
    test, calibration = report["test"], card.calibration
    how = " by cross-fitting" if calibration.method == "cross-fit" else ""
    fitted = f"Temperature {calibration.temperature:.3f}, fitted on {story.counted(calibration.n, 'image')}{how}."
    parts = ["## Calibration", fitted]
    rows = [
        [f"{row['wanted']:.0%}", story.percent(row["covered"]), f"{row['mean_size']:.2f}"]
        for row in test.get("coverage") or ()
    ]
    if card.conformal or rows:
        parts.append("## Prediction sets")
    if card.conformal:
        rule = card.conformal
        over = "of each class" if rule.per_class else "over all classes"
        parts.append(
            f"{rule.coverage:.0%} wanted {over}, {rule.promised():.0%} promised, from {story.counted(rule.n, 'image')}."
        )
    parts += [_table(["wanted", "covered", "classes on average"], rows)] if rows else []
    if card.familiarity:
        rule_of = card.familiarity
        said = (
            f"An image whose familiarity is below {rule_of.threshold:.4g} is called unfamiliar;"
            f" {rule_of.promised:.1%} of familiar images may be."
        )
        if test.get("familiarity"):
            said += f" Of the test images it was {story.percent(test['familiarity']['unfamiliar'])}."
        parts += ["## Familiarity", said]
    return parts


def _versions(card: ModelCard) -> str:
    software = ", ".join(f"{name} {number}" for name, number in card.software.items())
    return _plain(f"Made {card.created}" + (f" with {software}." if software else "."))


def _value(measured: object) -> float | None:
    return measured.get("value") if isinstance(measured, Mapping) else None


def _list(sentences: Any) -> str:
    return "\n".join(f"- {_plain(said)}" for said in sentences)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line; what cannot be encoded becomes a question mark."""
    line = " ".join(text.encode("utf-8", errors="replace").decode().split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$]|!(?=\[)|(?<=:)//)", r"\\\1", line)


def _quoted(text: str) -> str:
    """A YAML string in double quotes: as in JSON, with what is not printable by its number."""
    text = json.dumps(text.encode("utf-8", errors="replace").decode(), ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _code(language: str, text: str) -> str:
    """A block of code, whatever is in it."""
    text = text.encode("utf-8", errors="replace").decode()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
