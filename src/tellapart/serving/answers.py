"""From an upload to a prediction: taken in while there is room, decoded elsewhere, answered by the model it began with."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tellapart.errors import ImageError
from tellapart.evaluation.decide import decide, require_coverage
from tellapart.imaging.decode import Pixels
from tellapart.records import Prediction
from tellapart.serving.collecting import Collector
from tellapart.serving.decoders import Decoders, RequireWanted
from tellapart.serving.measures import Measures
from tellapart.serving.refusals import refuse
from tellapart.serving.shelf import ServedModel
from tellapart.serving.uploads import Upload


class Room:
    """A number of places; who finds none free is refused at once instead of waiting."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether there is none left."""
        return self.taken >= self.places

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold some places.

        Raises:
            RequestError: overloaded.
        """
        if self.taken + count > self.places:
            raise refuse("overloaded")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


class Answers:
    """Answers images, in the order in which they came.

    Args:
        decoders: where they are decoded.
        room: for images that are taken in.
        measures: where answers are counted.
        collector: keeps what the model was unsure about.
    """

    def __init__(self, decoders: Decoders, room: Room, measures: Measures, collector: Collector) -> None:
        self._decoders = decoders
        self._room = room
        self._measures = measures
        self._collector = collector

    async def predict(
        self,
        model: ServedModel,
        images: Sequence[Upload] | Pixels,
        *,
        coverage: float | None = None,
        keep: bool = False,
        require_wanted: RequireWanted | None = None,
    ) -> list[Prediction]:
        """One prediction an image, in order.

        Args:
            model: answers all of them.
            images: uploads, or (N, S, S, 3) uint8 inputs of the model.
            coverage: of the prediction sets; the model's own when None.
            keep: whether uploads may be kept for labelling.
            require_wanted: called before an upload is decoded and before the model is asked; what it raises ends the request.

        Raises:
            RequestError: overloaded, too-many-parts.
            ModelError: no-such-coverage, inference-timeout.
        """
        if coverage is not None:
            require_coverage(model.card, coverage)
        if len(images) > self._room.places:
            raise refuse("too-many-parts", f"more than {self._room.places} images")
        with self._room.take(len(images)):
            if len(images) == 1:  # the most frequent; spares a task
                return [await self._predict_one(model, images[0], coverage, keep, require_wanted)]
            jobs = (self._predict_one(model, one, coverage, keep, require_wanted) for one in images)
            # All of them, also after a failure: each has a place as long as it works.
            said = await asyncio.gather(*jobs, return_exceptions=True)
            for one in said:
                if isinstance(one, BaseException):
                    raise one
            return [one for one in said if isinstance(one, Prediction)]

    async def _predict_one(
        self,
        model: ServedModel,
        image: Upload | Pixels,
        coverage: float | None,
        keep: bool,
        require_wanted: RequireWanted | None,
    ) -> Prediction:
        name = image.name if isinstance(image, Upload) else ""
        try:
            pixels = (
                await self._decoders.decode(image.data, model.card.preprocess, require_wanted)
                if isinstance(image, Upload)
                else image
            )
            said = decide(name, await model.engine.run(pixels, require_wanted), model.card, coverage)
        except ImageError as error:
            said = Prediction(path=name, verdict="error", error=error.code)
        self._measures.count_answer(model, said)
        if keep and isinstance(image, Upload):
            self._collector.offer(model, image.data, said)
        return said
