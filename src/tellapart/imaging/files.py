"""Which files below a folder are images: one rule for training, evaluation and prediction."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tellapart.imaging.decode import looks_like_image

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .hif"
    # not readable, but meant as images: they are refused by name, never skipped
    " .psd .tga .jp2 .j2k .jxl .ppm .pgm .pbm .pnm .exr .svg .eps .ico .dds .qoi .dng .cr2 .cr3 .nef .arw .orf .raf .rw2".split()
)
_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that was seen, and why it is passed over; ``skip`` is empty for an image."""

    path: Path
    skip: str = ""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which ``img2`` comes before ``img10``."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part)


def skip_rule(name: str) -> str:
    """Why a file or folder of this name is passed over: ``hidden``, ``system``, or nothing."""
    if name.casefold() in _SYSTEM_NAMES:
        return "system"
    return "hidden" if name.startswith(".") else ""


def iter_files(folder: Path) -> Iterator[FoundFile]:
    """Walk a folder and all below it, in natural order, files before folders.

    Every file is reported. ``skip`` says ``hidden`` or ``system`` for names that are not the user's own, ``other`` for a
    file that neither is called an image nor starts like one, ``link-loop`` for a link back to a folder above it,
    ``unreadable-folder`` for a folder that may not be listed, and ``name-not-unicode`` for a name that no table can hold (with
    such a folder goes all below it). Memory grows with the largest single folder.
    """
    # A link above the source itself would bring in strangers, or a test folder's images as a training class.
    above_source = tuple(_identity(parent) for parent in folder.resolve().parents)
    pending: list[tuple[Path, tuple[tuple[int, int], ...], str]] = [
        (folder, (*above_source, _identity(folder)), "")
    ]
    while pending:
        current, above, inherited = pending.pop()
        try:
            with os.scandir(current) as entries:
                names = [(_is_folder(entry), entry.name) for entry in entries]
        except OSError:
            yield FoundFile(current, "unreadable-folder")
            continue
        names.sort(key=lambda item: (natural_key(item[1]), item[1]))
        folders = []
        for is_folder, name in names:
            path = current / name
            skip = inherited or skip_rule(name)
            if not _is_unicode(path):
                yield FoundFile(Path(os.fsencode(path).decode(errors="backslashreplace")), "name-not-unicode")
            elif not is_folder:
                yield FoundFile(path, skip or ("" if _is_image(path) else "other"))
            elif (identity := _identity(path)) in above:
                yield FoundFile(path, "link-loop")
            else:
                folders.append((path, (*above, identity), skip))
        pending.extend(reversed(folders))


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in ``folder`` that are the user's own, in natural order; none if it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _is_folder(entry) and not skip_rule(entry.name)]
    except PermissionError:  # iter_files reports it
        return []
    return [folder / name for name in sorted(names, key=lambda name: (natural_key(name), name))]


def has_images(folder: Path) -> bool:
    """Whether there is an image directly in ``folder``; none is seen if it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return any(
                not _is_folder(entry) and not skip_rule(entry.name) and _is_image(Path(entry.path))
                for entry in entries
            )
    except PermissionError:  # iter_files reports it
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_unicode(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_image(path: Path) -> bool:
    return path.suffix.casefold() in IMAGE_SUFFIXES or looks_like_image(path)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
