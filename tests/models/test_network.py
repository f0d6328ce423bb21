"""The network: its weights, its answers in training and evaluation, and the ONNX graph that must agree with it."""

import copy
import functools
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.special import expit, softmax

from tellapart.errors import RecipeError
from tellapart.models.filters import first_layer_filters
from tellapart.models.graph import build_trunk, split_head
from tellapart.models.layers import BATCH_NORM_EPSILON, TUTORIAL_LAYERS, count_parameters, parse_layers
from tellapart.models.network import build_network, state_arrays
from tellapart.models.normalize import InputTransform, fit_transform

SIDE = 12
RGB = InputTransform(color="rgb", normalize=())

TEXTS = (
    "conv 5x3, pool 2, conv 7x3, pool 2, flatten, dense 9",
    "flatten",
    "pool 3, average, dense 9",
    "pool 2, conv 4x4 same, dropout 0.5, pool 3, flatten, dropout 0.5",
    "conv 6x3 same stride 2, batchnorm, pool 3, conv 4x2 stride 2, average",
    "conv 6x5 same stride 3, flatten, dense 8, batchnorm, dense 5",
    "residual 3, residual 6, pool 2, residual 6, average, dense 5, dropout 0.3",
    "conv 4x3, batchnorm, dropout 0.2, residual 4, conv 3x4 same, batchnorm, flatten, dense 6, batchnorm",
)

TRANSFORMS = (
    (),
    ("samplewise_center",),
    ("samplewise_std",),
    ("featurewise_center",),
    ("featurewise_std", "samplewise_std"),
    ("zca",),
    ("samplewise_std", "zca"),
)


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    low, spread = rng.integers(0, 128, (n, 1, 1, 3)), rng.integers(32, 128, (n, 1, 1, 1))
    return (low + spread * rng.random((n, SIDE, SIDE, 3))).astype(np.uint8)


@functools.cache
def fitted(color, normalize):
    return fit_transform(pictures(60, seed=1), color=color, normalize=normalize)


def as_batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0


def build(text, transform=RGB, *, outputs=1, seed=3, side=SIDE, **settings):
    layers = parse_layers(text, input_size_px=side, channels=transform.channels)
    return layers, build_network(layers, transform, outputs=outputs, seed=seed, **settings)


def trained(text, transform, outputs):
    """A network after two steps with large biases and moments that a fresh one would not have."""
    layers, network = build(text, transform, outputs=outputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.3, 0.9)
        with torch.no_grad():
            for _ in range(2):
                network(as_batch(pictures(12, seed=5)))
    return layers, network.eval()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("normalize", TRANSFORMS, ids="-".join)
@pytest.mark.parametrize(("color", "outputs"), [("rgb", 1), ("gray", 3)])
def test_the_graph_answers_as_the_network(text, normalize, color, outputs):
    transform = fitted(color, normalize)
    layers, network = trained(text, transform, outputs)
    images = pictures(9, seed=2)
    with torch.no_grad():
        answer = network(as_batch(images))
    arrays = state_arrays(network)
    model = build_trunk(layers, arrays, transform)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (embedding,) = session.run(["embedding"], {"images": images})
    assert embedding.shape == (9, layers[-1].output_shape[0])
    np.testing.assert_allclose(embedding, answer["embedding"].numpy(), rtol=0, atol=1e-4)
    weight, bias = split_head(arrays, outputs)
    assert (weight.shape, bias.shape) == ((embedding.shape[1], max(2, outputs)), (max(2, outputs),))
    probs = softmax(embedding @ weight + bias, axis=1)
    logits = answer["logits"].numpy()
    expected = softmax(logits, axis=1) if outputs > 1 else np.hstack([expit(-logits), expit(logits)])
    np.testing.assert_allclose(probs, expected, atol=1e-4)
    assert np.ptp(embedding, axis=0).max() > 1e-3, "the images are told apart"


def test_nodes_of_the_tutorial_are_named_after_its_layers():
    layers, network = build(TUTORIAL_LAYERS, side=64)
    model = build_trunk(layers, state_arrays(network), RGB)
    assert [(node.op_type, node.output[0]) for node in model.graph.node] == [
        ("Cast", "pixels"),
        ("Div", "scaled"),
        ("Transpose", "channels_first"),
        ("Conv", "conv_1"),
        ("Relu", "relu_1"),
        ("MaxPool", "pool_1"),
        ("Conv", "conv_2"),
        ("Relu", "relu_2"),
        ("MaxPool", "pool_2"),
        ("Flatten", "flatten"),
        ("Gemm", "dense_1"),
        ("Relu", "embedding"),
    ]
    assert (model.opset_import[0].version, model.ir_version) == (17, 9)


def test_dropout_and_batch_norm_leave_no_node():
    layers, network = build(TEXTS[-1])
    operators = [node.op_type for node in build_trunk(layers, state_arrays(network.eval()), RGB).graph.node]
    assert set(operators) == {"Cast", "Div", "Transpose", "Conv", "Relu", "Add", "Flatten", "Gemm"}
    assert operators.count("Conv") == 4


def test_all_operators_are_few():
    found = set()
    for text in TEXTS:
        for normalize in TRANSFORMS:
            transform = fitted("gray", normalize)
            layers, network = build(text, transform)
            found |= {node.op_type for node in build_trunk(layers, state_arrays(network), transform).graph.node}
    assert found == {
        *("Add", "Cast", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Mul"),
        *("ReduceMean", "Relu", "Reshape", "Sqrt", "Sub", "Transpose"),
    }


def test_weights_are_glorots_and_biases_zero():
    arrays = state_arrays(build(TUTORIAL_LAYERS, side=64)[1])
    fans = {
        "trunk.conv_1": (9 * 3, 9 * 5),
        "trunk.conv_2": (9 * 5, 9 * 32),
        "trunk.dense_1": (14 * 14 * 32, 128),
        "output": (128, 1),
    }
    assert set(arrays) == {f"{path}.{part}" for path in fans for part in ("weight", "bias")}
    for path, (fan_in, fan_out) in fans.items():
        weight, limit = arrays[f"{path}.weight"], math.sqrt(6 / (fan_in + fan_out))
        assert not arrays[f"{path}.bias"].any()
        assert np.abs(weight).max() <= limit
        assert np.abs(weight).max() > 0.95 * limit
        assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.15 if weight.size < 200 else 0.05)
        assert abs(weight.mean()) < 4 * limit / math.sqrt(3 * weight.size)


@pytest.mark.parametrize(
    "text", [*TEXTS, "residual 3, average", "conv 4x3, batchnorm, residual 5, average, dense 2"]
)
@pytest.mark.parametrize("outputs", [1, 4])
def test_count_is_what_the_network_has(text, outputs):
    layers, network = build(text, outputs=outputs)
    assert sum(p.numel() for p in network.parameters()) == count_parameters(layers, outputs)


def test_the_seed_alone_decides_and_the_global_state_is_untouched():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = state_arrays(build(TEXTS[-1], seed=7)[1])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = (state_arrays(build(TEXTS[-1], seed=seed)[1]) for seed in (7, 8))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert (values != other[name]).any() == (values.ndim > 1), name


def test_forward_is_the_same_in_any_memory_format_and_leaves_its_input():
    _, network = build(TEXTS[0], fit_transform(pictures(9), color="gray", normalize=("samplewise_std",)))
    batch = as_batch(pictures(4)).contiguous()
    kept = batch.clone()
    channels_last = batch.contiguous(memory_format=torch.channels_last)
    first, second = network(batch), network(channels_last)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    assert torch.equal(batch, kept)
    assert torch.equal(channels_last, kept)


def test_pooling_before_relu_changes_neither_values_nor_gradients():
    _, network = build("conv 6x3, pool 2, flatten", seed=0)
    batch = as_batch(pictures(5))
    network(batch)["embedding"].square().sum().backward()
    weight = network.trunk.conv_1.weight.detach().clone().requires_grad_()
    plain = torch.max_pool2d(torch.relu(torch.conv2d(batch, weight)), 2).flatten(1)
    plain.square().sum().backward()
    torch.testing.assert_close(network(batch)["embedding"], plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network.trunk.conv_1.weight.grad, weight.grad, atol=1e-4, rtol=1e-4)


def test_flatten_runs_channel_by_channel():
    _, network = build("flatten")
    batch = as_batch(pictures(3))
    np.testing.assert_array_equal(network(batch)["embedding"].numpy(), batch.numpy().reshape(3, -1))


@pytest.mark.parametrize(
    ("text", "place"), [("conv 4x3, batchnorm, average", "conv"), ("flatten, dense 4, batchnorm", "dense")]
)
def test_batch_norm_in_training_and_evaluation(text, place):
    _, network = build(text)
    norm = network.trunk.batchnorm_1
    seen = []
    norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    batch = as_batch(pictures(12))
    out = network(batch)["embedding"]
    (given, normed), dims = seen[0], (0, 2, 3) if place == "conv" else (0,)
    torch.testing.assert_close(normed.mean(dims), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(dims, correction=0), torch.ones(4), atol=2e-2, rtol=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * given.mean(dims))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * given.var(dims))
    relu = normed.relu()
    torch.testing.assert_close(out, relu.mean((2, 3)) if place == "conv" else relu)
    network.eval()
    moments = norm.running_mean.clone()
    alone, among = network(batch[:1])["embedding"], network(batch)["embedding"][:1]
    torch.testing.assert_close(alone, among)
    assert torch.equal(norm.running_mean, moments)
    shape = (1, 4, 1, 1) if place == "conv" else (1, 4)
    expected = (given - moments.view(shape)) / (norm.running_var.view(shape) + BATCH_NORM_EPSILON).sqrt()
    torch.testing.assert_close(seen[-1][1], expected, atol=1e-5, rtol=1e-4)


def test_residual_is_the_papers_block():
    _, network = build("residual 3, residual 5, average")
    network.eval()
    first, second = network.trunk.residual_1, network.trunk.residual_2
    x = as_batch(pictures(2)) - 0.5

    def plain(block, shortcut):
        scale = 1 / math.sqrt(1 + BATCH_NORM_EPSILON)
        inner = torch.relu(torch.conv2d(x, block.conv_1.weight, padding=1) * scale)
        return torch.relu(torch.conv2d(inner, block.conv_2.weight, padding=1) * scale + shortcut)

    torch.testing.assert_close(first(x), plain(first, x), atol=1e-5, rtol=1e-4)
    adapted = torch.conv2d(x, second.shortcut.conv.weight) / math.sqrt(1 + BATCH_NORM_EPSILON)
    torch.testing.assert_close(second(x), plain(second, adapted), atol=1e-5, rtol=1e-4)


def test_dropout_follows_the_global_random_state_and_only_in_training():
    _, network = build("flatten, dropout 0.5")
    batch = as_batch(pictures(2)) + 0.1
    answers = []
    with torch.random.fork_rng():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            answers.append(network(batch)["embedding"])
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert (answers[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(answers[0][answers[0] != 0], 2 * batch.flatten(1)[answers[0] != 0])
    torch.testing.assert_close(network.eval()(batch)["embedding"], batch.flatten(1))


@pytest.mark.parametrize("freeze", [True, False])
def test_first_filters_are_a_start_or_stay(freeze):
    filters = first_layer_filters("sobel", filters=5, size=3, channels=3)
    _, network = build(TEXTS[0], first_filters=filters, freeze_first=freeze)
    _, drawn = build(TEXTS[0])
    arrays, without = state_arrays(network), state_arrays(drawn)
    np.testing.assert_array_equal(arrays.pop("trunk.conv_1.weight"), filters)
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, without[name])
    network(as_batch(pictures(4)))["logits"].sum().backward()
    weight = network.trunk.conv_1.weight
    assert (weight.grad is None) == freeze
    assert network.trunk.conv_1.bias.grad is not None


@pytest.mark.parametrize(
    ("text", "shape", "says"),
    [
        (TEXTS[0], (5, 1, 3, 3), "expected the shape (5, 3, 3, 3), got (5, 1, 3, 3)"),
        (TEXTS[0], (5, 3, 3), "got (5, 3, 3)"),
        (TEXTS[6], (3, 3, 3, 3), "'conv' first"),
        ("flatten", (3, 3, 3, 3), "there is none"),
    ],
)
def test_bad_first_filters(text, shape, says):
    with pytest.raises(RecipeError) as caught:
        build(text, first_filters=np.zeros(shape, np.float32))
    assert caught.value.code == "bad-setting"
    assert says in caught.value.message


def test_drawn_filters_are_not_frozen():
    with pytest.raises(RecipeError, match="freeze_first_layer keeps predetermined filters"):
        build(TEXTS[0], freeze_first=True)


def test_state_arrays_are_copies_and_load_again():
    _, network = build(TEXTS[-1])
    network(as_batch(pictures(6)))
    arrays = state_arrays(network)
    kept = copy.deepcopy(arrays)
    _, other = build(TEXTS[-1], seed=9)
    other.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    for name, values in arrays.items():
        assert values.flags.c_contiguous
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, kept[name])


@pytest.mark.parametrize("normalize", TRANSFORMS, ids="-".join)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_the_network_normalizes_as_the_transform(normalize, color):
    transform = fit_transform(pictures(400, seed=4)[:, :6, :6], color=color, normalize=normalize)
    _, network = build("flatten", transform, side=6)
    images = pictures(7)[:, :6, :6]
    found = network(as_batch(images))["embedding"].numpy()
    np.testing.assert_allclose(found, transform.apply(images).reshape(7, -1), atol=1e-4)


def test_it_learns():
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = (
        (rng.normal(100, 30, (64, SIDE, SIDE, 3)) + 60 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
    )
    _, network = build(TEXTS[0])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, fused=True)
    truth = torch.from_numpy(labels)[:, None].float()
    for _ in range(60):
        logits = network(as_batch(images))["logits"]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
