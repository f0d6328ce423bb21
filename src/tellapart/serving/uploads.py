"""From a request's body to images: raw bytes or multipart, in memory, counted while they arrive."""

import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tellapart.serving.refusals import refuse
from tellapart.serving.settings import Limits

_MAX_NAME = 1024


@dataclass(slots=True)
class Upload:
    """One image as it was sent: the name it was given, empty for none, and its bytes."""

    name: str
    data: bytes = field(repr=False)


async def read_uploads(chunks: AsyncIterator[bytes], content_type: str, limits: Limits) -> list[Upload]:
    """The images of a body: each file of a multipart form, or the whole body where it is none.

    Raises:
        RequestError: bad-request, too-many-parts.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return [Upload("", b"".join([chunk async for chunk in chunks]))]
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise refuse("bad-request", "a multipart request needs a boundary of 1 to 70 characters")
    form = _Form(limits)
    parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
    try:
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise refuse("bad-request", "the multipart body is malformed") from None
    if not form.ended:
        raise refuse("bad-request", "the multipart body ends before its last boundary")
    if not form.uploads:
        raise refuse("bad-request", "the multipart body has no file")
    return form.uploads


class _Form:
    """What a multipart parser reports, put together; parts that are no files are counted and passed over."""

    def __init__(self, limits: Limits) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._limits = limits
        self._parts = 0
        self._field, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._data = bytearray()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._limits.parts:
            raise refuse("too-many-parts", f"more than {self._limits.parts} parts")
        self._disposition, self._data = b"", bytearray()

    def _header_end(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is not None:
            self.uploads.append(Upload(_text(name), bytes(self._data)))
        self._data = bytearray()

    def _all(self) -> None:
        self.ended = True


def _text(name: bytes) -> str:
    """A file's name; browsers write quotes and line ends in it as in an address."""
    text = name.decode("utf-8", errors="replace")[:_MAX_NAME]
    for escaped in ("%22", "%0D", "%0A"):
        text = text.replace(escaped, urllib.parse.unquote(escaped))
    return text
