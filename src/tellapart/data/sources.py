"""open_dataset: where labelled images come from."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl

from tellapart.data.dataset import SCHEMA, Dataset, Split
from tellapart.errors import DataError
from tellapart.imaging.files import has_images, iter_files, subfolders

# Keras' test folders, Kaggle's archives and torchvision's ImageFolder all use some of these.
_SPLIT_NAMES: Mapping[str, Split] = MappingProxyType(
    {
        "train": "train",
        "training": "train",
        "training_set": "train",
        "val": "val",
        "valid": "val",
        "validation": "val",
        "validation_set": "val",
        "test": "test",
        "testing": "test",
        "test_set": "test",
    }
)


def open_dataset(source: str | Path) -> Dataset:
    """List labelled images: class folders, or train / val / test folders of class folders.

    Both may lie one level down, as archives unpack. The class is the first folder below the source (or below the train
    folder), however deep the file lies in it. Classes are matched by name across train, val and test. Nothing is read
    yet but folders, and the first bytes of files whose names do not tell whether they are images.

    Raises:
        DataError: source-not-found, no-images, single-class, empty-class, class-names-clash, class-mismatch.
    """
    root, parts = _find_parts(_existing_folder(source))
    rows: list[dict[str, str | None]] = []
    for split, folder in parts:
        rows += _rows(folder, split)
    if parts[0][1] != root:
        rows += _rows_beside(root, [folder for _, folder in parts])
    class_names = _class_names(parts)
    dataset = Dataset(table=pl.DataFrame(rows, schema=SCHEMA), class_names=class_names, root=root)
    _require_classes(dataset, root)
    return dataset


def open_test_images(source: str | Path, class_names: tuple[str, ...]) -> Dataset:
    """List the images a model is to be measured on.

    A source with a test folder gives that; a source with class folders gives all of it. Classes are the model's: images in
    folders of other names are refused one by one as ``unknown-class``, and classes without images are no error.

    Raises:
        DataError: source-not-found, no-images, class-mismatch when no folder has the name of a class.
    """
    root, parts = _find_parts(_existing_folder(source))
    folders = [folder for split, folder in parts if split == "test"] or [folder for _, folder in parts]
    rows = [row for folder in folders for row in _rows(folder, "test")]
    dataset = Dataset(table=pl.DataFrame(rows, schema=SCHEMA), class_names=class_names, root=root)
    if not len(dataset.used()):
        raise DataError("no-images", f"there is no image in a class folder below {root}")
    unknown = dataset.used().where(~pl.col("label").is_in(class_names))
    if len(unknown) == len(dataset.used()):
        found = ", ".join(dict.fromkeys(unknown.table["label"]))
        message = f"no folder in {root} has the name of one of the model's classes ({', '.join(class_names)})"
        raise DataError("class-mismatch", message, hint=f"found: {found}; names must match to the letter")
    detail = f"the model knows {', '.join(class_names)}"
    return dataset.with_outcome("refused", dict.fromkeys(unknown.paths, ("unknown-class", detail)))


def _existing_folder(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        hint = "give a folder that holds one folder of images for each class, such as photos/cat and photos/dog"
        raise DataError("source-not-found", f"{folder} {what}", hint=hint)
    return folder


def _find_parts(folder: Path) -> tuple[Path, list[tuple[Split | None, Path]]]:
    """The folder that holds the classes or the parts, and the parts; one part without a name if there are none."""
    for candidate in (folder, _only_child(folder)):
        if candidate is None:
            continue
        parts = _named_parts(candidate)
        if parts:
            return candidate, parts
        if candidate != folder and len(subfolders(candidate)) > 1:
            return candidate, [(None, candidate)]
    return folder, [(None, folder)]


def _named_parts(folder: Path) -> list[tuple[Split | None, Path]]:
    """Train, val and test folders. A class may be called "train" too: its folder holds images, not classes.

    Where it holds both, the classes it shares with another part tell.
    """
    named = {child: _SPLIT_NAMES.get(child.name.casefold()) for child in subfolders(folder)}
    inside = {child: {inner.name for inner in subfolders(child)} for child, split in named.items() if split}
    parts: list[tuple[Split | None, Path]] = []
    for child, names in inside.items():
        shared = any(names & others for other, others in inside.items() if other != child)
        if names and (shared or not has_images(child)):
            inner = _only_child(child)
            unpacked_twice = inner is not None and _SPLIT_NAMES.get(inner.name.casefold()) == named[child]
            parts.append((named[child], inner if inner is not None and unpacked_twice else child))
    return parts if any(split == "train" for split, _ in parts) else []


def _only_child(folder: Path) -> Path | None:
    children = subfolders(folder)
    return children[0] if len(children) == 1 and not has_images(folder) else None


def _rows(folder: Path, split: Split | None) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = []
    for found in iter_files(folder):
        inside = found.path.relative_to(folder).parts
        label = _class_name(inside[0]) if len(inside) > 1 else None
        skip = found.skip or ("" if label else "outside-class-folder")
        rows.append(
            {
                "path": str(found.path),
                "label": label,
                "split": None if skip else split,
                "status": "skipped" if skip else "used",
                "reason": skip,
                "detail": "",
            }
        )
    return rows


def _rows_beside(root: Path, folders: list[Path]) -> list[dict[str, str | None]]:
    """Files below the source that lie in none of its parts."""
    return [
        {
            "path": str(found.path),
            "status": "skipped",
            "reason": found.skip or "outside-class-folder",
            "detail": "",
        }
        for found in iter_files(root)
        if not any(found.path.is_relative_to(folder) for folder in folders)
    ]


def _class_name(folder_name: str) -> str:
    """Accented letters in one form: file systems and archives differ in how they store them."""
    return unicodedata.normalize("NFC", folder_name)


def _class_names(parts: list[tuple[Split | None, Path]]) -> tuple[str, ...]:
    learned = [folder for split, folder in parts if split in (None, "train")]
    names = dict.fromkeys(_class_name(child.name) for folder in learned for child in subfolders(folder))
    for split, folder in parts:
        for child in subfolders(folder):
            if _class_name(child.name) not in names:
                message = f"{child} holds a class that is in none of the training folders ({', '.join(names)})"
                raise DataError("class-mismatch", message, hint=f"rename or remove the folder in {split}")
    by_folded: dict[str, str] = {}
    for name in names:
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            message = f"the classes {other!r} and {name!r} have names that differ only by case"
            raise DataError("class-names-clash", message, hint="put their images into one folder, or rename one")
    return tuple(names)


def _require_classes(dataset: Dataset, root: Path) -> None:
    used = dataset.used()
    if not len(used):
        hint = "give a folder that holds one folder of images for each class, such as photos/cat and photos/dog"
        raise DataError("no-images", f"no image was found in a class folder below {root}", hint=hint)
    trained = Counter(used.where(pl.col("split").is_null() | (pl.col("split") == "train")).table["label"])
    if len(dataset.class_names) == 1:
        only = dataset.class_names[0]
        message = f"all images in {root} are of one class, {only!r}; telling apart needs two"
        raise DataError(
            "single-class", message, hint=f"add a folder beside {only!r} with images of something else"
        )
    for name in dataset.class_names:
        if not trained[name]:
            hint = f"add images to the folder {name!r}, or remove it"
            raise DataError("empty-class", f"class {name!r} has no image below {root}", hint=hint)
