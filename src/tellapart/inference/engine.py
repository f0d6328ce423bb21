"""Engines run a model on pixels."""

import functools
import threading
from collections.abc import Collection, Generator, Iterable
from typing import Any, Literal, Protocol

import numpy as np
import openvino
from numpy.typing import NDArray

from tellapart.errors import ImageError, ModelError
from tellapart.imaging.decode import ImageFile, Pixels
from tellapart.imaging.pool import batched, cpu_count, map_ordered
from tellapart.imaging.preprocess import load_input, preprocess_image
from tellapart.imaging.thumbnail import make_thumbnails
from tellapart.records import Preprocess

Precision = Literal["f32", "bf16"]
Outputs = dict[str, NDArray[Any]]
ImageSource = ImageFile | Pixels

BATCH_SIZE = 4
"""Images a request. Measured on two cores: 1 gives 95 % of the speed of 4, and 16 gives 85 %."""


class Engine(Protocol):
    """Runs a model; safe to call from several threads, and fastest when called from as many as there are processors."""

    precision: Precision

    def run(self, images: Pixels) -> Outputs:
        """Run the model on (B, S, S, 3) uint8; every output has B rows."""
        ...


def best_precision() -> Precision:
    """Bfloat16 where this processor computes in it natively, which is about twice as fast; float32 elsewhere."""
    return "bf16" if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


@functools.cache
def _core() -> openvino.Core:
    """The one core, which is never given up.

    Its CPU plugin makes a stack for the signal handlers of the thread that loads it, and frees that when it goes; in whichever
    thread that happens, the first one keeps the freed stack, and its next signal, such as Ctrl-C, ends the process.
    """
    return openvino.Core()


def compile_model(
    model_bytes: bytes,
    *,
    input_size_px: int,
    batch_size: int,
    precision: Precision,
    outputs: Collection[str] | None = None,
) -> openvino.CompiledModel:
    """Make an ONNX model ready to run on (batch_size, S, S, 3), in as many streams of one thread as there are processors.

    Raises:
        ModelError: damaged-model, when OpenVINO cannot make sense of it.
    """
    core = _core()
    try:
        model = core.read_model(model=model_bytes)
        if outputs is not None:
            wanted = [
                result for result in model.get_results() if result.input(0).get_tensor().names & set(outputs)
            ]
            model = openvino.Model(wanted, model.get_parameters())
        model.reshape([batch_size, input_size_px, input_size_px, 3])
        config = {"NUM_STREAMS": str(cpu_count()), "INFERENCE_PRECISION_HINT": precision}
        return core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        message = str(error).strip().splitlines()[-1] if str(error).strip() else "OpenVINO cannot compile it"
        raise ModelError("damaged-model", f"the model cannot be run: {message}") from error


def output_names(model: openvino.CompiledModel) -> list[tuple[str, int]]:
    """Every output's name and its place; one place may have several, where the engine saw that they are the same numbers."""
    return [(name, i) for i, port in enumerate(model.outputs) for name in sorted(port.get_names())]


class OpenVINOEngine:
    """An ONNX model on the CPU, in as many streams of one thread as there are processors.

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
            batch_size=BATCH_SIZE,
            precision=self.precision,
            outputs=outputs,
        )
        self._names = output_names(self._model)
        self._input_shape = (BATCH_SIZE, input_size_px, input_size_px, 3)
        self._thread = threading.local()
        # The first tensor is made here, by one thread: OpenVINO's binding sets itself up at first use, and two threads that
        # get there together wait for each other for ever, one with the interpreter's lock and one with the binding's.
        self.run(np.zeros(self._input_shape, dtype=np.uint8))

    def run(self, images: Pixels) -> Outputs:
        """Run the model on (B, S, S, 3) uint8; every output has B rows."""
        parts = [self._run_batch(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
        return {name: np.concatenate([part[i] for part in parts]) for name, i in self._names}

    def _run_batch(self, images: Pixels) -> list[NDArray[np.float32]]:
        if not hasattr(self._thread, "request"):
            self._thread.request = self._model.create_infer_request()
        if len(images) < BATCH_SIZE:
            padded = np.zeros(self._input_shape, dtype=np.uint8)
            padded[: len(images)] = images
        else:
            padded = np.ascontiguousarray(images)
        results = self._thread.request.infer({0: padded}, share_inputs=True)
        return [results[i][: len(images)].copy() for i in range(len(self._model.outputs))]


class WithThumbnails:
    """An engine that keeps a thumbnail of every image it sees, as the output ``thumbnail``."""

    def __init__(self, engine: Engine) -> None:
        self.precision: Precision = engine.precision
        self._engine = engine

    def run(self, images: Pixels) -> Outputs:
        """Run the engine on (B, S, S, 3) uint8, and reduce the images to (B, 32, 32)."""
        return {**self._engine.run(images), "thumbnail": make_thumbnails(images)}


def iter_outputs(
    engine: Engine, preprocess: Preprocess, sources: Iterable[ImageSource]
) -> Generator[Outputs | ImageError, None, None]:
    """Decode images and run the engine on them, both in all processors' threads.

    Args:
        engine: with the input size of ``preprocess``.
        preprocess: how an image becomes the model's input.
        sources: paths, encoded bytes, or (H, W, 3) uint8 arrays; taken only as fast as results are.

    Yields:
        For each source, in order, one row of every output, or why the image cannot be used.
    """

    def run(batch: list[ImageSource]) -> list[Outputs | ImageError]:
        inputs = [_input_or_error(source, preprocess) for source in batch]
        readable = [pixels for pixels in inputs if not isinstance(pixels, ImageError)]
        outputs = engine.run(np.stack(readable)) if readable else {}
        rows = iter(range(len(readable)))
        return [pixels if isinstance(pixels, ImageError) else _row(outputs, next(rows)) for pixels in inputs]

    # One thread more than processors: while two wait for the engine's streams, the third decodes.
    for answers in map_ordered(run, batched(sources, BATCH_SIZE), workers=cpu_count() + 1):
        yield from answers


def _row(outputs: Outputs, i: int) -> Outputs:
    return {name: values[i] for name, values in outputs.items()}


def _input_or_error(source: ImageSource, preprocess: Preprocess) -> Pixels | ImageError:
    try:
        if not isinstance(source, np.ndarray):
            return load_input(source, preprocess)
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            message = f"expected an array (H, W, 3) of uint8 RGB, got {source.shape} of {source.dtype}"
            raise ImageError("unsupported-pixels", message)
        return preprocess_image(source, preprocess)
    except ImageError as error:
        return error
