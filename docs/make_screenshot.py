"""Write docs/images: the server's page, in a browser, with handwriting that comes with scikit-learn."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tellapart import load, train
from tellapart.demo import write_digits

IMAGES = Path(__file__).parent / "images"
HELD_BACK = 300
SHOWN = 18
"""The last digits, which the model does not see before the page is pictured, and how many photos are in the picture."""


def main() -> None:
    """Train, serve, and look."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        photos = hold_back(folder / "digits", folder / "new")
        run = train(str(folder / "digits"), out=folder / "runs/digits")
        photos = one_of_each(run.model_path, photos, write_odd(folder))
        with serving(run.model_path) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium)
            picture(browser, url, photos, "serve.png", width=1180, height=860)
            picture(browser, url, photos, "serve-phone.png", width=390, height=860, phone=True)
            browser.close()


def hold_back(digits: Path, to: Path) -> list[Path]:
    """Move the last digits to a folder of their own."""
    to.mkdir()
    paths = sorted(digits.rglob("*.png"), key=lambda path: path.name)[-HELD_BACK:]
    return [path.rename(to / f"digit-{path.name}") for path in paths]


def write_odd(folder: Path) -> list[Path]:
    """What is no digit: stripes, and a letter that somebody took for a photo."""
    stripes = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(stripes).save(folder / "chessboard.png")
    (folder / "letter.jpg").write_text("Dear reader")
    return [folder / "chessboard.png", folder / "letter.jpg"]


def one_of_each(model_path: Path, digits: list[Path], odd: list[Path]) -> list[Path]:
    """All digits and what is none, with one of each verdict first."""
    verdicts = {path: said.verdict for path, said in zip(digits, load(model_path).predict(digits), strict=True)}
    unsure = [path for path in digits if verdicts[path] == "unsure"][:1]
    first = [digits[0], *unsure, *odd]
    return (first + [path for path in digits if path not in first])[:SHOWN]


@contextmanager
def serving(model_path: Path) -> Iterator[str]:
    """A server in a process of its own; its address."""
    command = "from tellapart.cli import main; main()"
    arguments = [sys.executable, "-c", command, "serve", str(model_path), "--port", "0", "--quiet"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own
    try:
        assert process.stdout is not None  # noqa: S101  a pipe
        found = re.search(r"http://\S+", process.stdout.readline())
        if not found:
            raise RuntimeError("the server did not start")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def picture(
    browser: Browser, url: str, photos: list[Path], name: str, *, width: int, height: int, phone: bool = False
) -> None:
    """The page with answers; on the phone, dark."""
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if phone else "light",
        reduced_motion="reduce",
        has_touch=phone,
        is_mobile=phone,
    )
    page.goto(url)
    page.set_input_files("#photos-input", photos)
    page.wait_for_selector("#progress.done")
    page.locator(".picture > *").nth(1).wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / name)
    page.close()
    with Image.open(IMAGES / name) as image:
        image.convert("RGB").save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
