"""One server for all tests that do not harm it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from serving_kit import Server, write_model
from tiny import tiny_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("runs") / "colors/model.onnx", tiny_model())


@pytest.fixture(scope="session")
def server(model_path):
    with Server(model_path) as server:
        yield server
        server.end()
    assert "internal error" not in "".join(server.log)


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client
