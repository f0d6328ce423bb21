"""An unfinished run: what it was about, so that it can go on."""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tellapart.errors import TellapartError, TrainingError
from tellapart.records import LOCAL, SourceOptions
from tellapart.storage import write_json
from tellapart.training.loop_recipe import LoopRecipe
from tellapart.training.recipes import Recipe, build_recipe, recipe_settings

STATE_FILE = "state.json"
"""Name of the file in a run's checkpoint folder without which nothing has been learned yet."""

_RUN_FILE = "run.json"
_TEMPORARY_FILES = f".*.{'[0-9a-f]' * 12}.tmp"  # as storage.atomic_file names them


def checkpoint_folder(folder: Path) -> Path:
    """Where a run keeps its checkpoint."""
    return folder / "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfinishedRun:
    """A run that was begun and has not come to its end.

    Attributes:
        source: where its images are; empty for a table in memory.
        recipe: as it was asked for.
        seed: of its splits and all else.
        options: what was said about the source.
        fingerprint: of the dataset after the split; empty until then.
    """

    source: str
    recipe: Recipe
    seed: int
    options: SourceOptions = field(default_factory=SourceOptions)
    fingerprint: str = ""


def is_unfinished(folder: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return all((checkpoint_folder(folder) / name).exists() for name in (_RUN_FILE, STATE_FILE))


def begin_run(folder: Path, run: UnfinishedRun) -> None:
    """Note what a run is about before it begins; recipes without a gradient loop have nothing to go on from.

    Raises:
        TrainingError: unfinished-run, when the folder holds another one that has learned something. One that ended before its
            first checkpoint, because a setting was wrong or an image missing, is in nobody's way.
    """
    if is_unfinished(folder):
        message = f"{folder} holds an unfinished run, which a new one would destroy"
        hint = (
            f"go on with: tellapart train --resume {folder}; or begin anew in another folder with --out, "
            f"or after deleting {checkpoint_folder(folder)}"
        )
        raise TrainingError("unfinished-run", message, hint=hint)
    _clear(folder)
    if isinstance(run.recipe, LoopRecipe):
        _write(folder, run)


def read_run(folder: Path) -> UnfinishedRun:
    """Read what the unfinished run in a folder is about.

    Raises:
        TrainingError: nothing-to-resume, damaged-checkpoint.
    """
    path = checkpoint_folder(folder) / _RUN_FILE
    try:
        document = json.loads(path.read_bytes())
        settings = _found_from_here(document["settings"], Path(document["working_folder"]))
        recipe = build_recipe(settings.pop("name"), settings)
        options = document["options"]
        return UnfinishedRun(
            source=document["source"],
            options=SourceOptions(**{**options, "labels": tuple(options["labels"])}),
            recipe=recipe,
            seed=document["seed"],
            fingerprint=document["fingerprint"],
        )
    except FileNotFoundError as error:
        message = f"{folder} holds no unfinished run"
        raise TrainingError("nothing-to-resume", message, hint="begin one with: tellapart train FOLDER") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TellapartError) as error:
        hint = f"delete the folder {checkpoint_folder(folder)} and train again"
        raise TrainingError("damaged-checkpoint", f"{path}: {error}", hint=hint) from error


def require_same_images(folder: Path, run: UnfinishedRun, fingerprint: str) -> None:
    """Note the images of a run once they are known; on going on, raise unless they are the same.

    Raises:
        TrainingError: resume-changed.
    """
    if not isinstance(run.recipe, LoopRecipe):
        return
    if not run.fingerprint:
        _write(folder, replace(run, fingerprint=fingerprint))
    elif run.fingerprint != fingerprint:
        message = f"the images in {run.source} are not those that the run in {folder} began with"
        hint = f"bring them back, or train anew in another folder: tellapart train {run.source} --out FOLDER"
        raise TrainingError("resume-changed", message, hint=hint)


def finish_run(folder: Path) -> None:
    """Delete the checkpoint of a run that has come to its end; the note goes first, so that no half is taken for a run."""
    (checkpoint_folder(folder) / _RUN_FILE).unlink(missing_ok=True)
    _clear(folder)


def _clear(folder: Path) -> None:
    """Delete what is left of a checkpoint, and the temporary files of processes that were killed while writing."""
    shutil.rmtree(checkpoint_folder(folder), ignore_errors=True)
    for path in folder.glob(_TEMPORARY_FILES):
        path.unlink(missing_ok=True)


def _found_from_here(settings: dict[str, Any], working_folder: Path) -> dict[str, Any]:
    """The settings of a run that was begun in another working folder, with the files they name found from this one."""
    if working_folder == Path.cwd():
        return settings

    def found(prefix: str, name: str) -> str:
        return f"{prefix}{working_folder / name}"

    changed = dict(settings)
    if settings.get("weights"):
        changed["weights"] = found("", settings["weights"])
    if settings.get("backbone", "").startswith(LOCAL):
        changed["backbone"] = found(LOCAL, settings["backbone"].removeprefix(LOCAL))
    if settings.get("first_layer_filters", "").lower().endswith(".npy"):
        changed["first_layer_filters"] = found("", settings["first_layer_filters"])
    return changed


def _write(folder: Path, run: UnfinishedRun) -> None:
    document = {
        "source": run.source,
        "options": asdict(run.options),
        "settings": recipe_settings(run.recipe),
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "working_folder": str(Path.cwd()),
    }
    write_json(checkpoint_folder(folder) / _RUN_FILE, document)
