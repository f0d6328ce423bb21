"""A process of its own that decodes untrusted bytes: when one of them ends it, that image has an error and all else goes on.

A job is a header of fixed form, which comes through a socket; the image's bytes are in memory that both processes share, and so
are the pixels of the answer. Nothing that is exchanged is code, or could become code.
"""

import contextlib
import io
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from typing import Literal, get_args

from PIL import Image

from tellapart.errors import ImageError
from tellapart.imaging.decode import DecodeLimits, decode_image
from tellapart.imaging.preprocess import load_input
from tellapart.records import Interpolation, Preprocess, ResizeMode

JobKind = Literal["input", "picture"]
"""The model's input; or the image to look at, as a JPEG file that holds pixels and nothing else."""

JOB = struct.Struct("<BBBxIdQQQ")
"""Kind, resize mode, interpolation, input side, crop share, most bytes, most pixels, and how many bytes the image has."""

ANSWER = struct.Struct("<BxxxxxxxQ")
"""Whether it is an error, and how many bytes of the shared memory hold pixels, a file or an error's code."""

SHARED_BYTES = 64 * 2**20
"""More than the largest input or image file; memory is taken only where it is written to."""

PICTURE_PX = 1600
_PICTURE_QUALITY = 92
_KINDS, _RESIZES, _INTERPOLATIONS = get_args(JobKind), get_args(ResizeMode), get_args(Interpolation)
_NICE = 1
"""So that answers, which many wait for, are not kept waiting by one more image."""

_MAX_MEMORY_BYTES = 3 * 2**30


def pack_job(kind: JobKind, spec: Preprocess, limits: DecodeLimits, n_bytes: int) -> bytes:
    """The header of a job."""
    return JOB.pack(
        _KINDS.index(kind),
        _RESIZES.index(spec.resize),
        _INTERPOLATIONS.index(spec.interpolation),
        spec.input_size_px,
        spec.crop_share,
        limits.max_bytes,
        limits.max_pixels,
        n_bytes,
    )


def main() -> None:
    """Work until the other end is closed; the arguments are the descriptors of the socket and of the shared memory."""
    job_socket, shared_descriptor = (int(argument) for argument in sys.argv[1:3])
    _confine()
    with (
        socket.socket(fileno=job_socket) as line,
        mmap.mmap(shared_descriptor, SHARED_BYTES) as shared,
    ):
        while header := line.recv(JOB.size, socket.MSG_WAITALL):
            kind, resize, interpolation, side, crop_share, max_bytes, max_pixels, n_bytes = JOB.unpack(header)
            data = shared[:n_bytes]  # a copy: the answer goes to the same place
            spec = Preprocess(
                input_size_px=side,
                resize=_RESIZES[resize],
                interpolation=_INTERPOLATIONS[interpolation],
                crop_share=crop_share,
            )
            limits = DecodeLimits(max_bytes=max_bytes, max_pixels=max_pixels)
            line.sendall(_answer(_KINDS[kind], data, spec, limits, shared))


def _answer(kind: JobKind, data: bytes, spec: Preprocess, limits: DecodeLimits, shared: mmap.mmap) -> bytes:
    """Leave the result in the shared memory and return the header that says so."""
    try:
        result = _picture(data, limits) if kind == "picture" else load_input(data, spec, limits).tobytes()
        failed = 0
    except ImageError as error:
        result, failed = error.code.encode(), 1
    shared[: len(result)] = result
    return ANSWER.pack(failed, len(result))


def _picture(data: bytes, limits: DecodeLimits) -> bytes:
    """The image as a new file, upright, reduced, without anything of the old file but its pixels."""
    picture = Image.fromarray(decode_image(data, target_px=PICTURE_PX, limits=limits))
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_PICTURE_QUALITY)
    return file.getvalue()


def _confine() -> None:
    """Leave Ctrl-C to the server, write no core files, take no more memory than a sound image needs, let others go first."""
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS knows the limit and does not take it
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
