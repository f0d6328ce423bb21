"""A model that does not answer: whoever waits for it is told so in time, and the server ends when it is told to."""

import asyncio
import concurrent.futures
import threading
import time

import numpy as np
import pytest
from serving_kit import Server, flat, pixels
from tiny import PREPROCESS

from tellapart.errors import ModelError
from tellapart.imaging.pool import cpu_count
from tellapart.serving.answers import Room
from tellapart.serving.explaining import Explainer
from tellapart.serving.shelf import Shelf

NEVER_STARTS = (
    "import openvino\n"
    "openvino.InferRequest.start_async = lambda *_: None\n"
    "openvino.InferRequest.wait_for = lambda *_: False\n"
)
NEVER_EXPLAINS = (
    "import time\n"
    "from tellapart.inference import engine\n"
    "engine.OpenVINOEngine.run = lambda *_: time.sleep(10**6)\n"
)


def test_a_model_that_hangs_is_said_to(model_path):
    image = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, 16, 16, 3],
        "data": pixels("red").ravel().tolist(),
    }
    with (
        Server(model_path, limits="inference_seconds=0.3", before=NEVER_STARTS) as server,
        server.client() as client,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        for _ in range(cpu_count() + 2):  # the last one when none can begin
            answer = client.post("/predict", content=flat("red"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "inference-timeout")
        answer = client.post("/v2/models/colors/infer", json={"inputs": [image]})
        assert (answer.status_code, answer.json()["error"][:19]) == (500, "[inference-timeout]")
        for path in ("/v2/health/ready", "/v2/models/colors/ready"):
            assert client.get(path).json() == {"error": "[inference-timeout] the model answers no more"}
        assert client.get("/v2/health/live").status_code == 200
        assert server.has_queue(0)
        assert server.end() == 0
    assert "[inference-timeout] an inference may take 0.3 seconds" in "".join(server.log)
    assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize(("before", "path"), [(NEVER_STARTS, "/predict"), (NEVER_EXPLAINS, "/explain")])
def test_the_end_does_not_wait_for_a_model_that_hangs(model_path, before, path):
    limits = "inference_seconds=1000, explain_seconds=1000, shutdown_seconds=1"
    with (
        Server(model_path, limits=limits, before=before) as server,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        server.client() as client,
    ):
        asked = threads.submit(lambda: server.client().post(path, content=flat("red")))
        time.sleep(0.5)
        assert client.get("/model").status_code == 200
        client.close()
        assert server.end() == 0
        assert asked.exception() or asked.result().status_code == 500


class Decoders:
    """Takes the place of the pool."""

    async def decode(self, *_):
        return np.zeros((PREPROCESS.input_size_px, PREPROCESS.input_size_px, 3), np.uint8)


def test_a_heat_map_that_hangs_does_not_stop_the_next(model_path, monkeypatch):
    release = threading.Event()
    model = Shelf([str(model_path)], 20.0).get()
    explainer = Explainer(Decoders(), Room(4), 0.5)
    picture = explainer._picture
    monkeypatch.setattr(explainer, "_picture", lambda *_: release.wait(60))

    async def run():
        with pytest.raises(ModelError) as error:
            await explainer.explain(model, b"a", "")
        monkeypatch.setattr(explainer, "_picture", picture)
        explainer._limit_seconds = 60.0
        explained = await explainer.explain(model, b"b", "")
        explainer.close()
        return error.value.code, explained[:4]

    try:
        assert asyncio.run(run()) == ("inference-timeout", b"\x89PNG")
    finally:
        release.set()
