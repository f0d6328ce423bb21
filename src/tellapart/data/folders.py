"""Class folders, and train, val and test folders of class folders."""

import unicodedata
from pathlib import Path

from tellapart.data.dataset import Split
from tellapart.data.listing import SPLIT_NAMES, Listing, Rows
from tellapart.imaging.files import has_images, iter_files, subfolders

FOLDER_HINT = "give a folder that holds one folder of images for each class, such as photos/cat and photos/dog"


def list_class_folders(folder: Path) -> Listing:
    """List every file below a folder; the class of an image is the first folder it lies in.

    Classes or parts may lie one level down, as archives unpack.
    """
    root, parts = _find_parts(folder)
    rows = Rows()
    for split, part in parts:
        _add_part(rows, part, split)
    if parts[0][1] != root:
        _add_beside(rows, root, [part for _, part in parts])
    learned = [part for split, part in parts if split in (None, "train")]
    names = (class_name(child.name) for part in learned for child in subfolders(part))
    return Listing(
        table=rows.table(),
        root=root,
        shown=str(root),
        class_names=tuple(dict.fromkeys(names)),
        hint=FOLDER_HINT,
        add_hint="add images to the folder {!r}, or remove it",
    )


def class_name(written: str) -> str:
    """Accented letters in one form: file systems and archives differ in how they store them."""
    return unicodedata.normalize("NFC", written)


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
    named = {child: SPLIT_NAMES.get(child.name.casefold()) for child in subfolders(folder)}
    inside = {child: {inner.name for inner in subfolders(child)} for child, split in named.items() if split}
    parts: list[tuple[Split | None, Path]] = []
    for child, names in inside.items():
        shared = any(names & others for other, others in inside.items() if other != child)
        if names and (shared or not has_images(child)):
            inner = _only_child(child)
            unpacked_twice = inner is not None and SPLIT_NAMES.get(inner.name.casefold()) == named[child]
            parts.append((named[child], inner if inner is not None and unpacked_twice else child))
    return parts if any(split == "train" for split, _ in parts) else []


def _only_child(folder: Path) -> Path | None:
    children = subfolders(folder)
    return children[0] if len(children) == 1 and not has_images(folder) else None


def _add_part(rows: Rows, folder: Path, split: Split | None) -> None:
    for found in iter_files(folder):
        inside = found.path.relative_to(folder).parts
        label = class_name(inside[0]) if len(inside) > 1 else None
        skip = found.skip or ("" if label else "outside-class-folder")
        if skip:
            rows.set_aside(str(found.path), "skipped", skip, split=split)
        else:
            rows.use(str(found.path), label=label, split=split)


def _add_beside(rows: Rows, root: Path, parts: list[Path]) -> None:
    """Files below the source that lie in none of its parts."""
    for found in iter_files(root):
        if not any(found.path.is_relative_to(part) for part in parts):
            rows.set_aside(str(found.path), "skipped", found.skip or "outside-class-folder")
