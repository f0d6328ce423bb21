"""Fine-tuning: the trained stages are the backbone's own, start as the probe, and never ship anything worse."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

import tellapart  # noqa: E402
from tellapart.errors import RecipeError  # noqa: E402
from tellapart.inference.bundled import (  # noqa: E402
    BUNDLED,
    build_backbone,
    fold_norm,
    read_weights,
    unfold_norm,
)
from tellapart.inference.model import LinearHead, read_model  # noqa: E402
from tellapart.training import finetune as finetune_module  # noqa: E402
from tellapart.training import loop  # noqa: E402
from tellapart.training import train as train_module  # noqa: E402
from tellapart.training.finetune import ViewData, _frozen_stages, _map_side, _output_layer  # noqa: E402
from tellapart.training.loop import train_network  # noqa: E402
from tellapart.training.loop_recipe import finetune  # noqa: E402
from tellapart.training.optim import Optimizer  # noqa: E402
from tellapart.training.probe import fit_head, fit_probe, is_better  # noqa: E402
from tellapart.training.recipes import build_recipe  # noqa: E402
from tellapart.training.tail import Tail, depth_below_head, tail_state  # noqa: E402

LITE0 = "efficientnet_lite0"
WIDE = {"feature_stages": (3, 4, 5, 6, 7, 8), "feature_pooling": "mean-max"}
QUICK = {"epochs": 2, "input_size_px": 32, "views": 2, "train_stages": 2, "batch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def state():
    return read_weights(LITE0)


def answers(graph, images):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(
        zip([port.name for port in session.get_outputs()], session.run(None, {"images": images}), strict=True)
    )


def tail_of(state, recipe, outputs=3):
    cut = 8 - recipe.train_stages
    whole = build_backbone(state, BUNDLED[LITE0], recipe.feature_stages, recipe.feature_pooling)
    dim = whole.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    rng = np.random.default_rng(0)
    head = LinearHead(
        weight=rng.normal(size=(dim, max(2, outputs))).astype(np.float32),
        bias=rng.normal(size=max(2, outputs)).astype(np.float32),
    )
    return head, Tail(
        state,
        BUNDLED[LITE0],
        cut=cut,
        map_side=_map_side(recipe, cut),
        feature_stages=recipe.feature_stages,
        pooling=recipe.feature_pooling,
        head=head,
        outputs=outputs,
    )


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"train_stages": 1}, 64),
        ({"train_stages": 3}, 64),
        ({"train_stages": 3}, 97),
        ({"train_stages": 6}, 75),
        ({"train_stages": 2, **WIDE}, 64),
        ({"train_stages": 4, "feature_stages": (2, 5, 7), "feature_pooling": "mean"}, 64),
    ],
)
def test_frozen_stages_and_tail_are_the_whole_backbone(state, settings, side):
    """As they come, and after training: what the file will hold answers as what was trained."""
    recipe = finetune(input_size_px=side, **settings)
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (2, 4, 4, 3)).repeat(-(-side // 4), axis=1).repeat(-(-side // 4), axis=2)
    images = images[:, :side, :side].astype(np.uint8)
    head, tail = tail_of(state, recipe)
    graph, pooled = _frozen_stages(recipe, 8 - recipe.train_stages)
    frozen = answers(graph, images)
    maps = frozen["maps"].transpose(0, 2, 3, 1).reshape(2, -1)
    given = torch.from_numpy(np.concatenate([maps, frozen["embedding"][:, :pooled]], axis=1))
    for trained in (False, True):
        if trained:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in tail.parameters():
                    parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
        learned = tail_state(state, tail, BUNDLED[LITE0])
        whole = build_backbone(learned, BUNDLED[LITE0], recipe.feature_stages, recipe.feature_pooling)
        expected = answers(whole.SerializeToString(), images)["embedding"]
        with torch.inference_mode():
            found = tail(given)
        assert np.abs(found["embedding"].numpy() - expected).max() < 1e-3 * np.abs(expected).max()
        with torch.inference_mode():  # so a batch may be learned from in parts
            alone = torch.cat([tail.train()(image)["embedding"] for image in given.split(1)])
        assert tail.images_at_once
        assert (alone - found["embedding"]).abs().max() < 1e-4 * np.abs(expected).max()
        if not trained:
            original = build_backbone(state, BUNDLED[LITE0], recipe.feature_stages, recipe.feature_pooling)
            untouched = answers(original.SerializeToString(), images)["embedding"]
            assert np.abs(untouched - expected).max() < 1e-3 * np.abs(expected).max()
            logits = head.logits(expected)
            assert np.abs(found["logits"].numpy() - logits).max() < 1e-3 * np.abs(logits).max()


def test_two_classes_have_one_logit(state):
    recipe = finetune(input_size_px=32, train_stages=1, feature_stages=(8,))
    head, tail = tail_of(state, recipe, outputs=1)
    given = torch.rand(3, 320)
    with torch.inference_mode():
        found = tail(given)
    both = head.logits(found["embedding"].numpy())
    assert found["logits"][:, 0].numpy() == pytest.approx(both[:, 1] - both[:, 0], abs=1e-3)


def test_folding_back_and_forth(state):
    folded = fold_norm(state, "_conv_head", "_bn1")
    again = fold_norm(unfold_norm(*folded, "_conv_head", "_bn1"), "_conv_head", "_bn1")
    for before, after in zip(folded, again, strict=True):
        assert after == pytest.approx(before, rel=1e-6, abs=1e-9)


def test_learning_rates_fall_towards_the_image(state):
    recipe = finetune(input_size_px=32, optimizer="sgd", momentum=0.0, weight_decay=0.0, train_stages=3)
    _, tail = tail_of(state, recipe)
    depths = {name: depth_below_head(name) for name, _ in tail.named_parameters()}
    assert {name.split(".")[1] if name.startswith("stages") else name: d for name, d in depths.items()} == {
        "6": 3, "7": 2, "8": 1, "output.weight": 0, "output.bias": 0,
    }  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in tail.named_parameters()}
    optimizer = Optimizer(tail, recipe, lambda name: 0.5 ** depths[name])
    for parameter in tail.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    for name, parameter in tail.named_parameters():
        moved = 0.0 if ".depthwise." in name else 0.1 * 0.5 ** depths[name]
        assert (before[name] - parameter).mean().item() == pytest.approx(moved, rel=1e-3)


def test_views_are_taken_at_random_and_val_as_it_is():
    views = np.arange(7, dtype=np.float16)[:, None]
    data = ViewData(
        labels=np.zeros(3, dtype=np.int64),
        names=["a", "b", "c"],
        train=np.array([0, 2]),
        val=np.array([1]),
        views=views,
        first=np.array([0, 3, 4]),
        count=np.array([3, 1, 3]),
    )
    cpu = torch.device("cpu")
    assert data.plain(np.array([2, 1, 0]), cpu).flatten().tolist() == [4, 3, 0]
    settings = loop.parse_augment("")
    seen = [
        data.augmented(np.array([0, 2]), settings, np.random.default_rng(seed), cpu)[0].flatten().tolist()
        for seed in range(40)
    ]
    assert {first for first, _ in seen} == {0, 1, 2}
    assert {second for _, second in seen} == {4, 5, 6}


def test_mixup_blends_what_was_computed_of_two_images():
    views = np.arange(6, dtype=np.float16)[:, None]
    one = np.ones(6, dtype=np.int64)
    data = ViewData(
        labels=np.arange(6),
        names=[""] * 6,
        train=np.arange(6),
        val=one[:0],
        views=views,
        first=np.arange(6),
        count=one,
    )
    rows = np.arange(6)
    settings = loop.parse_augment("mixup 1")
    given, draws = data.augmented(rows, settings, np.random.default_rng(0), torch.device("cpu"))
    share, partner = draws.mix.share, draws.mix.partner
    assert 0 < share < 1
    assert given.flatten().tolist() == pytest.approx((share * rows + (1 - share) * partner).tolist(), abs=1e-5)
    assert np.array_equal(data.plain(rows, torch.device("cpu")).flatten().numpy(), rows)


@pytest.mark.parametrize(
    ("trained", "probe", "better"),
    [
        ((0.3, 0.9), (0.4, 0.8), True),
        ((0.3, 0.8), (0.4, 0.8), True),
        ((0.3, 0.8), (0.4, 0.9), False),  # they disagree: what is there stays
        ((0.5, 0.9), (0.4, 0.8), False),
        ((0.4, 0.8), (0.4, 0.8), False),
        (None, None, True),  # no val images
    ],
)
def test_what_ships_is_never_worse_on_val_than_the_probe(trained, probe, better):
    assert is_better(trained, probe) == better


def test_it_learns_and_keeps_the_better(photos, tmp_path):
    run = tellapart.train(photos, recipe="finetune", settings={**QUICK, **WIDE, "lr": 1e-3}, out=tmp_path / "run")
    fit = run.report["fit"]
    assert fit["epochs_trained"] == 2
    assert fit["best_epoch"] in (0, 1, 2)
    assert ("probe" in fit["kept"]) == (fit["best_epoch"] == 0)
    assert fit["log"][-1]["running_loss"] < fit["log"][0]["running_loss"]
    assert read_model(run.model_path).card.weights.license == "Apache-2.0"


@pytest.mark.parametrize("knows_nothing", ["the output layer", "the probe"])
def test_the_head_that_is_better_on_val_ships(knows_nothing, photos, tmp_path, monkeypatch):
    """The output layer as the loop left it, or a probe of what the trained stages give, which sees more of them."""
    found = {}

    def emptied(name, head):
        found.setdefault(name, []).append(head)
        return replace(head, weight=np.zeros_like(head.weight)) if name == knows_nothing else head

    def output_layer(*arguments):
        return emptied("the output layer", _output_layer(*arguments))

    def refit(*arguments, **settings):
        return emptied("the probe", fit_head(*arguments, **settings))

    def learned(*arguments, **settings):
        return replace(train_network(*arguments, **settings), best_epoch=1)

    monkeypatch.setattr(finetune_module, "_output_layer", output_layer)
    monkeypatch.setattr(finetune_module, "fit_head", refit)
    monkeypatch.setattr(finetune_module, "train_network", learned)
    monkeypatch.setattr(finetune_module, "is_better", lambda *_: True)
    run = tellapart.train(photos, recipe="finetune", settings=QUICK, out=tmp_path / "run")
    graph = onnx.load_model(run.model_path).graph
    weight = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "head.weight")
    fit = run.report["fit"]
    if knows_nothing == "the probe":
        (kept,) = found["the output layer"]
        assert (fit["kept"], fit["strength"]) == ("epoch 1", None)
        assert len(found["the probe"]) == len(build_recipe("finetune").strengths)
    else:
        kept = found["the probe"][sorted(build_recipe("finetune").strengths).index(fit["strength"])]
        assert fit["kept"] == "epoch 1, with a probe as its output layer"
        assert len(kept.weight) > len(found["the output layer"][0].weight)
    assert np.array_equal(weight, kept.weight)
    assert fit["val_after"][0] < np.log(3)
    assert run.report["verification"]["n"] > 0


def test_a_ruined_training_ships_the_probe(photos, tmp_path, monkeypatch):
    """Fitted again, on val too, which has done its work of choosing."""
    probes = []

    def recorded(embeddings, *arguments, **settings):
        probes.append((len(embeddings), fit_probe(embeddings, *arguments, **settings)))
        return probes[-1][1]

    monkeypatch.setattr(finetune_module, "fit_probe", recorded)
    settings = {**QUICK, "lr": 1.0, "warmup_epochs": 0, "ema_decay": 0, "schedule": "constant"}
    ruined = tellapart.train(photos, recipe="finetune", settings=settings, out=tmp_path / "a")
    assert ruined.report["fit"]["best_epoch"] == 0
    assert min(entry["val_loss"] for entry in ruined.report["fit"]["log"]) > 1
    splits = {name: sum(part.values()) for name, part in ruined.report["dataset"]["splits"].items()}
    assert [n for n, _ in probes] == [splits["train"], splits["train"], splits["train"] + splits["val"]]
    graph = onnx.load_model(ruined.model_path).graph
    weight = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "head.weight")
    assert np.array_equal(weight, probes[-1][1].head.weight)
    assert ruined.report["test"]["accuracy"]["value"] > 0.5


def test_without_val_the_last_epoch_ships(photos, tmp_path):
    run = tellapart.train(photos, recipe="finetune", settings={**QUICK, "val_fraction": 0.0}, out=tmp_path / "run")
    assert (run.report["fit"]["best_epoch"], run.report["fit"]["kept"]) == (2, "epoch 2")
    assert run.report["verification"]["n"] > 0
    assert run.report["test"]["n"] == 12


def test_where_somebody_else_compares_no_other_probe_is_fitted(photos, tmp_path, monkeypatch):
    lengths = []

    def recorded(embeddings, *arguments, **settings):
        lengths.append(len(embeddings))
        return fit_probe(embeddings, *arguments, **settings)

    monkeypatch.setattr(finetune_module, "fit_probe", recorded)
    monkeypatch.setattr(train_module, "open_loop_way", partial(train_module.open_loop_way, falls_back=False))
    settings = {**QUICK, "lr": 1.0, "warmup_epochs": 0, "ema_decay": 0, "schedule": "constant"}
    run = tellapart.train(photos, recipe="finetune", settings=settings, out=tmp_path / "a")
    assert lengths == [sum(run.report["dataset"]["splits"]["train"].values())]
    assert (run.report["fit"]["val_probe"], run.report["fit"]["kept"]) == (None, "epoch 0")  # the start, as it was
    assert run.report["test"]["accuracy"]["value"] > 0.5


def stop_after(monkeypatch, steps):
    """The loop is asked to stop after so many steps, as Ctrl-C does."""

    @contextmanager
    def requests():
        calls = iter(range(10**6))
        yield lambda: next(calls) >= steps

    monkeypatch.setattr(loop, "stop_requests", requests)


def test_stopped_and_gone_on_with_it_is_the_same_model(photos, tmp_path, monkeypatch):
    whole = tellapart.train(photos, recipe="finetune", settings=QUICK, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        first = tellapart.train(photos, recipe="finetune", settings=QUICK, out=tmp_path / "parts")
    assert first.interrupted
    assert first.report["fit"]["epochs_trained"] < 2
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))  # the views are computed again
    second = tellapart.resume(tmp_path / "parts")
    assert not second.interrupted
    cards = [read_model(run.model_path).card for run in (whole, second)]
    assert cards[0].graph_sha256 == cards[1].graph_sha256


def test_the_defaults():
    recipe = build_recipe("finetune")
    assert recipe.input_size_px == 224
    assert recipe.probe.feature_stages == recipe.feature_stages == (8,)
    assert recipe.fallback == build_recipe("probe")
    assert build_recipe("finetune", {"backbone": "efficientnet_lite1"}).input_size_px == 240


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "resnet50"}, "efficientnet_lite0"),
        ({"augment": "cutmix 1"}, "cutmix"),
        ({"train_stages": 0}, "train_stages"),
        ({"train_stages": 8}, "train_stages"),
        ({"train_stages": 1, "feature_stages": "[3, 5]"}, "train_stages=1"),
        ({"feature_stages": "[8, 3]"}, "ascend"),
        ({"views": 0}, "views"),
        ({"lr_decay": 2}, "lr_decay"),
        ({"folds": 1}, "folds"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(RecipeError) as caught:
        build_recipe("finetune", settings)
    assert caught.value.code == "bad-setting"
    assert says in str(caught.value)
