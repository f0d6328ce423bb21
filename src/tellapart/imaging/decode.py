"""From a file's bytes to upright sRGB pixels: the only place that opens an image."""

import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pillow_heif
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from tellapart.errors import ImageError

Pixels = NDArray[np.uint8]

DECODE_REVISION = 1
"""Part of cache keys: raised when the same bytes come out as other pixels."""

READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
# Named, so that the message can say what the file is instead of "not an image".
_KNOWN_UNSUPPORTED = (
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x02\x00", "a cursor or TGA image"),
    (b"DDS ", "a DirectDraw surface"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
    (b"qoif", "QOI"),
    (b"P1", "a portable bitmap"),
    (b"P2", "a portable graymap"),
    (b"P3", "a portable pixmap"),
    (b"P4", "a portable bitmap"),
    (b"P5", "a portable graymap"),
    (b"P6", "a portable pixmap"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"II*\x00\x10\x00\x00\x00CR", "a camera's raw file"),
    (b"FUJIFILM", "a camera's raw file"),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_SIGNATURE_BYTES = 64
# TIFF 6.0, sections 8 and 15; DNG 1.7.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _DNG_VERSION = 258, 262, 322, 323, 50706
_WHITE_IS_ZERO = 0
_PROFILE_DEVICE = slice(48, 56)  # manufacturer and model; names are no guide: "linear sRGB" is not sRGB

# Only the first of libjpeg's warnings comes through. After this one nothing is left to go wrong, except where
# restart markers let it stand for a lost strip; after any other, pixels may be made up.
_BYTES_AFTER_LAST_SCAN = "extraneous bytes before marker 0xd9"
_RESTART_INTERVAL = b"\xff\xdd"
_LOSSLESS_FRAME = b"\xff\xc3"
# libturbojpeg stops here or keeps later warnings to itself; libjpeg as Pillow uses it reads on to the end.
_ODD_JPEG_HEADER = re.compile(r"Could not determine subsampling|Invalid SOS parameters|Unknown Adobe color")
_MISSING_END = re.compile(r"truncated|premature end|unexpected end|image file is too short|EOF", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """What a single file may cost. Checked before memory is spent."""

    max_bytes: int = 128 * 2**20
    max_pixels: int = 64 * 2**20
    max_aspect_ratio: float = 100.0
    max_frames: int = 1_000


DEFAULT_LIMITS = DecodeLimits()


class StoredImage(Protocol):
    """The file of an image inside another file: a member of an archive, a cell of a table."""

    def read_bytes(self, limits: DecodeLimits) -> bytes:
        """The encoded image.

        Raises:
            ImageError: it cannot be read, or exceeds a limit.
        """
        ...


ImageFile = bytes | str | os.PathLike[str] | StoredImage


def decode_image(
    source: ImageFile,
    *,
    target_px: int | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> Pixels:
    """Decode one image the way a person sees it: upright, in sRGB, over white where it is transparent.

    Animations and multi-page files give their first frame. 16-bit gray maps its full range to 0-255.
    Float images are taken as 0-1, or as 0-255 or 0-65535 when their values go beyond 1 or 255.

    Args:
        source: the file's bytes, its path, or its place inside another file.
        target_px: when both sides will be reduced to about this many pixels, a JPEG is decoded at the smallest
            of libjpeg's scales (n/8) that keeps both sides at least this long. None decodes at full size.
        limits: what the file may cost; exceeding one is an error with a code of its own.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: the file cannot be read, decoded, or exceeds a limit. Nothing else is raised for bad bytes.
    """
    data, image_format = _identified(source, limits)
    with _errors_as_ours(image_format):
        image = _open(data, image_format)
        _check_size(image, limits)
        _check_frames(image, data, limits)
        if image_format == "JPEG":
            orientation = _orientation(image)
            pixels = _decode_jpeg(data, image, target_px)
        else:
            image.load()
            # Pillow turns TIFF upright while loading and then forgets the tag, so the tag is read afterwards.
            orientation = _orientation(image)
            pixels = _to_srgb(image, image.info.get("icc_profile"))
    return _upright(pixels, orientation)


def stored_size(source: ImageFile, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Height and width in pixels as the file's head has them, before it is turned upright; nothing is decoded.

    Args:
        source: as for ``decode_image``.
        limits: as for ``decode_image``.

    Raises:
        ImageError: as ``decode_image``, but for what lies behind the head.
    """
    data, image_format = _identified(source, limits)
    with _errors_as_ours(image_format):
        image = _open(data, image_format)
        _check_size(image, limits)
    width, height = image.size
    return height, width


def _identified(source: ImageFile, limits: DecodeLimits) -> tuple[bytes, str]:
    data = read_image_bytes(source, limits)
    if len(data) > limits.max_bytes:
        raise ImageError("too-many-bytes", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    return data, identify(data)


def read_image_bytes(source: ImageFile, limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of an image: of a regular file that is not larger than ``limits.max_bytes``, or as they are.

    Raises:
        ImageError: file-not-found, not-a-file, too-many-bytes, unreadable-file.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_file(source, limits)
    return source.read_bytes(limits)


def _read_file(path: str | os.PathLike[str], limits: DecodeLimits) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not-a-file", f"{os.fspath(path)} is not a regular file")
            if status.st_size > limits.max_bytes:
                message = f"{os.fspath(path)}: {status.st_size:,} bytes; the limit is {limits.max_bytes:,}"
                raise ImageError("too-many-bytes", message)
            # Asking for the limit would set that much memory aside, and give it back, for every file.
            return file.read(status.st_size + 1)
    except FileNotFoundError as error:
        raise ImageError("file-not-found", f"there is no file {os.fspath(path)}") from error
    except IsADirectoryError as error:
        raise ImageError("not-a-file", f"{os.fspath(path)} is a folder") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError("unreadable-file", f"{os.fspath(path)}: {reason}") from error


def identify(data: bytes) -> str:
    """Tell the format from the first bytes; names and endings are not trusted.

    Returns:
        One of ``READABLE_FORMATS``.

    Raises:
        ImageError: empty-file, unsupported-format (with its name) or not-an-image.
    """
    head = data[:_SIGNATURE_BYTES]
    if not head:
        raise ImageError("empty-file", "the file has no bytes")
    for signature, what in _KNOWN_UNSUPPORTED:
        if head.startswith(signature):
            raise ImageError("unsupported-format", f"{what}; tellapart reads {', '.join(READABLE_FORMATS)}")
    for signature, image_format in _SIGNATURES:
        if head.startswith(signature):
            return image_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in (8, *range(16, len(head) - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
        raise ImageError("unsupported-format", f"a video or other media file ({head[8:12]!r})")
    raise ImageError("not-an-image", "the first bytes are those of no image format")


def looks_like_image(path: Path) -> bool:
    """Whether the first bytes are those of an image that tellapart reads; False when they cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            identify(file.read(_SIGNATURE_BYTES))
    except (ImageError, OSError):
        return False
    return True


def _open(data: bytes, image_format: str) -> Image.Image:
    if image_format == "HEIF":
        _register_heif()
    image = Image.open(io.BytesIO(data), formats=[image_format])
    if isinstance(image, TiffImageFile) and _DNG_VERSION in image.tag_v2:
        # Its first page is a thumbnail, which would pass for the photo.
        raise ImageError("unsupported-format", "a camera's raw file (DNG)")
    if image_format == "PNG" and "transparency" in image.info:
        _scale_transparent_color(image, bit_depth=data[24])
    return image


def _scale_transparent_color(image: Image.Image, bit_depth: int) -> None:
    """Bring a PNG's transparent color from the file's bit depth to 8 bits; Pillow does so only for pixels."""
    color = image.info["transparency"]
    if image.mode == "L" and bit_depth < 8:
        image.info["transparency"] = color * 255 // (2**bit_depth - 1)
    elif image.mode == "RGB" and bit_depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in color)


@functools.cache
def _register_heif() -> None:
    pillow_heif.register_heif_opener(thumbnails=False)


@contextmanager
def _errors_as_ours(image_format: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too-many-pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError("damaged-image", f"{image_format}: the header is broken or of a rare kind") from error
    except Exception as error:
        code = "truncated-image" if _MISSING_END.search(str(error)) else "damaged-image"
        raise ImageError(code, f"{image_format}: {error or type(error).__name__}") from error


def _check_size(image: Image.Image, limits: DecodeLimits) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError("damaged-image", f"the image is {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise ImageError("too-many-pixels", f"{width} x {height} pixels; the limit is {limits.max_pixels:,}")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        message = f"{width} x {height} pixels; one side may be {limits.max_aspect_ratio:g} times the other"
        raise ImageError("extreme-aspect-ratio", message)
    if isinstance(image, TiffImageFile):
        # libtiff takes memory for a whole tile, however small the image.
        width, height = (int(image.tag_v2.get(tag, 0)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if width * height > limits.max_pixels:
            message = f"tiles of {width} x {height} pixels; the limit is {limits.max_pixels:,}"
            raise ImageError("too-many-pixels", message)


def _check_frames(image: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    """Refuse a file with too many frames. Counting stops at the limit and decodes nothing."""
    if image.format == "GIF":
        too_many = _gif_frames_exceed(data, limits.max_frames)
    elif image.format == "TIFF":
        try:
            image.seek(limits.max_frames)
            too_many = True
        except EOFError:
            too_many = False
            image.seek(0)
    else:
        too_many = getattr(image, "n_frames", 1) > limits.max_frames  # only the animated formats have it
    if too_many:
        raise ImageError("too-many-frames", f"more than {limits.max_frames:,} frames or pages")


def _gif_frames_exceed(data: bytes, limit: int) -> bool:
    """Walk the blocks of a GIF. Source: GIF89a specification, sections 15-26."""
    position = 13 + _gif_color_table_bytes(data[10])
    frames = 0
    while position < len(data) and frames <= limit:
        kind = data[position]
        if kind == 0x21:  # extension: label, then sub-blocks
            position += 2
        elif kind == 0x2C and position + 10 < len(data):  # image: descriptor, color table, code size, sub-blocks
            frames += 1
            position += 11 + _gif_color_table_bytes(data[position + 9])
        else:
            break
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return frames > limit


def _gif_color_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 where there is none or the EXIF block itself is broken."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  the pixels are sound, and broken EXIF raises as many kinds as broken pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation. Source: EXIF 2.32, tag 0x0112."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes, image: Image.Image, target_px: int | None) -> Pixels:
    """Decode with libjpeg-turbo to sRGB; damage that would leave made-up pixels is an error."""
    icc_profile = image.info.get("icc_profile")
    colorspace = "GRAY" if image.mode == "L" else image.mode
    # simplejpeg makes room for the scaled size only, and libjpeg-turbo never scales a lossless JPEG: it would
    # write beyond the end.
    scaled = target_px is not None and _LOSSLESS_FRAME not in data
    size = {"min_height": target_px, "min_width": target_px} if scaled else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, **size)
    except ValueError as error:
        if _BYTES_AFTER_LAST_SCAN in str(error) and _RESTART_INTERVAL not in data:
            pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=False, **size)
        elif _ODD_JPEG_HEADER.search(str(error)):
            return _to_srgb(image, icc_profile)
        else:
            raise
    if colorspace == "RGB" and not icc_profile:
        return pixels  # by far the most frequent; spares two copies
    if colorspace == "GRAY":
        return _to_srgb(Image.fromarray(pixels[..., 0]), icc_profile)
    if colorspace == "CMYK":  # stored inverted, as Adobe began and everybody followed
        return _to_srgb(Image.fromarray(255 - pixels, "CMYK"), icc_profile)
    return _to_srgb(Image.fromarray(pixels), icc_profile)


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Pixels:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _wide_gray_to_8_bits(image)
    if not image.has_transparency_data:
        return np.asarray(_color_to_srgb(image, icc_profile))
    if image.mode in ("La", "LA"):
        image = image.convert("LA")
        color = image.getchannel("L")
    else:
        image = image.convert("RGBA")
        color = image.convert("RGB")
    return _over_white(np.asarray(_color_to_srgb(color, icc_profile)), np.asarray(image.getchannel("A")))


def _wide_gray_to_8_bits(image: Image.Image) -> Image.Image:
    """Gray of 12 to 32 bits as mode L, or LA where the file names a transparent value."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        full = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
        gray = ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
    else:
        gray = _range_to_uint8(values)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    narrow = Image.fromarray(gray)
    if "transparency" in image.info:
        opaque = values != image.info["transparency"]
        narrow.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return narrow


def _range_to_uint8(values: NDArray[np.int32] | NDArray[np.float32]) -> Pixels:
    """Map wide gray values to 0-255 by the smallest customary range that holds them all."""
    if not np.isfinite(values).all():
        raise ImageError("unsupported-pixels", "some pixels are not numbers (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    ranges = (255, 65535) if values.dtype.kind == "i" else (1, 255, 65535)
    full = next((full for full in ranges if high <= full), None)
    if low < 0 or full is None:
        message = f"gray values from {low:g} to {high:g}; tellapart reads 0-1, 0-255 and 0-65535"
        raise ImageError("unsupported-pixels", message)
    return np.rint(values * np.float64(255 / full)).astype(np.uint8)


def _over_white(color: Pixels, alpha: Pixels) -> Pixels:
    """Composite (H, W, 3) over white with (H, W) alpha, in strips so that a large image stays cheap."""
    result = np.empty_like(color)
    for top in range(0, len(color), 256):
        rows = slice(top, top + 256)
        opacity = alpha[rows, :, None].astype(np.uint16)
        result[rows] = (color[rows] * opacity + 255 * (255 - opacity) + 127) // 255
    return result


def _color_to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        lab = _icc_transform(None, "LAB")
        if lab is None:
            raise ImageError("unsupported-pixels", "LAB colors")
        return ImageCms.applyTransform(image, lab) or image
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    if icc_profile and icc_profile[_PROFILE_DEVICE] != b"IEC sRGB":
        transform = _icc_transform(icc_profile, image.mode)
        if transform is not None:
            return ImageCms.applyTransform(image, transform) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _icc_transform(icc_profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None for a profile that is broken or not for this mode, as browsers treat it."""
    try:
        source = (
            ImageCms.createProfile("LAB")
            if icc_profile is None
            else ImageCms.getOpenProfile(io.BytesIO(icc_profile))
        )
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
