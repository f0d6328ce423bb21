"""The fix list: what is proposed, what is read back, what is refused, and what it does to a dataset."""

import csv

import pytest

from planted import plain, plant
from tellapart.checking.fixes import COLUMNS, Fixes, apply_fixes, read_fix_list, write_fix_list
from tellapart.checking.run import run_check
from tellapart.checking.severity import rated
from tellapart.data.sources import open_dataset
from tellapart.errors import DataError
from tellapart.records import SourceOptions

HEADER = ",".join(COLUMNS)
LABEL_ERROR = {"label": "owl", "suggested": "wolf", "prob": 0.1, "suggested_prob": 0.9}


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(tmp_path, *issues):
    write_fix_list(issues, tmp_path / "fixes.csv")
    return rows_of(tmp_path / "fixes.csv")


def listed(tmp_path, *lines, encoding="utf-8", header=HEADER):
    path = tmp_path / "fixes.csv"
    path.write_bytes("\r\n".join([header, *lines, ""]).encode(encoding))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    return root, plain(root)


@pytest.mark.parametrize(
    ("issue", "wanted"),
    [
        (rated("duplicate", 1, ["a", "b", "c"], {"copies": "exact"}), [("b", "exclude", "", "yes"), ("c", "exclude", "", "yes")]),
        (rated("near-duplicate", 1, ["a", "b"], {"copies": "near"}), [("b", "exclude", "", "no")]),
        (rated("leak", 1, ["test/a", "b"], {"copies": "exact"}), [("b", "exclude", "", "yes")]),
        (rated("leak", 1, ["test/a", "b"], {"copies": "near"}), [("b", "exclude", "", "no")]),
        (rated("label-conflict", 1, ["a", "b"], {"copies": "exact"}), [("a", "exclude", "", "no"), ("b", "exclude", "", "no")]),
        (rated("label-error", 1, ["a"], LABEL_ERROR), [("a", "relabel", "wolf", "no")]),
        (rated("unreadable", 1, ["a"], {"code": "empty-file"}), [("a", "exclude", "", "yes")]),
        (rated("blank", 1, ["a"], {}), [("a", "exclude", "", "yes")]),
        (rated("outlier", 1, ["a"], {}), [("a", "exclude", "", "no")]),
        (rated("odd-size", 1, ["a"], {}), []),
        (rated("wrong-extension", 1, ["a"], {}), []),
        (rated("imbalance", 1, [], {}), []),
    ],
)  # fmt: skip
def test_what_is_proposed(tmp_path, issue, wanted):
    rows = written(tmp_path, issue)
    assert [(row["path"], row["action"], row["label"], row["apply"]) for row in rows] == wanted
    assert all(row["reason"].startswith(issue.kind) for row in rows)


def test_one_line_an_image_for_its_worst_issue(tmp_path):
    rows = written(tmp_path, rated("label-error", 1, ["a"], LABEL_ERROR), rated("dark", 1, ["a"], {}))
    assert [(row["path"], row["action"]) for row in rows] == [("a", "relabel")]


def test_a_label_error_says_more_than_a_conflict(tmp_path):
    conflict = rated("label-conflict", 1, ["a", "b"], {"copies": "near"})
    rows = written(tmp_path, conflict, rated("label-error", 1, ["b"], LABEL_ERROR))
    assert {row["path"]: row["action"] for row in rows} == {"a": "exclude", "b": "relabel"}


@pytest.mark.parametrize(
    "name", ["a,b.png", 'say "owl".png', "two\nlines.png", "Ünï.png", "in the middle .png", "=1+1"]
)
def test_names_come_back_as_they_were(tmp_path, name):
    path = tmp_path / "fixes.csv"
    assert write_fix_list([rated("blank", 1, [name], {})], path) == 1
    assert [fix.path for fix in read_fix_list(path).fixes] == [name]


def test_an_empty_list_is_read_back(tmp_path):
    path = tmp_path / "fixes.csv"
    assert write_fix_list([], path) == 0
    assert read_fix_list(path).fixes == ()


@pytest.mark.parametrize(
    ("lines", "header", "encoding"),
    [
        (["a.png,exclude,,dark,yes", "b.png,relabel,wolf,,YES"], HEADER, "utf-8-sig"),
        (["a.png;exclude;;dark;yes", "b.png;relabel;wolf;;yes"], HEADER.replace(",", ";"), "utf-8"),
        (["a.png,exclude,,dark,yes", "b.png,relabel,wolf,,1", "c.png,exclude,,,no"], HEADER, "utf-8"),
        (["a.png,exclude,,dark,yes", "b.png,relabel,wolf,,yes", "b.png,relabel,wolf,,yes"], HEADER, "utf-8"),
        (["dark,,exclude,a.png", ",wolf,relabel,b.png"], "reason,label,action,path", "utf-8"),
    ],
)
def test_lists_as_people_save_them(tmp_path, lines, header, encoding):
    fixes = read_fix_list(listed(tmp_path, *lines, header=header, encoding=encoding))
    assert [(fix.path, fix.action, fix.label) for fix in fixes.fixes] == [
        ("a.png", "exclude", ""),
        ("b.png", "relabel", "wolf"),
    ]
    assert fixes.of("exclude")[0].reason == "dark"


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (["a.png,exclude,,,yes", "b.png,delete,,,yes"], "bad-row", ["line 3", "'delete'"]),
        (["a.png,relabel,,,yes"], "bad-row", ["line 2", "needs a label"]),
        (["a.png,exclude,wolf,,yes"], "bad-row", ["line 2", "takes no label"]),
        ([",exclude,,,yes"], "bad-row", ["line 2", "no path"]),
        (["a.png,exclude"], "bad-row", ["line 2"]),
        (["a.png,exclude,,,yes", "a.png,relabel,wolf,,yes"], "bad-row", ["line 3", "line 2"]),
    ],
)
def test_lists_that_are_refused(tmp_path, lines, code, words):
    with pytest.raises(DataError) as caught:
        read_fix_list(listed(tmp_path, *lines))
    assert caught.value.code == code
    assert caught.value.hint
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize(("header", "code"), [("file,action", "no-such-column"), ("path,label", "no-such-column")])
def test_lists_without_a_column(tmp_path, header, code):
    with pytest.raises(DataError) as caught:
        read_fix_list(listed(tmp_path, "a.png,exclude", header=header))
    assert caught.value.code == code


def test_what_it_does_to_a_dataset(folder, tmp_path):
    root, paths = folder
    gone, moved = paths["owl"][0], paths["wolf"][1]
    fixes = read_fix_list(listed(tmp_path, f"{gone},exclude,,dark,yes", f"{moved},relabel,owl,,yes"))
    opened = open_dataset(root)
    fixed = apply_fixes(opened, excluded=fixes, relabelled=fixes)
    rows = {row["path"]: row for row in fixed.table.iter_rows(named=True)}
    assert (rows[gone]["status"], rows[gone]["reason"], rows[gone]["detail"]) == ("skipped", "excluded", "dark")
    assert rows[moved]["label"] == "owl"
    assert fixed.counts().skipped == 1
    assert fixed.paths == opened.paths
    others = [row for path, row in rows.items() if path not in (gone, moved)]
    assert others == [row for row in opened.table.iter_rows(named=True) if row["path"] not in (gone, moved)]


def test_only_what_is_asked_for_is_done(folder, tmp_path):
    root, paths = folder
    fixes = read_fix_list(
        listed(tmp_path, f"{paths['owl'][0]},exclude,,,yes", f"{paths['wolf'][1]},relabel,owl,,yes")
    )
    dataset = open_dataset(root)
    assert apply_fixes(dataset, excluded=fixes).table["label"].equals(dataset.table["label"])
    assert apply_fixes(dataset, relabelled=fixes).counts().skipped == 0
    assert apply_fixes(dataset).table.equals(dataset.table)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("{root}/owl/none.png,exclude,,,yes", "no-path", ["line 2", "none.png", "16 images"]),
        ("{root}/owl/none.png,relabel,wolf,,yes", "no-path", ["line 2"]),
        ("{root}/owl/owl1.png,relabel,fox,,yes", "unknown-class", ["line 2", "'fox'"]),
        ("{root}/owl/owl1.png,relabel,Wolf,,yes", "unknown-class", ["line 2", "'Wolf'"]),
    ],
)
def test_what_does_not_fit_the_dataset(folder, tmp_path, line, code, words):
    root, _ = folder
    fixes = read_fix_list(listed(tmp_path, line.format(root=root)))
    with pytest.raises(DataError) as caught:
        apply_fixes(open_dataset(root), excluded=fixes, relabelled=fixes)
    assert caught.value.code == code
    assert all(word in caught.value.message for word in words)
    assert caught.value.hint


def test_several_labels_an_image_cannot_be_relabelled(folder, tmp_path):
    path = folder[1]["owl"][0]
    table = tmp_path / "labels.csv"
    table.write_text(f"file,tags\n{path},sea;sun\n{folder[1]['owl'][1]},sun\n")
    options = SourceOptions(root=str(folder[0]), label_column="tags", label_separator=";")
    dataset = open_dataset(table, options)
    assert dataset.task == "multilabel"
    fixes = read_fix_list(listed(tmp_path, f"{dataset.paths[0]},relabel,sea,,yes"))
    with pytest.raises(DataError) as caught:
        apply_fixes(dataset, relabelled=fixes)
    assert caught.value.code == "task-mismatch"


def test_from_check_to_a_dataset_without_the_faults(tmp_path):
    faults = plant(tmp_path / "photos")
    dataset = open_dataset(tmp_path / "photos")
    path = tmp_path / "fixes.csv"
    write_fix_list(run_check(dataset).issues, path)
    fixes = read_fix_list(path)
    assert isinstance(fixes, Fixes)
    again = run_check(apply_fixes(dataset, fixes, fixes))
    # Those that need somebody's eyes are left.
    assert not set(again.counts) & {"unreadable", "truncated", "duplicate", "leak", "blank"}
    assert {"label-conflict", "near-duplicate", "blurred"} <= set(again.counts)
    assert faults["duplicate"][0] in again.dataset.used().paths
