"""WebDataset shards: tar files whose members with one name up to the first dot make one sample."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from tellapart.data.dataset import Split
from tellapart.data.label_files import Aside, LabelTable
from tellapart.data.patterns import file_system, is_address, told_splits
from tellapart.data.tar import TarDamage, TarMember, iter_tar
from tellapart.errors import DataError, ImageError
from tellapart.imaging.decode import DecodeLimits, StoredImage
from tellapart.imaging.files import IMAGE_SUFFIXES, skip_rule
from tellapart.records import SourceOptions

_MAX_LABEL_BYTES = 2**20
_TEXT_ENDINGS = ("cls", "txt", "label")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


@dataclass(frozen=True, slots=True)
class ShardImage:
    """An image in a tar file on this machine, read when it is asked for."""

    shard: str
    offset: int
    size: int

    def read_bytes(self, limits: DecodeLimits) -> bytes:
        """The encoded image.

        Raises:
            ImageError: too-many-bytes, unreadable-file, truncated-image.
        """
        _require_size(self.size, limits)
        try:
            with Path(self.shard).open("rb") as file:
                file.seek(self.offset)
                return _whole(file.read(self.size), self.size)
        except OSError as error:
            raise ImageError("unreadable-file", f"{self.shard}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class RemoteShardImage:
    """An image in a tar file elsewhere: only its bytes are asked for."""

    address: str
    offset: int
    size: int

    def read_bytes(self, limits: DecodeLimits) -> bytes:
        """The encoded image.

        Raises:
            ImageError: too-many-bytes, unreadable-file, truncated-image.
        """
        _require_size(self.size, limits)
        system, path = file_system(self.address)
        try:
            return _whole(bytes(system.cat_file(path, self.offset, self.offset + self.size)), self.size)
        except ImageError:
            raise
        except Exception as error:  # every file system of fsspec raises errors of its own
            raise ImageError("unreadable-file", f"{self.address}: {error}") from error


@dataclass(slots=True)
class _Sample:
    """Members of one name: images by ending, labels by column."""

    shard: str
    folder: str
    split: Split | None
    images: dict[str, tuple[str, StoredImage]] = field(default_factory=dict)
    labels: dict[str, str | list[str] | None] = field(default_factory=dict)
    broken: str = ""


def read_shards(shards: Sequence[str], options: SourceOptions) -> LabelTable:
    """Index the members of tar files, each in one pass: a row for each sample, and all else aside.

    Labels are the members that end in ``.cls``, ``.txt`` or ``.json`` (its keys as columns ``json.KEY``), or, without
    those, the folder in the members' names.

    Raises:
        DataError: source-not-found, damaged-archive, unsupported-source, ambiguous-columns.
    """
    samples: dict[tuple[str, str], _Sample] = {}
    aside: list[Aside] = []
    for shard, split in zip(shards, told_splits(shards), strict=True):
        _index(shard, split, samples, aside)
    rows = list(samples.values())
    ending = _image_ending(rows, options, shards[0])
    images: list[StoredImage | None] = []
    paths: list[str] = []
    for key, sample in samples.items():
        chosen = [image for name, image in sample.images.items() if ending in ("", name)]
        path, image = chosen[0] if chosen else (f"{sample.shard}!/{key[1]}.*", None)
        paths.append(path)
        images.append(image)
    if not rows:
        message = f"{shards[0]}{' and the others' if len(shards) > 1 else ''}: no member is an image"
        raise DataError("no-images", message, hint="members should be called 0001.jpg, 0001.cls and so on")
    return LabelTable(
        shown=shards[0] if len(shards) == 1 else shards[0].rpartition("/")[0] or ".",
        frame=_frame(rows),
        unit="sample",
        numbers=range(1, len(rows) + 1),
        root=Path(shards[0]).parent,
        bounds=Path(shards[0]).parent,
        paths=paths,
        broken={i: sample.broken for i, sample in enumerate(rows) if sample.broken},
        images={options.image_column or "image": images},
        aside=aside,
    )


def _index(shard: str, split: Split | None, samples: dict[tuple[str, str], _Sample], aside: list[Aside]) -> None:
    """Add what one shard holds."""
    seen: set[str] = set()
    with _opened(shard) as (file, length):
        try:
            for member in iter_tar(file, length):
                again = member.name in seen
                seen.add(member.name)
                unused = _unused(shard, member, again=again)
                if unused is not None:
                    aside.append(unused)
                else:
                    _add_member(file, shard, split, member, samples)
        except TarDamage as damage:
            if not seen:
                message = f"{shard} is no tar archive, or a damaged one: {damage}"
                raise DataError("damaged-archive", message, hint="copy it again, or leave it out") from damage
            detail = f"{damage}; what comes after is not read"
            aside.append(Aside(path=f"{shard}!", status="refused", reason="damaged-archive", detail=detail))


def _unused(shard: str, member: TarMember, *, again: bool) -> Aside | None:
    """Why a member belongs to no sample; None where it does."""
    path = f"{shard}!/{member.name}" + (f" at byte {member.offset:,}" if again else "")
    if member.refused:
        return Aside(path=path, status="refused", reason="unsafe-member", detail=f"it is {member.refused}")
    parts = [part for part in member.name.split("/") if part not in (".", "..")]
    skip = next(filter(None, map(skip_rule, parts)), "")
    if skip:
        return Aside(path=path, status="skipped", reason=skip)
    if again:
        detail = f"{shard} holds two members called {member.name}"
        return Aside(path=path, status="refused", reason="duplicate-key", detail=detail)
    ending = _key_and_ending(member.name)[1]
    if _is_image(ending) or ending in (*_TEXT_ENDINGS, "json"):
        return None
    return Aside(path=path, status="skipped", reason="other")


def _add_member(
    file: IO[bytes], shard: str, split: Split | None, member: TarMember, samples: dict[tuple[str, str], _Sample]
) -> None:
    key, ending = _key_and_ending(member.name)
    folder = key.removeprefix("./").rpartition("/")[0].rpartition("/")[2]
    sample = samples.setdefault((shard, key), _Sample(shard, folder, split))
    if _is_image(ending):
        kind = RemoteShardImage if is_address(shard) else ShardImage
        sample.images[ending] = (f"{shard}!/{member.name}", kind(shard, member.offset, member.size))
        return
    if member.size > _MAX_LABEL_BYTES:
        sample.broken = f"{member.name} has {member.size:,} bytes; a label may have {_MAX_LABEL_BYTES:,}"
        return
    file.seek(member.offset)
    try:
        text = file.read(member.size).decode("utf-8-sig").strip()
        labels = _json_labels(text) if ending == "json" else {ending: text or None}
    except (ValueError, RecursionError):
        sample.broken = f"{member.name} cannot be read as {'JSON' if ending == 'json' else 'text'}"
        return
    sample.labels |= labels


def _key_and_ending(name: str) -> tuple[str, str]:
    """``a/b.c/001.seg.png`` is ``a/b.c/001`` and ``seg.png``."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.casefold()


def _is_image(ending: str) -> bool:
    return "." + ending.rpartition(".")[2] in IMAGE_SUFFIXES


def _json_labels(text: str) -> dict[str, str | list[str] | None]:
    """Keys of a JSON object that hold text, numbers or lists of them; a lone text or number is the label."""
    document = json.loads(text)
    if not isinstance(document, dict):
        document = {"label": document}
    found: dict[str, str | list[str] | None] = {}
    for key, value in document.items():
        if isinstance(value, list):
            found[f"json.{key}"] = [str(item) for item in value if isinstance(item, str | int | float)]
        elif isinstance(value, str | int | float):
            found[f"json.{key}"] = str(value).strip() or None
    return found


def _image_ending(samples: Sequence[_Sample], options: SourceOptions, shown: str) -> str:
    """Which of several images in a sample is meant; empty where each has at most one.

    Raises:
        DataError: ambiguous-columns, no-such-column.
    """
    endings = Counter(ending for sample in samples for ending in sample.images)
    wanted = options.image_column
    if wanted and wanted != "image":
        if wanted not in endings:
            message = f"{shown}: no member ends in .{wanted}"
            raise DataError("no-such-column", message, hint=f"images end in {', '.join(endings) or 'nothing'}")
        return wanted
    if all(len(sample.images) <= 1 for sample in samples):
        return ""
    message = f"{shown}: samples hold several images: {', '.join(f'.{ending}' for ending in endings)}"
    raise DataError("ambiguous-columns", message, hint=f"name one, such as --image-column {next(iter(endings))}")


def _frame(samples: Sequence[_Sample]) -> pl.DataFrame:
    """Labels by column; the folder in the name only where there is nothing else to go by."""
    columns: dict[str, pl.Series] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.labels):
        values: list[Any] = [sample.labels.get(name) for sample in samples]
        if any(isinstance(value, list) for value in values):
            values = [[value] if isinstance(value, str) else value for value in values]
            columns[name] = pl.Series(name, values, dtype=pl.List(pl.String))
        else:
            columns[name] = pl.Series(name, values, dtype=pl.String)
    if not columns:
        folders = [sample.folder or None for sample in samples]
        columns["folder"] = pl.Series("folder", folders, dtype=pl.String)
    if any(sample.split for sample in samples) and "split" not in columns:
        columns["split"] = pl.Series("split", [sample.split for sample in samples], dtype=pl.String)
    return pl.DataFrame(columns)


@contextmanager
def _opened(shard: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """A shard and its length.

    Raises:
        DataError: source-not-found, unsupported-source.
    """
    if is_address(shard):
        system, path = file_system(shard)
        try:
            with system.open(path, "rb") as file:
                _refuse_compressed(shard, file)
                yield file, getattr(file, "size", None)
        except OSError as error:
            raise DataError("source-not-found", f"{shard}: {error}", hint="is the address right?") from error
        return
    try:
        with Path(shard).open("rb") as file:
            _refuse_compressed(shard, file)
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(
            "source-not-found", f"{shard}: {error.strerror or error}", hint="is its name right?"
        ) from error


def _refuse_compressed(shard: str, file: IO[bytes]) -> None:
    """A place inside a compressed file cannot be found without unpacking all before it, whatever that comes to."""
    head = file.read(4)
    for signature, command in _COMPRESSED.items():
        if head.startswith(signature):
            message = f"{shard} is compressed"
            hint = f"images are compressed already: unpack it to a plain .tar ({command})"
            raise DataError("unsupported-source", message, hint=hint)


def _require_size(size: int, limits: DecodeLimits) -> None:
    if size > limits.max_bytes:
        raise ImageError("too-many-bytes", f"{size:,} bytes; the limit is {limits.max_bytes:,}")


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise ImageError("truncated-image", f"{len(data):,} of {size:,} bytes are there")
    return data
