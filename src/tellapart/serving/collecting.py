"""Images the model was unsure about, kept for labelling where the server was asked to: pixels only, and not too many."""

import asyncio
import logging
from pathlib import Path

from tellapart.errors import TellapartError
from tellapart.records import Prediction
from tellapart.serving.decoders import Decoders
from tellapart.serving.shelf import ServedModel
from tellapart.storage import sha256, write_bytes, writing

LOG = logging.getLogger("tellapart.serving")

KEPT_VERDICTS = ("unsure", "unfamiliar")
MAX_FILES = 10_000
MAX_BYTES = 2**30
_MAX_WAITING = 4
_NAME_DIGITS = 32


class Collector:
    """A folder with a folder for each verdict that is kept.

    A file's name is the hash of the upload, so that the same upload is kept once; nothing of the upload but its pixels is kept.

    Args:
        folder: made where it is missing; None keeps nothing.
        decoders: where images are decoded.

    Raises:
        StorageError: cannot-write.
    """

    def __init__(self, folder: Path | None, decoders: Decoders) -> None:
        self._folder = folder
        self._decoders = decoders
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: set[str] = set()
        self._bytes = 0
        if folder is not None:
            for verdict in KEPT_VERDICTS:
                with writing(folder / verdict):
                    (folder / verdict).mkdir(parents=True, exist_ok=True)
                for path in (folder / verdict).glob("*.jpg"):
                    self._names.add(path.stem)
                    self._bytes += path.stat().st_size

    def offer(self, model: ServedModel, data: bytes, prediction: Prediction) -> None:
        """Keep an image if it is worth a look, soon; nobody waits for it, and it is left out while no decoder has time."""
        if self._folder is None or prediction.verdict not in KEPT_VERDICTS:
            return
        if not self._decoders.has_idle or len(self._tasks) >= _MAX_WAITING:
            return
        task = asyncio.create_task(self._keep(self._folder / prediction.verdict, model, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is being kept."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, folder: Path, model: ServedModel, data: bytes) -> None:
        name = (await asyncio.to_thread(sha256, data))[:_NAME_DIGITS]
        if name in self._names or len(self._names) >= MAX_FILES or self._bytes >= MAX_BYTES:
            return
        self._names.add(name)
        try:
            picture = await self._decoders.picture(data, model.card.preprocess)
            await asyncio.to_thread(write_bytes, folder / f"{name}.jpg", picture)
            self._bytes += len(picture)
        except TellapartError as error:
            self._names.discard(name)
            LOG.warning("an image could not be kept [%s]", error.code)
