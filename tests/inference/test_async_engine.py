"""The engine for event loops: as the other engine, for many at once, whatever becomes of those who asked."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny import SIDE_PX, tiny_model

from tellapart.errors import ModelError
from tellapart.imaging.pool import cpu_count
from tellapart.inference.async_engine import AsyncEngine
from tellapart.inference.engine import OpenVINOEngine

N = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (N, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


@pytest.fixture
def engines():
    content = tiny_model().onnx_bytes
    values = {"input_size_px": SIDE_PX, "precision": "f32", "outputs": ("probs",)}
    return AsyncEngine(content, **values), OpenVINOEngine(content, **values)


def test_many_at_once_as_one_after_another(engines):
    ours, other = engines

    async def ask():
        return await asyncio.gather(*(ours.run(image) for image in IMAGES))

    found = asyncio.run(ask())
    assert set(found[0]) == {"probs"}
    assert np.allclose([outputs["probs"] for outputs in found], other.run(IMAGES)["probs"], atol=1e-6)


def test_who_gives_up_leaves_the_engine_whole(engines):
    ours, other = engines

    async def ask():
        for _ in range(3):
            tasks = [asyncio.create_task(ours.run(image)) for image in IMAGES]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        last = await asyncio.gather(*(ours.run(image) for image in IMAGES))
        await asyncio.sleep(0.05)
        return last, ours._free.qsize()

    found, free = asyncio.run(ask())
    assert np.allclose([outputs["probs"] for outputs in found], other.run(IMAGES)["probs"], atol=1e-6)
    assert free == cpu_count() + 1


def test_an_image_of_another_size_is_an_error_and_no_loss(engines):
    ours, _ = engines

    async def ask():
        with pytest.raises(RuntimeError):
            await ours.run(np.zeros((SIDE_PX + 1, SIDE_PX, 3), np.uint8))
        return await ours.run(IMAGES[0])

    assert asyncio.run(ask())["probs"].shape == (3,)


def fails_at_all_but_black():
    """A model that adds two numbers to as many as the largest pixel says, and two."""
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["numbers"], ["largest"], keepdims=0),
        helper.make_node("Add", ["largest", "two"], ["end"]),
        helper.make_node("Range", ["zero", "end", "one"], ["row"]),
        helper.make_node("Add", ["row", "pair"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "first"], ["probs"]),
    ]
    numbers = {"zero": 0, "one": 1, "two": 2}
    values = [helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in numbers.items()]
    values += [helper.make_tensor("pair", TensorProto.INT64, [2], [0, 0])]
    values += [helper.make_tensor("first", TensorProto.INT64, [1], [0])]
    graph = helper.make_graph(
        nodes,
        "fails",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE_PX, SIDE_PX, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", "K"])],
        initializer=values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    return model.SerializeToString()


def test_a_failed_inference_is_an_error_and_no_loss():
    engine = AsyncEngine(fails_at_all_but_black(), input_size_px=SIDE_PX)
    black = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)

    async def ask():
        failing = [asyncio.wait_for(engine.run(black + 7), 10) for _ in range(2 * cpu_count() + 2)]
        failed = await asyncio.gather(*failing, return_exceptions=True)
        return failed, await asyncio.wait_for(engine.run(black), 10), engine._free.qsize()

    failed, outputs, free = asyncio.run(ask())
    assert {type(error) for error in failed} == {RuntimeError}
    assert outputs["probs"].tolist() == [0, 1]
    assert free == cpu_count() + 1


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="cannot be run"):
        AsyncEngine(b"no model", input_size_px=SIDE_PX)


def test_a_retired_engine_answers_what_is_under_way_and_is_freed():
    engine = AsyncEngine(tiny_model().onnx_bytes, input_size_px=SIDE_PX)
    requests = [engine._free.get_nowait() for _ in range(cpu_count() + 1)]
    for request in requests:
        engine._free.put_nowait(request)
    traces = [weakref.ref(request) for request in requests]
    del requests, request

    async def ask(engine):
        tasks = [asyncio.create_task(engine.run(image)) for image in IMAGES]
        await asyncio.sleep(0)
        engine.retire()
        del engine
        answers = await asyncio.gather(*tasks)
        del tasks
        await asyncio.sleep(1.5)
        return len(answers)

    held = [engine]
    del engine
    assert asyncio.run(ask(held.pop())) == N
    gc.collect()
    assert [trace() for trace in traces if trace() is not None] == []
