"""What docs/serving.md shows works as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving_kit import flat

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
RUNNERS = {
    "sh": ["bash", "-e", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "-e"],
}
EXPECTED = {
    "sh": r'"label":"red".*\n?.*"label":"red".*"label":"blue"',
    "python": "^red 0.8.* sure$",
    "javascript": "^red 0.8.* sure$",
}


@pytest.mark.parametrize("language", RUNNERS)
def test_snippet(server, tmp_path, language):
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    runner = RUNNERS[language]
    if shutil.which(runner[0]) is None or (language == "sh" and shutil.which("curl") is None):
        pytest.skip(f"{runner[0]} is not installed")
    (tmp_path / "photo.jpg").write_bytes(flat("red", "JPEG"))
    (tmp_path / "other.jpg").write_bytes(flat("blue", "JPEG"))
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run([*runner, code], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[language], done.stdout.strip(), re.DOTALL), done.stdout


def test_limits_are_those_of_the_code():
    from tellapart.serving.collecting import MAX_BYTES, MAX_FILES
    from tellapart.serving.settings import Limits

    limits = Limits()
    for said in (
        f"{limits.body_bytes // 2**20} MiB, {limits.parts} parts",
        f"headers {limits.head_bytes // 2**10} KiB in {limits.head_seconds:g} seconds",
        f"the body in {limits.body_seconds / 60:g} minutes",
        f"in any {limits.body_grace_seconds:g} seconds at {limits.body_bytes_per_second / 1024:g} KiB/s",
        f"{limits.image.max_bytes // 2**20} MiB, {limits.image.max_pixels / 1e6:.0f} million pixels, ",
        f"pixels, {limits.decode_seconds:g} seconds to decode, {limits.inference_seconds:g} seconds for the model |",
        f"a heat map | {limits.explain_seconds:g} seconds",
        f"{limits.queue_images} images, {limits.connections} connections, {limits.buffered_bytes // 2**20} MiB of bodies",
        f"While bodies hold more than {limits.buffered_bytes // 2**21} MiB",
        f"{limits.pipelined} requests sent ahead of their answers; an answer is to be read within {limits.body_seconds / 60:g} ",
        f"at most {MAX_FILES:,} files and {MAX_BYTES // 2**30} GiB",
    ):
        assert said in PAGE, said
