"""The page in a real browser, in front of a real server: what a person does, and what they then see."""

import csv
import io
import re
import shutil

import pytest
from PIL import Image
from serving_kit import Server, flat, write_model
from tiny import tiny_model

from tellapart.records import Band, DecisionRule

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

HOSTILE = {
    "<img src=x onerror=\"document.title='taken'\">.png": "<img src=x onerror=\"document.title='taken'\">.png",
    "invoice\u202egnp.exe": "invoice\ufffdgnp.exe",
    "two\nlines\t.png": "two\ufffdlines\ufffd.png",
    '=HYPERLINK("http://evil.example").png': '=HYPERLINK("http://evil.example").png',
    "long" * 75 + ".png": "long" * 15 + "…" + ("long" * 75 + ".png")[-40:],
}
OTHER_NAMES = ("a", "b", "=c<b>")
INTERVAL = {"value": 0.9, "low": 0.8, "high": 0.95}
METRICS = {
    "n": 200,
    "headline": ["accuracy"],
    "accuracy": INTERVAL,
    "verdicts": {"sure": {"n": 150, "share": INTERVAL, "accuracy": INTERVAL}},
    "per_class": {
        name: {"n": 70, "precision": INTERVAL, "recall": INTERVAL, "f1": INTERVAL} for name in OTHER_NAMES
    },
    "warnings": ["few photos were taken at night"],
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page; in the end, none that was opened may have complained, or asked anybody but its own server."""
    opened, complaints, requests = [], [], []

    def opener(url=server.url, *, path="/", ready=True, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url + path)
        if ready:
            expect(page.get_by_role("heading", level=1)).not_to_be_empty()
        return page

    yield opener
    for context in opened:
        context.close()
    # The browser itself reports requests that were refused or not answered, as those of some tests are meant to be.
    assert [said for said in complaints if "Failed to load resource" not in said] == []
    assert [
        url for url in requests if not re.match(r"(http://127\.0\.0\.1:|blob:http://127\.0\.0\.1:|data:)", url)
    ] == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with good and bad files; ``mixed`` is between red and green."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    for name in ("red", "green", "blue"):
        (folder / f"{name}.png").write_bytes(flat(name))
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (120, 120, 0)).save(file, "PNG")
    (folder / "mixed.png").write_bytes(file.getvalue())
    (folder / "deeper/scan.tiff").write_bytes(flat("blue", "TIFF"))
    (folder / "deeper/letter.jpg").write_bytes(b"Dear reader")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def two_models(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    bands = (Band(name="high", min_prob=0.6, goal="precision 0.9"), Band(name="low", min_prob=0.0))
    changes = {"metrics": METRICS, "decision_rules": (DecisionRule(class_name="=c<b>", bands=bands),)}
    other = write_model(folder / "other.onnx", tiny_model(class_names=OTHER_NAMES, **changes))
    with Server(model_path, f"second={other}", "--collect", folder / "kept") as server:
        yield server


def answered(page, count):
    expect(page.locator("#progress-text")).to_contain_text(f"{count:,} photo")
    expect(page.locator("#progress.done")).to_be_visible(timeout=30_000)


def choose(page, photos, *names):
    page.set_input_files("#photos-input", [photos / name for name in names])


def choose_all(page, photos):
    page.set_input_files("#folder-input", photos)
    answered(page, 6)


def card(page, name):
    return page.locator(".card").filter(has=page.locator(".name", has_text=name))


def drop_in_page(page, names):
    """As scripts can: for names that no disk would hold."""
    page.evaluate(
        """([names, bytes]) => {
            const transfer = new DataTransfer();
            for (const name of names) transfer.items.add(new File([new Uint8Array(bytes)], name));
            for (const kind of ["dragover", "drop"]) {
                document.body.dispatchEvent(
                    new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }
        }""",
        [list(names), list(flat("red"))],
    )


def test_folder_dropped_from_the_desktop(open_page, photos):
    page = open_page()
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(photos), str(photos / "red.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 300, "data": data})
    answered(page, 7)
    expect(page.locator("#progress-text")).to_contain_text("5 sure, 1 unsure and 1 unreadable")
    expect(page.locator("#progress-text")).to_contain_text("1 hidden file left out")
    names = [name.split("/", 1)[-1] for name in page.locator(".card .name").all_inner_texts()]
    assert " ".join(names) == "blue.png deeper/letter.jpg deeper/scan.tiff green.png mixed.png red.png red.png"


def test_folder_that_cannot_be_read_has_a_row(open_page):
    page = open_page()
    page.evaluate(
        """(bytes) => {
            const closed = { isDirectory: true, fullPath: "/trip/closed",
                createReader: () => ({ readEntries: (_, fail) => fail(new Error("not allowed")) }) };
            const photo = { fullPath: "/trip/a.png", file: (give) => give(new File([new Uint8Array(bytes)], "a.png")) };
            const lists = [[closed, photo], []];
            const trip = { isDirectory: true, fullPath: "/trip",
                createReader: () => ({ readEntries: (give) => give(lists.shift()) }) };
            const items = [{ kind: "file", webkitGetAsEntry: () => trip, getAsFile: () => null }];
            const drop = new Event("drop", { bubbles: true, cancelable: true });
            Object.defineProperty(drop, "dataTransfer", { value: { types: ["Files"], items } });
            document.body.dispatchEvent(drop);
        }""",
        list(flat("red")),
    )
    expect(page.locator("#progress-text")).to_contain_text("1 photo answered: 1 sure and 1 not sent")
    expect(card(page, "trip/closed/")).to_contain_text("It cannot be read")
    expect(card(page, "trip/a.png").locator(".said")).to_contain_text("red")


def test_answers(open_page, photos):
    page = open_page()
    choose_all(page, photos)
    red = card(page, "red.png")
    expect(red.locator(".badge")).to_have_text("sure")
    expect(red.locator(".said")).to_contain_text("red")
    expect(red.locator(".bars li")).to_have_count(3)
    expect(red.locator("img")).to_have_js_property("complete", True)
    expect(card(page, "mixed.png").locator(".badge")).to_have_text("unsure")
    expect(card(page, "mixed.png").locator(".said")).to_have_text(
        re.compile("(red or green|green or red) Look yourself.")
    )
    expect(card(page, "letter.jpg").locator(".badge")).to_have_text("unreadable")
    expect(card(page, "letter.jpg").locator(".said")).to_contain_text("This is no image file.")
    scan = card(page, "scan.tiff")  # which this browser cannot show
    scan.scroll_into_view_if_needed()
    expect(scan.locator(".said")).to_contain_text("blue")
    expect(scan.locator(".placeholder")).to_contain_text("TIFF")


def test_filters_and_order(open_page, photos):
    page = open_page()
    choose_all(page, photos)
    filters = page.get_by_role("group", name="Show only")
    assert filters.inner_text().split() == "all 6 sure 4 unsure 1 unfamiliar 0 unreadable 1".split()
    filters.get_by_role("button", name="unsure").click()
    expect(page.locator(".card .name")).to_have_text([re.compile("mixed.png")])
    filters.get_by_role("button", name="unfamiliar").click()
    expect(page.get_by_text("No photo has that answer.")).to_be_visible()
    filters.get_by_role("button", name="all").click()
    page.get_by_role("combobox", name="Class").select_option("blue")
    expect(page.locator(".card")).to_have_count(2)
    page.get_by_role("combobox", name="Class").select_option("")
    page.get_by_label("Order").select_option("least")
    expect(page.locator(".card .name").first).to_contain_text("mixed.png")
    expect(page.locator(".card .name").last).to_contain_text("letter.jpg")
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_hostile_names_are_text(open_page):
    page = open_page()
    drop_in_page(page, HOSTILE)
    answered(page, len(HOSTILE))
    assert page.locator(".card .name").all_text_contents() == list(HOSTILE.values())
    page.locator(".card").first.click()
    expect(page.locator("#detail-name")).to_have_text(next(iter(HOSTILE)))
    assert page.title() == "tellapart: colors"
    assert page.locator("img[src=x]").count() == 0


def test_csv(open_page, photos):
    page = open_page()
    choose_all(page, photos)
    drop_in_page(page, HOSTILE)
    answered(page, 6 + len(HOSTILE))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "colors-answers.csv"
    content = download.value.path().read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    by_name = {row["path"].split("/", 1)[-1]: row for row in rows}
    assert len(rows) == 6 + len(HOSTILE)
    assert by_name["red.png"]["label"] == "red"
    assert float(by_name["red.png"]["prob"]) == pytest.approx(float(by_name["red.png"]["prob_red"]), abs=1e-5)
    assert by_name["deeper/letter.jpg"]["error"] == "not-an-image"
    assert set(by_name["mixed.png"]["prediction_set"].split("|")) == {"red", "green"}
    for name in HOSTILE:
        assert ("'" + name if name.startswith("=") else name) in {row["path"] for row in rows}


def test_five_hundred(open_page, tmp_path):
    for i in range(500):
        (tmp_path / f"{i:03}.png").write_bytes(flat(["red", "green", "blue"][i % 3], size=(8 + i % 50, 20)))
    page = open_page()
    page.set_input_files("#folder-input", tmp_path)
    answered(page, 500)
    expect(page.locator("#progress-text")).to_have_text("500 photos answered: 500 sure.")
    assert page.locator(".card").count() < 200
    for cards in (120, 180, 240):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.locator(".card").nth(cards - 1)).to_be_attached()
    page.get_by_role("button", name="sure 500", exact=True).click()
    expect(page.locator(".card .said").first).to_contain_text("red")


def test_heat_map_by_keyboard(open_page, photos):
    page = open_page()
    choose(page, photos, "red.png", "green.png")
    answered(page, 2)
    card(page, "red.png").get_by_role("button").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#detail-answer")).to_contain_text("red")
    heat = dialog.get_by_role("button", name="What spoke for it")
    heat.focus()
    page.keyboard.press("Space")
    picture = dialog.get_by_role("img", name="Where the evidence for red lies")
    expect(picture).to_be_visible()
    below = dialog.locator("#stage img:not(.heat)")
    expect(below).to_be_hidden()  # of a crop the rest would stick out, at another scale
    photo, over = below.bounding_box(), picture.bounding_box()
    assert over["width"] / over["height"] == pytest.approx(30 / 20, rel=0.02)
    assert over["width"] <= photo["width"] + 1
    dialog.get_by_label("Shown for").select_option("green")
    expect(dialog.get_by_role("img", name="Where the evidence for green lies")).to_be_visible()
    heat.focus()
    page.keyboard.press("Space")
    expect(dialog.locator(".heat")).to_have_count(0)
    expect(dialog.get_by_role("img", name="The photo")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("#detail-name")).to_have_text("green.png")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(card(page, "red.png").get_by_role("button")).to_be_focused()


def test_all_by_keyboard(open_page, photos):
    page = open_page()
    page.on("filechooser", lambda _: None)  # from here on the browser reports choosers; it takes a moment to begin
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([photos / "mixed.png"])
    answered(page, 1)
    expect(page.get_by_role("status").first).to_have_text("1 photo answered: 1 unsure.")
    names = []
    for _ in range(11):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("document.activeElement.innerText.split('\\n')[0] || document.activeElement.id")
        )
    assert names[:6] == ["Choose a folder", "all", "sure", "unsure", "unfamiliar", "unreadable"]
    assert names[-3:] == ["Download as CSV", "Clear all", "unsure"]  # the last is the card


def test_paste(open_page):
    page = open_page()
    page.evaluate(
        """(bytes) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(flat("green")),
    )
    answered(page, 1)
    expect(page.locator(".said")).to_contain_text("green")


def test_phone(open_page, photos):
    page = open_page(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    choose_all(page, photos)
    drop_in_page(page, HOSTILE)
    answered(page, 6 + len(HOSTILE))
    assert page.evaluate(fits)
    page.locator(".card").last.tap()
    page.get_by_role("button", name="What spoke for it").tap()
    expect(page.locator(".heat")).to_be_visible()
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
    page.get_by_role("button", name="Close").tap()
    page.get_by_role("link", name="About this model").tap()
    expect(page.get_by_role("heading", name="About colors")).to_be_visible()
    assert page.evaluate(fits)


def test_dark(open_page):
    def brightness(scheme):
        page = open_page(color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    assert brightness("dark") < 60 < 200 < brightness("light")


def test_without_room_it_waits(open_page, photos):
    page = open_page()
    refused = []

    def refuse_once(route):
        if not refused:
            refused.append(route.request.url)
            route.fulfill(
                status=503, headers={"Retry-After": "1"}, json={"error": {"code": "overloaded", "message": ""}}
            )
        else:
            route.continue_()

    page.route("**/predict?**", refuse_once)
    choose(page, photos, "red.png")
    expect(page.get_by_role("alert")).to_contain_text("Busy.")
    answered(page, 1)
    expect(page.locator(".said")).to_contain_text("red")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(refused) == 1


def test_cancel_and_send_the_others(open_page, photos):
    page = open_page()
    held = []
    page.route("**/predict?**", lambda route: held.append(route))
    choose(page, photos, *["red.png"] * 6)
    expect(page.locator("#progress-text")).to_contain_text("0 of 6")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress-text")).to_contain_text("6 not sent")
    page.unroute("**/predict?**")
    card(page, "red.png").first.get_by_role("button", name="Try again").click()
    expect(page.locator("#progress-text")).to_contain_text("1 photo answered: 1 sure and 5 not sent")
    page.get_by_role("button", name="Send the others").click()
    answered(page, 6)


def test_line_gone_and_back(open_page, photos):
    page = open_page()
    page.context.set_offline(True)
    choose(page, photos, *["red.png"] * 9)
    again = page.get_by_role("alert").get_by_role("button", name="Try again")
    again.click()
    expect(page.locator("#progress-text")).to_contain_text("0 of 9")
    page.context.set_offline(False)
    again.click()
    answered(page, 9)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#progress-text")).to_have_text("9 photos answered: 9 sure.")


def test_file_moved_after_it_was_chosen(open_page, photos, tmp_path):
    page = open_page()
    moved = shutil.copy(photos / "red.png", tmp_path)
    page.route("**/predict?**", lambda route: route.abort())
    page.set_input_files("#photos-input", moved)
    expect(page.locator(".card")).to_contain_text("The server did not answer.")
    page.unroute("**/predict?**")
    (tmp_path / "red.png").unlink()
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator(".card")).to_contain_text("cannot be read: was it moved")


def test_token_and_then_no_server(open_page, photos, model_path, tmp_path):
    (tmp_path / "token").write_text("a-token-for-tests")
    with Server(model_path, "--token-file", tmp_path / "token") as guarded:
        page = open_page(guarded.link.split("?")[0], path="?token=a-token-for-tests")
        assert "token" not in page.url
        choose(page, photos, "red.png")
        answered(page, 1)
        page.context.clear_cookies()
        choose(page, photos, "green.png")
        expect(page.get_by_role("alert")).to_contain_text("Open the whole link")
    choose(page, photos, *["red.png"] * 5)
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(page.locator(".card").nth(1)).to_contain_text("Try again")


def test_several_models_and_consent(open_page, photos, two_models):
    page = open_page(two_models.url)
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/predict" in request.url else None)
    choose(page, photos, "blue.png")
    answered(page, 1)
    assert "model=colors" in sent[-1]
    assert "keep=false" in sent[-1]
    page.get_by_label("The server may keep").check()
    page.get_by_role("combobox", name="Model").select_option("second")
    expect(page.locator(".said")).to_contain_text("=c<b>")
    expect(page.locator(".band")).to_have_text("=c<b>: high")
    assert "model=second" in sent[-1]
    assert "keep=true" in sent[-1]


def test_the_model_chosen_last_is_the_one_shown(open_page, two_models):
    """Though the answer about the one before comes later."""
    page = open_page(two_models.url)
    held = []
    page.route("**/model?model=second", lambda route: held.append(route))
    chooser = page.get_by_role("combobox", name="Model")
    chooser.select_option("second")
    with page.expect_response("**/model?model=colors"):
        chooser.select_option("colors")
    with page.expect_response("**/model?model=second"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.title() == "tellapart: colors"
    expect(page.locator("#question")).to_contain_text("red")


def test_no_photo_is_kept_unasked_by_a_server_that_began_to_collect(open_page, photos):
    """The page was opened before; it has not asked the person."""
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/predict" in request.url else None)
    choose(page, photos, "red.png")
    answered(page, 1)
    assert "keep=false" in sent[-1]


def test_about_the_model(open_page, two_models):
    page = open_page(two_models.url, path="/#model")
    page.get_by_role("combobox", name="Model").select_option("second")
    for text in (
        "Of 100 new photos like these, expect about 90 to be right (80 to 95).",
        "Few photos were taken at night.",
        "for 90% of the photos (set on 60 images)",
        "“=c<b>” is also given in words: high or low.",
        "It cannot tell when a photo is unlike anything",
        "The model knows 3 classes and no other.",
        "CC0-1.0",
        "1 January 2026",
    ):
        expect(page.locator("#view-model")).to_contain_text(text)
    expect(page.get_by_role("row", name="=c<b>")).to_contain_text("90.0% (80.0% to 95.0%)")
    page.get_by_role("link", name="Photos").click()
    expect(page.get_by_role("button", name="Choose photos")).to_be_visible()


def test_without_script(open_page):
    page = open_page(java_script_enabled=False, ready=False)
    expect(page.get_by_text("This page needs JavaScript")).to_be_visible()


def test_on_paper(open_page, photos):
    page = open_page()
    choose_all(page, photos)
    page.emulate_media(media="print")
    expect(page.locator(".card").first).to_be_visible()
    for name in ("Choose photos", "Download as CSV"):
        expect(page.get_by_role("button", name=name)).to_be_hidden()
