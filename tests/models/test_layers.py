"""The text of a network, its shapes and errors; the normalisation of the input; predetermined filters."""

import itertools

import numpy as np
import pytest

from tellapart.errors import RecipeError
from tellapart.models import layers as layers_module
from tellapart.models import normalize as normalize_module
from tellapart.models.filters import first_layer_filters
from tellapart.models.layers import (
    TUTORIAL_LAYERS,
    count_parameters,
    embedding_dim,
    first_convolution,
    parse_layers,
)
from tellapart.models.normalize import InputTransform, fit_transform, require_normalize


def images_of(n, side, seed=0):
    """Smooth colour blobs with some noise, (n, side, side, 3) uint8; brightness and contrast differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    phase = rng.uniform(0, 6, (n, 3, 1, 1))
    waves = np.sin(6 * x + phase) + np.cos(5 * y * rng.uniform(0.5, 2, (n, 1, 1, 1)) + 2 * phase)
    pixels = rng.uniform(80, 160, (n, 3, 1, 1)) + rng.uniform(10, 40, (n, 1, 1, 1)) * waves
    pixels = pixels + rng.normal(0, 12, pixels.shape) + np.array([30, 0, -30])[:, None, None]
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (TUTORIAL_LAYERS, [(5, 62, 62), (5, 31, 31), (32, 29, 29), (32, 14, 14), (6272,), (128,)]),
        ("flatten", [(3 * 64 * 64,)]),
        ("average", [(3,)]),
        ("average, dense 7", [(3,), (7,)]),
        ("conv 4x64, flatten", [(4, 1, 1), (4,)]),
        ("conv 8x3 same, average", [(8, 64, 64), (8,)]),
        ("conv 8x5 stride 2, average", [(8, 30, 30), (8,)]),
        ("conv 8x5 stride 2 same, average", [(8, 32, 32), (8,)]),
        ("conv 8x4 same stride 3, average", [(8, 22, 22), (8,)]),
        ("conv 8x1, pool 64, flatten", [(8, 64, 64), (8, 1, 1), (8,)]),
        ("pool 5, average", [(3, 12, 12), (3,)]),
        ("conv 8x3,batchnorm ,  average", [(8, 62, 62), (8, 62, 62), (8,)]),
        ("residual 16, pool 2, residual 16, average", [(16, 64, 64), (16, 32, 32), (16, 32, 32), (16,)]),
        ("dropout 0, flatten, dropout 0.5", [(3, 64, 64), (12288,), (12288,)]),
        ("flatten,\n dense 9, batchnorm, dense 3", [(12288,), (9,), (9,), (3,)]),
    ],
)
def test_shapes(text, shapes):
    layers = parse_layers(text, input_size_px=64, channels=3)
    assert [layer.output_shape for layer in layers] == shapes
    assert [layer.input_shape for layer in layers] == [(3, 64, 64), *shapes[:-1]]
    assert embedding_dim(layers) == shapes[-1][0]


def test_names_settings_and_relus():
    text = (
        "conv 4x3, batchnorm, pool 2, conv 6x3 same stride 2, residual 8, average, dense 5, dropout 0.25, dense 3"
    )
    layers = parse_layers(text, input_size_px=32, channels=1)
    assert [(layer.name, layer.relu) for layer in layers] == [
        ("conv 1", ""),
        ("batchnorm 1", "relu 1"),
        ("pool 1", ""),
        ("conv 2", "relu 2"),
        ("residual 1", ""),
        ("average", ""),
        ("dense 1", "relu 3"),
        ("dropout 1", ""),
        ("dense 2", "relu 4"),
    ]
    assert [layer.bias for layer in layers if layer.kind == "conv"] == [False, True]
    conv = layers[3]
    assert (conv.key, conv.units, conv.size, conv.stride, conv.same) == ("conv_2", 6, 3, 2, True)
    assert conv.clause.words[0].start == text.index("conv 6x3")
    assert layers[7].rate == 0.25
    assert first_convolution(layers) is layers[0]


@pytest.mark.parametrize(
    ("size", "stride", "side", "pads"),
    [
        (3, 1, 9, (1, 1)),
        (5, 1, 9, (2, 2)),
        (4, 1, 9, (1, 2)),
        (3, 2, 9, (1, 1)),
        (3, 2, 8, (0, 1)),
        (1, 2, 9, (0, 0)),
    ],
)
def test_same_pads_as_keras(size, stride, side, pads):
    (layer, _) = parse_layers(
        f"conv 2x{size} same stride {stride}, average".replace(" stride 1", ""), input_size_px=side, channels=3
    )
    assert layer.pads == pads


def test_parameters_of_the_tutorial_are_keras():
    layers = parse_layers(TUTORIAL_LAYERS, input_size_px=64, channels=3)
    assert {layer.name: layer.parameters for layer in layers if layer.parameters} == {
        "conv 1": 140,
        "conv 2": 1_472,
        "dense 1": 802_944,
    }
    assert count_parameters(layers, 1) == 140 + 1_472 + 802_944 + 129
    assert count_parameters(layers, 4) - count_parameters(layers, 1) == 3 * 129


@pytest.mark.parametrize(
    ("text", "says", "underlined", "hint"),
    [
        ("", "at least one layer", None, TUTORIAL_LAYERS),
        ("  ", "at least one layer", None, ""),
        ("conv 5x3,, flatten", "nothing stands between", None, ""),
        ("conv 5x3, pol 2, flatten", "expected a layer: conv, ", "pol", "did you mean 'pool'?"),
        ("Conv 5x3, flatten", "expected a layer", "Conv", "did you mean 'conv'?"),
        ("zzz 5x3, flatten", "expected a layer", "zzz", ""),
        ("conv", "filters and their side", None, ""),
        ("conv 5", "such as 32x3, got '5'", "5", ""),
        ("conv 5X3, flatten", "such as 32x3", "5X3", ""),
        ("conv 5x3x3, flatten", "such as 32x3", "5x3x3", ""),
        ("conv -5x3, flatten", "such as 32x3", "-5x3", ""),
        ("conv ٣x3, flatten", "such as 32x3", "٣x3", ""),
        ("conv 0x3, flatten", "1 to 65,536 filters", "0x3", ""),
        ("conv 5x0, flatten", "filters of 1 to 99 px", "5x0", ""),
        ("conv 999999999x3, flatten", "filters", "999999999x3", ""),
        ("conv 5x3 sane, flatten", "'same', 'stride 2' or a comma", "sane", ""),
        ("conv 5x3 same same, flatten", "or a comma", "same", ""),
        ("conv 5x3 stride, flatten", "expected a stride, got nothing", None, ""),
        ("conv 5x3 stride 1, flatten", "a stride from 2 to 16", "1", ""),
        ("conv 5x3 stride 2 stride 2, flatten", "or a comma", "stride", ""),
        ("conv 5x3 stride 2.5, flatten", "whole number", "2.5", ""),
        ("conv 5x3 pool 2, flatten", "or a comma", "pool", ""),
        ("conv 5x33, flatten", "at most 32 px, as the image is 32 x 32 px here", "5x33", ""),
        ("pool 16, conv 5x3, flatten", "at most 2 px, as the image is 2 x 2 px here", "5x3", ""),
        ("pool 16, pool 3, flatten", "at most 2 px", "3", ""),
        ("pool, flatten", "the side of a window, got nothing", None, ""),
        ("pool 1, flatten", "from 2 to 99", "1", ""),
        ("pool 2.5, flatten", "whole number", "2.5", ""),
        ("pool nan, flatten", "from 2 to 99", "nan", ""),
        ("pool max, flatten", "the side of a window", "max", ""),
        ("pool 2 2, flatten", "a comma", "2", ""),
        ("dense 128", "'flatten' or 'average' first", "dense", ""),
        ("conv 5x3, dense 128", "'flatten' or 'average' first", "dense", ""),
        ("flatten, conv 5x3", "no image any more", "conv", ""),
        ("average, pool 2", "no image any more", "pool", ""),
        ("average, flatten", "no image any more", "flatten", ""),
        ("flatten, flatten", "no image any more", "flatten", ""),
        ("flatten, residual 3", "no image any more", "residual", ""),
        ("flatten 2", "a comma", "2", ""),
        ("average 2", "a comma", "2", ""),
        ("conv 5x3", "a vector, got nothing", None, ""),
        ("conv 5x3, flatten, dropout 1", "a share from 0 to 0.99", "1", ""),
        ("flatten, dropout", "a share, got nothing", None, ""),
        ("flatten, dropout -0.1", "a share from 0", "-0.1", ""),
        ("flatten, dense", "a number of units, got nothing", None, ""),
        ("flatten, dense 0", "units from 1", "0", ""),
        ("flatten, dense 12.5", "whole number", "12.5", ""),
        ("flatten, dense x", "a number of units", "x", ""),
        ("batchnorm, flatten", "'conv' or 'dense' right before", "batchnorm", ""),
        ("conv 5x3, pool 2, batchnorm, flatten", "right before", "batchnorm", ""),
        ("conv 5x3, batchnorm, batchnorm, flatten", "right before", "batchnorm", ""),
        ("residual 5, batchnorm, flatten", "right before", "batchnorm", ""),
        ("conv 5x3, dropout 0.1, batchnorm, flatten", "right before", "batchnorm", ""),
        ("flatten, batchnorm", "right before", "batchnorm", ""),
        ("conv 5x3, batchnorm 2, flatten", "a comma", "2", ""),
        ("residual, average", "a number of filters, got nothing", None, ""),
        ("residual 5x3, average", "a number of filters", "5x3", ""),
        ("flatten, dense 100000", "at most 250,000,000 weights", "100000", ""),
        ("conv 60000x9, conv 60000x9, flatten", "at most 250,000,000 weights", "60000x9", ""),
        ("conv 65536x1 same, average", "at most 67,108,864 values", "same", ""),
    ],
)  # fmt: skip
def test_bad_layers(text, says, underlined, hint):
    with pytest.raises(RecipeError) as caught:
        parse_layers(text, input_size_px=32 if "65536" not in text else 64, channels=3)
    assert caught.value.code == "bad-setting"
    assert says in caught.value.message
    assert hint in caught.value.hint
    if underlined is not None:
        _, source, marks = caught.value.message.split("\n")
        start = marks.index("^")
        assert source[start : start + marks.count("^")] == underlined


@pytest.mark.parametrize(
    "text", ["residual 4, conv 4x3, average", "flatten, dense 4", "average", "pool 2, flatten"]
)
def test_no_first_convolution(text):
    with pytest.raises(RecipeError, match="first_layer_filters"):
        first_convolution(parse_layers(text, input_size_px=16, channels=3))


def test_limits_are_what_the_messages_say(monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_PARAMETERS", 3 * 64 * 5 + 5)
    parse_layers("flatten, dense 5", input_size_px=8, channels=3)
    with pytest.raises(RecipeError, match="at most 965 weights, and not 1,158"):
        parse_layers("flatten, dense 6", input_size_px=8, channels=3)


def keras_standardize(image, words, mean, std):
    """One (S, S, C) float64 image as ``ImageDataGenerator.standardize`` treats it."""
    if "samplewise_center" in words or "samplewise_std" in words:
        image = image - image.mean()
    if "samplewise_std" in words:
        image = image / (image.std() + 1e-6)
    if "featurewise_center" in words or "featurewise_std" in words:
        image = image - mean
    if "featurewise_std" in words:
        image = image / (std + 1e-6)
    return image


FOUR_WORDS = normalize_module.WORDS[:4]
ALL_SETS = [words for k in range(5) for words in itertools.combinations(FOUR_WORDS, k)]


@pytest.mark.parametrize("words", ALL_SETS, ids="-".join)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_transform_is_keras_after_scaling(words, color):
    images = images_of(40, 10)
    transform = fit_transform(images, color=color, normalize=words)
    pixels = images / 255.0
    if color == "gray":
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
    sample_words = [word for word in words if word.startswith("sample")]
    given = np.stack([keras_standardize(image, sample_words, 0, 1) for image in pixels])
    mean, std = given.mean(axis=(0, 1, 2)), given.std(axis=(0, 1, 2))
    expected = np.stack([keras_standardize(image, words, mean, std) for image in pixels]).transpose(0, 3, 1, 2)
    found = transform.apply(images)
    assert found.dtype == np.float32
    assert transform.channels == expected.shape[1]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("normalize", [("zca",), ("featurewise_center", "zca"), ("samplewise_std", "zca")])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_zca_whitens(normalize, color):
    images = images_of(1500, 6)
    transform = fit_transform(images, color=color, normalize=normalize)
    flat = transform.apply(images).reshape(len(images), -1).astype(np.float64)
    assert np.abs(flat).max() < 50
    moments = flat.T @ flat / len(flat)
    if "samplewise_std" in normalize:  # one direction, the sum of an image, has no variance left
        moments += np.full_like(moments, (1 - moments.sum() / len(moments)) / len(moments))
    np.testing.assert_allclose(moments, np.eye(len(moments)), atol=0.02)
    np.testing.assert_allclose(transform.zca, transform.zca.T, atol=1e-3)
    plain = fit_transform(images, color=color, normalize=("featurewise_center",)).apply(images)
    shown = np.corrcoef(transform.apply(images).ravel(), plain.ravel())[0, 1]
    assert shown > 0.1, "a whitened image still looks like itself"


@pytest.mark.parametrize(
    ("normalize", "color", "side", "says"),
    [
        (("zca",), "rgb", 33, "33 x 33 x 3 = 3,267"),
        (("zca",), "gray", 56, "56 x 56 x 1 = 3,136"),
        (("zca", "featurewise_std"), "rgb", 8, "exclude each other"),
        (("zcaa",), "rgb", 8, "did you mean 'zca'?"),
        (("featurewise_mean",), "rgb", 8, "did you mean 'featurewise_"),
        (("",), "rgb", 8, "got ''"),
        (("zca", "zca"), "rgb", 8, "different words"),
        ((), "grey", 8, "rgb or gray, got 'grey'"),
    ],
)
def test_bad_normalization(normalize, color, side, says):
    with pytest.raises(RecipeError) as caught:
        fit_transform(images_of(3, side), color=color, normalize=normalize)
    assert caught.value.code == "bad-setting"
    assert says in str(caught.value)


def test_zca_of_few_images_drops_what_they_do_not_tell():
    images = images_of(30, 8)
    transform = fit_transform(images, color="rgb", normalize=("zca",))
    eigenvalues = np.linalg.eigvalsh(transform.zca.astype(np.float64))
    assert (eigenvalues > 1e-2).sum() == 30
    np.testing.assert_allclose(eigenvalues[:-30], 0, atol=1e-3)
    flat = transform.apply(images).reshape(30, -1)
    np.testing.assert_allclose(np.square(flat).sum(axis=1).mean(), 30, rtol=0.05)
    assert np.abs(transform.apply(images_of(30, 8, seed=1))).max() < 30


def test_largest_zca_is_allowed():
    require_normalize(("zca",), color="rgb", input_size_px=32)
    require_normalize(("zca",), color="gray", input_size_px=55)


def test_at_most_so_many_images_from_the_whole_range(monkeypatch, tmp_path):
    images = np.zeros((100, 4, 4, 3), dtype=np.uint8)
    images[50:] = 255
    mapped = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=images.shape)
    mapped[:] = images
    monkeypatch.setattr(normalize_module, "MAX_FITTED_IMAGES", 10)
    monkeypatch.setattr(normalize_module, "_BLOCK_VALUES", 3 * 16 * 3)
    transform = fit_transform(mapped, color="rgb", normalize=("featurewise_std",))
    np.testing.assert_allclose(transform.mean, 0.5)
    np.testing.assert_allclose(transform.std, 0.5)


@pytest.mark.parametrize(
    "normalize", [(), ("samplewise_std",), ("featurewise_std",), ("featurewise_center", "zca")]
)
def test_transform_comes_back_from_its_arrays(normalize):
    images = images_of(20, 5)
    transform = fit_transform(images, color="gray", normalize=normalize)
    arrays = {**transform.arrays(), "output.bias": np.zeros(1, np.float32)}
    again = InputTransform.from_arrays(arrays, color="gray", normalize=normalize)
    np.testing.assert_array_equal(again.apply(images), transform.apply(images))
    assert set(again.arrays()) == set(transform.arrays())
    assert all(array.dtype == np.float32 for array in transform.arrays().values())


@pytest.mark.parametrize("spec", ["sobel", "gabor", "laplacian"])
@pytest.mark.parametrize("size", [3, 4, 5, 7, 11])
@pytest.mark.parametrize(("filters", "channels"), [(1, 1), (5, 3), (40, 1)])
def test_banks(spec, size, filters, channels):
    bank = first_layer_filters(spec, filters=filters, size=size, channels=channels)
    assert bank.shape == (filters, channels, size, size)
    assert bank.dtype == np.float32
    np.testing.assert_allclose(bank.sum(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(bank).sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_array_equal(bank, np.broadcast_to(bank[:, :1], bank.shape))
    flat = bank[:4].reshape(min(filters, 4), -1)
    assert (flat @ flat.T - np.eye(len(flat))).max() < 0.999, "the first ones differ"


@pytest.mark.parametrize(
    ("spec", "index", "pattern"),
    [
        ("sobel", 0, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
        ("sobel", 1, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
        ("sobel", 2, [[1, 0, -1], [2, 0, -2], [1, 0, -1]]),
        ("laplacian", 0, [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]),
        ("laplacian", 1, [[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
        ("laplacian", 2, [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
        ("laplacian", 3, [[1, 1, 1], [1, -8, 1], [1, 1, 1]]),
    ],
)
def test_known_filters_at_three_pixels(spec, index, pattern):
    found = first_layer_filters(spec, filters=8, size=3, channels=1)[index, 0]
    expected = np.array(pattern) / np.linalg.norm(pattern)
    assert (found * expected).sum() > 0.9999


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize(("index", "across"), [(0, 1), (1, 0)])
def test_gabor_filters_answer_their_own_direction(size, index, across):
    bank = first_layer_filters("gabor", filters=16, size=size, channels=1)[:, 0]
    stripes = np.cos(2 * np.pi * (np.arange(size) - (size - 1) / 2) / size)
    image = np.broadcast_to(stripes, (size, size)) if across else np.broadcast_to(stripes[:, None], (size, size))
    answers = (bank * image).sum(axis=(1, 2))
    assert answers.argmax() == index
    assert answers.max() > 0.5


def write(path, array):
    np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_filters_from_a_file(tmp_path, dtype):
    values = (np.random.default_rng(0).normal(0, 3, (4, 3, 5, 5))).astype(dtype)
    write(tmp_path / "mine.npy", values)
    found = first_layer_filters(str(tmp_path / "mine.npy"), filters=4, size=5, channels=3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b""), "not a .npy file"),
        (lambda path: path.write_bytes(b"GIF89a" * 40), "not a .npy file"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((("), "not a .npy file"),
        (lambda path: write(path, np.array([{}, None], dtype=object)), "not a .npy file"),
        (lambda path: write(path, np.zeros((4, 3, 5, 4))), "expected the shape (4, 3, 5, 5), got (4, 3, 5, 4)"),
        (lambda path: write(path, np.zeros((5, 5, 3, 4))), "got (5, 5, 3, 4)"),
        (lambda path: write(path, np.zeros(())), "got ()"),
        (lambda path: write(path, np.full((4, 3, 5, 5), "x")), "real numbers"),
        (lambda path: write(path, np.zeros((4, 3, 5, 5), complex)), "real numbers, got complex128"),
        (lambda path: write(path, np.full((4, 3, 5, 5), np.nan)), "not finite"),
        (lambda path: write(path, np.full((4, 3, 5, 5), 1e300)), "not finite"),
    ],
)
def test_bad_filter_files(tmp_path, make, says):
    path = tmp_path / "mine.npy"
    make(path)
    with pytest.raises(RecipeError) as caught:
        first_layer_filters(str(path), filters=4, size=5, channels=3)
    assert caught.value.code == "bad-setting"
    assert says in caught.value.message


def test_a_truncated_filter_file(tmp_path):
    path = tmp_path / "mine.npy"
    write(path, np.ones((4, 3, 5, 5)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"not a \.npy file"):
        first_layer_filters(str(path), filters=4, size=5, channels=3)


@pytest.mark.parametrize(
    ("spec", "size", "says"),
    [
        ("sobl", 3, "did you mean 'sobel'?"),
        ("Gabor", 3, "did you mean 'gabor'?"),
        ("lerned", 3, "did you mean 'learned'?"),
        ("", 3, "got ''"),
        ("filters.npz", 3, "or a .npy file"),
        ("sobel", 2, "at least 3 px, and the first layer's have 2"),
        ("laplacian", 1, "at least 3 px"),
    ],
)
def test_bad_filter_settings(spec, size, says):
    with pytest.raises(RecipeError) as caught:
        first_layer_filters(spec, filters=4, size=size, channels=3)
    assert caught.value.code == "bad-setting"
    assert says in str(caught.value)
