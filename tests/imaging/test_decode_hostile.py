"""Limits, damage and hostile files: an upright picture or an ImageError with a code, never anything else."""

import functools
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import (
    DATA,
    encode,
    gray_12_bit_tiff,
    lossless_jpeg,
    photo,
    png_file,
    tiff,
    tiff_file,
    ycck_jpeg,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tellapart.errors import CODES, ImageError
from tellapart.imaging.decode import DecodeLimits, decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken TIFF tags


@functools.cache
def sample_files():
    """One file of 96 x 72 pixels a kind of coding."""
    image = Image.fromarray(photo(96, 72))
    frames = {"save_all": True, "append_images": [image.rotate(180), image.convert("L").convert("RGB")]}
    return {
        "jpeg": encode(image, "JPEG"),
        "jpeg-progressive": encode(image, "JPEG", progressive=True),
        "jpeg-restarts": encode(image, "JPEG", restart_marker_rows=1),
        "jpeg-gray": encode(image.convert("L"), "JPEG"),
        "jpeg-cmyk": encode(image.convert("CMYK"), "JPEG"),
        "jpeg-ycck": ycck_jpeg([(10, 200, 90, 30), (200, 10, 90, 0), (90, 200, 10, 60), (0, 0, 0, 200)]),
        "mpo": encode(image, "MPO", **frames),
        "png": encode(image, "PNG"),
        "png-palette": encode(image.quantize(64), "PNG"),
        "apng": encode(image, "PNG", **frames),
        "webp": encode(image, "WEBP"),
        "webp-lossless": encode(image, "WEBP", lossless=True),
        "webp-animation": encode(image, "WEBP", **frames),
        "gif": encode(image.quantize(64), "GIF"),
        "gif-animation": encode(image, "GIF", **frames),
        "bmp": encode(image, "BMP"),
        "bmp-palette": encode(image.quantize(64), "BMP"),
        "tiff": encode(image, "TIFF"),
        "tiff-pages": encode(image, "TIFF", **frames),
        "tiff-lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff-group4": encode(image.convert("1"), "TIFF", compression="group4"),
        "tiff-12-bit": gray_12_bit_tiff(16 * photo(96, 72)[..., 0].astype(int)),
        "tiff-float": tiff(photo(96, 72)[..., 0].astype(np.float32), sample_format=3),
        "avif": encode(image, "AVIF"),
        "avif-animation": encode(image, "AVIF", **frames),
        "heic": encode(image, "HEIF"),
        "heic-several": encode(image, "HEIF", **frames),
    }


def outcome(source, **options):
    """The pixels, or the code of the refusal; anything else fails the test."""
    refusal = None
    try:
        pixels = decode_image(source, **options)
    except ImageError as error:
        refusal = error
    if refusal:
        assert refusal.code in CODES
        assert refusal.message
        return refusal.code
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size > 0
    return pixels


kinds = pytest.mark.parametrize("kind", list(sample_files()))


@kinds
def test_whole_files_are_read(kind):
    """Or the tests below would pass on a decoder that refuses everything."""
    expected = (32, 32, 3) if kind == "jpeg-ycck" else (72, 96, 3)
    assert outcome(sample_files()[kind]).shape == expected
    assert len(np.unique(outcome(sample_files()[kind]))) > 1


@kinds
@pytest.mark.parametrize("target_px", [None, 32])
def test_truncated_files_are_refused_or_complete(kind, target_px):
    """A cut may cost later frames or a trailer, never a pixel of the picture."""
    whole = sample_files()[kind]
    expected = decode_image(whole, target_px=target_px)
    refused = 0
    for twentieth in range(20):
        result = outcome(whole[: len(whole) * twentieth // 20], target_px=target_px)
        if isinstance(result, str):
            refused += 1
            assert result in ("empty-file", "truncated-image", "damaged-image")
        else:
            assert np.array_equal(result, expected)
    several_frames = kind in ("mpo", "apng") or kind.endswith(("animation", "several", "pages"))
    assert refused >= (6 if several_frames else 20)


@kinds
@pytest.mark.parametrize("target_px", [None, 32])
def test_flipped_bits_never_crash(kind, target_px):
    whole = sample_files()[kind]
    random = np.random.default_rng(len(whole))
    for _ in range(25):
        damaged = bytearray(whole)
        for position in random.integers(len(whole), size=random.integers(1, 5)):
            damaged[position] ^= 1 << random.integers(8)
        outcome(bytes(damaged), target_px=target_px)


HEADS = sorted({whole[:length] for whole in sample_files().values() for length in (0, 4, 12, 40)})


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=100))
def test_any_bytes_are_refused(head, tail):
    assert isinstance(outcome(head + tail), str)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"hello", "not-an-image"),
        (b"\0" * 1000, "not-an-image"),
        (b"BM", "damaged-image"),
        (b"GIF89a", "damaged-image"),
        (b"\xff\xd8\xff", "damaged-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported-format"),
        (encode(Image.new("RGB", (9, 9)), "JPEG2000"), "unsupported-format"),
        (encode(Image.new("RGB", (9, 9)), "ICO"), "unsupported-format"),
        (encode(Image.new("RGB", (9, 9)), "PPM"), "unsupported-format"),
        (
            tiff_file({256: 2, 257: 2, 258: [8], 259: 1, 262: 1, 50706: [1, 4]}, bytes(4)),
            "unsupported-format",
        ),
        (tiff_file({256: 9, 257: 9, 258: [8], 259: 8, 322: 9_000, 323: 9_000}, b""), "too-many-pixels"),
        (png_file(60_000, 60_000, 8, 2), "too-many-pixels"),
        (png_file(0, 9, 8, 2), "damaged-image"),
        (png_file(9, 9, 8, 2), "damaged-image"),
    ],
)
def test_refused_with_code(data, code):
    assert outcome(data) == code


# JPEG: libjpeg fills what is missing with gray and calls it a warning.


def damage_case(name, kind, damage, code):
    return pytest.param(kind, damage, code, id=name)


def cut(whole):
    return whole[: len(whole) // 2]


def cut_and_closed(whole):
    """With an end marker, as a careless repair tool would write it."""
    return cut(whole) + b"\xff\xd9"


def odd_scan_header(whole):
    """Spectral selection 0-62, which a sequential JPEG cannot have; libjpeg only warns, and only once."""
    scan = whole.index(b"\xff\xda")
    end = scan + 2 + struct.unpack(">H", whole[scan + 2 : scan + 4])[0]
    return whole[: end - 2] + b"\x3e" + whole[end - 1 :]


def odd_color_transform(whole):
    """Adobe's segment in place of JFIF's, with a color transform nobody knows."""
    return whole[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7" + whole[20:]


def last_restart_marker_lost(whole):
    marker = max(whole.rfind(bytes([0xFF, 0xD0 + i])) for i in range(8))
    return whole[:marker] + b"\x55\x55" + whole[marker + 2 :]


@pytest.mark.parametrize("target_px", [None, 32])
@pytest.mark.parametrize(
    ("kind", "damage", "code"),
    [
        damage_case("trailing-bytes", "jpeg", lambda whole: whole + b"trailing", None),
        damage_case("bytes-before-end", "jpeg", lambda whole: whole[:-2] + b"more" * 9 + whole[-2:], None),
        damage_case("odd-scan", "jpeg", odd_scan_header, None),
        damage_case("odd-color", "jpeg", odd_color_transform, None),
        damage_case("no-end", "jpeg", lambda whole: whole[:-2], "truncated-image"),
        damage_case("cut", "jpeg", cut, "truncated-image"),
        damage_case("cut-odd-scan", "jpeg", lambda whole: odd_scan_header(cut(whole)), "truncated-image"),
        damage_case("cut-odd-color", "jpeg", lambda whole: odd_color_transform(cut(whole)), "truncated-image"),
        damage_case("closed", "jpeg", cut_and_closed, "truncated-image"),
        damage_case("closed-gray", "jpeg-gray", cut_and_closed, "truncated-image"),
        damage_case("closed-cmyk", "jpeg-cmyk", cut_and_closed, "truncated-image"),
        damage_case("closed-progressive", "jpeg-progressive", cut_and_closed, "truncated-image"),
        damage_case("closed-restarts", "jpeg-restarts", cut_and_closed, "truncated-image"),
        damage_case("restarts", "jpeg-restarts", lambda whole: whole, None),
        damage_case("restart-lost", "jpeg-restarts", last_restart_marker_lost, "damaged-image"),
    ],
)
def test_damaged_jpeg(kind, damage, code, target_px):
    whole = sample_files()[kind]
    result = outcome(damage(whole), target_px=target_px)
    if code:
        assert isinstance(result, str), "made-up pixels"
        assert result == code
    else:
        assert result.shape[0] >= (target_px or 0)
        # Files with an odd header are read by Pillow, at full size.
        assert np.array_equal(result, decode_image(whole, target_px=target_px if len(result) < 72 else None))


# Limits: the same file passes at the limit and is refused one below.


def animation(image_format, frames=3, **options):
    others = [Image.new("RGB", (32, 32), (99 * i, 9, 9)) for i in range(1, frames)]
    return encode(Image.new("RGB", (32, 32)), image_format, save_all=True, append_images=others, **options)


def assert_limit(file, allowing, refusing, code):
    assert not isinstance(outcome(file, limits=allowing), str)
    assert outcome(file, limits=refusing) == code


@kinds
def test_too_many_bytes(kind, tmp_path):
    file = sample_files()[kind]
    path = tmp_path / "file"
    path.write_bytes(file)
    allowing, refusing = (DecodeLimits(max_bytes=limit) for limit in (len(file), len(file) - 1))
    for source in (file, path):
        assert_limit(source, allowing, refusing, "too-many-bytes")


@kinds
def test_too_many_pixels(kind):
    pixels = 32 * 32 if kind == "jpeg-ycck" else 96 * 72
    allowing, refusing = (DecodeLimits(max_pixels=limit) for limit in (pixels, pixels - 1))
    assert_limit(sample_files()[kind], allowing, refusing, "too-many-pixels")


@pytest.mark.parametrize("size", [(101, 1), (1, 101)])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_extreme_aspect_ratio(image_format, size):
    file = encode(Image.new("L", size), image_format)
    allowing, refusing = DecodeLimits(max_aspect_ratio=101), DecodeLimits(max_aspect_ratio=100)
    assert_limit(file, allowing, refusing, "extreme-aspect-ratio")
    assert outcome(file) == "extreme-aspect-ratio"


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF", "HEIF"])
def test_too_many_frames(image_format):
    allowing, refusing = DecodeLimits(max_frames=3), DecodeLimits(max_frames=2)
    assert_limit(animation(image_format), allowing, refusing, "too-many-frames")


def test_frames_are_counted_without_decoding_them():
    """Three sound frames, then one with pixels that no decoder accepts."""
    file = animation("GIF")[:-1] + b"\x2c\0\0\0\0\x20\0\x20\0\0\x0c\3bad\0;"
    assert outcome(file, limits=DecodeLimits(max_frames=3)) == "too-many-frames"
    assert not isinstance(outcome(file, limits=DecodeLimits(max_frames=4)), str)


# Files that are not files.


def test_nothing_to_read(tmp_path):
    assert outcome(tmp_path / "missing.jpg") == "file-not-found"
    assert outcome(tmp_path) == "not-a-file"
    assert outcome("a\0b.jpg") == "unreadable-file"
    assert outcome(tmp_path / ("long" * 1000)) == "unreadable-file"
    (tmp_path / "empty.jpg").touch()
    assert outcome(tmp_path / "empty.jpg") == "empty-file"


# Whole folders in a process of their own: crashes, hangs, memory, and what the decoder does besides decoding.

_READ_FOLDER = """
import json, sys
from pathlib import Path
from tellapart.errors import ImageError
from tellapart.imaging.decode import decode_image

FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
events = []
sys.addaudithook(lambda event, _: events.append(event) if event.startswith(FORBIDDEN) else None)

def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

before, outcomes = peak_mib(), {}
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_dir():
        continue
    for target_px in (None, 64):
        try:
            outcomes[f"{path} {target_px}"] = decode_image(path, target_px=target_px).shape
        except ImageError as error:
            outcomes[f"{path} {target_px}"] = error.code
print(json.dumps({"outcomes": outcomes, "events": events, "growth_mib": peak_mib() - before}))
"""

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")


def read_folder(folder):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ_FOLDER, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,  # against a hang; not a measurement
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    report = json.loads(done.stdout)
    assert report["events"] == []
    assert {result for result in report["outcomes"].values() if isinstance(result, str)} <= set(CODES)
    return report


def with_size(whole, before, layout, *size):
    """The file with another size in place of the one that follows ``before``."""
    position = whole.index(before) + len(before)
    length = struct.calcsize(layout)
    return whole[:position] + struct.pack(layout, *size) + whole[position + length :]


def bombs():
    """Small files that ask for gigabytes."""
    small = {name: encode(Image.new("RGB", (64, 64)), name) for name in ("JPEG", "BMP", "AVIF", "HEIF")}
    pixels = zlib.compress(bytes(1000))
    tile = {256: 99, 257: 99, 258: [8], 259: 8, 262: 1, 277: 1, 322: 46_000, 323: 46_000}
    strip = {256: 60_000, 257: 60_000, 258: [8], 259: 8, 262: 1, 277: 1, 278: 60_000}
    gif = encode(Image.new("P", (64, 64)), "GIF")
    return {
        "png-60000": png_file(60_000, 60_000, 8, 2, (b"IDAT", pixels)),
        "png-9000": png_file(9_000, 9_000, 16, 6, (b"IDAT", pixels)),
        "jpeg": with_size(small["JPEG"], b"\xff\xc0\0\x11\x08", ">HH", 65_000, 65_000),
        "bmp": with_size(small["BMP"], b"\x28\0\0\0", "<II", 60_000, 60_000),
        "gif": gif[:6] + struct.pack("<HH", 65_000, 65_000) + gif[10:],
        "gif-frame": gif.replace(b",\0\0\0\0\x40\0\x40\0", b",\0\0\0\0\xff\xff\xff\xff"),
        "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
        "tiff-strip": tiff_file(strip, pixels),
        "tiff-tile": tiff_file(tile, pixels),
        "avif": with_size(small["AVIF"], b"ispe\0\0\0\0", ">II", 60_000, 60_000),
        "heic": with_size(small["HEIF"], b"ispe\0\0\0\0", ">II", 60_000, 60_000),
        "png-text": png_file(9, 9, 8, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", pixels)),
    }


@on_linux
def test_bombs_are_refused_before_memory_is_spent(tmp_path):
    for name, file in bombs().items():
        assert len(file) < 200_000
        (tmp_path / name).write_bytes(file)
    report = read_folder(tmp_path)
    results = {Path(key).name: result for key, result in report["outcomes"].items()}
    assert len(results) == 2 * len(bombs())
    for name, result in results.items():
        # The libraries refuse these three themselves.
        library_refuses = name.startswith(("avif", "heic", "png-text"))
        assert result == "too-many-pixels" or (library_refuses and result == "damaged-image"), name
    assert report["growth_mib"] < 40  # 7 measured


@on_linux
def test_lossless_jpeg_is_not_scaled(tmp_path):
    """libjpeg-turbo cannot, and simplejpeg does not know: memory was overwritten, and the process died."""
    for channels in (1, 3, 4):
        (tmp_path / f"{channels}").write_bytes(lossless_jpeg(2000, 1500, channels))
    assert list(read_folder(tmp_path)["outcomes"].values()) == [[1500, 2000, 3]] * 6


@on_linux
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert set(read_folder(tmp_path)["outcomes"].values()) == {"not-a-file"}


@on_linux
def test_folder_of_odd_files():
    """Measured: of 500 files 327 are decoded, and the peak rises by 191 MiB."""
    folder = DATA / "odd"
    if not folder.is_dir():
        pytest.skip(f"no files in {folder}")
    report = read_folder(folder)
    outcomes = report["outcomes"].values()
    assert len(outcomes) == 2 * sum(path.is_file() for path in folder.rglob("*"))
    assert sum(isinstance(result, list) for result in outcomes) > len(outcomes) / 2
    assert any(isinstance(result, str) for result in outcomes)
    assert report["growth_mib"] < 500
