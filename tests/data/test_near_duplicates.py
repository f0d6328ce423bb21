import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tellapart.data import near_duplicates as module
from tellapart.data.near_duplicates import find_near_duplicates
from tellapart.errors import RecipeError
from tellapart.imaging.preprocess import preprocess_image
from tellapart.imaging.thumbnail import make_thumbnail
from tellapart.records import Preprocess

SIDE = 160


def photo(seed, side=SIDE):
    """Light from one side, clouds of several scales, and things."""
    rng = np.random.default_rng([1, seed])
    ramp = np.linspace(-1, 1, side)
    pixels = 125 + (rng.normal(0, 25) * ramp + rng.normal(0, 25) * ramp[:, None])[..., None] * np.ones(3)
    for cells, strength in ((3, 0.35), (7, 0.3), (16, 0.25), (40, 0.15)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) - 128.0) * strength
    for _ in range(4):
        top, left = rng.integers(0, side - 30, 2)
        pixels[top : top + rng.integers(15, 60), left : left + rng.integers(15, 60)] += rng.normal(0, 60, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def reencoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def half(pixels):
    return np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)))


def crop(pixels, share=0.95, left=1.0, top=0.0):
    """A part of the image, at 0-1 of the way that there is to the right and down."""
    inner = round(len(pixels) * share)
    x, y = (round(at * (len(pixels) - inner)) for at in (left, top))
    return pixels[y : y + inner, x : x + inner]


def mirror(pixels):
    return pixels[:, ::-1]


def bright(pixels, by=1.3):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(by))


CHANGES = {
    "re-encoded": (reencoded, ("re-encoded",)),
    "half size": (half, ("resized",)),
    "crop, right": (crop, ("cropped",)),
    "crop, middle": (lambda pixels: crop(pixels, 0.95, 0.5, 0.5), ("cropped",)),
    "crop, low left": (lambda pixels: crop(pixels, 0.93, 0.0, 1.0), ("cropped",)),
    "mirrored": (mirror, ("mirrored",)),
    "brighter": (bright, ("brightened",)),
    "darker": (lambda pixels: bright(pixels, 0.6), ("brightened",)),
    "the same": (lambda pixels: pixels, ("re-encoded",)),
    "mirrored and cropped": (lambda pixels: mirror(crop(pixels)), ("mirrored", "cropped")),
    "cropped and half size": (lambda pixels: half(crop(pixels)), ("cropped", "resized")),
    "all at once": (
        lambda pixels: reencoded(half(mirror(bright(crop(pixels), 0.75)))),
        ("mirrored", "cropped", "resized", "brightened"),
    ),
}


def thumbnails(images):
    inputs = (preprocess_image(np.ascontiguousarray(pixels), Preprocess(input_size_px=224)) for pixels in images)
    return np.stack([make_thumbnail(pixels) for pixels in inputs])


def sizes(images):
    return np.array([pixels.shape[1::-1] for pixels in images])


def members(found):
    return {tuple(sorted(finding.indices)) for finding in found}


PHOTOS = [photo(seed) for seed in range(80)]
THUMBNAILS = thumbnails(PHOTOS)


def test_strangers_are_no_duplicates():
    assert find_near_duplicates(THUMBNAILS) == []


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("of", [3, 41])
def test_a_changed_copy_is_found_and_the_change_named(name, of):
    change, expected = CHANGES[name]
    images = [*PHOTOS, change(PHOTOS[of])]
    found = find_near_duplicates(thumbnails(images), sizes=sizes(images))
    assert members(found) == {(of, 80)}
    assert found[0].kind == "near-duplicate"
    assert found[0].evidence["changes"] == (expected,)
    assert found[0].severity == found[0].evidence["similarity"][0] > 0.8


def test_without_sizes_nothing_is_called_resized():
    found = find_near_duplicates(thumbnails([*PHOTOS, half(PHOTOS[5])]))
    assert members(found) == {(5, 80)}
    assert found[0].evidence["changes"] == (("re-encoded",),)


def test_many_copies_make_one_group_around_one_image():
    copies = [change(PHOTOS[7]) for change, _ in CHANGES.values()]
    found = find_near_duplicates(thumbnails([*PHOTOS, *copies]))
    assert members(found) == {(7, *range(80, 80 + len(copies)))}
    assert len(found[0].evidence["similarity"]) == len(found[0].evidence["changes"]) == len(copies)


def test_a_chain_does_not_join_strangers():
    """Windows over a wide picture, each a fifth further: neighbours show nearly the same, the ends nothing in common."""
    wide = np.concatenate([photo(500), photo(501), photo(502)], axis=1)
    windows = [wide[:, start : start + SIDE] for start in range(0, 2 * SIDE, 12)]
    found = find_near_duplicates(thumbnails([*PHOTOS, *windows]))
    assert sum(len(finding.indices) for finding in found) > 10
    for finding in found:
        assert max(finding.indices) - min(finding.indices) <= 6, "windows that share less than half"


def test_thumbnails_far_apart_are_found_by_their_embeddings():
    images = [*PHOTOS, crop(PHOTOS[28], 0.83, 0.1, 0.9)]
    rng = np.random.default_rng(0)
    embeddings = rng.normal(3, 1, (81, 200)).astype(np.float32)
    embeddings[80] = embeddings[28] + rng.normal(0, 0.2, 200)
    assert find_near_duplicates(thumbnails(images)) == []
    assert members(find_near_duplicates(thumbnails(images), embeddings)) == {(28, 80)}


def test_equal_embeddings_alone_make_no_duplicates():
    embeddings = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32).repeat(10, axis=0)
    assert find_near_duplicates(THUMBNAILS, embeddings) == []


@pytest.mark.parametrize(
    "nothing",
    [
        [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 0, 128, 255, 255)],
        [np.random.default_rng(i).integers(120, 123, (SIDE, SIDE, 3), dtype=np.uint8) for i in range(5)],
    ],
    ids=["one gray", "a little noise"],
)
def test_images_of_nothing_are_left_out(nothing):
    found = find_near_duplicates(thumbnails([*nothing, *PHOTOS, mirror(PHOTOS[0])]))
    assert members(found) == {(5, 85)}


def framed(pixels):
    result = np.full_like(pixels, 255)
    result[:, 40:120] = half(pixels).repeat(2, axis=0)
    return result


def slide(seed):
    """A dark disc on light ground, each in nearly the same place: images that are all alike."""
    rng = np.random.default_rng([2, seed])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5 + rng.normal(0, 0.01, (2, 1, 1))
    radius = np.hypot(x, y * rng.uniform(0.97, 1.03))
    gray = 210 - 120 / (1 + np.exp((radius - rng.normal(0.3, 0.01)) * 60)) + rng.normal(0, 2, (SIDE, SIDE))
    return gray.clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("alike", [framed, lambda pixels: pixels // 8 + 100], ids=["frames", "little contrast"])
def test_strangers_with_something_in_common_stay_strangers(alike):
    assert find_near_duplicates(thumbnails([alike(pixels) for pixels in PHOTOS])) == []


def test_where_all_are_alike_more_is_asked_for():
    images = [slide(seed) for seed in range(80)]
    found = find_near_duplicates(thumbnails([*images, reencoded(images[9])]))
    assert len(found) <= 4
    assert all(len(finding.indices) == 2 for finding in found)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_images(n):
    assert find_near_duplicates(THUMBNAILS[:n]) == []
    copies = np.concatenate([THUMBNAILS[:n], THUMBNAILS[:n, :, ::-1]])
    assert members(find_near_duplicates(copies, np.ones((2 * n, 4), np.float32))) == {(i, n + i) for i in range(n)}


def test_the_same_again_surest_first():
    images = thumbnails([*PHOTOS, crop(PHOTOS[3]), mirror(PHOTOS[8]), reencoded(PHOTOS[50])])
    found = find_near_duplicates(images)
    assert found == find_near_duplicates(images)
    assert [finding.severity for finding in found] == sorted((finding.severity for finding in found), reverse=True)
    assert members(found) == {(3, 80), (8, 81), (50, 82)}


def test_trees_find_what_comparing_all_finds(monkeypatch):
    """The way for many images, with leaves so small that 500 images are many."""
    rng = np.random.default_rng(0)
    originals = thumbnails([photo(seed, 64) for seed in range(400)])
    chosen = rng.choice(400, 100, replace=False)
    changes = list(CHANGES.values())
    copies = thumbnails([changes[k % len(changes)][0](photo(int(i), 64)) for k, i in enumerate(chosen)])
    images = np.concatenate([originals, copies])
    everything = members(find_near_duplicates(images))
    assert len(everything) >= 97
    monkeypatch.setattr(module, "MAX_EXHAUSTIVE", 100)
    monkeypatch.setattr(module, "_LEAF_IMAGES", 64)
    sizes_seen = []
    nearest_in_leaf = module._nearest_in_leaf

    def spy(space, block, leaf):
        sizes_seen.append(len(leaf))
        return nearest_in_leaf(space, block, leaf)

    monkeypatch.setattr(module, "_nearest_in_leaf", spy)
    found = members(find_near_duplicates(images, seed=1))
    assert max(sizes_seen) <= 64
    assert sum(sizes_seen) == module._TREES * 500
    assert found <= everything
    assert len(found) >= 0.97 * len(everything)
    assert found == members(find_near_duplicates(images, seed=1))


def test_progress_counts_up_to_all():
    seen = []
    find_near_duplicates(thumbnails([*PHOTOS, mirror(PHOTOS[0])]), progress=lambda *told: seen.append(told))
    assert seen
    assert {stage for stage, _, _ in seen} == {"near-duplicates"}
    assert seen[-1][1] == seen[-1][2] > 0


@pytest.mark.parametrize("value", [0.0, 0.69, 1.01, float("nan")])
def test_bad_settings(value):
    with pytest.raises(RecipeError) as caught:
        find_near_duplicates(THUMBNAILS, min_similarity=value)
    assert caught.value.code == "bad-setting"
    assert "min_similarity" in str(caught.value)


def test_a_higher_similarity_can_be_asked_for():
    images = thumbnails([*PHOTOS, crop(PHOTOS[3]), reencoded(PHOTOS[50])])
    assert members(find_near_duplicates(images, min_similarity=0.985)) == {(50, 81)}


@pytest.mark.parametrize(
    "pixels", [np.zeros((*size, 3), np.uint8) for size in ((1, 1), (96, 96), (3, 96), (8, 8), (500, 3))]
)
def test_a_thumbnail_of_anything(pixels):
    assert make_thumbnail(pixels).shape == (32, 32)
    assert make_thumbnail(pixels).dtype == np.uint8
