"""Names that stand for several files: braces, globs, and addresses that fsspec opens."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tellapart.data.dataset import Split
from tellapart.data.listing import SPLIT_NAMES
from tellapart.errors import DataError, TrainingError
from tellapart.imaging.files import natural_key

MAX_FILES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_address(source: str) -> bool:
    """Whether a source is an address such as ``s3://bucket/000.tar``."""
    return re.match(r"[a-z][a-z0-9+.-]+:(:|//)", source) is not None


def is_pattern(source: str) -> bool:
    """Whether a source stands for several files; a name that exists stands for itself."""
    if not is_address(source) and Path(source).exists():
        return False
    return bool(_BRACES.search(source)) or glob.has_magic(source)


def expand(source: str) -> list[str]:
    """The files that a brace or glob pattern means, in natural order; braces also name files that may be missing.

    Raises:
        DataError: source-not-found, unsupported-source.
    """
    files: list[str] = []
    for name in _expand_braces(source):
        files += _expand_glob(name) if glob.has_magic(name) else [name]
    if not files:
        raise DataError(
            "source-not-found", f"no file matches {source}", hint="quotes keep the shell from reading it"
        )
    return list(dict.fromkeys(files))


def file_system(address: str) -> tuple[Any, str]:
    """The file system fsspec has for an address, and the path in it.

    Raises:
        TrainingError: package-missing.
        DataError: unsupported-source, for an address of no known kind.
    """
    fsspec = import_optional("fsspec", "to read addresses")
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise DataError("unsupported-source", f"{address}: {error}", hint="copy it to this machine") from error
    return system, str(path)


def import_optional(name: str, purpose: str) -> ModuleType:
    """A package that the base install does not bring.

    Raises:
        TrainingError: package-missing.
    """
    try:
        return __import__(name)
    except ImportError as error:
        message = f"the package {name} is needed {purpose}"
        raise TrainingError("package-missing", message, hint=f"pip install {name}") from error


def split_of_file(name: str) -> Split | None:
    """The part that a file's name or its folder tells, as in ``train-00000-of-00002.parquet``; None without one."""
    path = Path(name)
    told = {SPLIT_NAMES[part] for part in re.split(r"[-_.]", path.stem.casefold()) if part in SPLIT_NAMES}
    if not told and path.parent.name.casefold() in SPLIT_NAMES:
        told = {SPLIT_NAMES[path.parent.name.casefold()]}
    return told.pop() if len(told) == 1 else None


def told_splits(names: Sequence[str]) -> list[Split | None]:
    """The part of each file; none where all are called the same and not train: then it is all there is to learn from."""
    splits = [split_of_file(name) for name in names]
    return splits if len(set(splits)) > 1 or "train" in splits else [None] * len(splits)


def _expand_braces(source: str) -> list[str]:
    found = _BRACES.search(source)
    if found is None:
        return [source]
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", found.group(1))
    if span:
        first, last = (int(end) for end in span.groups())
        if abs(last - first) >= MAX_FILES:
            raise DataError("unsupported-source", f"{source} stands for more than {MAX_FILES:,} files")
        step = 1 if last >= first else -1
        parts = [str(i).zfill(len(span.group(1))) for i in range(first, last + step, step)]
    else:
        parts = found.group(1).split(",")
    names = []
    for part in parts:
        names += _expand_braces(source[: found.start()] + part + source[found.end() :])
        if len(names) > MAX_FILES:
            raise DataError("unsupported-source", f"{source} stands for more than {MAX_FILES:,} files")
    return names


def _expand_glob(name: str) -> list[str]:
    if not is_address(name):
        return sorted(glob.glob(name, recursive=True), key=lambda path: (natural_key(path), path))
    system, path = file_system(name)
    found = [str(system.unstrip_protocol(match)) for match in system.glob(path)]
    return sorted(found, key=lambda match: (natural_key(match), match))
