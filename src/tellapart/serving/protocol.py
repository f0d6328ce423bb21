"""HTTP over one connection, with the deadlines and limits that uvicorn leaves out."""

import asyncio
from collections.abc import Callable
from typing import Any

from httptools import HttpParserError
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tellapart.serving.guard import SECURITY_HEADERS, Scope
from tellapart.serving.measures import Measures
from tellapart.serving.refusals import refusal_bytes, refusal_headers, refuse, status_of
from tellapart.serving.settings import Limits

_LOOK_SECONDS = 0.25
_CLOSING_SECONDS = 5.0
_DISCARDING_SECONDS = 5.0
_HURRY_SECONDS = 1.0
_IS_CLOSING = "tellapart.is_closing"
_HEAD_PIECE_BYTES = 1024
_SEPARATORS = len(b": \r\n")


class LimitedProtocol(HttpToolsProtocol):
    """One connection; ``limits`` and ``measures`` are set by the subclass that a server makes for itself.

    Attributes:
        limits: of the server.
        measures: where ends are counted.
        phase: of the request that came last: ``head`` while it is awaited or its headers arrive, ``body`` while its body does,
            ``rest`` while the body of a refused request is thrown away, ``answer`` while it is answered, ``idle`` after that.
        since: when the phase began, by the loop's clock; later where an earlier request kept it waiting.
        arrived: bytes that came in the phase.
    """

    limits: Limits
    measures: Measures

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._flushed = self.loop.time()
        self._was_refused = False
        self._close_after_body = False
        self._enter("head")

    def _enter(self, phase: str) -> None:
        self.phase, self.since, self.arrived = phase, self.loop.time(), 0
        self._window_since, self._window_bytes = self.since, 0
        self._bytes_since_body = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many already."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._end("overloaded")

    def data_received(self, data: bytes) -> None:
        """Take what came, and end it when it is too much.

        A head is read in small pieces: what follows it in the same piece is not counted as what follows it.
        """
        while data and not self.transport.is_closing():
            if self.phase == "idle":
                self._enter("head")
            size = _HEAD_PIECE_BYTES if self.phase == "head" else len(data)
            self._take(data[:size])
            data = data[size:]

    def _take(self, data: bytes) -> None:
        self.arrived += len(data)
        self._window_bytes += len(data)
        self._bytes_since_body += len(data)
        super().data_received(data)
        if self.phase == "head" and self.arrived > self.limits.head_bytes:
            self._end("head-too-large")
        elif self.phase == "body" and self._bytes_since_body > self.limits.head_bytes:
            self._end("head-too-large")  # the parser is inside of a trailer without an end
        elif self.phase == "rest" and self.arrived > self.limits.discarded_bytes:
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins, in the same bytes as the one before it or in bytes of its own."""
        if self.phase != "head":
            self._enter("head")
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind a body are counted and passed over."""
        self._count_head(len(name) + len(value) + _SEPARATORS)
        if self.phase == "head":
            super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.head_bytes:
            self._stop("head-too-large")

    def on_headers_complete(self) -> None:
        """The body begins."""
        self._enter("body")
        self.scope[_IS_CLOSING] = self.transport.is_closing  # type: ignore[literal-required]
        super().on_headers_complete()
        self.cycle.transport = _GentleTransport(self)  # type: ignore[assignment]
        if len(self.pipeline) > self.limits.pipelined:
            self._stop("overloaded")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._bytes_since_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._close_after_body:
            self.transport.close()
        self._enter("idle" if self.phase == "rest" else "answer")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is sent; what is left of a body that nobody read is thrown away."""
        if self.cycle.response_complete:  # otherwise an earlier request's, and the last goes on arriving
            self._enter("rest" if self.phase == "body" else "idle")
        super().on_response_complete()

    def close_gently(self) -> None:
        """Close when the body has been read: a client that is cut off while it sends may never see the answer."""
        if self.phase == "body" and self.cycle.response_complete:
            self._close_after_body = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  it names the parser's complaint
        """Refuse what is no HTTP."""
        self._end("bad-request")

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as an ordinary one."""

    def look(self, now: float, *, hurry: bool = False) -> None:
        """End the connection where a deadline has passed.

        Args:
            now: by the loop's clock.
            hurry: whether bodies together hold so much that one which stands still is not waited for.
        """
        if not self.transport.get_write_buffer_size():
            self._flushed = now
        elif now - self._flushed > (_CLOSING_SECONDS if self._was_refused else self.limits.body_seconds):
            self.transport.abort()  # whoever does not read the answer does not get the rest
        if self.transport.is_closing():
            return
        if self._has_earlier():
            self.since = self._window_since = now
        age = now - self.since
        if (self.phase == "head" and age > self.limits.head_seconds) or (
            self.phase == "body" and self._body_is_late(now, hurry)
        ):
            self._end("too-slow")
        elif self.phase == "rest" and age > _DISCARDING_SECONDS:
            self.transport.close()

    def _body_is_late(self, now: float, hurry: bool) -> bool:
        if now - self.since > self.limits.body_seconds:
            return True
        seconds = now - self._window_since
        grace = self.limits.body_grace_seconds
        if seconds <= (min(_HURRY_SECONDS, grace) if hurry else grace):
            return False
        late = self._window_bytes < seconds * self.limits.body_bytes_per_second
        self._window_since, self._window_bytes = now, 0
        return late

    def _has_earlier(self) -> bool:
        """Whether a request before the one that came last is still to be answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (self.phase == "head" and answering)

    def _stop(self, code: str) -> None:
        """End the connection from within the parser, which goes no further."""
        self._end(code)
        raise HttpParserError(code)

    def _end(self, code: str) -> None:
        """Close, after a refusal where nobody could take it for an answer to something else."""
        if self.transport.is_closing():
            return
        self._was_refused = True
        self.measures.count_request("connection", status_of(refuse(code)), 0.0)
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not (begun or self.phase == "rest" or self._has_earlier()):
            self.transport.write(_raw_refusal(code))
        self.transport.close()


class _GentleTransport:
    """What an answer is written to."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close_gently


def _raw_refusal(code: str) -> bytes:
    error = refuse(code)
    body = refusal_bytes(error)
    headers = [
        *refusal_headers(error),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *SECURITY_HEADERS,
    ]
    lines = [b"HTTP/1.1 %d %s" % (status_of(error), code.encode()), *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def wanted_by(scope: Scope) -> Callable[[], None]:
    """What raises ClientDisconnect as soon as the client of a request has gone: a look at the connection, and no waiting."""
    is_closing = scope[_IS_CLOSING]

    def require_wanted() -> None:
        if is_closing():
            raise ClientDisconnect

    return require_wanted


async def keep_deadlines(connections: set[Any], is_hurried: Callable[[], bool]) -> None:
    """Look at all connections again and again, for ever.

    Args:
        connections: of the server.
        is_hurried: whether those whose body stands still are in the way of others.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, LimitedProtocol):
                connection.look(now, hurry=is_hurried())
