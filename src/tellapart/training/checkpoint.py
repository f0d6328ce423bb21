"""Checkpoints: everything a run needs to go on as if it had never stopped."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tellapart.errors import TrainingError
from tellapart.storage import sha256, write_bytes, write_json
from tellapart.training.resume import STATE_FILE

CHECKPOINT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        tensors: weights, averages, the optimiser's moments, the best weights so far; by name.
        state: position, clock, log: plain data.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    state: Mapping[str, Any]


class CheckpointFolder:
    """A folder with the newest checkpoint of one run.

    The tensors are written under a name of their own before ``state.json`` points to them, and the former ones go last: at every
    moment ``state.json`` belongs to whole tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; if that fails, the last one is as it was.

        Raises:
            StorageError: cannot-write.
        """
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
        name = f"tensors-{secrets.token_hex(6)}.safetensors"
        document = {
            "version": CHECKPOINT_VERSION,
            "tensors": name,
            "sha256": _checksum(data, checkpoint.state),
            "state": checkpoint.state,
        }
        try:
            write_bytes(self.folder / name, data)
            write_json(self.folder / STATE_FILE, document)
        finally:
            self._delete_leftovers()

    def load(self) -> Checkpoint | None:
        """The newest checkpoint; None where none was written yet.

        Raises:
            TrainingError: damaged-checkpoint.
        """
        try:
            document = json.loads((self.folder / STATE_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        try:
            data = (self.folder / os.path.basename(document["tensors"])).read_bytes()  # noqa: PTH119  never a path
            checksum = _checksum(data, document["state"])
            if document["version"] != CHECKPOINT_VERSION or checksum != document["sha256"]:
                raise self._damaged("its checksum or version differs")
            return Checkpoint(tensors=load(data), state=document["state"])
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged(str(error)) from error

    def _delete_leftovers(self) -> None:
        """Delete what ``state.json`` does not name: the former tensors; or the new ones, if it could not be written.

        It is read again, because a write that failed may have taken place: the last part of one is only to make it durable.
        """
        try:
            kept = json.loads((self.folder / STATE_FILE).read_bytes())["tensors"]
        except FileNotFoundError:
            kept = ""
        except (OSError, ValueError, KeyError, TypeError):
            return  # nobody knows which tensors are of use
        for path in self.folder.glob("tensors-*.safetensors"):
            if path.name != kept:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
            path.unlink(missing_ok=True)

    def _damaged(self, why: str) -> TrainingError:
        hint = f"delete the folder {self.folder} and train again"
        return TrainingError("damaged-checkpoint", f"{self.folder / STATE_FILE}: {why}", hint=hint)


def _checksum(data: bytes, state: Mapping[str, Any]) -> str:
    """Of the tensors' file and of the state, so that neither can change without the other."""
    return sha256((sha256(data) + json.dumps(state, sort_keys=True)).encode())
