"""Folders of tiny images for tests of the data side."""

import io
import zlib

import numpy as np
from PIL import Image

TINY_PX = 6


def png(seed):
    """A PNG file of random pixels; the same seed gives the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (TINY_PX, TINY_PX, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fill(root, *paths, **contents):
    """Write files below ``root``: pictures that are all different, text for ``.txt``, a folder for a final slash.

    Args:
        root: the folder; made when missing.
        paths: of files with contents of their own.
        contents: bytes by path, given as ``**{"cat/1.png": data}``.
    """
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            contents.setdefault(path, b"some words" if path.endswith(".txt") else png(zlib.crc32(path.encode())))
    root.mkdir(parents=True, exist_ok=True)
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def numbered(folder, n):
    """Paths of ``n`` images in a folder."""
    return [f"{folder}/{i}.png" for i in range(1, n + 1)]


def below(root, path):
    """A path of the table as it is written in the tests."""
    return path.removeprefix(f"{root}/")


def unused(dataset, root):
    """Reason by path of all files that are not used."""
    rows = dataset.table.filter(dataset.table["status"] != "used")
    return {below(root, path): reason for path, reason in rows.select("path", "reason").iter_rows()}
