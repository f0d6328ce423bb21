"""run_check on planted faults: every fault is found, nothing else is, and the counts add up."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import tellapart.checking.looks as looks_module
from planted import encoded, picture, plain, plant, write
from tellapart.checking.classes import class_issues
from tellapart.checking.looks import LOOK, look_at
from tellapart.checking.run import CheckResult, run_check, write_issues
from tellapart.checking.severity import SEVERITIES, rated
from tellapart.data.check import check_contents
from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.data.listing import Rows
from tellapart.data.sources import open_dataset
from tellapart.inference.bundled import open_backbone
from tellapart.inference.embed import embed_files
from tellapart.records import Preprocess
from tellapart.storage import sha256

SMALL = Preprocess(input_size_px=64)


def table_of(rows, class_names, root, task="classification"):
    """A dataset of (path, label, split) rows."""
    made = Rows()
    for path, label, split in rows:
        if task == "multilabel":
            made.use(path, labels=label, split=split)
        else:
            made.use(path, label=label, split=split)
    return Dataset(table=made.table(), class_names=class_names, root=root, task=task)


@pytest.fixture(scope="module")
def backbone():
    return open_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    return root, plant(root)


@pytest.fixture(scope="module")
def result(planted):
    return run_check(open_dataset(planted[0]))


@pytest.mark.parametrize(
    "kind",
    "unreadable truncated wrong-extension duplicate label-conflict leak blank blurred odd-size odd-shape name-clash".split(),
)
def test_every_planted_fault_is_found_and_nothing_else_of_its_kind(result, planted, kind):
    found = [path for issue in result.of_kind(kind) for path in issue.paths]
    assert sorted(found) == sorted(planted[1][kind])


def test_near_duplicates_are_one_group_with_what_was_done_to_each(result, planted):
    wanted = planted[1]["near-duplicate"]
    (group,) = result.of_kind("near-duplicate")
    assert sorted(group.paths) == sorted(wanted)
    compared = group.evidence["compared"]
    assert set(compared) == set(wanted) - {group.evidence["compared_with"]}
    assert all(entry["similarity"] > 0.7 and entry["changes"] for entry in compared.values())


def test_worst_first_and_every_kind_counted(result):
    severities = [issue.severity for issue in result.issues]
    assert severities == sorted(severities, reverse=True)
    assert result.issues[0].kind == "label-conflict"
    assert dict(result.counts) == dict(Counter(issue.kind for issue in result.issues))


def test_every_file_is_in_the_counts(result, planted):
    files = sum(path.is_file() for path in planted[0].rglob("*"))
    counts = result.dataset.counts()
    assert counts.seen == files == len(result.dataset)
    # The empty and the wordy file, the cut one, and both sides of the conflict; one copy of a class, one leak.
    assert (counts.refused, counts.duplicates) == (5, 2)


def test_nothing_is_changed_on_disk(planted):
    before = {path: path.stat().st_mtime_ns for path in planted[0].rglob("*")}
    run_check(open_dataset(planted[0]))
    assert before == {path: path.stat().st_mtime_ns for path in planted[0].rglob("*")}


def test_a_leak_names_the_test_copy_first(result):
    (leak,) = result.of_kind("leak")
    assert [leak.evidence["splits"][path] for path in leak.paths] == ["test", "train"]
    assert leak.evidence["copies"] == "exact"


def test_near_copies_across_classes_and_splits_are_both(tmp_path):
    paths = plain(tmp_path / "train")
    plain(tmp_path / "test", start=300)
    copy = write(tmp_path / "test/wolf/again.jpg", encoded(picture(2), "JPEG", quality=70))
    result = run_check(open_dataset(tmp_path))
    for kind in ("label-conflict", "leak"):
        (issue,) = result.of_kind(kind)
        assert issue.paths == (copy, paths["owl"][2])
        assert issue.evidence["copies"] == "near"
    assert not result.of_kind("near-duplicate")


def test_a_sound_folder_has_no_issue_but_its_size(tmp_path):
    plain(tmp_path)
    assert {issue.kind for issue in run_check(open_dataset(tmp_path)).issues} == {"small-class"}


@pytest.mark.parametrize(
    ("counts", "own_test", "kinds"),
    [
        ((400, 400), None, set()),
        ((400, 30), None, {"imbalance", "small-class"}),
        ((400, 39), None, {"imbalance", "small-class"}),
        ((400, 100), None, set()),
        ((400, 100), (50, 5), {"small-class"}),
        ((400, 100), (50, 50), set()),
    ],
)
def test_classes(tmp_path, counts, own_test, kinds):
    rows = [(f"{k}/{i}", name, "train") for k, name in enumerate("ab") for i in range(counts[k])]
    for k, name in enumerate("ab"):
        rows += [(f"{k}/test{i}", name, "test") for i in range(own_test[k] if own_test else 0)]
    found = list(class_issues(table_of(rows, ("a", "b"), tmp_path)))
    assert {issue.kind for issue in found} == kinds
    assert all(not issue.paths and issue.evidence for issue in found)


def test_images_without_labels_are_checked_for_what_needs_none(tmp_path, backbone):
    paths = plain(tmp_path)["owl"]
    blank = write(tmp_path / "blank.png", encoded(Image.new("RGB", (72, 72))))
    copy = write(tmp_path / "copy.png", encoded(picture(0)))
    dataset = table_of([(path, None, None) for path in [*paths, blank, copy]], (), tmp_path)
    result = run_check(dataset, backbone=backbone, preprocess=SMALL)
    assert [(issue.kind, issue.paths) for issue in result.issues] == [
        ("blank", (blank,)),
        ("duplicate", (paths[0], copy)),
    ]
    assert any("label errors" in note for note in result.notes)


def test_no_image_at_all(tmp_path):
    dataset = Dataset(table=pl.DataFrame(schema=SCHEMA), class_names=(), root=tmp_path)
    result = run_check(dataset)
    assert not result.issues
    assert result.dataset.counts().seen == 0


def test_several_labels_an_image(tmp_path, backbone):
    paths = plain(tmp_path)["owl"]
    copy = write(tmp_path / "copy.png", encoded(picture(0)))
    rows = [*((path, ["sea", "sun"], None) for path in paths), (copy, ["sea"], None)]
    result = run_check(table_of(rows, ("sea", "sun"), tmp_path, "multilabel"), backbone=backbone, preprocess=SMALL)
    (conflict,) = result.of_kind("label-conflict")
    assert conflict.evidence["labels"] == {paths[0]: "sea, sun", copy: "sea"}
    assert any("several labels" in note for note in result.notes)


def test_label_errors_name_the_label_that_fits(tmp_path, backbone):
    paths = plain(tmp_path, n=20)
    wrong = paths["wolf"][4]

    def out_of_fold(embeddings, labels):
        assert len(embeddings) == len(labels) == 40
        probs = np.where(np.arange(2) == labels[:, None], 0.95, 0.05).astype(np.float32)
        probs[24] = [0.98, 0.02]  # images come class by class
        return probs

    result = run_check(open_dataset(tmp_path), backbone=backbone, out_of_fold=out_of_fold, preprocess=SMALL)
    (issue,) = result.of_kind("label-error")
    assert issue.paths == (wrong,)
    assert {key: issue.evidence[key] for key in ("label", "suggested")} == {"label": "wolf", "suggested": "owl"}
    assert issue.severity > 0.8
    assert not result.notes


def test_an_outlier_is_named_with_its_class(tmp_path, backbone):
    plain(tmp_path, n=30)
    noise = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    foreign = write(tmp_path / "owl/z_noise.png", encoded(Image.fromarray(noise)))
    result = run_check(open_dataset(tmp_path), backbone=backbone, preprocess=SMALL)
    worst = result.of_kind("outlier")[0]
    assert worst.paths == (foreign,)
    assert worst.evidence["label"] == "owl"
    assert any("label errors" in note for note in result.notes)


def test_classes_too_small_to_compare_are_left_out_of_label_errors(tmp_path, backbone):
    plain(tmp_path, classes=("owl", "wolf", "yak"), n=8)
    for path in sorted((tmp_path / "wolf").iterdir())[3:]:
        path.unlink()
    asked = []

    def out_of_fold(_embeddings, labels):
        asked.append(set(labels.tolist()))
        return np.eye(2, dtype=np.float32)[labels]

    run_check(open_dataset(tmp_path), backbone=backbone, out_of_fold=out_of_fold, preprocess=SMALL)
    assert asked == [{0, 1}]


def test_looks_and_embeddings_are_those_of_training_and_come_from_one_decode(tmp_path, backbone, monkeypatch):
    plain(tmp_path, start=20_000)
    part = check_contents(open_dataset(tmp_path)).used()
    files = dict(zip(part.contents, part.images, strict=True))
    decoded = []
    decode = looks_module.decode_image
    monkeypatch.setattr(
        looks_module, "decode_image", lambda *given, **more: decoded.append(1) or decode(*given, **more)
    )
    seen = look_at(files, SMALL, backbone)
    assert len(decoded) == len(files)
    assert seen.matrix(part.contents).shape == (16, backbone.embedding_dim)
    monkeypatch.setattr("tellapart.inference.embed.OpenVINOEngine", None)  # all of it must be in the cache
    found = embed_files(files, backbone, SMALL)
    assert not found.errors
    assert all(np.array_equal(found.embeddings[content], seen.embeddings[content]) for content in files)
    again = look_at(files, SMALL, backbone)
    assert len(decoded) == len(files)
    assert np.array_equal(again.table(part.contents), seen.table(part.contents))


def test_looks_are_added_to_embeddings_that_training_left(tmp_path, backbone):
    plain(tmp_path, start=30_000)
    part = check_contents(open_dataset(tmp_path)).used()
    files = dict(zip(part.contents, part.images, strict=True))
    embed_files(files, backbone, SMALL)
    assert set(look_at(files, SMALL, backbone).looks) == set(files)


def test_an_interruption_keeps_what_was_done(tmp_path, backbone):
    plain(tmp_path, start=40_000)
    part = check_contents(open_dataset(tmp_path)).used()
    files = dict(zip(part.contents, part.images, strict=True))

    def stop(_stage, done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_at(files, SMALL, backbone, stop)
    counted = []
    look_at(files, SMALL, backbone, lambda _stage, done, _total: counted.append(done))
    assert counted[0] == len(files) // 2


@pytest.mark.parametrize(
    ("size", "exif", "image_format"),
    [((300, 200), 1, "JPEG"), ((200, 300), 6, "JPEG"), ((300, 200), 1, "PNG"), ((2000, 500), 1, "JPEG")],
)
def test_sizes_are_those_of_the_upright_image(tmp_path, size, exif, image_format):
    image = picture(1).resize(size)
    tags = Image.Exif()
    tags[0x0112] = exif
    path = write(tmp_path / "image", encoded(image, image_format, exif=tags))
    content = sha256(Path(path).read_bytes())
    row = look_at({content: path}, SMALL).looks[content]
    assert row.dtype == LOOK
    assert tuple(row["size_px"]) == (size if exif == 1 else size[::-1])


@pytest.mark.parametrize("error", [KeyError(-1), ValueError("Could not determine subsampling")])
def test_a_jpeg_header_that_only_pillow_reads_is_no_accident(tmp_path, monkeypatch, error):
    """simplejpeg raises either, by the kind of odd sampling factors."""

    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(looks_module.simplejpeg, "decode_jpeg_header", fail)
    path = write(tmp_path / "image.jpg", encoded(picture(1).resize((60, 40)), "JPEG"))
    content = sha256(Path(path).read_bytes())
    assert tuple(look_at({content: path}, SMALL).looks[content]["size_px"]) == (60, 40)


def test_issues_file(result, tmp_path):
    write_issues(result.issues, tmp_path / "issues.parquet")
    table = pl.read_parquet(tmp_path / "issues.parquet")
    assert table.columns == ["kind", "severity", "paths", "evidence"]
    assert [tuple(paths) for paths in table["paths"]] == [issue.paths for issue in result.issues]
    assert json.loads(table["evidence"][0])["labels"]


def test_no_issues_file_is_a_file_too(tmp_path):
    write_issues((), tmp_path / "issues.parquet")
    assert pl.read_parquet(tmp_path / "issues.parquet").schema["paths"] == pl.List(pl.String)


@pytest.mark.parametrize("kind", sorted(SEVERITIES))
def test_severities_stay_within_their_kind(kind):
    mild, bad, beyond = (rated(kind, degree, [], {}).severity for degree in (0.0, 1.0, 7.0))
    assert 0 < mild <= bad == beyond <= 1


def test_the_result_keeps_its_order(planted):
    first, second = (run_check(open_dataset(planted[0])) for _ in range(2))
    assert isinstance(first, CheckResult)
    assert first.issues == second.issues


def test_where_nothing_can_be_read_the_note_says_so(tmp_path):
    write(tmp_path / "owls/1.jpg", b"nothing")
    write(tmp_path / "cats/1.jpg", b"nothing either")
    found = run_check(open_dataset(tmp_path), backbone=open_backbone("efficientnet_lite0"), preprocess=SMALL)
    assert found.counts["unreadable"] == 2
    assert found.notes == ("nothing else was looked for: no image could be read",)
