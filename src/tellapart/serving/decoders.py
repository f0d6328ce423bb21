"""Decoding in other processes: a few workers, each given one image at a time, and replaced when an image ends it."""

import asyncio
import contextlib
import itertools
import logging
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from tellapart.errors import CODES, ImageError
from tellapart.imaging.decode import DecodeLimits, Pixels
from tellapart.records import Preprocess
from tellapart.serving.refusals import refuse
from tellapart.serving.worker import ANSWER, SHARED_BYTES, JobKind, pack_job

LOG = logging.getLogger("tellapart.serving")

RequireWanted = Callable[[], None]
"""Raises where nobody waits for the answer any more."""

_START_SECONDS = 60.0
_PATIENT_TRIES = 5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20)}
"""Of a process: glibc then keeps the memory of one image for the next, which spares 150 page faults and a seventh of the time."""

_CODES = frozenset(code.encode() for code in CODES)


class _Worker:
    """One process, the line to it, and the memory shared with it."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            descriptor = _nameless_file()
            try:
                os.ftruncate(descriptor, SHARED_BYTES)
                self.shared = mmap.mmap(descriptor, SHARED_BYTES)
                self.process = subprocess.Popen(  # noqa: S603  our own program
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "tellapart.serving.worker",
                        str(theirs.fileno()),
                        str(descriptor),
                    ],
                    pass_fds=(theirs.fileno(), descriptor),
                    stdin=subprocess.DEVNULL,
                    env={**_ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            finally:
                os.close(descriptor)
        self.line.setblocking(False)
        self._answer: asyncio.Future[bytes] | None = None

    def listen(self, on_end: Callable[[], None]) -> None:
        """Begin to take answers; ``on_end`` is called when the process ends while it has nothing to do."""
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._loop.add_reader(self.line, self._take_answer)

    def _take_answer(self) -> None:
        try:
            answer = self.line.recv(ANSWER.size)
        except OSError:
            answer = b""
        if not answer:
            self._loop.remove_reader(self.line)
        if self._answer is None:
            self._on_end()
        elif not self._answer.done():
            self._answer.set_result(answer)

    async def work(self, header: bytes, data: bytes) -> tuple[bool, bytes]:
        """Whether it failed, and the result.

        Raises:
            OSError: the process has ended, or answers what it should not.
        """
        self._answer = self._loop.create_future()
        self.shared[: len(data)] = data
        self.line.send(header)  # too short to be sent in parts
        answer = await self._answer
        self._answer = None
        if len(answer) != ANSWER.size:
            raise ConnectionResetError
        failed, n_bytes = ANSWER.unpack(answer)
        return bool(failed), self.shared[:n_bytes]

    def close(self) -> None:
        """End the process at once; ``process.wait`` says when it has ended."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self._loop.remove_reader(self.line)
        self.line.close()
        self.shared.close()


def _nameless_file() -> int:
    """Descriptor of memory; of a file where the system cannot give memory one."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Decoders:
    """A pool of decoding processes.

    Args:
        workers: number of processes.
        limits: what one image may cost.
        seconds: how long one image may take.
        on_loss: called with an error's code whenever a process had to be replaced.
    """

    def __init__(
        self, workers: int, *, limits: DecodeLimits, seconds: float, on_loss: Callable[[str], None]
    ) -> None:
        self._count = workers
        if limits.max_bytes > SHARED_BYTES:
            raise ValueError(f"an image may have {SHARED_BYTES:,} bytes at most")
        self._limits = limits
        self._seconds = seconds
        self._on_loss = on_loss
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()
        self._waiting = 0
        self._workers: set[_Worker] = set()
        self._replacing: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> int:
        """Number of processes that decode or could."""
        return len(self._workers)

    @property
    def has_idle(self) -> bool:
        """Whether an image would be decoded at once."""
        return not self._idle.empty()

    async def start(self) -> None:
        """Start the processes, and wait until each has answered; the log says where one cannot be started."""
        await asyncio.gather(*(self._add() for _ in range(self._count)))

    async def close(self) -> None:
        """End the processes."""
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for worker in self._workers:
            worker.close()
            worker.process.wait()
        self._workers.clear()

    async def decode(self, data: bytes, spec: Preprocess, require_wanted: RequireWanted | None = None) -> Pixels:
        """Decode an image file's bytes to the model's input, (S, S, 3) uint8.

        Args:
            data: of the image file.
            spec: of the model.
            require_wanted: called when a process is there for the image; what it raises spares the work.

        Raises:
            ImageError: it cannot be decoded; decoder-crashed, decode-timeout.
            RequestError: overloaded, when there is no process and none can be started.
        """
        side = spec.input_size_px
        pixels = await self._run("input", data, spec, require_wanted)
        return np.frombuffer(pixels, dtype=np.uint8).reshape(side, side, 3)

    async def picture(self, data: bytes, spec: Preprocess) -> bytes:
        """The image as a JPEG file that holds pixels and nothing else, reduced where it is large.

        Raises:
            ImageError: it cannot be decoded; decoder-crashed, decode-timeout.
            RequestError: overloaded, when there is no process and none can be started.
        """
        return await self._run("picture", data, spec)

    async def _take(self) -> _Worker:
        """The next process that is free; those who wait have it in the order in which they came."""
        self._waiting += 1
        try:
            while (worker := await self._idle.get()) not in self._workers:
                if worker is None and not self._workers:
                    raise refuse("overloaded")
                # Else it ended while it had nothing to do, which is not this image's fault.
            return worker
        finally:
            self._waiting -= 1

    async def _run(
        self, kind: JobKind, data: bytes, spec: Preprocess, require_wanted: RequireWanted | None = None
    ) -> bytes:
        if len(data) > self._limits.max_bytes:
            raise ImageError("too-many-bytes", f"the limit is {self._limits.max_bytes:,} bytes")
        header = pack_job(kind, spec, self._limits, len(data))
        worker = await self._take()
        if require_wanted is not None:
            try:
                require_wanted()
            except BaseException:
                self._idle.put_nowait(worker)
                raise
        try:
            async with asyncio.timeout(self._seconds):
                failed, result = await worker.work(header, data)
        except TimeoutError:
            self._replace(worker, "decode-timeout")
            raise ImageError("decode-timeout", f"the limit is {self._seconds:g} seconds") from None
        except OSError:
            self._replace(worker, "decoder-crashed")
            raise ImageError("decoder-crashed", "the decoder could not go on after this image") from None
        except BaseException:  # cancelled: the worker is at an image that nobody waits for
            self._replace(worker, "decode-timeout")
            raise
        # What has read untrusted bytes is not trusted itself.
        sound = result in _CODES if failed else kind == "picture" or len(result) == spec.input_size_px**2 * 3
        if not sound:
            self._replace(worker, "decoder-crashed")
            raise ImageError("decoder-crashed", "the decoder answered what it should not")
        self._idle.put_nowait(worker)
        if failed:
            raise ImageError(result.decode("ascii"), "")
        return result

    async def _add(self, gone: _Worker | None = None) -> None:
        """Start a process, again and again until one answers; not before ``gone`` has ended, whose memory it takes."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        for number in itertools.count(1):
            try:
                if gone is not None:
                    await asyncio.to_thread(gone.process.wait)
                gone = worker = await asyncio.to_thread(_Worker)
                await self._hear_first(worker)
                break
            except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: no thread could be started
                LOG.warning("a decoder could not be started (%r); trying again", error)
                if number >= _PATIENT_TRIES and not self._workers:
                    self._send_away()
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
        self._workers.add(worker)
        self._idle.put_nowait(worker)

    async def _hear_first(self, worker: _Worker) -> None:
        """Wait for its first answer, which it gives when its imports are done.

        Raises:
            OSError: it has ended, or says nothing; it is closed then.
        """
        worker.listen(lambda: self._replace(worker, "decoder-crashed"))
        try:
            async with asyncio.timeout(_START_SECONDS):
                await worker.work(pack_job("input", Preprocess(input_size_px=8), self._limits, 0), b"")
        except BaseException:
            worker.close()
            raise

    def _send_away(self) -> None:
        """Refuse those who wait."""
        for _ in range(self._waiting):
            self._idle.put_nowait(None)

    def _replace(self, worker: _Worker, code: str) -> None:
        if worker not in self._workers:
            return
        self._on_loss(code)
        self._workers.remove(worker)
        worker.close()
        task = asyncio.create_task(self._add(worker))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)
