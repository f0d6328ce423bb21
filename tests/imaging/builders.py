"""Small image files, written byte by byte where Pillow cannot write the kind, so that tests copy no image."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()  # also registers the encoder

DATA = Path(os.environ.get("TELLAPART_DATA", Path(__file__).parents[2] / "../shared/data"))
PATCH_PX = 16  # the size of JPEG's largest blocks: flat patches stay flat under compression


def patches(values, dtype=np.uint8):
    """Four flat patches, in reading order, as a picture of 32 x 32 pixels."""
    grid = np.asarray(values, dtype).reshape(2, 2, *np.shape(values)[1:])
    return grid.repeat(PATCH_PX, axis=0).repeat(PATCH_PX, axis=1)


def photo(width, height):
    """Shading, edges and texture, as in a photo; the same picture every time."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    shading = np.stack([60 + 150 * x, 40 + 120 * y + 40 * x, 200 - 140 * x * y], axis=2)
    waves = 35 * np.sin(90 * x + 25 * y * y)[..., None] * np.array([1, -0.6, 0.4])
    disc = 60 * ((x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.04)[..., None] * np.array([1, 0.2, -1])
    return (shading + waves + disc + noise).clip(0, 255).astype(np.uint8)


def encode(image, image_format, **options):
    """The file that Pillow writes; ``image`` is a Pillow image or an array."""
    file = io.BytesIO()
    if "append_images" in options:  # copies, because saving leaves traces in an image
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(samples, bit_depth, color_type, *chunks):
    """A PNG of (H, W) or (H, W, C) samples of 1-16 bits. ``chunks``: (name, content), before the pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bit_depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bit_depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    pixels = b"".join(b"\0" + row.tobytes() for row in packed)
    return png_file(width, height, bit_depth, color_type, *chunks, (b"IDAT", zlib.compress(pixels)))


def png_file(width, height, bit_depth, color_type, *chunks):
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        checksum = zlib.crc32(name + content)
        file += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return file


def tiff(samples, byte_order="<", *, sample_format=1, photometric=1):
    """An uncompressed TIFF of (H, W) or (H, W, C) samples; sample_format 1 unsigned, 2 signed, 3 float."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    pixels = samples.astype(samples.dtype.newbyteorder(byte_order)).tobytes()
    bits = samples.dtype.itemsize * 8
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: channels}
    tags |= {258: [bits] * channels, 339: [sample_format] * channels}
    return tiff_file(tags, pixels, byte_order)


def gray_12_bit_tiff(samples):
    pairs = samples.reshape(-1, 2).astype(np.uint16)
    packed = np.stack([pairs[:, 0] >> 4, pairs[:, 0] << 4 | pairs[:, 1] >> 8, pairs[:, 1]], axis=1)
    height, width = samples.shape
    tags = {256: width, 257: height, 258: [12], 259: 1, 262: 1, 277: 1}
    return tiff_file(tags, packed.astype(np.uint8).tobytes())


def tiff_file(tags, pixels, byte_order="<"):
    """One strip, or one tile where ``tags`` has its width. A value is an int (long) or a list (shorts)."""
    place, count = (324, 325) if 322 in tags else (273, 279)
    tags = tags | {place: 8, count: len(pixels)}
    pixels += b"\0" * (len(pixels) % 2)
    lists_at = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    entries = lists = b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, int):
            entries += struct.pack(byte_order + "HHII", tag, 4, 1, value)
        elif len(value) == 1:
            entries += struct.pack(byte_order + "HHIHH", tag, 3, 1, *value, 0)
        else:
            entries += struct.pack(byte_order + "HHII", tag, 3, len(value), lists_at + len(lists))
            lists += struct.pack(f"{byte_order}{len(value)}H", *value)
    head = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(byte_order + "I", 8 + len(pixels))
    return head + pixels + struct.pack(byte_order + "H", len(tags)) + entries + b"\0\0\0\0" + lists


def ycck_jpeg(colors):
    """A JPEG of flat (C, M, Y, K) patches, stored as Photoshop does: inverted, and CMY as luma and chroma."""
    cyan, magenta, yellow, black = np.moveaxis(patches(colors, float), 2, 0)
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    chroma = 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma)
    stored = np.stack([luma, *chroma, 255 - black], axis=2).round().astype(np.uint8)
    file = encode(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=98)  # Pillow inverts
    transform = file.index(b"Adobe") + 11
    return file[:transform] + b"\2" + file[transform + 1 :]


def lossless_jpeg(width, height, channels):
    """A flat gray picture in JPEG's rare lossless mode."""

    def segment(marker, content):
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    frame = b"".join(bytes([i, 0x11, 0]) for i in range(channels))
    scan = b"".join(bytes([i, 0]) for i in range(channels))
    return (
        b"\xff\xd8"
        + segment(0xC3, struct.pack(">BHHB", 8, height, width, channels) + frame)
        + segment(0xC4, bytes([0, 1, *[0] * 15, 0]))  # one code: "0" for "no difference"
        + segment(0xDA, bytes([channels]) + scan + bytes([1, 0, 0]))
        + bytes((width * height * channels + 7) // 8)
        + b"\xff\xd9"
    )


def matrix_profile(primaries, gamma, description="made for a test"):
    """An RGB profile. ``primaries``: (3, 3), XYZ under D50, one primary a column."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    tags = {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), np.transpose(primaries), strict=True):
        tags[name] = b"XYZ \0\0\0\0" + _fixed_point(xyz)
    return _profile(b"mntr", b"RGB ", b"XYZ ", description, tags)


def gray_profile(gamma):
    curve = b"curv" + struct.pack(">IIH", 0, 1, gamma * 256)
    return _profile(b"mntr", b"GRAY", b"XYZ ", "gray", {b"kTRC": curve})


def black_ink_profile():
    """A CMYK profile in which only black ink shows: L* falls evenly from 100 to 0; C, M, Y do nothing."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if corner % 2 else 255, 128, 128]) for corner in range(16))
    identity = _fixed_point([1, 0, 0, 0, 1, 0, 0, 0, 1])
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", "black ink", {b"A2B0": table})


def _fixed_point(values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _profile(device_class, color_space, connection_space, description, tags):
    """An ICC version 2 profile."""
    white = _fixed_point([0.9642, 1, 0.8249])
    text = description.encode() + b"\0"
    tags = tags | {
        b"desc": b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + white,
    }
    table, contents = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    kind = struct.pack(">III", 0, 0, 0x02100000) + device_class + color_space + connection_space
    head = kind + bytes(12) + b"acsp" + bytes(28)
    body = head + white + bytes(128 - len(head) - len(white)) + table + contents
    return struct.pack(">I", len(body)) + body[4:]
