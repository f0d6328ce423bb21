"""What several tests need: a cache of their own, a small labelled folder, and one finished run on it."""

import numpy as np
import pytest
from PIL import Image

import tellapart

CLASS_NAMES = ("blobs", "dots", "stripes")
IMAGES_PER_CLASS = 20
SIDE_PX = 48


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELLAPART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three classes of 20 textures, PNG and JPEG; one in five looks like another class: nobody is always right."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    rng = np.random.default_rng(7)
    for k, name in enumerate(CLASS_NAMES):
        (folder / name).mkdir(parents=True)
        for i in range(IMAGES_PER_CLASS):
            shown = (k + (i % 5 == 0)) % len(CLASS_NAMES)
            suffix = ".png" if i % 2 else ".jpg"
            Image.fromarray(texture(shown, rng)).save(folder / name / f"{name}{i}{suffix}")
    return folder


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    return tellapart.train(photos, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def classifier(run):
    return tellapart.load(run.model_path)


def texture(k, rng):
    """One 48 x 48 picture of class ``k``: no two are alike."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] + rng.uniform(0, SIDE_PX, 2)[:, None, None]
    wave = [np.sin(x / 9) * np.sin(y / 9), np.sin(x) * np.sin(y), np.sin(y)][k]
    color = np.array([[210, 90, 60], [60, 190, 90], [70, 90, 210]][k]) + rng.normal(0, 30, 3)
    pixels = color + 60 * wave[..., None] + rng.normal(0, 25, (SIDE_PX, SIDE_PX, 3))
    return pixels.clip(0, 255).astype(np.uint8)
