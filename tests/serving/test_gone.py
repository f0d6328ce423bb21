"""Clients that go away in the middle of a request: their work is dropped and counted, and the log has nothing to say."""

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import time

import numpy as np
import pytest
from serving_kit import Server, flat, until
from starlette.requests import ClientDisconnect
from tiny import SIDE_PX

from tellapart.serving.answers import Room
from tellapart.serving.explaining import Explainer
from tellapart.serving.shelf import Shelf

WORKERS = len(os.sched_getaffinity(0))
FILE = {"name": "files", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(flat("green")).decode()]}
REQUESTS = {
    "/predict": flat("green"),
    "/explain": flat("green"),
    "/v2/models/colors/infer": json.dumps({"inputs": [FILE]}).encode(),
}


@pytest.fixture(scope="module")
def server(model_path):
    with Server(model_path, limits="decode_seconds=60") as server:
        yield server
        assert server.end() == 0
    assert not [line for line in server.log if "Traceback" in line or "rror" in line]


def counted(server, name, **labels):
    """A counter's sum over all that have the labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    lines = [line for line in lines if line.startswith(f"{name}{{") and all(label in line for label in wanted)]
    return sum(float(line.split()[-1]) for line in lines)


def send_and_go(server, path, share):
    body = REQUESTS[path]
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head + body[: int(share * len(body))])
        time.sleep(0.1)  # a client that is gone before it is read is gone, too


def route(path):
    return path.replace("colors", "{name}")


@pytest.mark.parametrize("path", REQUESTS)
def test_in_the_middle_of_the_body(server, path):
    before = counted(server, "tellapart_requests_total", route=route(path), outcome="disconnected")
    answered = counted(server, "tellapart_answers_total")
    send_and_go(server, path, 0.5)
    until(
        lambda: (
            counted(server, "tellapart_requests_total", route=route(path), outcome="disconnected") == before + 1
        )
    )
    assert server.has_queue(0)
    assert counted(server, "tellapart_answers_total") == answered


@pytest.mark.parametrize("path", REQUESTS)
def test_while_waiting_for_a_decoder(server, path):
    before = counted(server, "tellapart_requests_total", route=route(path), outcome="disconnected")
    answered = counted(server, "tellapart_answers_total")

    def ask():
        with server.client() as client:
            return client.post("/predict", content=flat("red")).status_code

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as threads, contextlib.ExitStack() as going_on:
        for number in server.decoders():
            os.kill(number, signal.SIGSTOP)
            going_on.callback(os.kill, number, signal.SIGCONT)
        busy = [threads.submit(ask) for _ in range(WORKERS)]
        until(lambda: server.has_queue(WORKERS))
        send_and_go(server, path, 1)
        going_on.close()
        assert [one.result() for one in busy] == [200] * WORKERS
    until(
        lambda: (
            counted(server, "tellapart_requests_total", route=route(path), outcome="disconnected") == before + 1
        )
    )
    assert server.has_queue(0)
    assert counted(server, "tellapart_answers_total") == answered + WORKERS


class Decoders:
    """Takes the place of the pool."""

    async def decode(self, *_):
        return np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)


def test_while_another_is_explained(model_path):
    """Who has gone when the turn comes is not explained."""
    model = Shelf([str(model_path)], 20.0).get()
    explainer = Explainer(Decoders(), Room(4), 60.0)
    picture, explained = explainer._picture, []
    explainer._picture = lambda *given: explained.append(given) or picture(*given)
    gone = []

    def require_wanted():
        if gone:
            raise ClientDisconnect

    async def run():
        first = asyncio.create_task(explainer.explain(model, b"a", ""))
        second = asyncio.create_task(explainer.explain(model, b"b", "", require_wanted))
        await asyncio.sleep(0)
        gone.append(True)
        answers = await asyncio.gather(first, second, return_exceptions=True)
        explainer.close()
        return answers

    first, second = asyncio.run(run())
    assert first[:4] == b"\x89PNG"
    assert isinstance(second, ClientDisconnect)
    assert len(explained) == 1
