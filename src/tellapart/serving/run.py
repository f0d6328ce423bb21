"""serve: models to a server, until it is told to end."""

import asyncio
import contextlib
import gc
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from tellapart.errors import RequestError
from tellapart.imaging.pool import cpu_count
from tellapart.serving.answers import Answers, Room
from tellapart.serving.app import build_app
from tellapart.serving.collecting import Collector
from tellapart.serving.decoders import Decoders
from tellapart.serving.explaining import Explainer
from tellapart.serving.guard import ACCESS_LOG, LOG, Guard, is_local
from tellapart.serving.measures import Measures
from tellapart.serving.protocol import LimitedProtocol, keep_deadlines
from tellapart.serving.settings import Settings
from tellapart.serving.shelf import Shelf

_BACKLOG = 1024
_KEEP_ALIVE_SECONDS = 30
_TOKEN_LENGTH = 16
_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{_TOKEN_LENGTH},200}}")
_HOW_TO_MAKE_ONE = "make one: python -c 'import secrets; print(secrets.token_urlsafe(24))' > FILE"


def make_token() -> str:
    """A token nobody guesses."""
    return secrets.token_urlsafe(24)


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        RequestError: bad-token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain characters"
        raise RequestError("bad-token", f"{path}: {reason}", hint=_HOW_TO_MAKE_ONE) from error
    if not _TOKEN.fullmatch(token):
        message = f"{path}: expected {_TOKEN_LENGTH} or more letters, digits, - or _"
        raise RequestError("bad-token", message, hint=_HOW_TO_MAKE_ONE)
    return token


def needs_token(host: str) -> bool:
    """Whether others than this machine can reach the address."""
    return not is_local(host)


def serve(models: Sequence[str], settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve models until the process is told to end, then finish what is under way.

    Args:
        models: model files, each a path or ``NAME=PATH``.
        settings: how to serve.
        on_ready: called with the page's address once requests are answered.

    Raises:
        ModelError: a file cannot be used.
        RequestError: unsupported-system, cannot-listen, model-names-clash, bad-token.
        StorageError: the folder to collect in cannot be written.
    """
    if os.name != "posix":
        raise RequestError("unsupported-system", f"the server cannot run on {sys.platform}")
    _begin_log(settings)
    if needs_token(settings.host) and not settings.token:
        raise RequestError("bad-token", f"others can reach {settings.host}, so a token is needed")
    shelf = Shelf(models, settings.limits.inference_seconds)
    with _listening(settings) as listener:
        asyncio.run(_serve(shelf, settings, listener, on_ready))


def _begin_log(settings: Settings) -> None:
    """One line an event on standard error: requests where they are wanted, what becomes of models, failures."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for log, level in ((LOG, logging.INFO), (logging.getLogger("uvicorn.error"), logging.ERROR)):
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)
    ACCESS_LOG.setLevel(logging.INFO if settings.access_log else logging.WARNING)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    try:
        # Of the protocol TCP by name: asyncio sends small answers without delay only on sockets that say so.
        (family, kind, protocol, _, place), *_ = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(settings, error) from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        yield listener


def _cannot_listen(settings: Settings, error: OSError) -> RequestError:
    message = f"{settings.host}, port {settings.port}: {error.strerror or error}"
    return RequestError("cannot-listen", message, hint="choose another with --host and --port")


async def _serve(
    shelf: Shelf, settings: Settings, listener: socket.socket, on_ready: Callable[[str], None]
) -> None:
    limits = settings.limits
    room = Room(limits.queue_images)
    measures = Measures(shelf, lambda: room.taken, lambda: decoders.alive)
    decoders = Decoders(
        cpu_count(), limits=limits.image, seconds=limits.decode_seconds, on_loss=measures.count_loss
    )
    collector = Collector(settings.collect, decoders)
    explainer = Explainer(decoders, Room(limits.explain_requests), limits.explain_seconds)
    app = build_app(shelf, Answers(decoders, room, measures, collector), explainer, measures, settings)
    guard = Guard(app, settings, measures, lambda: room.full)
    protocol = type("Protocol", (LimitedProtocol,), {"limits": limits, "measures": measures})
    config = uvicorn.Config(
        guard,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(limits.shutdown_seconds),
    )
    server = _Server(config)
    await decoders.start()
    tasks = [
        asyncio.create_task(shelf.watch(limits.look_seconds)),
        asyncio.create_task(keep_deadlines(server.server_state.connections, guard.is_hurried)),
    ]
    gc.collect()
    gc.freeze()  # what is there now stays: no collection stops the server to look through it
    try:
        on_ready(address(settings, listener.getsockname()[1]))
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        explainer.close()
        await collector.close()
        await decoders.close()


def address(settings: Settings, port: int) -> str:
    """The page's address; with the token, where one is demanded."""
    host = _own_address() if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104  compared, not bound
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={settings.token}" if settings.token else "")


def _own_address() -> str:
    """The address others reach this machine at; the loopback where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        try:
            line.connect(("192.0.2.1", 9))  # chooses a way and sends nothing
            return str(line.getsockname()[0])
        except OSError:
            return "127.0.0.1"


class _Server(uvicorn.Server):
    """A server that ends when asked, and not by the signal that asked."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask for the end on the first Ctrl-C or SIGTERM; do not wait on a second Ctrl-C."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
