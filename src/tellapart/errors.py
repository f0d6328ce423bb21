"""Every error a user can meet, each with a stable code.

    TellapartError            something the user can put right
    ├── ImageError            one image file cannot be used; its code becomes the reason in that file's row
    ├── DataError             the data set as a whole cannot be used
    ├── RecipeError           a recipe or a setting is wrong
    ├── TrainingError         training cannot begin, go on or end well
    ├── ModelError            a model file is damaged, foreign, or does not fit
    ├── StorageError          a file or folder cannot be read, written or locked
    └── RequestError          the server refuses a request, or cannot begin to serve

A code is part of the interface: it appears in tables, logs and scripts, and is never renamed.
``CODES`` is the whole list, and ``docs/errors.md`` is made from it; what to do comes with each error as its hint.
"""

from types import MappingProxyType

CODES = MappingProxyType(
    {
        # one image file
        "file-not-found": "there is no such file",
        "unreadable-file": "the operating system refused to read the file",
        "not-a-file": "the path is a folder, a device, a pipe or a socket",
        "empty-file": "the file has no bytes",
        "too-many-bytes": "the file is larger than the limit",
        "not-an-image": "the first bytes are those of no image format",
        "unsupported-format": "an image format that tellapart does not read",
        "unsupported-pixels": "a known format with a kind of pixels that has no agreed meaning as a picture",
        "too-many-pixels": "the image has more pixels than the limit",
        "too-many-frames": "the file has more frames or pages than the limit",
        "extreme-aspect-ratio": "the image is a line rather than a picture",
        "truncated-image": "the file ends before the image does",
        "damaged-image": "the file starts like an image but cannot be decoded",
        # the data set
        "label-conflict": "the same picture is in two classes",
        "unknown-class": "the label is none of the model's classes",
        "bad-row": "the row of a table has more or fewer cells than the header, or the sample of a shard is broken",
        "no-path": "the row of a table, or the sample of a shard, holds or names no image",
        "no-label": "the row of a table, or the sample of a shard, has no label",
        "bad-label": "a cell that should hold 0 or 1, a class, or a list of labels holds something else",
        "outside-root": "the table names a file outside its folder, or an address",
        "unsafe-member": "the member of an archive is a link, a device, or of no ordinary kind",
        "duplicate-key": "an archive holds two members of one name",
        "source-not-found": "there is no such folder or file",
        "unsupported-source": "a kind of file or folder that labelled images cannot be read from",
        "damaged-table": "the table of labels cannot be read",
        "damaged-archive": "the archive cannot be read",
        "no-such-column": "the table has no column of that name",
        "unknown-columns": "no column of the table could be recognised as what is needed",
        "ambiguous-columns": "several columns, or folders, could be what is needed",
        "bad-split": "a part that is none of train, val, calib and test",
        "task-mismatch": "the model and the source differ in how many labels an image has",
        "offline": "something that is not on this machine, and may not or cannot be fetched",
        "no-images": "no image was found",
        "single-class": "there are images of only one class",
        "empty-class": "a class has no readable image",
        "class-names-clash": "two classes have names that differ only by case",
        "too-few-images": "a class has too few images",
        "too-few-groups": "there are too few groups for all parts of the split",
        "class-mismatch": "parts, or model and source, that should have the same classes do not",
        # recipes and settings
        "unknown-recipe": "there is no recipe of that name",
        "unknown-setting": "the recipe has no setting of that name",
        "budget-too-short": "the images cannot be read once and reported on within the budget",
        "bad-setting": "the setting has a value it cannot have",
        "bad-labels": "labels and numbers do not fit together",
        # training
        "package-missing": "a package that is needed for this is not installed",
        "loss-not-finite": "the training loss became infinite or not a number",
        "nothing-to-resume": "the run folder holds no unfinished run",
        "unfinished-run": "the run folder holds an unfinished run, which a new one would destroy",
        "resume-changed": "the images are no longer those of the unfinished run",
        "damaged-checkpoint": "the checkpoint cannot be read",
        # model files
        "model-not-found": "there is no such model file",
        "damaged-model": "the model file cannot be parsed or its checksum does not match",
        "foreign-model": "an ONNX file that tellapart did not write",
        "unsafe-model": "the model file asks for something that models do not need",
        "newer-model": "the model file was written by a newer version of tellapart",
        "older-model": "the model file was written by an older version of tellapart, in a form no longer read",
        "no-such-coverage": "the model holds no prediction sets at that coverage",
        "models-differ": "two models that are to be compared are not for the same classes or the same task",
        "weights-mismatch": "pretrained weights are not the ones this version was written for",
        "weights-missing": "the pretrained weights are not where they should be",
        "not-exportable": "the network cannot be made an ONNX graph of plain operators",
        "model-disagrees": "the composed model file answers differently from the model that was fitted",
        # files and folders
        "run-locked": "another run is using the folder",
        "cannot-write": "a file or folder cannot be written",
        "bad-output": "the name of the output file has no known ending",
        "nothing-to-predict": "no file was given",
        "resume-mismatch": "the interrupted run was about other files",
        # the server
        "unsupported-system": "the server needs Linux or macOS",
        "cannot-listen": "the server cannot be reached at that address and port",
        "model-names-clash": "two models are to be served under one name",
        "bad-token": "the token for the server is missing, too short or not of plain characters",
        "decoder-crashed": "decoding the image ended the process that did it; the server goes on",
        "decode-timeout": "decoding the image took longer than the limit",
        "inference-timeout": "the model took longer than the limit",
        "bad-request": "the request is not of the form that the route takes",
        "body-too-large": "the request has more bytes than the limit",
        "too-many-parts": "the request has more parts than the limit",
        "head-too-large": "the request's headers have more bytes than the limit",
        "too-slow": "the request arrived more slowly than the limit",
        "no-such-route": "there is nothing at this address of the server",
        "wrong-method": "the address does not take this kind of request",
        "no-such-model": "the server has no model of that name or version",
        "token-needed": "the server asks for a token, and it is missing or wrong",
        "wrong-host": "the request names another host than those the server answers for",
        "cross-site": "a page of another site sent the request",
        "overloaded": "the server has as much to do as it can take; try again shortly",
        "internal-error": "the server failed; its log says why",
    }
)


class TellapartError(Exception):
    """Something the user can put right.

    Args:
        code: one of ``CODES``.
        message: what was expected, what was found, and where.
        hint: the next step: what to change or to type. May be empty.
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}: add it to tellapart.errors.CODES")
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """One line, or two with a hint: ``[code] message`` and what to do."""
        return f"[{self.code}] {self.message}" + (f"\n  {self.hint}" if self.hint else "")


class ImageError(TellapartError):
    """One image file cannot be used."""


class DataError(TellapartError):
    """The data set as a whole cannot be used."""


class RecipeError(TellapartError):
    """A recipe or a setting is wrong."""


class TrainingError(TellapartError):
    """Training cannot begin, go on or end well."""


class ModelError(TellapartError):
    """A model file is damaged, foreign, or does not fit."""


class StorageError(TellapartError):
    """A file or folder cannot be read, written or locked."""


class RequestError(TellapartError):
    """The server refuses a request, or cannot begin to serve."""
