"""Every picture comes out upright, at full size and through JPEG's scaled decoding."""

import numpy as np
import pytest
from builders import DATA, encode, photo
from PIL import ExifTags, Image

from tellapart.imaging.decode import decode_image

WIDTH, HEIGHT = 192, 128
CORNERS = {"R": (220, 30, 30), "G": (30, 190, 50), "B": (30, 50, 210), "Y": (240, 230, 20)}
UPRIGHT = "RGBY"  # top left, top right, bottom left, bottom right
# The corners as they lie in the file. Source: EXIF 2.32, tag 0x0112. For example 6, "row 0 is the visual
# right side, column 0 the visual top": the top left corner in the file is the top right one of the picture.
STORED = {1: "RGBY", 2: "GRYB", 3: "YBGR", 4: "BYRG", 5: "RBGY", 6: "GYRB", 7: "YGBR", 8: "BRYG"}
FORMATS = {
    "JPEG": {"quality": 95},
    "MPO": {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (8, 8))]},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "HEIF": {"quality": 95, "chroma": 444},
}


def stored_picture(orientation):
    width, height = (WIDTH, HEIGHT) if orientation <= 4 else (HEIGHT, WIDTH)
    corners = np.array([CORNERS[corner] for corner in STORED[orientation]], np.uint8).reshape(2, 2, 3)
    return corners.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def tag(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()  # in bytes, so that the HEIC and AVIF encoders write their own rotation boxes


def assert_upright(pixels, width, height):
    assert pixels.shape == (height, width, 3)
    found = [pixels[y, x] for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    expected = [CORNERS[corner] for corner in UPRIGHT]
    assert np.abs(np.array(found, int) - expected).max() <= 4


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", FORMATS)
def test_upright(image_format, orientation):
    file = encode(stored_picture(orientation), image_format, exif=tag(orientation), **FORMATS[image_format])
    assert_upright(decode_image(file), WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_upright_compressed_tiff(compression, orientation):
    file = encode(stored_picture(orientation), "TIFF", exif=tag(orientation), compression=compression)
    assert_upright(decode_image(file), WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_upright_jpeg_of_other_modes(mode, orientation):
    image = Image.fromarray(stored_picture(orientation)).convert(mode)
    pixels = decode_image(encode(image, "JPEG", exif=tag(orientation), quality=95))
    upright = np.asarray(Image.fromarray(stored_picture(1)).convert(mode).convert("RGB"), int)
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 2


@pytest.mark.parametrize("orientation", STORED)
def test_upright_when_scaled(orientation):
    file = encode(stored_picture(orientation), "JPEG", exif=tag(orientation), quality=95)
    assert_upright(decode_image(file, target_px=40), WIDTH * 3 // 8, HEIGHT * 3 // 8)


@pytest.mark.parametrize(
    "exif", [tag(0), tag(9), tag(65535), b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense"]
)
@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_meaningless_exif_is_ignored(image_format, exif):
    file = encode(stored_picture(1), image_format, exif=exif, **FORMATS[image_format])
    assert_upright(decode_image(file), WIDTH, HEIGHT)


@pytest.mark.parametrize("target_px", [None, 64])
@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_real_photos_in_all_orientations(name, target_px):
    """Each file was compressed anew: mean absolute difference up to 4.3 measured, over 38 if turned wrong."""
    files = sorted((DATA / "exif_orientation").glob(f"{name}_*.jpg"))
    if not files:
        pytest.skip(f"no photos in {DATA / 'exif_orientation'}")
    first, *others = (decode_image(path, target_px=target_px).astype(int) for path in files)
    assert len(others) == 8
    for path, pixels in zip(files[1:], others, strict=True):
        assert pixels.shape == first.shape, path.name
        assert np.abs(pixels - first).mean() < 6, path.name


@pytest.mark.parametrize(
    ("width", "height", "target_px", "expected"),
    [
        (800, 600, None, (600, 800)),
        (800, 600, 600, (600, 800)),
        (800, 600, 601, (600, 800)),  # never enlarged
        (800, 600, 526, (600, 800)),
        (800, 600, 525, (525, 700)),
        (800, 600, 224, (225, 300)),
        (600, 800, 224, (300, 225)),
        (800, 600, 75, (75, 100)),
        (800, 600, 1, (75, 100)),  # an eighth is the smallest scale
        (801, 601, 76, (76, 101)),
        (1600, 100, 50, (50, 800)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_size(width, height, target_px, expected, mode):
    pixels = decode_image(encode(Image.new(mode, (width, height)), "JPEG"), target_px=target_px)
    assert pixels.shape == (*expected, 3)


def test_only_jpeg_is_scaled():
    pixels = photo(160, 120)
    assert np.array_equal(decode_image(encode(pixels, "PNG"), target_px=20), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("target_px", [128, 224, 320])
def test_scaled_and_full_decoding_agree(target_px, mode):
    """Mean absolute difference after resizing: 0.26-0.86 measured; 4.8-5.2 for nearest-neighbour resizing."""
    file = encode(Image.fromarray(photo(1200, 900)).convert(mode), "JPEG", quality=90)
    scaled, full = (
        np.asarray(Image.fromarray(pixels).resize((target_px, target_px), Image.Resampling.BICUBIC), int)
        for pixels in (decode_image(file, target_px=target_px), decode_image(file))
    )
    assert full.std() > 20  # there is something to see
    assert np.abs(scaled - full).mean() < 1.1
