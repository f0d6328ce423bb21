"""The models that are served: by name, each replaced by its file's next version as soon as that is there and sound."""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tellapart.errors import ModelError, RequestError
from tellapart.inference.async_engine import AsyncEngine
from tellapart.inference.model import ModelFile, read_model
from tellapart.inference.predict import VERDICT_OUTPUTS
from tellapart.records import ModelCard
from tellapart.serving.refusals import refuse
from tellapart.storage import sha256

LOG = logging.getLogger("tellapart.serving")

_VERSION_DIGITS = 12

FileIdentity = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedModel:
    """One version of a model, ready to answer.

    Attributes:
        version: first digits of the SHA-256 of its file.
    """

    name: str
    version: str
    file: ModelFile = field(repr=False)
    engine: AsyncEngine = field(repr=False)

    @property
    def card(self) -> ModelCard:
        """What the file says about itself."""
        return self.file.card


@dataclass(kw_only=True, slots=True)
class _Place:
    path: Path
    model: ServedModel
    identity: FileIdentity | None
    swaps: int = 0
    error: str = ""


class Shelf:
    """Models by name; the first is the one that is meant where none is named.

    Args:
        arguments: model files, each a path or ``NAME=PATH``.
        inference_seconds: how long an inference may take.

    Raises:
        ModelError: a file cannot be used.
        RequestError: model-names-clash.
    """

    def __init__(self, arguments: Sequence[str], inference_seconds: float) -> None:
        self._inference_seconds = inference_seconds
        self._places: dict[str, _Place] = {}
        for argument in arguments:
            name, path = _named(argument)
            if name in self._places:
                message = f"two models would be served as {name!r}"
                raise RequestError("model-names-clash", message, hint=f"name one: other={path}")
            identity = _identity(path)
            model = open_model(name, path, inference_seconds)
            self._places[name] = _Place(path=path, model=model, identity=identity)

    @property
    def names(self) -> list[str]:
        """Of the models, in the order they were given."""
        return list(self._places)

    def get(self, name: str = "", version: str = "") -> ServedModel:
        """The model of that name and version as it is now; the first, and the current one, where they are empty.

        Raises:
            RequestError: no-such-model.
        """
        place = self._places.get(name or next(iter(self._places)))
        if place is None or version not in ("", place.model.version):
            raise refuse("no-such-model", hint="GET /models lists those there are")
        return place.model

    def swaps(self, name: str) -> int:
        """How often a model was replaced by a new version."""
        return self._places[name].swaps

    def error(self, name: str) -> str:
        """Code of the error why the newest file of a model is not used; empty where it is."""
        return self._places[name].error

    async def watch(self, look_seconds: float) -> None:
        """Look at the files again and again, and swap in what is new, for ever."""
        while True:
            await asyncio.sleep(look_seconds)
            for name, place in self._places.items():
                await self._look(name, place)

    async def _look(self, name: str, place: _Place) -> None:
        identity = _identity(place.path)
        if identity is None or identity == place.identity:
            return  # a file that is gone for a moment is about to be replaced; the model in memory goes on
        try:
            model = await asyncio.to_thread(open_model, name, place.path, self._inference_seconds)
        except Exception as error:  # noqa: BLE001  whatever a strange file brings about, the watch goes on
            place.error = error.code if isinstance(error, ModelError) else "damaged-model"
            place.identity = identity
            LOG.warning("model %s: the new file is not used [%s]; the old model goes on", name, place.error)
            return
        if _identity(place.path) != identity:
            return  # replaced again while it was read: look anew
        place.identity, place.error = identity, ""
        if place.model.version == model.version:
            return  # a copy of the file there was: the model goes on
        old, place.model = place.model, model
        place.swaps += 1
        LOG.info("model %s: version %s is now %s", name, old.version, model.version)
        old.engine.retire()


def open_model(name: str, path: Path, inference_seconds: float) -> ServedModel:
    """Read, verify, compile and warm up a model.

    Raises:
        ModelError: the file cannot be used.
    """
    file = read_model(path)
    engine = AsyncEngine(
        file.onnx_bytes,
        input_size_px=file.card.preprocess.input_size_px,
        outputs=VERDICT_OUTPUTS,
        limit_seconds=inference_seconds,
    )
    return ServedModel(name=name, version=sha256(file.onnx_bytes)[:_VERSION_DIGITS], file=file, engine=engine)


def _named(argument: str) -> tuple[str, Path]:
    """Name and path; a ``model.onnx`` is named by its run's folder, other files by their own names."""
    name, equals, rest = argument.partition("=")
    if equals and name and os.sep not in name:
        return name, Path(rest)
    path = Path(argument)
    return (path.resolve().parent.name if path.name == "model.onnx" else path.stem) or "model", path


def _identity(path: Path) -> FileIdentity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
