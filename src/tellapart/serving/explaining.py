"""Heat maps for those who ask: a few at a time, and never longer than it takes to cover a hundred places."""

import asyncio
import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from tellapart.errors import ModelError
from tellapart.evaluation.task import RULES
from tellapart.explain.colors import Scale
from tellapart.explain.occlusion import occlusion_map
from tellapart.explain.story import heat
from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.heatmap import HEATMAP, class_evidence
from tellapart.serving.answers import Room
from tellapart.serving.decoders import Decoders, RequireWanted
from tellapart.serving.refusals import refuse
from tellapart.serving.shelf import ServedModel

_PLACES_A_SIDE = 10
_KEPT_ENGINES = 2


class Explainer:
    """Explains images, one after another.

    Args:
        decoders: where images are decoded.
        room: for requests that are taken in.
        limit_seconds: how long one may take, from when its turn comes.
    """

    def __init__(self, decoders: Decoders, room: Room, limit_seconds: float) -> None:
        self._decoders = decoders
        self._room = room
        self._limit_seconds = limit_seconds
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._engines: OrderedDict[tuple[str, str], OpenVINOEngine] = OrderedDict()

    async def explain(
        self, model: ServedModel, data: bytes, class_name: str, require_wanted: RequireWanted | None = None
    ) -> bytes:
        """A PNG picture: the image in gray, orange where it speaks for the class, blue where against it.

        Args:
            model: answers.
            data: the image file's bytes.
            class_name: the most probable one when empty.
            require_wanted: called before the image is decoded and when its turn comes; what it raises ends the request.

        Raises:
            RequestError: overloaded, unknown-class.
            ImageError: the image cannot be decoded.
            ModelError: inference-timeout.
        """
        if class_name and class_name not in model.card.class_names:
            raise refuse("unknown-class", "the model has no such class", hint="GET /model lists its class_names")
        with self._room.take(1):
            pixels = await self._decoders.decode(data, model.card.preprocess, require_wanted)
            async with self._turn:
                if require_wanted is not None:
                    require_wanted()
                return await self._in_time(model, pixels, class_name)

    def close(self) -> None:
        """Take nothing more; nobody waits for what is under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_time(self, model: ServedModel, pixels: Pixels, class_name: str) -> bytes:
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._picture, model, pixels, class_name)
        done, _ = await asyncio.wait([work], timeout=self._limit_seconds)
        if not done:
            self.close()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
            raise ModelError("inference-timeout", f"a heat map may take {self._limit_seconds:g} seconds")
        return work.result()

    def _picture(self, model: ServedModel, pixels: Pixels, class_name: str) -> bytes:
        card, engine = model.card, self._engine(model)
        answer = {name: values[0] for name, values in engine.run(pixels[None]).items()}
        index = card.class_names.index(class_name) if class_name else int(np.argmax(answer["probs"]))
        if HEATMAP in answer:
            values = class_evidence(answer, index, exclusive=RULES[card.task].activation == "Softmax")
        else:
            patch_px = max(2, round(len(pixels) / 5))
            stride_px = max(1, round(len(pixels) / _PLACES_A_SIDE))
            values = occlusion_map(engine, pixels, index, patch_px=patch_px, stride_px=min(stride_px, patch_px))
        values = np.nan_to_num(values)
        largest = float(np.abs(values).max())
        file = io.BytesIO()
        painted = heat(values, Scale(palette="diverging", low=-largest, high=largest), pixels)
        Image.fromarray(painted).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _engine(self, model: ServedModel) -> OpenVINOEngine:
        """One that also computes class maps; made when it is first asked for, for the last few models that were."""
        key = (model.name, model.version)
        if key not in self._engines:
            self._engines[key] = OpenVINOEngine(
                model.file.onnx_bytes,
                input_size_px=model.card.preprocess.input_size_px,
                outputs=("probs", HEATMAP),
            )
        self._engines.move_to_end(key)
        while len(self._engines) > _KEPT_ENGINES:
            self._engines.popitem(last=False)
        return self._engines[key]
