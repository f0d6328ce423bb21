"""The gradient loop: what the network is given, what is minimised, what is kept, and that nothing depends on being stopped."""

import math
import signal
import threading
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402, N812

from tellapart.errors import TrainingError  # noqa: E402
from tellapart.models.layers import parse_layers  # noqa: E402
from tellapart.models.network import build_network  # noqa: E402
from tellapart.models.normalize import fit_transform  # noqa: E402
from tellapart.records import no_progress  # noqa: E402
from tellapart.training import loop as loop_module  # noqa: E402
from tellapart.training.checkpoint import CheckpointFolder  # noqa: E402
from tellapart.training.loop import ImageData, always_time, class_logits, train_network  # noqa: E402
from tellapart.training.loop_recipe import cnn  # noqa: E402
from tellapart.training.objective import Classification  # noqa: E402
from tellapart.training.optim import AveragedWeights, Optimizer, lr_factor  # noqa: E402

SIDE_PX = 8
PLAIN = "conv 6x3, pool 2, conv 5x2, flatten, dense 7"
FULL = "conv 6x3, batchnorm, pool 2, dropout 0.3, conv 5x2, flatten, dense 7"
WILD = "rotation 90, channel_shift 80, erase 1, mixup 1"
CLOCK = ("images_per_s", "seconds")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class NoCheckpoints:
    """A folder that is always empty; counts what is saved."""

    def __init__(self):
        self.saved = 0

    def load(self):
        return None

    def save(self, _):
        self.saved += 1


def toy(train=36, val=9, *, classes=3, seed=3):
    """Noise, and one brighter channel for each class; the first value of each image is its row."""
    count = train + val
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pixels = rng.integers(0, 100, (count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels % 3] += 150
    pixels[:, 0, 0, 0] = np.arange(count)
    names = [f"{i}.png" for i in range(count)]
    return ImageData(
        pixels=pixels, labels=labels, names=names, train=np.arange(train), val=np.arange(train, count)
    )


def settings(**changes):
    plain = {"input_size_px": SIDE_PX, "layers": PLAIN, "augment": "", "epochs": 3, "batch_size": 8, "lr": 0.01}
    return cnn(**{**plain, **changes})


def build(data, recipe, classes, seed=0):
    transform = fit_transform(data.pixels[data.train], color="rgb", normalize=())
    layers = parse_layers(recipe.layers, input_size_px=SIDE_PX, channels=3)
    return build_network(layers, transform, outputs=1 if classes == 2 else classes, seed=seed)


def train(
    recipe,
    data=None,
    *,
    seed=0,
    classes=3,
    network=None,
    checkpoints=None,
    progress=no_progress,
    from_trained=False,
    out_of_time=always_time,
    **objective,
):
    """A network built from the recipe, trained; its log as it was told, and the result."""
    data = data or toy(classes=classes)
    network = network or build(data, recipe, classes)
    told = []
    result = train_network(
        network,
        Classification(class_weights=torch.ones(classes), **objective)
        if "class_weights" not in objective
        else Classification(**objective),
        data,
        recipe,
        seed=seed,
        checkpoints=checkpoints or NoCheckpoints(),
        progress=progress,
        on_epoch=told.append,
        from_trained=from_trained,
        out_of_time=out_of_time,
    )
    assert told == result.log
    return network, result


def weights_of(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def without_clock(log):
    return [{key: value for key, value in asdict(entry).items() if key not in CLOCK} for entry in log]


def watch(network):
    """Record what the network is given: in training, and when it is measured."""
    given = {True: [], False: []}
    network.register_forward_pre_hook(lambda module, inputs: given[module.training].append(inputs[0].clone()))
    return given


def originals(data, rows):
    return torch.from_numpy(data.pixels[rows]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("classes", [2, 3])
def test_a_batch_in_parts_teaches_the_same(classes):
    """Where the network allows it: all of a batch's maps need not be in memory at once."""
    weights = torch.tensor([0.5, 1.5, 1.0])[:classes]
    found = []
    for at_once in (None, 3):
        data, recipe = toy(classes=classes), settings(label_smoothing=0.1, augment="mixup 0.5")
        network = build(data, recipe, classes)
        network.images_at_once = at_once
        given = watch(network)
        train(recipe, data, classes=classes, network=network, class_weights=weights, label_smoothing=0.1)
        found.append((weights_of(network), given))
    (whole, given_whole), (parts, given_parts) = found
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)
    assert max(map(len, given_whole[True])) == 8
    assert max(map(len, given_parts[True])) == 3
    assert torch.equal(torch.cat(given_whole[True]), torch.cat(given_parts[True]))


def rows_of(images):
    return [round(float(image[0, 0, 0]) * 255) for image in images]


# What it learns, and what it says


@pytest.mark.parametrize(
    ("classes", "changes"),
    [
        (2, {}),
        (3, {}),
        (3, {"layers": FULL, "augment": "flip both"}),
        (3, {"precision": "bf16"}),
        (2, {"precision": "bf16"}),
        (3, {"optimizer": "sgd", "lr": 0.05, "clip_norm": 1.0}),
        (3, {"optimizer": "adamw", "weight_decay": 0.05, "schedule": "one-cycle", "label_smoothing": 0.1}),
        (2, {"schedule": "cosine", "warmup_epochs": 1.0, "ema_decay": 0.9}),
    ],
)
def test_it_learns_what_can_be_learned(classes, changes):
    changes = {"layers": "conv 8x3, pool 2, flatten, dense 32", **changes}  # none so small that it can die
    network, result = train(settings(epochs=15, **changes), classes=classes)
    first, last = result.log[0], result.log[-1]
    assert [entry.epoch for entry in result.log] == list(range(1, 16))
    assert last.val_accuracy >= 0.85
    assert last.train_accuracy >= 0.95
    assert last.train_loss < 0.5 * first.train_loss
    assert last.running_loss < first.running_loss
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())
    assert not result.interrupted


def test_bf16_is_not_f32():
    first, _ = train(settings(epochs=1))
    second, _ = train(settings(epochs=1, precision="bf16"))
    assert not same_bits(weights_of(first), weights_of(second))


def test_the_log_of_an_epoch_is_measured_on_images_as_they_are():
    """With a learning rate of next to nothing, every number can be computed from the network as it began."""
    data, weights, smoothing = toy(), torch.tensor([2.0, 0.5, 0.5]), 0.3
    recipe = settings(epochs=1, lr=1e-9)
    network = build(data, recipe, 3)
    with torch.no_grad():
        logits = network(originals(data, np.arange(45)))["logits"]
    labels = torch.from_numpy(data.labels)
    _, result = train(recipe, data, network=network, class_weights=weights, label_smoothing=smoothing)
    entry = result.log[0]
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    right = (logits.argmax(dim=1) == labels).float()
    assert entry.running_loss == pytest.approx(float((losses * weights[labels])[:36].mean()), rel=1e-4)
    assert entry.running_accuracy == pytest.approx(float(right[:36].mean()))
    assert entry.train_loss == pytest.approx(float(F.cross_entropy(logits[:36], labels[:36])), rel=1e-4)
    assert entry.train_accuracy == pytest.approx(float(right[:36].mean()))
    assert entry.val_loss == pytest.approx(float(F.cross_entropy(logits[36:], labels[36:])), rel=1e-4)
    assert entry.val_accuracy == pytest.approx(float(right[36:].mean()))
    assert (entry.epoch, entry.epochs, entry.lr) == (1, 1, 1e-9)
    assert entry.images_per_s > 0
    assert entry.seconds > 0


def test_without_val_images_the_last_epoch_is_kept():
    data, recipe = toy(val=0), settings()
    network = build(data, recipe, 3)
    states = []
    _, result = train(recipe, data, network=network, progress=lambda *_: states.append(weights_of(network)))
    assert all(entry.val_loss is None and entry.val_accuracy is None for entry in result.log)
    assert result.best_epoch == 3
    assert same_bits(weights_of(network), states[-1])


def test_progress_counts_images():
    said = []
    train(settings(epochs=2), toy(train=20), progress=lambda *arguments: said.append(arguments))
    assert said == [("training", seen, 40) for seen in (8, 16, 20, 28, 36, 40)]


# What the network is given


def test_only_training_images_are_augmented():
    data = toy()
    recipe = settings(augment=WILD, epochs=2)
    network = build(data, recipe, 3)
    given = watch(network)
    train(recipe, data, network=network)
    measured = torch.cat(given[False])
    expected = torch.cat([originals(data, data.train), originals(data, data.val)])
    assert len(measured) == 2 * len(expected)
    for epoch in measured.split(len(expected)):
        assert sorted(map(rows_of_bytes, epoch)) == sorted(map(rows_of_bytes, expected))
    known = {rows_of_bytes(image) for image in expected}
    trained = torch.cat(given[True])
    assert len(trained) == 2 * len(data.train)
    assert not known & {rows_of_bytes(image) for image in trained}


def rows_of_bytes(image):
    return image.contiguous().numpy().tobytes()


def test_calib_images_are_not_augmented():
    data, recipe = toy(), settings(layers=FULL)
    network = build(data, recipe, 3)
    given = watch(network)
    logits = class_logits(network, Classification(class_weights=torch.ones(3)), data, data.val)
    assert torch.equal(given[False][0], originals(data, data.val))
    assert logits.shape == (9, 3)
    assert not network.training
    assert class_logits(network, Classification(class_weights=torch.ones(3)), data, data.val[:0]).shape == (
        0,
        3,
    )


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (16, 8, [8, 8]),
        (17, 8, [8, 9]),  # batch norm cannot learn from one image
        (18, 8, [8, 8, 2]),
        (9, 8, [9]),
        (5, 8, [5]),
        (3, 2, [3]),
        (6, 2, [2, 2, 2]),
    ],
)
def test_every_image_is_seen_once_an_epoch(images, batch_size, sizes):
    data = toy(train=images, val=3)
    recipe = settings(epochs=3, batch_size=batch_size, layers=FULL)
    network = build(data, recipe, 3)
    given = watch(network)
    train(recipe, data, network=network)
    assert [len(batch) for batch in given[True]] == 3 * sizes
    orders = [rows_of(epoch) for epoch in torch.cat(given[True]).split(images)]
    assert all(sorted(order) == list(range(images)) for order in orders)
    if images > 8:
        assert orders[0] != orders[1] != orders[2]


def test_a_large_training_set_is_measured_on_a_fixed_sample(monkeypatch):
    monkeypatch.setattr(loop_module, "MAX_TRAIN_SAMPLE", 5)
    data, recipe = toy(), settings(epochs=2)
    network = build(data, recipe, 3)
    given = watch(network)
    train(recipe, data, network=network)
    samples = [rows_of(batch) for batch in given[False]][::2]
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == 5
    assert set(samples[0]) <= set(range(36))


def test_memory_mapped_pixels_give_the_same(tmp_path):
    data = toy()
    mapped = np.memmap(tmp_path / "pixels", dtype=np.uint8, mode="w+", shape=data.pixels.shape)
    mapped[:] = data.pixels
    first, _ = train(settings(augment=WILD), data)
    second, _ = train(settings(augment=WILD), replace(data, pixels=mapped))
    assert same_bits(weights_of(first), weights_of(second))


def test_where_an_image_lies_in_the_table_changes_nothing():
    """That depends on the cache, which the same run finds empty one day and full the next."""
    data = toy()
    place = np.random.default_rng(0).permutation(len(data.labels))
    moved = replace(
        data,
        pixels=data.pixels[np.argsort(place)],
        labels=data.labels[np.argsort(place)],
        train=place[data.train],
        val=place[data.val],
    )
    first, result = train(settings(layers=FULL, augment=WILD), data)
    second, other = train(settings(layers=FULL, augment=WILD), moved)
    assert same_bits(weights_of(first), weights_of(second))
    assert without_clock(result.log) == without_clock(other.log)


# Chance


def test_the_seed_decides_and_nothing_else():
    recipe = settings(layers=FULL, augment="zoom 0.2, mixup 0.2")
    torch.manual_seed(11)
    expected = torch.rand(4)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(11)
        network, result = train(recipe, seed=seed)
        assert torch.equal(torch.rand(4), expected), "the global random state was changed"
        runs.append((weights_of(network), without_clock(result.log)))
        np.random.seed(len(runs))  # noqa: NPY002  somebody else's draws
    assert same_bits(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same_bits(runs[0][0], runs[2][0])


@pytest.mark.parametrize("changes", [{"layers": FULL}, {"augment": "shift 0.2"}])
def test_dropout_and_augmentation_differ_from_step_to_step(changes):
    """Twice the same images in an epoch of one batch each: the losses still differ, though nothing is learned."""
    _, result = train(settings(lr=1e-9, epochs=3, batch_size=64, **changes))
    assert len({round(entry.running_loss, 9) for entry in result.log}) == 3


# What is minimised


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_pytorchs(classes, smoothing, weighted):
    rng = torch.Generator().manual_seed(classes)
    weights = torch.rand(classes, generator=rng) + 0.5 if weighted else torch.ones(classes)
    objective = Classification(class_weights=weights, label_smoothing=smoothing)
    labels = torch.arange(20) % classes
    logits = 3 * torch.randn(20, objective.num_outputs, generator=rng)
    found = objective.loss(logits, objective.targets(labels))
    pairs = torch.cat([-logits / 2, logits / 2], dim=1) if classes == 2 else logits
    losses = F.cross_entropy(pairs, labels, label_smoothing=smoothing, reduction="none")
    assert float(found) == pytest.approx(float((losses * weights[labels]).mean()), rel=1e-5)
    if not smoothing:
        summed = F.cross_entropy(pairs, labels, weight=weights, reduction="sum")
        assert float(found) == pytest.approx(float(summed) / 20, rel=1e-5)
    if classes == 2:
        target = labels * (1 - smoothing) + smoothing / 2
        binary = F.binary_cross_entropy_with_logits(logits[:, 0], target, weight=weights[labels])
        assert float(found) == pytest.approx(float(binary), rel=1e-5)


def test_one_logit_is_the_same_as_two_classes():
    objective = Classification(class_weights=torch.ones(2))
    logits = torch.tensor([[-30.0], [-2.0], [0.0], [0.5], [30.0]])
    probs = objective.class_logits(logits).softmax(dim=1)
    assert torch.allclose(probs[:, 1], torch.sigmoid(logits[:, 0]))
    assert torch.allclose(probs.sum(dim=1), torch.ones(5))
    assert torch.equal(objective.targets(torch.tensor([0, 1])), torch.eye(2))
    many = torch.randn(4, 3)
    assert torch.equal(Classification(class_weights=torch.ones(3)).class_logits(many), many)


def test_blended_targets_weigh_by_their_shares():
    objective = Classification(class_weights=torch.tensor([1.0, 4.0, 1.0]))
    logits = torch.tensor([[0.3, -0.2, 1.0]])
    pure = [
        float(objective.loss(logits, objective.targets(torch.tensor([k])))) / float(w) for k, w in ((0, 1), (1, 4))
    ]
    found = objective.loss(logits, torch.tensor([[0.75, 0.25, 0.0]]))
    assert float(found) == pytest.approx((0.75 * 1 + 0.25 * 4) * (0.75 * pure[0] + 0.25 * pure[1]), rel=1e-5)


@pytest.mark.parametrize("augment", ["mixup 1", "cutmix 1", ""])
def test_targets_are_blended_as_the_images_are(augment, monkeypatch):
    """Images of one colour a class: what is left of the colours is what the targets must say."""
    data = toy()
    data = replace(
        data, pixels=np.broadcast_to(255 * np.eye(3)[data.labels][:, None, None], data.pixels.shape).astype("u1")
    )
    recipe = settings(augment=augment, epochs=1)
    network = build(data, recipe, 3)
    images, targets = watch(network)[True], []
    real = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda it, x, t: targets.append(t) or real(it, x, t))
    train(recipe, data, network=network)
    colors, targets = torch.cat(images).mean(dim=(2, 3)), torch.cat(targets)
    assert torch.allclose(colors, targets, atol=1e-4)
    assert bool(((targets > 0.01) & (targets < 0.99)).any()) is bool(augment)


def test_class_weights_reach_the_gradient():
    """A class of weight 0 teaches nothing: it is never the answer."""
    data = toy()
    found = {}
    for name, weights in (("blind", [0.0, 1.5, 1.5]), ("seeing", [1.0, 1.0, 1.0])):
        network, _ = train(settings(epochs=10), data, class_weights=torch.tensor(weights))
        logits = class_logits(network, Classification(class_weights=torch.ones(3)), data, data.train)
        found[name] = logits.argmax(dim=1)[torch.from_numpy(data.labels[data.train]) == 0]
    assert (found["seeing"] == 0).all()
    assert not (found["blind"] == 0).any()


# How it steps


@pytest.mark.parametrize(
    ("schedule", "total", "warmup", "expected"),
    [
        ("constant", 4, 0, [1, 1, 1, 1]),
        ("constant", 4, 2, [1 / 3, 2 / 3, 1, 1]),
        ("cosine", 4, 0, [1, 0.853553, 0.5, 0.146447]),
        ("cosine", 6, 2, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
        ("cosine", 1, 0, [1]),
        ("one-cycle", 1, 0, [1]),
        ("one-cycle", 10, 0, [0.2575, 0.7525, 1, 0.962320, 0.854999, 0.694423, 0.505, 0.315577, 0.155, 0.047680]),
        ("one-cycle", 10, 5, [0.2575, 0.7525, 1, 0.962320, 0.854999, 0.694423, 0.505, 0.315577, 0.155, 0.047680]),
    ],
)
def test_learning_rates(schedule, total, warmup, expected):
    found = [lr_factor(step, total, schedule=schedule, warmup_steps=warmup) for step in range(total)]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 7, 20, 333, 5000])
@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [("constant", 0), ("constant", 3), ("cosine", 0), ("cosine", 3), ("cosine", 5000), ("one-cycle", 0)],
)
def test_learning_rates_rise_once_and_fall_once(schedule, warmup, total):
    found = [lr_factor(step, total, schedule=schedule, warmup_steps=warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    if warmup < total:
        assert max(found) > 0.9
    if schedule != "constant":
        assert found.count(max(found)) == 1
        if total >= 333 and warmup < total:
            assert found[-1] < 0.02
    if schedule == "one-cycle" and total >= 20:
        assert peak == pytest.approx(0.3 * total, abs=2)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"schedule": "constant"}, 0),
        ({"schedule": "cosine", "warmup_epochs": 0.5}, 2),
        ({"schedule": "constant", "warmup_epochs": 2.0}, 10),
        ({"schedule": "one-cycle"}, 0),
    ],
)
def test_the_schedule_is_the_loops(changes, steps, monkeypatch):
    used = []

    class Spied(Optimizer):
        def step(self, lr):
            used.append(lr)
            super().step(lr)

    monkeypatch.setattr(loop_module, "Optimizer", Spied)
    recipe = settings(**changes)
    _, result = train(recipe)
    expected = [0.01 * lr_factor(i, 15, schedule=recipe.schedule, warmup_steps=steps) for i in range(15)]
    assert used == pytest.approx(expected)
    assert [entry.lr for entry in result.log] == pytest.approx(expected[4::5])


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ({}, lambda groups: torch.optim.Adam(groups, lr=0.01, eps=1e-7)),
        ({"weight_decay": 0.1}, lambda groups: torch.optim.Adam(groups, lr=0.01, eps=1e-7)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, lambda groups: torch.optim.AdamW(groups, lr=0.01, eps=1e-7)),
        ({"optimizer": "sgd", "momentum": 0.0}, lambda groups: torch.optim.SGD(groups, lr=0.01)),
        (
            {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1},
            lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.8, nesterov=True),
        ),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_optimisers_are_pytorchs(changes, reference, frozen):
    """And only kernels and matrices decay: biases and batch norm do not, and frozen weights stay as they are."""
    data, recipe = toy(), settings(layers=FULL.replace("dropout 0.3, ", ""), **changes)
    ours, theirs = build(data, recipe, 3), build(data, recipe, 3)
    for network in (ours, theirs):
        network.to(memory_format=torch.channels_last)
        network.trunk.conv_1.weight.requires_grad_(not frozen)
    optimizer = Optimizer(ours, recipe)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    expected = reference(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    images, labels = originals(data, data.train), torch.from_numpy(data.labels[data.train])
    before = weights_of(ours)
    for _ in range(5):
        for network in (ours, theirs):
            F.cross_entropy(network(images)["logits"], labels).backward()
        optimizer.step(0.01)
        expected.step()
        expected.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6), name
    moved = {name for name, value in ours.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - ({"trunk.conv_1.weight"} if frozen else set())


def flat(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_clipped_gradients_are_no_longer_than_asked_for():
    lengths = {}
    for clip_norm in (0.0, 0.01):
        recipe = settings(optimizer="sgd", momentum=0.0, lr=1.0, clip_norm=clip_norm, epochs=1)
        data = toy()
        network = build(data, recipe, 3)
        vectors = [flat(network)]
        train(recipe, data, network=network, progress=lambda *_, n=network, v=vectors: v.append(flat(n)))
        lengths[clip_norm] = [float((b - a).norm()) for a, b in pairwise(vectors)]
    assert lengths[0.01] == pytest.approx([0.01] * 5, rel=1e-2)
    assert max(lengths[0.0]) > 0.05


# What is kept


def test_averaged_weights_are_the_ones_measured_and_kept():
    data = toy(val=0)
    recipe = settings(layers=FULL, ema_decay=0.8, epochs=2)
    network = build(data, recipe, 3)
    average = weights_of(network)
    own, steps = [], 0

    def follow(*_):
        nonlocal steps
        steps += 1
        decay = min(0.8, steps / (steps + 10))
        for name, value in network.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
        own.append(weights_of(network))

    _, result = train(recipe, data, network=network, progress=follow)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, average[name], atol=1e-6), name
    assert not same_bits(own[-1], weights_of(network))
    loss = F.cross_entropy(
        class_logits(network, Classification(class_weights=torch.ones(3)), data, data.train),
        torch.from_numpy(data.labels),
    )
    assert result.log[-1].train_loss == pytest.approx(float(loss), rel=1e-5)


def test_averaging_does_not_change_the_course():
    """The averages are put into the network to be measured, and taken out again."""
    courses = []
    for ema_decay in (0.0, 0.9):
        recipe, data, course = settings(layers=FULL, ema_decay=ema_decay), toy(), []
        network = build(data, recipe, 3)
        train(recipe, data, network=network, progress=lambda *_, n=network, c=course: c.append(weights_of(n)))
        courses.append(course)
    assert len(courses[0]) == 15
    assert all(same_bits(a, b) for a, b in zip(*courses, strict=True))


def test_averaging_begins_quickly_and_ends_slowly():
    network = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(network.weight)
    average = AveragedWeights(network, 0.5)
    torch.nn.init.ones_(network.weight)
    found = []
    for _ in range(15):
        average.update(network)
        found.append(1 - float(average.state["weight"]))
    ratios = [b / a for a, b in pairwise([1.0, *found])]
    assert ratios == pytest.approx([min(0.5, n / (n + 10)) for n in range(1, 16)], rel=1e-3)


def against(data):
    """Val images with the labels of another class: the more is learned, the higher their loss."""
    labels = data.labels.copy()
    labels[data.val] = (labels[data.val] + 1) % 3
    return replace(data, labels=labels)


@pytest.mark.parametrize(
    ("patience", "turned", "epochs"), [(0, True, 8), (1, True, 2), (3, True, 4), (3, False, 8), (50, True, 8)]
)
def test_it_stops_when_val_has_waited_long_enough(patience, turned, epochs):
    data = against(toy()) if turned else toy()
    _, result = train(settings(epochs=8, patience=patience), data)
    assert len(result.log) == epochs
    assert not result.interrupted


def test_the_weights_of_the_lowest_val_loss_are_kept():
    data = against(toy())
    recipe = settings(epochs=6, lr=0.003)
    network = build(data, recipe, 3)
    after = {}
    count = 0

    def note(*_):
        nonlocal count
        count += 1
        if count % 5 == 0:
            after[count // 5] = weights_of(network)

    _, result = train(recipe, data, network=network, progress=note)
    losses = [entry.val_loss for entry in result.log]
    assert result.best_epoch == losses.index(min(losses)) + 1 < 6
    assert same_bits(weights_of(network), after[result.best_epoch])
    logits = class_logits(network, Classification(class_weights=torch.ones(3)), data, data.val)
    assert float(F.cross_entropy(logits, torch.from_numpy(data.labels[data.val]))) == pytest.approx(min(losses))


@pytest.mark.parametrize(
    ("lr", "epochs", "val", "averaged"),
    [(0.003, 5, 90, True), (0.01, 5, 90, False), (0.003, 1, 90, False), (0.003, 5, 0, False)],
)
def test_of_a_trained_network_the_mean_of_the_epochs_is_kept_where_val_prefers_it(lr, epochs, val, averaged):
    data = toy(val=val)
    recipe = settings(epochs=epochs, lr=lr)
    network = build(data, recipe, 3)
    objective = Classification(class_weights=torch.ones(3))
    states = []

    def note(*_):
        states.append(weights_of(network))

    _, result = train(recipe, data, network=network, progress=note, from_trained=True)
    ends = states[4::5]
    mean = {name: torch.stack([end[name] for end in ends]).mean(dim=0) for name in ends[0]}
    kept = weights_of(network)
    same = all(torch.allclose(kept[name], mean[name], atol=1e-6) for name in mean)
    assert (result.averaged_epochs, same or epochs == 1) == (epochs if averaged else 0, averaged or epochs == 1)
    if val:
        found = _measured(network, objective, data)
        assert result.val_after == pytest.approx(found)
        single = max((entry.val_accuracy, -entry.val_loss) for entry in result.log)
        assert not averaged or (found[1], -found[0]) > single
    else:
        assert (result.best_epoch, result.val_after) == (epochs, None)


def _measured(network, objective, data):
    logits, labels = class_logits(network, objective, data, data.val), torch.from_numpy(data.labels[data.val])
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).float().mean())


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (5, 1), (7, 2)])
def test_time_up_in_an_epoch_keeps_what_it_has_taught(steps, epochs):
    """Five steps are an epoch of 36 images in batches of 8."""
    data, recipe, states = toy(), settings(lr=0.03), []
    network = build(data, recipe, 3)
    _, result = train(
        recipe,
        data,
        network=network,
        progress=lambda *_: states.append(weights_of(network)),
        out_of_time=lambda: len(states) == steps,
    )
    assert (len(states), len(result.log), result.interrupted) == (steps, epochs, False)
    best = min(range(epochs), key=lambda i: result.log[i].val_loss)
    assert result.best_epoch == best + 1
    assert same_bits(weights_of(network), states[min(5 * best + 4, steps - 1)])
    loss, _ = _measured(network, Classification(class_weights=torch.ones(3)), data)
    assert result.log[best].val_loss == pytest.approx(loss)
    _, whole = train(recipe)
    if steps % 5:  # the mean of so many images, not of a whole epoch's
        assert result.log[-1].running_loss > 0.9 * whole.log[epochs - 1].running_loss


def test_a_network_from_nothing_has_no_mean():
    _, result = train(settings(epochs=4, lr=0.1, optimizer="sgd", schedule="constant"))
    assert result.averaged_epochs == 0
    entry = result.log[result.best_epoch - 1]
    assert result.val_after == (entry.val_loss, entry.val_accuracy)


# When something breaks


class Broken(torch.nn.Module):
    """A network whose logits are not finite for one image, or whenever it is measured."""

    def __init__(self, network, *, row=None):
        super().__init__()
        self.network, self.row = network, row

    def forward(self, images):
        logits = self.network(images)["logits"]
        bad = [row == self.row if self.training else self.row is None for row in rows_of(images)]
        return {"logits": torch.where(torch.tensor(bad)[:, None], math.nan, logits)}


def test_a_loss_that_is_not_finite_names_step_and_files():
    data, recipe, checkpoints = toy(), settings(), NoCheckpoints()
    network = Broken(build(data, recipe, 3), row=7)
    given = watch(network)
    with pytest.raises(TrainingError) as caught:
        train(recipe, data, network=network, checkpoints=checkpoints)
    assert caught.value.code == "loss-not-finite"
    batch = rows_of(given[True][-1])
    assert f"step {len(given[True])} of epoch 1" in caught.value.message
    assert 7 in batch
    assert caught.value.message.endswith("with " + ", ".join(f"{row}.png" for row in batch))
    assert "lr" in caught.value.hint
    assert checkpoints.saved == 0


@pytest.mark.parametrize("val", [0, 9])
def test_broken_weights_are_never_kept(val):
    """The last step of an epoch can break them, and only measuring shows it."""
    data, recipe, checkpoints = toy(val=val), settings(), NoCheckpoints()
    with pytest.raises(TrainingError) as caught:
        train(recipe, data, network=Broken(build(data, recipe, 3)), checkpoints=checkpoints)
    assert caught.value.code == "loss-not-finite"
    assert "epoch 1" in caught.value.message
    assert checkpoints.saved == 0


@pytest.mark.parametrize(("compile_", "calls"), [("never", 0), ("auto", 0), ("always", 1)])
def test_compiling_is_for_long_runs_on_a_gpu(compile_, calls, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network.forward)
    train(settings(compile=compile_))
    assert len(compiled) == calls


# Stopping and going on


RESUMED = {
    "adamw": {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "one-cycle",
        "ema_decay": 0.9,
        "augment": "zoom 0.2, rotation 10, mixup 0.2",
        "label_smoothing": 0.1,
    },
    "sgd": {"optimizer": "sgd", "schedule": "cosine", "augment": "cutmix 1", "clip_norm": 1.0},
    "adam": {"schedule": "constant", "warmup_epochs": 1.0, "ema_decay": 0.5, "augment": "flip both"},
}


def stopping_at(steps):
    """A progress that types Ctrl-C in the given steps, counted from 1."""
    count = 0

    def progress(*_):
        nonlocal count
        count += 1
        if count in steps:
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.fixture
def _handler():
    """Python's own answer to Ctrl-C, whatever the tests were started from."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler was not given back"
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize("from_trained", [False, True])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(name, from_trained, tmp_path):
    recipe = settings(layers=FULL, **RESUMED[name])
    network, expected = train(recipe, checkpoints=CheckpointFolder(tmp_path / "whole"), from_trained=from_trained)
    for step in range(1, 15):
        folder = CheckpointFolder(tmp_path / str(step))
        _, stopped = train(recipe, checkpoints=folder, progress=stopping_at({step}), from_trained=from_trained)
        assert stopped.interrupted
        assert len(stopped.log) == step // 5
        other, found = train(recipe, checkpoints=folder, from_trained=from_trained)
        assert same_bits(weights_of(other), weights_of(network)), step
        assert without_clock(found.log) == without_clock(expected.log)
        assert found.best_epoch == expected.best_epoch
        assert found.val_after == expected.val_after
        assert not found.interrupted
        assert found.seconds > stopped.seconds


@pytest.mark.usefixtures("_handler")
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(tmp_path):
    recipe = settings(layers=FULL, **RESUMED["adamw"])
    network, expected = train(recipe)
    checkpoints, stops = CheckpointFolder(tmp_path), 0
    other, found = train(recipe, checkpoints=checkpoints, progress=stopping_at({1}))
    while found.interrupted and stops < 20:
        stops += 1
        other, found = train(recipe, checkpoints=checkpoints, progress=stopping_at({1}))
    assert stops == 14
    assert same_bits(weights_of(other), weights_of(network))
    assert without_clock(found.log) == without_clock(expected.log)


@pytest.mark.usefixtures("_handler")
def test_patience_is_not_forgotten(tmp_path):
    recipe, data = settings(epochs=8, patience=3), against(toy())
    _, expected = train(recipe, data)
    checkpoints = CheckpointFolder(tmp_path)
    train(recipe, data, checkpoints=checkpoints, progress=stopping_at({12}))
    _, found = train(recipe, data, checkpoints=checkpoints)
    assert without_clock(found.log) == without_clock(expected.log)
    _, again = train(recipe, data, checkpoints=checkpoints)  # of a run that had ended, too
    assert without_clock(again.log) == without_clock(expected.log)


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize(("step", "best"), [(3, 0), (7, 1), (10, 2)])
def test_a_stopped_run_has_the_best_weights_so_far(step, best, tmp_path):
    recipe = settings(layers=FULL, ema_decay=0.9)
    seen = {}
    count = 0

    def progress(*_):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGINT)

    network, stopped = train(recipe, checkpoints=CheckpointFolder(tmp_path), progress=progress)
    assert stopped.interrupted
    assert stopped.best_epoch == (min(range(best), key=lambda i: stopped.log[i].val_loss) + 1 if best else 0)
    logits = class_logits(network, Classification(class_weights=torch.ones(3)), toy(), toy().val)
    seen["loss"] = float(F.cross_entropy(logits, torch.from_numpy(toy().labels[toy().val])))
    if best:
        assert seen["loss"] == pytest.approx(min(entry.val_loss for entry in stopped.log))
    else:
        assert not same_bits(weights_of(network), weights_of(build(toy(), recipe, 3))), "nothing was learned"


@pytest.mark.usefixtures("_handler")
def test_the_second_ctrl_c_stops_at_once():
    count, checkpoints = 0, NoCheckpoints()

    def progress(*_):
        nonlocal count
        count += 1
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(), checkpoints=checkpoints, progress=progress)
    assert count == 1
    assert checkpoints.saved == 0


@pytest.mark.usefixtures("_handler")
def test_the_last_step_cannot_be_interrupted():
    _, result = train(settings(), progress=stopping_at({15}))
    assert not result.interrupted
    assert len(result.log) == 3


def test_it_trains_in_any_thread():
    """Only the main thread may handle signals: in others there is no Ctrl-C to be asked."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(settings())[1]))
    thread.start()
    thread.join()
    assert [len(result.log) for result in results] == [3]


@pytest.mark.parametrize(("minutes_a_step", "saves"), [(0.0, 3), (3.0, 3 + 6), (6.0, 3 + 12)])
def test_checkpoints_come_with_epochs_and_with_time(minutes_a_step, saves, monkeypatch):
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=loop_module.time.perf_counter)
    monkeypatch.setattr(loop_module, "time", clock)

    def pass_time(*_):
        nonlocal now
        now += 60 * minutes_a_step

    checkpoints = NoCheckpoints()
    train(settings(checkpoint_minutes=5.0), checkpoints=checkpoints, progress=pass_time)
    assert checkpoints.saved == saves
