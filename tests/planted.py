"""A small labelled folder with known faults, one or more of each kind."""

import io

import numpy as np
from PIL import Image, ImageFilter

SIDE_PX = 72
HOSTILE = "<img src=x onerror=alert(1)>&amp;.jpg"


def picture(seed, tint=(0, 0, 0)):
    """Boxes over light and shade, 72 x 72; no two seeds are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    pixels = 70 + 60 * (rng.normal() * x + rng.normal() * y)[..., None] + np.array(tint, float)
    for _ in range(9):
        top, left = rng.integers(0, SIDE_PX - 8, 2)
        height, width = rng.integers(8, 32, 2)
        pixels[top : top + height, left : left + width] = rng.integers(30, 225, 3)
    return Image.fromarray((pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image, image_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def plain(root, classes=("owl", "wolf"), n=8, start=0):
    """Class folders of ``n`` sound pictures each; the paths by class."""
    return {
        name: [write(root / name / f"{name}{i}.png", encoded(picture(start + 1000 * k + i))) for i in range(n)]
        for k, name in enumerate(classes)
    }


def plant(root):
    """Sound pictures in train and test folders, and among them faults; their paths by kind, the one to keep first."""
    train, test, owls = root / "train", root / "test", root / "train/owl"
    paths = plain(train, n=24)
    plain(test, n=6, start=500)
    jpeg = encoded(picture(70), "JPEG", quality=92)
    faults = {
        "unreadable": [write(owls / "words.jpg", b"some words"), write(owls / "empty.png", b"")],
        "truncated": [write(owls / "cut.jpg", jpeg[: len(jpeg) * 2 // 3])],
        "wrong-extension": [write(owls / "really_png.jpg", encoded(picture(71)))],
        "duplicate": [paths["owl"][0], write(owls / "z_copy.png", encoded(picture(0)))],
        "near-duplicate": [
            paths["owl"][1],
            write(owls / "z_saved_again.jpg", encoded(picture(1), "JPEG", quality=60)),
        ],
        "label-conflict": [paths["owl"][2], write(train / "wolf/z_same.png", encoded(picture(2)))],
        "leak": [write(test / "owl/z_leaked.png", encoded(picture(3))), paths["owl"][3]],
        "blank": [write(owls / "z_blank.png", encoded(Image.new("RGB", (72, 72), (9, 9, 90))))],
        "odd-size": [write(owls / "z_large.png", encoded(picture(72).resize((720, 720))))],
        "odd-shape": [write(owls / "z_wide.png", encoded(picture(73).resize((220, 24))))],
        "name-clash": [
            write(owls / "Strasse\u0301.png", encoded(picture(74))),
            write(owls / "strass\u00e9.png", encoded(picture(75))),
        ],
    }
    blurred = picture(76).filter(ImageFilter.GaussianBlur(12))
    faults["blurred"] = [write(owls / "z_blurred.png", encoded(blurred))]
    write(owls / HOSTILE, encoded(picture(1), "JPEG", quality=50))
    faults["near-duplicate"].append(str(owls / HOSTILE))
    return faults
