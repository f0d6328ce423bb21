"""The Open Inference Protocol, spoken by Triton's client and by hand."""

import base64
import json

import numpy as np
import pytest
import tritonclient.http as triton
from serving_kit import SIDE_PX, flat, pixels

NAMES = ["blue", "red", "green"]


@pytest.fixture
def remote(server):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def files_input(contents, *, binary=True):
    array = np.array(contents, dtype=object)
    tensor = triton.InferInput("files", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def texts(result, name):
    return [text.decode() for text in result.as_numpy(name)]


def test_health_and_metadata(remote):
    assert remote.is_server_live()
    assert remote.is_server_ready()
    assert remote.is_model_ready("colors")
    assert not remote.is_model_ready("other")
    assert remote.get_server_metadata()["name"] == "tellapart"
    about = remote.get_model_metadata("colors")
    assert about["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, SIDE_PX, SIDE_PX, 3]}
    (version,) = about["versions"]
    assert remote.is_model_ready("colors", version)
    assert not remote.is_model_ready("colors", "999")


@pytest.mark.parametrize("binary", [True, False])
def test_image_files(remote, binary):
    contents = [flat(name) for name in NAMES] + [b"no image"]
    given = contents if binary else [base64.b64encode(content) for content in contents]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probs", "error")]
    result = remote.infer("colors", [files_input(given, binary=binary)], outputs=outputs, request_id="7")
    labels = result.as_numpy("label")
    found = [text.decode() if isinstance(text, bytes) else text for text in labels]
    assert found == [*NAMES, ""]
    probs = result.as_numpy("probs").astype(np.float32)
    assert probs.shape == (4, 3)
    assert np.allclose(probs[:3].sum(axis=1), 1, atol=1e-5)
    assert np.isnan(probs[3]).all()
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("binary", [True, False])
def test_pixels(remote, binary):
    batch = np.stack([pixels(name) for name in NAMES])
    tensor = triton.InferInput("images", list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch, binary_data=binary)
    result = remote.infer("colors", [tensor])
    assert texts(result, "label") == NAMES
    assert texts(result, "verdict") == ["sure"] * 3


def test_answers_are_those_of_predict(remote, client):
    row = client.post("/predict?probs=true", content=flat("green")).json()["predictions"][0]
    result = remote.infer("colors", [files_input([flat("green")])])
    expected = [row[f"prob_{name}"] for name in ("red", "green", "blue")]
    assert np.allclose(result.as_numpy("probs")[0], expected, atol=1e-6)


def test_unknown_model_and_output(remote):
    with pytest.raises(triton.InferenceServerException, match="no-such-model"):
        remote.infer("other", [files_input([b""])])
    with pytest.raises(triton.InferenceServerException, match="no such output"):
        remote.infer("colors", [files_input([b""])], outputs=[triton.InferRequestedOutput("logits")])


IMAGES = {"name": "images", "datatype": "UINT8", "shape": [1, SIDE_PX, SIDE_PX, 3]}
ONE = SIDE_PX * SIDE_PX * 3
FILES = {"name": "files", "datatype": "BYTES", "shape": [1], "data": ["aaaa"]}


def binary_files(size, **changes):
    """A request whose files follow as binary data."""
    tensor = {**FILES, "parameters": {"binary_data_size": size}, **changes}
    del tensor["data"]
    return {"inputs": [tensor]}


@pytest.mark.parametrize(
    ("document", "length", "tail"),
    [
        ("no json", None, b""),
        ([], None, b""),
        ({}, None, b""),
        ({"inputs": []}, None, b""),
        ({"inputs": [{}]}, None, b""),
        ({"inputs": [IMAGES, IMAGES]}, None, b""),
        ({"inputs": [IMAGES]}, None, b""),
        ({"inputs": [{**IMAGES, "data": [256] * ONE}]}, None, b""),
        ({"inputs": [{**IMAGES, "data": [0.5] * ONE}]}, None, b""),
        ({"inputs": [{**IMAGES, "data": [0] * (ONE - 1)}]}, None, b""),
        ({"inputs": [{**IMAGES, "data": [[0], [0, 0]]}]}, None, b""),
        ({"inputs": [{**IMAGES, "shape": [1, 3, 8, 8], "data": [0] * 192}]}, None, b""),
        ({"inputs": [{**IMAGES, "shape": [-1, SIDE_PX, SIDE_PX, 3], "data": []}]}, None, b""),
        ({"inputs": [{**IMAGES, "shape": [10**9, SIDE_PX, SIDE_PX, 3], "data": []}]}, None, b""),
        ({"inputs": [{**IMAGES, "shape": "many", "data": []}]}, None, b""),
        ({"inputs": [{**IMAGES, "datatype": "FP32", "data": [0] * ONE}]}, None, b""),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": ONE}}]}, True, b"short"),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": -1}}]}, True, b""),
        ({"inputs": [{**IMAGES, "parameters": []}], "outputs": [{}]}, None, b""),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": ONE}}]}, "99999", b""),
        ({"inputs": [{**IMAGES, "parameters": {"binary_data_size": ONE}}]}, "-3", b""),
        ({"inputs": [IMAGES | {"parameters": {"binary_data_size": 1}}]}, "9" * 5000, b""),
        ({"inputs": [{**FILES, "data": ["@@"]}]}, None, b""),
        ({"inputs": [{**FILES, "shape": [2]}]}, None, b""),
        ({"inputs": [{**FILES, "data": [7]}]}, None, b""),
        ({"inputs": [{**FILES, "data": "aaaa"}]}, None, b""),
        ({"inputs": [{**FILES, "data": [["aaaa"], 7]}]}, None, b""),
        ({"inputs": [FILES], "outputs": [{"name": "probs"}] * 2}, None, b""),
        pytest.param(
            {"inputs": [FILES], "outputs": [{"name": "probs"}] * 90_000}, None, b"", id="one output often"
        ),
        pytest.param({"inputs": [{**FILES, "shape": [1] + [9] * 10**6}]}, None, b"", id="a shape of a million"),
        pytest.param({"inputs": [{**IMAGES, "data": ["a" * 200_000, *"b" * 20_000]}]}, None, b"", id="wide text"),
        (binary_files(6), True, b"\xff\xff\xff\x7fab"),
        (binary_files(2), True, b"ab"),
        (binary_files(6), True, bytes(6)),
        pytest.param(binary_files(2**25), True, bytes(2**25), id="millions of empty files"),
    ],
)
def test_malformed_requests(client, document, length, tail):
    head = (document if isinstance(document, str) else json.dumps(document)).encode()
    headers = (
        {} if length is None else {"Inference-Header-Content-Length": str(len(head) if length is True else length)}
    )
    answer = client.post("/v2/models/colors/infer", content=head + tail, headers=headers)
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["error"].startswith("[")
    assert answer.elapsed.total_seconds() < 2  # nobody else is answered meanwhile


def test_long_json_is_refused(client):
    document = {"inputs": [{**IMAGES, "data": [0] * 3_000_000}]}
    answer = client.post("/v2/models/colors/infer", json=document)
    assert answer.status_code == 413
