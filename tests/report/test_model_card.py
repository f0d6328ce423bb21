"""The model card: YAML that holds whatever the names, and every number as in the report."""

import re

import pytest
import yaml
from test_report import FULL, HOSTILE, interval, numbers

from tellapart.records import Calibration, FamiliarityRule, ModelCard, Preprocess, Weights
from tellapart.report.model_card import render_model_card

TITLES = (*HOSTILE, 'a"\n---\nlicense: "mine', "a: b # c", "- x", "\ud800 \x7f\x85\ufeff", "{}", "''")


def card(**more):
    return ModelCard(
        class_names=HOSTILE, preprocess=Preprocess(input_size_px=32), embedding_dim=4, created="2026-01-01",
        calibration=Calibration(temperature=1.25, method="cross-fit", n=17), software={"tellapart": "0.1.0"}, **more,
    )  # fmt: skip


def rendered(report, of=None, title="shop", command="tellapart train shop"):
    text = render_model_card(report, of or card(), title=title, command=command)
    start, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    assert start == ""
    return yaml.safe_load(header), body


@pytest.mark.parametrize("title", TITLES)
def test_the_header_is_yaml_whatever_the_title(title):
    header, body = rendered({"test": numbers(8, **FULL)}, title=title)
    (model,) = header["model-index"]
    assert model["name"] == title.encode("utf-8", errors="replace").decode()
    assert header["pipeline_tag"] == "image-classification"
    assert "license" not in header
    assert "<script" not in body
    assert model["results"][0]["metrics"] == [
        {"type": "accuracy", "value": 0.75, "name": "accuracy, 95% interval 0.4090 to 0.9290"}
    ]


def test_every_part_says_its_numbers():
    described = {"seen": 11, "used": 8, "refused": 2, "duplicates": 1, "skipped": 0, "notes": ["in /home/me"],
                 "fingerprint": "abc123", "splits": {"train": {HOSTILE[1]: 4321}}}  # fmt: skip
    test = numbers(
        8, **FULL, log_loss=interval(0.123, 0.1, 0.2), familiarity={"unfamiliar": interval(0.031, 0.02, 0.05)}
    )
    rule = FamiliarityRule(threshold=-1.5, rate=0.02, promised=0.025, achieved=0.02, method="calib", n=50)
    weights = Weights(name="net", source="a package", license="Apache-2.0", sha256="0")
    header, body = rendered({"test": test, "dataset": described}, card(weights=weights, familiarity=rule))
    assert header["license"] == "apache-2.0"
    for said in ("75.0% (40.9% to 92.9%)", "0.123 (0.100 to 0.200)", "90.0% (80.0% to 95.0%)", "4,321", "`abc123`",
                 "11 files seen", "1.250, fitted on 17 images by cross-fitting", "87.6% (50.0% to 99.0%) | 1.43",
                 "3.1% (2.0% to 5.0%)", "-1.5", "2.5%", "tellapart train shop"):  # fmt: skip
        assert said in body, said
    assert "/home" not in body


def test_a_command_cannot_end_its_block():
    _, body = rendered({"test": numbers(8)}, command="tellapart train '```\n# x'")
    assert "````sh\ntellapart train '```\n# x'\n````" in body


def test_a_table_keeps_its_columns_whatever_the_names():
    names = ("a|b", "c\nd")
    of = ModelCard(
        class_names=names, preprocess=Preprocess(input_size_px=32), embedding_dim=4, created="x",
        calibration=Calibration(temperature=1, method="calib", n=1),
    )  # fmt: skip
    test = {"n": 0, "headline": [], "class_names": names, "per_class": {name: {"n": 0} for name in names}}
    _, body = rendered({"test": test}, of)
    assert "| a\\|b | 0 |\n| c d | 0 |" in body
