"""Networks of timm as backbones: the exported graph answers as PyTorch does, and what does not fit is said."""

import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import tellapart  # noqa: E402
from tellapart.cli import app  # noqa: E402
from tellapart.errors import ModelError, RecipeError, TellapartError  # noqa: E402
from tellapart.inference.engine import OpenVINOEngine  # noqa: E402
from tellapart.inference.heatmap import HEATMAP  # noqa: E402
from tellapart.inference.model import LinearHead, compose, read_model, require_safe  # noqa: E402
from tellapart.models import backbone as backbone_module  # noqa: E402
from tellapart.models.backbone import open_timm  # noqa: E402
from tellapart.records import Preprocess  # noqa: E402
from tellapart.storage import sha256  # noqa: E402
from tellapart.training import finetune as finetune_module  # noqa: E402
from tellapart.training.whole import Whole  # noqa: E402

FAMILY = {  # a mobile CNN, a ResNet, two ConvNeXts, two vision transformers; with random weights
    "mobilenetv3_small_050": 64,
    "resnet10t": 64,
    "test_convnext": 64,
    "convnext_atto": 32,
    "test_vit": 64,
    "vit_tiny_patch16_224": 48,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder as timm writes it for each architecture, made when asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("timm") / name
            with torch.random.fork_rng():
                torch.manual_seed(1)
                network = timm.create_model(name)
                for module in network.modules():  # as if trained: running moments that are not 0 and 1
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.running_mean.normal_(0, 0.1)
                        module.running_var.uniform_(0.5, 2)
            timm.models.save_for_hf(network, made[name], safe_serialization=True)
        return made[name]

    return get


def pixels(n, side):
    return np.random.default_rng(side).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def reference(folder, images):
    """Features of timm's own network, loaded and fed as timm's documentation says."""
    config = json.loads((folder / "config.json").read_text())
    network = timm.create_model(config["architecture"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.reset_classifier(0)
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=images.shape[1:3])
    record = config["pretrained_cfg"]
    mean, std = (torch.tensor(record[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return network.eval()(x).numpy()


@pytest.mark.parametrize(("name", "side"), FAMILY.items())
def test_the_graph_answers_as_timm_does_from_raw_pixels(folders, name, side):
    backbone, preprocess = open_timm(f"local-dir:{folders(name)}", input_size_px=side)
    images = pixels(5, side)
    expected = reference(folders(name), images)
    assert expected.std() > 1e-3
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images differ, and so must their features"
    assert backbone.embedding_dim == expected.shape[1]
    assert preprocess.input_size_px == side
    session = onnxruntime.InferenceSession(backbone.onnx_bytes, providers=["CPUExecutionProvider"])
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=side, precision="f32")
    tolerance = 2e-4 * max(1, np.abs(expected).max())
    for found in (session.run(["embedding"], {"images": images})[0], engine.run(images)["embedding"]):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < tolerance
    model = onnx.load_model_from_string(backbone.onnx_bytes)
    require_safe(model)
    assert backbone.sha256 == sha256(backbone.onnx_bytes)
    assert str(Path.cwd()).encode() not in backbone.onnx_bytes, "nothing of the machine that exported it"
    assert b"site-packages" not in backbone.onnx_bytes


@pytest.mark.parametrize(
    ("name", "has_maps"),
    [("resnet10t", True), ("mobilenetv2_050", True), ("mobilenetv3_small_050", False), ("test_vit", False)],
)
def test_class_maps_where_pooled_maps_go_straight_to_the_head(folders, name, has_maps):
    """The mean over a class' map and the bias are its logit; others have a layer behind the pooling, or no maps."""
    backbone, _ = open_timm(f"local-dir:{folders(name)}", input_size_px=64)
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (backbone.embedding_dim, 3)).astype(np.float32)
    head = LinearHead(weight=weight, bias=np.array([1, -2, 3], np.float32))
    model = compose(backbone.onnx_bytes, head, temperature=1.0)
    assert (HEATMAP in {output.name for output in model.graph.output}) == has_maps
    if not has_maps:
        return
    assert "Gather" not in {node.op_type for node in model.graph.node[-12:]}, "pooling is one node"
    engine = OpenVINOEngine(model.SerializeToString(), input_size_px=64, precision="f32")
    outputs = engine.run(pixels(3, 64))
    logits = head.logits(outputs["embedding"])
    assert outputs[HEATMAP].shape[:2] == (3, 3)
    assert outputs[HEATMAP].mean(axis=(2, 3)) + head.bias == pytest.approx(logits, abs=1e-3)


def test_preprocessing_and_licence_are_the_weights_own(folders, tmp_path):
    folder = folders("test_vit")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {
        "crop_pct": 0.8, "interpolation": "bilinear", "license": "cc-by-4.0", "mean": [0.1, 0.2, 0.3],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    backbone, preprocess = open_timm(f"local-dir:{tmp_path}")
    assert preprocess == Preprocess(input_size_px=160, resize="crop", interpolation="bilinear", crop_share=0.8)
    assert backbone.weights.license == "cc-by-4.0"
    assert backbone.weights.name == "timm/test_vit.r160_in1k"
    assert backbone.weights.sha256 == sha256((folder / "model.safetensors").read_bytes())
    assert str(tmp_path.parent) not in backbone.weights.source
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=160, precision="f32")
    images = pixels(2, 160)
    assert engine.run(images)["embedding"] == pytest.approx(reference(tmp_path, images), abs=2e-4)
    for mode, expected in (("squash", "squash"), ("border", "pad")):
        config["pretrained_cfg"]["crop_mode"] = mode
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert open_timm(f"local-dir:{tmp_path}")[1].resize == expected


def test_it_is_exported_once(folders, monkeypatch):
    name = f"local-dir:{folders('resnet10t')}"
    first = open_timm(name, input_size_px=32)
    monkeypatch.setattr(backbone_module, "export", lambda _: pytest.fail("exported again"))
    assert open_timm(name, input_size_px=32) == first


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("norm.bias"), ["1 missing (norm.bias)"]),
        (lambda state: {**state, "other": torch.zeros(1)}, ["1 unexpected (other)"]),
        (
            lambda state: {**state, "cls_token": torch.zeros(1, 1, 7)},
            ["1 of another shape (cls_token (1, 1, 7) instead of (1, 1, 64))"],
        ),
        (
            lambda state: {f"module.{name}": value for name, value in state.items()},
            ["missing", "unexpected", "every name begins with 'module.'"],
        ),
        (lambda state: {**without("norm.bias")(state), "x": torch.zeros(1)}, ["1 missing", "1 unexpected (x)"]),
    ],
)
def test_weights_that_do_not_fit_are_listed(folders, tmp_path, change, says):
    state = load_file(folders("test_vit") / "model.safetensors")
    save_file(change(state), tmp_path / "mine.safetensors")
    with pytest.raises(ModelError) as caught:
        open_timm("timm/test_vit", weights_file=str(tmp_path / "mine.safetensors"))
    assert caught.value.code == "weights-mismatch"
    assert all(text in str(caught.value) for text in ["mine.safetensors", "timm/test_vit", *says])


def test_weights_of_ones_own_fit_whatever_their_classes(folders, tmp_path):
    state = load_file(folders("test_vit") / "model.safetensors")
    mine = {**state, "head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}
    save_file(mine, tmp_path / "mine.safetensors", metadata={"license": "mit"})
    found, _ = open_timm("timm/test_vit", weights_file=str(tmp_path / "mine.safetensors"), input_size_px=64)
    expected, _ = open_timm(f"local-dir:{folders('test_vit')}", input_size_px=64)
    images = pixels(2, 64)
    answers = [
        OpenVINOEngine(backbone.onnx_bytes, input_size_px=64, precision="f32").run(images)["embedding"]
        for backbone in (found, expected)
    ]
    assert np.array_equal(*answers)
    assert found.weights.license == "mit"
    assert found.weights.source == "file mine.safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt", ".ckpt", ""])
def test_pickles_are_not_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RecipeError) as caught:
        open_timm("timm/test_vit", weights_file=str(path))
    assert caught.value.code == "bad-setting"
    assert "pickle" in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ({"name": "timm/resnet10tt"}, "bad-setting", "timm/resnet10t"),
        ({"name": "timm/resnet10t.none"}, "bad-setting", "resnet10t.c3_in1k"),
        ({"name": "timm/hf-hub:someone/thing"}, "bad-setting", "no architecture"),
        ({"name": "local-dir:/no/such/folder"}, "weights-missing", "config.json"),
        ({"name": "timm/test_vit", "weights_file": "/no/such.safetensors"}, "weights-missing", "/no/such"),
    ],
)
def test_what_is_not_there(arguments, code, says):
    with pytest.raises(TellapartError) as caught:
        open_timm(**arguments)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_a_folder_with_a_pickle_only(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders("test_vit") / "config.json").read_bytes())
    torch.save(load_file(folders("test_vit") / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        open_timm(f"local-dir:{tmp_path}")
    assert caught.value.code == "weights-missing"


@pytest.mark.parametrize("damage", [b"", b"not a safetensors file", b"\xff" * 64])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(damage)
    with pytest.raises(ModelError) as caught:
        open_timm("timm/test_vit", weights_file=str(path))
    assert caught.value.code == "weights-mismatch"


def test_a_size_the_network_cannot_see(folders):
    with pytest.raises(TellapartError) as caught:
        open_timm(f"local-dir:{folders('test_vit')}", input_size_px=63)
    assert caught.value.code in ("bad-setting", "not-exportable")
    assert "63" in caught.value.message


def forbid_the_network(monkeypatch):
    monkeypatch.setattr(backbone_module, "hf_hub_download", lambda *_: pytest.fail("asked the network"))


def test_offline_asks_nothing_and_says_what_to_bring(monkeypatch):
    forbid_the_network(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        open_timm("timm/resnet10t.c3_in1k")
    assert caught.value.code == "offline"
    for text in ("model.safetensors of timm/resnet10t.c3_in1k", "hf download", "--backbone local-dir:FOLDER"):
        assert text in str(caught.value)


def test_no_network(monkeypatch):
    def unreachable(*_):
        raise OSError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(backbone_module, "hf_hub_download", unreachable)
    with pytest.raises(ModelError) as caught:
        open_timm("timm/resnet10t.c3_in1k")
    assert caught.value.code == "offline"
    assert "Name or service not known" in caught.value.message


def test_the_hubs_cache_is_enough(folders, monkeypatch):
    """Also offline; and weights as timm reads them are those of the folder."""
    forbid_the_network(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = folders("resnet10t") / "model.safetensors"
    asked = []

    def cached(repository, name):
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr(backbone_module, "try_to_load_from_cache", cached)
    found, preprocess = open_timm("timm/resnet10t", input_size_px=64)
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]
    assert found.weights.source == "Hugging Face hub, timm/resnet10t.c3_in1k"
    assert found.weights.license == "apache-2.0"
    assert preprocess.interpolation == "bicubic"
    images = pixels(2, 64)
    engine = OpenVINOEngine(found.onnx_bytes, input_size_px=64, precision="f32")
    assert engine.run(images)["embedding"] == pytest.approx(reference(folders("resnet10t"), images), abs=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "test_convnext", "test_vit"])
def test_a_whole_network_is_trained_on_and_the_file_agrees(folders, photos, tmp_path, monkeypatch, name):
    """A fine-tuning step, the export of what was learned, parity from raw bytes, whatever the architecture."""
    train_network = finetune_module.train_network
    newest = lambda *given, **told: train_network(*given, **{**told, "from_trained": False})  # noqa: E731
    monkeypatch.setattr(finetune_module, "train_network", newest)
    monkeypatch.setattr(finetune_module, "is_better", lambda *_: True)
    side = FAMILY[name]
    settings = {"backbone": f"local-dir:{folders(name)}", "input_size_px": side, "epochs": 1, "batch_size": 16}
    run = tellapart.train(photos, recipe="finetune", settings=settings, out=tmp_path)
    found = run.report["verification"]
    assert found["top1_differs"] <= found["ties"]
    assert found["max_abs_difference"] < 0.05
    assert run.report["fit"]["epochs_trained"] == 1
    assert run.report["recipe"]["resize"] == "crop"
    card = read_model(run.model_path).card
    assert card.preprocess.input_size_px == side
    assert card.weights.name.startswith(f"timm/{name}")
    # The stages near the image have moved, too.
    graph = onnx.load_model(run.model_path).graph
    learned = {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}
    backbone, _ = open_timm(settings["backbone"], input_size_px=side)
    before = onnx.load_model_from_string(backbone.onnx_bytes).graph
    kernels = [onnx.numpy_helper.to_array(tensor) for tensor in before.initializer]
    kernels = [kernel for kernel in kernels if kernel.ndim == 4]
    assert kernels
    moved = [kernel.tobytes() not in learned for kernel in kernels]
    assert np.mean(moved) > 0.9  # a random network has kernels that no gradient reaches


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_no_layer_looks_at_more_than_one_image(folders, name):
    """So a batch may be learned from in parts."""
    side = FAMILY[name]
    pretrained = backbone_module.load_pretrained(f"local-dir:{folders(name)}", input_size_px=side)
    images = torch.rand(4, 3, side, side)
    with torch.no_grad():
        dim = pretrained.network(images).shape[1]
        head = LinearHead(weight=np.zeros((dim, 3), np.float32), bias=np.zeros(3, np.float32))
        network = Whole(pretrained, head, 3).train()
        together = network(images)["embedding"]
        alone = torch.cat([network(image)["embedding"] for image in images.split(1)])
    assert network.images_at_once
    assert torch.allclose(together, alone, atol=1e-4 * float(together.abs().max()))


def test_training_whole_networks_learns_with_batch_norm_as_it_was(folders):
    pretrained = backbone_module.load_pretrained(f"local-dir:{folders('resnet10t')}", input_size_px=32)
    head = LinearHead(weight=np.zeros((512, 3), np.float32), bias=np.zeros(3, np.float32))
    network = Whole(pretrained, head, 3).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    loss = torch.nn.functional.cross_entropy(
        network(torch.rand(4, 3, 32, 32))["logits"], torch.tensor([0, 1, 2, 0])
    )
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert network.output.weight.grad.abs().sum() > 0
    with torch.no_grad():
        network.output.weight.normal_()
    network(torch.rand(4, 3, 32, 32))["logits"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_finetune_with_weights_of_ones_own_by_flags(folders, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # which --offline changes
    weights = folders("test_convnext") / "model.safetensors"
    arguments = [
        "train",
        photos,
        "--out",
        tmp_path / "run",
        "--recipe",
        "finetune",
        "--backbone",
        "timm/test_convnext",
    ]
    arguments += ["--weights", weights, "--set", "input_size_px=32", "--set", "epochs=1", "--offline", "--json"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    recipe = json.loads(done.stdout)["recipe"]
    assert recipe["backbone"] == "timm/test_convnext"
    assert recipe["weights"] == str(weights)
    missing = CliRunner().invoke(
        app, ["train", str(photos), "--recipe", "finetune", "--backbone", "timm/resnet18", "--offline", "--json"]
    )
    assert json.loads(missing.stdout)["error"]["code"] == "offline"


def test_train_with_a_folder_of_timms(folders, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # which --offline changes
    backbone = f"backbone=local-dir:{folders('resnet10t')}"
    arguments = ["train", str(photos), "--out", str(tmp_path), "--set", backbone, "--set", "input_size_px=48"]
    done = CliRunner().invoke(app, [*arguments, "--offline", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["recipe"]["resize"] == "crop"
    assert report["recipe"]["crop_share"] == 0.875
    assert report["recipe"]["feature_stages"] == []
    assert report["verification"]["top1_differs"] <= report["verification"]["ties"]
    assert report["test"]["accuracy"]["value"] > 0.5  # of three classes, by a random network's features
    card = read_model(tmp_path / "model.onnx").card
    assert card.weights.license == "apache-2.0"
    assert card.preprocess == Preprocess(
        input_size_px=48, resize="crop", interpolation="bicubic", crop_share=0.875
    )
    images = sorted(photos.glob("*/*"))[:6]
    assert all(prediction.label for prediction in tellapart.load(tmp_path / "model.onnx").predict(images))
