"""The README's commands and code work as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


@pytest.fixture(scope="module")
def desk(photos, tmp_path_factory):
    """A folder to work in, with photos beside."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "photos").symlink_to(photos)
    return desk


def test_commands(desk):
    """In order; make's targets must exist, and `make test` is what runs this."""
    programs = [command[0] for command in commands()]
    assert programs.count("make") == 2
    assert programs.count("tellapart") >= 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands():
        if command[0] == "make":
            done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
        else:
            done = subprocess.run(
                command, cwd=desk, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, (command, done.stderr)
    assert (desk / "predictions.csv").read_text().count("\n") == 61


def test_python(desk):
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 62


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
