"""Decoders that cannot be started, hang or say what they should not: an image has its error, and the next one is decoded."""

import asyncio
import platform
from pathlib import Path

import numpy as np
import pytest
from serving_kit import flat
from tiny import PREPROCESS, SIDE_PX

from tellapart.errors import ImageError, RequestError
from tellapart.imaging.decode import DecodeLimits
from tellapart.records import Preprocess
from tellapart.serving import decoders as module
from tellapart.serving.decoders import Decoders


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.05)


def with_one(use):
    """What ``use`` returns of a pool of one decoder, and the codes of the losses."""
    losses = []

    async def run():
        pool = Decoders(1, limits=DecodeLimits(max_bytes=2**20), seconds=5.0, on_loss=losses.append)
        try:
            return await asyncio.wait_for(use(pool), 30)
        finally:
            await pool.close()

    return asyncio.run(run()), losses


async def decodes(pool):
    pixels = await pool.decode(flat("red"), PREPROCESS)
    assert pixels.shape == (SIDE_PX, SIDE_PX, 3)
    return bool(np.all(pixels[0, 0] == (220, 10, 10)))


async def killed(pool, worker):
    worker.process.kill()
    while pool.alive:
        await asyncio.sleep(0.01)


def failing(monkeypatch, times, error):
    """Decoders whose start fails a few times."""
    start, tries = module._Worker, []

    def fail_first():
        tries.append(1)
        if len(tries) <= times:
            raise error
        return start()

    monkeypatch.setattr(module, "_Worker", fail_first)
    return tries


@pytest.mark.parametrize("error", [OSError("no memory"), RuntimeError("can't start new thread"), MemoryError()])
def test_a_decoder_that_cannot_be_started_is_tried_again(monkeypatch, caplog, error):
    async def use(pool):
        await pool.start()
        (worker,) = pool._workers
        tries = failing(monkeypatch, 2, error)
        await killed(pool, worker)
        decoded = await decodes(pool)
        return decoded, len(tries), pool.alive

    assert with_one(use) == ((True, 3, 1), ["decoder-crashed"])
    assert caplog.text.count("a decoder could not be started") == 2


def test_a_decoder_that_hangs_at_its_start_is_replaced(monkeypatch):
    work, calls = module._Worker.work, []

    async def hang_first(worker, header, data):
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(60)
        return await work(worker, header, data)

    async def use(pool):
        monkeypatch.setattr(module._Worker, "work", hang_first)
        monkeypatch.setattr(module, "_START_SECONDS", 1.5)
        await pool.start()
        return await decodes(pool)

    assert with_one(use) == (True, [])


def test_where_no_decoder_can_be_started_nobody_waits_for_one(monkeypatch):
    async def use(pool):
        await pool.start()
        (worker,) = pool._workers
        failing(monkeypatch, 10**9, OSError("no memory"))
        await killed(pool, worker)
        for _ in range(3):
            with pytest.raises(RequestError) as refused:
                await decodes(pool)
            assert refused.value.code == "overloaded"
        return pool.alive

    assert with_one(use) == (0, ["decoder-crashed"])


@pytest.mark.parametrize(
    "answer", [(True, b"<script>"), (False, b"short"), (False, bytes(10**6))], ids=["code", "short", "long"]
)
def test_what_a_decoder_should_not_answer_is_not_passed_on(monkeypatch, answer):
    async def use(pool):
        await pool.start()
        (worker,) = pool._workers

        async def lie(*_):
            return answer

        monkeypatch.setattr(worker, "work", lie)
        with pytest.raises(ImageError) as error:
            await decodes(pool)
        assert error.value.code == "decoder-crashed"
        return await decodes(pool)

    assert with_one(use) == (True, ["decoder-crashed"])


def test_a_job_that_is_cancelled_leaves_its_answer_to_nobody():
    async def use(pool):
        await pool.start()
        job = asyncio.create_task(pool.decode(flat("green"), PREPROCESS))
        await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return await decodes(pool)

    assert with_one(use) == (True, ["decode-timeout"])


def test_a_decoder_is_at_hand_again_for_the_next_when_nobody_wants_the_image():
    class GoneError(Exception):
        pass

    def require_wanted():
        raise GoneError

    async def use(pool):
        await pool.start()
        with pytest.raises(GoneError):
            await pool.decode(flat("green"), PREPROCESS, require_wanted)
        return pool.has_idle and await decodes(pool)

    assert with_one(use) == (True, [])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_memory_of_one_image_serves_the_next():
    """Else a photo costs 150 page faults, a seventh of its time."""
    photo = flat("red", "JPEG", size=(800, 600))
    spec = Preprocess(input_size_px=224)

    async def use(pool):
        await pool.start()
        (worker,) = pool._workers
        counts = []
        for _ in range(2):
            for _ in range(20):
                await pool.decode(photo, spec)
            status = Path(f"/proc/{worker.process.pid}/stat").read_text()
            counts.append(int(status.rpartition(")")[2].split()[7]))
        return (counts[1] - counts[0]) / 20

    faults, _ = with_one(use)
    assert faults < 30
