import numpy as np
import pytest
from PIL import Image, ImageFilter

from tellapart.data.quality import PREVIEW_PX, Finding, find_odd, make_preview, measure_quality, quality_of
from tellapart.records import Issue


def photo(seed, width=150, height=120):
    """Clouds of several scales with things on them."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 120.0)
    for cells in (3, 9, 30):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) - 128.0) * 0.4
    top, left = rng.integers(0, min(height, width) // 2, 2)
    pixels[top : top + 40, left : left + 30] = rng.integers(0, 256, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def blurred(pixels, radius=6):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def quality(images):
    return quality_of(np.stack([measure_quality(make_preview(pixels)) for pixels in images]))


def odd(images, sizes=None):
    if sizes is None:
        sizes = [pixels.shape[1::-1] for pixels in images]
    return find_odd(quality(images), np.array(sizes))


PHOTOS = [photo(seed) for seed in range(60)]
PLAIN_SIZES = [(500, 400), (480, 420), (400, 500), (520, 380), (460, 460), (500, 375)] * 10


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((400, 300), (96, 96)),
        ((96, 96), (96, 96)),
        ((50, 40), (50, 40)),
        ((1, 1), (1, 1)),
        ((3, 700), (3, 96)),
        ((2000, 97), (96, 96)),
    ],
)
def test_a_preview_is_small_and_never_enlarged(shape, expected):
    preview = make_preview(np.full((*shape, 3), 77, np.uint8))
    assert PREVIEW_PX == 96
    assert preview.shape == expected
    assert preview.dtype == np.uint8
    assert (preview == 77).all()


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        (
            "black",
            np.zeros((40, 40)),
            {"brightness": 0, "contrast": 0, "saturated": 1, "entropy": 0, "sharpness": 0},
        ),
        ("white", np.full((40, 40), 255), {"brightness": 255, "low": 255, "high": 255, "saturated": 1}),
        (
            "gray",
            np.full((40, 30), 100),
            {"brightness": 100, "saturated": 0, "low": 100, "high": 100, "side_px": 30},
        ),
        (
            "halves",
            np.repeat([0, 200], 800).reshape(40, 40),
            {"brightness": 100, "contrast": 100, "entropy": 1, "saturated": 0.5, "low": 0, "high": 200},
        ),
        (
            "every level",
            np.arange(256).reshape(16, 16),
            {"brightness": 127.5, "entropy": 8, "low": 12, "high": 243},
        ),
        ("one pixel", np.full((1, 1), 9), {"brightness": 9, "sharpness": 0, "side_px": 1}),
    ],
)
def test_what_is_measured(name, pixels, expected):  # noqa: ARG001  the name is for reading
    found = quality_of(measure_quality(pixels.astype(np.uint8)))
    for key, value in expected.items():
        assert getattr(found, key) == pytest.approx([value], abs=1e-4), key


def test_sharpness_of_noise_is_twenty_and_contrast_does_not_matter():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    full, half = (quality_of(measure_quality(image)).sharpness[0] for image in (noise, noise // 2))
    assert full == pytest.approx(20, rel=0.05)
    assert half == pytest.approx(full, rel=0.02)


def test_sharpness_falls_with_blur():
    values = quality([PHOTOS[0], *(blurred(PHOTOS[0], radius) for radius in (1, 2, 4, 6))]).sharpness
    assert (np.diff(values) < 0).all()
    assert values[0] > 30 * values[-1]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("blank", lambda pixels: np.full_like(pixels, 140)),
        ("blank", lambda pixels: np.zeros_like(pixels)),
        ("blank", lambda pixels: np.full_like(pixels, 255)),
        ("blank", lambda pixels: (127 + pixels * 0.02).astype(np.uint8)),
        ("dark", lambda pixels: (pixels * 0.1).astype(np.uint8)),
        ("bright", lambda pixels: (255 - (255 - pixels) * 0.1).astype(np.uint8)),
        ("blurred", lambda pixels: blurred(pixels, 12)),
    ],
)
def test_images_of_nothing_stand_out_among_photos(kind, change):
    found = odd([*PHOTOS, change(photo(99))])
    assert [(finding.kind, finding.indices) for finding in found] == [(kind, (60,))]
    assert found[0].severity > 0.5
    assert all(isinstance(value, float) for value in found[0].evidence.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels,
        lambda pixels: (pixels * 0.16).astype(np.uint8),
        lambda pixels: (255 - (255 - pixels) * 0.15).astype(np.uint8),
        lambda pixels: blurred(pixels, 10),
    ],
    ids=["photos", "night sky", "scans", "smooth slides"],
)
def test_nothing_is_odd_where_all_are_alike(change):
    assert odd([change(pixels) for pixels in PHOTOS]) == []


def test_a_few_half_dark_or_slightly_soft_photos_are_fine():
    fine = [
        (photo(70) * 0.4).astype(np.uint8),
        blurred(photo(71), 1.5),
        (255 - (255 - photo(72)) * 0.5).astype(np.uint8),
    ]
    assert odd([*PHOTOS, *fine]) == []


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        ((500, 400), set()),
        ((300, 250), set()),
        ((1100, 800), set()),
        ((900, 400), set()),
        ((50, 40), {"odd-size"}),
        ((5000, 4000), {"odd-size"}),
        ((2000, 100), {"odd-shape"}),
        ((100, 2000), {"odd-shape"}),
        ((60, 9), {"odd-shape", "odd-size"}),
    ],
)
def test_sizes_and_shapes_unlike_the_rest(size, kinds):
    found = odd([*PHOTOS, photo(99)], [*PLAIN_SIZES, size])
    assert {finding.kind for finding in found} == kinds
    assert all(finding.indices == (60,) and finding.evidence["size_px"] == size for finding in found)


def test_where_sizes_vary_a_lot_none_is_odd():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(40), np.log(4000), (60, 2))).astype(int)
    assert odd(PHOTOS, sizes) == []


def test_among_equal_sizes_one_pixel_is_not_odd():
    assert odd(PHOTOS, [(32, 32)] * 59 + [(32, 33)]) == []


def test_worst_first_and_the_same_again():
    bad = [(photo(80) * 0.2).astype(np.uint8), np.zeros_like(PHOTOS[0]), (photo(80) * 0.14).astype(np.uint8)]
    found = odd([*bad, *PHOTOS])
    assert [finding.indices[0] for finding in found] == [1, 2, 0]
    assert [finding.severity for finding in found] == sorted((finding.severity for finding in found), reverse=True)
    assert found == odd([*bad, *PHOTOS])


def test_no_images():
    assert find_odd(quality_of(np.empty((0, 8), np.float32)), np.empty((0, 2), np.int64)) == []


@pytest.mark.parametrize(("indices", "severity"), [((), 0.5), ((1,), 1.5), ((1,), -0.1), ((1,), float("nan"))])
def test_a_finding_is_about_something_and_severity_is_a_share(indices, severity):
    with pytest.raises(ValueError, match="finding"):
        Finding(kind="dark", indices=indices, severity=severity, evidence={})


@pytest.mark.parametrize("severity", [-0.01, 1.01, float("nan")])
def test_an_issue_has_a_severity_from_0_to_1(severity):
    assert Issue(kind="blank", severity=1.0, paths=("a.png",)).evidence == {}
    with pytest.raises(ValueError, match="severity"):
        Issue(kind="blank", severity=severity, paths=("a.png",))
