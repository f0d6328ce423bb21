"""What may import what, and what importing tellapart may cost."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_layers_and_no_torch_in_what_ships():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


def test_importing_tellapart_loads_nothing_heavy():
    script = (
        "import sys, tellapart; "
        "print([name for name in ('torch', 'openvino', 'onnx', 'numpy', 'polars', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    import tellapart

    for name in tellapart.__all__:
        assert getattr(tellapart, name) is not None
        assert name in dir(tellapart)


def test_only_networks_of_timm_import_timm(tmp_path):
    """Its import takes longer than a short run; the recipes that train without it do not wait for it."""
    pytest.importorskip("torch")
    code = (
        "import pathlib, sys\n"
        "from tellapart.training.loop_recipe import cnn, finetune, scratch\n"
        "from tellapart.training.train import open_way\n"
        "for recipe in (cnn(), scratch(), finetune()):\n"
        f"    open_way(recipe, pathlib.Path({str(tmp_path)!r}), on_epoch=print)\n"
        "assert 'torch' in sys.modules\n"
        "assert 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
