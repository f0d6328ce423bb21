"""An engine for an event loop: images one by one, as many at once as the processor has streams."""

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from tellapart.errors import ModelError
from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import cpu_count
from tellapart.inference.engine import Outputs, Precision, best_precision, compile_model, output_names

_MOMENT_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class AsyncEngine:
    """A model whose answers are awaited; made in any thread, used from one event loop.

    One image a request: beside decoding, batches of those that wait are no faster, and a single image does not pay for three
    empty ones.

    Args:
        model_bytes: an ONNX model with the input ``images``, uint8 [N, S, S, 3].
        input_size_px: S.
        precision: best for this processor when None.
        outputs: names of those that are computed, where the model has them; all when None.
        limit_seconds: how long an inference may take; noticed within a second.

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
        limit_seconds: float = math.inf,
    ) -> None:
        self.precision: Precision = precision or best_precision()
        self._model = compile_model(
            model_bytes,
            input_size_px=input_size_px,
            batch_size=1,
            precision=self.precision,
            outputs=outputs,
        )
        self._limit_seconds = limit_seconds
        self._retired = False
        self._names = output_names(self._model)
        self._shape = (input_size_px, input_size_px, 3)
        self._places = cpu_count() + 1  # one more than streams, so that none waits for the event loop
        self._late = 0
        self._waiting = 0
        self._free: asyncio.Queue[_Place | None] = asyncio.Queue()
        for _ in range(self._places):
            self._free.put_nowait(_Place(self._model, self._shape))

    @property
    def hangs(self) -> bool:
        """Whether all that is under way has exceeded its time, so that no more can begin."""
        return self._late == self._places

    async def run(self, pixels: Pixels, require_wanted: Callable[[], None] | None = None) -> Outputs:
        """Every output for one image; those who come first are served first.

        Args:
            pixels: (S, S, 3) uint8.
            require_wanted: called when the image's turn comes; what it raises spares the work.

        Raises:
            ModelError: inference-timeout.
            RuntimeError: OpenVINO failed at this image; the next one is answered.
            ValueError: an image of another size.
        """
        if pixels.shape != self._shape:
            raise ValueError(f"expected {self._shape}, got {pixels.shape}")
        place = await self._take()
        if require_wanted is not None:
            try:
                require_wanted()
            except BaseException:
                self._free.put_nowait(place)
                raise
        place.images[0] = pixels
        job = _Job(self, place)
        job.start(place.request, self._limit_seconds)
        # Shielded: whatever becomes of who asked, the place is in use until it has answered.
        values = await asyncio.shield(job.answered)
        if self._retired:
            self._stay_a_moment()
        return {name: values[i] for name, i in self._names}

    async def _take(self) -> "_Place":
        """The next place that is free.

        Raises:
            ModelError: inference-timeout, when all hang.
        """
        self._waiting += 1
        try:
            while not self.hangs:
                place = await self._free.get()
                if place is not None:  # else all hung for a while
                    return place
            raise _timeout(self._limit_seconds)
        finally:
            self._waiting -= 1

    def count_late(self) -> None:
        """An inference has exceeded its time; when none is left that has not, those who wait are sent away."""
        self._late += 1
        if self.hangs:
            for _ in range(self._waiting):
                self._free.put_nowait(None)

    def give_back(self, place: "_Place", *, late: bool) -> None:
        """An inference has ended."""
        self._late -= late
        self._free.put_nowait(place)

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


def _timeout(seconds: float) -> ModelError:
    return ModelError("inference-timeout", f"an inference may take {seconds:g} seconds")


class _Place:
    """A request of OpenVINO's for one image, and the memory that the image is to be in."""

    __slots__ = ("images", "request")

    def __init__(self, model: openvino.CompiledModel, shape: tuple[int, int, int]) -> None:
        self.images = np.zeros((1, *shape), dtype=np.uint8)
        self.request: Any = model.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(self.images, shared_memory=True))
        # The first tensors are made here, by one thread; see OpenVINOEngine.
        self.request.infer()
        self.request.set_callback(_done, None)

    def results(self) -> list[NDArray[Any]]:
        """The row of each output."""
        return [tensor.data[0].copy() for tensor in self.request.output_tensors]


class _Job:
    """One image under way.

    As long as it is, it and its request hold each other: whoever freed a request that never ends would wait for it.
    """

    __slots__ = ("_deadline", "_held", "_late", "_limit_seconds", "_timer", "answered", "loop")

    def __init__(self, engine: AsyncEngine, place: _Place) -> None:
        self.loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[list[NDArray[Any]]] = self.loop.create_future()
        self._held: tuple[AsyncEngine, _Place] | None = (engine, place)
        self._late = False

    def start(self, request: Any, limit_seconds: float) -> None:
        """Begin; ``answered`` says what came of it."""
        self._limit_seconds = limit_seconds
        self._deadline = self.loop.time() + limit_seconds
        self._look_later()
        try:
            request.start_async(None, self)
        except RuntimeError as error:
            self.end(error)

    def _look_later(self) -> None:
        """Look after a while whether the inference has failed, of which OpenVINO tells nobody, or takes too long."""
        self._timer = self.loop.call_later(min(_LOOK_SECONDS, self._limit_seconds), self._look)

    def _look(self) -> None:
        if self._held is None:
            return
        engine, place = self._held
        try:
            is_done = place.request.wait_for(0)
        except RuntimeError as error:
            self.end(error)
            return
        if not (is_done or self._late) and self.loop.time() >= self._deadline:
            self._late = True
            engine.count_late()
            if not self.answered.done():
                self.answered.set_exception(_timeout(self._limit_seconds))
        self._look_later()

    def hand_over(self) -> None:
        """Give the answer to the event loop; called in a thread of OpenVINO's."""
        if self._held is None:
            return
        outcome: list[NDArray[Any]] | Exception
        try:
            outcome = self._held[1].results()
        except Exception as error:  # noqa: BLE001  raised here, nobody would hear of it
            outcome = error
        try:
            self.loop.call_soon_threadsafe(self.end, outcome)
        except RuntimeError:  # the loop has been closed meanwhile
            self._held = None

    def end(self, outcome: list[NDArray[Any]] | Exception) -> None:
        """Free the place, and say what came of it."""
        self._timer.cancel()
        if self._held is None:
            return
        engine, place = self._held
        self._held = None
        engine.give_back(place, late=self._late)
        if self.answered.done():
            return
        if isinstance(outcome, Exception):
            self.answered.set_exception(outcome)
        else:
            self.answered.set_result(outcome)


def _done(job: _Job) -> None:
    job.hand_over()
