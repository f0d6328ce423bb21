"""The engine for event loops: as the other engine, for many at once, whatever becomes of those who asked."""

import asyncio
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny import SIDE_PX, tiny_model

from tellapart.errors import ModelError
from tellapart.imaging.pool import cpu_count
from tellapart.inference.async_engine import AsyncEngine
from tellapart.inference.bundled import open_backbone
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


def test_an_answer_is_the_same_bit_for_bit_whatever_else_is_under_way():
    """The bundled backbone, whose kernels might add up in another order."""
    side = 64
    engine = AsyncEngine(open_backbone("efficientnet_lite0").onnx_bytes, input_size_px=side)
    images = np.random.default_rng(0).integers(0, 256, (N, side, side, 3), dtype=np.uint8)

    async def ask():
        alone = [await engine.run(image) for image in images]
        return alone, await asyncio.gather(*(engine.run(image) for image in images))

    alone, among_others = asyncio.run(ask())
    for one, other in zip(alone, among_others, strict=True):
        assert one["embedding"].tobytes() == other["embedding"].tobytes()


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
        for shape in ((SIDE_PX + 1, SIDE_PX, 3), (SIDE_PX, SIDE_PX, 1), (3,)):
            with pytest.raises(ValueError, match="expected"):
                await ours.run(np.zeros(shape, np.uint8))
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


def test_who_has_gone_costs_no_inference(engines):
    ours, _ = engines

    def require_wanted():
        raise LookupError

    async def ask():
        with pytest.raises(LookupError):
            await ours.run(IMAGES[0], require_wanted)
        return ours._free.qsize()

    assert asyncio.run(ask()) == cpu_count() + 1


class HungRequest:
    """Takes the place of one of OpenVINO's; ends when it is told to."""

    output_tensors = (SimpleNamespace(data=np.ones((1, 3), np.float32)),)

    def start_async(self, _, job):
        self.end = job.hand_over

    def wait_for(self, _):
        return False


def hang(engine, count):
    """The first places are those of requests that do not end."""
    places = [engine._free.get_nowait() for _ in range(cpu_count() + 1)]
    hung = [HungRequest() for _ in range(count)]
    for place, request in zip(places, hung, strict=False):
        place.request = request
    for place in places:
        engine._free.put_nowait(place)
    return hung


async def code_of(answer):
    with pytest.raises(ModelError) as error:
        await asyncio.wait_for(answer, 10)
    return error.value.code


def test_an_inference_that_hangs_is_an_error_and_the_others_are_answered():
    engine = AsyncEngine(tiny_model().onnx_bytes, input_size_px=SIDE_PX, limit_seconds=0.1)
    hang(engine, 1)

    async def ask():
        code = await code_of(engine.run(IMAGES[0]))
        await asyncio.wait_for(asyncio.gather(*(engine.run(image) for image in IMAGES)), 10)
        return code, engine.hangs, engine._free.qsize()

    assert asyncio.run(ask()) == ("inference-timeout", False, cpu_count())


def test_nobody_waits_for_an_engine_that_hangs_until_it_goes_on():
    engine = AsyncEngine(tiny_model().onnx_bytes, input_size_px=SIDE_PX, outputs=("probs",), limit_seconds=0.1)
    hung = hang(engine, cpu_count() + 1)

    async def ask():
        codes = await asyncio.gather(*(code_of(engine.run(image)) for image in IMAGES))
        assert engine.hangs
        codes.append(await asyncio.wait_for(code_of(engine.run(IMAGES[0])), 0.05))
        hung[0].end()
        await asyncio.sleep(0.01)
        assert not engine.hangs
        again = asyncio.create_task(engine.run(IMAGES[0]))
        await asyncio.sleep(0.01)
        hung[0].end()
        return codes, await asyncio.wait_for(again, 10)

    codes, answer = asyncio.run(ask())
    assert codes == ["inference-timeout"] * (N + 1)
    assert answer["probs"].tolist() == [1, 1, 1]


NEVER_ENDS = """
import asyncio, os
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tellapart.errors import ModelError
from tellapart.inference.async_engine import AsyncEngine
from tellapart.inference.bundled import open_backbone

value = helper.make_tensor_value_info
body = helper.make_graph(
    [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["go"], ["on"])],
    "body",
    [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1])],
    [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1])],
)
nodes = [
    helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.INT64),
    helper.make_node("ReduceMax", ["numbers"], ["largest"], keepdims=0),
    helper.make_node("Mul", ["largest", "many"], ["times"]),
    helper.make_node("Loop", ["times", "true", "one"], ["sum"], body=body),
    helper.make_node("Unsqueeze", ["sum", "first"], ["probs"]),
]
constants = {"many": np.array(10**15), "true": np.array(True), "one": np.ones(1, np.float32), "first": np.zeros(1, int)}
graph = helper.make_graph(
    nodes, "hangs", [value("images", TensorProto.UINT8, ["N", 16, 16, 3])], [value("probs", TensorProto.FLOAT, ["N", 1])],
    initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
)
content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9).SerializeToString()
engine = AsyncEngine(content, input_size_px=16, limit_seconds=0.2)
black = np.zeros((16, 16, 3), np.uint8)

async def ask():
    try:
        await engine.run(black + 7)
    except ModelError as error:
        print(error.code)
    asyncio.get_running_loop().call_soon(engine.retire)

asyncio.run(ask())
del engine
print("given up", flush=True)
os._exit(0)
"""


def test_an_inference_that_never_ends_keeps_nobody_from_ending():
    """One of OpenVINO's own, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", NEVER_ENDS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n")[:2] == ["inference-timeout", "given up"], done.stderr


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="cannot be run"):
        AsyncEngine(b"no model", input_size_px=SIDE_PX)


def test_a_retired_engine_answers_what_is_under_way_and_is_freed():
    engine = AsyncEngine(tiny_model().onnx_bytes, input_size_px=SIDE_PX)
    traces = []
    for _ in range(cpu_count() + 1):
        place = engine._free.get_nowait()
        engine._free.put_nowait(place)
        traces.append(weakref.ref(place.request))
    del place

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
