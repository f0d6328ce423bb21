"""The page: everything that was found is on it or counted, nothing in it can act, and it stays small."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import tellapart.checking.page as page_module
from planted import HOSTILE, encoded, plain, plant, write
from tellapart.checking.page import MAX_SHOWN, render_page
from tellapart.checking.run import CheckResult, run_check
from tellapart.checking.severity import SEVERITIES, rated
from tellapart.data.sources import open_dataset

# Enough evidence for the words of every kind.
EVIDENCE = {
    "unreadable": {"code": "empty-file", "message": "the file has no bytes"},
    "truncated": {"code": "truncated-image", "message": "JPEG: premature end"},
    "label-error": {"label": "owl", "suggested": "wolf", "prob": 0.021, "suggested_prob": 0.979},
    "outlier": {"label": "owl", "score": 4.2},
    "wrong-extension": {"named": "JPEG", "format": "PNG"},
    "small-class": {"label": "yak", "images": 7, "tested": 1, "interval_width": 0.79},
    "imbalance": {"largest": "owl", "images": 4000, "smallest": "yak", "images_of_smallest": 7, "ratio": 571.4},
    "odd-size": {"size_px": (20, 30), "times_usual": 0.1},
    "label-conflict": {"copies": "exact", "labels": {"/r/a.png": "owl", "/r/b.png": "wolf"}},
    "leak": {"copies": "exact", "splits": {"/r/a.png": "test", "/r/b.png": "train"}},
    "near-duplicate": {
        "copies": "near",
        "compared_with": "/r/a.png",
        "compared": {"/r/b.png": {"similarity": 0.93, "changes": ["mirrored", "cropped"]}},
    },
}
WORDS = {
    "unreadable": "empty-file: the file has no bytes",
    "label-error": "owl (2%) → wolf (98%)",
    "wrong-extension": "named JPEG, is PNG",
    "small-class": "yak: 7 images, 1 to test on",
    "imbalance": "owl 4,000, yak 7: 571.4 times",
    "odd-size": "20 x 30 pixels",
    "label-conflict": "<b>wolf</b>",
    "leak": "<b>train</b>",
    "near-duplicate": "<b>mirrored, cropped (0.93)</b>",
}


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        self.text += data

    def values(self, tag, name):
        return [value for a_tag, a_name, value in self.attributes if (a_tag, a_name) == (tag, name)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    plant(root)
    return run_check(open_dataset(root))


def with_issues(result, *issues):
    counts = {}
    for issue in issues:
        counts[issue.kind] = counts.get(issue.kind, 0) + 1
    return CheckResult(issues=issues, dataset=result.dataset, counts=counts)


def test_every_kind_has_its_anchor_and_its_link(result):
    page = Page(render_page(result, title="photos"))
    kinds = list(result.counts)
    assert len(kinds) > 10
    assert page.values("section", "id") == kinds
    assert page.values("a", "href") == [f"#{kind}" for kind in kinds]


def test_every_file_is_accounted_for(result):
    text = Page(render_page(result, title="photos")).text
    assert str(result.dataset.counts()) in text
    assert f"{len(result.issues)} issues of {len(result.counts)} kinds" in text
    assert "not-an-image" in text


def test_nothing_in_it_acts_or_is_fetched(result):
    page = Page(render_page(result, title="<script>alert(2)</script>"))
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("img", "src"))
    assert page.values("meta", "content")[1].startswith("default-src 'none'; img-src data:")
    assert HOSTILE in page.text
    assert "<script>alert(2)</script>" in page.text


def test_thumbnails_are_small_and_each_readable_image_has_one(result):
    page = Page(render_page(result, title="photos"))
    issues = [issue for issue in result.issues if issue.kind != "unreadable"]
    assert len(page.values("img", "src")) == sum(len(issue.paths) for issue in issues)
    assert page.text.count("no picture") == len(result.of_kind("unreadable"))
    largest = max(len(uri) for uri in page.values("img", "src"))
    assert largest < 20_000


@pytest.mark.parametrize("kind", sorted(SEVERITIES))
def test_every_kind_has_words(result, kind):
    paths = ["/r/a.png", "/r/b.png"]
    page = render_page(
        with_issues(result, rated(kind, 1.0, paths, EVIDENCE.get(kind, {}))), title="photos"
    ).decode()
    assert WORDS.get(kind, "") in page
    assert "a.png" in page
    assert f'id="{kind}"' in page
    assert "1 issue of 1 kind," in page


def test_what_is_left_out_is_counted(result, tmp_path):
    path = write(tmp_path / "grey.png", encoded(Image.new("RGB", (90, 90))))
    issues = [rated("dark", 1.0, [path], {}) for _ in range(MAX_SHOWN + 1_300)]
    page = Page(render_page(with_issues(result, *issues), title="photos"))
    assert page.text.count("grey.png") == MAX_SHOWN
    assert "1,300 more are in issues.parquet" in page.text


def test_a_large_group_is_cut_and_says_so(result):
    page = Page(
        render_page(
            with_issues(result, rated("duplicate", 1.0, [f"/r/{i}.png" for i in range(50)], {})), title="p"
        )
    )
    assert page.tags.count("figure") == 6
    assert "and 44 more" in page.text


def test_the_page_never_outgrows_its_limit(result, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_PAGE_BYTES", 150_000)
    rng = np.random.default_rng(0)
    paths = [
        write(tmp_path / f"{i}.png", encoded(Image.fromarray(rng.integers(0, 256, (160, 160, 3), dtype=np.uint8))))
        for i in range(24)
    ]
    issues = [rated(kind, 1.0, [path], {}) for kind in ("blurred", "dark") for path in paths]
    page = render_page(with_issues(result, *issues), title="photos")
    assert 20_000 < len(page) < 150_000
    text = Page(page).text
    left_out = [int(number) for number in re.findall(r"(\d+) more are in issues.parquet", text)]
    assert sum(left_out) + text.count(".png") == len(issues)


def test_without_issues(tmp_path):
    plain(tmp_path)
    result = replace(run_check(open_dataset(tmp_path)), issues=(), counts={})
    text = Page(render_page(result, title="photos")).text
    assert "Nothing was found to be wrong." in text


def test_names_that_are_no_unicode_do_not_stop_it(result):
    issue = rated("label-error", 1.0, ["/r/\udcff.png"], {**EVIDENCE["label-error"], "label": "\udcfe"})
    assert b"?.png" in render_page(with_issues(result, issue), title="photos")
