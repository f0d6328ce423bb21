"""Files and folders that are never half-written."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import filelock
import numpy as np
import platformdirs
from numpy.typing import NDArray

from tellapart.errors import StorageError


def sha256(data: bytes) -> str:
    """Content hash, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def cache_folder() -> Path:
    """Where backbones and embeddings are kept: ``$TELLAPART_CACHE``, or the user's cache folder."""
    given = os.environ.get("TELLAPART_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("tellapart")


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name whole or not at all.

    The bytes go to a temporary file in the same folder, reach the disk, and are then renamed.

    Raises:
        StorageError: cannot-write, with the system's reason (disk full, no permission ...).
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically; see ``atomic_file``."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON document atomically; numbers that are not finite are an error, not a new dialect."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def write_checked(path: Path, data: bytes) -> None:
    """Write a cache entry that can be told from a damaged one; see ``read_checked``."""
    write_bytes(path, hashlib.sha256(data).digest() + data)


def read_checked(path: Path) -> bytes | None:
    """Read what ``write_checked`` wrote; None when it is missing, unreadable, cut short or altered."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


class ArrayCache:
    """A folder of shards, each a checked ``.npz`` with arrays of one shape and the content hashes they belong to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shards(self) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Content hashes and (n, ...) arrays of each shard; a damaged shard is deleted and counts as absent."""
        for path in sorted(self._folder.glob("*.npz.checked")):
            data = read_checked(path)
            if data is None:
                path.unlink(missing_ok=True)
                continue
            try:
                with np.load(io.BytesIO(data), allow_pickle=False) as found:
                    shard = [row.tobytes().hex() for row in found["contents"]], found["arrays"]
            except (BadZipFile, EOFError, KeyError, ValueError):
                path.unlink(missing_ok=True)
                continue
            yield shard

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a shard; nothing for no arrays."""
        if not arrays:
            return
        shard = io.BytesIO()
        raw = b"".join(bytes.fromhex(content) for content in arrays)
        contents = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 32)
        np.savez(shard, contents=contents, arrays=np.stack(list(arrays.values())))
        write_checked(self._folder / f"{sha256(contents.tobytes())[:32]}.npz.checked", shard.getvalue())


class CachedRows:
    """Arrays by content hash: those of a cache that are wanted, and new ones, which go there shard by shard.

    Args:
        folder: of the cache; None for none.
        wanted: the hashes in question.
        rows_a_shard: what an interruption may cost.
    """

    def __init__(self, folder: Path | None, wanted: Collection[str], *, rows_a_shard: int = 2_000) -> None:
        self._cache = ArrayCache(folder) if folder else None
        self._wanted = wanted
        self._rows_a_shard = rows_a_shard
        self._fresh: dict[str, NDArray[Any]] = {}
        self.found: dict[str, NDArray[Any]] = {
            content: row
            for contents, rows in (self._cache.shards() if self._cache else ())
            for content, row in zip(contents, rows, strict=True)
            if content in wanted
        }

    def missing(self) -> list[str]:
        """The wanted that are not found."""
        return [content for content in self._wanted if content not in self.found]

    def add(self, content: str, row: NDArray[Any]) -> None:
        """Take a row in, unless it is there."""
        if content in self.found:
            return
        self.found[content] = self._fresh[content] = row
        if len(self._fresh) == self._rows_a_shard:
            self.save()

    def save(self) -> None:
        """Write what is new into the cache."""
        if self._cache:
            self._cache.add(self._fresh)
        self._fresh = {}


def room_for(shape: tuple[int, ...], dtype: np.typing.DTypeLike, *, memory_bytes: int) -> NDArray[Any]:
    """Room for an array: in memory, or in a file of the cache folder that has no name and goes with the process.

    The disk gives all of it at once: a map that it has no room for would end the process when it is written to.

    Args:
        shape: of the array.
        dtype: of its values.
        memory_bytes: what may lie in memory.

    Raises:
        StorageError: cannot-write, when the disk has no room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= memory_bytes:
        return np.empty(shape, dtype=dtype)
    folder = cache_folder()
    with writing(folder, elsewhere="set TELLAPART_CACHE to a folder that has more"):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  the map keeps it open
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


@contextmanager
def writing(path: Path, elsewhere: str = "choose another folder with --out") -> Iterator[None]:
    """Turn the system's errors while writing ``path`` into a StorageError; ``elsewhere`` is what to do about a full disk."""
    try:
        yield
    except OSError as error:
        hint = f"free some space, or {elsewhere}" if error.errno == errno.ENOSPC else ""
        raise StorageError("cannot-write", f"{path}: {error.strerror or error}", hint=hint) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Hold a run folder, so that two runs never write into one.

    The lock belongs to the process: it ends with it, however it ends.

    Raises:
        StorageError: run-locked, or cannot-write.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            hint = "wait for it, or choose another folder with --out"
            raise StorageError("run-locked", f"another run is using {folder}", hint=hint) from error
    try:
        yield folder
    finally:
        lock.release()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open a folder, and needs no such step."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
