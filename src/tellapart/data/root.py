"""The folder a table's paths begin with: which file a cell means, and nothing outside."""

import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tellapart.imaging.files import IMAGE_SUFFIXES, iter_files, skip_rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a row cannot be used; ``path`` is there where it names a place below the root."""

    code: str
    detail: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """Finds the files a table names, and nothing outside ``bounds``.

    Links are followed only to where the table may reach. Real paths of folders are kept, so a file costs one system call.
    """

    folder: Path
    bounds: Path
    outside: bool
    suffix: str = ""
    _real: dict[str, str] = field(default_factory=dict)

    def find(self, cell: str) -> str | Refusal:
        """The path as it is opened, or why there is none."""
        if "://" in cell:
            return Refusal(code="outside-root", detail=f"{cell!r} is an address, not a file: download it first")
        if "\0" in cell:
            return Refusal(code="file-not-found", detail=f"{cell!r} cannot be the name of a file")
        refusal: str | Refusal = ""
        for spelled in _spellings(cell):
            found = self._find(os.path.join(self.folder, spelled + self.suffix))  # noqa: PTH118  a million of them
            if isinstance(found, str) or found.code != "file-not-found":
                return found
            refusal = refusal or found  # as it is written, not as it might have been
        return refusal

    def _find(self, path: str) -> str | Refusal:
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return Refusal(code="not-a-file", detail=f"{path} is a folder")
        real, mode = self._look(folder, name)
        if not self.outside and not self._inside(real):
            detail = f"{path} lies outside {self.bounds} (--outside-root allows it)"
            return Refusal(code="outside-root", detail=detail, path=self._own(path))
        if not mode:
            detail = f"there is no file {Path(path)}"
            return Refusal(code="file-not-found", detail=detail, path=self._own(path))
        if not stat.S_ISREG(mode):
            return Refusal(code="not-a-file", detail=f"{path} is not a regular file", path=self._own(path))
        if path.startswith("./") or "//" in path or "/." in path:
            return self._own(path) or real
        return path

    def _look(self, folder: str, name: str) -> tuple[str, int]:
        """Where a path leads in the end, and what is there; 0 for nothing."""
        real_folder = self._real.get(folder)
        if real_folder is None:
            real_folder = self._real[folder] = os.path.realpath(folder)
        real = os.path.join(real_folder, name)  # noqa: PTH118
        try:
            mode = os.lstat(real).st_mode
            if stat.S_ISLNK(mode):
                real = os.path.realpath(real)
                mode = Path(real).stat().st_mode
        except (OSError, ValueError):
            mode = 0
        return real, mode

    def _own(self, path: str) -> str:
        """The path, where its spelling stays below the root; nothing for any other."""
        spelled = Path(path)
        inside = spelled.is_relative_to(self.folder) and ".." not in spelled.relative_to(self.folder).parts
        return str(spelled) if inside else ""

    def _inside(self, real: str) -> bool:
        bounds = self._real.get("")
        if bounds is None:
            bounds = self._real[""] = os.path.join(os.path.realpath(self.bounds), "")  # noqa: PTH118
        return real.startswith(bounds)

    def beside(self, named: Collection[str]) -> Iterator[str]:
        """Images that are not named, below the top folders of those that are, and at the top where some lie there."""
        prefix = os.path.join(self.folder, "")  # noqa: PTH118
        tops = dict.fromkeys(
            path.removeprefix(prefix).partition(os.sep)[0] for path in named if path.startswith(prefix)
        )
        folders = [self.folder / top for top in tops if (self.folder / top).is_dir()]
        for folder in folders:
            if self.outside or self._inside(os.path.join(os.path.realpath(folder), "")):  # noqa: PTH118
                files = (str(file.path) for file in iter_files(folder) if not file.skip)
                yield from self._others(files, named)
        if len(folders) < len(tops):
            yield from self._others(_images_in(self.folder), named)

    def _others(self, paths: Iterable[str], named: Collection[str]) -> Iterator[str]:
        return (path for path in paths if path not in named and isinstance(self._find(path), str))


def _images_in(folder: Path) -> list[str]:
    """Files directly in a folder that are called images; none if it may not be listed, though they may be opened."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [str(path) for path in entries if path.suffix.casefold() in IMAGE_SUFFIXES and not skip_rule(path.name)]


def _spellings(cell: str) -> Iterator[str]:
    """A path as it is written, and as other systems would write it."""
    yield cell
    if "\\" in cell and os.sep == "/":
        yield cell.replace("\\", "/")
    if not cell.isascii():
        yield from (unicodedata.normalize(form, cell) for form in ("NFC", "NFD"))
