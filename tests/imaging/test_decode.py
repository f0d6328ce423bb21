"""Golden pixels: for every kind of image the colors that a person sees, computed without the decoder."""

import struct

import numpy as np
import pytest
from builders import (
    PATCH_PX,
    black_ink_profile,
    encode,
    gray_12_bit_tiff,
    gray_profile,
    matrix_profile,
    patches,
    photo,
    png,
    tiff,
    ycck_jpeg,
)
from PIL import Image, ImageCms

from tellapart.errors import ImageError
from tellapart.imaging.decode import (
    READABLE_FORMATS,
    DecodeLimits,
    decode_image,
    identify,
    looks_like_image,
    stored_size,
)

COLORS = [(200, 30, 40), (20, 180, 60), (30, 60, 210), (250, 240, 10)]
ALPHAS = [255, 0, 128, 64]
RGBA = [(*color, alpha) for color, alpha in zip(COLORS, ALPHAS, strict=True)]
WHITE = (255, 255, 255)
ON_WHITE = [(200, 30, 40), WHITE, (142, 157, 232), (254, 251, 194)]  # 255 + (color - 255) * alpha / 255
SECOND_CLEAR = [COLORS[0], WHITE, *COLORS[2:]]
GRAYS = [0, 100, 200, 255]
SHORTS = [0, 25700, 51400, 65535]  # 257 * GRAYS
GRAY_ALPHAS = [(0, 255), (9, 0), (100, 128), (0, 64)]
GRAY_ON_WHITE = [0, 255, 177, 191]
BLACK_AND_WHITE = [0, 255, 255, 0]
QUARTERS = [0, 0.25, 0.5, 1]
LONG_COLORS = [tuple(257 * value for value in color) for color in COLORS]
PALETTE = (b"PLTE", bytes(np.ravel(COLORS).tolist()))
# Red, green, blue, yellow inks; R = (255 - C) * (255 - K) / 255 and so on.
INKS = [(55, 225, 215, 0), (235, 75, 195, 0), (225, 195, 45, 0), (5, 15, 245, 128)]
PRINTED = [(200, 30, 40), (20, 180, 60), (30, 60, 210), (125, 120, 5)]
UNSUPPORTED = "unsupported-pixels"


def case(name, build, expected, tolerance=0):
    return pytest.param(build, expected, tolerance, id=name)


def picture(values, mode=None):
    array = patches(values)
    return Image.fromarray(array) if mode is None else Image.frombytes(mode, array.shape[1::-1], array.tobytes())


def black_and_white():
    return picture(BLACK_AND_WHITE).convert("1")


def in_palette(colors=COLORS):
    image = Image.frombytes("P", (32, 32), patches([0, 1, 2, 3]).tobytes())
    image.putpalette(np.ravel(colors).tolist())
    return image


def floats(values, byte_order="<", **options):
    return tiff(patches(values, np.float32), byte_order, sample_format=3, **options)


def shorts(values, byte_order="<", **options):
    return tiff(patches(values, np.uint16), byte_order, **options)


def integers(values, dtype=np.int32):
    return tiff(patches(values, dtype), sample_format=2)


def clear(*samples):
    return b"tRNS", struct.pack(f">{len(samples)}H", *samples)


def animation(image_format, **options):
    """COLORS, followed by two other frames."""
    others = [Image.new("RGB", (32, 32), color) for color in ("black", "white")]
    return encode(picture(COLORS), image_format, save_all=True, append_images=others, **options)


JPEG = [
    case("rgb", lambda: encode(picture(COLORS), "JPEG", quality=95), COLORS, 2),
    case("rgb-progressive", lambda: encode(picture(COLORS), "JPEG", quality=95, progressive=True), COLORS, 2),
    case("rgb-444", lambda: encode(picture(COLORS), "JPEG", quality=95, subsampling=0), COLORS, 2),
    case("not-ycc", lambda: encode(picture(COLORS), "JPEG", quality=95, keep_rgb=True), COLORS, 2),
    case("gray", lambda: encode(picture(GRAYS), "JPEG", quality=95), GRAYS, 2),
    case("cmyk", lambda: encode(picture(INKS, "CMYK"), "JPEG", quality=95), PRINTED, 3),
    case("ycck", lambda: ycck_jpeg(INKS), PRINTED, 3),
    case("mpo", lambda: animation("MPO", quality=95), COLORS, 2),
]
PNG = [
    case("1", lambda: encode(black_and_white(), "PNG"), BLACK_AND_WHITE),
    case("gray", lambda: encode(picture(GRAYS), "PNG"), GRAYS),
    case("gray-2-bit", lambda: png(patches([0, 1, 2, 3]), 2, 0), [0, 85, 170, 255]),
    case("gray-16-bit", lambda: png(patches(SHORTS, np.uint16), 16, 0), GRAYS),
    case("gray-alpha", lambda: encode(picture(GRAY_ALPHAS), "PNG"), GRAY_ON_WHITE),
    case("gray-alpha-16-bit", lambda: png(patches([(25700, 65535), (9, 0)] * 2, int), 16, 4), [100, 255] * 2, 1),
    case("palette", lambda: encode(in_palette(), "PNG"), COLORS),
    case("palette-alphas", lambda: encode(in_palette(), "PNG", transparency=bytes(ALPHAS)), ON_WHITE),
    case("palette-one-clear", lambda: encode(in_palette(), "PNG", transparency=1), SECOND_CLEAR),
    case("palette-2-bit", lambda: png(patches([0, 1, 2, 3]), 2, 3, PALETTE), COLORS),
    case("rgb", lambda: encode(picture(COLORS), "PNG"), COLORS),
    case("rgb-16-bit", lambda: png(patches(LONG_COLORS, int), 16, 2), COLORS, 1),
    case("rgba", lambda: encode(picture(RGBA), "PNG"), ON_WHITE),
    case("rgba-16-bit", lambda: png(257 * patches(RGBA, int), 16, 6), ON_WHITE, 1),
    # One color is declared transparent, in samples of the file's own bit depth.
    case("1-clear", lambda: png(patches([0, 1, 1, 0]), 1, 0, clear(0)), [255] * 4),
    case("gray-2-bit-clear", lambda: png(patches([0, 1, 2, 3]), 2, 0, clear(1)), [0, 255, 170, 255]),
    case("gray-4-bit-clear", lambda: png(patches([0, 5, 10, 1]), 4, 0, clear(5)), [0, 255, 170, 17]),
    case("gray-clear", lambda: png(patches(GRAYS), 8, 0, clear(100)), [0, 255, 200, 255]),
    case("gray-16-bit-clear", lambda: png(patches(SHORTS, int), 16, 0, clear(25700)), [0, 255, 200, 255]),
    case("rgb-clear", lambda: png(patches(COLORS), 8, 2, clear(20, 180, 60)), SECOND_CLEAR),
    case(
        "rgb-16-bit-clear",
        lambda: png(256 * patches(COLORS, int) + 7, 16, 2, clear(20 * 256 + 7, 180 * 256 + 7, 60 * 256 + 7)),
        SECOND_CLEAR,
    ),
    case("apng", lambda: animation("PNG"), COLORS),
]
TIFF = [
    case("1", lambda: encode(black_and_white(), "TIFF"), BLACK_AND_WHITE),
    case("1-group4", lambda: encode(black_and_white(), "TIFF", compression="group4"), BLACK_AND_WHITE),
    case("gray", lambda: tiff(patches(GRAYS)), GRAYS),
    case("gray-white-is-zero", lambda: tiff(patches(GRAYS), photometric=0), [255, 155, 55, 0]),
    case("gray-alpha", lambda: encode(picture(GRAY_ALPHAS), "TIFF"), GRAY_ON_WHITE),
    case("palette", lambda: encode(in_palette(), "TIFF"), COLORS),
    case("rgb", lambda: encode(picture(COLORS), "TIFF"), COLORS),
    case("rgb-lzw", lambda: encode(picture(COLORS), "TIFF", compression="tiff_lzw"), COLORS),
    case("rgb-deflate", lambda: encode(picture(COLORS), "TIFF", compression="tiff_adobe_deflate"), COLORS),
    case("rgb-jpeg", lambda: encode(picture(COLORS), "TIFF", compression="jpeg", quality=95), COLORS, 2),
    case("rgb-pages", lambda: animation("TIFF"), COLORS),
    case("rgba", lambda: encode(picture(RGBA), "TIFF"), ON_WHITE),
    case("cmyk", lambda: encode(picture(INKS, "CMYK"), "TIFF"), PRINTED, 1),
    # L* a* b* with a* and b* as signed bytes: white, middle gray, sRGB's red, black.
    case(
        "lab",
        lambda: tiff(patches([(255, 0, 0), (128, 0, 0), (138, 81, 70), (0, 0, 0)]), photometric=8),
        [(255, 255, 255), (119, 119, 119), (255, 0, 0), (0, 0, 0)],
        5,
    ),
    case("short", lambda: shorts(SHORTS), GRAYS),
    case("short-big-endian", lambda: shorts(SHORTS, ">"), GRAYS),
    case("short-white-is-zero", lambda: shorts(SHORTS, photometric=0), [255, 155, 55, 0]),
    case("12-bit", lambda: gray_12_bit_tiff(patches([0, 1606, 3212, 4095], int)), GRAYS),
    case("rgb-short", lambda: shorts(LONG_COLORS, photometric=2), COLORS, 1),
    case("rgb-short-big-endian", lambda: shorts(LONG_COLORS, ">", photometric=2), COLORS, 1),
    case("int32-to-255", lambda: integers(GRAYS), GRAYS),
    case("int32-to-65535", lambda: integers(SHORTS), GRAYS),
    case("int32-beyond", lambda: integers([0, 1, 2, 65536]), UNSUPPORTED),
    case("int32-negative", lambda: integers([-1, 1, 2, 3]), UNSUPPORTED),
    case("int16-negative", lambda: integers([-1, 1, 2, 3], np.int16), UNSUPPORTED),
    case("float-to-1", lambda: floats(QUARTERS), [0, 64, 128, 255]),
    case("float-dark", lambda: floats([0, 0.01, 0.02, 0.1]), [0, 3, 5, 26]),
    case("float-to-255", lambda: floats([0, 100, 200, 255]), GRAYS),
    case("float-to-65535", lambda: floats(SHORTS), GRAYS),
    case("float-big-endian", lambda: floats(QUARTERS, ">"), [0, 64, 128, 255]),
    case("float-white-is-zero", lambda: floats([0, 51, 204, 255], photometric=0), [255, 204, 51, 0]),
    case("float-beyond", lambda: floats([0, 0.5, 1, 65536]), UNSUPPORTED),
    case("float-negative", lambda: floats([0, 0.5, 1, -0.1]), UNSUPPORTED),
    case("float-nan", lambda: floats([0, 0.5, 1, np.nan]), UNSUPPORTED),
    case("float-infinite", lambda: floats([0, 0.5, 1, np.inf]), UNSUPPORTED),
]
OTHERS = [
    case("webp-rgb", lambda: encode(picture(COLORS), "WEBP", lossless=True), COLORS),
    case("webp-rgba", lambda: encode(picture(RGBA), "WEBP", lossless=True, exact=True), ON_WHITE),
    case("webp-lossy", lambda: encode(picture(COLORS), "WEBP", quality=95), COLORS, 3),
    case("webp-animation", lambda: animation("WEBP", lossless=True), COLORS),
    case("gif", lambda: encode(in_palette(), "GIF"), COLORS),
    case("gif-one-clear", lambda: encode(in_palette(), "GIF", transparency=1), SECOND_CLEAR),
    case("gif-animation", lambda: animation("GIF"), COLORS),
    case("bmp-1", lambda: encode(black_and_white(), "BMP"), BLACK_AND_WHITE),
    case("bmp-8-gray", lambda: encode(picture(GRAYS), "BMP"), GRAYS),
    case("bmp-8-palette", lambda: encode(in_palette(), "BMP"), COLORS),
    case("bmp-24", lambda: encode(picture(COLORS), "BMP"), COLORS),
    case("bmp-32-without-alpha", lambda: encode(picture(RGBA), "BMP"), COLORS),  # the 4th byte means nothing
    case("avif", lambda: encode(picture(COLORS), "AVIF", quality=95, subsampling="4:4:4"), COLORS, 4),
    case("avif-rgba", lambda: encode(picture(RGBA), "AVIF", quality=95, subsampling="4:4:4"), ON_WHITE, 4),
    case("avif-animation", lambda: animation("AVIF", quality=95), COLORS, 4),
    case("heic", lambda: encode(picture(COLORS), "HEIF", quality=95), COLORS, 4),
    case("heic-rgba", lambda: encode(picture(RGBA), "HEIF", quality=95, chroma=444), ON_WHITE, 4),
    case("heic-several", lambda: animation("HEIF", quality=95), COLORS, 4),
]


@pytest.mark.parametrize(
    ("build", "expected", "tolerance"),
    [
        pytest.param(*entry.values, id=f"{kind}-{entry.id}" if kind else entry.id)
        for kind, entries in {"jpeg": JPEG, "png": PNG, "tiff": TIFF, "": OTHERS}.items()
        for entry in entries
    ],
)
def test_golden_pixels(build, expected, tolerance):
    if expected == UNSUPPORTED:
        with pytest.raises(ImageError) as refusal:
            decode_image(build())
        assert refusal.value.code == UNSUPPORTED
    else:
        assert_patches(decode_image(build()), expected, tolerance)
        assert stored_size(build()) == (2 * PATCH_PX, 2 * PATCH_PX)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF"])
def test_the_size_is_read_from_the_head_alone(image_format):
    data = encode(photo(200, 100), image_format)
    assert stored_size(data) == (100, 200)
    if image_format in {"JPEG", "PNG"}:
        assert stored_size(data[: len(data) // 2]) == (100, 200)
    with pytest.raises(ImageError) as refusal:
        stored_size(data, DecodeLimits(max_pixels=19_999))
    assert refusal.value.code == "too-many-pixels"
    with pytest.raises(ImageError):
        stored_size(data[:3])


def assert_patches(pixels, expected, tolerance):
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2 * PATCH_PX, 2 * PATCH_PX, 3)
    assert pixels.flags.c_contiguous
    expected = patches(expected, int)
    difference = np.abs(pixels - (expected if expected.ndim == 3 else expected[..., None]))
    if tolerance > 1:  # lossy: colors run into each other where patches meet
        difference = difference.reshape(2, PATCH_PX, 2, PATCH_PX, 3)[:, 4:-4, :, 4:-4]
    assert difference.max() <= tolerance


# Columns: XYZ of red, green and blue under D50 (Bradford). Source: IEC 61966-2-1; Adobe RGB (1998).
SRGB = np.array([(0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410)])
ADOBE_RGB = np.array([(0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)])


def srgb_from_linear(linear):
    """Source: IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_from(primaries, gamma, colors):
    return srgb_from_linear((np.array(colors) / 255) ** gamma @ (np.linalg.inv(SRGB) @ primaries).T)


MUTED = [(120, 100, 90), (100, 140, 100), (90, 100, 130), (200, 190, 180)]
GRAY_ALPHA = [(value, 255) for value in GRAYS]
L_STAR = 100 * (1 - 128 / 255)  # of half black ink
HALF_BLACK = srgb_from_linear(((L_STAR + 16) / 116) ** 3)
STANDARD = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR = matrix_profile(SRGB, 1, "linear sRGB")
SWAPPED = matrix_profile(SRGB[:, ::-1], 2.2)  # red for blue: nobody can take the result for an unconverted one
GRAY = gray_profile(1)
BLACK_INK = black_ink_profile()
ADOBE = matrix_profile(ADOBE_RGB, 563 / 256)
FROM_ADOBE = srgb_from(ADOBE_RGB, 563 / 256, MUTED)
LINEAR_GRAYS = srgb_from_linear(np.array(GRAYS) / 255)


@pytest.mark.parametrize(
    ("image", "image_format", "profile", "expected"),
    [
        pytest.param(picture(MUTED), "PNG", ADOBE, FROM_ADOBE, id="rgb"),
        pytest.param(picture(MUTED), "JPEG", ADOBE, FROM_ADOBE, id="rgb-jpeg"),
        pytest.param(picture(MUTED), "WEBP", ADOBE, FROM_ADOBE, id="rgb-webp"),
        pytest.param(picture(MUTED), "TIFF", ADOBE, FROM_ADOBE, id="rgb-tiff"),
        pytest.param(picture(MUTED), "AVIF", ADOBE, FROM_ADOBE, id="rgb-avif"),
        pytest.param(picture(MUTED), "HEIF", ADOBE, FROM_ADOBE, id="rgb-heic"),
        pytest.param(picture(MUTED).convert("RGBA"), "PNG", ADOBE, FROM_ADOBE, id="rgba"),
        pytest.param(in_palette(MUTED), "PNG", ADOBE, FROM_ADOBE, id="palette"),
        pytest.param(picture(MUTED), "PNG", SWAPPED, np.fliplr(MUTED), id="swapped"),
        pytest.param(picture(MUTED), "PNG", LINEAR, srgb_from(SRGB, 1, MUTED), id="linear-srgb"),
        pytest.param(picture(MUTED), "PNG", STANDARD, MUTED, id="srgb"),
        pytest.param(picture(GRAYS), "PNG", GRAY, LINEAR_GRAYS, id="gray"),
        pytest.param(picture(GRAYS), "JPEG", GRAY, LINEAR_GRAYS, id="gray-jpeg"),
        pytest.param(picture(GRAY_ALPHA), "PNG", GRAY, LINEAR_GRAYS, id="gray-alpha"),
        pytest.param(picture(INKS, "CMYK"), "TIFF", BLACK_INK, [255, 255, 255, HALF_BLACK], id="cmyk"),
        pytest.param(picture(INKS, "CMYK"), "JPEG", BLACK_INK, [255, 255, 255, HALF_BLACK], id="cmyk-jpeg"),
        pytest.param(picture(MUTED), "PNG", b"no profile at all", MUTED, id="ignored-broken"),
        pytest.param(picture(MUTED), "PNG", ADOBE[:200], MUTED, id="ignored-cut"),
        pytest.param(picture(MUTED), "PNG", GRAY, MUTED, id="ignored-gray-for-rgb"),
        pytest.param(picture(GRAYS), "JPEG", ADOBE, GRAYS, id="ignored-rgb-for-gray"),
        pytest.param(picture(INKS, "CMYK"), "TIFF", ADOBE, PRINTED, id="ignored-rgb-for-cmyk"),
    ],
)
def test_profile(image, image_format, profile, expected):
    quality = {"quality": 98} if image_format in ("JPEG", "AVIF", "HEIF") else {}
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    file = encode(image, image_format, icc_profile=profile, **quality, **lossless)
    assert_patches(decode_image(file), np.round(np.array(expected, float)), tolerance=4 if quality else 2)


def test_profile_of_16_bit_gray():
    chunk = encode(picture(GRAYS), "PNG", icc_profile=GRAY)
    start = chunk.index(b"iCCP") + 4
    (length,) = struct.unpack(">I", chunk[start - 8 : start - 4])
    file = png(patches(SHORTS, int), 16, 0, (b"iCCP", chunk[start : start + length]))
    assert_patches(decode_image(file), LINEAR_GRAYS.round(), tolerance=2)


def test_path_and_bytes_agree(tmp_path):
    path = tmp_path / "names and endings mean nothing.txt"
    path.write_bytes(encode(picture(COLORS), "PNG"))
    for source in (path, str(path), path.read_bytes()):
        assert_patches(decode_image(source), COLORS, 0)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIF"),
        (b"", "empty-file"),
        (b"\0", "not-an-image"),
        (b"a,b,c\n1,2,3", "not-an-image"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not-an-image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "unsupported-format"),
        (b"%PDF-1.7", "unsupported-format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "unsupported-format"),
        (b"8BPS\0\1", "unsupported-format"),
        (b"<svg xmlns=", "unsupported-format"),
        (b"II*\0\x10\0\0\0CR\2\0", "unsupported-format"),
    ],
)
def test_identify(head, expected, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(head)
    assert looks_like_image(path) == (expected in READABLE_FORMATS)
    if expected in READABLE_FORMATS:
        assert identify(head) == expected
    else:
        with pytest.raises(ImageError) as refusal:
            identify(head)
        assert refusal.value.code == expected


def test_looks_like_image_of_no_file(tmp_path):
    assert not looks_like_image(tmp_path)
    assert not looks_like_image(tmp_path / "missing.jpg")
