"""An engine for an event loop: images one by one, as many at once as the processor has streams."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import cpu_count
from tellapart.inference.engine import Outputs, Precision, best_precision, compile_model, output_names

_MOMENT_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class AsyncEngine:
    """A model whose answers are awaited; made in any thread, used from one event loop.

    One image a request: on two cores that is 95 % as fast as four, and a single image does not pay for three empty ones.

    Args:
        model_bytes: an ONNX model with the input ``images``, uint8 [N, S, S, 3].
        input_size_px: S.
        precision: best for this processor when None.
        outputs: names of those that are computed, where the model has them; all when None.

    Raises:
        ModelError: damaged-model, when OpenVINO cannot make sense of it.
    """

    def __init__(
        self,
        model_bytes: bytes,
        *,
        input_size_px: int,
        precision: Precision | None = None,
        outputs: Collection[str] | None = None,
    ) -> None:
        self.precision: Precision = precision or best_precision()
        self._model = compile_model(
            model_bytes,
            input_size_px=input_size_px,
            batch_size=1,
            precision=self.precision,
            outputs=outputs,
        )
        self._retired = False
        self._names = output_names(self._model)
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(cpu_count() + 1):  # one more than streams, so that none waits for the event loop
            request = self._model.create_infer_request()
            # The first tensor is made here, by one thread; see OpenVINOEngine.
            request.infer({0: np.zeros((1, input_size_px, input_size_px, 3), dtype=np.uint8)})
            request.set_callback(_done, None)
            self._free.put_nowait(request)

    async def run(self, pixels: Pixels) -> Outputs:
        """Every output for one image, (S, S, 3) uint8; those who come first are served first.

        Raises:
            RuntimeError: OpenVINO failed at this image; the next one is answered.
        """
        loop = asyncio.get_running_loop()
        request = await self._free.get()
        answered: asyncio.Future[list[NDArray[Any]]] = loop.create_future()
        answered.add_done_callback(lambda _: self._free.put_nowait(request))
        batch = np.ascontiguousarray(pixels[None])
        job = _Job(loop, answered, request, batch)
        try:
            request.start_async({0: batch}, job, share_inputs=True)
        except RuntimeError as error:
            job.forget()
            answered.set_exception(error)
        else:
            job.look_later()
        # Shielded: whatever becomes of who asked, the request is in use until it has answered.
        values = await asyncio.shield(answered)
        if self._retired:
            self._stay_a_moment()
        return {name: values[i] for name, i in self._names}

    def retire(self) -> None:
        """Say that the engine is about to be given up; images under way are answered all the same.

        The thread that has just handed over an answer is still inside a request for a moment. Whoever frees the request then
        waits for that thread, which waits for the interpreter's lock.
        """
        self._retired = True
        self._stay_a_moment()

    def _stay_a_moment(self) -> None:
        asyncio.get_running_loop().call_later(_MOMENT_SECONDS, _let_go, self)


def _let_go(_engine: AsyncEngine) -> None:
    """Nothing: until this is called, the event loop holds the engine."""


class _Job:
    """One image under way."""

    __slots__ = ("answered", "batch", "loop", "request", "timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answered: "asyncio.Future[list[NDArray[Any]]]",
        request: Any,
        batch: Pixels,
    ) -> None:
        self.loop = loop
        self.answered = answered
        self.request = request
        self.batch: Pixels | None = batch
        self.timer: asyncio.TimerHandle | None = None

    def look_later(self) -> None:
        """Look after a while whether the inference has failed: of that, OpenVINO tells nobody."""
        self.timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        request = self.request
        if request is None:
            return  # the answer is on its way
        try:
            request.wait_for(0)
        except RuntimeError as error:
            self.resolve(error)
        else:
            self.look_later()

    def resolve(self, outcome: list[NDArray[Any]] | Exception) -> None:
        """Hand over what came of it."""
        if self.timer is not None:
            self.timer.cancel()
        self.forget()
        if self.answered.done():
            return
        if isinstance(outcome, Exception):
            self.answered.set_exception(outcome)
        else:
            self.answered.set_result(outcome)

    def forget(self) -> None:
        """Let go of the request, which holds this job until its next one: two that hold each other are never freed."""
        self.request = self.batch = None


def _done(job: _Job) -> None:
    """Hand the answer to the event loop; called in a thread of OpenVINO's."""
    outcome: list[NDArray[Any]] | Exception
    try:
        outcome = [tensor.data[0].copy() for tensor in job.request.output_tensors]
    except Exception as error:  # noqa: BLE001  raised here, nobody would hear of it
        outcome = error
    job.forget()
    with contextlib.suppress(RuntimeError):  # the loop may have been closed meanwhile
        job.loop.call_soon_threadsafe(job.resolve, outcome)
