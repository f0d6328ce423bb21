"""POST /predict and its neighbours: what is answered to whom, over a real connection."""

import io

import pillow_heif
import pytest
from PIL import Image
from serving_kit import Server, flat, write_model
from tiny import parsed, tiny_model

from tellapart.inference.model import pack
from tellapart.inference.predict import load
from tellapart.inference.rows import row


def test_raw_bytes(client):
    for name in ("red", "green", "blue"):
        answer = client.post("/predict", content=flat(name)).json()
        assert answer["model"] == "colors"
        (row,) = answer["predictions"]
        assert row["label"] == name
        assert row["error"] is None


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_formats(client, image_format):
    pillow_heif.register_heif_opener()
    (row,) = client.post("/predict", content=flat("green", image_format, size=(64, 64))).json()["predictions"]
    assert (row["label"], row["error"]) == ("green", None)


def test_many_files_keep_their_order_and_names(client):
    names = ["blue", "red", "green", "red", "blue"]
    hostile = '<img src=x onerror="alert(1)">\r\n../../etc/passwd'
    files = [("files", (f"{hostile}{i}", flat(name))) for i, name in enumerate(names)]
    rows = client.post("/predict", files=files).json()["predictions"]
    assert [row["label"] for row in rows] == names
    assert [row["path"] for row in rows] == [f"{hostile}{i}" for i in range(len(names))]


def test_an_unreadable_file_has_its_own_row(client):
    files = [("files", ("good.png", flat("red"))), ("files", ("bad.jpg", b"words"))]
    good, bad = client.post("/predict", files=files).json()["predictions"]
    assert (good["label"], good["error"]) == ("red", None)
    assert (bad["label"], bad["error"], bad["verdict"]) == (None, "not-an-image", "error")
    assert bad["message"]


def test_as_the_command_line(client, model_path):
    classifier = load(model_path)
    (expected,) = classifier.predict(flat("green"))
    cells = row(expected, classifier.class_names, all_probs=True)
    (found,) = client.post("/predict?probs=true&coverage=0.9", content=flat("green")).json()["predictions"]
    assert found.pop("message") is None
    assert found == cells


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "no-such-route"),
        ("GET", "/page/../../etc/passwd", {}, 404, "no-such-route"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404, "no-such-route"),
        ("GET", "/predict", {}, 405, "wrong-method"),
        ("POST", "/predict/", {"content": b"x"}, 404, "no-such-route"),
        ("POST", "/predict?model=other", {"content": b"x"}, 404, "no-such-model"),
        ("POST", "/predict?coverage=high", {"content": b"x"}, 400, "bad-request"),
        ("POST", "/predict?coverage=0.77", {"content": b"x"}, 400, "no-such-coverage"),
        ("POST", "/predict?probs=maybe", {"content": b"x"}, 400, "bad-request"),
        ("POST", "/explain", {"content": b"x"}, 422, "not-an-image"),
        ("POST", "/explain?class=pink", {"content": b"x"}, 400, "unknown-class"),
        ("GET", "/model", {"headers": {"Host": "evil.example"}}, 421, "wrong-host"),
        ("POST", "/predict", {"headers": {"Origin": "http://evil.example"}}, 403, "cross-site"),
        ("POST", "/predict", {"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "cross-site"),
        ("POST", "/predict", {"headers": {"Content-Type": "multipart/form-data"}}, 400, "bad-request"),
    ],
)
def test_refusals(client, method, path, options, status, code):
    answer = client.request(method, path, **options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"code", "message", "next"}
    for word in ("Traceback", "site-packages", "/src/", ".py"):
        assert word not in answer.text


def test_every_answer_is_fenced(client):
    for path in ("/", "/page.css", "/page.js", "/model", "/nothing", "/metrics", "/openapi.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_model_says_what_it_is_and_no_paths(client, model_path):
    answer = client.get("/model")
    said = answer.json()
    assert said["class_names"] == ["red", "green", "blue"]
    assert said["coverage"] == {"default": 0.9, "levels": [0.9], "n": 60}
    assert said["collecting"] is False
    assert said["limits"]
    assert str(model_path.parent) not in answer.text


def test_explain_is_a_picture(client):
    for path in ("/explain", "/explain?class=blue"):
        answer = client.post(path, content=flat("red"))
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (448, 448)


def test_explain_without_class_maps_covers_places(tmp_path):
    model = parsed(tiny_model())
    del model.graph.output[[output.name for output in model.graph.output].index("heatmap")]
    with (
        Server(write_model(tmp_path / "plain.onnx", pack(model, tiny_model().card))) as server,
        server.client() as client,
    ):
        answer = client.post("/explain", content=flat("red"))
        assert client.get("/models").json()["models"][0]["name"] == "plain"
    picture = Image.open(io.BytesIO(answer.content)).convert("RGB")
    red, _, blue = picture.getpixel((224, 224))
    assert red > blue  # orange: the answer needs every place
