"""Hugging Face data sets by name: a copy on this machine first, the hub where there is none."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tellapart.data.patterns import import_optional
from tellapart.errors import DataError
from tellapart.imaging.files import IMAGE_SUFFIXES

PREFIX = "hf:"
_NAME = re.compile(r"((?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")
_OTHER_FILES = ("*.parquet", "*.tar", "*.csv", "*.tsv", "*.jsonl", "README.md")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCopy:
    """A data set's files on this machine.

    Attributes:
        folder: of one revision.
        bounds: where its links lead: the hub's cache keeps the files themselves beside the revisions.
        note: where it came from, in words.
    """

    folder: Path
    bounds: Path
    note: str


def is_hub_name(source: str) -> bool:
    """Whether a source is a data set's name on the hub."""
    return source.startswith(PREFIX)


def local_copy(source: str) -> LocalCopy:
    """The files of ``hf:owner/name`` or ``hf:owner/name@revision``: in the cache, or downloaded into it.

    Raises:
        DataError: source-not-found, offline.
        TrainingError: package-missing.
    """
    found = _NAME.fullmatch(source.removeprefix(PREFIX))
    if found is None or ".." in source:
        raise DataError("source-not-found", f"{source} is no name of a data set", hint="such as hf:owner/name")
    name, revision = found.group(1), found.group(2) or "main"
    cached = _find_cached(name, revision)
    if cached is not None:
        note = f"{source}: the copy on this machine, revision {cached.name[:12]}"
        return LocalCopy(folder=cached, bounds=cached.parents[1], note=note)
    if _is_offline():
        message = f"{source} is not in {_cache()}, and HF_HUB_OFFLINE forbids to fetch it"
        raise DataError(
            "offline", message, hint="unset HF_HUB_OFFLINE, or copy the data set here and give its folder"
        )
    folder = _download(source, name, revision)
    note = f"{source}: revision {folder.name[:12]}, downloaded"
    return LocalCopy(folder=folder, bounds=folder.parents[1], note=note)


def _cache() -> Path:
    """The hub's cache. Source: huggingface_hub, environment variables HF_HUB_CACHE and HF_HOME."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def _find_cached(name: str, revision: str) -> Path | None:
    """The folder of a revision that is there in whole; what a broken download left is not one."""
    repository = _cache() / ("datasets--" + name.replace("/", "--"))
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return None
    snapshots = [folder for folder in (repository / "snapshots").glob(commit + "*") if folder.is_dir()]
    unfinished = any((repository / "blobs").glob("*.incomplete"))
    return snapshots[0] if len(snapshots) == 1 and not (unfinished and not _is_offline()) else None


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").casefold() in ("1", "true", "yes", "on")


def _download(source: str, name: str, revision: str) -> Path:
    hub = import_optional("huggingface_hub", "to fetch data sets from the hub")
    try:
        return Path(
            hub.snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                cache_dir=_cache(),
                allow_patterns=_wanted_files(),
            )
        )
    except Exception as error:  # the hub's, the network's and the disk's: all mean that it did not come
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "is the name right, are you connected, and may you read it (hf auth login)?"
        raise DataError("offline", f"{source} could not be fetched: {reason}", hint=hint) from error


def _wanted_files() -> Sequence[str]:
    """No code, no archives of other kinds: nothing that is not read here."""
    return [*_OTHER_FILES, *(f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES))]
