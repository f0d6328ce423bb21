"""Small image files, written byte by byte where Pillow cannot write the kind, so that tests copy no image."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PATCH_PX = 16  # a multiple of JPEG's 16 x 16 blocks: flat patches stay flat under compression


def patches(values):
    """Four flat patches, in reading order, as a picture of 32 x 32 pixels."""
    grid = np.asarray(values).reshape(2, 2, -1).squeeze(-1) if np.ndim(values) == 1 else np.asarray(values).reshape(2, 2, -1)
    return grid.repeat(PATCH_PX, axis=0).repeat(PATCH_PX, axis=1)


def encode(image, image_format, **options):
    """The file that Pillow writes; ``image`` is a Pillow image or an array."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(samples, bit_depth, color_type, *chunks):
    """A PNG of (H, W) or (H, W, C) samples of 1-16 bits. ``chunks``: (name, bytes) put before the pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bit_depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bit_depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in all_chunks)


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(samples, *, photometric=1, byte_order="<", bits=None, sample_format=1, extra_tags=()):
    """An uncompressed TIFF of (H, W) or (H, W, C) samples of 8-32 bits. ``extra_tags``: (tag, value) pairs."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    bits = bits or samples.dtype.itemsize * 8
    pixels = samples.astype(samples.dtype.newbyteorder(byte_order)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height}
    tags |= {279: len(pixels), 339: sample_format} | dict(extra_tags)
    directory_at = 8 + len(pixels) + len(pixels) % 2
    bits_at = directory_at + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag in (258, 339) and channels > 2:  # one value a channel, too long to stand in the entry itself
            entries += struct.pack(byte_order + "HHII", tag, 3, channels, bits_at + (2 * channels if tag == 339 else 0))
        else:
            entries += struct.pack(byte_order + "HHII", tag, 4, 1, value)
    tail = struct.pack(f"{byte_order}{2 * channels}H", *[bits] * channels, *[sample_format] * channels)
    magic = b"II*\0" if byte_order == "<" else b"MM\0*"
    head = magic + struct.pack(byte_order + "I", directory_at) + pixels + b"\0" * (len(pixels) % 2)
    return head + struct.pack(byte_order + "H", len(tags)) + entries + b"\0\0\0\0" + tail
