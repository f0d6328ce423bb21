"""Augmentation of whole batches, on the device: first the random draws, then their application.

All geometry of an image, whatever the number of options, is one affine map and is sampled once. Places and boxes are
fractions of the image, so that one draw fits every size.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tellapart.training.augment_settings import AugmentSettings, Fill

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ImageArray = NDArray[np.uint8]

OPS = (
    *("identity", "rotation", "shear_rows", "shear_columns", "shift_rows", "shift_columns"),
    *("brightness", "contrast", "saturation", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
"""What ``randaugment`` draws from, all equally likely. Source: Cubuk et al. 2020, "RandAugment", section 3."""

_CROP_ASPECT = (3 / 4, 4 / 3)
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601
_EDGE_SLACK = 1e-6  # of half a side: a place on the very edge is inside, whatever the rounding of its coordinates
_TILE_PX = 96
_TILE_GAP_PX = 2
_ORIGINAL_GAP_PX = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """How the images of a batch are blended in pairs, by mixup or cutmix.

    Attributes:
        partner: (B,) whom each image is blended with.
        share: what an image and its targets keep of themselves, 0-1.
        box: (4,) top, left, bottom and right of what cutmix takes from the partner, 0-1; None for mixup.
    """

    partner: IntArray
    share: float
    box: FloatArray | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What chance decided for one batch; None where an option is off.

    Attributes:
        warp: (B, 2, 3) maps from places in the output to places in the input. A place is (row, column, 1), counted in
            image sides from the middle: pixel i of S has its centre at ``(i - (S - 1) / 2) / S``.
        channel_shift: (B,) added to every channel, -1 to 1.
        brightness: (B,) factors.
        color: (B, 4) factors of brightness, contrast and saturation, and turns of hue.
        color_order: the columns of ``color`` that are on, in the order in which they are applied.
        ops: (B, n) RandAugment's operations, indices into ``OPS``; their geometry is in ``warp`` already.
        strengths: (B, n) their strengths, -1 to 1.
        erase_boxes: (B, 4) top, left, bottom, right, 0-1; without area where nothing is erased.
        erase_colors: (B, 3) what is painted there, 0-1.
        mix: for mixup and cutmix.
    """

    warp: FloatArray | None = None
    channel_shift: FloatArray | None = None
    brightness: FloatArray | None = None
    color: FloatArray | None = None
    color_order: IntArray | None = None
    ops: IntArray | None = None
    strengths: FloatArray | None = None
    erase_boxes: FloatArray | None = None
    erase_colors: FloatArray | None = None
    mix: Mix | None = None


def draw(settings: AugmentSettings, count: int, rng: np.random.Generator) -> Draws:
    """Draw what happens to ``count`` images; nothing but ``rng`` decides it."""
    drawn: dict[str, Any] = {}
    if settings.channel_shift:
        drawn["channel_shift"] = rng.uniform(-settings.channel_shift, settings.channel_shift, count) / 255
    if settings.brightness is not None:
        drawn["brightness"] = rng.uniform(*settings.brightness, count)
    if settings.color is not None:
        drawn["color"] = _draw_color(settings.color, count, rng)
        drawn["color_order"] = rng.permutation(np.flatnonzero(settings.color))
    if settings.randaugment is not None:
        size = (count, settings.randaugment[0])
        drawn["ops"] = rng.integers(len(OPS), size=size)
        drawn["strengths"] = rng.choice([-1.0, 1.0], size) * settings.randaugment[1] / 10
    if settings.erase:
        areas = rng.uniform(*_ERASED_AREA, count)
        erased = rng.random(count) < settings.erase
        drawn["erase_boxes"] = _draw_boxes(areas, _ERASED_ASPECT, rng) * erased[:, None]
        drawn["erase_colors"] = rng.random((count, 3))
    if settings.mixes:
        drawn["mix"] = _draw_mix(settings, count, rng)
    geometry = [*_draw_geometry(settings, count, rng), *_op_maps(drawn.get("ops"), drawn.get("strengths"))]
    return Draws(warp=_composed(geometry), **drawn)


def _draw_geometry(settings: AugmentSettings, count: int, rng: np.random.Generator) -> list[FloatArray]:
    """Maps from output to input, (B, 3, 3) each: the last one acts first on a place in the output.

    A random resized crop sees the original image. Rotation, shift, shear and zoom follow in Keras' order, then flips.
    """
    maps = []
    if settings.crop is not None:
        top, left, bottom, right = _draw_boxes(rng.uniform(*settings.crop, count), _CROP_ASPECT, rng).T
        maps.append(_map(bottom - top, 0, (top + bottom - 1) / 2, 0, right - left, (left + right - 1) / 2))
    if settings.rotation:
        maps.append(_rotation(rng.uniform(-settings.rotation, settings.rotation, count)))
    if any(settings.shift):
        x, y = settings.shift
        maps.append(_map(1, 0, rng.uniform(-y, y, count), 0, 1, rng.uniform(-x, x, count)))
    if settings.shear:
        angle = np.radians(rng.uniform(-settings.shear, settings.shear, count))
        maps.append(_map(1, -np.sin(angle), 0, 0, np.cos(angle), 0))
    if settings.zoom is not None:
        rows, columns = rng.uniform(*settings.zoom, (2, count))
        maps.append(_map(rows, 0, 0, 0, rows if settings.zoom_square else columns, 0))
    if settings.flip_horizontal:
        maps.append(_map(1, 0, 0, 0, rng.choice([-1.0, 1.0], count), 0))
    if settings.flip_vertical:
        maps.append(_map(rng.choice([-1.0, 1.0], count), 0, 0, 0, 1, 0))
    return maps


def _map(*entries: FloatArray | float) -> FloatArray:
    """(B, 3, 3) matrices from six entries, row by row: each a number or (B,), one at least (B,)."""
    rows: FloatArray = np.stack(np.broadcast_arrays(*entries, 0.0, 0.0, 1.0), axis=-1)
    return rows.reshape(-1, 3, 3)


def _rotation(degrees: FloatArray) -> FloatArray:
    sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return _map(cos, -sin, 0, sin, cos, 0)


_GEOMETRIC_OPS: Mapping[str, Callable[[FloatArray], FloatArray]] = MappingProxyType(
    {
        "rotation": lambda strength: _rotation(30 * strength),
        "shear_rows": lambda strength: _map(1, 0.3 * strength, 0, 0, 1, 0),
        "shear_columns": lambda strength: _map(1, 0, 0, 0.3 * strength, 1, 0),
        "shift_rows": lambda strength: _map(1, 0, 0.45 * strength, 0, 1, 0),
        "shift_columns": lambda strength: _map(1, 0, 0, 0, 1, 0.45 * strength),
    }
)


def _op_maps(ops: IntArray | None, strengths: FloatArray | None) -> list[FloatArray]:
    if ops is None or strengths is None:
        return []
    maps = np.tile(np.eye(3), (ops.shape[1], len(ops), 1, 1))
    for name, build in _GEOMETRIC_OPS.items():
        images, slots = np.nonzero(ops == OPS.index(name))
        maps[slots, images] = build(strengths[images, slots])
    return list(maps)


def _composed(maps: list[FloatArray]) -> FloatArray | None:
    """One map per image; None when no image moves."""
    product: FloatArray = functools.reduce(np.matmul, maps, np.eye(3))
    return None if (product == np.eye(3)).all() else product[:, :2]


def _draw_color(spread: tuple[float, float, float, float], count: int, rng: np.random.Generator) -> FloatArray:
    factors = [rng.uniform(max(0.0, 1 - width), 1 + width, count) for width in spread[:3]]
    return np.stack([*factors, rng.uniform(-spread[3], spread[3], count)], axis=1)


def _draw_boxes(areas: FloatArray, aspect: tuple[float, float], rng: np.random.Generator) -> FloatArray:
    """(B, 4) top, left, bottom, right of boxes inside the image, which have exactly these areas.

    The logarithm of width by height is uniform over what of ``aspect`` fits into the image, so that no draw is refused.
    """
    log_low, log_high = np.log(np.maximum(aspect[0], areas)), np.log(np.minimum(aspect[1], 1 / areas))
    ratio = np.exp(log_low + rng.random(len(areas)) * (log_high - log_low))
    sides = np.sqrt(np.stack([areas / ratio, areas * ratio], axis=1))
    corners = rng.random((len(areas), 2)) * (1 - sides)
    boxes: FloatArray = np.concatenate([corners, corners + sides], axis=1)
    return boxes.clip(0, 1)  # rounding must not carry an edge out


def _draw_mix(settings: AugmentSettings, count: int, rng: np.random.Generator) -> Mix:
    """Mixup or cutmix for the whole batch; when both are on, each half of the time.

    Source: Zhang et al. 2018, "mixup", section 2; Yun et al. 2019, "CutMix", section 3.1.
    """
    cuts = rng.random() < (0.5 if settings.mixup and settings.cutmix else float(settings.cutmix > 0))
    alpha = settings.cutmix if cuts else settings.mixup
    share = rng.beta(alpha, alpha)
    partner = rng.permutation(count)
    if not cuts:
        return Mix(partner=partner, share=share, box=None)
    middle, half = rng.random(2), math.sqrt(1 - share) / 2
    box = np.clip(np.concatenate([middle - half, middle + half]), 0, 1)
    # The box may reach past the edge: what is inside counts.
    return Mix(partner=partner, share=1 - float((box[2] - box[0]) * (box[3] - box[1])), box=box)


def augment(images: Tensor, draws: Draws, settings: AugmentSettings) -> Tensor:
    """Apply what was drawn: geometry, channel shift, brightness, colour, RandAugment, erasing, mixing, in this order.

    Nothing waits for the device: every decision was made when drawing.

    Args:
        images: (B, C, S, S) float32 in 0-1; C is 1 or 3; any memory format. Never written to.
        draws: for B images.
        settings: the ones that were drawn from.

    Returns:
        Same shape, in 0-1; ``images`` itself when nothing was drawn.
    """
    if draws.warp is not None:
        images = _warp(images, draws.warp, settings.fill, settings.fill_value / 255)
    if draws.channel_shift is not None:
        images = _shift_channels(images, _column(draws.channel_shift, images))
    if draws.brightness is not None:
        images = _brightness(images, _column(draws.brightness, images))
    if draws.color is not None and draws.color_order is not None:
        for i in draws.color_order:
            images = _JITTER[i](images, _column(draws.color[:, i], images))
    if draws.ops is not None and draws.strengths is not None:
        images = _apply_ops(images, draws.ops, draws.strengths)
    if draws.erase_boxes is not None and draws.erase_colors is not None:
        colors = _tensor(draws.erase_colors[:, : images.shape[1], None, None], images)
        images = torch.lerp(images, colors, _coverage(draws.erase_boxes, images))
    return images if draws.mix is None else _mix(images, draws.mix)


def mix_targets(targets: Tensor, draws: Draws) -> Tensor:
    """Blend targets as the images were; the same tensor when they were not.

    Args:
        targets: (B, K) float, 0-1.
        draws: for B images.
    """
    if draws.mix is None:
        return targets
    return torch.lerp(targets[_index(draws.mix.partner, targets)], targets, draws.mix.share)


def _tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32, device=like.device)


def _column(values: FloatArray, like: Tensor) -> Tensor:
    """(B, 1, 1, 1), one value for each image."""
    return _tensor(values[:, None, None, None], like)


def _index(rows: IntArray, like: Tensor) -> Tensor:
    return torch.as_tensor(rows, device=like.device)


def _warp(images: Tensor, warp: FloatArray, fill: Fill, fill_value: float) -> Tensor:
    """Sample each image once, bilinearly, with the modes of scipy.ndimage that have the same names.

    Only ``wrap`` is its ``grid-wrap``: pixel S is pixel 0 again. (Its ``wrap``, which Keras uses, lays the last pixel over
    the first.) ``constant`` begins beyond the middle of the outermost pixels, without a transition.
    """
    if (np.abs(warp) == np.eye(2, 3)).all():
        return _flip(images, warp)
    grid = _grid(warp, images)
    size = images.shape[-1]
    if fill == "wrap":
        # With a border of one pixel, the places between the last pixel and the first are inside.
        grid = ((grid + 1).remainder(2) - 1) * (size / (size + 2))
        images = functional.pad(images, (1, 1, 1, 1), mode="circular")
    padding = "reflection" if fill == "reflect" else "border"
    sampled = functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    if fill != "constant":
        return sampled
    beyond = grid.abs() > 1 - 1 / size + _EDGE_SLACK
    return sampled.masked_fill((beyond[..., 0] | beyond[..., 1])[:, None], fill_value)


def _flip(images: Tensor, warp: FloatArray) -> Tensor:
    """Flips alone need no sampling, and lose nothing."""
    for axis in range(2):
        flipped = warp[:, axis, axis] < 0
        if flipped.any():
            mask = torch.as_tensor(flipped, device=images.device)[:, None, None, None]
            images = torch.where(mask, images.flip(2 + axis), images)
    return images


def _grid(warp: FloatArray, images: Tensor) -> Tensor:
    """(B, S, S, 2) x and y of the places to sample; grid_sample counts in half sides from the middle."""
    size = images.shape[-1]
    steps = (2 * torch.arange(size, device=images.device)[:, None] + 1) / size - 1
    xy = _tensor(warp[:, None, ::-1], images)
    down = xy[..., 0] * steps
    across = xy[..., 1] * steps + 2 * xy[..., 2]
    return down[:, :, None] + across[:, None]


def _coverage(boxes: FloatArray, images: Tensor) -> Tensor:
    """(n, 1, S, S) share of each pixel that lies in its image's box: exact, so shares of area hold at every size."""
    size = images.shape[-1]
    pixels = np.arange(size)
    low, high = boxes[:, :2, None] * size, boxes[:, 2:, None] * size
    covered = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, 1)
    rows, columns = _tensor(covered, images).unbind(dim=1)
    return rows[:, None, :, None] * columns[:, None, None, :]


def _mix(images: Tensor, mix: Mix) -> Tensor:
    partners = images[_index(mix.partner, images)]
    if mix.box is None:
        return torch.lerp(partners, images, mix.share)
    return torch.lerp(images, partners, _coverage(mix.box[None], images))


def _shift_channels(images: Tensor, amount: Tensor) -> Tensor:
    """As in Keras, no pixel leaves the range that the image had."""
    lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images + amount).clamp(lowest, highest)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other`` at 0, ``images`` at 1, and beyond."""
    return torch.lerp(other, images, factor).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    """(n, 1, S, S) luma."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_GRAY_WEIGHTS, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _gray(images.mean((2, 3), keepdim=True)), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _gray(images), factor)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue and keep value and chroma of the HSV cone; gray images have no hue."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, i : i + 1] for i in range(3))
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    corners = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    distance = (corners + sextant + 6 * turns).remainder(6)
    return value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1)


_JITTER = (_brightness, _contrast, _saturation, _hue)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """From smoothed at 0 to the image at 1 and sharper beyond; the outermost pixels stay."""
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = functional.conv2d(images, (kernel / 13).expand(channels, 1, 3, 3), groups=channels)
    return _blend(images, smooth, factor)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest of 8 bits."""
    step = 2 ** (8 - bits)
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def _autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel over 0-1; a channel of one value stays."""
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = highest - lowest
    return torch.where(spread > 0, (images - lowest) / torch.where(spread > 0, spread, 1), images)


def _equalize(images: Tensor) -> Tensor:
    """Make the 256 levels of each channel about equally frequent, with Pillow's table; coarser images stay."""
    levels = (images * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    most = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - most) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.clamp(0, 255).gather(2, levels).view(images.shape).to(images.dtype) / 255


_PIXEL_OPS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "brightness": lambda images, strength: _brightness(images, 1 + 0.9 * strength),
        "contrast": lambda images, strength: _contrast(images, 1 + 0.9 * strength),
        "saturation": lambda images, strength: _saturation(images, 1 + 0.9 * strength),
        "sharpness": lambda images, strength: _sharpness(images, 1 + 0.9 * strength),
        "posterize": lambda images, strength: _posterize(images, 8 - (4 * strength.abs()).round()),
        "solarize": lambda images, strength: _solarize(images, 1 - strength.abs()),
        "autocontrast": lambda images, _strength: _autocontrast(images),
        "equalize": lambda images, _strength: _equalize(images),
    }
)


def _apply_ops(images: Tensor, ops: IntArray, strengths: FloatArray) -> Tensor:
    images = images.clone()
    for slot in range(ops.shape[1]):
        for name, apply in _PIXEL_OPS.items():
            rows = np.flatnonzero(ops[:, slot] == OPS.index(name))
            if len(rows):
                index = _index(rows, images)
                images[index] = apply(images[index], _column(strengths[rows, slot], images))
    return images


def contact_sheet(images: ImageArray, settings: AugmentSettings, seed: int, variants: int = 8) -> ImageArray:
    """Show what the settings do: one row for each image, the original first.

    Args:
        images: (M, S, S, 3), M at least 1.
        settings: what to show.
        seed: of the draws.
        variants: augmented images in a row.

    Returns:
        (H, W, 3) picture; small images are enlarged by a whole factor.
    """
    rng = np.random.default_rng(seed)
    batch = torch.tensor(images).permute(0, 3, 1, 2) / 255
    columns = [images]
    for _ in range(variants):
        varied = augment(batch, draw(settings, len(images), rng), settings)
        columns.append((varied * 255).round().byte().permute(0, 2, 3, 1).numpy())
    factor = math.ceil(_TILE_PX / images.shape[1])
    tiles = np.stack(columns, axis=1).repeat(factor, axis=2).repeat(factor, axis=3)
    return _tiled(tiles)


def _tiled(tiles: ImageArray) -> ImageArray:
    """(H, W, 3) white sheet from (rows, columns, T, T, 3) tiles; the first column stands a little apart."""
    rows, columns, side = tiles.shape[:3]
    pitch = side + _TILE_GAP_PX
    extra = _ORIGINAL_GAP_PX - _TILE_GAP_PX
    sheet = np.full((rows * pitch - _TILE_GAP_PX, columns * pitch - _TILE_GAP_PX + extra, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            left = column * pitch + (extra if column else 0)
            sheet[row * pitch : row * pitch + side, left : left + side] = tiles[row, column]
    return sheet
