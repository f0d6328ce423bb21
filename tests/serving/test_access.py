"""Who may ask, what is kept, what is written down, and how the command begins."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving_kit import Server, flat, until, write_model
from tiny import one_level, tiny_model
from typer.testing import CliRunner

from tellapart.cli import app
from tellapart.records import FamiliarityRule
from tellapart.serving.measures import drift_z

TOKEN = "a-token-of-enough-letters"  # noqa: S105
ROUTES = (
    "/",
    "/page.js",
    "/docs",
    "/openapi.json",
    "/model",
    "/models",
    "/metrics",
    "/v2/health/live",
    "/nothing",
)


@pytest.fixture(scope="module")
def public(model_path, tmp_path_factory):
    """A server that others can reach, and that collects what its model is unsure about: everything."""
    root = tmp_path_factory.mktemp("public")
    (root / "token").write_text(TOKEN + "\n")
    unsure = tiny_model(conformal=one_level(0.9, 0.0, 60))
    path = write_model(root / "unsure/model.onnx", unsure)
    arguments = [f"first={model_path}", path, "--host", "0.0.0.0", "--token-file", root / "token"]  # noqa: S104
    with Server(*arguments, "--allowed-host", "Photos.example", "--collect", root / "kept") as server:
        server.kept = root / "kept"
        yield server
        assert server.end() == 0


@pytest.fixture
def friend(public):
    with public.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_route_asks_for_the_token(public, method, path):
    with public.client() as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Cookie": "tellapart_token=x"},
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "token-needed" in answer.text


def test_the_printed_link_opens_the_page(public):
    assert public.link.endswith(f"/?token={TOKEN}")
    with public.client() as client:
        assert client.get("/?token=wrong").status_code == 401
        locked = client.get("/", headers={"accept": "text/html"})
        assert locked.headers["content-type"].startswith("text/html")
        assert "the link that was printed" in locked.text
        assert TOKEN not in locked.text
        assert client.get(f"/model?token={TOKEN}").status_code == 401
        answer = client.get(f"/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/").status_code == 200
        assert client.post("/predict", content=flat("red")).status_code == 200
    own = cookie.partition(";")[0]
    assert own.startswith(f"tellapart_token_{public.port}=")  # browsers send cookies to all ports of a host
    with public.client() as client:
        for cookies, status in (
            (f"tellapart_token_1=x; {own}", 200),
            (f'other="a b; =; {{"c":[1,2]}}; x@y=\xe9; {own}', 200),
            (f"other={own}", 401),
        ):
            answer = client.get("/models", headers={"Cookie": cookies.encode("latin-1")})
            assert answer.status_code == status, cookies


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("photos.example:80", 200),
        ("PHOTOS.example", 200),
        ("10.0.0.7:8000", 200),
        ("[::1]:8000", 200),
        ("x.example", 421),
    ],
)
def test_hosts(friend, host, status):
    assert friend.get("/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://photos.example", "Host": "photos.example"}, 200),
        ({"Origin": "https://photos.example", "Host": "photos.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://photos.example:81", "Host": "photos.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_origins(friend, headers, status):
    assert friend.post("/predict?keep=false", content=flat("red"), headers=headers).status_code == status


def test_models_by_name(friend):
    assert [model["name"] for model in friend.get("/models").json()["models"]] == ["first", "unsure"]
    for query, name, verdict in (
        ("", "first", "sure"),
        ("&model=first", "first", "sure"),
        ("&model=unsure", "unsure", "unsure"),
    ):
        answer = friend.post(f"/predict?keep=0{query}", content=flat("red")).json()
        assert (answer["model"], answer["predictions"][0]["verdict"]) == (name, verdict)


def photo_with_secrets():
    exif = Image.Exif()
    exif[0x010F] = "SECRET maker"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 24.0)
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x0112] = 6  # lies on its side
    return flat("red", "JPEG", size=(40, 20), exif=exif, comment=b"SECRET comment")


def test_what_the_model_is_unsure_about_is_kept_without_its_metadata(public, friend):
    assert friend.get("/model").json()["collecting"] is True
    photo = photo_with_secrets()
    assert b"SECRET" in photo
    for content, query in ((flat("blue"), "&keep=false"), (b"no image", ""), (photo, ""), (photo, "")):
        friend.post(f"/predict?model=unsure{query}", files={"f": ("my holiday.jpg", content)})
    friend.post("/predict?model=first", content=flat("green"))  # sure
    until(lambda: list(public.kept.rglob("*.jpg")))
    (path,) = public.kept.rglob("*.jpg")
    assert path.parent.name == "unsure"
    assert set(path.stem) <= set("0123456789abcdef")
    content = path.read_bytes()
    assert b"SECRET" not in content
    assert b"Exif" not in content
    assert Image.open(io.BytesIO(content)).size == (20, 40)  # upright
    assert [file.name for file in public.kept.rglob("*") if file.is_file()] == [path.name]


def test_nothing_is_kept_unless_asked(server, client):
    folder = Path(f"/proc/{server.process.pid}/cwd")
    before = sorted(folder.iterdir())
    client.post("/predict?keep=true", content=flat("red"))
    assert client.get("/model").json()["collecting"] is False
    assert sorted(folder.iterdir()) == before


def test_the_log_holds_no_names_and_no_questions(public, friend):
    friend.post("/predict?model=first&coverage=0.9&keep=false", files={"f": ("grandmother.jpg", flat("red"))})
    friend.get("/private-path?grandmother=1")
    until(lambda: any("other 404" in line for line in public.log))
    log = "".join(public.log)
    assert "POST /predict 200 " in log
    for word in ("grandmother", "coverage", "private", TOKEN, "?"):
        assert word not in log


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_counters(friend):
    before = samples(friend)
    for content in (flat("red"), flat("green"), b"no image"):
        friend.post("/predict?model=unsure&keep=false", content=content)
    friend.get("/nothing")
    after = samples(friend)

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("tellapart_answers_total", "unsure", "unsure") == 2
    assert grown("tellapart_answers_total", "error", "unsure") == 1
    assert grown("tellapart_requests_total", "/predict", "ok") == 3
    assert grown("tellapart_requests_total", "client-error", "other") == 1
    assert grown("tellapart_request_seconds_count", "/predict") == 3
    assert grown("tellapart_request_seconds_bucket", "+Inf", "/predict") == 3
    assert after["tellapart_queue_images",] == 0
    assert after["tellapart_decoders",] >= 1
    assert after["tellapart_verdict_share", "served", "unsure", "unsure"] == 1


@pytest.mark.parametrize(
    ("unfamiliar", "n", "low", "high"),
    [
        (20, 1000, -1, 1),
        (0, 1000, -6, -3),
        (60, 1000, 3, 10),
        (500, 1000, 20, 40),
        (1, 10, 0, 2.5),
        (0, 1, -1, 1),
    ],
)
def test_drift(unfamiliar, n, low, high):
    """Against 2 % of unfamiliar images among 1,000 test images."""
    share = {"value": 0.02, "low": 0.01, "high": 0.03}
    card = tiny_model().card
    rule = FamiliarityRule(threshold=0, rate=0.02, promised=0.02, achieved=0.02, method="calib", n=100)
    card = replace(card, familiarity=rule, metrics={"n": 1000, "verdicts": {"unfamiliar": {"share": share}}})
    assert low < drift_z(card, unfamiliar, n) < high


def test_no_drift_where_nothing_is_known():
    card = tiny_model().card
    assert drift_z(card, 5, 10) is None


def test_without_the_extra_it_says_what_to_install(model_path):
    program = "import sys; sys.modules['uvicorn'] = None\nfrom tellapart.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", model_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "[package-missing]" in done.stderr
    assert "tellapart[serve]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["{missing}"], "model-not-found"),
        (["{model}", "{model}"], "model-names-clash"),
        (["{model}", "--host", "203.0.113.7"], "cannot-listen"),
        (["{model}", "--host", "no such host"], "cannot-listen"),
        (["{model}", "--token-file", "{missing}"], "bad-token"),
        (["{model}", "--token-file", "{short}"], "bad-token"),
        (["{model}", "--collect", "{short}"], "cannot-write"),
    ],
)
def test_refusals_to_begin(model_path, tmp_path, arguments, code):
    (tmp_path / "short").write_text("short")
    names = {"model": model_path, "missing": tmp_path / "missing", "short": tmp_path / "short"}
    done = CliRunner().invoke(app, ["serve", "--port", "0", *(argument.format(**names) for argument in arguments)])
    assert (done.exit_code, f"[{code}]" in done.stderr) == (1, True), done.stderr


def test_a_token_is_made_where_others_can_connect(model_path):
    with Server(model_path, "--host", "0.0.0.0") as server:  # noqa: S104
        token = server.link.partition("?token=")[2]
        assert len(token) >= 24
        with server.client() as client:
            assert client.get("/model").status_code == 401
            assert client.get("/model", headers={"Authorization": f"Bearer {token}"}).status_code == 200
