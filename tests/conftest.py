"""Pictures and a trained model for all tests; nothing touches the user's own cache."""

import os

import numpy as np
import pytest
from PIL import Image

import tellapart


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("TELLAPART_CACHE")
    os.environ["TELLAPART_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["TELLAPART_CACHE"]
    else:
        os.environ["TELLAPART_CACHE"] = before


def picture(kind, random):
    """48 x 48 pixels: stripes, dots or flat, each in colors of its own."""
    rows, columns = np.mgrid[:48, :48]
    pattern = {
        "dots": ((rows // 6 + columns // 6) % 2),
        "flat": np.zeros_like(rows),
        "stripes": (columns // 4) % 2,
    }[kind]
    colors = random.integers(0, 256, (2, 3))
    noisy = colors[pattern] + random.normal(0, 12, (48, 48, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three classes of 20 images, PNG and JPEG."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(0)
    for kind in ("dots", "flat", "stripes"):
        (folder / kind).mkdir(parents=True)
        for i in range(20):
            picture(kind, random).save(folder / kind / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    """A model trained on ``photos``."""
    return tellapart.train(photos, out=tmp_path_factory.mktemp("run"))
