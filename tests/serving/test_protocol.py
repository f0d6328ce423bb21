"""One connection without a network: what it holds, and what it waits for, by a clock that the test sets."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from tellapart.serving.guard import Guard
from tellapart.serving.protocol import LimitedProtocol
from tellapart.serving.settings import Limits, Settings

LIMITS = Limits(body_bytes_per_second=1000.0)
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Line(asyncio.Transport):
    """What a client sees of a connection; ``unread`` bytes of answers are still in this machine."""

    def __init__(self):
        super().__init__()
        self.written, self.unread, self.closed, self.aborted = b"", 0, False, False

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return self.unread

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def pause_reading(self):
        pass

    resume_reading = write_eof = pause_reading


class Counted:
    """Takes the place of measures."""

    def count_request(self, *_):
        pass


def never(*_):
    """An application that does not answer."""
    return asyncio.get_running_loop().create_future()


@pytest.fixture
def begin():
    """Makes a connection; called within an event loop."""

    def make(app=never):
        kind = type("Protocol", (LimitedProtocol,), {"limits": LIMITS, "measures": Counted()})
        config = uvicorn.Config(app, interface="asgi3", log_config=None)
        protocol = kind(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(Line())
        return protocol

    return make


def looks(protocol, *, until, hurry=False, each_second=b""):
    """The second at which a connection is ended, with bytes that come once a second; None where it is not."""
    began = protocol.loop.time()
    for quarter in range(1, 4 * until + 1):
        if each_second and quarter % 4 == 0:
            protocol.data_received(each_second)
        protocol.look(began + quarter / 4, hurry=hurry)
        if protocol.transport.is_closing():
            return quarter / 4
    return None


@pytest.mark.parametrize(
    ("sent", "each_second", "hurry", "ended"),
    [
        pytest.param(b"", b"", False, (10, 11), id="nothing"),
        pytest.param(bytes(900_000), b"", False, (20, 21), id="a burst and then nothing"),
        pytest.param(bytes(900_000), b"", True, (2, 3), id="a burst and then nothing, in the way"),
        pytest.param(b"", bytes(900), False, (10, 11), id="too slow"),
        pytest.param(b"", bytes(1100), False, (120, 121), id="fast enough, too long"),
        pytest.param(b"", bytes(2200), True, (120, 121), id="fast enough, in a hurry"),
    ],
)
def test_how_long_a_body_may_take(begin, sent, each_second, hurry, ended):
    async def run():
        protocol = begin()
        protocol.data_received(HEAD)
        protocol.data_received(sent)
        return looks(protocol, until=130, hurry=hurry, each_second=each_second)

    assert ended[0] <= asyncio.run(run()) <= ended[1]


@pytest.mark.parametrize(
    ("data", "closed_by_client", "ended"),
    [
        pytest.param(WHOLE, False, (120, 121), id="an answer"),
        pytest.param(WHOLE, True, (120, 121), id="an answer, and the connection is closed"),
        pytest.param(b"nonsense\r\n\r\n", False, (5, 6), id="a refusal"),
    ],
)
def test_an_answer_is_cut_off_when_nobody_reads_it(begin, data, closed_by_client, ended):
    async def run():
        protocol = begin()
        protocol.data_received(data)
        line = protocol.transport
        line.unread = 1000
        if closed_by_client:
            line.close()
        began = protocol.loop.time()
        for second in range(1, 200):
            protocol.look(began + second)
            if line.aborted:
                return second
        return None

    assert ended[0] <= asyncio.run(run()) <= ended[1]


def test_what_waits_for_an_earlier_request_is_not_late(begin):
    async def run():
        protocol = begin()
        protocol.data_received(WHOLE + HEAD)
        return looks(protocol, until=200)

    assert asyncio.run(run()) is None


def test_pipelined_requests_are_not_taken_in_without_end(begin):
    async def run():
        protocol = begin()
        protocol.data_received(WHOLE * 2000)
        assert len(protocol.pipeline) < 20
        assert protocol.transport.closed

    asyncio.run(run())


def test_headers_behind_a_body_are_passed_over(begin):
    async def run():
        protocol = begin()
        chunked = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        protocol.data_received(chunked + b"1\r\nx\r\n0\r\nX-Late: 7\r\n\r\n")
        assert [name for name, _ in protocol.scope["headers"]] == [b"host", b"transfer-encoding"]
        assert not protocol.transport.closed

    asyncio.run(run())


def test_there_is_hurry_while_bodies_hold_more_than_half_of_what_they_may():
    found = []

    async def app(_scope, receive, _send):
        for _ in range(2):
            await receive()
            found.append(guard.is_hurried())

    async def receive():
        return {"type": "http.request", "body": bytes(400), "more_body": True}

    guard = Guard(app, Settings(limits=Limits(buffered_bytes=1000), access_log=False), Counted(), lambda: False)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, receive, never))
    assert [*found, guard.is_hurried()] == [False, True, False]
