"""What the server withstands: crashes of decoders, more than it can do, new model versions, being told to end."""

import concurrent.futures
import contextlib
import io
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving_kit import Server, flat, until, write_model
from tiny import CLASS_NAMES, tiny_model

from tellapart.inference.predict import load
from tellapart.storage import sha256

WORKERS = len(os.sched_getaffinity(0))


def colors(n, seed=0):
    """Pictures of as many colors, and as many answers."""
    rng = np.random.default_rng(seed)
    pictures = []
    for color in rng.integers(0, 256, (n, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(np.broadcast_to(color, (20, 20, 3)).copy()).save(file, "PNG")
        pictures.append(file.getvalue())
    return pictures


def predicted(client, content, query=""):
    answer = client.post(f"/predict{query}", content=content)
    return answer.status_code, answer.json()


def test_each_answer_belongs_to_its_image(server, model_path):
    """Some 3,000 answers under load, one by one and in forms."""
    pictures = colors(60)
    expected = [[round(p, 5) for p in said.probs] for said in load(model_path).predict(pictures)]
    assert len({tuple(probs) for probs in expected}) == 60

    def ask(seed):
        rng = np.random.default_rng(seed)
        wrong = []
        with server.client() as client:
            for _ in range(42):
                chosen = rng.integers(0, 60, 10)
                files = [("f", (str(i), pictures[i])) for i in chosen]
                rows = client.post("/predict?probs=true", files=files).json()["predictions"]
                assert [row["path"] for row in rows] == [str(i) for i in chosen]
                for i in chosen[:2]:
                    rows += predicted(client, pictures[i], "?probs=true")[1]["predictions"]
                for i, row in zip([*chosen, *chosen[:2]], rows, strict=True):
                    if [round(row[f"prob_{name}"], 5) for name in CLASS_NAMES] != expected[i]:
                        wrong.append((i, row))
        return 42 * 12, wrong

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        answered = list(threads.map(ask, range(6)))
    assert sum(count for count, _ in answered) == 3024
    assert [wrong for _, wrong in answered if wrong] == []


LIMITS = "decode_seconds=60, queue_images=4, look_seconds=0.02, shutdown_seconds=10"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server that is harmed, and its model's path."""
    path = write_model(tmp_path_factory.mktemp("runs") / "own/model.onnx", tiny_model())
    with Server(path, limits=LIMITS) as server:
        server.path = path
        yield server
        assert server.end() == 0
    assert "Traceback" not in "".join(server.log)


@pytest.fixture
def doomed(model_path):
    """A server that is to end."""
    with Server(model_path, limits=LIMITS) as server:
        yield server


@contextlib.contextmanager
def stopped_decoders(server):
    """Decoders that take an image and do not go on."""
    stopped = server.decoders()
    assert len(stopped) == WORKERS
    for number in stopped:
        os.kill(number, signal.SIGSTOP)
    yield stopped
    for number in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


def labels_again(server):
    with server.client() as client:
        return [predicted(client, flat(name))[1]["predictions"][0]["label"] for name in CLASS_NAMES]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_costs_one_image(own, number):
    with (
        stopped_decoders(own) as stopped,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        own.client() as client,
    ):
        asked = threads.submit(predicted, client, flat("red"))
        until(lambda: own.has_queue(1))
        time.sleep(0.3)  # until the image is with a decoder
        for decoder in stopped:
            os.kill(decoder, number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(decoder, signal.SIGCONT)
        status, answer = asked.result()
    (row,) = answer["predictions"]
    assert (status, row["verdict"], row["error"]) == (200, "error", "decoder-crashed")
    # The idle one's death is seen when its turn comes.
    until(lambda: labels_again(own) and not set(own.decoders()) & set(stopped))
    assert labels_again(own) == list(CLASS_NAMES)


def test_decoders_give_way_to_answers(own):
    wanted = {min(19, os.getpriority(os.PRIO_PROCESS, own.process.pid) + 1)}
    # One that has just been started may still be importing.
    until(lambda: {os.getpriority(os.PRIO_PROCESS, number) for number in own.decoders()} == wanted)


def test_crashes_under_load(own):
    """Decoders are killed again and again; every request is answered, rightly or with the code."""
    names = [CLASS_NAMES[i % 3] for i in range(300)]

    def ask(chosen):
        with own.client() as client:
            return [(name, *predicted(client, flat(name))) for name in chosen]

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, names[i::2]) for i in range(2)]
        killed = 0
        while not all(one.done() for one in asked) and killed < 20:
            for decoder in own.decoders()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(decoder, signal.SIGSEGV)
                    killed += 1
            time.sleep(0.1)
    answers = [answer for one in asked for answer in one.result()]
    assert len(answers) == 300
    assert {status for _, status, _ in answers} == {200}
    for name, _, answer in answers:
        (row,) = answer["predictions"]
        assert (row["label"], row["error"]) in [(name, None), (None, "decoder-crashed")]
    assert labels_again(own) == list(CLASS_NAMES)


def test_a_decoder_that_hangs_is_replaced(model_path):
    with Server(model_path, limits="decode_seconds=2.0") as server:
        with stopped_decoders(server), server.client() as client:
            began = time.monotonic()
            _, answer = predicted(client, flat("red"))
            assert answer["predictions"][0]["error"] == "decode-timeout"
            assert time.monotonic() - began > 1.9
        with server.client() as client:
            assert 'tellapart_decoders_lost_total{code="decode-timeout"} 1.0' in client.get("/metrics").text
        assert labels_again(server) == list(CLASS_NAMES)
        assert server.end() == 0


def test_beyond_the_queue_is_refused_at_once(own):
    """The refusal comes before the body is sent; those who wait are answered; after that there is room again."""
    with concurrent.futures.ThreadPoolExecutor(4) as threads, stopped_decoders(own):
        asked = [threads.submit(lambda: predicted(own.client(), flat("green"))) for _ in range(4)]
        until(lambda: own.has_queue(4))
        answer = own.talk(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", seconds=2
        )
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer.lower()
        assert b'"overloaded"' in answer
        with own.client() as client:
            refused = client.post("/v2/models/own/infer", content=b"x")
            assert (refused.status_code, refused.json()["error"][:12]) == (503, "[overloaded]")
            assert client.get("/model").status_code == 200
        assert not any(one.done() for one in asked)
    for one in asked:
        assert one.result()[0] == 200
    assert labels_again(own) == list(CLASS_NAMES)


@pytest.mark.skipif(WORKERS > 3, reason="the queue of this server is as long as its decoders are many")
def test_who_has_gone_costs_no_decoding(own):
    """An image whose client went away while it waited for a decoder is not decoded."""
    before = own.outcomes().get("disconnected", 0)
    body = flat("green")
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as threads, stopped_decoders(own) as stopped:
        busy = [threads.submit(lambda: predicted(own.client(), flat("red"))) for _ in range(WORKERS)]
        until(lambda: own.has_queue(WORKERS))
        for i in range(4 - WORKERS):
            with socket.create_connection(("127.0.0.1", own.port)) as line:
                line.sendall(head + body)
                until(lambda n=WORKERS + i + 1: own.has_queue(n))
        answered = _answers(own)
        for number in stopped:
            os.kill(number, signal.SIGCONT)
        assert [one.result()[0] for one in busy] == [200] * WORKERS
    assert labels_again(own) == list(CLASS_NAMES)
    assert own.outcomes()["disconnected"] - before == 4 - WORKERS
    assert _answers(own) - answered == WORKERS + len(CLASS_NAMES)


def _answers(server):
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tellapart_answers_total{"))


def test_fifty_new_versions_without_a_failed_request(own):
    """Classes change places with each version; each answer is that of the version it names."""
    models = [tiny_model(class_names=names) for names in (CLASS_NAMES, CLASS_NAMES[::-1])]
    label_of = {}
    for model in models:
        label_of[sha256(model.onnx_bytes)[:12]] = model.card.class_names[0]
    done = threading.Event()

    def ask():
        answers = []
        with own.client() as client:
            while not done.is_set():
                answers.append(predicted(client, flat("red")))
        return answers

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(ask) for _ in range(3)]
        with own.client() as client:
            for i in range(1, 51):
                write_model(own.path, models[i % 2])
                version = list(label_of)[i % 2]
                until(lambda: client.get("/models").json()["models"][0]["version"] == version)  # noqa: B023
        done.set()
    answers = [answer for one in asked for answer in one.result()]
    assert len(answers) > 50
    assert {status for status, _ in answers} == {200}
    assert {answer["version"] for _, answer in answers} == set(label_of)
    for _, answer in answers:
        assert answer["predictions"][0]["label"] == label_of[answer["version"]]
    with own.client() as client:
        assert 'tellapart_model_swaps{model="own"} 50.0' in client.get("/metrics").text


def test_an_unsound_new_file_is_not_used(own):
    good = own.path.read_bytes()
    with own.client() as client:
        before = client.get("/models").json()
        own.path.write_bytes(good[:-200])
        until(lambda: newer_file_error(client) == "damaged-model")
        assert client.get("/models").json() == before
        assert predicted(client, flat("blue"))[1]["predictions"][0]["label"] == "blue"
        assert 'tellapart_model_file_unusable{model="own"} 1.0' in client.get("/metrics").text
        own.path.unlink()
        time.sleep(0.1)
        assert predicted(client, flat("blue"))[0] == 200
        write_model(own.path, tiny_model(class_names=("a", "b", "c")))
        until(lambda: newer_file_error(client) is None)
        assert predicted(client, flat("blue"))[1]["predictions"][0]["label"] == "c"
    assert "the new file is not used [damaged-model]" in "".join(own.log)


def newer_file_error(client):
    return client.get("/v2/health/ready").json()["models"][0]["newer_file_error"]


def is_shut(server):
    """Whether nobody new is let in."""
    try:
        with server.client() as client:
            client.get("/models")
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_waits_for_what_is_under_way(doomed, number):
    """A request whose body is still on its way is answered; nobody new is let in; the status is 0."""
    content = flat("green")
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content)
    idle = doomed.client()
    assert idle.get("/models").status_code == 200
    with socket.create_connection(("127.0.0.1", doomed.port), timeout=5) as line:
        line.sendall(head + content[:20])
        until(lambda: idle.get("/models").status_code == 200)
        time.sleep(0.2)  # until the head has been read
        doomed.process.send_signal(number)
        until(lambda: is_shut(doomed))
        assert doomed.process.poll() is None
        line.sendall(content[20:])
        answer = b""
        while data := line.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["predictions"][0]["label"] == "green"
    assert doomed.wait() == 0
    assert "Traceback" not in "".join(doomed.log)


def test_the_end_does_not_wait_for_ever(model_path):
    """An image that is still being decoded when the time is up is given up."""
    with (
        Server(model_path, limits="decode_seconds=60, shutdown_seconds=1") as server,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        stopped_decoders(server) as stopped,
    ):
        asked = threads.submit(predicted, server.client(), flat("red"))
        until(lambda: server.has_queue(1))
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began > 0.9
        assert isinstance(asked.exception(), (httpx.TransportError, json.JSONDecodeError))
        assert not any(Path(f"/proc/{number}").exists() for number in stopped)


def test_nothing_is_left_running(doomed):
    decoders = doomed.decoders()
    doomed.process.kill()  # without any chance to tidy up
    doomed.process.wait()
    until(lambda: not any(Path(f"/proc/{number}").exists() for number in decoders))
