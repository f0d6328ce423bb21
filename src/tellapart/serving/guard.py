"""What stands before every route: who may ask, how much may be sent, and what no answer leaves without."""

import hashlib
import hmac
import ipaddress
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tellapart.errors import RequestError, TellapartError
from tellapart.serving.measures import Measures
from tellapart.serving.refusals import refusal_bytes, refusal_headers, refuse, status_of
from tellapart.serving.settings import Settings

LOG = logging.getLogger("tellapart.serving")
ACCESS_LOG = logging.getLogger("tellapart.serving.access")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_DIGITS = 20
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_BUSY_ROUTES = ("/predict", "/explain")
_WORKING_ROUTES = (*_BUSY_ROUTES, "/v2/models/")
"""Paths that begin so are refused before their body is read when there is no room."""

SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), geolocation=(), microphone=()"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """An ASGI application around the one that answers.

    Args:
        app: answers.
        settings: of the server.
        measures: where requests are counted.
        is_full: whether there is no room for another image.
    """

    def __init__(
        self, app: Application, settings: Settings, measures: Measures, is_full: Callable[[], bool]
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = settings.limits
        self._measures = measures
        self._is_full = is_full
        self._hosts = frozenset({"localhost", *(host.lower() for host in settings.allowed_hosts)})
        self._buffered_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        request = _Request(scope, send)
        try:
            headers = dict(scope["headers"])
            self._check_host(headers)
            if self._settings.token and not self._has_token(scope, headers):
                if await self._take_link(scope, request):
                    return
                raise refuse("token-needed")
            if scope["method"] not in _SAFE_METHODS:
                self._check_origin(headers)
                self._check_length(headers)
                if self._is_full() and scope["path"].startswith(_WORKING_ROUTES):
                    raise refuse("overloaded")
            await self._app(scope, self._counting(receive, request), request.send)
        except TellapartError as error:
            await request.refuse(error)
        except Exception:  # noqa: BLE001  whatever it is, the client is told nothing of it, and the log all
            LOG.error("internal error\n%s", traceback.format_exc())
            await request.refuse(RequestError("internal-error", "the server failed"))
        finally:
            self._buffered_bytes -= request.body_bytes
            self._report(scope, request)

    def is_hurried(self) -> bool:
        """Whether bodies hold more than half of what they may hold together."""
        return self._buffered_bytes > self._limits.buffered_bytes / 2

    def _counting(self, receive: Receive, request: "_Request") -> Receive:
        async def counted() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            request.body_bytes += size
            self._buffered_bytes += size
            if request.body_bytes > self._limits.body_bytes:
                raise refuse("body-too-large", f"the limit is {self._limits.body_bytes:,} bytes")
            if self._buffered_bytes > self._limits.buffered_bytes:
                raise refuse("overloaded")
            return message

        return counted

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MAX_DIGITS:  # int() itself refuses thousands of them
            raise refuse("bad-request", "Content-Length is no number that can be")
        if int(length) > self._limits.body_bytes:
            raise refuse("body-too-large", f"the limit is {self._limits.body_bytes:,} bytes")

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A name that is not ours may be a stranger's, made to point here after the browser had loaded its page."""
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if host not in self._hosts and not _is_address(host):
            raise refuse("wrong-host")

    @staticmethod
    def _check_origin(headers: dict[bytes, bytes]) -> None:
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            raise refuse("cross-site")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            raise refuse("cross-site")

    def _has_token(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and _same(given.strip(), self._settings.token.encode()):
            return True
        cookies = (cookie.strip() for cookie in headers.get(b"cookie", b"").split(b";"))
        expected = self._cookie(scope)
        return any(_same(cookie, expected) for cookie in cookies)

    def _cookie(self, scope: Scope) -> bytes:
        """Name and value; the port is in the name, for browsers send cookies to all servers of a host."""
        _, port = scope["server"]
        return b"tellapart_token_%d=%s" % (port, _cookie_value(self._settings.token))

    async def _take_link(self, scope: Scope, request: "_Request") -> bool:
        """Answer the link with the token by a cookie, and send the browser to the page without it."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not _same(given.encode("latin-1", "replace"), self._settings.token.encode()):
            return False
        headers = [
            (b"location", b"/"),
            (b"content-length", b"0"),
            (b"set-cookie", self._cookie(scope) + b"; HttpOnly; SameSite=Strict; Path=/"),
        ]
        await request.send({"type": "http.response.start", "status": 303, "headers": headers})
        await request.send({"type": "http.response.body", "body": b""})
        return True

    def _report(self, scope: Scope, request: "_Request") -> None:
        seconds = time.perf_counter() - request.began
        # Who was refused before a route was found asked for one of the busy ones, or for something unknown.
        known = scope["path"] if scope["path"] in _BUSY_ROUTES else "other"
        route = str(getattr(scope.get("route"), "path", known))
        method = scope["method"] if route != "other" else "-"
        self._measures.count_request(route, request.status, seconds)
        if self._settings.access_log:
            client = (scope.get("client") or ("-",))[0]
            ACCESS_LOG.info(
                "%s %s %s %d %.1f ms %d bytes",
                client,
                method,
                route,
                request.status,
                1e3 * seconds,
                request.body_bytes,
            )


LOCKED_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tellapart</title><h1>This page needs its link</h1>
<p>Open the link that was printed where the server was started: it ends in ?token= and some letters (token-needed).</p></html>
"""
"""What a person sees who opens the address alone."""


class _Request:
    """What becomes of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.began = time.perf_counter()
        self.status = 0
        self.body_bytes = 0
        self._path: str = scope["path"]
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass on a message, the first with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            names = {name for name, _ in given}
            message["headers"] = given + [header for header in SECURITY_HEADERS if header[0] not in names]
        await self._send(message)

    async def refuse(self, error: TellapartError) -> None:
        """Say why not, unless the answer has already begun."""
        if self.status:
            return
        body, headers = refusal_bytes(error, self._path), refusal_headers(error)
        if error.code == "token-needed" and self._path == "/":
            body, headers = LOCKED_PAGE, [(b"content-type", b"text/html; charset=utf-8"), *headers[1:]]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status_of(error), "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(value: str) -> str:
    """The host of a ``Host`` header, without its port, in lower case."""
    try:
        return (urlsplit(f"//{value}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is an IP address: no name, so nobody can have it point elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cookie_value(token: str) -> bytes:
    """Tells that somebody had the token, without being it."""
    return hashlib.sha256(b"tellapart cookie " + token.encode()).hexdigest().encode()


def _same(given: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(given, expected)
