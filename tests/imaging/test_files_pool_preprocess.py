"""The pool keeps order, bounds and exceptions; preprocess reaches the model's input without a detour."""

import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import encode, photo
from PIL import Image

from tellapart.errors import ImageError, RecipeError
from tellapart.imaging.pool import batched, cpu_count, map_ordered
from tellapart.imaging.preprocess import load_input, preprocess_image
from tellapart.records import Preprocess

PAD_GRAY = 128


@pytest.mark.parametrize("workers", [1, 2, 7, None])
@pytest.mark.parametrize("n", [0, 1, 3, 200])
def test_results_come_in_order(n, workers):
    assert list(map_ordered(lambda x: x * x, range(n), workers=workers)) == [x * x for x in range(n)]


def test_a_slow_item_holds_its_place():
    second_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_done.wait(30), "the second item must run while the first does"
        elif item == 1:
            second_done.set()
        return item

    assert list(map_ordered(work, range(5), workers=2)) == [0, 1, 2, 3, 4]


def test_work_is_done_in_other_threads():
    threads = set(map_ordered(lambda _: threading.get_ident(), range(20), workers=2))
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("bad", [0, 1, 30, 49])
def test_an_exception_is_raised_in_its_turn(bad):
    def work(item):
        if item >= bad:
            raise ValueError(f"item {item}")
        return item

    results = map_ordered(work, range(50), workers=3)
    assert list(itertools.islice(results, bad)) == list(range(bad))
    with pytest.raises(ValueError, match=f"item {bad}$"):
        next(results)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_endless_source_is_read_only_as_results_are_taken(workers):
    taken = []

    def endless():
        for item in itertools.count():
            taken.append(item)
            yield item

    results = map_ordered(lambda x: -x, endless(), workers=workers)
    assert taken == [], "nothing happens before the first result is asked for"
    for done in range(100):
        assert next(results) == -done
        assert len(taken) <= done + 1 + 4 * workers
    results.close()


def test_leaving_early_cancels_what_has_not_started(monkeypatch):
    started, cancelled = [], threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def shutdown_then_release(executor, wait=True, *, cancel_futures=False):
        shutdown(executor, wait=False, cancel_futures=cancel_futures)
        cancelled.set()
        shutdown(executor, wait=wait)

    def work(item):
        started.append(item)
        if item:
            assert cancelled.wait(30)
        return item

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown_then_release)
    results = map_ordered(work, range(1000), workers=1)
    assert next(results) == 0
    results.close()
    assert set(started) <= {0, 1}, "the one under way is finished, the others in the window are not begun"
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("tellapart")] == []


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(0, 3, []), (2, 3, [[0, 1]]), (3, 3, [[0, 1, 2]]), (7, 3, [[0, 1, 2], [3, 4, 5], [6]]), (2, 1, [[0], [1]])],
)
def test_batched(n, size, expected):
    assert list(batched(iter(range(n)), size)) == expected


def test_cpu_count_is_what_this_process_may_use():
    assert cpu_count() >= 1


SHAPES = [(40, 100), (100, 40), (64, 64), (300, 301), (20, 11), (33, 33)]  # height, width


def by_pillow(pixels, side, resize, kernel):
    """The same geometry, step by step."""
    image = Image.fromarray(pixels)
    if resize == "crop":
        short = min(image.size)
        left, top = (image.width - short) / 2, (image.height - short) / 2
        return np.asarray(image.resize((side, side), kernel, (left, top, left + short, top + short)))
    if resize == "pad":
        inner = tuple(max(1, round(size * side / max(image.size))) for size in image.size)
        square = Image.new("RGB", (side, side), (PAD_GRAY,) * 3)
        square.paste(image.resize(inner, kernel), ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return np.asarray(square)
    return np.asarray(image.resize((side, side), kernel))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_geometry(height, width, resize, interpolation):
    spec = Preprocess(input_size_px=32, resize=resize, interpolation=interpolation)
    pixels = photo(width, height)
    before = pixels.copy()
    found = preprocess_image(pixels, spec)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(
        found, by_pillow(pixels, 32, resize, getattr(Image.Resampling, interpolation.upper()))
    )
    np.testing.assert_array_equal(pixels, before)


# A white picture with a third at either end of the long side painted: red first, blue last.
WIDE = np.full((32, 96, 3), 255, np.uint8)
WIDE[:, :32], WIDE[:, 64:] = (255, 0, 0), (0, 0, 255)
TALL = WIDE.transpose(1, 0, 2)
RED, WHITE, BLUE, GRAY = (255, 0, 0), (255, 255, 255), (0, 0, 255), (PAD_GRAY,) * 3


@pytest.mark.parametrize(
    ("resize", "expected"),
    # colors at the start, in the middle and at the end of the long side; then at the start of the short side
    [
        ("squash", (RED, WHITE, BLUE, WHITE)),
        ("crop", (WHITE, WHITE, WHITE, WHITE)),
        ("pad", (RED, WHITE, BLUE, GRAY)),
    ],
)
@pytest.mark.parametrize("is_tall", [False, True])
def test_what_each_way_keeps(resize, expected, is_tall):
    found = preprocess_image(TALL if is_tall else WIDE, Preprocess(input_size_px=48, resize=resize))
    found = found.transpose(1, 0, 2) if is_tall else found
    assert tuple(tuple(found[y, x].tolist()) for y, x in ((24, 1), (24, 24), (24, 46), (1, 24))) == expected


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_right_size_is_left_alone(resize):
    pixels = photo(48, 48)
    np.testing.assert_array_equal(preprocess_image(pixels, Preprocess(input_size_px=48, resize=resize)), pixels)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(1, 10_000), (10_000, 1), (3, 9_999), (1, 1)])
def test_a_line_never_becomes_a_huge_image(height, width, resize, monkeypatch):
    sizes = []
    new = Image.Image._new

    def recorded(image, core):
        sizes.append(core.size)
        return new(image, core)

    monkeypatch.setattr(Image.Image, "_new", recorded)
    pixels = np.full((height, width, 3), 77, np.uint8)
    found = preprocess_image(pixels, Preprocess(input_size_px=64, resize=resize))
    assert found.shape == (64, 64, 3)
    assert sizes, "Pillow has another way to make images by now: record that one"
    assert max(w * h for w, h in sizes) <= max(height * width, 64 * 64), "the picture itself, or the model's input"
    assert (found[31, 31] == 77).all()
    assert set(np.unique(found)) <= {77, PAD_GRAY}
    if resize == "pad" and (height, width) != (1, 1):
        assert (found == 77).all(axis=2).sum() == 64, "one line of the square"


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_load_input_is_decode_and_preprocess(image_format, resize, tmp_path):
    spec = Preprocess(input_size_px=40, resize=resize)
    data = encode(photo(500, 300), image_format)
    path = tmp_path / "photo"
    path.write_bytes(data)
    found = load_input(data, spec)
    np.testing.assert_array_equal(load_input(path, spec), found)
    expected = preprocess_image(photo(500, 300), spec).astype(float)
    difference = np.abs(found - expected).mean()
    assert difference == 0 if image_format == "PNG" else difference < 4, "JPEG is decoded at a smaller scale"


@pytest.mark.parametrize(("data", "code"), [(b"", "empty-file"), (b"some words", "not-an-image")])
def test_load_input_passes_the_decoders_refusals_on(data, code):
    with pytest.raises(ImageError) as caught:
        load_input(data, Preprocess(input_size_px=40))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "settings",
    [{"input_size_px": 7}, {"input_size_px": 4097}, {"input_size_px": 64, "resize": "stretch"},
     {"input_size_px": 64, "interpolation": "nearest"}],
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(RecipeError) as caught:
        Preprocess(**settings)
    assert caught.value.code == "bad-setting"


def test_crop_share_keeps_the_middle_and_its_detail():
    """A frame of the outer eighth is cut off, and a JPEG is not decoded smaller than what is left of it."""
    framed = np.full((160, 240, 3), 255, dtype=np.uint8)
    framed[20:140, 60:180] = 10
    spec = Preprocess(input_size_px=30, resize="crop", crop_share=0.75)
    assert (preprocess_image(framed, spec)[1:-1, 1:-1] == 10).all(), (
        "the filter of the outermost pixels reaches over"
    )
    assert (preprocess_image(framed, Preprocess(input_size_px=30, resize="crop")) == 255).any()
    inner = framed[20:140, 60:180]
    assert (preprocess_image(inner[:30, :30], Preprocess(input_size_px=30, resize="crop")) == 10).all()
    square = np.full((80, 80, 3), 255, dtype=np.uint8)
    square[10:70, 10:70] = 10
    assert (
        preprocess_image(square, Preprocess(input_size_px=80, resize="crop", crop_share=0.75))[1:-1, 1:-1] == 10
    ).all()
    image = photo(400, 400)
    data = encode(image, "JPEG", quality=95)
    found = load_input(data, Preprocess(input_size_px=100, resize="crop", crop_share=0.5)).astype(float)
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    expected = preprocess_image(full, Preprocess(input_size_px=100, resize="crop", crop_share=0.5)).astype(float)
    assert np.abs(found - expected).mean() < 3
