"""explain: what the page shows is what the file computes; occlusion finds the place that matters; nothing gets out."""

import io
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tellapart.errors import ImageError, ModelError, RecipeError, StorageError
from tellapart.explain.colors import Scale, common_scale, overlay, palette_colors
from tellapart.explain.explanation import explain
from tellapart.explain.layers import read_walk
from tellapart.explain.occlusion import MAX_PATCHES_A_SIDE, default_patch, occlusion_map
from tellapart.explain.poster import WIDTH_PX
from tellapart.explain.sentences import percent
from tellapart.imaging.preprocess import load_input
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.model import pack, read_model
from tellapart.inference.predict import load
from tellapart.records import Calibration, ConformalRule, ModelCard, Preprocess, SetLevel

SIDE_PX = 20
HOSTILE = "<script>alert('x')</script> & \"https://example.org\""


class Builder:
    """A graph as recipe ``cnn`` composes it, with random weights; names of arrays say nothing about operators."""

    def __init__(self, channels=3, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], [], 0
        self.x = "images"
        self.add("Cast", to=TensorProto.FLOAT)
        self.add("Div", np.array(255, np.float32))
        if channels == 1:
            self.add("MatMul", np.array([[0.3], [0.6], [0.1]], np.float32))
        self.add("Transpose", perm=[0, 3, 1, 2])
        self.channels = channels

    def add(self, operator, *constants, output="", **attributes):
        names = []
        for value in constants:
            names.append(f"k{len(self.constants)}")
            self.constants.append(numpy_helper.from_array(value, names[-1]))
        self.count += 1
        output = output or f"t{self.count}"
        self.nodes.append(helper.make_node(operator, [self.x, *names], [output], **attributes))
        self.x = output

    def conv(self, filters, size=3, **attributes):
        depth = 1 if attributes.get("group", 1) > 1 else self.channels
        weight = self.rng.normal(0, 0.5, (filters, depth, size, size)).astype(np.float32)
        self.add("Conv", weight, self.rng.normal(0, 0.1, filters).astype(np.float32), **attributes)
        self.channels = filters

    def dense(self, inputs, outputs, **attributes):
        weight = self.rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)
        self.add("Gemm", weight, np.zeros(outputs, np.float32), **attributes)

    def finish(self, embedding_dim, class_names, *, logits="", temperature=1.5, **card):
        self.dense(embedding_dim, len(class_names), output=logits)
        self.add("Div", np.array(temperature, np.float32))
        self.add("Softmax", axis=1, output="probs")
        return packed(self.nodes, self.constants, embedding_dim, class_names, **card)


def one_level(coverage, min_prob, n):
    level = SetLevel(coverage=coverage, min_probs=(min_prob,))
    return ConformalRule(coverage=coverage, levels=(level,), method="calib", per_class=False, n=n)


def packed(nodes, constants, embedding_dim, class_names, side=SIDE_PX, **card):
    graph = helper.make_graph(
        nodes,
        "tellapart",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "S", "S", 3])],
        [
            helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", len(class_names)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", embedding_dim]),
        ],
        constants,
    )
    values = {
        "class_names": tuple(class_names),
        "preprocess": Preprocess(input_size_px=side),
        "calibration": Calibration(temperature=1.5, method="calib", n=60),
        "conformal": one_level(0.9, 0.0, n=60),
        "embedding_dim": embedding_dim,
        "created": "2026-01-01T00:00:00+00:00",
    }
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return pack(model, ModelCard(**values | card))


def small_cnn(filters=(5, 7), class_names=("cat", "dog"), channels=3, **card):
    """Conv, ReLU, MaxPool twice; flatten; dense 12, ReLU; output."""
    build = Builder(channels)
    for count in filters:
        build.conv(count)
        build.add("Relu")
        build.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    build.add("Flatten", axis=1)
    side = SIDE_PX
    for _ in filters:
        side = (side - 2) // 2
    build.dense(filters[-1] * side * side, 12)
    build.add("Relu", output="embedding")
    return build.finish(12, class_names, **card)


def deep_cnn():
    """Eight convolutions, half of them depthwise, at three sizes; ReLU6; global average."""
    build = Builder()
    build.conv(24, auto_pad="SAME_UPPER", strides=[2, 2])
    six = np.array([6], np.float32)  # as the bundled backbone keeps it
    for stride in (1, 2, 1):
        build.add("Clip", np.array([0], np.float32), six)
        build.conv(24, group=24, auto_pad="SAME_UPPER", strides=[stride, stride])
        build.conv(24, size=1)
    build.conv(40, size=1, strides=[2, 2])
    build.add("GlobalAveragePool")
    build.add("Flatten", axis=1, output="embedding")
    return build.finish(40, ("a", "b", "c"))


def corner_model(top, left, size, side=32):
    """Says ``lit`` the brighter one square is, and looks nowhere else."""
    weight = np.zeros((side, side, 3, 1), np.float32)
    weight[top : top + size, left : left + size] = 1 / (size * size * 3 * 32)
    constants = {
        "w": weight.reshape(-1, 1),
        "s": np.array([[1, -1]], np.float32),
        "b": np.array([-6.5, 6.5], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "s", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return packed(nodes, tensors, 1, ("lit", "dark"), side=side)


def noise(height=30, width=40, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def explained(model, folder, image=None):
    """The page's sections by their titles, and the explanation."""
    model.save(folder / "model.onnx")
    done = explain(folder / "model.onnx", png(noise()) if image is None else image, out=folder / "out")
    page = done.html_path.read_text(encoding="utf-8")
    parts = re.findall(r"<section.*?</section>", page, re.DOTALL)
    return {re.search("<h2>(.*?)</h2>", part)[1]: part for part in parts}, page, done


def pictures(section):
    return section.count("<figure>")


# Layers


def test_values_are_those_of_the_file_computed_by_hand():
    model, pixels = small_cnn(), noise(SIDE_PX, SIDE_PX)
    walk = read_walk(model, pixels)
    assert [step.operator for step in walk.steps] == [
        *["Conv", "Relu", "MaxPool"] * 2,
        *["Flatten", "Gemm", "Relu", "Gemm"],
    ]
    assert walk.whole
    assert walk.convolutions == 2
    assert walk.input_range == pytest.approx((pixels.min() / 255, pixels.max() / 255))
    weight, bias = walk.steps[0].constants
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.float64) / 255, (3, 3), axis=(0, 1))
    expected = np.einsum("yxchw,fchw->fyx", windows, weight) + bias[:, None, None]
    np.testing.assert_allclose(walk.steps[0].values, expected, atol=1e-4)
    np.testing.assert_allclose(walk.steps[1].values, np.maximum(expected, 0), atol=1e-4)
    pooled = np.maximum(expected, 0).reshape(5, 9, 2, 9, 2).max(axis=(2, 4))
    np.testing.assert_allclose(walk.steps[2].values, pooled, atol=1e-4)
    np.testing.assert_array_equal(walk.steps[6].values, walk.steps[5].values.ravel())
    scores = np.exp(walk.steps[-1].values / 1.5)
    engine = OpenVINOEngine(model.onnx_bytes, input_size_px=SIDE_PX, precision="f32")
    np.testing.assert_allclose(scores / scores.sum(), engine.run(pixels[None])["probs"][0], atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("name", ["logits", "scores", "z", "out_12"])
def test_logits_are_there_at_every_temperature(temperature, name):
    """At 1 the engine leaves the division out, and one array has both names, in any order."""
    build = Builder()
    build.conv(4)
    build.add("GlobalAveragePool")
    build.add("Flatten", axis=1, output="embedding")
    model = build.finish(4, ("cat", "dog"), logits=name, temperature=temperature)
    walk = read_walk(model, noise(SIDE_PX, SIDE_PX))
    assert walk.steps[-1].shape == (2,)


def test_a_deep_network_is_summed_up():
    walk = read_walk(deep_cnn(), noise(SIDE_PX, SIDE_PX))
    assert not walk.whole
    assert walk.convolutions == 8
    assert [(step.operator, step.shape, step.skipped) for step in walk.steps] == [
        ("Conv", (24, 10, 10), False),
        ("Clip", (24, 10, 10), False),
        ("Clip", (24, 10, 10), True),
        ("Conv", (24, 5, 5), True),
        ("Conv", (40, 3, 3), False),
        ("GlobalAveragePool", (40,), False),
        ("Gemm", (3,), False),
    ]


def test_reading_changes_nothing():
    model = small_cnn()
    before = model.onnx_bytes
    read_walk(model, noise(SIDE_PX, SIDE_PX))
    assert model.onnx_bytes == before


# The page


def test_every_step_has_its_section_its_shape_and_its_pictures(tmp_path):
    sections, page, _ = explained(small_cnn(), tmp_path)
    expected = {
        "The image": (2, "20 x 20 pixels"),
        "What the answer “.*” depends on": (2, "occlusion"),
        "Convolution 1: the learned filters": (5, "5 filters of 3 x 3 x 3, 135 weights"),
        "Convolution 1": (5, "5 maps of 18 x 18"),
        "ReLU 1": (5, "5 maps of 18 x 18"),
        "Max pooling 1": (5, "5 maps of 9 x 9"),
        "Convolution 2: the learned filters": (7, "7 filters of 3 x 3 x 5, 315 weights"),
        "Convolution 2": (7, "7 maps of 7 x 7"),
        "ReLU 2": (7, "7 maps of 7 x 7"),
        "Max pooling 2": (7, "7 maps of 3 x 3"),
        "Flatten": (1, "63 numbers"),
        "Dense layer 1": (1, "12 numbers"),
        "ReLU 3": (1, "12 numbers"),
        "Dense layer 2: one number a class": (0, "2 numbers"),
        "The answer": (0, "2 probabilities"),
    }
    assert len(sections) == len(expected)
    for (title, section), (pattern, (count, shape)) in zip(sections.items(), expected.items(), strict=True):
        assert re.fullmatch(pattern, title)
        assert pictures(section) == count, title
        assert shape in section, title
        assert re.search(r"<p>\w.{20,}\.</p>", section, re.DOTALL), title
    assert "7 x 3 x 3 numbers are laid out" in sections["Flatten"]
    assert "768 weights and biases" in sections["Dense layer 1"], "63 x 12 + 12"
    assert "all three colours" in sections["Convolution 1"]
    assert "all maps" in sections["Convolution 2"]
    assert page.count('<li><a href="#step-') == len(expected)


@pytest.mark.parametrize(
    ("maps", "shown", "says"),
    [(64, 64, None), (65, 64, "first 64 of 65 maps are shown; 1 are left out"), (9, 9, None)],
)
def test_what_is_left_out_is_said(tmp_path, maps, shown, says):
    sections, _, _ = explained(small_cnn(filters=(maps, 2)), tmp_path)
    for title in ("Convolution 1", "ReLU 1", "Max pooling 1"):
        assert pictures(sections[title]) == shown
        assert ("left out" in sections[title]) == bool(says)
        assert (says or "") in sections[title]
    filters = sections["Convolution 1: the learned filters"]
    assert pictures(filters) == min(maps, 32)
    assert ("left out" in filters) == (maps > 32)
    squares = "first 16 of" in sections["Convolution 2: the learned filters"]
    assert squares == (maps > 16)


def test_of_a_deep_network_a_few_maps_of_each_size(tmp_path):
    sections, page, _ = explained(deep_cnn(), tmp_path)
    assert "The network has 8 convolutions, too many to show" in page
    assert [title for title in sections if "last maps" in title] == [
        "The last maps of 10 x 10",
        "The last maps of 5 x 5",
    ]
    assert "after 7 of 8 convolutions" in sections["The last maps of 5 x 5"]
    assert pictures(sections["The last maps of 5 x 5"]) == 16
    assert "8 are left out" in sections["The last maps of 5 x 5"]
    assert "Numbers below 0 become 0, numbers above 6 become 6" in sections["ReLU with a ceiling"]


def test_the_answer_is_the_classifiers(tmp_path):
    names = tuple(f"class {i}" for i in range(14))
    sections, page, done = explained(small_cnn(class_names=names), tmp_path)
    (expected,) = load(tmp_path / "model.onnx").predict(png(noise()))
    assert done.prediction.label == expected.label
    np.testing.assert_allclose(done.prediction.probs, expected.probs, atol=0.02)
    answer = sections["The answer"]
    assert answer.count('class="amount"') == 10
    assert "first 10 of 14 classes are shown; 4 are left out" in answer
    assert f"{done.prediction.verdict}: {done.prediction.label}, {percent(done.prediction.prob)}" in page
    assert "90% coverage" in page


def test_without_a_rule_no_set_is_promised(tmp_path):
    _, page, done = explained(small_cnn(conformal=None), tmp_path)
    assert done.prediction.verdict == "unsure"
    assert "No prediction set was fitted" in page


def perceptron(channels):
    """No convolution: flatten, dense, output."""
    build = Builder(channels)
    build.add("Flatten", axis=1)
    build.dense(channels * SIDE_PX * SIDE_PX, 9)
    build.add("Relu", output="embedding")
    return build.finish(9, ("a", "b"))


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_convolution(tmp_path, channels):
    sections, _, _ = explained(perceptron(channels), tmp_path)
    assert list(sections)[2:] == [
        "Flatten",
        "Dense layer 1",
        "ReLU",
        "Dense layer 2: one number a class",
        "The answer",
    ]
    assert f"{channels * 400:,} numbers" in sections["Flatten"]


def test_a_gray_network(tmp_path):
    sections, _, _ = explained(small_cnn(channels=1), tmp_path)
    assert list(sections)[2] == "Convolution 1: the learned filters"
    assert "in the gray image" in sections["Convolution 1"]
    assert "5 filters of 3 x 3 x 1" in sections["Convolution 1: the learned filters"]


def test_the_page_stands_alone_and_nothing_hostile_gets_through(tmp_path):
    photo = tmp_path / "<img src=x onerror=1>.png"
    photo.write_bytes(png(noise()))
    model = small_cnn(class_names=(HOSTILE, "</title><style>\u202e"))
    _, page, _ = explained(model, tmp_path, photo)
    tags = re.findall(r"<[^>]*>", page)
    assert not [tag for tag in tags if re.match(r"</?(script|link|iframe|object|embed|base|form)\b", tag)]
    plain = [re.sub(r'alt="[^"]*"', "", tag) for tag in tags]
    assert not [tag for tag in plain if re.search(r"\son\w+=|https?:|javascript:", tag)]
    assert {address[0] for address in re.findall(r'href="([^"]*)', page)} == {"#"}
    assert page.count("<style>") == page.count("</title>") == 1
    assert {address.split(":")[0] for address in re.findall(r'src="([^"#]*)', page)} == {"data"}
    assert "url(" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;img src=x onerror=1&gt;.png" in page


@pytest.mark.parametrize("name", ["кот 猫.png", "a\udcffb.png", "é" * 80 + ".png", "line\nbreak.png"])
def test_names_of_any_kind(tmp_path, name):
    photo = tmp_path / name
    photo.write_bytes(png(noise()))
    _, page, done = explained(small_cnn(class_names=("ни один", "W" * 400)), tmp_path, photo)
    assert page.count("</section>") == 15
    assert Image.open(done.png_path).width == WIDTH_PX


def test_the_poster_shows_the_same_walk(tmp_path):
    _, _, done = explained(small_cnn(), tmp_path)
    with Image.open(done.png_path) as poster:
        assert poster.format == "PNG"
        assert poster.width == WIDTH_PX
        assert poster.height > 3000
        colors = {tuple(color) for color in np.asarray(poster.convert("RGB")).reshape(-1, 3)[::7]}
    for palette in ("sequential", "diverging"):
        shown = {tuple(color) for color in palette_colors(palette)}
        assert len(shown & colors) > 50


def test_written_twice_is_written_the_same(tmp_path):
    first = explained(small_cnn(), tmp_path)[2]
    before = first.html_path.read_bytes(), first.png_path.read_bytes()
    again = explained(small_cnn(), tmp_path)[2]
    assert before == (again.html_path.read_bytes(), again.png_path.read_bytes())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explain.html", "explain.png"]


@pytest.mark.parametrize(
    ("share", "says"),
    [(1.0, "100.0%"), (0.99999, "over 99.9%"), (0.5, "50.0%"), (1e-6, "under 0.1%"), (0.0, "0.0%")],
)
def test_rounding_claims_no_certainty(share, says):
    assert percent(share) == says


# Occlusion


@pytest.mark.parametrize("corner", [(0, 0), (0, 24), (24, 0), (24, 24), (12, 10)])
def test_occlusion_finds_the_one_place_that_matters(corner):
    model = corner_model(*corner, size=8)
    engine = OpenVINOEngine(model.onnx_bytes, input_size_px=32, precision="f32")
    white = np.full((32, 32, 3), 255, np.uint8)
    lit = occlusion_map(engine, white, 0, patch_px=8, stride_px=2)
    assert lit.shape == (32, 32)
    assert lit.dtype == np.float32
    inside = np.zeros((32, 32), bool)
    inside[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = True
    near = np.zeros((32, 32), bool)
    near[max(corner[0] - 8, 0) : corner[0] + 16, max(corner[1] - 8, 0) : corner[1] + 16] = True
    assert inside.ravel()[lit.argmax()]
    assert lit[inside].mean() > 0.1
    assert np.abs(lit[~near]).max() < 1e-6, "no patch that covers it touches the square"
    dark = occlusion_map(engine, white, 1, patch_px=8, stride_px=2)
    np.testing.assert_allclose(dark, -lit, atol=1e-5)


def test_a_patch_of_one_pixel_is_measured_pixel_by_pixel():
    engine = OpenVINOEngine(small_cnn().onnx_bytes, input_size_px=SIDE_PX, precision="f32")
    pixels = noise(SIDE_PX, SIDE_PX)
    calls = []
    found = occlusion_map(
        engine, pixels, 1, patch_px=1, stride_px=1, progress=lambda *arguments: calls.append(arguments)
    )
    covered = pixels.copy()
    covered[3, 17] = 128
    probs = engine.run(np.stack([pixels, covered]))["probs"][:, 1]
    assert found[3, 17] == pytest.approx(probs[0] - probs[1], abs=1e-6)
    assert calls[-1] == ("occlusion", 400, 400)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


@pytest.mark.parametrize("side", [8, 9, 20, 28, 32, 64, 65, 224, 300, 1024])
def test_default_patch(side):
    patch_px, stride_px = default_patch(side)
    per_side = len(range(stride_px - patch_px, side, stride_px))
    assert 1 <= stride_px <= patch_px <= side / 4
    assert patch_px >= side / 10
    assert per_side <= MAX_PATCHES_A_SIDE


@pytest.mark.parametrize(("patch_px", "stride_px"), [(0, 1), (33, 1), (4, 0), (4, 5), (-1, -1)])
def test_bad_patches(patch_px, stride_px):
    engine = OpenVINOEngine(corner_model(0, 0, 8).onnx_bytes, input_size_px=32)
    with pytest.raises(RecipeError) as caught:
        occlusion_map(engine, np.zeros((32, 32, 3), np.uint8), 0, patch_px=patch_px, stride_px=stride_px)
    assert caught.value.code == "bad-setting"


# Colours


@pytest.mark.parametrize(("palette", "middle"), [("sequential", None), ("gray", None), ("diverging", 127.5)])
def test_lightness_rises_evenly(palette, middle):
    colors = palette_colors(palette).astype(float) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness if middle is None else lightness[:128])
    assert steps.min() > -0.3, "8 bits leave a little unevenness"
    assert steps.max() < 4 * steps.mean()
    if middle is not None:
        np.testing.assert_allclose(lightness[:128], lightness[:127:-1], atol=8)
        assert lightness[127] > 90


@pytest.mark.parametrize(
    ("values", "palette", "low", "high"),
    [
        ([0, 1, 2], "sequential", 0, 2),
        ([-3, 1], "diverging", -3, 3),
        ([0, 0], "sequential", 0, 0),
        ([5], "sequential", 0, 5),
    ],
)
def test_common_scale(values, palette, low, high):
    scale = common_scale(np.array(values, np.float32))
    assert scale.palette == palette
    assert (scale.low, scale.high) == pytest.approx((low, high), rel=0.02)


def test_few_extreme_numbers_do_not_pale_the_others():
    values = np.append(np.linspace(0, 1, 999), 1000).astype(np.float32)
    scale = common_scale(values)
    assert scale.high < 1.01
    assert scale.beyond
    assert (scale.paint(values[-1:]) == palette_colors("sequential")[-1]).all()


def test_overlay_is_orange_where_it_falls_blue_where_it_rises_and_gray_elsewhere():
    scale = Scale(palette="diverging", low=-1, high=1)
    ((left, none, right),) = overlay(
        np.array([[-1, 0, 1]], np.float32), scale, np.full((1, 3, 3), 90, np.uint8)
    ).tolist()
    assert left[2] > left[0] + 60
    assert none[0] == none[1] == none[2]
    assert right[0] > right[2] + 60


# Errors


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty-file"),
        (b"hello", "not-an-image"),
        (b"%PDF-1.7", "unsupported-format"),
        (png(noise())[:200], "truncated-image"),
    ],
)
def test_bad_images(tmp_path, content, code):
    small_cnn().save(tmp_path / "model.onnx")
    (tmp_path / "photo.png").write_bytes(content)
    for image in (content, tmp_path / "photo.png", str(tmp_path / "photo.png")):
        with pytest.raises(ImageError) as caught:
            explain(tmp_path / "model.onnx", image, out=tmp_path / "out")
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "code"), [("none.png", "file-not-found"), (".", "not-a-file")])
def test_missing_images(tmp_path, name, code):
    small_cnn().save(tmp_path / "model.onnx")
    with pytest.raises(ImageError) as caught:
        explain(tmp_path / "model.onnx", tmp_path / name, out=tmp_path / "out")
    assert caught.value.code == code


def foreign():
    model = onnx.load_model_from_string(small_cnn().onnx_bytes)
    del model.metadata_props[:]
    return model.SerializeToString()


def wrong_shapes():
    """A verified card on a graph that no engine can run."""
    build = Builder()
    build.channels = 4
    build.conv(5)
    build.add("GlobalAveragePool")
    build.add("Flatten", axis=1, output="embedding")
    return build.finish(5, ("a", "b")).onnx_bytes


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "model-not-found"),
        (b"no model", "damaged-model"),
        (small_cnn().onnx_bytes[:-200], "damaged-model"),
        (foreign(), "foreign-model"),
        (wrong_shapes(), "damaged-model"),
    ],
    ids=["missing", "no model", "cut", "foreign", "wrong shapes"],
)
def test_bad_models(tmp_path, content, code):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        explain(tmp_path / "model.onnx", png(noise()), out=tmp_path / "out")
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tmp_path):
    small_cnn().save(tmp_path / "model.onnx")
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError) as caught:
        explain(tmp_path / "model.onnx", png(noise()), out=tmp_path / "out")
    assert caught.value.code == "cannot-write"


def test_the_model_sees_the_image_as_predict_does(tmp_path):
    photo = tmp_path / "photo.jpg"
    Image.fromarray(noise(400, 600)).save(photo, quality=80)
    model = small_cnn()
    _, page, done = explained(model, tmp_path, photo)
    file = read_model(tmp_path / "model.onnx")
    engine = OpenVINOEngine(file.onnx_bytes, input_size_px=SIDE_PX, precision="f32")
    expected = engine.run(load_input(photo, file.card.preprocess)[None])["probs"][0]
    np.testing.assert_allclose(done.prediction.probs, expected, atol=1e-6)
    assert "as given, 600 x 400" in page
    assert done.prediction.path == "photo.jpg"
