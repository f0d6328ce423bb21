"""Augmentation says what it read, draws what it says, and moves pixels as scipy, Pillow and torchvision do."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torchvision.transforms.v2 import functional as reference

from tellapart.errors import RecipeError
from tellapart.training.augment import OPS, Draws, Mix, augment, contact_sheet, draw, mix_targets
from tellapart.training.augment_settings import AugmentSettings, parse_augment

EVERYTHING = (
    "zoom 0.3, flip both, rotation 30, shift 0.2 0.1, shear 15, brightness 0.5 1.5, channel_shift 40, fill constant 200, "
    "crop 0.4, color 0.4 0.4 0.4 0.2, randaugment 2 9, erase 0.5, mixup 0.4, cutmix 1"
)
SCIPY_MODE = {"nearest": "nearest", "reflect": "reflect", "constant": "constant", "wrap": "grid-wrap"}


def rng(seed=0):
    return np.random.default_rng(seed)


def pictures(count=6, channels=3, size=32, seed=0):
    """Smooth, so that a slightly wrong place is a slightly wrong value, and all different."""
    noise = rng(seed).random((count, channels, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1, 1), mode="wrap")
    low, high = smooth.min((2, 3), keepdims=True), smooth.max((2, 3), keepdims=True)
    return torch.tensor((smooth - low) / (high - low), dtype=torch.float32)


def levels(count=6, channels=3, size=32):
    """Pictures of 256 exact levels."""
    return (pictures(count, channels, size) * 255).round() / 255


def scipy_warp(images, warp, *, fill="nearest", value=0.0):
    """The same maps by scipy: places in pixels, one channel at a time."""
    size = images.shape[-1]
    middle = np.full(2, (size - 1) / 2)
    expected = np.empty(images.shape)
    for i, matrix in enumerate(warp):
        linear, shift = matrix[:, :2], matrix[:, 2] * size
        offset = middle - linear @ middle + shift
        for j, channel in enumerate(images[i].double().numpy()):
            expected[i, j] = ndimage.affine_transform(
                channel, linear, offset, order=1, mode=SCIPY_MODE[fill], cval=value
            )
    return expected


# what can be written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("zoom 0.2", {"zoom": (0.8, 1.2)}),
        ("zoom 0.2 square", {"zoom": (0.8, 1.2), "zoom_square": True}),
        ("zoom 0.5 1", {"zoom": (0.5, 1.0)}),
        ("zoom 0.5 1 square", {"zoom": (0.5, 1.0), "zoom_square": True}),
        ("flip horizontal", {"flip_horizontal": True}),
        ("flip vertical", {"flip_vertical": True}),
        ("flip both", {"flip_horizontal": True, "flip_vertical": True}),
        ("rotation 15", {"rotation": 15.0}),
        ("shift 0.1", {"shift": (0.1, 0.1)}),
        ("shift 0.1 0", {"shift": (0.1, 0.0)}),
        ("shear 10", {"shear": 10.0}),
        ("brightness 0.8 1.2", {"brightness": (0.8, 1.2)}),
        ("channel_shift 20", {"channel_shift": 20.0}),
        ("fill nearest", {"fill": "nearest"}),
        ("fill reflect", {"fill": "reflect"}),
        ("fill wrap", {"fill": "wrap"}),
        ("fill constant", {"fill": "constant", "fill_value": 0.0}),
        ("fill constant 255", {"fill": "constant", "fill_value": 255.0}),
        ("crop 0.3", {"crop": (0.3, 1.0)}),
        ("crop 0.3 0.9", {"crop": (0.3, 0.9)}),
        ("color 0.4 0.3 0.2", {"color": (0.4, 0.3, 0.2, 0.0)}),
        ("color 0.4 0.3 0.2 0.1", {"color": (0.4, 0.3, 0.2, 0.1)}),
        ("randaugment 2 9", {"randaugment": (2, 9.0)}),
        ("erase 0.25", {"erase": 0.25}),
        ("mixup 0.2", {"mixup": 0.2}),
        ("cutmix 1", {"cutmix": 1.0}),
        (
            " zoom 0.2,flip  horizontal,\n rotation 15",
            {"zoom": (0.8, 1.2), "flip_horizontal": True, "rotation": 15.0},
        ),
    ],
)
def test_good_texts(text, expected):
    assert parse_augment(text) == dataclasses.replace(AugmentSettings(), **expected)


@pytest.mark.parametrize(
    ("text", "wrong", "says", "hint"),
    [
        ("zom 0.2", "zom", "one of zoom, flip", "'zoom'"),
        ("flip horizontal, rotate 3", "rotate", "one of", "'rotation'"),
        ("xyzzy", "xyzzy", "one of", ""),
        ("zoom", " ", "a share", "zoom LOW HIGH"),
        ("zoom much", "much", "a share", "zoom R"),
        ("zoom square", "square", "a share", "zoom R"),
        ("zoom 0.2 squar", "squar", "a factor", "zoom R"),
        ("zoom 1", "1", "from 0 to 0.95", "zoom R"),
        ("zoom -0.1", "-0.1", "from 0 to 0.95", "zoom R"),
        ("zoom 1.2 0.8", "0.8", "from 1.2 to", "zoom R"),
        ("zoom 0 1", "0", "from 0.05", "zoom R"),
        ("zoom 0.8 1.2 1.3", "1.3", "'square' or a comma", "zoom R"),
        ("zoom 0.8 1.2 1.3 square", "1.3", "'square' or a comma", "zoom R"),
        ("zoom 0.2 square 3", "3", "a comma", "zoom R"),
        ("flip", " ", "one of horizontal, vertical, both", "flip both"),
        ("flip horizontl", "horizontl", "one of horizontal", "'horizontal'"),
        ("flip both both", "both", "a comma", "flip both"),
        ("flip horizontal, flip vertical", "flip", "each option once", "flip both"),
        ("zoom 0.2, zoom 0.2", "zoom", "each option once", "zoom R"),
        ("rotation", " ", "an angle", "rotation DEGREES"),
        ("rotation 181", "181", "from 0 to 180", "rotation DEGREES"),
        ("rotation nan", "nan", "from 0 to 180", "rotation DEGREES"),
        ("rotation 15 degrees", "degrees", "a comma", "rotation DEGREES"),
        ("shift 0.1 0.1 0.1", "0.1", "a comma", "shift X"),
        ("shift 2", "2", "from 0 to 1", "shift X"),
        ("shift 0.1 y", "y", "of the height", "shift X"),
        ("shear 90", "90", "from 0 to 80", "shear DEGREES"),
        ("brightness 0.8", " ", "a factor", "brightness LOW HIGH"),
        ("brightness 1.2 0.8", "0.8", "from 1.2", "brightness LOW HIGH"),
        ("brightness 1 2 3", "3", "a comma", "brightness LOW HIGH"),
        ("channel_shift 256", "256", "from 0 to 255", "channel_shift R"),
        ("fill", " ", "one of nearest", "fill nearest"),
        ("fill mirror", "mirror", "one of nearest", "fill nearest"),
        ("fill reflet", "reflet", "one of nearest", "'reflect'"),
        ("fill reflect 3", "3", "a comma", "fill nearest"),
        ("fill constant 300", "300", "from 0 to 255", "fill constant"),
        ("fill constant 3 3", "3", "a comma", "fill constant"),
        ("crop 0", "0", "from 0.01 to 1", "crop LOW"),
        ("crop 0.9 0.3", "0.3", "from 0.9 to 1", "crop LOW"),
        ("crop 0.1 0.2 0.3", "0.3", "a comma", "crop LOW"),
        ("color 0.4 0.4", " ", "saturation", "color BRIGHTNESS"),
        ("color 0.4 0.4 2", "2", "saturation", "color BRIGHTNESS"),
        ("color 0.1 0.1 0.1 0.6", "0.6", "from 0 to 0.5", "color BRIGHTNESS"),
        ("color 0.1 0.1 0.1 0.1 0.2", "0.2", "a comma", "color BRIGHTNESS"),
        ("randaugment 2", " ", "a magnitude", "randaugment N"),
        ("randaugment 1.5 9", "1.5", "a whole number", "randaugment N"),
        ("randaugment 2 11", "11", "from 0 to 10", "randaugment N"),
        ("randaugment 2 9 1", "1", "a comma", "randaugment N"),
        ("erase 1.1", "1.1", "from 0 to 1", "erase P"),
        ("mixup", " ", "alpha", "mixup ALPHA"),
        ("mixup -1", "-1", "from 0 to 100", "mixup ALPHA"),
        ("cutmix inf", "inf", "from 0 to 100", "cutmix ALPHA"),
    ],
)
def test_bad_texts(text, wrong, says, hint):
    with pytest.raises(RecipeError) as caught:
        parse_augment(text)
    assert caught.value.code == "bad-setting"
    message, source, marks = caught.value.message.split("\n")
    assert message.startswith("augment: expected")
    assert says in message
    start = marks.index("^")
    assert source.ljust(len(marks))[start : start + marks.count("^")] == wrong
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


# geometry


@pytest.mark.parametrize("fill", SCIPY_MODE)
@pytest.mark.parametrize(("channels", "size"), [(3, 64), (1, 33), (3, 8)])
def test_one_warp_is_scipys(fill, channels, size):
    images = pictures(12, channels, size)
    settings = parse_augment(
        f"zoom 0.4, rotation 60, shift 0.9, shear 20, flip both, crop 0.3, randaugment 1 10, fill {fill}"
    )
    settings = dataclasses.replace(settings, fill_value=51.0)
    warp = draw(settings, 12, rng(5)).warp
    got = augment(images, Draws(warp=warp), settings).numpy()
    np.testing.assert_allclose(got, scipy_warp(images, warp, fill=fill, value=0.2), atol=1e-4)


def test_constant_fill_starts_beyond_the_outermost_pixel_and_not_on_it():
    settings = parse_augment("shift 0.5, fill constant 255")
    shifts = np.array([0.25, -0.25, 0.25 + 1e-9, 0.0])
    warp = np.tile(np.eye(2, 3), (4, 1, 1))
    warp[:, 1, 2] = shifts
    got = augment(torch.zeros(4, 1, 8, 8), Draws(warp=warp), settings)
    columns = got[:, 0].amax(1).numpy()
    np.testing.assert_array_equal(columns, [[0] * 6 + [1] * 2, [1] * 2 + [0] * 6, [0] * 6 + [1] * 2, [0] * 8])


def keras_matrix(draws, size):
    """A composition as Keras writes it: rotation, shift, shear, zoom, then back to the corner; places in pixels."""
    theta, tx, ty, shear, zx, zy = draws
    theta, shear = np.deg2rad(theta), np.deg2rad(shear)
    rotation = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    shift = np.array([[1, 0, tx * size], [0, 1, ty * size], [0, 0, 1]])
    sheared = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    zoom = np.diag([zx, zy, 1.0])
    centre = (size - 1) / 2
    to_centre = np.array([[1, 0, centre], [0, 1, centre], [0, 0, 1]])
    to_corner = np.array([[1, 0, -centre], [0, 1, -centre], [0, 0, 1]])
    return to_centre @ rotation @ shift @ sheared @ zoom @ to_corner


def keras_transform(image, matrix, flip):
    """Image (C, S, S) under a matrix in pixels, flipped afterwards."""
    moved = [
        ndimage.affine_transform(channel, matrix[:2, :2], matrix[:2, 2], order=1, mode="nearest")
        for channel in image
    ]
    return np.stack(moved)[..., ::-1] if flip else np.stack(moved)


@pytest.mark.parametrize(
    "text",
    ["zoom 0.2", "zoom 0.2, flip horizontal", "rotation 40, shift 0.2 0.1, shear 20, zoom 0.3, flip horizontal"],
)
def test_geometry_is_kerass(text):
    settings, count, size = parse_augment(text), 8, 33
    images = pictures(count, 3, size)
    # The numbers in Keras' order, from a second generator of the same seed.
    again = rng(11)
    full = bool(settings.rotation)
    theta = again.uniform(-40, 40, count) if full else np.zeros(count)
    tx = again.uniform(-0.1, 0.1, count) if full else np.zeros(count)
    ty = again.uniform(-0.2, 0.2, count) if full else np.zeros(count)
    shear = again.uniform(-20, 20, count) if full else np.zeros(count)
    zx, zy = again.uniform(*settings.zoom, (2, count))
    flip = again.choice([-1, 1], count) < 0 if settings.flip_horizontal else np.zeros(count, dtype=bool)
    expected = [
        keras_transform(images[i].double().numpy(), keras_matrix(numbers, size), flip[i])
        for i, numbers in enumerate(zip(theta, tx, ty, shear, zx, zy, strict=True))
    ]
    got = augment(images, draw(settings, count, rng(11)), settings)
    np.testing.assert_allclose(got.numpy(), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        ([[1, 0], [0, -1]], lambda a: a[:, ::-1]),
        ([[-1, 0], [0, 1]], lambda a: a[::-1]),
        ([[-1, 0], [0, -1]], lambda a: np.rot90(a, 2)),
        ([[0, -1], [1, 0]], lambda a: np.rot90(a, -1)),
        ([[0, 1], [-1, 0]], np.rot90),
        ([[0, 1], [1, 0]], np.transpose),
    ],
    ids=["mirror", "upside down", "half turn", "clockwise", "anticlockwise", "transpose"],
)
@pytest.mark.parametrize(("size", "tolerance"), [(64, 0), (33, 1e-5)])
def test_flips_and_right_angles_lose_nothing(linear, expected, size, tolerance):
    images = pictures(2, 3, size)
    warp = np.tile(np.column_stack([linear, [0, 0]]).astype(float), (2, 1, 1))
    if linear[0][0]:
        tolerance = 0  # flips are not sampled
    for fill in ("nearest", "reflect", "constant"):
        got = augment(images, Draws(warp=warp), AugmentSettings(fill=fill)).numpy()
        for i in range(2):
            for j in range(3):  # the rounding of places is exact for powers of two
                np.testing.assert_allclose(got[i, j], expected(images[i, j].numpy()), rtol=0, atol=tolerance)


def test_drawn_right_angles_are_exact_too():
    """cos(90 degrees) is 6e-17 in floating point, not 0."""
    turned = draw(parse_augment("rotation 90"), 1, Largest()).warp
    got = augment(pictures(1, 1, 64), Draws(warp=turned), AugmentSettings())
    np.testing.assert_array_equal(got[0, 0].numpy(), np.rot90(pictures(1, 1, 64)[0, 0].numpy(), -1))


class Largest:
    """A generator that always draws the highest value."""

    def uniform(self, low, high, size):
        return np.full(size, np.maximum(low, high))


def test_some_flipped_some_not_each_exactly():
    images = pictures(40)
    settings = parse_augment("flip both")
    draws = draw(settings, 40, rng(2))
    got = augment(images, draws, settings)
    kinds = set()
    for image, out, matrix in zip(images, got, draws.warp, strict=True):
        axes = [1 + axis for axis in range(2) if matrix[axis, axis] < 0]
        kinds.add(tuple(axes))
        assert torch.equal(out, image.flip(axes))
    assert len(kinds) == 4


def test_a_crop_is_pillows_resize_of_a_box():
    settings = parse_augment("crop 0.2 0.5")
    images = pictures(6, 1, 40)
    draws = draw(settings, 6, rng(4))
    got = augment(images, draws, settings)
    for image, out, matrix in zip(images, got, draws.warp, strict=True):
        height, width = matrix[0, 0] * 40, matrix[1, 1] * 40
        top, left = (matrix[0, 2] + 0.5) * 40 - height / 2, (matrix[1, 2] + 0.5) * 40 - width / 2
        assert 0.2 <= height * width / 1600 <= 0.5
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
        assert min(top, left) >= 0
        assert max(top + height, left + width) <= 40
        expected = Image.fromarray(image[0].numpy()).resize(
            (40, 40), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        np.testing.assert_allclose(out[0].numpy(), np.asarray(expected), atol=1e-4)


# draws


@pytest.mark.parametrize(
    "text", ["", "fill reflect", "crop 1", "rotation 0, shift 0, zoom 0, color 0 0 0", "mixup 0"]
)
def test_nothing_asked_nothing_done(text):
    settings = parse_augment(text)
    images, targets = pictures(), torch.eye(6)
    draws = draw(settings, 6, rng())
    assert draws.warp is None, "no warp without geometry"
    assert augment(images, draws, settings) is images
    assert mix_targets(targets, draws) is targets


def test_colours_alone_run_no_warp():
    draws = draw(parse_augment("brightness 0.5 1.5, channel_shift 9, color 1 1 1, erase 1, mixup 1"), 6, rng())
    assert draws.warp is None


def same(a, b):
    """Whether two records of arrays are equal."""
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return np.array_equal(a, b)


def test_a_seed_decides_and_nothing_else():
    settings = parse_augment(EVERYTHING)
    np.random.seed(1)  # noqa: NPY002 - the global generators must not matter
    torch.manual_seed(1)
    first = draw(settings, 6, rng(7))
    out = augment(pictures(), first, settings)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    again = draw(settings, 6, rng(7))
    assert same(first, again)
    assert torch.equal(out, augment(pictures(), again, settings))
    assert not same(first, draw(settings, 6, rng(8)))


N = 20_000


def spread(values, low, high):
    """Values fill a range evenly and stay inside."""
    assert values.min() >= low - 1e-12
    assert values.max() <= high + 1e-12
    np.testing.assert_allclose(
        np.quantile(values, [0.1, 0.5, 0.9]), np.quantile([low, high], [0.1, 0.5, 0.9]), atol=0.03 * (high - low)
    )


def test_zoom_draws_the_axes_independently_and_square_does_not():
    warp = draw(parse_augment("zoom 0.2"), N, rng()).warp
    spread(warp[:, 0, 0], 0.8, 1.2)
    spread(warp[:, 1, 1], 0.8, 1.2)
    assert abs(np.corrcoef(warp[:, 0, 0], warp[:, 1, 1])[0, 1]) < 0.03
    assert not warp[:, [0, 1, 0, 1], [1, 0, 2, 2]].any()
    square = draw(parse_augment("zoom 0.5 0.9 square"), N, rng()).warp
    spread(square[:, 0, 0], 0.5, 0.9)
    np.testing.assert_array_equal(square[:, 0, 0], square[:, 1, 1])


def test_ranges_of_the_other_geometry():
    rotation = draw(parse_augment("rotation 30"), N, rng()).warp
    spread(np.degrees(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])), -30, 30)
    shift = draw(parse_augment("shift 0.3 0.1"), N, rng()).warp
    spread(shift[:, 0, 2], -0.1, 0.1)
    spread(shift[:, 1, 2], -0.3, 0.3)
    shear = draw(parse_augment("shear 20"), N, rng()).warp
    spread(np.degrees(np.arcsin(-shear[:, 0, 1])), -20, 20)
    flip = draw(parse_augment("flip both"), N, rng()).warp
    for axis in range(2):
        assert abs((flip[:, axis, axis] < 0).mean() - 0.5) < 0.02
    crop = draw(parse_augment("crop 0.1 0.4"), N, rng()).warp
    spread(crop[:, 0, 0] * crop[:, 1, 1], 0.1, 0.4)
    spread(np.log(crop[:, 1, 1] / crop[:, 0, 0]), np.log(3 / 4), np.log(4 / 3))
    assert (np.abs(crop[:, :, 2]) + crop[:, [0, 1], [0, 1]] / 2 <= 0.5 + 1e-12).all(), "never past the edge"


def test_ranges_of_colours():
    draws = draw(parse_augment("brightness 0.5 2, channel_shift 51, color 0.4 0.3 1 0.1"), N, rng())
    spread(draws.brightness, 0.5, 2)
    spread(draws.channel_shift, -0.2, 0.2)
    for column, (low, high) in zip(draws.color.T, [(0.6, 1.4), (0.7, 1.3), (0, 2), (-0.1, 0.1)], strict=True):
        spread(column, low, high)
    orders = {tuple(draw(parse_augment("color 1 0 1"), 1, rng(seed)).color_order) for seed in range(20)}
    assert orders == {(0, 2), (2, 0)}, "what is off takes no time"


def test_erasing_hits_its_share_of_images_with_boxes_inside():
    draws = draw(parse_augment("erase 0.3"), N, rng())
    top, left, bottom, right = draws.erase_boxes.T
    areas = (bottom - top) * (right - left)
    assert abs((areas > 0).mean() - 0.3) < 0.01
    spread(areas[areas > 0], 0.02, 0.33)
    assert draws.erase_boxes.min() >= 0
    assert draws.erase_boxes.max() <= 1
    aspects = (right - left)[areas > 0] / (bottom - top)[areas > 0]
    assert 0.3 - 1e-9 < aspects.min() < 0.35
    assert 2.9 < aspects.max() < 1 / 0.3 + 1e-9


def test_randaugment_draws_all_operations_and_its_geometry_joins_the_warp():
    draws = draw(parse_augment("randaugment 2 5"), N, rng())
    assert draws.ops.shape == (N, 2)
    np.testing.assert_allclose(np.bincount(draws.ops.ravel()) / (2 * N), 1 / len(OPS), atol=0.005)
    assert set(np.unique(draws.strengths)) == {-0.5, 0.5}
    geometric = (draws.ops >= OPS.index("rotation")) & (draws.ops <= OPS.index("shift_columns"))
    still = (draws.warp == np.eye(2, 3)).all(axis=(1, 2))
    np.testing.assert_array_equal(still[~geometric.any(axis=1)], True)
    once = geometric.sum(axis=1) == 1
    np.testing.assert_array_equal(still[once], False)
    turned = (draws.ops == OPS.index("rotation")).any(axis=1) & once
    np.testing.assert_allclose(draws.warp[turned, 0, 0], np.cos(np.radians(15)))


def test_operations_are_composed_in_the_order_drawn():
    settings = parse_augment("randaugment 2 10, fill constant")
    images = pictures(200, 1, 16)
    draws = draw(settings, 200, rng(1))
    wanted = (draws.ops[:, 0] == OPS.index("rotation")) & (draws.ops[:, 1] == OPS.index("shift_rows"))
    (row, *_) = np.flatnonzero(wanted)
    turn, shift = np.radians(30 * draws.strengths[row, 0]), 0.45 * draws.strengths[row, 1]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    expected = np.column_stack([rotation, rotation @ [shift, 0]])  # the shifted picture is a rotated one
    np.testing.assert_allclose(draws.warp[row], expected, atol=1e-12)
    assert images.shape == augment(images, draws, settings).shape


# colours


@pytest.mark.parametrize(
    ("column", "value", "adjust"),
    [
        (0, 0.4, reference.adjust_brightness),
        (0, 1.7, reference.adjust_brightness),
        (1, 0.4, reference.adjust_contrast),
        (1, 1.7, reference.adjust_contrast),
        (2, 0.0, reference.adjust_saturation),
        (2, 1.7, reference.adjust_saturation),
        (3, 0.13, reference.adjust_hue),
        (3, -0.4, reference.adjust_hue),
    ],
)
def test_jitter_is_torchvisions(column, value, adjust):
    images = pictures()
    images[0] = 0.3  # one of a single gray, where there is no hue
    draws = Draws(color=np.full((6, 4), value), color_order=np.array([column]))
    got = augment(images, draws, AugmentSettings())
    torch.testing.assert_close(got, adjust(images, value), atol=1e-3, rtol=0)


def test_jitter_follows_the_order_drawn():
    images = pictures()
    color = np.tile([1.6, 0.5, 1.0, 0.0], (6, 1))
    bright_first, contrast_first = (
        augment(images, Draws(color=color, color_order=np.array(order)), AugmentSettings())
        for order in ([0, 1], [1, 0])
    )
    brighter, flatter = reference.adjust_brightness, reference.adjust_contrast
    torch.testing.assert_close(bright_first, flatter(brighter(images, 1.6), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(contrast_first, brighter(flatter(images, 0.5), 1.6), atol=1e-3, rtol=0)
    assert (bright_first - contrast_first).abs().max() > 0.05


def test_each_image_has_its_own_factor_and_shift():
    images = pictures(3)
    factors, shifts = np.array([0.5, 1.0, 2.0]), np.array([0.2, 0.0, -0.1])
    got = augment(images, Draws(brightness=factors), AugmentSettings())
    torch.testing.assert_close(got, (images * torch.tensor(factors)[:, None, None, None].float()).clamp(0, 1))
    narrow = 0.25 + images / 2
    moved = augment(narrow, Draws(channel_shift=shifts), AugmentSettings())
    for i, shift in enumerate(shifts):
        low, high = float(narrow[i].min()), float(narrow[i].max())
        torch.testing.assert_close(moved[i], (narrow[i] + shift).clamp(low, high))


def pillow(op):
    def apply(images, _strength):
        arrays = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
        changed = [np.asarray(op(Image.fromarray(array))) for array in arrays]
        return torch.tensor(np.stack(changed)).permute(0, 3, 1, 2) / 255

    return apply


@pytest.mark.parametrize(
    ("name", "strength", "expected", "tolerance"),
    [
        ("identity", 1.0, lambda x, _: x, 0),
        ("rotation", 1.0, lambda x, _: x, 0),  # it is in the warp
        ("brightness", -0.5, lambda x, s: reference.adjust_brightness(x, 1 + 0.9 * s), 1e-5),
        ("contrast", 0.5, lambda x, s: reference.adjust_contrast(x, 1 + 0.9 * s), 1e-3),
        ("saturation", 1.0, lambda x, s: reference.adjust_saturation(x, 1 + 0.9 * s), 1e-3),
        ("sharpness", -1.0, lambda x, s: reference.adjust_sharpness(x, 1 + 0.9 * s), 1e-5),
        ("sharpness", 1.0, lambda x, s: reference.adjust_sharpness(x, 1 + 0.9 * s), 1e-5),
        ("posterize", -1.0, pillow(lambda image: ImageOps.posterize(image, 4)), 1e-5),
        ("posterize", 0.5, pillow(lambda image: ImageOps.posterize(image, 6)), 1e-5),
        ("posterize", 0.0, lambda x, _: x, 1e-5),
        ("solarize", 0.6, pillow(lambda image: ImageOps.solarize(image, 102)), 1e-5),
        ("autocontrast", 1.0, pillow(ImageOps.autocontrast), 1.01 / 255),
        ("equalize", 1.0, pillow(ImageOps.equalize), 1e-5),
    ],
)
def test_randaugments_operations(name, strength, expected, tolerance):
    images = levels(4, size=48) * 0.8 + 0.1
    images = (images * 255).round() / 255
    images[1, 2] = 40 / 255  # a flat channel has nothing to stretch
    before = images.clone()
    ops = np.array([[OPS.index(name)]] * 3 + [[0]])
    got = augment(images, Draws(ops=ops, strengths=np.full((4, 1), strength)), AugmentSettings())
    torch.testing.assert_close(got[:3], expected(images[:3], strength), atol=tolerance, rtol=0)
    assert torch.equal(got[3], before[3]), "the others stay"
    assert torch.equal(images, before), "the caller's images stay"


# boxes and mixing


@pytest.mark.parametrize("size", [7, 64])
def test_an_erased_box_has_its_colour_and_its_area(size):
    boxes = np.array([[0.25, 0.5, 0.75, 1.0], [0.1, 0.1, 0.43, 0.81], [0.0, 0.0, 0.0, 0.0]])
    colors = np.array([[1.0, 0.5, 0.0]] * 3)
    images = torch.zeros(3, 3, size, size)
    got = augment(images, Draws(erase_boxes=boxes, erase_colors=colors), AugmentSettings())
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    np.testing.assert_allclose(got.mean((2, 3)).numpy(), areas[:, None] * colors, atol=1e-5)
    if size == 64:
        assert (got[0, 0, 16:48, 32:] == 1).all()
        assert got[0, 0, :16].max() == got[0, 0, :, :32].max() == 0
    assert torch.equal(got[2], images[2])


@pytest.mark.parametrize("text", ["mixup 0.4", "cutmix 1", "mixup 0.4, cutmix 1"])
@pytest.mark.parametrize("size", [9, 64])
def test_targets_are_mixed_as_the_pixels_are(text, size):
    """Images of one value: what the mean pixel says, the target must say."""
    settings = parse_augment(text)
    values = torch.tensor([0.0, 0.1, 0.4, 0.8, 1.0])
    images = values[:, None, None, None].expand(5, 3, size, size)
    changed = 0
    for seed in range(10):
        draws = draw(settings, 5, rng(seed))
        got = augment(images, draws, settings)
        targets = mix_targets(values[:, None], draws)
        torch.testing.assert_close(got.mean((1, 2, 3)), targets[:, 0], atol=1e-5, rtol=1e-5)
        classes = mix_targets(torch.eye(5), draws)
        torch.testing.assert_close(classes.sum(1), torch.ones(5))
        torch.testing.assert_close(classes @ values, targets[:, 0])
        changed += not torch.allclose(targets[:, 0], values, atol=0.01)
    assert changed >= 5


def test_mixup_by_hand():
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    draws = Draws(mix=Mix(partner=np.array([1, 0]), share=0.75, box=None))
    got = augment(images, draws, AugmentSettings())
    assert got.flatten(1).tolist() == [[0.25] * 16, [0.75] * 16]
    assert mix_targets(torch.eye(2), draws).tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_cutmix_by_hand():
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    box = np.array([0.0, 0.5, 0.5, 1.0])
    got = augment(images, Draws(mix=Mix(partner=np.array([1, 0]), share=0.75, box=box)), AugmentSettings())
    assert got[0, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[0, 0, 0, 0]] * 2
    assert torch.equal(got[1], 1 - got[0])


def test_one_kind_of_mixing_a_batch():
    def kinds(text):
        mixes = [draw(parse_augment(text), 8, rng(seed)).mix for seed in range(400)]
        return np.array([mix.box is not None for mix in mixes]), np.array([mix.share for mix in mixes])

    cut, shares = kinds("mixup 1, cutmix 1")
    assert abs(cut.mean() - 0.5) < 0.08
    assert not kinds("mixup 1")[0].any()
    assert kinds("cutmix 1")[0].all()
    assert abs(shares[~cut].mean() - 0.5) < 0.08
    assert shares[cut].mean() > 0.5, "a box that reaches past the edge takes less"
    _, extreme = kinds("mixup 0.05")
    assert (np.abs(extreme - 0.5) > 0.4).mean() > 0.8
    partner = draw(parse_augment("mixup 1"), 8, rng()).mix.partner
    assert sorted(partner) == list(range(8))


# everything


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fill", ["nearest", "reflect", "wrap", "constant 255"])
def test_values_stay_in_range_and_the_input_as_it_was(channels, fill):
    settings = parse_augment(EVERYTHING.replace("constant 200", fill))
    images = (pictures(16, channels, 24) * 2 - 0.5).clamp(0, 1)  # much black and white
    before = images.clone()
    for seed in range(4):
        got = augment(images, draw(settings, 16, rng(seed)), settings)
        assert got.shape == images.shape
        assert got.dtype == torch.float32
        assert got.min() >= 0
        assert got.max() <= 1
        assert (got - images).abs().mean() > 0.05
    assert torch.equal(images, before)


def test_memory_format_does_not_matter():
    settings = parse_augment(EVERYTHING)
    images = pictures()
    draws = draw(settings, 6, rng(3))
    last = augment(images.contiguous(memory_format=torch.channels_last), draws, settings)
    torch.testing.assert_close(augment(images, draws, settings), last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "wrap", "constant"])
def test_no_step_stays_on_the_cpu_or_reads_a_pixel_to_decide(fill):
    """A meta tensor has a device of its own and no values: the two things a GPU punishes fail on it."""
    settings = parse_augment(
        EVERYTHING.replace("constant 200", fill).replace("randaugment 2 9", "randaugment 6 9")
    )
    draws = draw(settings, 64, rng(3))
    assert set(np.unique(draws.ops)) == set(range(len(OPS)))
    got = augment(torch.empty(64, 3, 16, 16, device="meta"), draws, settings)
    assert got.device.type == "meta"
    assert mix_targets(torch.empty(64, 2, device="meta"), draws).device.type == "meta"


@pytest.mark.parametrize(("size", "tile"), [(32, 96), (40, 120), (96, 96), (100, 100)])
def test_contact_sheet(size, tile):
    images = (levels(3, size=size) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    settings = parse_augment(EVERYTHING)
    sheet = contact_sheet(images, settings, seed=1, variants=4)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * tile + 2 * 2, 5 * tile + 8 + 3 * 2, 3)
    factor = tile // size
    enlarged = images[1].repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(sheet[tile + 2 : 2 * tile + 2, :tile], enlarged)
    assert (sheet[:, tile : tile + 8] == 255).all()
    np.testing.assert_array_equal(sheet, contact_sheet(images, settings, seed=1, variants=4))
    assert (sheet != contact_sheet(images, settings, seed=2, variants=4)).any()
    plain = contact_sheet(images, AugmentSettings(), seed=1, variants=1)
    np.testing.assert_array_equal(plain[:, :tile], plain[:, tile + 8 :])
