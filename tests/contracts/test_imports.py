"""What may import what, and what importing tellapart may cost."""

import subprocess
import sys
from pathlib import Path

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
