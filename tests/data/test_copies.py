"""Pictures that are there more than once: on one side of every split, or reported with both scores."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tellapart
from planted import encoded, picture, plain, write
from tellapart.data.copies import find_copies, leaked_paths, stay_together
from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.data.split import split
from tellapart.imaging.decode import decode_image
from tellapart.imaging.thumbnail import make_thumbnails
from tellapart.storage import sha256


def images(rows):
    """A dataset and its thumbnails, from rows of (picture, label or labels, group); equal pictures are re-encoded copies."""
    table, pixels = [], []
    for i, (shown, label, group) in enumerate(rows):
        data = encoded(picture(shown), "JPEG", quality=50 + i % 45)
        pixels.append(decode_image(data))
        several = not isinstance(label, str)
        table.append(
            {
                "path": f"{i}.jpg",
                "label": None if several else label,
                "labels": list(label) if several else None,
                "group": group,
                "status": "used",
                "content": sha256(f"{i}".encode()),
            }
        )
    names = sorted({name for _, label, _ in rows for name in ([label] if isinstance(label, str) else label)})
    task = "classification" if isinstance(rows[0][1], str) else "multilabel"
    dataset = Dataset(table=pl.DataFrame(table, schema=SCHEMA), class_names=tuple(names), root=Path(), task=task)
    return dataset, make_thumbnails(np.stack(pixels))


OTHERS = [(1000 + i, "ab"[i % 2], None) for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "together"),
    [
        pytest.param([(1, "a", None), (2, "b", None)], [None, None], id="no copies"),
        pytest.param([(1, "a", None), (2, "b", None), (1, "a", None)], ["0", None, "0"], id="a copy"),
        pytest.param([(1, "a", None), (1, "b", None)], ["0", "0"], id="in two classes"),
        pytest.param([(1, "a", "x"), (2, "a", "x"), (2, "b", "y")], ["0", "0", "0"], id="groups share a picture"),
        pytest.param([(1, "a", "x"), (2, "a", None), (2, "b", None)], ["0", "1", "1"], id="a group and a picture"),
        pytest.param(
            [(1, "a", "0"), (2, "a", "0.jpg"), (1, "b", None)], ["0", "1", "0"], id="names that look alike"
        ),
    ],
)
def test_what_stays_together(rows, together):
    before, thumbnails = images([*rows, *OTHERS])
    after = find_copies(before, before, thumbnails)
    names = stay_together(after)
    first = {name: str(names.index(name)) for name in names if name is not None}
    assert [first.get(name) for name in names] == together + [None] * len(OTHERS)
    assert after.paths == before.paths
    assert after.table["group"].to_list() == before.table["group"].to_list()
    assert bool(after.notes) == after.table["picture"].is_not_null().any()


def copies(pictures, of_each, label):
    return [(1 + p, label, None) for p in range(pictures) for _ in range(of_each)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([*copies(12, 2, "a"), *OTHERS], id="pairs"),
        pytest.param([*copies(5, 6, "a"), *OTHERS], id="sixes"),
        pytest.param([*copies(12, 1, "a"), *copies(12, 1, "b"), *OTHERS], id="in two classes"),
        pytest.param([(p, (names,), g) for p, names, g in [*copies(9, 3, "a"), *OTHERS]], id="several labels"),
    ],
)
@pytest.mark.parametrize("cross_fit", [True, False])
def test_a_picture_is_on_one_side(rows, seed, cross_fit):
    dataset, thumbnails = images(rows)
    options = {} if cross_fit else {"val_fraction": 0.1, "cross_fit": False}
    done = split(find_copies(dataset, dataset, thumbnails), seed=seed, **options)
    sides = {}
    for (shown, _, _), side in zip(rows, done.table["split"], strict=True):
        sides.setdefault(shown, set()).add(side)
    assert max(map(len, sides.values())) == 1
    assert all(done.class_counts("train").values())
    assert all(done.class_counts("test").values())
    share = len(done.used("test")) / len(done)
    assert 0.1 <= share <= 0.3, "and the parts keep about their size"


def test_a_class_of_copies_is_split_all_the_same():
    alike = [(1, "c", None)] * 8
    few = [(2 + i // 3, "d", None) for i in range(9)]
    dataset, thumbnails = images([*alike, *few, *OTHERS])
    grouped = find_copies(dataset, dataset, thumbnails)
    assert grouped.table["picture"].null_count() == len(grouped)
    assert "17 images look alike" in " ".join(grouped.notes)
    done = split(grouped, val_fraction=0.1, cross_fit=False)
    for part in ("train", "val", "calib", "test"):
        assert all(done.class_counts(part).values())


def test_leaks_are_test_images_that_others_have_too():
    learned, first = images([(1, "a", None), (2, "a", None), *OTHERS])
    tested, second = images([(2, "a", None), (3, "b", None), (3, "b", None), (1, "b", None)])
    assert leaked_paths(learned, tested, np.concatenate([first, second])) == ["0.jpg", "3.jpg"]


def test_train_keeps_copies_together(tmp_path):
    paths = plain(tmp_path, n=30)
    for i in range(0, 30, 3):
        write(tmp_path / "owl" / f"z{i}.jpg", encoded(picture(i), "JPEG", quality=70))
    run = tellapart.train(tmp_path, out=tmp_path / "run")
    table = pl.read_parquet(run.folder / "dataset.parquet")
    side = dict(table.select("path", "split").iter_rows())
    pairs = [(paths["owl"][i], str(tmp_path / "owl" / f"z{i}.jpg")) for i in range(0, 30, 3)]
    assert all(side[first] == side[second] for first, second in pairs)
    assert run.report["leaks"] == {"n": 0, "paths": [], "test_without": None}
    assert any("20 images are near-copies (10 pictures)" in note for note in run.report["dataset"]["notes"])


@pytest.mark.parametrize("recipe", ["probe", "cnn"])
def test_leaks_across_the_users_split_are_reported_with_both_scores(tmp_path, recipe):
    plain(tmp_path / "train", n=14)
    plain(tmp_path / "test", n=6, start=500)
    leaked = [
        write(tmp_path / "test" / "owl" / f"z{i}.jpg", encoded(picture(i), "JPEG", quality=70)) for i in range(4)
    ]
    settings = {"epochs": 1} if recipe == "cnn" else {}
    run = tellapart.train(tmp_path, recipe=recipe, settings=settings, out=tmp_path / "run")
    leaks = run.report["leaks"]
    assert (leaks["n"], leaks["paths"]) == (4, leaked)
    assert (run.report["test"]["n"], leaks["test_without"]["n"]) == (16, 12)
    answers = pl.read_parquet(run.folder / "predictions.parquet").filter(pl.col("split") == "test")
    clean = answers.filter(~pl.col("path").is_in(leaked))
    for part, found in ((answers, run.report["test"]), (clean, leaks["test_without"])):
        right = (part["label"] == part["predicted"]).mean()
        assert found["accuracy"]["value"] == pytest.approx(right)
