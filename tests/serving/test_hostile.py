"""Requests that mean no good, or are broken: each is refused with a code, none hurts the server or anybody else."""

import contextlib
import io
import select
import socket
import time

import httpx
import pytest
from PIL import Image
from serving_kit import Server, flat, until

SIZES = "head_bytes=8192, body_bytes=300_000, discarded_bytes=100_000, connections=120, buffered_bytes=700_000, "
PATIENT = SIZES + "head_seconds=60, body_seconds=60, body_grace_seconds=60, body_bytes_per_second=0"
HASTY = SIZES + "head_seconds=0.7, body_seconds=60, body_grace_seconds=0.5, body_bytes_per_second=2000"
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /models HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n\r\n"
RED = flat("red")


@pytest.fixture(scope="module")
def server(model_path):
    """One that waits, so that a machine which stands still for a moment changes nothing."""
    with Server(model_path, limits=PATIENT) as server:
        yield server
        found = _end(server)
    assert found["refused"] > 1
    assert found["client-error"] > 20
    assert "too-slow" not in found


@pytest.fixture(scope="module")
def hasty(model_path):
    """One that does not wait."""
    with Server(model_path, limits=HASTY) as server:
        yield server
        found = _end(server)
    assert found["too-slow"] > 3


def _end(server):
    found = server.outcomes()
    assert found["ok"] > 0
    assert "server-error" not in found
    assert server.end() == 0
    assert "internal error" not in "".join(server.log)
    assert "Traceback" not in "".join(server.log)
    return found


@pytest.fixture(autouse=True)
def _unharmed(server, hasty):
    """Whatever a test did, the next request is answered."""
    yield
    for one in (server, hasty):
        with one.client() as client:
            assert client.post("/predict", content=RED).json()["predictions"][0]["label"] == "red"


def length(n):
    return b"Content-Length: %d\r\n" % n


def multipart(boundary, body):
    head = b"Content-Type: multipart/form-data; boundary=%s\r\n" % boundary
    return HEAD + head + length(len(body)) + CLOSE + body


def part(name=b'name="f"; filename="a.png"', data=RED, headers=b""):
    return b"--B\r\nContent-Disposition: form-data; " + name + b"\r\n" + headers + b"\r\n" + data + b"\r\n"


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        pytest.param([HEAD + length(10**9) + CLOSE], 413, "body-too-large", id="oversize, not even sent"),
        pytest.param(
            [HEAD + length(10**9) + b"Expect: 100-continue\r\n" + CLOSE], 413, "body-too-large", id="asked before"
        ),
        pytest.param([HEAD + length(300_001) + CLOSE], 413, "body-too-large", id="a byte too long"),
        pytest.param([HEAD + length(10**30) + CLOSE], 400, "bad-request", id="a length beyond all numbers"),
        pytest.param(
            [HEAD + b"Content-Length: " + b"0" * 5000 + b"5\r\n" + CLOSE + RED[:5]],
            400,
            "bad-request",
            id="a length of thousands of digits",
        ),
        pytest.param([HEAD + b"Content-Length: -5\r\n" + CLOSE], 400, "bad-request", id="a negative length"),
        pytest.param([HEAD + b"Content-Length: 5, 6\r\n" + CLOSE], 400, "bad-request", id="two lengths"),
        pytest.param([HEAD + length(5) + CHUNKED + CLOSE], 400, "bad-request", id="smuggling"),
        pytest.param([HEAD + length(500) + CLOSE + b"x"], 408, "too-slow", id="a length that lies"),
        pytest.param(
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"], 400, "bad-request", id="no chunk size"
        ),
        pytest.param(
            [HEAD + CHUNKED + CLOSE + (b"10000\r\n" + bytes(65536) + b"\r\n") * 5 + b"0\r\n\r\n"],
            413,
            "body-too-large",
            id="more chunks than allowed",
        ),
        pytest.param([GET + b"X: " + b"a" * 9000], 431, "head-too-large", id="a long header"),
        pytest.param([GET + b"X: y\r\n" * 2000], 431, "head-too-large", id="many headers"),
        pytest.param([GET + b"X: y\r\n" * 3000 + CLOSE], 431, "head-too-large", id="many headers in one read"),
        pytest.param(
            [HEAD + CHUNKED + CLOSE + b"0\r\n" + b"X: y\r\n" * 6000 + b"\r\n"],
            431,
            "head-too-large",
            id="many headers behind the body",
        ),
        pytest.param(
            [HEAD + CHUNKED + CLOSE + b"0\r\nX: ", *[b"y" * 5000] * 2], 431, "head-too-large", id="one behind it"
        ),
        pytest.param(
            [HEAD + CHUNKED + CLOSE + b"0\r\nX: " + b"y" * 10_000],
            431,
            "head-too-large",
            id="one behind it, in the same bytes",
        ),
        pytest.param([GET], 408, "too-slow", id="headers without an end"),
        pytest.param([b""], 408, "too-slow", id="nothing at all"),
        pytest.param([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"], 400, "bad-request", id="TLS"),
        pytest.param([b"hello\r\n\r\n"], 400, "bad-request", id="no HTTP"),
        pytest.param([b"GET /models HTTP/1.1\r\n" + CLOSE], 421, "wrong-host", id="no host"),
        pytest.param([b"GET /models HTTP/1.1\r\nHost: [::1\r\n" + CLOSE], 421, "wrong-host", id="broken host"),
        pytest.param(
            [b"GET /models HTTP/1.1\r\nHost: localhost.evil.example\r\n" + CLOSE],
            421,
            "wrong-host",
            id="rebinding",
        ),
        pytest.param(
            [b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 400, "bad-request", id="CONNECT"
        ),
        pytest.param([b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 404, "no-such-route", id="OPTIONS *"),
        pytest.param([b"TRACE /models HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 405, "wrong-method", id="TRACE"),
        pytest.param(
            [b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 404, "no-such-route", id="dots"
        ),
        pytest.param(
            [b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 404, "no-such-route", id="slashes"
        ),
        pytest.param(
            [b"GET /page.css%2f..%2f..%2frun.py HTTP/1.1\r\nHost: localhost\r\n" + CLOSE],
            404,
            "no-such-route",
            id="escaped slashes",
        ),
        pytest.param([b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE], 404, "no-such-route", id="zero byte"),
        pytest.param(
            [b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE],
            421,
            "wrong-host",
            id="proxy",
        ),
        pytest.param([multipart(b"B", b"")], 400, "bad-request", id="empty form"),
        pytest.param([multipart(b"B", b"--B--\r\n")], 400, "bad-request", id="form without parts"),
        pytest.param([multipart(b"B", part())], 400, "bad-request", id="form without an end"),
        pytest.param([multipart(b"C", part() + b"--B--\r\n")], 400, "bad-request", id="other boundary"),
        pytest.param([multipart(b"B" * 71, part())], 400, "bad-request", id="long boundary"),
        pytest.param([multipart(b"B", part(name=b'name="f"') + b"--B--\r\n")], 400, "bad-request", id="no file"),
        pytest.param(
            [multipart(b"B", part(headers=b"X: " + b"y" * 10_000 + b"\r\n") + b"--B--\r\n")],
            400,
            "bad-request",
            id="long header of a part",
        ),
        pytest.param(
            [multipart(b"B", part(data=b"x") * 33 + b"--B--\r\n")], 413, "too-many-parts", id="too many parts"
        ),
    ],
)
def test_refused(server, hasty, parts, status, code):
    answer = (hasty if code == "too-slow" else server).talk(*parts)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b'"%s"' % code.encode() in answer
    assert b"content-security-policy" in answer
    assert b"uvicorn" not in answer


def test_what_comes_after_a_length_too_short_is_no_request(server):
    answer = server.talk(HEAD + length(5) + b"\r\n", RED[:5], RED[5:], pause=0.2)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answer


def test_who_is_refused_while_sending_sees_the_refusal(server):
    """Though the connection is to be closed: a reset would take the answer away."""
    for _ in range(5):
        answer = server.talk(HEAD + length(400_000) + CLOSE, *[bytes(10_000)] * 9, pause=0.01)
        assert b"body-too-large" in answer


def test_bodies_together_are_limited(server):
    """Each of the three is within its limit; two at a time are within that of all."""
    with contextlib.ExitStack() as stack:
        lines = []
        for _ in range(3):
            lines.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
            lines[-1].sendall(HEAD + length(290_000) + b"\r\n" + bytes(280_000))
        until(lambda: select.select(lines, [], [], 1)[0])
        (refused,) = select.select(lines, [], [], 0.2)[0]
        answer = b""
        while b"}}" not in answer and (data := refused.recv(65536)):
            answer += data
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"overloaded" in answer


@pytest.mark.parametrize("sent", [1000, 290_000], ids=["stands still", "a burst and then nothing"])
def test_a_body_that_stands_still_is_not_waited_for(hasty, sent):
    """However much of it came before; a whole body may take a minute."""
    answer = hasty.talk(HEAD + length(300_000) + b"\r\n" + bytes(sent))
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_image_of_too_many_pixels_has_a_row(server):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    with server.client() as client:
        (row,) = client.post("/predict", content=file.getvalue()).json()["predictions"]
    assert row["error"] == "too-many-pixels"


def test_endless_chunks_are_cut_off(server):
    before = server.memory_mib()
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line, contextlib.suppress(OSError):
        line.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while sent < 200 * 2**20:
            line.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent += 65536
    assert sent < 20 * 2**20
    assert server.memory_mib() < before + 64


@pytest.mark.parametrize(
    "head",
    [b"GET /models HTTP/1.1\r\nHost: localhost\r\nX: ", HEAD + length(200_000) + b"\r\n"],
    ids=["head", "body"],
)
def test_trickle_is_cut_off(hasty, head):
    """A byte now and then keeps no connection."""
    deadline = time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", hasty.port)) as line:
        line.sendall(head)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                line.sendall(b"x")
                time.sleep(0.05)
            pytest.fail("it was kept")


def test_slow_clients_do_not_hurt_others(server):
    head = HEAD + length(200_000) + b"\r\n"
    lines = []
    with contextlib.ExitStack() as stack:
        for i in range(100):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            line.sendall(head if i % 2 else head[: i % len(head)])
            lines.append(line)
        with server.client() as client:
            for _ in range(30):
                assert client.post("/predict", content=RED).status_code == 200
        for line in lines:
            line.setblocking(False)
            with pytest.raises(BlockingIOError):  # they are still there
                line.recv(1)


def test_connections_are_limited(server):
    with contextlib.ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            for _ in range(125)
        ]
        answer = lines[-1].recv(4096)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer.lower()
    until(lambda: is_let_in(server))  # the server hears of the closed ones one by one


def is_let_in(server):
    with contextlib.suppress(httpx.TransportError), server.client() as client:
        return client.get("/models").status_code == 200
    return False


def test_pipelined_requests_are_answered_in_order(server):
    one = HEAD + length(len(RED)) + b"\r\n" + RED
    answer = server.talk(one * 3 + GET + CLOSE)
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.count(b'"label":"red"') == 3


def test_a_pipelined_body_may_come_after_the_answer_to_the_request_before(server):
    """It is no rest of that one, which would be thrown away and cut off."""
    one = HEAD + length(len(RED)) + b"\r\n" + RED
    answer = server.talk(one + HEAD + length(250_000) + CLOSE, *[bytes(50_000)] * 5, pause=0.15)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b'"not-an-image"' in answer


def test_pipelined_requests_are_limited(server):
    answer = server.talk((GET + b"\r\n") * 2000)
    assert answer.count(b"HTTP/1.1 ") < 20
