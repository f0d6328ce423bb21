"""What a tar archive holds, and where: read as a stream, nothing unpacked, nothing in it trusted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK_BYTES = 512
_MAX_HEADER_BYTES = 2**20  # of a name or of a list of attributes; an image has none of this length
_FILE_TYPES = frozenset(b"0\x007")
_REFUSED_TYPES = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a device",
    ord("4"): "a device",
    ord("6"): "a pipe",
    ord("S"): "a sparse file",
}
_FOLDER, _LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL_ATTRIBUTES = b"5LKxg"


class TarDamage(Exception):  # noqa: N818  a state of the archive, which the caller puts into words
    """The archive cannot be read further; its text says where and why."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file in an archive.

    Attributes:
        name: as written in the archive; only a name, never a place on this machine.
        offset: of its first byte in the archive.
        size: in bytes.
        refused: what it is instead of a file; empty for a file.
    """

    name: str
    offset: int
    size: int
    refused: str = ""


def iter_tar(file: IO[bytes], length: int | None) -> Iterator[TarMember]:
    """Walk the headers of an archive. After each member the stream stands anywhere at or before that member's end.

    Args:
        file: at its beginning, and seekable forwards.
        length: of the archive in bytes; None where nobody knows.

    Raises:
        TarDamage: a header is broken, or the archive ends too early.

    Source: POSIX.1-2001, pax interchange format; GNU tar manual, "Basic Tar Format".
    """
    position, name, attributes = 0, "", {}
    while header := _read_header(file, position):
        size, kind = _number(header[124:136], position), header[156]
        data = position + BLOCK_BYTES
        if kind in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL_ATTRIBUTES):
            text = _read_extension(file, data, size, position)
            if kind == _LONG_NAME:
                name = _text(text.rstrip(b"\0"))
            elif kind == _ATTRIBUTES:
                attributes = _parse_attributes(text, position)
        else:
            size = _size(attributes, size, position)
            if length is not None and data + size > length:
                what = f"{_name(header, name, attributes)} should have {size:,} bytes"
                raise TarDamage(f"it ends too early: {what}, and {max(0, length - data):,} are left")
            if kind != _FOLDER:
                refused = _refusal(kind, attributes)
                yield TarMember(_name(header, name, attributes), data, size, refused)
            name, attributes = "", {}
        position = data + -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _read_header(file: IO[bytes], position: int) -> bytes:
    """A header; nothing at the end of the archive."""
    file.seek(position)
    header = file.read(BLOCK_BYTES)
    if not header.strip(b"\0"):
        return b""
    if len(header) < BLOCK_BYTES:
        raise TarDamage(f"it ends within the header at byte {position:,}")
    said = _number(header[148:156], position)
    if said != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarDamage(f"the header at byte {position:,} is broken")
    return header


def _read_extension(file: IO[bytes], start: int, size: int, position: int) -> bytes:
    if size > _MAX_HEADER_BYTES:
        raise TarDamage(f"the header at byte {position:,} asks for a name of {size:,} bytes")
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise TarDamage(f"it ends within the header at byte {position:,}")
    return data


def _number(field: bytes, position: int) -> int:
    """A number in octal digits, or in binary where its first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            raise TarDamage(f"the header at byte {position:,} has a negative size")
        return value
    digits = field.strip(b" \0") or b"0"
    if not all(ord("0") <= digit <= ord("7") for digit in digits):
        raise TarDamage(f"the header at byte {position:,} is broken")
    return int(digits, 8)


def _parse_attributes(data: bytes, position: int) -> dict[str, str]:
    """Lines of ``length key=value``; the length counts itself."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, _ = data[:20].partition(b" ")
        if not length.isdigit() or not len(length) + 3 <= int(length) <= len(data):
            raise TarDamage(f"the attributes at byte {position:,} are broken")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[_text(key)] = _text(value)
        data = data[int(length) :]
    return found


def _size(attributes: dict[str, str], size: int, position: int) -> int:
    if "size" not in attributes:
        return size
    if not (attributes["size"].isascii() and attributes["size"].isdigit() and len(attributes["size"]) < 20):
        raise TarDamage(f"the attributes at byte {position:,} are broken")
    return int(attributes["size"])


def _refusal(kind: int, attributes: dict[str, str]) -> str:
    if any(key.startswith("GNU.sparse") for key in attributes):
        return "a sparse file"
    return "" if kind in _FILE_TYPES else _REFUSED_TYPES.get(kind, "of an unknown kind")


def _name(header: bytes, long_name: str, attributes: dict[str, str]) -> str:
    if "path" in attributes:
        return attributes["path"]
    if long_name:
        return long_name
    name = _text(header[:100].split(b"\0")[0])
    prefix = _text(header[345:500].split(b"\0")[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
