"""What is behind the routes: room, what is kept, and models that are replaced; without a server."""

import asyncio
import os

import numpy as np
import pytest
from serving_kit import write_model
from starlette.requests import ClientDisconnect
from tiny import SIDE_PX, one_level, tiny_model

from tellapart.errors import ImageError, RequestError
from tellapart.records import Prediction
from tellapart.serving import collecting
from tellapart.serving import shelf as shelf_module
from tellapart.serving.answers import Answers, Room
from tellapart.serving.collecting import Collector
from tellapart.serving.explaining import Explainer
from tellapart.serving.shelf import Shelf
from tellapart.serving.uploads import Upload

UNSURE = Prediction(path="", verdict="unsure", label="red", prob=0.5, probs=(0.5, 0.3, 0.2))


class Decoders:
    """Takes the place of the pool: an image waits until it is let go, or has the error that is its content."""

    def __init__(self):
        self.has_idle = True
        self.let_go = asyncio.Event()
        self.pictures = []

    async def decode(self, data, *_):
        if data == b"gone":
            raise ClientDisconnect
        if data == b"bad":
            raise ImageError("not-an-image", "")
        await self.let_go.wait()
        return np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)

    async def picture(self, data, *_):
        self.pictures.append(data)
        if data == b"bad":
            raise ImageError("not-an-image", "")
        return data * 100


class Counted:
    """Takes the place of measures."""

    def count_answer(self, *_):
        pass


@pytest.fixture
def shelf(model_path):
    return Shelf([str(model_path)], 20.0)


@pytest.mark.parametrize(
    ("contents", "outcome"),
    [([b"gone", b"a", b"b"], "ClientDisconnect"), ([b"bad", b"a", b"b"], ["error", "unsure", "unsure"])],
)
def test_a_request_holds_its_room_as_long_as_any_of_its_images_is_under_way(shelf, contents, outcome):
    async def run():
        decoders, room = Decoders(), Room(4)
        answers = Answers(decoders, room, Counted(), Collector(None, decoders))
        uploads = [Upload("", content) for content in contents]
        asked = asyncio.create_task(answers.predict(shelf.get(), uploads, coverage=0.9))
        await asyncio.sleep(0.05)
        assert (asked.done(), room.taken) == (False, 3)
        with pytest.raises(RequestError, match="overloaded"):
            await answers.predict(shelf.get(), uploads)
        decoders.let_go.set()
        (said,) = await asyncio.gather(asked, return_exceptions=True)
        assert room.taken == 0
        return type(said).__name__ if isinstance(said, Exception) else [one.verdict for one in said]

    assert asyncio.run(run()) == outcome


def test_heat_maps_beyond_their_room_are_refused(shelf):
    async def run():
        decoders = Decoders()
        explainer = Explainer(decoders, Room(1), 60.0)
        first = asyncio.create_task(explainer.explain(shelf.get(), b"a", ""))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="overloaded"):
            await explainer.explain(shelf.get(), b"b", "")
        decoders.let_go.set()
        picture = await first
        explainer.close()
        return picture[:4]

    assert asyncio.run(run()) == b"\x89PNG"


@pytest.mark.parametrize(
    ("limits", "is_idle", "contents", "kept"),
    [
        pytest.param({}, True, [b"a", b"a", b"b"], 2, id="each once"),
        pytest.param({}, False, [b"a"], 0, id="no decoder has time"),
        pytest.param({}, True, [b"bad", b"a"], 1, id="one that cannot be decoded"),
        pytest.param({"MAX_FILES": 1}, True, [b"a", b"b"], 1, id="files"),
        pytest.param({"MAX_BYTES": 150}, True, [b"a", b"b", b"c"], 2, id="bytes"),
        pytest.param({"_MAX_WAITING": 1}, True, [b"a", b"b"], 2, id="one after another"),
    ],
)
def test_what_is_kept(shelf, tmp_path, monkeypatch, limits, is_idle, contents, kept):
    for name, value in limits.items():
        monkeypatch.setattr(collecting, name, value)

    async def run():
        decoders = Decoders()
        decoders.has_idle = is_idle
        collector = Collector(tmp_path, decoders)
        for content in contents:
            collector.offer(shelf.get(), content, UNSURE)
            await collector.close()

    asyncio.run(run())
    assert len(list(tmp_path.rglob("*.jpg"))) == kept


def test_the_same_file_once_more_replaces_no_model(tmp_path, monkeypatch):
    """A new date, the same content: who asks goes on with the engine there is."""
    path = write_model(tmp_path / "model.onnx", tiny_model())
    shelf = Shelf([str(path)], 20.0)
    opened = []

    def open_model(*arguments):
        opened.append(arguments)
        return original(*arguments)

    original = shelf_module.open_model
    monkeypatch.setattr(shelf_module, "open_model", open_model)

    async def run():
        watch = asyncio.create_task(shelf.watch(0.02))
        before = shelf.get()
        path.write_bytes(path.read_bytes()[:-100])
        await until(lambda: shelf.error(before.name))
        write_model(path, tiny_model())
        os.utime(path, (1, 1))
        await until(lambda: not shelf.error(before.name))
        assert shelf.get() is before
        count = len(opened)
        await asyncio.sleep(0.1)
        assert len(opened) == count  # it is not read again and again
        write_model(path, tiny_model(conformal=one_level(0.9, 0.1, 60)))
        await until(lambda: shelf.get() is not before)
        watch.cancel()
        return shelf.swaps(before.name)

    assert asyncio.run(run()) == 1


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
